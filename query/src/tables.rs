//! The tables that are records as they came: `spans`, `logs` and `ledger`.

use std::borrow::Cow;

use custody_proto::otlp::trace::span::SpanKind;
use custody_proto::wire::{AnyValue, Event, Link, LogRecord, Resource, Span, Value};
use serde_json::Value as Json;

use crate::attributes::{Attributes, any_value_json, attributes_json, conceal, is_id, write_attributes, write_text};
use crate::mapping::{RecordContext, otlp_time, span_status};
use crate::rows::{Cell as _, SparseTexts, Time, table};

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
        /// internal, server, client, producer, consumer or unspecified; of a kind that OTLP does not name, its number.
        kind: String,
        /// Start.
        start_time: Time,
        /// End; null while it runs.
        end_time: Option<Time>,
        /// End minus start, ns.
        duration_ns: Option<i64>,
        /// unset, ok or error; of a code that OTLP does not name, its number.
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
        /// As it was sent: 1 to 24 by OTLP; 0 for none.
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

/// What the spans and logs of one resource share, read once for all of them.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    /// Attributes of the resource, a JSON object.
    resource: String,
    service_name: Option<String>,
    service_instance_id: Option<String>,
}

impl Texts {
    pub(crate) fn of(resource: &Resource<'_>) -> Self {
        let attributes = Attributes(&resource.attributes);
        Self {
            resource: attributes_json(&resource.attributes),
            service_name: attributes.text("service.name"),
            service_instance_id: attributes.text("service.instance.id"),
        }
    }
}

/// Whose a record is, and which mapping knows it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Owner<'a> {
    pub(crate) tenant: Option<&'a str>,
    pub(crate) workspace: Option<&'a str>,
    pub(crate) source: Option<&'a str>,
}

impl SpanBuilder {
    /// Adds the row of a span, text by text into its column: a row of its own would be a copy, and twenty
    /// allocations for each span. A column that is left out here is missed in `finish`. The span's attributes
    /// are given as JSON, which its events have too.
    pub(crate) fn append(
        &mut self,
        context: &RecordContext<'_>,
        shared: &Texts,
        owner: Owner<'_>,
        span: &Span<'_>,
        attributes: &str,
    ) {
        let start = otlp_time(span.start_time_unix_nano).unwrap_or_default();
        let end = otlp_time(span.end_time_unix_nano);
        self.seq.append_value(context.seq);
        self.record_hash.append_value(context.record_hash);
        with_hex(span.trace_id, |hex| self.trace_id.append_value(hex));
        with_hex(span.span_id, |hex| self.span_id.append_value(hex));
        append_id(&mut self.parent_span_id, span.parent_span_id);
        self.trace_state.append_option(filled(span.trace_state));
        self.flags.append_value(span.flags);
        self.name.append_value(span.name);
        self.kind.append_value(kind_name(span));
        start.append(&mut self.start_time);
        end.append(&mut self.end_time);
        self.duration_ns.append_option(end.map(|end| end.0.saturating_sub(start.0)));
        self.status_code.append_value(span_status(span));
        self.status_message.append_option(span.status.as_ref().and_then(|status| filled(status.message)));
        self.service_name.append_option(shared.service_name.as_deref());
        self.service_instance_id.append_option(shared.service_instance_id.as_deref());
        self.scope_name.append_option(filled(context.scope.name));
        self.scope_version.append_option(filled(context.scope.version));
        self.resource.append_value(&shared.resource);
        self.attributes.append_value(attributes);
        match span.events.is_empty() {
            true => self.events.append_value("[]"),
            false => self.events.append_value(events_json(&span.events)),
        }
        match span.links.is_empty() {
            true => self.links.append_value("[]"),
            false => self.links.append_value(links_json(&span.links)),
        }
        context.ingest_time.append(&mut self.ingest_time);
        self.submitter.append_value(context.submitter);
        self.tenant.append_option(owner.tenant);
        self.workspace.append_option(owner.workspace);
        self.source.append_option(owner.source);
    }
}

impl LogBuilder {
    /// Adds the row of a log record, as [`SpanBuilder::append`] that of a span.
    pub(crate) fn append(
        &mut self,
        context: &RecordContext<'_>,
        shared: &Texts,
        owner: Owner<'_>,
        log: &LogRecord<'_>,
        attributes: &str,
    ) {
        self.seq.append_value(context.seq);
        self.record_hash.append_value(context.record_hash);
        otlp_time(log.time_unix_nano).append(&mut self.time);
        otlp_time(log.observed_time_unix_nano).append(&mut self.observed_time);
        self.severity_number.append_value(u32::try_from(log.severity_number).unwrap_or(0));
        self.severity_text.append_option(filled(log.severity_text));
        match filled(log.event_name) {
            Some(name) => self.event_name.append_value(name),
            None => self.event_name.append_option(Attributes(&log.attributes).lent("event.name")),
        }
        append_body(&mut self.body, log.body.as_ref());
        append_id(&mut self.trace_id, log.trace_id);
        append_id(&mut self.span_id, log.span_id);
        self.service_name.append_option(shared.service_name.as_deref());
        self.scope_name.append_option(filled(context.scope.name));
        self.resource.append_value(&shared.resource);
        self.attributes.append_value(attributes);
        context.ingest_time.append(&mut self.ingest_time);
        self.submitter.append_value(context.submitter);
        self.tenant.append_option(owner.tenant);
        self.workspace.append_option(owner.workspace);
        self.source.append_option(owner.source);
    }
}

/// Text as it is, anything else as JSON.
fn append_body(column: &mut SparseTexts, body: Option<&AnyValue<'_>>) {
    if let Some(AnyValue { value: Some(Value::StringValue(text)) }) = body
        && conceal(text).is_none()
    {
        return column.append_value(text);
    }
    match body.map(any_value_json) {
        None | Some(Json::Null) => column.append_null(),
        Some(Json::String(text)) => column.append_value(text),
        Some(other) => column.append_value(other.to_string()),
    }
}

/// A text that is not empty.
fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Ids of traces and spans as hex, without an allocation; of any other length they are written the long way.
fn with_hex(id: &[u8], then: impl FnOnce(&str)) {
    let mut hex = [0; 32];
    match hex.get_mut(..2 * id.len()).map(|hex| (const_hex::encode_to_slice(id, hex), hex)) {
        Some((Ok(()), hex)) => then(std::str::from_utf8(hex).unwrap_or_default()),
        _ => then(&const_hex::encode(id)),
    }
}

/// An id, or nothing for no id.
fn append_id(column: &mut SparseTexts, id: &[u8]) {
    match is_id(id) {
        true => with_hex(id, |hex| column.append_value(hex)),
        false => column.append_null(),
    }
}

/// The row of one span by itself.
pub(crate) fn span_row(context: &RecordContext<'_>, span: &Span<'_>) -> SpanRow {
    let mut one = SpanBuilder::default();
    let attributes = attributes_json(&span.attributes);
    one.append(context, &Texts::of(context.resource), Owner::default(), span, &attributes);
    SpanRow::read(&one.finish()).pop().unwrap_or_default()
}

/// A span's kind in one word; the number of one that OTLP does not name.
fn kind_name(span: &Span<'_>) -> Cow<'static, str> {
    match SpanKind::try_from(span.kind) {
        Ok(SpanKind::Unspecified) => "unspecified".into(),
        Ok(SpanKind::Internal) => "internal".into(),
        Ok(SpanKind::Server) => "server".into(),
        Ok(SpanKind::Client) => "client".into(),
        Ok(SpanKind::Producer) => "producer".into(),
        Ok(SpanKind::Consumer) => "consumer".into(),
        Err(_) => span.kind.to_string().into(),
    }
}

/// A span's events as a JSON list.
fn events_json(events: &[Event<'_>]) -> String {
    json_list(events, |out, event| {
        out.push_str("{\"name\":");
        write_text(out, event.name);
        out.push_str(&format!(",\"time_unix_nano\":\"{}\",\"attributes\":", event.time_unix_nano));
        write_attributes(out, &event.attributes);
        out.push('}');
    })
}

/// A span's links as a JSON list.
fn links_json(links: &[Link<'_>]) -> String {
    json_list(links, |out, link| {
        let (trace, span) = (const_hex::encode(link.trace_id), const_hex::encode(link.span_id));
        out.push_str(&format!("{{\"trace_id\":\"{trace}\",\"span_id\":\"{span}\",\"attributes\":"));
        write_attributes(out, &link.attributes);
        out.push('}');
    })
}

fn json_list<T>(items: &[T], write: impl Fn(&mut String, &T)) -> String {
    let mut out = String::from("[");
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write(&mut out, item);
    }
    out.push(']');
    out
}

#[cfg(test)]
mod tests {
    use custody_proto::wire::KeyValue;
    use serde_json::json;

    use super::*;

    #[test]
    fn events_and_links_are_json() {
        let attributes = vec![
            KeyValue { key: "\"quoted\"", value: Some(AnyValue { value: Some(Value::StringValue("a\nb")) }) },
            KeyValue { key: "n", value: Some(AnyValue { value: Some(Value::IntValue(-1)) }) },
        ];
        let one = Event { time_unix_nano: u64::MAX, name: "its \"name\"", attributes: attributes.clone() };
        let said = json!({"\"quoted\"": "a\nb", "n": -1});
        let want = json!([
            {"name": "its \"name\"", "time_unix_nano": u64::MAX.to_string(), "attributes": said},
            {"name": "", "time_unix_nano": "0", "attributes": {}},
        ]);
        assert_eq!(events_json(&[one, Event::default()]), want.to_string());
        let one = Link { trace_id: &[10; 16], span_id: &[11; 8], attributes };
        let want = json!([
            {"trace_id": "0a".repeat(16), "span_id": "0b".repeat(8), "attributes": said},
            {"trace_id": "", "span_id": "", "attributes": {}},
        ]);
        assert_eq!(links_json(&[one, Link::default()]), want.to_string());
        assert_eq!((events_json(&[]).as_str(), links_json(&[]).as_str()), ("[]", "[]"));
    }
}
