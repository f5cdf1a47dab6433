//! How the log is seen: SQL, replay of delegation chains, checks, events.
//!
//! Everything here is made from the log and can be made again. This crate reads
//! the log through a read-only `Reader`; it knows DataFusion, and neither the
//! `Writer` nor RocksDB.

mod adapt;
pub mod alerts;
mod asked;
pub mod attributes;
pub mod audit;
pub mod authority;
mod authorize;
mod begun;
pub mod caller;
mod catalog;
pub mod checkpoints;
pub mod checks;
pub mod columns;
mod engine;
mod error;
pub mod event;
pub mod evidence;
pub mod format;
mod functions;
mod gate;
mod grant_table;
pub mod grants;
mod hints;
mod ids;
pub mod issuers;
mod late_views;
mod library;
mod lineage;
mod lookup;
pub mod mapping;
mod memory;
pub mod metrics;
mod named;
mod notes;
pub mod ocsf;
pub mod pieces;
mod projection;
mod proofs;
pub mod reach;
mod recorder;
mod repeated;
pub mod replay;
mod replay_table;
pub mod rows;
pub mod saved;
mod segments;
pub mod serve;
pub mod spans;
mod statement;
mod stats;
mod streamed;
pub mod survival;
pub mod tables;
mod tenancy;
mod text_views;
pub mod tree;
mod views;
mod windows;
mod yielding;

pub use audit::{Audit, AuditMode, Redaction, StreamWatch};
pub use begun::{Begun, Head};
pub use caller::{ActorType, Caller, Role, Roles, RowFilter, everybody};
pub use engine::{Answer, Engine, QueryLimits};
pub use error::{Error, ErrorKind};
pub use gate::Concurrency;
pub use memory::memory_for_queries;
pub use projection::{AsOf, Follower, Projection, Snapshot};
pub use recorder::{Exporter, Recorder, Said};
pub use segments::{Rebuilt, SegmentLimits};
pub use stats::QueryStats;
pub use streamed::Streamed;
pub use tenancy::Bindings;
