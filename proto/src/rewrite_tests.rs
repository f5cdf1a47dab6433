//! Rewriting against prost: what is replaced, and that all else stays byte for byte.

use super::*;
use crate::otlp::collector_logs::ExportLogsServiceRequest;
use crate::otlp::collector_metrics::ExportMetricsServiceRequest;
use crate::otlp::collector_trace::ExportTraceServiceRequest;
use crate::otlp::common::any_value::Value as Any;
use crate::otlp::common::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList};
use crate::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use crate::otlp::metrics::{Exemplar, Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric::Data};
use crate::otlp::resource::Resource;
use crate::otlp::trace::span::{Event, Link};
use crate::otlp::trace::{ResourceSpans, ScopeSpans, Span, Status};
use proptest::prelude::*;
use prost::Message as _;

/// Replaces what contains an x by something longer, shorter or as long, and whole values under keys with a z.
#[derive(Default)]
struct Marks(Vec<String>);

fn mark(text: &[u8]) -> Option<Vec<u8>> {
    text.contains(&b'x').then(|| match text.len() % 3 {
        0 => [b"long ".repeat(40), text.to_ascii_uppercase()].concat(),
        1 => b"-".to_vec(),
        _ => vec![b'='; text.len()],
    })
}

fn mark_value(path: &str) -> Option<String> {
    path.rsplit('.').next().is_some_and(|key| key.contains('z')).then(|| format!("value of {path}"))
}

impl Editor for Marks {
    fn value(&mut self, at: &At<'_>, _: Value<'_>) -> Option<String> {
        mark_value(at.path)
    }

    fn text(&mut self, at: &At<'_>, text: &[u8], _: bool) -> Option<Vec<u8>> {
        self.0.push(format!("{:?} {} {} {}", at.record, at.message, at.field, at.path));
        mark(text)
    }
}

/// The same on decoded messages.
fn mark_text(text: &mut String) {
    if let Some(new) = mark(text.as_bytes()) {
        *text = String::from_utf8(new).unwrap();
    }
}

fn mark_any(value: &mut AnyValue, path: &str) {
    match &mut value.value {
        Some(Any::StringValue(text)) => mark_text(text),
        Some(Any::BytesValue(bytes)) => *bytes = mark(bytes).unwrap_or(std::mem::take(bytes)),
        Some(Any::ArrayValue(list)) => list.values.iter_mut().for_each(|value| mark_any(value, path)),
        Some(Any::KvlistValue(list)) => mark_all(&mut list.values, path),
        _ => {}
    }
}

fn mark_all(attributes: &mut [KeyValue], above: &str) {
    for attribute in attributes {
        let dot = if above.is_empty() { "" } else { "." };
        let path = format!("{above}{dot}{}", attribute.key);
        let Some(value) = attribute.value.as_mut().filter(|value| value.value.is_some()) else { continue };
        match mark_value(&path) {
            Some(text) => value.value = Some(Any::StringValue(text)),
            None => mark_any(value, &path),
        }
    }
}

fn mark_shared(resource: &mut Option<Resource>, scope: &mut Option<InstrumentationScope>) {
    resource.iter_mut().for_each(|resource| mark_all(&mut resource.attributes, ""));
    if let Some(scope) = scope {
        mark_text(&mut scope.name);
        mark_text(&mut scope.version);
        mark_all(&mut scope.attributes, "");
    }
}

fn mark_traces(request: &mut ExportTraceServiceRequest) {
    for resource in &mut request.resource_spans {
        mark_text(&mut resource.schema_url);
        for scope in &mut resource.scope_spans {
            mark_shared(&mut resource.resource, &mut scope.scope);
            for span in &mut scope.spans {
                mark_text(&mut span.name);
                mark_text(&mut span.trace_state);
                mark_all(&mut span.attributes, "");
                for event in &mut span.events {
                    mark_text(&mut event.name);
                    mark_all(&mut event.attributes, "");
                }
                span.links.iter_mut().for_each(|link| mark_all(&mut link.attributes, ""));
                span.status.iter_mut().for_each(|status| mark_text(&mut status.message));
            }
        }
    }
}

fn mark_logs(request: &mut ExportLogsServiceRequest) {
    for resource in &mut request.resource_logs {
        for scope in &mut resource.scope_logs {
            mark_shared(&mut resource.resource, &mut scope.scope);
            for log in &mut scope.log_records {
                mark_text(&mut log.severity_text);
                mark_text(&mut log.event_name);
                log.body.iter_mut().for_each(|body| mark_any(body, ""));
                mark_all(&mut log.attributes, "");
            }
        }
    }
}

fn text() -> impl Strategy<Value = String> {
    "[a-cxyä]{0,6}|[a-w]{100,200}"
}

fn any_value() -> impl Strategy<Value = AnyValue> {
    let leaf = prop_oneof![
        text().prop_map(Any::StringValue),
        any::<bool>().prop_map(Any::BoolValue),
        any::<i64>().prop_map(Any::IntValue),
        (0..9i32).prop_map(|n| Any::DoubleValue(n.into())),
        proptest::collection::vec(prop_oneof![Just(b'x'), any::<u8>()], 0..5).prop_map(Any::BytesValue),
    ];
    let values = leaf.prop_recursive(3, 12, 4, |inner| {
        let value = inner.prop_map(|value| AnyValue { value: Some(value) });
        let list = proptest::collection::vec(value.clone(), 0..4).prop_map(|values| ArrayValue { values });
        let pair = (key(), value).prop_map(|(key, value)| KeyValue { key, value: Some(value), ..Default::default() });
        let map = proptest::collection::vec(pair, 0..4).prop_map(|values| KeyValueList { values });
        prop_oneof![list.prop_map(Any::ArrayValue), map.prop_map(Any::KvlistValue)]
    });
    proptest::option::weighted(0.9, values).prop_map(|value| AnyValue { value })
}

fn key() -> impl Strategy<Value = String> {
    "[a-dxz]{1,3}"
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    let pair = (key(), proptest::option::weighted(0.9, any_value()));
    let pair = pair.prop_map(|(key, value)| KeyValue { key, value, ..Default::default() });
    proptest::collection::vec(pair, 0..4)
}

fn traces() -> impl Strategy<Value = ExportTraceServiceRequest> {
    let span = (text(), text(), attributes(), attributes(), attributes(), proptest::option::of(text()));
    let span = span.prop_map(|(name, trace_state, attributes, event, link, status)| Span {
        trace_id: vec![1; 16],
        span_id: vec![b'x'; 8],
        events: vec![Event { name: name.clone(), attributes: event, time_unix_nano: 7, ..Default::default() }],
        links: vec![Link { trace_id: vec![b'x'; 16], attributes: link, ..Default::default() }],
        status: status.map(|message| Status { message, code: 2 }),
        start_time_unix_nano: 5,
        name,
        trace_state,
        attributes,
        ..Default::default()
    });
    let parts = (proptest::collection::vec(span, 0..4), attributes(), attributes(), text());
    let resource = parts.prop_map(|(spans, resource, scope, text)| ResourceSpans {
        resource: Some(Resource { attributes: resource, ..Default::default() }),
        schema_url: text.clone(),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope { name: text, attributes: scope, ..Default::default() }),
            spans,
            ..Default::default()
        }],
    });
    let resources = proptest::collection::vec(resource, 0..3);
    resources.prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
}

fn logs() -> impl Strategy<Value = ExportLogsServiceRequest> {
    let log = (proptest::option::of(any_value()), attributes(), text(), text());
    let log = log.prop_map(|(body, attributes, severity_text, event_name)| LogRecord {
        body,
        attributes,
        severity_text,
        event_name,
        ..Default::default()
    });
    proptest::collection::vec(log, 0..4).prop_map(|log_records| {
        let scope_logs = vec![ScopeLogs { log_records, ..Default::default() }];
        ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { scope_logs, ..Default::default() }] }
    })
}

/// The bytes, rewritten or as they were.
fn rewritten(signal: Signal, bytes: &[u8]) -> Vec<u8> {
    rewrite(signal, bytes, &Limits::default(), &mut Marks::default()).unwrap().unwrap_or(bytes.to_vec())
}

/// Appends a field with a length in front.
fn put(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[test]
fn what_otlp_does_not_name_stays_byte_for_byte() {
    // In every message an unknown field of every wire type, an unknown group with a group in it, and lengths
    // spelled longer than they need be.
    let unknown: &[u8] =
        b"\xf8\x3f\x87\x80\x00\xf9\x3fxxxxxxxx\xfa\x3f\x82\x00xx\xfd\x3fxxxx\xfb\x3f\x0b\x08\x01\x0c\xfc\x3f";
    let build = |name: &[u8], value: &[u8]| {
        let mut string = unknown.to_vec();
        put(&mut string, 1, value);
        let mut attribute = unknown.to_vec();
        put(&mut attribute, 2, &string);
        put(&mut attribute, 1, b"key behind its value");
        let mut span = unknown.to_vec();
        put(&mut span, 5, name);
        put(&mut span, 9, &attribute);
        span.extend_from_slice(unknown);
        let mut scope = unknown.to_vec();
        put(&mut scope, 2, &span);
        let mut resource = vec![];
        put(&mut resource, 2, &scope);
        resource.extend_from_slice(unknown);
        let mut request = unknown.to_vec();
        put(&mut request, 1, &resource);
        request.extend_from_slice(unknown);
        request
    };
    let before = build(b"a span named x1", b"x");
    ExportTraceServiceRequest::decode(&before[..]).expect("prost takes it");
    crate::scan(Signal::Traces, &before, &Limits::default()).expect("so does the scanner");
    let new = |text: &[u8]| mark(text).unwrap();
    assert_eq!(rewritten(Signal::Traces, &before), build(&new(b"a span named x1"), &new(b"x")));
    let plain = build(b"a span", b"value");
    assert_eq!(rewrite(Signal::Traces, &plain, &Limits::default(), &mut Marks::default()), Ok(None));
}

#[test]
fn says_where_a_text_stands() {
    let nested = KeyValueList {
        values: vec![KeyValue {
            key: "b".into(),
            value: Some(AnyValue { value: Some(Any::StringValue("v".into())) }),
            ..Default::default()
        }],
    };
    let attribute = KeyValue {
        key: "a".into(),
        value: Some(AnyValue { value: Some(Any::KvlistValue(nested)) }),
        ..Default::default()
    };
    let event = Event { name: "e".into(), attributes: vec![attribute.clone()], ..Default::default() };
    let span = Span { name: "n".into(), events: vec![event], ..Default::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![Span::default(), span], ..Default::default() }];
    let resource = Some(Resource { attributes: vec![attribute], ..Default::default() });
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource, scope_spans, ..Default::default() }],
    };
    let mut seen = Marks::default();
    rewrite(Signal::Traces, &request.encode_to_vec(), &Limits::default(), &mut seen).unwrap();
    let want = [
        "None Resource attributes a.b",
        "Some(1) Span name ",
        "Some(1) Span.Event name ",
        "Some(1) Span.Event attributes a.b",
    ];
    assert_eq!(seen.0, want);
}

#[test]
fn of_a_reference_to_an_entity_only_the_keys_of_attributes_stay() {
    let build = |url: &[u8], kind: &[u8]| {
        let (mut entity, mut resource, mut spans, mut request) = (vec![], vec![], vec![], vec![]);
        for (field, text) in [(1, url), (2, kind), (3, b"id.x"), (4, b"description.x")] {
            put(&mut entity, field, text);
        }
        put(&mut resource, 3, &entity);
        put(&mut spans, 1, &resource);
        put(&mut request, 1, &spans);
        request
    };
    let (url, kind) = (b"https://u:x@h".as_slice(), b"x".as_slice());
    let before = build(url, kind);
    crate::scan(Signal::Traces, &before, &Limits::default()).expect("the scanner takes it");
    assert_eq!(rewritten(Signal::Traces, &before), build(&mark(url).unwrap(), &mark(kind).unwrap()));
    let mut seen = Marks::default();
    rewrite(Signal::Traces, &before, &Limits::default(), &mut seen).unwrap();
    assert_eq!(seen.0, ["None EntityRef schemaUrl ", "None EntityRef type "]);
}

#[test]
fn the_attributes_of_metrics_are_reached() {
    let attribute = |key: &str| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(Any::StringValue("x".into())) }),
        ..Default::default()
    };
    let exemplar = Exemplar { filtered_attributes: vec![attribute("e")], ..Default::default() };
    let point = NumberDataPoint { attributes: vec![attribute("p")], exemplars: vec![exemplar], ..Default::default() };
    let data = Some(Data::Gauge(Gauge { data_points: vec![point] }));
    let metric = Metric { name: "x".into(), data, metadata: vec![attribute("m")], ..Default::default() };
    let scope_metrics = vec![ScopeMetrics { metrics: vec![metric], ..Default::default() }];
    let resource_metrics = vec![ResourceMetrics { scope_metrics, ..Default::default() }];
    let bytes = ExportMetricsServiceRequest { resource_metrics }.encode_to_vec();
    let new = rewritten(Signal::Metrics, &bytes);
    let text = format!("{:?}", ExportMetricsServiceRequest::decode(&new[..]).unwrap());
    assert!(!text.contains('x') || !text.contains("\"x\""), "{text}");
    assert_eq!(text.matches("StringValue(\"-\")").count(), 3, "{text}");
}

#[test]
fn a_request_does_not_grow_beyond_the_limit() {
    let span = Span { name: "xxx".into(), ..Default::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![span; 50], ..Default::default() }];
    let bytes = ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..Default::default() }] }
        .encode_to_vec();
    let limits = Limits { body_bytes_max: 5000, ..Limits::default() };
    let error = rewrite(Signal::Traces, &bytes, &limits, &mut Marks::default()).unwrap_err();
    assert!(error.message().contains("limit of 5000"), "{error}");
}

#[test]
fn of_a_long_path_the_end_is_seen() {
    let value = |value| Some(AnyValue { value: Some(value) });
    let inner = KeyValue { key: "end".into(), value: value(Any::StringValue("v".into())), ..Default::default() };
    let outer = value(Any::KvlistValue(KeyValueList { values: vec![inner] }));
    let outer = KeyValue { key: "ä".repeat(5000), value: outer, ..Default::default() };
    let log = LogRecord { attributes: vec![outer], ..Default::default() };
    let scope_logs = vec![ScopeLogs { log_records: vec![log], ..Default::default() }];
    let bytes = ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { scope_logs, ..Default::default() }] };
    let mut seen = Marks::default();
    rewrite(Signal::Logs, &bytes.encode_to_vec(), &Limits::default(), &mut seen).unwrap();
    assert!(seen.0[0].ends_with("ä.end") && seen.0[0].len() < 1100, "{}", seen.0[0].len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn traces_are_edited_as_decoded_ones_would_be(mut request in traces()) {
        let bytes = request.encode_to_vec();
        let new = rewritten(Signal::Traces, &bytes);
        // The resource is edited once for each scope here: that must be the same as once.
        mark_traces(&mut request);
        prop_assert_eq!(ExportTraceServiceRequest::decode(&new[..]).unwrap(), request.clone());
        prop_assert_eq!(new, request.encode_to_vec());
    }

    #[test]
    fn logs_are_edited_as_decoded_ones_would_be(mut request in logs()) {
        let new = rewritten(Signal::Logs, &request.encode_to_vec());
        mark_logs(&mut request);
        prop_assert_eq!(ExportLogsServiceRequest::decode(&new[..]).unwrap(), request.clone());
        prop_assert_eq!(new, request.encode_to_vec());
    }

    /// What the scanner takes is rewritten to what it takes, whatever it is; what it does not take does no harm.
    #[test]
    fn hostile_bytes_do_no_harm(request in traces(), at: prop::sample::Index, byte: u8, insert: bool) {
        let mut bytes = request.encode_to_vec();
        let at = at.index(bytes.len() + 1);
        if insert || at == bytes.len() { bytes.insert(at, byte) } else { bytes[at] = byte }
        for signal in [Signal::Traces, Signal::Logs, Signal::Metrics] {
            let taken = crate::scan(signal, &bytes, &Limits::default()).is_ok();
            let new = rewrite(signal, &bytes, &Limits::default(), &mut Marks::default());
            if taken {
                let new = new.unwrap().unwrap_or_else(|| bytes.clone());
                prop_assert!(crate::scan(signal, &new, &Limits::default()).is_ok());
            }
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        for signal in [Signal::Traces, Signal::Logs, Signal::Metrics] {
            let _ = rewrite(signal, &bytes, &Limits::default(), &mut Marks::default());
        }
    }
}
