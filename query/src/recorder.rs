//! What the query side has to say to the log: alerts of checks, what people did about them, who
//! asked what. It has no writer; the server gives it a [`Recorder`].

use std::sync::Arc;

use custody_store::bundle::{Export, Exporting};
use custody_store::system::SystemRecord;
use futures::future::BoxFuture;

use crate::Error;

/// One record, and who says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// `system:checks`, `system:audit`, or the identity of an authenticated person.
    pub identity: Arc<str>,
    /// What is said.
    pub record: SystemRecord,
}

/// Appends records to the log.
pub trait Recorder: Send + Sync {
    /// Appends them, in this order; answers with their seqs when they are durable. The same record
    /// by the same identity at the same nanosecond is one record.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Unavailable`] if the server stops or has failed.
    fn append(&self, said: Vec<Said>) -> BoxFuture<'static, Result<Vec<u64>, Error>>;
}

/// Says in the log what is exported, and signs it.
pub trait Exporter: Send + Sync {
    /// Appends the record of an export; when this answers it is durable and covered by a checkpoint.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Invalid`] if it names records that there are not, [`crate::ErrorKind::Unavailable`] if
    /// the server stops or has failed.
    fn export(&self, export: Export) -> BoxFuture<'static, Result<Exporting, Error>>;

    /// Signs a bundle of so many lines with this digest: gives its last line.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Unavailable`].
    fn sign(&self, lines: u64, digest: [u8; 32]) -> BoxFuture<'static, Result<String, Error>>;
}
