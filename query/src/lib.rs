//! How the log is seen: SQL, replay of delegation chains, checks, events.
//!
//! Everything here is made from the log and can be made again. This crate reads
//! the log through a read-only `Reader`; it knows DataFusion, and neither the
//! `Writer` nor RocksDB.

pub mod alerts;
pub mod attributes;
pub mod authority;
mod authorize;
pub mod caller;
mod catalog;
pub mod checkpoints;
pub mod checks;
pub mod columns;
mod engine;
mod error;
pub mod event;
pub mod format;
pub mod grants;
mod library;
pub mod mapping;
pub mod metrics;
mod projection;
mod proofs;
pub mod reach;
mod recorder;
pub mod replay;
pub mod rows;
mod segments;
pub mod serve;
pub mod spans;
mod stats;
pub mod survival;
pub mod tables;
pub mod tree;

pub use caller::{ActorType, Caller, Role, Roles, RowFilter};
pub use engine::{Answer, Engine, QueryLimits};
pub use error::{Error, ErrorKind};
pub use projection::{AsOf, Follower, Projection, Snapshot};
pub use recorder::{Recorder, Said};
pub use segments::{Rebuilt, SegmentLimits};
pub use stats::QueryStats;
