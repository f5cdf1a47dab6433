//! What a scan finds: where everything is in a well-formed request.

/// A range of bytes of a request. One that begins at or beyond the request's
/// length lies in [`Scan::annex`], `at - length` bytes from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Range {
    /// Where it begins.
    pub at: u32,
    /// How many bytes.
    pub len: u32,
}

/// The resource and the scope that some of a request's records share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Group {
    /// The bytes of the `Resource` message.
    pub resource: Range,
    /// The bytes of the `InstrumentationScope` message.
    pub scope: Range,
}

/// One record of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Index into [`Scan::groups`].
    pub group: u32,
    /// The bytes of the record's message.
    pub range: Range,
    /// The trace id of a span or log; zeros if it has none.
    pub trace_id: [u8; 16],
    /// The span id of a span or log; zeros if it has none.
    pub span_id: [u8; 8],
}

/// Where everything is in a well-formed request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The resource-and-scope pairs.
    pub groups: Vec<Group>,
    /// The records that can be accepted, in the request's order.
    pub records: Vec<Record>,
    /// How much can never be accepted, as the answer counts it: spans, log records, or the
    /// data points of metrics (`rejected_data_points`).
    pub rejected: u64,
    /// Why the first of those cannot be, for the client.
    pub rejection: Option<String>,
    /// Resources and scopes that the request gave in several pieces, joined.
    /// (Protobuf merges repeated occurrences of a message field, and to merge
    /// encoded messages is to concatenate them.)
    pub annex: Vec<u8>,
}
