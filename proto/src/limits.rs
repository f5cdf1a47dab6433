//! The bounds on what comes in. Every one is configurable and has a default.
//!
//! A message that names a limit names the flag of `custody serve` that sets it, so
//! that who reads it in an exporter's log knows the mend.

/// Bounds that are checked before anything is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest request body after decompression, in bytes.
    pub body_bytes_max: usize,
    /// Most records in one request.
    pub records_max: usize,
    /// Most bytes of a request once every record has its resource and scope beside it,
    /// as rows have them. A large resource over many small records is a multiplier.
    pub expanded_bytes_max: u64,
    /// Largest record, resource or scope, in bytes.
    pub record_bytes_max: usize,
    /// Most values in a record, resource or scope: nested messages (attributes and what is
    /// in them, events, links, data points) and elements of repeated fields. Decoded, each
    /// takes some hundred bytes, and on the wire it may take two.
    pub record_values_max: usize,
    /// Deepest nesting of messages in a request; an `AnyValue` in an
    /// `AnyValue` counts two levels. Protobuf parsers stop at 100.
    pub depth_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 64 << 20,
            records_max: 1 << 19,
            expanded_bytes_max: 256 << 20,
            record_bytes_max: 32 << 20,
            record_values_max: 1 << 18,
            depth_max: 100,
        }
    }
}

impl Limits {
    /// What is wrong with a record, resource or scope of this size, if anything.
    pub(crate) fn excess(&self, what: &str, bytes: usize, values: usize) -> Option<String> {
        if bytes > self.record_bytes_max {
            return Some(format!(
                "a {what} has {bytes} bytes, more than the limit of {} (--record-bytes-max)",
                self.record_bytes_max
            ));
        }
        (values > self.record_values_max).then(|| {
            format!(
                "a {what} has {values} values (attributes, list elements, events, links, points), more than the limit \
                 of {} (--record-values-max)",
                self.record_values_max
            )
        })
    }
}
