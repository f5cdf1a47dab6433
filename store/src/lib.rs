//! That the bytes are kept: an append-only log in RocksDB, chained, with an
//! RFC 6962 tree over its entries and signed checkpoints.
//!
//! One [`Writer`] appends; any number of [`Reader`]s read what is durable;
//! [`verify`] is a separate reading of the format. This crate knows bytes, seqs
//! and hashes. It knows no socket, no SQL and no wall clock: a [`Clock`] comes in.

pub mod backup;
pub mod bundle;
mod checkpoint;
pub mod commit;
pub mod cose;
pub mod digest;
mod erase;
mod error;
pub mod format;
pub mod keys;
mod ledger;
mod many;
pub mod measure;
pub mod note;
pub mod policy;
pub mod proof;
mod reader;
pub mod repair;
mod rotate;
pub mod system;
pub mod tamper;
mod token;
pub mod tree;
#[cfg(test)]
mod vectors;
pub mod verify;
mod wal;
pub mod witness;
mod writer;

pub use checkpoint::Checkpoint;
pub use commit::Prepared;
pub use erase::{Cause, Erased, Erasure, Hold};
pub use error::{Error, ErrorKind};
pub use format::{Commitments, Encoding, Head};
pub use keys::KeySource;
pub use ledger::{Durability, Options, make_dir, open};
pub use reader::{Block, Content, Kept, Reader};
pub use token::TOKEN_TYPE;
pub use writer::{Receipt, Writer};

/// Where times come from: ns since the Unix epoch.
pub trait Clock: Send + Sync {
    /// The time now, in ns since the Unix epoch.
    fn now(&self) -> u64;

    /// A time in ns that never goes back nor jumps, from any beginning. What passes
    /// on it and not on [`Self::now`] is a jump of the clock, which the log records.
    /// By default the same as [`Self::now`], so that no jump is seen.
    fn monotonic(&self) -> u64 {
        self.now()
    }
}

/// The clock of the operating system.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |d| d.as_nanos() as u64)
    }

    fn monotonic(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}
