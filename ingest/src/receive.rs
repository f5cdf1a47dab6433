//! The common path of all receivers: bytes in, durable records out.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use custody_proto::{Limits, Signal, json, scan};
use custody_store::{Encoding, Prepared};
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::KeyValue;

use crate::admission::{Admission, Held, InFlight};
use crate::cors::Cors;
use crate::gate::{Gate, Own};
use crate::redact::Redactor;
use crate::sequencer::{Sequencer, SubmitError};
use crate::stats::{Accepted, Stats, Transport};
use crate::status::{Reason, Refusal};
use crate::trace;

/// Requests above this size are scanned and hashed off the network threads.
const INLINE_BYTES_MAX: usize = 256 << 10;

/// The same, where rules are applied: they take longer.
const REDACT_INLINE_BYTES_MAX: usize = 16 << 10;

/// What became of a request that was not refused whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Records that can never be accepted.
    pub rejected: u64,
    /// Why the first of those cannot be.
    pub message: String,
    /// The signed receipt that was asked for, or why there is none.
    pub receipt: Option<Result<String, String>>,
}

/// Who sends, and what he asks for beside.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    /// What the request came by.
    pub transport: Transport,
    /// The identity, as authenticated.
    pub identity: String,
    /// Whether a signed receipt is asked for.
    pub receipt: bool,
}

/// The header (and gRPC metadata) that asks for a receipt, and that carries it.
pub(crate) const RECEIPT: HeaderName = HeaderName::from_static("custody-receipt");

/// Says in the answer why there is no receipt.
const RECEIPT_ERROR: HeaderName = HeaderName::from_static("custody-receipt-error");

impl Sender {
    /// The sender of a request with these headers.
    pub(crate) fn new(transport: Transport, identity: String, headers: &HeaderMap) -> Self {
        let receipt = headers.get(RECEIPT).is_some_and(|value| value == "1");
        Self { transport, identity, receipt }
    }
}

impl Outcome {
    /// Puts the receipt into an answer's headers.
    pub(crate) fn put_receipt(&self, headers: &mut HeaderMap) {
        let (name, value) = match &self.receipt {
            None => return,
            Some(Ok(note)) => (RECEIPT, STANDARD.encode(note)),
            Some(Err(why)) => (RECEIPT_ERROR, why.clone()),
        };
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
}

/// What every receiver shares.
pub(crate) struct Core {
    pub(crate) rules: Arc<Rules>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) sequencer: Sequencer,
    pub(crate) stats: Arc<Stats>,
    pub(crate) cors: Cors,
}

impl Core {
    /// Receivers' common part over a started sequencer.
    pub(crate) fn new(rules: Rules, in_flight: InFlight, sequencer: Sequencer, stats: Arc<Stats>) -> Self {
        let admission = Admission::new(in_flight, Arc::clone(&stats));
        Self { rules: Arc::new(rules), admission, sequencer, stats, cors: Cors::default() }
    }

    /// Lets the pages of some origins send.
    pub(crate) fn with_cors(self, cors: Cors) -> Self {
        Self { cors, ..self }
    }

    /// Counts a refusal. One of our own traces leaves no trace in turn.
    pub(crate) fn refused(&self, transport: Transport, refusal: &Refusal) {
        self.stats.refused(transport, refusal);
        if *refusal == Refusal::Own {
            trace::note(|| vec![KeyValue::new(trace::NOT_EXPORTED, true)]);
        }
    }

    /// Takes a request's decompressed body; resolves when it is durable. `held` are
    /// its bytes in the server's account, given back when it no longer waits.
    pub(crate) async fn receive(
        &self,
        signal: Signal,
        encoding: Encoding,
        body: Bytes,
        sender: Sender,
        mut held: Held,
    ) -> Result<Outcome, Refusal> {
        let transport = sender.transport;
        self.stats.decompressed_bytes.fetch_add(body.len() as u64, Relaxed);
        let inline = if self.rules.redactor.is_some() { REDACT_INLINE_BYTES_MAX } else { INLINE_BYTES_MAX };
        let read = if body.len() <= inline {
            self.rules.read(signal, encoding, body, &sender, &mut held)?
        } else {
            let (rules, client) = (Arc::clone(&self.rules), Arc::clone(held.client()));
            let turn = client.work().await;
            let work = move || {
                // Given back when the work is done, also if its client has hung up by then.
                let _turn = turn;
                rules.read(signal, encoding, body, &sender, &mut held).map(|read| (read, held))
            };
            let done = tokio::task::spawn_blocking(work).await;
            let stopping = |_| Refusal::unavailable("the server is stopping", 1).because(Reason::Draining);
            let (read, given_back) = done.map_err(stopping)??;
            held = given_back;
            read
        };
        self.stats.rejected(signal, read.outcome.rejected);
        let bytes = read.request.bytes() as u64;
        trace::note(|| read.attributes());
        if read.request.records() == 0 {
            self.stats.accepted(transport, signal, Accepted { bytes, ..Accepted::default() });
            return Ok(read.outcome);
        }
        // No commit is traced for spans of our own.
        let traced = if read.own { None } else { trace::current() };
        let client = Arc::clone(held.client());
        match self.sequencer.submit_traced(read.request, held, traced).await {
            Ok(receipt) => {
                let (appended, duplicates, conflicts) = (receipt.appended, receipt.duplicates, receipt.conflicts);
                self.stats.accepted(transport, signal, Accepted { appended, duplicates, conflicts, bytes });
                if receipt.foreign > 0 {
                    self.stats.foreign(client.identity(), receipt.foreign);
                }
                Ok(Outcome { receipt: receipt.signed, ..read.outcome })
            }
            Err(SubmitError::Draining) => {
                Err(Refusal::unavailable("the server is stopping; try again", 1).because(Reason::Draining))
            }
            Err(SubmitError::Failed(_)) => {
                let why = "the log cannot be written; the server stops to recover it";
                Err(Refusal::unavailable(why, 5).because(Reason::LogFailed))
            }
        }
    }
}

struct Read {
    request: Prepared,
    outcome: Outcome,
    /// Some of it is this server's own telemetry.
    own: bool,
}

impl Read {
    /// What a span says of it.
    fn attributes(&self) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new("custody.request.records", self.request.records() as i64),
            KeyValue::new("custody.request.rejected", self.outcome.rejected as i64),
            KeyValue::new("custody.request.bytes", self.request.bytes() as i64),
        ];
        if self.own {
            attributes.push(KeyValue::new(trace::NOT_EXPORTED, true));
        }
        attributes
    }
}

/// What a record takes until it is durable, beside its bytes in the request: its place,
/// its commitment, its entry. Of small records this is the larger part.
const RECORD_BYTES: u64 = 256;

/// By which a request is read.
pub(crate) struct Rules {
    pub(crate) limits: Limits,
    /// Replaces what its rules name before anything is kept.
    pub(crate) redactor: Option<Arc<Redactor>>,
    pub(crate) gate: Arc<Gate>,
}

impl Rules {
    /// The CPU work of one request.
    fn read(
        &self,
        signal: Signal,
        encoding: Encoding,
        body: Bytes,
        sender: &Sender,
        held: &mut Held,
    ) -> Result<Read, Refusal> {
        let invalid = |e: custody_proto::Invalid| Refusal::Invalid(e.message().to_owned());
        let mut payload = match encoding {
            Encoding::Protobuf => body,
            Encoding::Json => {
                // While it is transcoded both are there, and what is nested twice.
                let came = body.len() as u64;
                held.add(came)?;
                let payload = json::transcode_within(signal, &body, self.limits.body_bytes_max).map_err(invalid)?;
                held.add(payload.len() as u64)?;
                drop(body);
                held.give_back(2 * came);
                payload.into()
            }
        };
        let mut scanned = scan(signal, &payload, &self.limits).map_err(invalid)?;
        // Before anything is hashed or kept.
        if let Some(redactor) = &self.redactor
            && let Some(redacted) = redactor.apply(signal, &payload, &self.limits).map_err(invalid)?
        {
            // Both are counted: the one that came goes only now.
            held.add(redacted.len() as u64)?;
            held.give_back(payload.len() as u64);
            payload = redacted.into();
            scanned = scan(signal, &payload, &self.limits).map_err(invalid)?;
        }
        let resources = scanned.groups.iter().map(|group| group.resource);
        let resources =
            resources.map(|r| payload.get(r.at as usize..r.at as usize + r.len as usize).unwrap_or_default());
        let own = match if signal == Signal::Traces { self.gate.own(resources) } else { Own::None } {
            Own::All => return Err(Refusal::Own),
            own => own == Own::Some,
        };
        held.add(scanned.records.len() as u64 * RECORD_BYTES)?;
        let message = scanned.rejection.clone().unwrap_or_default();
        let outcome = Outcome { rejected: scanned.rejected, message, receipt: None };
        let request = Prepared::new(signal, encoding, payload, scanned, &sender.identity).with_receipt(sender.receipt);
        held.add(request.packed_bytes() as u64)?;
        Ok(Read { request, outcome, own })
    }
}

#[cfg(test)]
#[path = "receive_tests.rs"]
mod tests;
