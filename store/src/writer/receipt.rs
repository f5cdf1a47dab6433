//! What became of a request, for who sent it.

use super::Writer;
use crate::Error;

/// What became of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The seq of the first record appended; of the original for a pure retry.
    pub first_seq: u64,
    /// How many records were appended.
    pub appended: u64,
    /// How many were in the log already, with the same content.
    pub duplicates: u64,
    /// How many of those the log has from another identity: of the same request, or of the span.
    pub foreign: u64,
    /// How many of those appended have a span id that is in the log with other content.
    pub conflicts: u64,
    /// The same, signed, if the sender asked for it: a note (docs/format.md, "Receipts"),
    /// or why it could not be signed.
    pub signed: Option<Result<String, String>>,
}

impl Writer {
    /// A note that says what became of a request: who, which records, from which counter on.
    pub(super) fn sign_receipt(&self, receipt: &Receipt, digest: &str) -> Result<String, Error> {
        let first = receipt.first_seq;
        let missing = || Error::corrupt(format!("the entry of seq {first} is missing"));
        let found = self.reader.commitments_at(first)?.ok_or_else(missing)?;
        let text = format!(
            "custody receipt v1\norigin {}\nsubmitter {}\nfirst-seq {first}\ncounter {}\nappended {}\nduplicates {}\n\
             ingest-time {}\nrequest-sha256 {digest}\n",
            self.shared.origin,
            const_hex::encode(found.submitter),
            found.counter + (first - found.first_seq),
            receipt.appended,
            receipt.duplicates,
            found.ingest_time,
        );
        Ok(self.keys.sign_text(text)?.to_string())
    }
}
