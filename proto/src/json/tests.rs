//! Requests in JSON, as senders write them and as they must not.

use super::*;
use crate::otlp::collector_logs::ExportLogsServiceRequest;
use crate::otlp::collector_metrics::ExportMetricsServiceRequest;
use crate::otlp::collector_trace::ExportTraceServiceRequest;
use crate::otlp::common::any_value::Value;
use crate::otlp::metrics::metric::Data;
use prost::Message as _;

fn traces(json: &str) -> Result<ExportTraceServiceRequest, String> {
    let bytes = transcode(Signal::Traces, json.as_bytes()).map_err(|e| e.message().to_owned())?;
    Ok(ExportTraceServiceRequest::decode(&bytes[..]).unwrap())
}

fn span_json(fields: &str) -> String {
    format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{fields}}}]}}]}}]}}"#)
}

#[test]
fn takes_ids_in_either_case_and_numbers_in_both_forms() {
    let json = span_json(
        r#""traceId":"5B8EFFF798038103d269b633813fc60c","spanId":"EEE19B7EC3C1B174",
           "start_time_unix_nano":"1544712660000000000","endTimeUnixNano":1544712661000000000,
           "kind":2,"flags":257,"name":"n","unknown":{"deep":[1,{}]},"parentSpanId":null,
           "attributes":[{"key":"i","value":{"intValue":"-7"}},{"key":"b","value":{"bytesValue":"AQI="}},
                         {"key":"d","value":{"doubleValue":1}},{"key":"t","value":{"boolValue":true}},
                         {"key":"a","value":{"arrayValue":{"values":[{"stringValue":""}]}}}]"#,
    );
    let got = traces(&json).unwrap();
    let span = &got.resource_spans[0].scope_spans[0].spans[0];
    assert_eq!(const_hex::encode(&span.trace_id), "5b8efff798038103d269b633813fc60c");
    assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (1544712660000000000, 1544712661000000000));
    assert_eq!((span.kind, span.flags), (2, 257));
    let value = |i: usize| span.attributes[i].value.clone().unwrap().value.unwrap();
    assert_eq!(value(0), Value::IntValue(-7));
    assert_eq!(value(1), Value::BytesValue(vec![1, 2]));
    assert_eq!(value(2), Value::DoubleValue(1.0));
    assert_eq!(value(3), Value::BoolValue(true));
    let Value::ArrayValue(list) = value(4) else { panic!("not a list") };
    assert_eq!(list.values[0].value, Some(Value::StringValue(String::new())));
}

#[test]
fn says_which_field_is_wrong() {
    for (fields, want) in [
        (r#""traceId":"xyz""#, "traceId must be hexadecimal"),
        (r#""kind":"SPAN_KIND_SERVER""#, "kind must be the enum's integer"),
        (r#""startTimeUnixNano":-1"#, "startTimeUnixNano is out of range"),
        (r#""attributes":{}"#, "attributes must be a list"),
        (r#""name":[]"#, "name must not be a list"),
        (r#""name":7"#, "name must be a string"),
    ] {
        let error = traces(&span_json(fields)).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
    assert!(traces("{").unwrap_err().contains("line 1"));
    assert!(traces("[]").unwrap_err().contains("an object"));
    assert!(traces("{} x").unwrap_err().contains("trailing"));
}

#[test]
fn what_protobufs_mapping_excludes_is_refused() {
    let id = r#""traceId":"5b8efff798038103d269b633813fc60c""#;
    for (fields, want) in [
        (format!("{id},{id}"), "Span has traceId more than once"),
        (format!(r#"{id},"trace_id":"00""#), "Span has traceId more than once"),
        (attribute(r#""stringValue":"a","intValue":1"#), "AnyValue has intValue more than once, or beside"),
        (attribute(r#""arrayValue":{"values":[null]}"#), "null is no element of values"),
        (attribute(r#""doubleValue":"inf""#), "doubleValue must be a number"),
        (attribute(r#""doubleValue":"1e999""#), "doubleValue must be a number"),
        (attribute(r#""intValue":"9223372036854775808""#), "intValue is out of range"),
        (attribute(r#""intValue":9223372036854775808"#), "intValue is out of range"),
        (attribute(r#""intValue":1e30"#), "intValue is out of range"),
        (attribute(r#""intValue":"+1""#), "intValue must be an integer"),
        (attribute(r#""intValue":1.5"#), "intValue must be a whole number"),
        (attribute(r#""intValue":9007199254740993.0"#), "intValue is out of range, or too large for a point"),
        (attribute(r#""intValue":-9223372036854775809"#), "intValue is out of range"),
        (r#""startTimeUnixNano":1.767225600123456789e18"#.into(), "startTimeUnixNano is out of range, or too large"),
        (attribute(r#""boolValue":"true""#), "boolValue must be"),
        (attribute(r#""bytesValue":"*""#), "bytesValue must be base64"),
        (r#""traceId":"0x5b8efff798038103d269b633813fc60c""#.into(), "traceId must be hexadecimal"),
        (r#""startTimeUnixNano":18446744073709551616"#.into(), "startTimeUnixNano is out of range"),
    ] {
        let error = traces(&span_json(&fields)).unwrap_err();
        assert!(error.contains(want), "{fields}: {error}");
    }
    let wrong = [&b"{\"unknown\":\""[..], b"\xff", b"\"}"].concat();
    assert!(transcode(Signal::Traces, &wrong).unwrap_err().message().contains("not UTF-8 from byte 12"));
    assert!(traces("\u{feff}{}").is_err(), "a byte order mark is no JSON");
    assert!(traces("").is_err());
}

fn attribute(value: &str) -> String {
    format!(r#""attributes":[{{"key":"k","value":{{{value}}}}}]"#)
}

#[test]
fn values_at_their_edges() {
    for (json, want) in [
        (r#""intValue":"-9223372036854775808""#, Some(Value::IntValue(i64::MIN))),
        (r#""intValue":9223372036854775807"#, Some(Value::IntValue(i64::MAX))),
        (r#""intValue":1e3"#, Some(Value::IntValue(1000))),
        (r#""intValue":-9007199254740991.0"#, Some(Value::IntValue(1 - (1 << 53)))),
        (r#""intValue":null,"stringValue":"s""#, Some(Value::StringValue("s".into()))),
        (r#""doubleValue":"-Infinity""#, Some(Value::DoubleValue(f64::NEG_INFINITY))),
        (r#""doubleValue":"1.5""#, Some(Value::DoubleValue(1.5))),
        (r#""bytesValue":"_-8""#, Some(Value::BytesValue(vec![0xff, 0xef]))),
        (r#""bytesValue":"/+8=""#, Some(Value::BytesValue(vec![0xff, 0xef]))),
        (r#""string_value":"snake""#, Some(Value::StringValue("snake".into()))),
        (r#""string_value_":"s","StringValue":"s","stringvalue":"s""#, None),
    ] {
        let got = traces(&span_json(&attribute(json))).unwrap();
        let value = got.resource_spans[0].scope_spans[0].spans[0].attributes[0].value.clone();
        assert_eq!(value.unwrap().value, want, "{json}");
    }
    // What a browser sends that cut a text within an emoji.
    let cut = traces(&span_json(r#""name":"cut \ud83d""#)).unwrap();
    assert_eq!(cut.resource_spans[0].scope_spans[0].spans[0].name, "cut \u{fffd}");
    let nan = traces(&span_json(&attribute(r#""doubleValue":"NaN""#))).unwrap();
    let nan = nan.resource_spans[0].scope_spans[0].spans[0].attributes[0].value.clone();
    assert!(matches!(nan.unwrap().value, Some(Value::DoubleValue(nan)) if nan.is_nan()));
}

proptest::proptest! {
    /// What is proven is what was sent, to the last bit.
    #[test]
    fn a_double_is_the_same_in_json(bits in proptest::prelude::any::<u64>()) {
        let sent = f64::from_bits(bits);
        if sent.is_finite() {
            let got = traces(&span_json(&attribute(&format!(r#""doubleValue":{sent:?}"#)))).unwrap();
            let value = got.resource_spans[0].scope_spans[0].spans[0].attributes[0].value.clone();
            let Some(Value::DoubleValue(got)) = value.unwrap().value else { panic!("no double") };
            proptest::prop_assert_eq!(got.to_bits(), bits, "{:?}", sent);
        }
    }

    /// A fraction of many digits, as measurements have them.
    #[test]
    fn a_measurement_is_the_same_in_json(sent in 0.0..1.0) {
        let got = traces(&span_json(&attribute(&format!(r#""doubleValue":{sent}"#)))).unwrap();
        let value = got.resource_spans[0].scope_spans[0].spans[0].attributes[0].value.clone();
        proptest::prop_assert_eq!(value.unwrap().value, Some(Value::DoubleValue(sent)));
    }
}

#[test]
fn a_histogram_is_byte_for_byte_what_protobufs_encoders_write() {
    let json = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"h","histogram":{"dataPoints":[{
        "bucketCounts":["1","300",0],"explicitBounds":[0.5,10],"count":"301"},{"bucketCounts":[]}]}}]}]}]}"#;
    let ours = transcode(Signal::Metrics, json.as_bytes()).unwrap();
    let read = ExportMetricsServiceRequest::decode(&ours[..]).unwrap();
    let Some(Data::Histogram(histogram)) = &read.resource_metrics[0].scope_metrics[0].metrics[0].data else {
        panic!("no histogram")
    };
    assert_eq!(histogram.data_points[0].bucket_counts, [1, 300, 0]);
    assert_eq!(histogram.data_points[0].explicit_bounds, [0.5, 10.0]);
    assert_eq!(ours.len(), read.encode_to_vec().len());
}

#[test]
fn what_would_be_too_large_is_not_made() {
    let bounds = format!(
        r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"histogram":{{"dataPoints":[{{"explicitBounds":[1{}]}}]}}}}]}}]}}]}}"#,
        ",1".repeat(5000)
    );
    assert!(transcode_within(Signal::Metrics, bounds.as_bytes(), 50_000).is_ok());
    let error = transcode_within(Signal::Metrics, bounds.as_bytes(), bounds.len()).unwrap_err();
    assert!(error.message().contains("--request-bytes-max"), "{error}");
}

#[test]
fn the_examples_of_opentelemetry_transcode() {
    let logs = transcode(Signal::Logs, include_bytes!("../../testdata/logs.json")).unwrap();
    let logs = ExportLogsServiceRequest::decode(&logs[..]).unwrap();
    assert_eq!(logs.resource_logs[0].scope_logs[0].log_records[0].severity_text, "Information");
    let metrics = transcode(Signal::Metrics, include_bytes!("../../testdata/metrics.json")).unwrap();
    let metrics = ExportMetricsServiceRequest::decode(&metrics[..]).unwrap();
    let kinds = &metrics.resource_metrics[0].scope_metrics[0].metrics;
    assert!(matches!(kinds[0].data, Some(Data::Sum(_))));
    let trace = transcode(Signal::Traces, include_bytes!("../../testdata/trace.json")).unwrap();
    let trace = ExportTraceServiceRequest::decode(&trace[..]).unwrap();
    assert_eq!(trace.resource_spans[0].scope_spans[0].spans[0].name, "I'm a server span");
}
