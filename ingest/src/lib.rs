//! How the bytes come in: OTLP over gRPC and HTTP, limits, and the one sequencer
//! that appends them to the log.
//!
//! A connection comes through the [`Door`]. A request is admitted, read whole,
//! decompressed within its limit, scanned, hashed and handed to the sequencer; it is
//! answered when it is durable. This crate knows hyper, gRPC and the log's `Writer`.
//! It knows no RocksDB type and no SQL.

mod admission;
mod body;
mod certificate;
mod cors;
mod door;
#[cfg(test)]
mod fuzz;
mod gate;
mod grpc;
mod http;
mod identity;
mod pace;
mod pulse;
mod receive;
pub mod redact;
mod sequencer;
mod server;
mod stats;
mod status;
pub mod tls;
mod trace;

pub use admission::InFlight;
pub use cors::Cors;
pub use door::{ConnectionLimits, Door, Tongue, check_host};
pub use gate::{Gate, OWN};
pub use identity::{Admitting, Guard, Peer};
pub use sequencer::{Log, Sequencer, Settings, SubmitError, Work};
pub use server::{Bound, Config, Receivers};
pub use stats::{Stats, Transport};
pub use status::{Reason, Refusal};
pub use trace::NOT_EXPORTED;
