//! Traces as OTLP's JSON in the envelope of Jaeger's API v3 (`{"result": {"resourceSpans": [...]}}`): ids in hex, numbers
//! of 64 bits as text, fields that have nothing to say left out.

use custody_proto::otlp::common::InstrumentationScope;
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::Span;
use custody_proto::otlp::trace::span::{Event, Link};
use serde_json::{Map, Value as Json, json};

use super::contents::{Form, Original, Shared};
use super::model::warnings;
use super::values::otlp_attributes;

/// Where Jaeger keeps what is to be known of a span.
const WARNINGS: &str = "@jaeger@warnings";

/// The envelope of API v3, in which the spans of all traces stand one after the other.
#[derive(Default)]
pub(super) struct ResourceSpans {
    /// As the sender wrote them, and nothing else.
    is_raw: bool,
    /// The resource and scope that are open.
    open: Option<(u64, usize)>,
    is_last_of_many: bool,
}

impl ResourceSpans {
    pub(super) fn new(is_raw: bool) -> Self {
        Self { is_raw, ..Self::default() }
    }

    fn open(&mut self, shared: &Shared, out: &mut Vec<u8>) {
        self.close(out);
        let comma = if std::mem::replace(&mut self.is_last_of_many, true) { "," } else { "" };
        let (resource, scope) = (resource(&shared.resource), scope(&shared.scope));
        let begun = format!("{comma}{{\"resource\":{resource},\"scopeSpans\":[{{\"scope\":{scope},\"spans\":[");
        out.extend_from_slice(begun.as_bytes());
        self.open = Some(shared.group);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            out.extend_from_slice(b"]}]}");
        }
    }
}

impl Form for ResourceSpans {
    fn head(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"result\":{\"resourceSpans\":[");
    }

    fn begin(&mut self, _: &str, _: &mut Vec<u8>) {}

    fn span(&mut self, original: &Original<'_>, out: &mut Vec<u8>) {
        match self.open == Some(original.shared.group) {
            true => out.push(b','),
            false => self.open(original.shared, out),
        }
        out.extend_from_slice(span(original, self.is_raw).to_string().as_bytes());
    }

    fn middle(&mut self, _: &mut Vec<u8>) -> Vec<u64> {
        Vec::new()
    }

    fn resource(&mut self, _: &Resource, _: &mut Vec<u8>) {}

    /// Traces do not share what they are in.
    fn end(&mut self, out: &mut Vec<u8>) {
        self.close(out);
    }

    fn tail(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"]}}");
    }
}

/// An object in the making, without what has nothing to say.
#[derive(Default)]
struct Fields(Map<String, Json>);

impl Fields {
    fn text(mut self, name: &str, value: &str) -> Self {
        if !value.is_empty() {
            self.0.insert(name.into(), value.into());
        }
        self
    }

    fn id(self, name: &str, id: &[u8]) -> Self {
        let is_none = id.iter().all(|byte| *byte == 0);
        self.text(name, &if is_none { String::new() } else { const_hex::encode(id) })
    }

    fn number(mut self, name: &str, value: u32) -> Self {
        if value != 0 {
            self.0.insert(name.into(), value.into());
        }
        self
    }

    fn list(mut self, name: &str, values: Vec<Json>) -> Self {
        if !values.is_empty() {
            self.0.insert(name.into(), values.into());
        }
        self
    }

    fn with(mut self, name: &str, value: impl Into<Json>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }
}

fn resource(resource: &Resource) -> Json {
    let fields = Fields::default().list("attributes", otlp_attributes(&resource.attributes));
    Json::Object(fields.number("droppedAttributesCount", resource.dropped_attributes_count).0)
}

fn scope(scope: &InstrumentationScope) -> Json {
    let fields = Fields::default().text("name", &scope.name).text("version", &scope.version);
    let fields = fields.list("attributes", otlp_attributes(&scope.attributes));
    Json::Object(fields.number("droppedAttributesCount", scope.dropped_attributes_count).0)
}

fn span(original: &Original<'_>, is_raw: bool) -> Json {
    let span = original.span;
    // Jaeger gives no span an end before its start, since pages draw it.
    let end = if is_raw { span.end_time_unix_nano } else { span.end_time_unix_nano.max(span.start_time_unix_nano) };
    let fields = Fields::default()
        .with("traceId", const_hex::encode(&span.trace_id))
        .with("spanId", const_hex::encode(&span.span_id))
        .text("traceState", &span.trace_state)
        .id("parentSpanId", &span.parent_span_id)
        .number("flags", span.flags)
        .with("name", span.name.as_str())
        .number("kind", u32::try_from(span.kind).unwrap_or(0))
        .with("startTimeUnixNano", span.start_time_unix_nano.to_string())
        .with("endTimeUnixNano", end.to_string())
        .list("attributes", attributes(original, span, is_raw))
        .number("droppedAttributesCount", span.dropped_attributes_count)
        .list("events", span.events.iter().map(event).collect())
        .number("droppedEventsCount", span.dropped_events_count)
        .list("links", span.links.iter().map(link).collect())
        .number("droppedLinksCount", span.dropped_links_count);
    let status = span.status.as_ref().map_or_else(Fields::default, |status| {
        Fields::default().text("message", &status.message).number("code", u32::try_from(status.code).unwrap_or(0))
    });
    Json::Object(fields.with("status", status.0).0)
}

/// The attributes of a span, and behind them where it stands in the log.
fn attributes(original: &Original<'_>, span: &Span, is_raw: bool) -> Vec<Json> {
    let mut out = otlp_attributes(&span.attributes);
    if is_raw {
        return out;
    }
    out.push(json!({"key": "custody.seq", "value": {"intValue": original.seq.to_string()}}));
    out.push(json!({"key": "custody.record_hash", "value": {"stringValue": const_hex::encode(original.hash)}}));
    let warnings: Vec<Json> = warnings(original).into_iter().map(|text| json!({"stringValue": text})).collect();
    if !warnings.is_empty() {
        out.push(json!({"key": WARNINGS, "value": {"arrayValue": {"values": warnings}}}));
    }
    out
}

fn event(event: &Event) -> Json {
    let fields = Fields::default().with("timeUnixNano", event.time_unix_nano.to_string()).with("name", &*event.name);
    let fields = fields.list("attributes", otlp_attributes(&event.attributes));
    Json::Object(fields.number("droppedAttributesCount", event.dropped_attributes_count).0)
}

fn link(link: &Link) -> Json {
    let fields = Fields::default()
        .with("traceId", const_hex::encode(&link.trace_id))
        .with("spanId", const_hex::encode(&link.span_id))
        .text("traceState", &link.trace_state)
        .list("attributes", otlp_attributes(&link.attributes))
        .number("droppedAttributesCount", link.dropped_attributes_count)
        .number("flags", link.flags);
    Json::Object(fields.0)
}

#[cfg(test)]
mod tests {
    use custody_proto::otlp::common::any_value::Value;
    use custody_proto::otlp::common::{AnyValue, KeyValue};
    use custody_proto::otlp::trace::Status;

    use super::*;

    fn pair(key: &str, value: &str) -> KeyValue {
        let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
        KeyValue { key: key.into(), value, ..KeyValue::default() }
    }

    fn written(spans: &[(Span, Shared)], is_raw: bool) -> Json {
        let (mut form, mut out) = (ResourceSpans::new(is_raw), Vec::new());
        form.head(&mut out);
        for (seq, (span, shared)) in spans.iter().enumerate() {
            form.span(&Original { seq: seq as u64, hash: &[7; 32], span, shared }, &mut out);
        }
        assert!(form.middle(&mut out).is_empty());
        form.end(&mut out);
        form.tail(&mut out);
        serde_json::from_slice(&out).unwrap()
    }

    fn shared(group: usize, service: &str) -> Shared {
        let resource = Resource { attributes: vec![pair("service.name", service)], ..Resource::default() };
        let scope =
            InstrumentationScope { name: "s".into(), version: "1.0.0".into(), ..InstrumentationScope::default() };
        Shared { group: (0, group), resource, scope }
    }

    /// As a capture of Jaeger 2.21 has it: a kind of 0, a root's parent and empty lists are not there.
    #[test]
    fn a_span_is_otlp_json_as_jaeger_writes_it() {
        let link = Link {
            trace_id: vec![3; 16],
            span_id: vec![4; 8],
            trace_state: "vendor=example".into(),
            flags: 1,
            ..Link::default()
        };
        let event = Event {
            time_unix_nano: 5,
            name: "retry".into(),
            attributes: vec![pair("attempt", "1")],
            ..Event::default()
        };
        let span = Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            parent_span_id: vec![0; 8],
            name: "root".into(),
            start_time_unix_nano: 1_786_934_400_000_000_000,
            end_time_unix_nano: 1_786_934_400_001_000_000,
            events: vec![event],
            links: vec![link],
            status: Some(Status { code: 2, message: "probe".into() }),
            ..Span::default()
        };
        let made = written(&[(span, shared(0, "a"))], true);
        let want = json!({"result": {"resourceSpans": [{
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "a"}}]},
            "scopeSpans": [{"scope": {"name": "s", "version": "1.0.0"}, "spans": [{
                "traceId": "01".repeat(16),
                "spanId": "0202020202020202",
                "name": "root",
                "startTimeUnixNano": "1786934400000000000",
                "endTimeUnixNano": "1786934400001000000",
                "events": [{"timeUnixNano": "5", "name": "retry",
                    "attributes": [{"key": "attempt", "value": {"stringValue": "1"}}]}],
                "links": [{"traceId": "03".repeat(16), "spanId": "0404040404040404", "traceState": "vendor=example", "flags": 1}],
                "status": {"message": "probe", "code": 2},
            }]}],
        }]}});
        assert_eq!(made, want);
    }

    #[test]
    fn spans_of_one_resource_stand_together_with_their_place_in_the_log() {
        let running = Span { start_time_unix_nano: 9, ..Span::default() };
        let spans = [(running, shared(0, "a")), (Span::default(), shared(0, "a")), (Span::default(), shared(1, "b"))];
        let made = written(&spans, false);
        let resources = made["result"]["resourceSpans"].as_array().unwrap();
        let counts: Vec<usize> =
            resources.iter().map(|one| one["scopeSpans"][0]["spans"].as_array().unwrap().len()).collect();
        assert_eq!(counts, [2, 1]);
        let span = &resources[0]["scopeSpans"][0]["spans"][0];
        assert_eq!(span["endTimeUnixNano"], "9", "a page that draws it needs an end");
        let keys: Vec<&str> =
            span["attributes"].as_array().unwrap().iter().map(|pair| pair["key"].as_str().unwrap()).collect();
        assert_eq!(keys, ["custody.seq", "custody.record_hash", WARNINGS]);
        assert_eq!(written(&[], false), json!({"result": {"resourceSpans": []}}));
        assert_eq!(
            written(&spans, true)["result"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["endTimeUnixNano"],
            "0"
        );
    }
}
