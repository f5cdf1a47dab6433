//! Every source: from raw OTLP to rows of `events`, by the samples of tests/data/sources, and
//! the same samples broken in every place.

use std::path::PathBuf;

use serde_json::Map;

use super::tests::{context, rows};
use super::*;
use crate::attributes::parse_time;
use crate::rows::Time;
use custody_proto::wire::{AnyValue, Value as Any};
use custody_proto::{Signal, json};
use serde_json::{Value, json};

const FILES: [&str; 9] =
    ["pomerium", "openshell", "openshell_lines", "ocsf", "policy", "tokens", "claude_platform", "gateways", "authz"];

fn place(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/sources").join(name)
}

fn samples(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(place(&format!("{file}.json"))).unwrap();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    assert!(file["origin"].as_str().is_some_and(|origin| origin.len() > 20));
    file["records"].as_array_mut().unwrap().drain(..).collect()
}

/// A value as OTLP/JSON has it.
fn any(value: &Value) -> Value {
    match value {
        Value::Null => json!({}),
        Value::Bool(b) => json!({"boolValue": b}),
        Value::String(s) => json!({"stringValue": s}),
        Value::Number(n) if n.is_i64() => json!({"intValue": n.to_string()}),
        Value::Number(n) => json!({"doubleValue": n}),
        Value::Array(items) => json!({"arrayValue": {"values": items.iter().map(any).collect::<Vec<_>>()}}),
        Value::Object(members) => json!({"kvlistValue": {"values": attributes(members)}}),
    }
}

fn attributes(members: &Map<String, Value>) -> Vec<Value> {
    members.iter().map(|(key, value)| json!({"key": key, "value": any(value)})).collect()
}

/// How a document travels.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Carrier {
    Text,
    Map,
}

/// The rows of a sample.
fn mapped(sample: &Value, carrier: Carrier) -> Vec<EventRow> {
    let none = Map::new();
    let members = |of: &Value| attributes(of.get("attributes").and_then(Value::as_object).unwrap_or(&none));
    let (signal, request) = if let Some(span) = sample.get("span") {
        let number = |name: &str, default: u64| span.get(name).and_then(Value::as_u64).unwrap_or(default).to_string();
        (
            Signal::Traces,
            json!({"resourceSpans": [{"scopeSpans": [{"scope": {"name": span.get("scope")}, "spans": [{
                "traceId": "01".repeat(16), "spanId": "01".repeat(8), "name": span.get("name"),
                "kind": span.get("kind").unwrap_or(&json!(0)), "startTimeUnixNano": number("start", 1000), "endTimeUnixNano": number("end", 3000),
                "status": {"code": span.get("status").unwrap_or(&json!(0))}, "attributes": members(span)}]}]}]}),
        )
    } else {
        let log = &sample["log"];
        let mut record = json!({"timeUnixNano": "5000000000", "attributes": members(log)});
        if let Some(body) = log.get("body") {
            record["body"] = if carrier == Carrier::Text && !body.is_string() {
                json!({"stringValue": body.to_string()})
            } else {
                any(body)
            };
        }
        if let Some(name) = log.get("event_name") {
            record["eventName"] = name.clone();
        }
        (Signal::Logs, json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}))
    };
    rows(signal, &json::transcode(signal, request.to_string().as_bytes()).unwrap())
}

/// What differs from what the sample tells.
fn differences(event: &Map<String, Value>, row: &EventRow) -> Vec<String> {
    let batch = EventRow::batch(std::slice::from_ref(row));
    let found = crate::format::rows(&[batch]).unwrap().remove(0);
    let said: Value = serde_json::from_str(&row.attributes).unwrap();
    let mut out = Vec::new();
    for (column, want) in event {
        match column.as_str() {
            "event_time" => {
                let want = parse_time(want.as_str().unwrap()).unwrap();
                if row.event_time != want {
                    out.push(format!("event_time {:?}", row.event_time));
                }
            }
            "attributes" => {
                for (name, want) in want.as_object().unwrap() {
                    // A null stands for what must not be there.
                    if said.get(name).unwrap_or(&Value::Null) != want {
                        out.push(format!("attribute {name}: {}", said.get(name).unwrap_or(&Value::Null)));
                    }
                }
            }
            _ => {
                let found = found.get(column).unwrap_or(&Value::Null);
                if found != want {
                    out.push(format!("{column}: {found}, not {want}"));
                }
            }
        }
    }
    out
}

#[test]
fn every_source_by_its_samples() {
    let mut wrong = Vec::new();
    for file in FILES {
        for sample in samples(file) {
            let what = format!("{file}: {}", sample["what"]);
            for carrier in [Carrier::Text, Carrier::Map] {
                let rows = mapped(&sample, carrier);
                // One event, or none, or a list of several.
                let one = std::slice::from_ref(&sample["event"]);
                let wanted = sample["events"].as_array().map_or(one, Vec::as_slice);
                let wanted: Vec<_> = wanted.iter().filter_map(Value::as_object).collect();
                if wanted.len() != rows.len() {
                    wrong.push(format!("{what} ({carrier:?}): {} rows {rows:?}", rows.len()));
                    continue;
                }
                for (event, row) in wanted.into_iter().zip(&rows) {
                    assert_eq!(row.mapping_version, MAPPING_VERSION);
                    wrong.extend(differences(event, row).into_iter().map(|d| format!("{what} ({carrier:?}): {d}")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What comes in as one producer's shape goes out as OCSF that is valid, whatever it was.
#[test]
fn every_sample_is_valid_ocsf_again() {
    use crate::ocsf::{Context, Format, Schema, encode};
    let mut seen = 0;
    for row in FILES.iter().flat_map(|file| samples(file)).flat_map(|sample| mapped(&sample, Carrier::Text)) {
        let row = EventRow { record_hash: "0f".repeat(32), ..row };
        let mut text = String::new();
        encode(Format::Ocsf, &row, &Context::of("example.org/log"), &mut text);
        let event: Value = serde_json::from_str(&text).unwrap();
        let faults: Vec<String> = Schema::get().validate(&event).faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults, Vec::<String>::new(), "{row:?}: {text}");
        seen += 1;
    }
    assert!(seen > 80);
}

/// Who serves and who calls: both sides of one session, as the `mcp` package exports them.
#[test]
fn mcp_as_its_sdk_exports_it() {
    let rows = rows(Signal::Traces, &std::fs::read(place("mcp/traces.pb")).unwrap());
    let mut told: Vec<_> = rows
        .iter()
        .map(|r| {
            (r.tool_call_id.as_deref(), r.kind.as_str(), r.tool.as_deref(), r.action.as_deref(), r.status.as_deref())
        })
        .collect();
    told.sort_unstable();
    let call = |id, status| (Some(id), "tool_call", Some("get_weather"), Some("get_weather"), Some(status));
    let read = (None, "context_retrieval", None, Some("read"), Some("unset"));
    // A tool's error is one on the server's side alone: to the client the call was answered.
    assert_eq!(told, [read, read, call("2", "unset"), call("2", "unset"), call("4", "error"), call("4", "unset")]);
    assert!(rows.iter().all(|r| r.source == "mcp" && r.service.as_deref() == Some("weather")));
    let server = rows.iter().filter(|r| rows.iter().any(|c| c.span_id == r.parent_span_id));
    assert_eq!(server.count(), 3, "the server's span is a child of the client's");
}

/// What a span tells of in its own events.
#[test]
fn outputs_in_span_events() {
    let span = json!({"resourceSpans": [{"scopeSpans": [{"spans": [{
        "traceId": "01".repeat(16), "spanId": "01".repeat(8), "name": "chat", "startTimeUnixNano": "1000",
        "attributes": attributes(json!({"gen_ai.operation.name": "chat"}).as_object().unwrap()),
        "events": [{"name": "authz.output", "timeUnixNano": "2000",
                    "attributes": attributes(json!({"authz.output.destination": "mailto:x@example.com"}).as_object().unwrap())},
                   {"name": "authz.grant.issued", "attributes": attributes(json!({"authz.grant.id": "g"}).as_object().unwrap())},
                   {"name": "exception"}]}]}]}]});
    let rows = rows(Signal::Traces, &json::transcode(Signal::Traces, span.to_string().as_bytes()).unwrap());
    let told: Vec<_> = rows.iter().map(|r| (r.kind.as_str(), r.resource.as_deref(), r.event_time.0)).collect();
    assert_eq!(told, [("model_call", None, 1000), ("output", Some("mailto:x@example.com"), 2000)]);
}

/// Erasures and changes of keys are events by the ledger's own hand alone.
#[test]
fn the_ledgers_own_records() {
    let (resource, scope) = (Resource::default(), InstrumentationScope::default());
    let attribute = |key, value| KeyValue { key, value: Some(AnyValue { value: Some(Any::StringValue(value)) }) };
    let log = LogRecord {
        event_name: "custody.log.erasure",
        attributes: vec![
            attribute("custody.erasure.seqs", "7,9-12"),
            attribute("custody.erasure.cause", "request"),
            attribute("custody.erasure.identity", "os:dpo"),
        ],
        ..LogRecord::default()
    };
    let by = |submitter| map_log(&RecordContext { submitter, ..context(&resource, &scope) }, &log);
    let rows = by(custody_store::system::SYSTEM_IDENTITY);
    let told = rows.first().map(|r| (r.kind.as_str(), r.resource.as_deref(), r.initiator_id.as_deref()));
    assert_eq!(told, Some(("erasure", Some("seq:7,9-12"), Some("os:dpo"))));
    assert!(by("peer:127.0.0.1").is_empty());
}

/// A generator of numbers that is the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// Something that stands where another type should; nothing in it says yes.
fn nonsense(random: &mut Random) -> Value {
    let mut deep = json!([]);
    for _ in 0..20 {
        deep = json!([deep]);
    }
    let pool = [
        Value::Null,
        json!(-7),
        json!(1.5e300),
        json!(i64::MAX),
        json!(""),
        json!("*"),
        json!("\u{0}\n\u{202e}x"),
        json!("9".repeat(100_000)),
        json!([]),
        json!({}),
        json!([[], {}, null, 4]),
        deep,
    ];
    pool[random.below(pool.len())].clone()
}

/// Replaces or takes away something at a place that is drawn at random.
fn break_at_random(value: &mut Value, random: &mut Random) {
    let children = match value {
        Value::Object(members) => members.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    };
    if children == 0 || random.below(5) == 0 {
        *value = nonsense(random);
        return;
    }
    let at = random.below(children);
    match value {
        Value::Object(members) => {
            let key = members.keys().nth(at).unwrap().clone();
            if random.below(4) == 0 {
                members.remove(&key);
            } else {
                break_at_random(&mut members[&key], random);
            }
        }
        Value::Array(items) => break_at_random(&mut items[at], random),
        _ => {}
    }
}

#[test]
fn broken_records_panic_nowhere_and_allow_nothing() {
    let mut random = Random(3);
    let mut broken = 0;
    for sample in FILES.iter().flat_map(|file| samples(file)) {
        let allows = |rows: &[EventRow]| {
            rows.iter()
                .any(|r| matches!(r.decision.as_deref(), Some("allow" | "approved")) && r.invalid_reasons.is_empty())
        };
        // What says both yes and no says yes when the no is taken away, and a yes with a fault is
        // sound when something else takes the fault's place.
        let text = sample.to_string();
        let both = |yes: &str, no: &str| text.contains(yes) && text.contains(no);
        let contradicts = both("\"action_id\":1", "\"disposition_id\":2") || both("\"allow\":true", "\"deny\":true");
        let faulty = sample["event"]["invalid_reasons"].as_array().is_some_and(|reasons| !reasons.is_empty());
        let allowed = allows(&mapped(&sample, Carrier::Text)) || contradicts || faulty;
        for _ in 0..200 {
            let mut hostile = sample.clone();
            let part = if hostile.get("span").is_some() { "/span/attributes" } else { "/log/body" };
            let part = if hostile.pointer(part).is_some() { part } else { "/log/attributes" };
            break_at_random(hostile.pointer_mut(part).unwrap(), &mut random);
            let rows = mapped(&hostile, if random.below(2) == 0 { Carrier::Text } else { Carrier::Map });
            assert!(allowed || !allows(&rows), "{}: {hostile}", sample["what"]);
            for row in rows
                .iter()
                .filter(|row| row.kind.starts_with("grant_") && row.source == "oauth" && row.invalid_reasons.is_empty())
            {
                let said: Value = serde_json::from_str(&row.attributes).unwrap();
                assert!(said["authz.grant.expires_at"].is_i64(), "a grant without an end: {hostile}");
                assert!(!said["authz.grant.actions"].to_string().contains('*'), "a grant of everything: {hostile}");
            }
            broken += 1;
        }
    }
    assert!(broken > 20_000);
}

#[test]
fn what_is_too_large_or_too_deep_is_no_document() {
    let body = |text: String| json!({"log": {"body": text}});
    let event = r#"{"class_uid":4001,"action_id":1,"activity_name":"Open","x":"#;
    for (what, text, rows) in [
        ("as it should be", format!("{event}1}}"), 1),
        ("too deep", format!("{event}{}{}}}", "[".repeat(100_000), "]".repeat(100_000)), 0),
        ("too long", format!("{event}\"{}\"}}", "x".repeat(5 << 20)), 0),
        ("cut off", event.to_owned(), 0),
        ("a list", "[1]".into(), 0),
    ] {
        // The body is text here, and not a document that is made text.
        let request =
            json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": any(&body(text)["log"]["body"])}]}]}]});
        let bytes = json::transcode(Signal::Logs, request.to_string().as_bytes()).unwrap();
        assert_eq!(super::tests::rows(Signal::Logs, &bytes).len(), rows, "{what}");
    }
    // A batch whose rows would repeat more than there is stays a row of logs.
    let batch = |name: String| {
        let items: Vec<_> = (0..300).map(|i| json!({"resource": {"type": "t", "id": i.to_string()}})).collect();
        json!({"log": {"body": {"request": {"subject": {"type": "user", "id": name}, "action": {"name": "b"}, "evaluations": items},
               "response": {"evaluations": vec![json!({"decision": true}); 300]}}}})
    };
    assert_eq!(mapped(&batch("a".into()), Carrier::Text).len(), 256, "a list is read so far");
    assert_eq!(mapped(&batch("x".repeat(1 << 20)), Carrier::Text).len(), 0);
    // A large document is an event, without being repeated in its row.
    let large = json!({"log": {"body": {"class_uid": 4001, "action_id": 1, "x": "x".repeat(1 << 20)}}});
    let row = mapped(&large, Carrier::Text).remove(0);
    assert!(row.decision.as_deref() == Some("allow") && row.attributes.len() < 100, "{}", row.attributes.len());
    assert_eq!(row.event_time, Time(5_000_000_000));
}
