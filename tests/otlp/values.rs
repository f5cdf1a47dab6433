//! Attributes and bodies: every AnyValue, as it was sent.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::{Span, span::Event};
use prost::Message as _;
use serde_json::{Value as Json, json};

use crate::requests::{Signal, hex, key_value, log, logs, span, text, traces};
use crate::support::Server;
use crate::wire::{Client, JSON, RpcStatus};

fn any(value: Value) -> AnyValue {
    AnyValue { value: Some(value) }
}

fn list(values: Vec<AnyValue>) -> Option<Value> {
    Some(Value::ArrayValue(ArrayValue { values }))
}

fn kvlist(values: Vec<KeyValue>) -> Option<Value> {
    Some(Value::KvlistValue(KeyValueList { values }))
}

fn send(server: &Server, span: &Span) {
    let request = traces(vec![span.clone()]).encode_to_vec();
    Client::http2(&server.grpc).call(Signal::Traces.method(), "", &request).message::<RpcStatus>();
}

/// The attributes of the span with this name as SQL shows them; its bytes must be what was sent.
fn shown(server: &Server, sent: &Span) -> Json {
    let sql =
        format!("SELECT attributes, encode(payload(seq), 'hex') AS bytes FROM spans WHERE name = '{}'", sent.name);
    let rows = server.sql(&sql);
    assert_eq!(rows.len(), 1);
    assert!(rows[0]["bytes"] == json!(hex(&sent.encode_to_vec())), "payload(seq) is not what was sent");
    serde_json::from_str(rows[0]["attributes"].as_str().unwrap()).unwrap()
}

/// common.proto, AnyValue: every kind, nested lists and maps, bytes that are no UTF-8, an
/// absent value, and a key that comes twice.
#[test]
fn every_kind_of_value_is_shown_as_sent() {
    let mut server = Server::start();
    let mut deep = Some(Value::IntValue(1));
    (0..20).for_each(|_| deep = list(vec![AnyValue { value: deep.take() }]));
    let attributes = vec![
        text("string", "ünï\u{0}\u{1f600}\"\\"),
        text("", "no key"),
        key_value("true", Some(Value::BoolValue(true))),
        key_value("false", Some(Value::BoolValue(false))),
        key_value("min", Some(Value::IntValue(i64::MIN))),
        key_value("double", Some(Value::DoubleValue(-0.1))),
        key_value("nan", Some(Value::DoubleValue(f64::NAN))),
        key_value("bytes", Some(Value::BytesValue(vec![0xff, 0xfe, 0x00, 0x80]))),
        key_value(
            "list",
            list(vec![any(Value::StringValue("a".into())), any(Value::IntValue(1)), AnyValue::default()]),
        ),
        key_value("empty list", list(vec![])),
        key_value(
            "map",
            kvlist(vec![
                text("k", "v"),
                key_value("inner", kvlist(vec![key_value("b", Some(Value::BoolValue(true)))])),
            ]),
        ),
        key_value("lists of maps", list(vec![AnyValue { value: kvlist(vec![text("x", "1")]) }])),
        key_value("deep", deep),
        key_value("absent", None),
        KeyValue { key: "no value".into(), ..Default::default() },
        text("twice", "first"),
        key_value("twice", Some(Value::IntValue(2))),
        text("twice", "third"),
        text("twice#2", "of its own"),
    ];
    let sent = Span { name: "values".into(), attributes: attributes.clone(), ..span(1) };
    send(&server, &sent);
    let mut deep = json!(1);
    (0..20).for_each(|_| deep = json!([deep]));
    let want = json!({
        "string": "ünï\u{0}\u{1f600}\"\\", "": "no key", "true": true, "false": false, "min": i64::MIN, "double": -0.1,
        "nan": "NaN", "bytes": "//4AgA==", "list": ["a", 1, null], "empty list": [],
        "map": {"k": "v", "inner": {"b": true}}, "lists of maps": [{"x": "1"}], "deep": deep, "absent": null,
        "no value": null, "twice": "first", "twice#2": 2, "twice#3": "third", "twice#2#2": "of its own",
    });
    assert_eq!(shown(&server, &sent), want);
    // The same in an event of a span, and as the body of a log record.
    let event = Event { name: "e".into(), attributes: attributes.clone(), ..Default::default() };
    let with_event = Span { name: "event".into(), events: vec![event], ..span(2) };
    send(&server, &with_event);
    let events = server.sql("SELECT events FROM spans WHERE name = 'event'");
    let events: Json = serde_json::from_str(events[0]["events"].as_str().unwrap()).unwrap();
    assert_eq!(events[0]["attributes"], want);
    let body = LogRecord { body: Some(AnyValue { value: kvlist(attributes) }), ..log(1) };
    let request = logs(vec![body.clone()]).encode_to_vec();
    Client::http2(&server.grpc).call(Signal::Logs.method(), "", &request).message::<RpcStatus>();
    let rows = server.sql("SELECT body, encode(payload(seq), 'hex') AS bytes FROM logs WHERE seq > 0");
    assert_eq!(rows[0]["bytes"], json!(hex(&body.encode_to_vec())));
    assert_eq!(serde_json::from_str::<Json>(rows[0]["body"].as_str().unwrap()).unwrap(), want);
    server.stop_and_verify();
}

/// Whole prompts, and more attributes than anybody should have.
#[test]
fn large_values_and_many_attributes_are_shown_as_sent() {
    let mut server = Server::start();
    let prompt = "prompt ".repeat((10 << 20) / 7);
    let large = Span { name: "large".into(), attributes: vec![text("gen_ai.input.messages", &prompt)], ..span(1) };
    send(&server, &large);
    let many: Vec<_> = (0..10_000i64).map(|i| key_value(&format!("key.{i}"), Some(Value::IntValue(i)))).collect();
    let many = Span { name: "many".into(), attributes: many, ..span(2) };
    send(&server, &many);
    let same: Vec<_> = (0..10_000).map(|i| text("key", &i.to_string())).collect();
    let same = Span { name: "same".into(), attributes: same, ..span(3) };
    send(&server, &same);
    assert!(shown(&server, &large)["gen_ai.input.messages"] == json!(prompt), "not the prompt that was sent");
    let shown_many = shown(&server, &many);
    assert_eq!((shown_many.as_object().unwrap().len(), &shown_many["key.9999"]), (10_000, &json!(9999)));
    let shown_same = shown(&server, &same);
    assert_eq!((shown_same.as_object().unwrap().len(), &shown_same["key#10000"]), (10_000, &json!("9999")));
    server.stop_and_verify();
}

/// `service.name` and the rest of a resource are what a sender says of itself: anybody may say
/// "payments". Beside the claim stands who sent it, as the server knows him.
#[test]
fn a_service_name_is_a_claim_and_the_submitter_is_known() {
    let mut server = Server::start();
    send(&server, &span(1));
    let claims = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"peer:10.0.0.1"}},
        {"key":"service.instance.id","value":{"stringValue":"admin"}}]},"scopeSpans":[{"spans":[{
        "traceId":"01010101010101010101010101010101","spanId":"00000000000000ff","name":"claims",
        "attributes":[{"key":"submitter","value":{"stringValue":"root"}}]}]}]}]}"#;
    let more = [("x-forwarded-for", "10.0.0.1"), ("forwarded", "for=10.0.0.1"), ("from", "root@example.com")];
    assert_eq!(Client::http1(&server.otlp_http).post("/v1/traces", JSON, &more, claims).status, 200);
    let rows = server.sql("SELECT service_name, service_instance_id AS instance, submitter FROM spans ORDER BY seq");
    assert_eq!((&rows[0]["service_name"], &rows[0]["submitter"]), (&json!("payments"), &json!("peer:127.0.0.1")));
    let want = json!({"service_name": "peer:10.0.0.1", "instance": "admin", "submitter": "peer:127.0.0.1"});
    assert_eq!(rows[1], want);
    server.stop_and_verify();
}
