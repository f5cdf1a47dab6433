//! The tables that are records as they came: `spans`, `logs` and `ledger`.

use custody_proto::otlp::common::InstrumentationScope;
use custody_proto::otlp::logs::LogRecord;
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::{Span, span::SpanKind};
use serde_json::{Value as Json, json};

use crate::attributes::{Attributes, any_value_json, attributes_json, attributes_object, hex_id};
use crate::mapping::{RecordContext, otlp_time, span_status};
use crate::rows::{Time, table};

table! {
    /// One span, as OTLP has it.
    SpanRow, SpanBuilder {
        /// Place of the record in the log.
        seq: u64,
        /// Content commitment of the record, hex.
        record_hash: String,
        /// Trace id, 32 hex digits.
        trace_id: String,
        /// Span id, 16 hex digits.
        span_id: String,
        /// Span id of the parent; null for a root.
        parent_span_id: Option<String>,
        /// W3C tracestate.
        trace_state: Option<String>,
        /// W3C trace flags and OTLP's own.
        flags: u32,
        /// Name.
        name: String,
        /// internal, server, client, producer, consumer or unspecified.
        kind: String,
        /// Start.
        start_time: Time,
        /// End; null while it runs.
        end_time: Option<Time>,
        /// End minus start, ns.
        duration_ns: Option<i64>,
        /// unset, ok or error.
        status_code: String,
        /// What went wrong, in the source's words.
        status_message: Option<String>,
        /// The service's own claim of its name.
        service_name: Option<String>,
        /// The instance's own claim of its id.
        service_instance_id: Option<String>,
        /// Instrumentation scope.
        scope_name: Option<String>,
        /// Its version.
        scope_version: Option<String>,
        /// Attributes of the resource, a JSON object.
        resource: String,
        /// Attributes, a JSON object.
        attributes: String,
        /// Span events, a JSON list.
        events: String,
        /// Links to other spans, a JSON list.
        links: String,
        /// When the ledger took it.
        ingest_time: Time,
        /// Who sent it, as authenticated.
        submitter: String,
        /// Whose it is, as the sender says: tenant.id or custody.tenant of the record, or of its resource.
        tenant: Option<String>,
        /// Workspace, as the sender says, of the record or of its resource.
        workspace: Option<String>,
        /// Which mapping made an event of it; null if none knows it.
        source: Option<String>,
    }
}

table! {
    /// One log record, as OTLP has it.
    LogRow, LogBuilder {
        /// Place of the record in the log.
        seq: u64,
        /// Content commitment of the record, hex.
        record_hash: String,
        /// When it happened, as its source says; null if it does not.
        time: Option<Time>,
        /// When it was collected.
        observed_time: Option<Time>,
        /// 1 to 24; 0 for none.
        severity_number: u32,
        /// Severity in the source's words.
        severity_text: Option<String>,
        /// Name of the event.
        event_name: Option<String>,
        /// Body: text as it is, anything else as JSON.
        body: Option<String>,
        /// Trace id, 32 hex digits.
        trace_id: Option<String>,
        /// Span id, 16 hex digits.
        span_id: Option<String>,
        /// The service's own claim of its name.
        service_name: Option<String>,
        /// Instrumentation scope.
        scope_name: Option<String>,
        /// Attributes of the resource, a JSON object.
        resource: String,
        /// Attributes, a JSON object.
        attributes: String,
        /// When the ledger took it.
        ingest_time: Time,
        /// Who sent it, as authenticated.
        submitter: String,
        /// Whose it is, as the sender says: tenant.id or custody.tenant of the record, or of its resource.
        tenant: Option<String>,
        /// Workspace, as the sender says, of the record or of its resource.
        workspace: Option<String>,
        /// Which mapping made an event of it; null if none knows it.
        source: Option<String>,
    }
}

table! {
    /// One entry of the log: the commitment to one record.
    LedgerRow, LedgerBuilder {
        /// Place of the record in the log.
        seq: u64,
        /// span, log or metric.
        kind: String,
        /// When the ledger took it.
        ingest_time: Time,
        /// Keyed hash, hex, of the identity that other tables name here; as in the entry, which tells a mirror nothing.
        submitter: String,
        /// How many records this submitter had before.
        submitter_counter: u64,
        /// Content commitment, hex.
        record_hash: String,
        /// Chain hash after this entry, hex.
        chain_hash: String,
        /// RFC 6962 leaf hash of the entry, hex.
        leaf_hash: String,
        /// First seq of the block, the request that it came in.
        block_seq: u64,
        /// Size of the record in bytes; null if it was erased.
        record_bytes: Option<u64>,
        /// conflicting_span, json.
        flags: Vec<String>,
    }
}

/// Resource attributes as JSON; made once per resource, not per record.
pub(crate) fn resource_json(resource: &Resource) -> String {
    attributes_json(&resource.attributes)
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The row of a span.
pub(crate) fn span_row(context: &RecordContext<'_>, resource_json: &str, span: &Span) -> SpanRow {
    let resource = Attributes(&context.resource.attributes);
    let start = otlp_time(span.start_time_unix_nano).unwrap_or_default();
    let end = otlp_time(span.end_time_unix_nano);
    SpanRow {
        seq: context.seq,
        record_hash: context.record_hash.to_owned(),
        trace_id: const_hex::encode(&span.trace_id),
        span_id: const_hex::encode(&span.span_id),
        parent_span_id: hex_id(&span.parent_span_id),
        trace_state: some(&span.trace_state),
        flags: span.flags,
        name: span.name.clone(),
        kind: kind_name(span.kind()).to_owned(),
        start_time: start,
        end_time: end,
        duration_ns: end.map(|end| end.0.saturating_sub(start.0)),
        status_code: span_status(span).to_owned(),
        status_message: span.status.as_ref().and_then(|s| some(&s.message)),
        service_name: resource.text("service.name"),
        service_instance_id: resource.text("service.instance.id"),
        scope_name: some(&context.scope.name),
        scope_version: some(&context.scope.version),
        resource: resource_json.to_owned(),
        attributes: attributes_json(&span.attributes),
        events: span_events(span).to_string(),
        links: span_links(span).to_string(),
        ingest_time: context.ingest_time,
        submitter: context.submitter.to_owned(),
        ..SpanRow::default()
    }
}

fn kind_name(kind: SpanKind) -> &'static str {
    match kind {
        SpanKind::Unspecified => "unspecified",
        SpanKind::Internal => "internal",
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Producer => "producer",
        SpanKind::Consumer => "consumer",
    }
}

fn span_events(span: &Span) -> Json {
    let event = |e: &custody_proto::otlp::trace::span::Event| {
        let attributes = attributes_object(&e.attributes);
        json!({"name": e.name, "time_unix_nano": e.time_unix_nano.to_string(), "attributes": attributes})
    };
    span.events.iter().map(event).collect()
}

fn span_links(span: &Span) -> Json {
    let link = |l: &custody_proto::otlp::trace::span::Link| {
        let attributes = attributes_object(&l.attributes);
        json!({"trace_id": const_hex::encode(&l.trace_id), "span_id": const_hex::encode(&l.span_id), "attributes": attributes})
    };
    span.links.iter().map(link).collect()
}

/// The row of a log record.
pub(crate) fn log_row(context: &RecordContext<'_>, resource_json: &str, log: &LogRecord) -> LogRow {
    let scope: &InstrumentationScope = context.scope;
    LogRow {
        seq: context.seq,
        record_hash: context.record_hash.to_owned(),
        time: otlp_time(log.time_unix_nano),
        observed_time: otlp_time(log.observed_time_unix_nano),
        severity_number: u32::try_from(log.severity_number).unwrap_or(0),
        severity_text: some(&log.severity_text),
        event_name: some(&log.event_name).or_else(|| Attributes(&log.attributes).text("event.name")),
        body: log.body.as_ref().and_then(|body| match any_value_json(body) {
            Json::Null => None,
            Json::String(text) => Some(text),
            other => Some(other.to_string()),
        }),
        trace_id: hex_id(&log.trace_id),
        span_id: hex_id(&log.span_id),
        service_name: Attributes(&context.resource.attributes).text("service.name"),
        scope_name: some(&scope.name),
        resource: resource_json.to_owned(),
        attributes: attributes_json(&log.attributes),
        ingest_time: context.ingest_time,
        submitter: context.submitter.to_owned(),
        ..LogRow::default()
    }
}
