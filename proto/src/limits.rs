//! The bounds on what comes in. Every one is configurable and has a default.

/// Bounds that are checked before anything is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest request body after decompression, in bytes.
    pub body_bytes_max: usize,
    /// Most records in one request.
    pub records_max: usize,
    /// Deepest nesting of messages in a request; an `AnyValue` in an
    /// `AnyValue` counts two levels. Protobuf parsers stop at 100.
    pub depth_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body_bytes_max: 64 << 20, records_max: 1 << 20, depth_max: 100 }
    }
}
