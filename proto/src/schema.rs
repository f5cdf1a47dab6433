//! The messages of OTLP as tables: what the scanner checks and what the JSON
//! transcoder writes. One table, so that both always accept the same.
//!
//! Numbers, names and types are those of opentelemetry-proto 1.9 (`trace`,
//! `logs`, `metrics`, `common`, `resource`, and the collector's requests).

use crate::Signal;

/// How a field is encoded.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// int32, int64, uint32, uint64, bool or enum: a varint on the wire.
    Varint(Varint),
    /// sint32: a zigzag varint.
    Sint,
    /// fixed32.
    Fixed32,
    /// fixed64 or sfixed64.
    Fixed64 { signed: bool },
    /// double.
    Double,
    /// UTF-8.
    Text,
    /// Bytes that are base64 in JSON.
    Bytes,
    /// A trace or span id: bytes that are hex in JSON.
    Id,
    /// A message.
    Message(&'static Message),
}

/// What a varint field holds, for JSON and for its range.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Varint {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Enum,
}

/// One field of a message.
pub(crate) struct Field {
    pub number: u32,
    /// lowerCamelCase, as OTLP/JSON spells it.
    pub name: &'static str,
    pub kind: Kind,
    pub repeated: bool,
}

/// A message: its fields, by number.
pub(crate) struct Message {
    pub name: &'static str,
    pub fields: &'static [Field],
    /// Where each field number stands in `fields`, plus one; 0 if it is unknown.
    places: [u8; NUMBERS],
}

/// OTLP's field numbers are below this.
const NUMBERS: usize = 32;

impl Message {
    const fn new(name: &'static str, fields: &'static [Field]) -> Self {
        let mut places = [0; NUMBERS];
        let mut i = 0;
        while i < fields.len() {
            // Out of bounds for a number too large, which then does not compile.
            places[fields[i].number as usize] = i as u8 + 1;
            i += 1;
        }
        Self { name, fields, places }
    }

    #[inline]
    pub(crate) fn field(&self, number: u32) -> Option<&'static Field> {
        let place = usize::from(*self.places.get(number as usize)?);
        self.fields.get(place.wrapping_sub(1))
    }

    /// The fields (bit by number) that may not come beside this one in JSON: itself, and
    /// the rest of its `oneof`.
    pub(crate) fn alternatives_of(&self, field: &Field) -> u32 {
        let oneof = match self.name {
            "AnyValue" => 0b1_1111_1110,
            "NumberDataPoint" => 1 << 4 | 1 << 6,
            "Exemplar" => 1 << 3 | 1 << 6,
            "Metric" => 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 11,
            _ => 0,
        };
        let own = 1 << field.number;
        if oneof & own != 0 { oneof } else { own }
    }

    pub(crate) fn field_named(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|f| f.name == name)
    }
}

const fn one(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, repeated: false }
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, repeated: true }
}

use Kind::{Bytes, Double, Fixed32, Id, Message as Msg, Sint, Text};

const TIME: Kind = Kind::Fixed64 { signed: false };
const SFIXED: Kind = Kind::Fixed64 { signed: true };
const BOOL: Kind = Kind::Varint(Varint::Bool);
const INT32: Kind = Kind::Varint(Varint::Int32);
const INT64: Kind = Kind::Varint(Varint::Int64);
const UINT32: Kind = Kind::Varint(Varint::Uint32);
const UINT64: Kind = Kind::Varint(Varint::Uint64);
const ENUM: Kind = Kind::Varint(Varint::Enum);

macro_rules! message {
    ($ident:ident, $name:literal, [$($field:expr),* $(,)?]) => {
        pub(crate) static $ident: Message = Message::new($name, &[$($field),*]);
    };
}

message!(
    ANY_VALUE,
    "AnyValue",
    [
        one(1, "stringValue", Text),
        one(2, "boolValue", BOOL),
        one(3, "intValue", INT64),
        one(4, "doubleValue", Double),
        one(5, "arrayValue", Msg(&ARRAY_VALUE)),
        one(6, "kvlistValue", Msg(&KEY_VALUE_LIST)),
        one(7, "bytesValue", Bytes),
        one(8, "stringValueStrindex", INT32),
    ]
);
message!(ARRAY_VALUE, "ArrayValue", [many(1, "values", Msg(&ANY_VALUE))]);
message!(KEY_VALUE_LIST, "KeyValueList", [many(1, "values", Msg(&KEY_VALUE))]);
message!(KEY_VALUE, "KeyValue", [one(1, "key", Text), one(2, "value", Msg(&ANY_VALUE)), one(3, "keyStrindex", INT32),]);
message!(
    SCOPE,
    "InstrumentationScope",
    [
        one(1, "name", Text),
        one(2, "version", Text),
        many(3, "attributes", Msg(&KEY_VALUE)),
        one(4, "droppedAttributesCount", UINT32),
    ]
);
message!(
    ENTITY_REF,
    "EntityRef",
    [one(1, "schemaUrl", Text), one(2, "type", Text), many(3, "idKeys", Text), many(4, "descriptionKeys", Text),]
);
message!(
    RESOURCE,
    "Resource",
    [
        many(1, "attributes", Msg(&KEY_VALUE)),
        one(2, "droppedAttributesCount", UINT32),
        many(3, "entityRefs", Msg(&ENTITY_REF)),
    ]
);

message!(
    SPAN_EVENT,
    "Span.Event",
    [
        one(1, "timeUnixNano", TIME),
        one(2, "name", Text),
        many(3, "attributes", Msg(&KEY_VALUE)),
        one(4, "droppedAttributesCount", UINT32),
    ]
);
message!(
    SPAN_LINK,
    "Span.Link",
    [
        one(1, "traceId", Id),
        one(2, "spanId", Id),
        one(3, "traceState", Text),
        many(4, "attributes", Msg(&KEY_VALUE)),
        one(5, "droppedAttributesCount", UINT32),
        one(6, "flags", Fixed32),
    ]
);
message!(STATUS, "Status", [one(2, "message", Text), one(3, "code", ENUM)]);
message!(
    SPAN,
    "Span",
    [
        one(1, "traceId", Id),
        one(2, "spanId", Id),
        one(3, "traceState", Text),
        one(4, "parentSpanId", Id),
        one(5, "name", Text),
        one(6, "kind", ENUM),
        one(7, "startTimeUnixNano", TIME),
        one(8, "endTimeUnixNano", TIME),
        many(9, "attributes", Msg(&KEY_VALUE)),
        one(10, "droppedAttributesCount", UINT32),
        many(11, "events", Msg(&SPAN_EVENT)),
        one(12, "droppedEventsCount", UINT32),
        many(13, "links", Msg(&SPAN_LINK)),
        one(14, "droppedLinksCount", UINT32),
        one(15, "status", Msg(&STATUS)),
        one(16, "flags", Fixed32),
    ]
);
message!(
    SCOPE_SPANS,
    "ScopeSpans",
    [one(1, "scope", Msg(&SCOPE)), many(2, "spans", Msg(&SPAN)), one(3, "schemaUrl", Text),]
);
message!(
    RESOURCE_SPANS,
    "ResourceSpans",
    [one(1, "resource", Msg(&RESOURCE)), many(2, "scopeSpans", Msg(&SCOPE_SPANS)), one(3, "schemaUrl", Text),]
);
message!(TRACE_REQUEST, "ExportTraceServiceRequest", [many(1, "resourceSpans", Msg(&RESOURCE_SPANS))]);

message!(
    LOG_RECORD,
    "LogRecord",
    [
        one(1, "timeUnixNano", TIME),
        one(2, "severityNumber", ENUM),
        one(3, "severityText", Text),
        one(5, "body", Msg(&ANY_VALUE)),
        many(6, "attributes", Msg(&KEY_VALUE)),
        one(7, "droppedAttributesCount", UINT32),
        one(8, "flags", Fixed32),
        one(9, "traceId", Id),
        one(10, "spanId", Id),
        one(11, "observedTimeUnixNano", TIME),
        one(12, "eventName", Text),
    ]
);
message!(
    SCOPE_LOGS,
    "ScopeLogs",
    [one(1, "scope", Msg(&SCOPE)), many(2, "logRecords", Msg(&LOG_RECORD)), one(3, "schemaUrl", Text),]
);
message!(
    RESOURCE_LOGS,
    "ResourceLogs",
    [one(1, "resource", Msg(&RESOURCE)), many(2, "scopeLogs", Msg(&SCOPE_LOGS)), one(3, "schemaUrl", Text),]
);
message!(LOGS_REQUEST, "ExportLogsServiceRequest", [many(1, "resourceLogs", Msg(&RESOURCE_LOGS))]);

message!(
    EXEMPLAR,
    "Exemplar",
    [
        one(2, "timeUnixNano", TIME),
        one(3, "asDouble", Double),
        one(4, "spanId", Id),
        one(5, "traceId", Id),
        one(6, "asInt", SFIXED),
        many(7, "filteredAttributes", Msg(&KEY_VALUE)),
    ]
);
message!(
    NUMBER_POINT,
    "NumberDataPoint",
    [
        one(2, "startTimeUnixNano", TIME),
        one(3, "timeUnixNano", TIME),
        one(4, "asDouble", Double),
        many(5, "exemplars", Msg(&EXEMPLAR)),
        one(6, "asInt", SFIXED),
        many(7, "attributes", Msg(&KEY_VALUE)),
        one(8, "flags", UINT32),
    ]
);
message!(
    HISTOGRAM_POINT,
    "HistogramDataPoint",
    [
        one(2, "startTimeUnixNano", TIME),
        one(3, "timeUnixNano", TIME),
        one(4, "count", TIME),
        one(5, "sum", Double),
        many(6, "bucketCounts", TIME),
        many(7, "explicitBounds", Double),
        many(8, "exemplars", Msg(&EXEMPLAR)),
        many(9, "attributes", Msg(&KEY_VALUE)),
        one(10, "flags", UINT32),
        one(11, "min", Double),
        one(12, "max", Double),
    ]
);
message!(BUCKETS, "ExponentialHistogramDataPoint.Buckets", [one(1, "offset", Sint), many(2, "bucketCounts", UINT64),]);
message!(
    EXP_POINT,
    "ExponentialHistogramDataPoint",
    [
        many(1, "attributes", Msg(&KEY_VALUE)),
        one(2, "startTimeUnixNano", TIME),
        one(3, "timeUnixNano", TIME),
        one(4, "count", TIME),
        one(5, "sum", Double),
        one(6, "scale", Sint),
        one(7, "zeroCount", TIME),
        one(8, "positive", Msg(&BUCKETS)),
        one(9, "negative", Msg(&BUCKETS)),
        one(10, "flags", UINT32),
        many(11, "exemplars", Msg(&EXEMPLAR)),
        one(12, "min", Double),
        one(13, "max", Double),
        one(14, "zeroThreshold", Double),
    ]
);
message!(QUANTILE, "SummaryDataPoint.ValueAtQuantile", [one(1, "quantile", Double), one(2, "value", Double)]);
message!(
    SUMMARY_POINT,
    "SummaryDataPoint",
    [
        one(2, "startTimeUnixNano", TIME),
        one(3, "timeUnixNano", TIME),
        one(4, "count", TIME),
        one(5, "sum", Double),
        many(6, "quantileValues", Msg(&QUANTILE)),
        many(7, "attributes", Msg(&KEY_VALUE)),
        one(8, "flags", UINT32),
    ]
);
message!(GAUGE, "Gauge", [many(1, "dataPoints", Msg(&NUMBER_POINT))]);
message!(
    SUM,
    "Sum",
    [many(1, "dataPoints", Msg(&NUMBER_POINT)), one(2, "aggregationTemporality", ENUM), one(3, "isMonotonic", BOOL),]
);
message!(
    HISTOGRAM,
    "Histogram",
    [many(1, "dataPoints", Msg(&HISTOGRAM_POINT)), one(2, "aggregationTemporality", ENUM),]
);
message!(
    EXP_HISTOGRAM,
    "ExponentialHistogram",
    [many(1, "dataPoints", Msg(&EXP_POINT)), one(2, "aggregationTemporality", ENUM),]
);
message!(SUMMARY, "Summary", [many(1, "dataPoints", Msg(&SUMMARY_POINT))]);
message!(
    METRIC,
    "Metric",
    [
        one(1, "name", Text),
        one(2, "description", Text),
        one(3, "unit", Text),
        one(5, "gauge", Msg(&GAUGE)),
        one(7, "sum", Msg(&SUM)),
        one(9, "histogram", Msg(&HISTOGRAM)),
        one(10, "exponentialHistogram", Msg(&EXP_HISTOGRAM)),
        one(11, "summary", Msg(&SUMMARY)),
        many(12, "metadata", Msg(&KEY_VALUE)),
    ]
);
message!(
    SCOPE_METRICS,
    "ScopeMetrics",
    [one(1, "scope", Msg(&SCOPE)), many(2, "metrics", Msg(&METRIC)), one(3, "schemaUrl", Text),]
);
message!(
    RESOURCE_METRICS,
    "ResourceMetrics",
    [one(1, "resource", Msg(&RESOURCE)), many(2, "scopeMetrics", Msg(&SCOPE_METRICS)), one(3, "schemaUrl", Text),]
);
message!(METRICS_REQUEST, "ExportMetricsServiceRequest", [many(1, "resourceMetrics", Msg(&RESOURCE_METRICS))]);

/// The request message of a signal.
pub(crate) fn request(signal: Signal) -> &'static Message {
    match signal {
        Signal::Traces => &TRACE_REQUEST,
        Signal::Logs => &LOGS_REQUEST,
        Signal::Metrics => &METRICS_REQUEST,
    }
}
