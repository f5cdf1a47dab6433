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

use crate::body::Held;
use crate::gate::{Gate, Own};
use crate::sequencer::{Sequencer, SubmitError};
use crate::stats::{Accepted, Stats, Transport};
use crate::status::{Reason, Refusal};
use crate::trace;

/// Requests above this size are scanned and hashed off the network threads.
const INLINE_BYTES_MAX: usize = 256 << 10;

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
    pub(crate) limits: Limits,
    pub(crate) in_flight_bytes_max: u64,
    pub(crate) sequencer: Sequencer,
    pub(crate) stats: Arc<Stats>,
    pub(crate) gate: Arc<Gate>,
}

impl Core {
    /// Receivers' common part over a started sequencer.
    pub(crate) fn new(
        limits: Limits,
        in_flight_bytes_max: u64,
        sequencer: Sequencer,
        stats: Arc<Stats>,
        gate: Arc<Gate>,
    ) -> Self {
        Self { limits, in_flight_bytes_max, sequencer, stats, gate }
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
        held: Held,
    ) -> Result<Outcome, Refusal> {
        let transport = sender.transport;
        self.stats.decompressed_bytes.fetch_add(body.len() as u64, Relaxed);
        let read = if body.len() <= INLINE_BYTES_MAX {
            read(signal, encoding, body, &sender, &self.limits, &self.gate)?
        } else {
            let (limits, gate) = (self.limits.clone(), Arc::clone(&self.gate));
            let read = tokio::task::spawn_blocking(move || read(signal, encoding, body, &sender, &limits, &gate)).await;
            read.map_err(|_| Refusal::unavailable("the server is stopping", 1).because(Reason::Draining))??
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
        match self.sequencer.submit_traced(read.request, held, traced).await {
            Ok(receipt) => {
                let (appended, duplicates, conflicts) = (receipt.appended, receipt.duplicates, receipt.conflicts);
                self.stats.accepted(transport, signal, Accepted { appended, duplicates, conflicts, bytes });
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

/// The CPU work of one request.
fn read(
    signal: Signal,
    encoding: Encoding,
    body: Bytes,
    sender: &Sender,
    limits: &Limits,
    gate: &Gate,
) -> Result<Read, Refusal> {
    let invalid = |e: custody_proto::Invalid| Refusal::Invalid(e.message().to_owned());
    let payload = match encoding {
        Encoding::Protobuf => body,
        Encoding::Json => json::transcode(signal, &body).map_err(invalid)?.into(),
    };
    let scan = scan(signal, &payload, limits).map_err(invalid)?;
    let resources = scan.groups.iter().map(|group| group.resource);
    let resources = resources.map(|r| payload.get(r.at as usize..r.at as usize + r.len as usize).unwrap_or_default());
    let own = match gate.own(resources) {
        Own::All => return Err(Refusal::Own),
        own => own == Own::Some,
    };
    let message = scan.rejection.clone().unwrap_or_default();
    let outcome = Outcome { rejected: scan.rejected, message, receipt: None };
    let request = Prepared::new(signal, encoding, payload, scan, &sender.identity).with_receipt(sender.receipt);
    Ok(Read { request, outcome, own })
}
