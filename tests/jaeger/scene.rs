//! A payment through two services, sent as OTLP/JSON, and a way to ask for it as Jaeger's clients do.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::Server;

/// The payment.
pub const PAYMENT: &str = "83a9efd15c1c98a977e0711cc93ee28b";

/// A check of health, half an hour before it; of 64 bits, as version 1 writes it.
pub const HEALTH: &str = "0000000000000a1f";

/// The same as OTLP and version 3 write it.
pub const HEALTH_LONG: &str = "00000000000000000000000000000a1f";

/// What the server was sent, and when it began.
pub struct Scene {
    pub server: Server,
    /// Start of the payment, ns since 1970; ten minutes ago.
    pub start: u64,
}

/// An attribute of each type that OTLP has.
fn attributes() -> Value {
    let pair = |key: &str, kind: &str, value: Value| json!({"key": key, "value": {kind: value}});
    json!([
        pair("http.status_code", "intValue", json!("500")),
        pair("big", "intValue", json!("9007199254740993")),
        pair("ratio", "doubleValue", json!(0.5)),
        pair("cached", "boolValue", json!(false)),
        pair("raw", "bytesValue", json!("AQID")),
        pair("list", "arrayValue", json!({"values": [{"stringValue": "a"}, {"intValue": "1"}]})),
        pair("nested", "kvlistValue", json!({"values": [{"key": "in", "value": {"boolValue": true}}]})),
        pair("peer", "stringValue", json!("o'brien \"x\"")),
    ])
}

/// The spans of one service.
pub fn resource_spans(service: Option<&str>, tenant: Option<&str>, spans: &[Value]) -> Value {
    let pairs = [("service.name", service), ("tenant.id", tenant), ("host.name", Some("h1"))];
    let pairs = pairs.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let attributes: Vec<Value> =
        pairs.map(|(key, value)| json!({"key": key, "value": {"stringValue": value}})).collect();
    let scope = json!({"name": "tracer", "version": "1.2"});
    json!({"resource": {"attributes": attributes}, "scopeSpans": [{"scope": scope, "spans": spans}]})
}

/// A span that lasts this long, from some time on.
pub fn span(trace: &str, id: u64, parent: u64, name: &str, start: u64, length: u64) -> Value {
    let parent = if parent == 0 { String::new() } else { format!("{parent:016x}") };
    json!({"traceId": trace, "spanId": format!("{id:016x}"), "parentSpanId": parent, "name": name,
        "startTimeUnixNano": start.to_string(), "endTimeUnixNano": (start + length).to_string()})
}

impl Scene {
    /// The payment and the check of health, on a server with these flags.
    pub fn start(flags: &[&str]) -> Self {
        let server = Server::start_in(tempfile::tempdir().unwrap(), flags);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        // In microseconds, so that what Jaeger cuts off is nothing.
        let scene = Self { server, start: (now - 600_000_000_000) / 1_000_000 * 1_000_000 };
        scene.send(&scene.payment());
        scene.server.wait_until_visible();
        scene
    }

    fn payment(&self) -> Value {
        let (start, ms) = (self.start, 1_000_000);
        let mut root = span(PAYMENT, 1, 0, "GET /pay", start, 90 * ms);
        root["kind"] = 2.into();
        root["flags"] = 0x101.into();
        root["status"] = json!({"code": 1});
        let mut call = span(PAYMENT, 2, 1, "call bank", start + 10 * ms, 70 * ms);
        call["kind"] = 3.into();
        let mut transfer = span(PAYMENT, 3, 2, "POST /transfer", start + 20 * ms, 50 * ms);
        transfer["kind"] = 2.into();
        transfer["traceState"] = "a=b".into();
        transfer["status"] = json!({"code": 2, "message": "refused"});
        transfer["attributes"] = attributes();
        let attempt = json!([{"key": "attempt", "value": {"intValue": "2"}}]);
        transfer["events"] =
            json!([{"timeUnixNano": (start + 30 * ms).to_string(), "name": "exception", "attributes": attempt}]);
        transfer["links"] =
            json!([{"traceId": HEALTH_LONG, "spanId": "0000000000000009", "traceState": "c=d", "flags": 1}]);
        let health = span(HEALTH_LONG, 9, 0, "GET /health", start - 1_800_000 * ms, 5 * ms);
        let nameless = span(HEALTH_LONG, 10, 9, "probe", start - 1_799_999 * ms, 2 * ms);
        json!({"resourceSpans": [
            resource_spans(Some("frontend"), None, &[root, call, health]),
            resource_spans(Some("bank"), None, &[transfer]),
            resource_spans(None, None, &[nameless]),
        ]})
    }

    /// Sends a request; it must be acknowledged.
    pub fn send(&self, request: &Value) {
        let url = format!("http://{}/v1/traces", self.server.otlp_http);
        let sent = ureq::post(url).header("Content-Type", "application/json").send(request.to_string()).unwrap();
        assert_eq!(sent.status(), 200);
    }

    /// What a path answers, which must be JSON, with its status.
    pub fn ask(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.server.get(path);
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}")))
    }

    /// What a path answers with 200.
    pub fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask(path);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// The ids of the traces that a search finds, in the order of the answer.
    pub fn found(&self, query: &str) -> Vec<String> {
        let answer = self.get(&format!("/api/traces?{query}"));
        assert!(answer["errors"].is_null(), "{answer}");
        let id = |trace: &Value| trace["traceID"].as_str().unwrap().to_owned();
        answer["data"].as_array().unwrap().iter().map(id).collect()
    }

    /// The start of the payment in microseconds, moved by so many minutes.
    pub fn micros(&self, minutes: i64) -> i64 {
        (self.start / 1000) as i64 + minutes * 60_000_000
    }

    /// The same as RFC 3339 writes it.
    pub fn rfc3339(&self, minutes: i64) -> String {
        let time = UNIX_EPOCH + std::time::Duration::from_micros(self.micros(minutes) as u64);
        let rows = self.server.sql(&format!(
            "SELECT to_char(to_timestamp_micros({}), '%Y-%m-%dT%H:%M:%S%.6fZ') AS t",
            time.duration_since(UNIX_EPOCH).unwrap().as_micros()
        ));
        rows[0]["t"].as_str().unwrap().to_owned()
    }
}

/// The tags of a span or the fields of a log, as `key=value` of a type.
pub fn tags(list: &Value) -> Vec<String> {
    let tag =
        |tag: &Value| format!("{} {}={}", tag["type"].as_str().unwrap(), tag["key"].as_str().unwrap(), tag["value"]);
    list.as_array().unwrap().iter().map(tag).collect()
}
