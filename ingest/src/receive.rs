//! The common path of all receivers: bytes in, durable records out.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use custody_proto::{Limits, Signal, json, scan};
use custody_store::{Encoding, Prepared};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::admission::{Admission, Held, InFlight};
use crate::cors::Cors;
use crate::redact::Redactor;
use crate::sequencer::{Sequencer, SubmitError};
use crate::stats::Stats;
use crate::status::Refusal;

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
    pub(crate) fn new(identity: String, headers: &HeaderMap) -> Self {
        let receipt = headers.get(RECEIPT).is_some_and(|value| value == "1");
        Self { identity, receipt }
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
    pub(crate) admission: Arc<Admission>,
    pub(crate) sequencer: Sequencer,
    pub(crate) stats: Arc<Stats>,
    pub(crate) cors: Cors,
    /// Replaces what its rules name before anything is kept.
    pub(crate) redactor: Option<Arc<Redactor>>,
}

impl Core {
    /// Receivers' common part over a started sequencer.
    pub(crate) fn new(limits: Limits, in_flight: InFlight, sequencer: Sequencer, stats: Arc<Stats>) -> Self {
        Self {
            limits,
            admission: Admission::new(in_flight, Arc::clone(&stats)),
            sequencer,
            stats,
            cors: Cors::default(),
            redactor: None,
        }
    }

    /// Lets the pages of some origins send.
    pub(crate) fn with_cors(self, cors: Cors) -> Self {
        Self { cors, ..self }
    }

    /// The same, with these rules applied to every request.
    pub(crate) fn redacting(self, redactor: Option<Arc<Redactor>>) -> Self {
        Self { redactor, ..self }
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
        let inline = if self.redactor.is_some() { REDACT_INLINE_BYTES_MAX } else { INLINE_BYTES_MAX };
        let read = if body.len() <= inline {
            read(signal, encoding, body, &sender, &self.limits, self.redactor.as_deref(), &mut held)?
        } else {
            let (limits, redactor, client) = (self.limits.clone(), self.redactor.clone(), Arc::clone(held.client()));
            let _turn = client.work().await;
            let work = move || {
                let read = read(signal, encoding, body, &sender, &limits, redactor.as_deref(), &mut held);
                read.map(|read| (read, held))
            };
            let done = tokio::task::spawn_blocking(work).await;
            let (read, given_back) = done.map_err(|_| Refusal::unavailable("the server is stopping", 1))??;
            held = given_back;
            read
        };
        self.stats.rejected(signal, read.outcome.rejected);
        let bytes = read.request.bytes() as u64;
        if read.request.records() == 0 {
            self.stats.accepted(signal, 0, 0, 0, bytes);
            return Ok(read.outcome);
        }
        match self.sequencer.submit(read.request, held).await {
            Ok(receipt) => {
                self.stats.accepted(signal, receipt.appended, receipt.duplicates, receipt.conflicts, bytes);
                Ok(Outcome { receipt: receipt.signed, ..read.outcome })
            }
            Err(SubmitError::Draining) => Err(Refusal::unavailable("the server is stopping; try again", 1)),
            Err(SubmitError::Failed(_)) => {
                Err(Refusal::unavailable("the log cannot be written; the server stops to recover it", 5))
            }
        }
    }
}

struct Read {
    request: Prepared,
    outcome: Outcome,
}

/// What a record takes until it is durable, beside its bytes in the request: its place,
/// its commitment, its entry. Of small records this is the larger part.
const RECORD_BYTES: u64 = 256;

/// The CPU work of one request.
fn read(
    signal: Signal,
    encoding: Encoding,
    body: Bytes,
    sender: &Sender,
    limits: &Limits,
    redactor: Option<&Redactor>,
    held: &mut Held,
) -> Result<Read, Refusal> {
    let invalid = |e: custody_proto::Invalid| Refusal::Invalid(e.message().to_owned());
    let mut payload = match encoding {
        Encoding::Protobuf => body,
        Encoding::Json => {
            let payload = json::transcode_within(signal, &body, limits.body_bytes_max).map_err(invalid)?;
            held.add(payload.len() as u64)?;
            payload.into()
        }
    };
    let mut scanned = scan(signal, &payload, limits).map_err(invalid)?;
    // Before anything is hashed or kept.
    if let Some(redactor) = redactor
        && let Some(redacted) = redactor.apply(signal, &payload, limits).map_err(invalid)?
    {
        payload = redacted.into();
        scanned = scan(signal, &payload, limits).map_err(invalid)?;
    }
    held.add(scanned.records.len() as u64 * RECORD_BYTES)?;
    let message = scanned.rejection.clone().unwrap_or_default();
    let outcome = Outcome { rejected: scanned.rejected, message, receipt: None };
    let request = Prepared::new(signal, encoding, payload, scanned, &sender.identity).with_receipt(sender.receipt);
    Ok(Read { request, outcome })
}
