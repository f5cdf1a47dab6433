//! Requests that are small on the wire and large in memory.

use std::io::Write as _;

use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use crate::harness::{PROTOBUF, Target, attribute, post_from, request, request_of, span};

const GZIP: &str = "Content-Type: application/x-protobuf\r\nContent-Encoding: gzip\r\n";
const ZSTD: &str = "Content-Type: application/x-protobuf\r\nContent-Encoding: zstd\r\n";
const JSON: &str = "Content-Type: application/json\r\n";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn bombs_are_refused_before_they_are_made() {
    let mut target = Target::start(&[]);
    let zeros = vec![0; 16 << 20];
    let member = gzip(&zeros);
    // Members and frames follow each other: a gigabyte, in a megabyte or in 50 kB.
    let answer = target.post(GZIP, &member.repeat(64));
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.text().contains("--request-bytes-max"), "{answer:?}");
    let frame = zstd::bulk::compress(&zeros, 3).unwrap();
    assert_eq!(target.post(ZSTD, &frame.repeat(64)).status, 413);
    // A bomb in a bomb is opened once.
    target.post(GZIP, &gzip(&member.repeat(64))).is_invalid("not a valid protobuf");
    // A frame that asks for a window of 2 GiB, and has nothing in it.
    target.post(ZSTD, &[0x28, 0xb5, 0x2f, 0xfd, 0, 0xa8, 1, 0, 0]).is_invalid("cannot be decompressed");
    for (headers, garbage) in [(GZIP, &member[..member.len() / 2]), (ZSTD, &frame[..frame.len() / 2])] {
        let answer = target.post(headers, garbage);
        assert!([400, 413].contains(&answer.status), "{answer:?}");
    }
    // Frames and members with nothing in them: an empty request, after some work.
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0].repeat(2 << 20);
    assert_eq!(target.post(ZSTD, &skippable).status, 200);
    assert_eq!(target.post(GZIP, &gzip(b"").repeat(100_000)).status, 200);
    target.serves_another();
    target.finish();
}

#[test]
fn records_with_too_much_in_them_are_refused_by_name() {
    let mut target = Target::start(&[]);
    // Ten million attributes of two bytes.
    let span_bytes = [span(1).encode_to_vec(), [0x4a, 0].repeat(10_000_000)].concat();
    let mut body = Vec::new();
    for tag in [0x12, 0x12, 0x0a] {
        let inner = if body.is_empty() { span_bytes.clone() } else { std::mem::take(&mut body) };
        body.push(tag);
        prost::encoding::encode_varint(inner.len() as u64, &mut body);
        body.extend(inner);
    }
    target.post(PROTOBUF, &body).is_rejected("--record-values-max");
    let with =
        |value: Value| request_of(vec![Span { attributes: vec![attribute("a", value)], ..span(2) }]).encode_to_vec();
    assert_eq!(target.post(PROTOBUF, &with(Value::StringValue("x".repeat(64 << 20)))).status, 413);
    target.post(PROTOBUF, &with(Value::StringValue("x".repeat(40 << 20)))).is_rejected("--record-bytes-max");
    let list = ArrayValue { values: vec![AnyValue { value: Some(Value::BoolValue(true)) }; 300_000] };
    target.post(PROTOBUF, &with(Value::ArrayValue(list))).is_rejected("--record-values-max");
    // What people send must pass.
    let wide = (0..10_000).map(|n| attribute(&format!("key {n}"), Value::IntValue(n))).collect();
    let wide = request_of(vec![Span { attributes: wide, ..span(3) }]).encode_to_vec();
    for good in [with(Value::StringValue("x".repeat(10 << 20))), wide] {
        let answer = target.post(PROTOBUF, &good);
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{answer:?}");
    }
    target.records += 2;
    target.finish();
}

#[test]
fn requests_with_too_much_in_them_are_refused_whole() {
    let target = Target::start(&["--request-bytes-max", "4194304"]);
    // A megabyte of resource over a thousand spans is a gigabyte of rows.
    let mut shared = request_of((0..1000).map(span).collect());
    let resource = vec![attribute("big", Value::StringValue("x".repeat(1 << 20)))];
    shared.resource_spans[0].resource = Some(Resource { attributes: resource, ..Default::default() });
    target.post(PROTOBUF, &shared.encode_to_vec()).is_invalid("--request-expanded-bytes-max");
    // More than a million records of two bytes.
    let mut body = [0x12, 0].repeat((1 << 20) + 1);
    for tag in [0x12, 0x0a] {
        let inner = std::mem::take(&mut body);
        body.push(tag);
        prost::encoding::encode_varint(inner.len() as u64, &mut body);
        body.extend(inner);
    }
    target.post(PROTOBUF, &body).is_invalid("--request-records-max");
    // Two characters of JSON are nine bytes of protobuf.
    let bounds = format!(
        r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"histogram":{{"dataPoints":[{{"explicitBounds":[1{}]}}]}}}}]}}]}}]}}"#,
        ",1".repeat(1_000_000)
    );
    let head = format!(
        "POST /v1/metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{JSON}\r\n",
        bounds.len()
    );
    let came = target.raw(&[head.as_bytes(), bounds.as_bytes()].concat());
    crate::harness::Answer::parse(&came).is_invalid("--request-bytes-max");
    target.finish();
}

#[test]
fn nesting_and_text_are_checked_without_recursion_running_away() {
    let target = Target::start(&[]);
    let mut deep = Value::BoolValue(true).clone();
    for _ in 0..60 {
        deep = Value::ArrayValue(ArrayValue { values: vec![AnyValue { value: Some(deep) }] });
    }
    let deep = request_of(vec![Span { attributes: vec![attribute("deep", deep)], ..span(1) }]);
    target.post(PROTOBUF, &deep.encode_to_vec()).is_invalid("nested too deeply");
    // Groups, and messages in messages, as deep as the bytes go.
    target.post(PROTOBUF, &[0x1b].repeat(1 << 20)).is_invalid("nested too deeply");
    let mut nested = Vec::new();
    for _ in 0..4000 {
        let inner = std::mem::take(&mut nested);
        nested.push(0x0a);
        prost::encoding::encode_varint(inner.len() as u64, &mut nested);
        nested.extend(inner);
    }
    let attributes = [[0x4a].as_slice(), &length(&nested), &nested].concat();
    let mut body = attributes;
    for tag in [0x12, 0x12, 0x0a] {
        body = [[tag].as_slice(), &length(&body), &body].concat();
    }
    target.post(PROTOBUF, &body).is_invalid("not a valid protobuf");
    let json = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    target.post(JSON, json("[", "]").as_bytes()).is_invalid("not valid OTLP/JSON");
    let list = json(r#"{"arrayValue":{"values":["#, "]}}");
    let deep = format!(r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"k","value":{list}}}]}}}}]}}"#);
    target.post(JSON, deep.as_bytes()).is_invalid("not valid OTLP/JSON");
    // What OTLP does not name is passed over, however deep.
    let ignored = format!("{{\"x\":{}}}", json("[", "]"));
    assert_eq!(target.post(JSON, ignored.as_bytes()).status, 200);
    let mut text = request(1, 1);
    let at = text.windows(4).position(|w| w == b"step").unwrap();
    text[at] = 0xff;
    target.post(PROTOBUF, &text).is_invalid("not UTF-8");
    target.post(JSON, b"{\"resourceSpans\":\"\xff\"}").is_invalid("not valid OTLP/JSON");
    target.finish();
}

fn length(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_varint(bytes.len() as u64, &mut out);
    out
}

#[test]
fn a_flood_of_traces_is_kept_within_bounds() {
    let mut target = Target::start(&[]);
    let address = target.server.otlp_http.clone();
    let clients: Vec<_> = (0..4u64)
        .map(|client| {
            let address = address.clone();
            std::thread::spawn(move || {
                for n in 0..5 {
                    let answer = post_from(5, &address, PROTOBUF, &request((client * 5 + n + 1) * 10_000, 2000));
                    assert_eq!((answer.status, answer.body.len()), (200, 0), "{answer:?}");
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    target.records += 40_000;
    target.finish();
}
