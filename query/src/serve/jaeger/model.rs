//! Traces in the JSON of Jaeger's API v1 (`internal/uimodel` of Jaeger), made of OTLP as the OpenTelemetry Collector's
//! translator makes them (`pkg/translator/jaeger`): what Jaeger itself answers for the same spans.

use std::collections::HashMap;

use custody_proto::otlp::common::any_value::Value;
use custody_proto::otlp::common::{InstrumentationScope, KeyValue};
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::Span;
use custody_proto::otlp::trace::span::{Event, Link, SpanKind};
use custody_proto::otlp::trace::status::StatusCode;
use prost::Message as _;
use serde_json::{Value as Json, json};

use super::contents::{Form, Original, Shared};
use super::find::NO_SERVICE;
use super::values::{tag, text_tag, whole_tag};

/// W3C's flag that a trace was sampled, which is Jaeger's, too.
const SAMPLED: u32 = 1;

/// The attribute of a link that says what kind of reference it is.
const REF_TYPE: &str = "opentracing.ref_type";

/// The envelope of API v1, whose traces come one after the other.
#[derive(Default)]
pub(super) struct Traces {
    /// As the sender wrote them, and nothing else.
    is_raw: bool,
    /// What is said of traces that were asked for and not found.
    errors: Vec<Json>,
    is_first: bool,
    trace_id: String,
    spans: u64,
    /// The processes of this trace by the digest of their resource, and the record that each was first seen with.
    known: HashMap<[u8; 32], usize>,
    seqs: Vec<u64>,
    told: usize,
    /// The process of the last group of spans.
    last: Option<((u64, usize), usize)>,
}

impl Traces {
    /// With errors behind the traces.
    pub(super) fn new(is_raw: bool, errors: Vec<Json>) -> Self {
        Self { is_raw, errors, is_first: true, ..Self::default() }
    }

    /// The number of a span's process, from 1.
    fn process(&mut self, seq: u64, shared: &Shared) -> usize {
        if let Some((group, number)) = self.last
            && group == shared.group
        {
            return number;
        }
        let digest = blake3::hash(&shared.resource.encode_to_vec()).into();
        let next = self.known.len() + 1;
        let number = *self.known.entry(digest).or_insert(next);
        if number == next {
            self.seqs.push(seq);
        }
        self.last = Some((shared.group, number));
        number
    }
}

impl Form for Traces {
    fn head(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"data\":[");
    }

    fn begin(&mut self, trace_id: &str, out: &mut Vec<u8>) {
        let comma = if std::mem::take(&mut self.is_first) { "" } else { "," };
        short(trace_id).clone_into(&mut self.trace_id);
        out.extend_from_slice(format!("{comma}{{\"traceID\":\"{}\",\"spans\":[", self.trace_id).as_bytes());
        self.known.clear();
        (self.spans, self.told, self.last) = (0, 0, None);
    }

    fn span(&mut self, original: &Original<'_>, out: &mut Vec<u8>) {
        let process = self.process(original.seq, original.shared);
        if self.spans > 0 {
            out.push(b',');
        }
        self.spans += 1;
        let span = span(original, &self.trace_id, process, self.is_raw);
        out.extend_from_slice(span.to_string().as_bytes());
    }

    fn middle(&mut self, out: &mut Vec<u8>) -> Vec<u64> {
        out.extend_from_slice(b"],\"processes\":{");
        std::mem::take(&mut self.seqs)
    }

    fn resource(&mut self, resource: &Resource, out: &mut Vec<u8>) {
        let comma = if self.told > 0 { "," } else { "" };
        self.told += 1;
        out.extend_from_slice(format!("{comma}\"p{}\":{}", self.told, process(resource)).as_bytes());
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"},\"warnings\":null}");
    }

    fn tail(&mut self, out: &mut Vec<u8>) {
        let errors = if self.errors.is_empty() { Json::Null } else { Json::Array(std::mem::take(&mut self.errors)) };
        out.extend_from_slice(format!("],\"total\":0,\"limit\":0,\"offset\":0,\"errors\":{errors}}}").as_bytes());
    }
}

/// A trace id as API v1 has it (`TraceID.String`): one of 64 bits has 16 digits.
pub(super) fn short(id: &str) -> &str {
    id.strip_prefix("0000000000000000").filter(|low| low.len() == 16).unwrap_or(id)
}

/// A resource as a process (`resourceToJaegerProtoProcess`).
fn process(resource: &Resource) -> Json {
    let (own, rest): (Vec<_>, Vec<_>) = resource.attributes.iter().partition(|pair| pair.key == "service.name");
    let name = own.first().and_then(|pair| string(pair)).filter(|name| !name.is_empty());
    let tags: Vec<Json> = rest.into_iter().map(tag).collect();
    json!({"serviceName": name.unwrap_or(NO_SERVICE), "tags": tags})
}

fn string(pair: &KeyValue) -> Option<&str> {
    match pair.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

/// A span (`spanToJaegerProto`).
fn span(original: &Original<'_>, trace_id: &str, process: usize, is_raw: bool) -> Json {
    let span = original.span;
    let tags = tags(original, is_raw);
    let mut made = json!({
        "traceID": trace_id,
        "spanID": const_hex::encode(&span.span_id),
        "operationName": span.name,
        "references": references(span, trace_id),
        "startTime": span.start_time_unix_nano / 1_000,
        "duration": span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano) / 1_000,
        "tags": tags,
        "logs": span.events.iter().map(log).collect::<Vec<_>>(),
        "processID": format!("p{process}"),
        "warnings": match warnings(original) {
            some if !some.is_empty() && !is_raw => json!(some),
            _ => Json::Null,
        },
    });
    if span.flags & SAMPLED != 0 {
        made["flags"] = SAMPLED.into();
    }
    made
}

/// What is to be known of a span before one trusts what it looks like.
pub(super) fn warnings(original: &Original<'_>) -> Vec<&'static str> {
    let mut out = Vec::new();
    if original.span.end_time_unix_nano == 0 {
        out.push("the span had not ended when it was recorded: its duration is not known");
    } else if original.span.end_time_unix_nano < original.span.start_time_unix_nano {
        out.push("the span ends before it starts: the clock of its sender went back");
    }
    out
}

/// The tags of a span (`getJaegerProtoSpanTags`), and behind them where it stands in the log.
fn tags(original: &Original<'_>, is_raw: bool) -> Vec<Json> {
    let span = original.span;
    let mut tags = scope_tags(&original.shared.scope);
    tags.extend(span.attributes.iter().map(tag));
    tags.extend(kind(span).map(|kind| text_tag("span.kind", kind)));
    if let Some(status) = &span.status {
        match status.code() {
            StatusCode::Ok => tags.push(text_tag("otel.status_code", "OK")),
            StatusCode::Error => {
                tags.push(text_tag("otel.status_code", "ERROR"));
                tags.push(json!({"key": "error", "type": "bool", "value": true}));
            }
            StatusCode::Unset => {}
        }
        if !status.message.is_empty() {
            tags.push(text_tag("otel.status_description", &status.message));
        }
    }
    if !span.trace_state.is_empty() {
        tags.push(text_tag("w3c.tracestate", &span.trace_state));
    }
    if !is_raw {
        tags.push(whole_tag("custody.seq", i64::try_from(original.seq).unwrap_or(i64::MAX)));
        tags.push(text_tag("custody.record_hash", &const_hex::encode(original.hash)));
    }
    tags
}

fn scope_tags(scope: &InstrumentationScope) -> Vec<Json> {
    let both = [("otel.scope.name", &scope.name), ("otel.scope.version", &scope.version)];
    both.into_iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| text_tag(key, value)).collect()
}

fn kind(span: &Span) -> Option<&'static str> {
    Some(match span.kind() {
        SpanKind::Unspecified => return None,
        SpanKind::Internal => "internal",
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Producer => "producer",
        SpanKind::Consumer => "consumer",
    })
}

/// The parent first, then links (`makeJaegerProtoReferences`): one that names the parent says what it is to it.
fn references(span: &Span, trace_id: &str) -> Vec<Json> {
    let reference = |kind: &str, trace_id: &str, span_id: &[u8]| json!({"refType": kind, "traceID": trace_id, "spanID": const_hex::encode(span_id)});
    let mut out = Vec::new();
    let has_parent = span.parent_span_id.iter().any(|byte| *byte != 0);
    if has_parent {
        out.push(reference("CHILD_OF", trace_id, &span.parent_span_id));
    }
    for link in &span.links {
        let (linked, kind) = (const_hex::encode(&link.trace_id), ref_type(link));
        let linked = short(&linked);
        if has_parent && linked == trace_id && link.span_id == span.parent_span_id {
            out[0]["refType"] = kind.into();
        } else {
            out.push(reference(kind, linked, &link.span_id));
        }
    }
    out
}

fn ref_type(link: &Link) -> &'static str {
    let said = link.attributes.iter().find(|pair| pair.key == REF_TYPE).and_then(string);
    if said == Some("child_of") { "CHILD_OF" } else { "FOLLOWS_FROM" }
}

/// An event (`spanEventsToJaegerProtoLogs`).
fn log(event: &Event) -> Json {
    let is_named = !event.name.is_empty() && !event.attributes.iter().any(|pair| pair.key == "event");
    let name = is_named.then(|| text_tag("event", &event.name));
    let fields: Vec<Json> = name.into_iter().chain(event.attributes.iter().map(tag)).collect();
    json!({"timestamp": event.time_unix_nano / 1_000, "fields": fields})
}

#[cfg(test)]
mod tests {
    use custody_proto::otlp::common::AnyValue;
    use custody_proto::otlp::trace::Status;

    use super::*;

    fn pair(key: &str, value: &str) -> KeyValue {
        let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
        KeyValue { key: key.into(), value, ..KeyValue::default() }
    }

    fn written(spans: &[(Span, Shared)], is_raw: bool) -> Json {
        let (mut form, mut out) = (Traces::new(is_raw, vec![]), Vec::new());
        form.head(&mut out);
        form.begin("83a9efd15c1c98a977e0711cc93ee28b", &mut out);
        for (seq, (span, shared)) in spans.iter().enumerate() {
            let original = Original { seq: seq as u64, hash: &[7; 32], span, shared };
            form.span(&original, &mut out);
        }
        for seq in form.middle(&mut out) {
            form.resource(&spans[seq as usize].1.resource, &mut out);
        }
        form.end(&mut out);
        form.tail(&mut out);
        serde_json::from_slice(&out).unwrap()
    }

    fn shared(group: usize, attributes: Vec<KeyValue>) -> Shared {
        let resource = Resource { attributes, ..Resource::default() };
        let scope = InstrumentationScope { name: "telemetrygen".into(), ..InstrumentationScope::default() };
        Shared { group: (0, group), resource, scope }
    }

    /// What Jaeger 2 makes of this span, letter by letter: its `otlp2jaeger-in.json` and `otlp2jaeger-out.json`.
    #[test]
    fn a_span_is_what_jaeger_makes_of_it() {
        let span = Span {
            trace_id: const_hex::decode("83a9efd15c1c98a977e0711cc93ee28b").unwrap(),
            span_id: const_hex::decode("e127af99e3b3e074").unwrap(),
            parent_span_id: const_hex::decode("909541b92cf05311").unwrap(),
            name: "okey-dokey-0".into(),
            kind: 2,
            start_time_unix_nano: 1_706_678_909_209_712_000,
            end_time_unix_nano: 1_706_678_909_209_835_000,
            attributes: vec![pair("net.peer.ip", "1.2.3.4"), pair("peer.service", "telemetrygen-client")],
            status: Some(Status::default()),
            ..Span::default()
        };
        let made = written(&[(span, shared(0, vec![pair("service.name", "telemetrygen")]))], true);
        let text = |key: &str, value: &str| json!({"key": key, "type": "string", "value": value});
        let want = json!({
            "data": [{
                "traceID": "83a9efd15c1c98a977e0711cc93ee28b",
                "spans": [{
                    "traceID": "83a9efd15c1c98a977e0711cc93ee28b",
                    "spanID": "e127af99e3b3e074",
                    "operationName": "okey-dokey-0",
                    "references": [{
                        "refType": "CHILD_OF",
                        "traceID": "83a9efd15c1c98a977e0711cc93ee28b",
                        "spanID": "909541b92cf05311",
                    }],
                    "startTime": 1_706_678_909_209_712_u64,
                    "duration": 123,
                    "tags": [
                        text("otel.scope.name", "telemetrygen"),
                        text("net.peer.ip", "1.2.3.4"),
                        text("peer.service", "telemetrygen-client"),
                        text("span.kind", "server"),
                    ],
                    "logs": [],
                    "processID": "p1",
                    "warnings": null,
                }],
                "processes": {"p1": {"serviceName": "telemetrygen", "tags": []}},
                "warnings": null,
            }],
            "total": 0, "limit": 0, "offset": 0, "errors": null,
        });
        assert_eq!(made, want);
    }

    #[test]
    fn status_links_events_and_the_place_in_the_log_are_tags_references_and_logs() {
        let link = |trace: u8, span: u8, kind: Option<&str>| Link {
            trace_id: vec![trace; 16],
            span_id: vec![span; 8],
            attributes: kind.map(|kind| pair(REF_TYPE, kind)).into_iter().collect(),
            ..Link::default()
        };
        let event =
            |name: &str, attributes| Event { time_unix_nano: 5_000, name: name.into(), attributes, ..Event::default() };
        let span = Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            flags: 0x101,
            trace_state: "a=b".into(),
            start_time_unix_nano: 9_000,
            links: vec![link(3, 4, None), link(3, 5, Some("child_of"))],
            events: vec![event("retry", vec![pair("n", "1")]), event("x", vec![pair("event", "own")])],
            status: Some(Status { code: 2, message: "refused".into() }),
            ..Span::default()
        };
        let made = written(&[(span, shared(0, vec![]))], false);
        let span = &made["data"][0]["spans"][0];
        let reference = |kind: &str, span: &str| json!({"refType": kind, "traceID": "03".repeat(16), "spanID": span});
        assert_eq!(
            span["references"],
            json!([reference("FOLLOWS_FROM", "0404040404040404"), reference("CHILD_OF", "0505050505050505")])
        );
        let tags: Vec<String> =
            span["tags"].as_array().unwrap().iter().map(|tag| format!("{}={}", tag["key"], tag["value"])).collect();
        let hash = format!("\"custody.record_hash\"=\"{}\"", "07".repeat(32));
        assert_eq!(
            tags,
            [
                r#""otel.scope.name"="telemetrygen""#,
                r#""otel.status_code"="ERROR""#,
                r#""error"=true"#,
                r#""otel.status_description"="refused""#,
                r#""w3c.tracestate"="a=b""#,
                r#""custody.seq"=0"#,
                &hash,
            ]
        );
        let text = |key: &str, value: &str| json!({"key": key, "type": "string", "value": value});
        assert_eq!(
            span["logs"],
            json!([
                {"timestamp": 5, "fields": [text("event", "retry"), text("n", "1")]},
                {"timestamp": 5, "fields": [text("event", "own")]},
            ])
        );
        assert_eq!((&span["flags"], &span["duration"]), (&json!(1), &json!(0)));
        assert!(span["warnings"][0].as_str().unwrap().contains("had not ended"), "{span}");
        assert_eq!(made["data"][0]["processes"]["p1"]["serviceName"], NO_SERVICE);
    }

    #[test]
    fn spans_of_one_resource_have_one_process() {
        let of = |group: usize, service: &str| (Span::default(), shared(group, vec![pair("service.name", service)]));
        let made = written(&[of(0, "a"), of(1, "b"), of(2, "a"), of(2, "a"), of(3, "b")], true);
        let processes: Vec<&str> = made["data"][0]["spans"]
            .as_array()
            .unwrap()
            .iter()
            .map(|span| span["processID"].as_str().unwrap())
            .collect();
        assert_eq!(processes, ["p1", "p2", "p1", "p1", "p2"]);
        let told = &made["data"][0]["processes"];
        assert_eq!((&told["p1"]["serviceName"], &told["p2"]["serviceName"]), (&json!("a"), &json!("b")));
        assert_eq!(told.as_object().unwrap().len(), 2);
    }

    #[test]
    fn a_link_to_the_parent_says_what_it_is_to_it() {
        let link = Link { trace_id: vec![1; 16], span_id: vec![9; 8], ..Link::default() };
        let span = Span { parent_span_id: vec![9; 8], links: vec![link], ..Span::default() };
        let made = references(&span, &"01".repeat(16));
        assert_eq!(made, [json!({"refType": "FOLLOWS_FROM", "traceID": "01".repeat(16), "spanID": "09".repeat(8)})]);
    }
}
