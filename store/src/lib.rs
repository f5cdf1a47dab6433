//! That the bytes are kept: an append-only log in RocksDB, chained, with an
//! RFC 6962 tree over its entries and signed checkpoints.
//!
//! One [`Writer`] appends; any number of [`Reader`]s read what is durable;
//! [`verify`] is a separate reading of the format. This crate knows bytes, seqs
//! and hashes. It knows no socket, no SQL and no wall clock: a [`Clock`] comes in.

mod checkpoint;
pub mod commit;
mod error;
pub mod format;
mod keys;
mod ledger;
mod reader;
pub mod tamper;
pub mod tree;
#[cfg(test)]
mod vectors;
pub mod verify;
mod wal;
mod writer;

pub use checkpoint::Checkpoint;
pub use commit::Prepared;
pub use error::{Error, ErrorKind};
pub use format::{Commitments, Encoding, Head};
pub use ledger::{Options, open};
pub use reader::{Block, Content, Reader};
pub use writer::{Receipt, Writer};

/// Where times come from: ns since the Unix epoch.
pub trait Clock: Send + Sync {
    /// The time now, in ns since the Unix epoch.
    fn now(&self) -> u64;
}

/// The clock of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |d| d.as_nanos() as u64)
    }
}
