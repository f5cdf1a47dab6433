//! What the bytes mean: OTLP requests as they come in, and the entry that
//! commits to one record.
//!
//! This crate is pure. It opens no file and no socket, reads no clock, and
//! knows neither RocksDB nor SQL.

pub mod entry;
pub mod grpc;
pub mod json;
pub mod limits;
pub mod otlp;
pub mod rewrite;
pub mod scan;
mod schema;
pub mod seen;
pub mod wire;

pub use entry::{ENTRY_BYTES, Entry, Hash};
pub use limits::Limits;
pub use scan::{Scan, scan};

/// The kind of OTLP request, and so of every record in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Signal {
    /// `ExportTraceServiceRequest`; its records are spans.
    Traces = 1,
    /// `ExportLogsServiceRequest`; its records are log records.
    Logs = 2,
    /// `ExportMetricsServiceRequest`; its records are metrics.
    Metrics = 3,
}

impl Signal {
    /// Reads the byte that stands for a signal in the log's format.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Traces),
            2 => Some(Self::Logs),
            3 => Some(Self::Metrics),
            _ => None,
        }
    }

    /// The byte that stands for this signal in the log's format.
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// What one record of this signal is called: `span`, `log` or `metric`.
    pub fn record_name(self) -> &'static str {
        match self {
            Self::Traces => "span",
            Self::Logs => "log",
            Self::Metrics => "metric",
        }
    }
}

/// A request that can never be accepted: what is wrong, where, and the mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    message: String,
}

impl Invalid {
    /// An error whose message names the field and the mend.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }

    /// The message for the client.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Invalid {}
