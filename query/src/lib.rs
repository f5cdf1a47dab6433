//! How the log is seen: SQL, replay of delegation chains, checks, events.
//!
//! Everything here is made from the log and can be made again. This crate reads
//! the log through a read-only `Reader`; it knows DataFusion, and neither the
//! `Writer` nor RocksDB.

pub mod attributes;
mod error;
pub mod event;
pub mod mapping;
mod projection;
pub mod rows;
pub mod tables;

pub use error::{Error, ErrorKind};
pub use projection::{AsOf, Follower, Projection, Snapshot};
