//! How the bytes come in: OTLP over gRPC and HTTP, limits, and the one sequencer
//! that appends them to the log.
//!
//! A request is read whole, decompressed within its limit, scanned, hashed and
//! handed to the sequencer; it is answered when it is durable. This crate knows
//! hyper, gRPC and the log's `Writer`. It knows no RocksDB type and no SQL.

mod body;
mod gate;
mod grpc;
mod http;
mod identity;
mod receive;
mod sequencer;
mod server;
mod stats;
mod status;
mod trace;

pub use gate::{Gate, OWN};
pub use sequencer::{Log, Sequencer, Settings, SubmitError, Work};
pub use server::{Bound, Config, Receivers};
pub use stats::{Stats, Transport};
pub use status::{Reason, Refusal};
pub use trace::NOT_EXPORTED;
