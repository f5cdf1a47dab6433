//! The scanner beside prost: what it finds, refuses and counts.

use super::pieces::PIECES_MAX;
use super::*;
use crate::otlp::collector_logs::ExportLogsServiceRequest;
use crate::otlp::collector_metrics::ExportMetricsServiceRequest;
use crate::otlp::collector_trace::ExportTraceServiceRequest;
use crate::otlp::common::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value};
use crate::otlp::resource::Resource;
use crate::otlp::trace::{ResourceSpans, ScopeSpans, Span};
use proptest::prelude::*;
use prost::Message as _;

fn key_value(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn span(id: u8) -> Span {
    Span {
        trace_id: vec![id; 16],
        span_id: vec![id; 8],
        name: format!("span {id}"),
        start_time_unix_nano: 5,
        attributes: vec![key_value("a", Value::StringValue("b".into()))],
        ..Default::default()
    }
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![key_value("service.name", Value::StringValue("s".into()))],
                ..Default::default()
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope { name: "scope".into(), ..Default::default() }),
                spans,
                ..Default::default()
            }],
            ..Default::default()
        }],
    }
}

fn at<'a>(request: &'a [u8], scan: &'a Scan, range: Range) -> &'a [u8] {
    let (at, len) = (range.at as usize, range.len as usize);
    match at.checked_sub(request.len()) {
        None => &request[at..at + len],
        Some(at) => &scan.annex[at..at + len],
    }
}

#[test]
fn finds_every_record_with_its_resource_and_scope() {
    let sent = request(vec![span(1), span(2)]);
    let bytes = sent.encode_to_vec();
    let scan = scan(Signal::Traces, &bytes, &Limits::default()).unwrap();
    assert_eq!((scan.records.len(), scan.groups.len(), scan.rejected), (2, 1, 0));
    let decoded = Span::decode(at(&bytes, &scan, scan.records[1].range)).unwrap();
    assert_eq!(decoded, span(2));
    assert_eq!((scan.records[1].trace_id, scan.records[1].span_id), ([2; 16], [2; 8]));
    let resource = Resource::decode(at(&bytes, &scan, scan.groups[0].resource)).unwrap();
    assert_eq!(Some(resource), sent.resource_spans[0].resource);
    let scope = InstrumentationScope::decode(at(&bytes, &scan, scan.groups[0].scope)).unwrap();
    assert_eq!(Some(scope), sent.resource_spans[0].scope_spans[0].scope);
}

#[test]
fn joins_a_resource_that_comes_in_pieces() {
    let one = request(vec![span(1)]).resource_spans.remove(0);
    let mut body = one.encode_to_vec();
    let more =
        Resource { attributes: vec![key_value("host.name", Value::StringValue("h".into()))], ..Default::default() }
            .encode_to_vec();
    body.extend([0x0a, more.len() as u8]);
    body.extend(&more);
    let mut bytes = vec![0x0a, body.len() as u8];
    bytes.extend(&body);
    let parsed = ExportTraceServiceRequest::decode(&bytes[..]).unwrap();
    let scan = scan(Signal::Traces, &bytes, &Limits::default()).unwrap();
    let joined = Resource::decode(at(&bytes, &scan, scan.groups[0].resource)).unwrap();
    assert_eq!(Some(joined), parsed.resource_spans[0].resource);
}

#[test]
fn counts_ids_that_can_never_be_accepted() {
    let wrong = [
        Span { trace_id: vec![1; 15], ..span(1) },
        Span { trace_id: vec![0; 16], ..span(1) },
        Span { span_id: vec![], ..span(1) },
        Span { parent_span_id: vec![1; 7], ..span(1) },
    ];
    let bytes = request([wrong.to_vec(), vec![span(9)]].concat()).encode_to_vec();
    let scan = scan(Signal::Traces, &bytes, &Limits::default()).unwrap();
    assert_eq!((scan.records.len(), scan.rejected), (1, 4));
    let why = scan.rejection.unwrap();
    assert!(why.contains("span.trace_id has 15 bytes"), "{why}");
}

#[test]
fn counts_what_has_ids_of_the_wrong_length_inside() {
    use crate::otlp::trace::span::Link;
    let link = |trace: usize, id: usize| Span {
        links: vec![Link { trace_id: vec![1; trace], span_id: vec![1; id], ..Default::default() }],
        ..span(1)
    };
    // A link without ids is one of the API's; one with a part of an id is nothing.
    let spans = vec![link(16, 8), link(0, 0), link(16, 7), link(15, 8)];
    let scanned = scan(Signal::Traces, &request(spans).encode_to_vec(), &Limits::default()).unwrap();
    assert_eq!((scanned.records.len(), scanned.rejected), (2, 2));
    assert!(scanned.rejection.unwrap().contains("Span.Link with an id of the wrong length"));
}

#[test]
fn a_resource_in_very_many_pieces_is_refused() {
    let request = |pieces: usize| {
        let body = [0x0a, 0].repeat(pieces);
        let mut request = vec![0x0a];
        prost::encoding::encode_varint(body.len() as u64, &mut request);
        scan(Signal::Traces, &[request, body].concat(), &Limits::default())
    };
    assert!(request(PIECES_MAX + 1).is_ok());
    assert!(request(PIECES_MAX + 2).unwrap_err().message().contains("thousand pieces"));
}

#[test]
fn a_metric_is_counted_by_its_data_points() {
    use crate::otlp::metrics::{
        Exemplar, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
        metric::Data,
    };
    let wrong = vec![Exemplar { trace_id: vec![1; 3], ..Default::default() }];
    let sum = |exemplars| Metric {
        name: "sum".into(),
        data: Some(Data::Sum(Sum {
            data_points: vec![NumberDataPoint { exemplars, ..Default::default() }, NumberDataPoint::default()],
            ..Default::default()
        })),
        ..Default::default()
    };
    let points = vec![
        HistogramDataPoint::default(),
        HistogramDataPoint::default(),
        HistogramDataPoint { exemplars: wrong.clone(), ..Default::default() },
    ];
    let histogram = Metric {
        data: Some(Data::Histogram(Histogram { data_points: points, aggregation_temporality: 2 })),
        metadata: vec![key_value("m", Value::BoolValue(true))],
        ..Default::default()
    };
    let scope_metrics = vec![ScopeMetrics { metrics: vec![sum(vec![]), sum(wrong), histogram], ..Default::default() }];
    let sent =
        ExportMetricsServiceRequest { resource_metrics: vec![ResourceMetrics { scope_metrics, ..Default::default() }] };
    let scanned = scan(Signal::Metrics, &sent.encode_to_vec(), &Limits::default()).unwrap();
    assert_eq!((scanned.records.len(), scanned.rejected), (1, 5));
    assert!(scanned.rejection.unwrap().contains("a metric has Exemplar with an id"));
}

#[test]
fn refuses_what_is_beyond_the_limits() {
    let bytes = request(vec![span(1), span(2)]).encode_to_vec();
    let small = Limits { body_bytes_max: 10, ..Limits::default() };
    assert!(scan(Signal::Traces, &bytes, &small).unwrap_err().message().contains("limit of 10"));
    let few = Limits { records_max: 1, ..Limits::default() };
    assert!(scan(Signal::Traces, &bytes, &few).unwrap_err().message().contains("more than 1 spans"));
}

/// The same verdict as prost, for any nesting around the limit of 100.
#[test]
fn nesting_is_bounded_as_prost_bounds_it() {
    for depth in 40..56 {
        let mut value = Value::BoolValue(true);
        for _ in 0..depth {
            value = Value::ArrayValue(ArrayValue { values: vec![AnyValue { value: Some(value) }] });
        }
        let deep = Span { attributes: vec![key_value("deep", value)], ..span(1) };
        let bytes = request(vec![deep]).encode_to_vec();
        let ours = scan(Signal::Traces, &bytes, &Limits::default()).is_ok();
        assert_eq!(ours, ExportTraceServiceRequest::decode(&bytes[..]).is_ok(), "depth {depth}");
    }
}

fn prost_accepts(signal: Signal, bytes: &[u8]) -> bool {
    match signal {
        Signal::Traces => ExportTraceServiceRequest::decode(bytes).is_ok(),
        Signal::Logs => ExportLogsServiceRequest::decode(bytes).is_ok(),
        Signal::Metrics => ExportMetricsServiceRequest::decode(bytes).is_ok(),
    }
}

const SIGNALS: [Signal; 3] = [Signal::Traces, Signal::Logs, Signal::Metrics];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn accepts_what_prost_accepts_random(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        for signal in SIGNALS {
            let ours = scan(signal, &bytes, &Limits::default()).is_ok();
            prop_assert_eq!(ours, prost_accepts(signal, &bytes));
        }
    }

    #[test]
    fn accepts_what_prost_accepts_mutated(at in 0usize..400, byte: u8, cut in 0usize..400, insert: bool) {
        let mut bytes = request(vec![span(1), span(2), span(3)]).encode_to_vec();
        let at = at % bytes.len();
        if insert { bytes.insert(at, byte) } else { bytes[at] = byte }
        if cut < bytes.len() { bytes.truncate(cut.max(at + 1)) }
        for signal in SIGNALS {
            let ours = scan(signal, &bytes, &Limits::default()).is_ok();
            prop_assert_eq!(ours, prost_accepts(signal, &bytes));
        }
    }
}
