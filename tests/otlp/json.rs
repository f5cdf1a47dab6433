//! JSON Protobuf Encoding.

use serde_json::{Value, json};

use crate::requests::{START, Signal, hex, span, traces};
use crate::support::Server;
use crate::wire::{Client, JSON};
use prost::Message as _;

fn spans_json(fields: &str) -> String {
    format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{fields}}}]}}]}}]}}"#)
}

/// The fields of a span with these ids, then `more`.
fn ids(n: u64, more: &str) -> String {
    format!(r#""traceId":"5b8efff798038103d269b633813fc60c","spanId":"{:016x}",{more}"#, n + 1)
}

/// "case-insensitive hex-encoded strings [...] integer enum values [...] unknown names [...]
/// lowerCamelCase"; 64-bit integers as strings or numbers; `null` is an absent field; the
/// special numbers; base64 of either alphabet (ProtoJSON, "JSON representation").
#[test]
fn what_the_mapping_allows_is_read() {
    let mut server = Server::start();
    let mut http = Client::http1(&server.otlp_http);
    let max = u64::MAX;
    let bodies = [
        spans_json(&ids(0, r#""traceId":null,"name":"ids in lower case""#)),
        spans_json(
            r#""traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"ABCDEFABCDEF0001","parentSpanId":"EEE19B7EC3C1B174","name":"ids in upper case""#,
        ),
        spans_json(&ids(1, r#""name":"kinds","kind":3,"status":{"code":2,"message":"m"},"flags":257"#)),
        spans_json(&ids(
            2,
            &format!(r#""name":"times","startTimeUnixNano":"{START}","endTimeUnixNano":{}"#, START + 1),
        )),
        spans_json(&ids(
            3,
            r#""name":"unknown","newField":{"a":[1,{"b":null}],"a":2},"kind2":"x","attributes":null,"events":[]"#,
        )),
        spans_json(&ids(
            4,
            r#""name":"snake","start_time_unix_nano":"1700000000000000000","end_time_unix_nano":1700000000000000007"#,
        )),
        spans_json(&ids(5, &format!(r#""name":"edges","startTimeUnixNano":{max},"droppedLinksCount":4294967295"#))),
        spans_json(&ids(6, r#""name":"\u00e4\ud83d\ude00\u0000\"","traceState":"a=b""#)),
        spans_json(&ids(
            7,
            r#""name":"values","attributes":[{"key":"min","value":{"intValue":"-9223372036854775808"}},
            {"key":"max","value":{"intValue":9223372036854775807}},{"key":"exp","value":{"intValue":12e2}},
            {"key":"nan","value":{"doubleValue":"NaN"}},{"key":"inf","value":{"doubleValue":"-Infinity"}},
            {"key":"int","value":{"doubleValue":1}},{"key":"std","value":{"bytesValue":"//79"}},
            {"key":"url","value":{"bytesValue":"__79"}},{"key":"bare","value":{"bytesValue":"/w"}},
            {"key":"none","value":{}},{"key":"null","value":null},{"key":"false","value":{"boolValue":false}}]"#,
        )),
        // Half of an emoji, as JavaScript leaves it when it cuts a text: the batch is not lost for it.
        spans_json(&ids(8, r#""name":"cut \ud83d""#)),
    ];
    for body in &bodies {
        let told = http.post("/v1/traces", JSON, &[], format!("\n {body}\r\n\t"));
        assert_eq!((told.status, &told.body[..]), (200, &b"{}"[..]), "{body}: {told:?}");
    }
    let rows = server.sql(
        "SELECT name, trace_id, parent_span_id, kind, status_code, flags, duration_ns, attributes FROM spans ORDER BY seq",
    );
    let row = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("{name}: {rows:?}"));
    let upper = row("ids in upper case");
    assert_eq!((&upper["trace_id"], &upper["parent_span_id"]), (&row("times")["trace_id"], &json!("eee19b7ec3c1b174")));
    let kinds = row("kinds");
    assert_eq!(
        (&kinds["kind"], &kinds["status_code"], &kinds["flags"]),
        (&json!("client"), &json!("error"), &json!(257))
    );
    assert_eq!(row("times")["duration_ns"], 1);
    assert_eq!(row("unknown")["attributes"], "{}");
    assert_eq!(row("snake")["duration_ns"], 7, "to ignore such a name would lose what it says");
    row("edges");
    row("ä😀\0\"");
    row("cut \u{fffd}");
    let values: Value = serde_json::from_str(row("values")["attributes"].as_str().unwrap()).unwrap();
    let want = json!({"min": i64::MIN, "max": i64::MAX, "exp": 1200, "nan": "NaN", "inf": "-inf", "int": 1.0,
        "std": "//79", "url": "//79", "bare": "/w==", "none": null, "null": null, "false": false});
    assert_eq!(values, want);
    let flags = server.sql("SELECT count(*) AS n FROM ledger WHERE array_has(flags, 'json')");
    assert_eq!(flags, [json!({"n": bodies.len()})], "each block says that it was transcoded");
    server.stop_and_verify();
}

/// The same, from its other side: what is not in the mapping is bad data, and the error names
/// the place. (Enum names, a field twice, two of a `oneof`, null in a list: ProtoJSON's
/// conformance tests expect refusals.)
#[test]
fn what_the_mapping_does_not_allow_is_bad_data() {
    let mut server = Server::start();
    let mut http = Client::http1(&server.otlp_http);
    let value = |value: &str| spans_json(&ids(1, &format!(r#""attributes":[{{"key":"k","value":{{{value}}}}}]"#)));
    let nested = |depth: usize| {
        let (open, close) = (r#"{"arrayValue":{"values":["#.repeat(depth), "]}}".repeat(depth));
        spans_json(&ids(1, &format!(r#""attributes":[{{"key":"k","value":{open}{{}}{close}}}]"#)))
    };
    for (body, why) in [
        (spans_json(&ids(1, r#""kind":"SPAN_KIND_SERVER""#)), "kind must be the enum's integer"),
        (spans_json(&ids(1, r#""status":{"code":"STATUS_CODE_OK"}"#)), "code must be the enum's integer"),
        (spans_json(&ids(1, r#""name":"a","name":"b""#)), "Span has name more than once"),
        (spans_json(&ids(1, r#""startTimeUnixNano":-1"#)), "startTimeUnixNano is out of range"),
        (spans_json(&ids(1, r#""startTimeUnixNano":"18446744073709551616""#)), "startTimeUnixNano is out of range"),
        (spans_json(&ids(1, r#""kind":2147483648"#)), "kind is out of range"),
        (spans_json(r#""traceId":"5b8e""5b8e""#), "line 1 column"),
        (spans_json(r#""traceId":"5b8efff798038103d269b633813fc60""#), "traceId must be hexadecimal"),
        (spans_json(r#""traceId":"W47/95gDgQPSabYzgT/GDA==""#), "traceId must be hexadecimal"),
        (
            value(r#""stringValue":"a","intValue":1"#),
            "AnyValue has intValue more than once, or beside what it excludes",
        ),
        (value(r#""arrayValue":{"values":[null]}"#), "null is no element of values"),
        (value(r#""intValue":"9223372036854775808""#), "intValue is out of range"),
        (value(r#""intValue":1.5"#), "intValue must be a whole number"),
        (value(r#""doubleValue":"inf""#), "doubleValue must be a number"),
        (value(r#""doubleValue":NaN"#), "line 1 column"),
        (value(r#""bytesValue":"no base64!""#), "bytesValue must be base64"),
        (value(r#""stringValue":"\ud8zz""#), "line 1 column"),
        (nested(60), "recursion limit"),
        ("[]".into(), "an object (ExportTraceServiceRequest)"),
        ("null".into(), "an object"),
        ("\"x\"".into(), "an object"),
        ("7".into(), "an object"),
        ("".into(), "EOF"),
        ("{} {}".into(), "trailing characters"),
        ("{}x".into(), "trailing characters"),
        ("\u{feff}{}".into(), "line 1 column 1"),
        ("{'a':1}".into(), "line 1 column 2"),
        ("{\"resourceSpans\":[],}".into(), "trailing comma"),
        (r#"{"resourceSpans":{}}"#.into(), "resourceSpans must be a list"),
    ] {
        let told = http.post("/v1/traces", JSON, &[], body.clone());
        assert_eq!(told.status, 400, "{body}: {told:?}");
        assert!(told.problem().1.contains(why), "{body}: {told:?}");
    }
    let wrong = [&b"{\"unknown\":\""[..], b"\xff", b"\"}"].concat();
    let told = http.post("/v1/traces", JSON, &[], wrong);
    assert_eq!(told.status, 400);
    assert!(told.problem().1.contains("not UTF-8 from byte 12"), "{told:?}");
    let deep = http.post("/v1/traces", JSON, &[], "[".repeat(1 << 20));
    assert_eq!(deep.status, 400, "neither is the stack of the server the limit");
    let deep = format!("{{\"unknown\":{}", "[".repeat(1 << 20));
    assert_eq!(http.post("/v1/traces", JSON, &[], deep).status, 400);
    assert_eq!(http.post("/v1/traces", JSON, &[], nested(20)).status, 200);
    assert_eq!(server.stop_and_verify()["records"], 2);
}

/// What is kept of JSON is its transcoding, the same bytes that a protobuf exporter sends,
/// and the ledger says so.
#[test]
fn json_is_kept_as_the_protobuf_that_it_means() {
    let mut server = Server::start();
    Client::http1(&server.otlp_http).post("/v1/traces", JSON, &[], Signal::Traces.json(1));
    let kept = server.sql(
        "SELECT encode(payload(seq), 'hex') AS bytes, array_has(flags, 'json') AS json FROM ledger WHERE kind = 'span'",
    );
    assert_eq!(kept, [json!({"bytes": hex(&span(1).encode_to_vec()), "json": true})]);
    // And its block is that of the same request in protobuf: to send it so is a retry.
    let protobuf = traces(vec![span(1)]).encode_to_vec();
    let told = Client::http1(&server.otlp_http).post("/v1/traces", crate::wire::PROTOBUF, &[], protobuf);
    assert_eq!(told.status, 200);
    assert_eq!(server.stop_and_verify()["records"], 2);
}
