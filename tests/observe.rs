//! What the server says of itself: metrics as Prometheus' own parsers read them, with
//! exact counts; readiness while it drains and when the disk fills; log lines.

#[path = "observe/counted.rs"]
mod counted;
#[path = "observe/documents.rs"]
mod documents;
mod support;
#[path = "observe/traces.rs"]
mod traces;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use serde_json::Value;
use support::{Request, Server, until};

/// A span whose ids are made of these numbers; a trace id of zeros is no valid one.
fn span(trace: u8, span: u8, name: &str) -> Span {
    Span { trace_id: vec![trace; 16], span_id: vec![span; 8], name: name.into(), ..Default::default() }
}

/// Spans under a resource with one attribute.
fn under(key: &str, value: &str, spans: Vec<Span>) -> ResourceSpans {
    let value = Some(AnyValue { value: Some(any_value::Value::StringValue(value.into())) });
    let attributes = vec![KeyValue { key: key.into(), value, ..Default::default() }];
    let resource = Some(Resource { attributes, ..Default::default() });
    ResourceSpans { resource, scope_spans: vec![ScopeSpans { spans, ..Default::default() }], ..Default::default() }
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest { resource_spans: vec![under("service.name", "app", spans)] }
}

/// POST to OTLP/HTTP: status and body.
fn post(server: &Server, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Vec<u8>) {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let mut request = agent.post(format!("http://{}{path}", server.otlp_http));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut answer = request.send(body).unwrap();
    (answer.status().as_u16(), answer.body_mut().read_to_vec().unwrap())
}

const PROTOBUF: (&str, &str) = ("Content-Type", "application/x-protobuf");

fn post_spans(server: &Server, request: &ExportTraceServiceRequest) -> u16 {
    post(server, "/v1/traces", &[PROTOBUF], &request.encode_to_vec()).0
}

/// The metrics, read by Prometheus' own parsers: families and samples.
pub struct Metrics(Value);

impl Metrics {
    /// Those of a server, now.
    pub fn of(server: &Server) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/metrics.py");
        let url = format!("http://{}/metrics", server.http);
        let output = Command::new(support::python()).args([script, &url]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(serde_json::from_slice(&output.stdout).unwrap())
    }

    /// A sample, with its labels in order.
    pub fn get(&self, name: &str) -> f64 {
        self.0["samples"][name].as_f64().unwrap_or_else(|| panic!("no {name}: {:#}", self.0["samples"]))
    }

    /// Each family as a row of docs/monitoring/metrics.md.
    pub fn rows(&self) -> Vec<&str> {
        self.0["rows"].as_array().unwrap().iter().map(|row| row.as_str().unwrap()).collect()
    }

    /// Whether there is a sample of this name, whatever its labels.
    pub fn has(&self, name: &str) -> bool {
        let samples = self.0["samples"].as_object().unwrap();
        samples.keys().any(|sample| sample.split('{').next() == Some(name))
    }

    fn assert(&self, expected: &[(&str, f64)]) {
        for (name, value) in expected {
            assert_eq!(self.get(name), *value, "{name}");
        }
    }
}

#[test]
fn counts_are_exact() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(folder, &["--request-bytes-max", "20000"]);
    let three = request(vec![span(1, 1, "a"), span(1, 2, "b"), span(1, 3, "c")]);
    assert_eq!(post_spans(&server, &three), 200);
    assert_eq!(post_spans(&server, &three), 200, "a retry");
    let partial = request(vec![span(2, 1, "a"), span(0, 2, "no trace id"), span(2, 0, "no span id")]);
    assert_eq!(post_spans(&server, &partial), 200);
    assert_eq!(post_spans(&server, &request(vec![span(1, 1, "something else")])), 200, "a conflict");
    let log = br#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"one"}},{}]}]}]}"#;
    let json = ("Content-Type", "application/json");
    let zipped = zstd::encode_all(&log[..], 3).unwrap();
    assert_eq!(post(&server, "/v1/logs", &[json, ("Content-Encoding", "zstd")], &zipped).0, 200);
    assert_eq!(post(&server, "/v1/traces", &[PROTOBUF], b"garbage").0, 400);
    assert_eq!(post(&server, "/v1/traces", &[PROTOBUF], &[0; 20_001]).0, 413);
    assert_eq!(post(&server, "/v1/traces", &[("Content-Type", "text/plain")], b"x").0, 415);
    let by_grpc = request(vec![span(3, 1, "d"), span(3, 2, "e")]);
    server.send_grpc(vec![Request::Traces(by_grpc.clone())]);
    ask(&server);
    server.wait_until_signed(10);

    let received = 2 * three.encoded_len()
        + partial.encoded_len()
        + request(vec![span(1, 1, "something else")]).encoded_len()
        + "garbage".len()
        + by_grpc.encoded_len();
    let metrics = Metrics::of(&server);
    metrics.assert(&[
        ("custody_ingest_requests_total{signal=span,transport=http}", 4.0),
        ("custody_ingest_requests_total{signal=log,transport=http}", 1.0),
        ("custody_ingest_requests_total{signal=span,transport=grpc}", 1.0),
        ("custody_ingest_records_total{signal=span,transport=http}", 5.0),
        ("custody_ingest_records_total{signal=log,transport=http}", 2.0),
        ("custody_ingest_records_total{signal=span,transport=grpc}", 2.0),
        ("custody_ingest_records_total{signal=metric,transport=grpc}", 0.0),
        ("custody_ingest_rejected_records_total{reason=invalid,signal=span}", 2.0),
        ("custody_ingest_duplicate_records_total{signal=span}", 3.0),
        ("custody_ingest_conflicting_spans_total", 1.0),
        ("custody_ingest_refused_requests_total{reason=invalid,transport=http}", 1.0),
        ("custody_ingest_refused_requests_total{reason=too_large,transport=http}", 1.0),
        ("custody_ingest_refused_requests_total{reason=unsupported,transport=http}", 1.0),
        ("custody_ingest_refused_requests_total{reason=invalid,transport=grpc}", 0.0),
        // The frame of gRPC has five bytes.
        ("custody_ingest_received_bytes_total", (received + zipped.len() + 5) as f64),
        ("custody_ingest_decompressed_bytes_total", (received + log.len()) as f64),
        ("custody_ingest_request_duration_seconds_count{transport=http}", 8.0),
        ("custody_ingest_request_duration_seconds_bucket{le=+Inf,transport=http}", 8.0),
        ("custody_ingest_request_duration_seconds_count{transport=grpc}", 1.0),
        ("custody_ingest_requests_in_flight{transport=http}", 0.0),
        ("custody_ingest_in_flight_bytes", 0.0),
        ("custody_queue_requests", 0.0),
        ("custody_queue_bytes", 0.0),
        // One at a time: each request was a group of its own, and the retry wrote nothing.
        ("custody_log_commit_duration_seconds_count", 6.0),
        ("custody_log_fsync_duration_seconds_count", 5.0),
        ("custody_log_commit_requests_sum", 6.0),
        ("custody_log_commit_records_sum", 9.0),
        ("custody_log_commit_records_bucket{le=2.0}", 5.0),
        // The genesis record, and those above.
        ("custody_log_records", 10.0),
        ("custody_checkpoint_records", 10.0),
        ("custody_log_unsigned_records", 0.0),
        ("custody_projection_lag_records", 0.0),
        ("custody_projection_up", 1.0),
        ("custody_signer_up", 1.0),
        ("custody_ready", 1.0),
        ("custody_sql_queries_total", 3.0),
        ("custody_sql_errors_total{reason=invalid_query}", 1.0),
        ("custody_sql_errors_total{reason=read_only}", 1.0),
        ("custody_sql_queries_running", 0.0),
        ("custody_sql_query_duration_seconds_count", 3.0),
        ("custody_event_pages_total", 1.0),
        (&format!("custody_build_info{{version={}}}", env!("CARGO_PKG_VERSION")), 1.0),
    ]);
    plausible(&metrics);
    a_stream_counts_while_it_is_open(&server);
    server.stop_and_verify();
}

/// Queries and a page of events.
fn ask(server: &Server) {
    server.wait_until_visible();
    server.custody(&["sql", "SELECT 1", "--format", "json"]);
    for wrong in ["SELECT nothing FROM nowhere", "DROP TABLE spans"] {
        assert!(!server.custody_output(&["sql", wrong]).status.success());
    }
    assert_eq!(server.get("/api/v1/events?limit=1").0, 200);
}

fn plausible(metrics: &Metrics) {
    let between = |name: &str, low: f64, high: f64| {
        let value = metrics.get(name);
        assert!(low <= value && value <= high, "{name} is {value}");
    };
    between("custody_log_commit_duration_seconds_sum", metrics.get("custody_log_fsync_duration_seconds_sum"), 60.0);
    between("custody_log_fsync_duration_seconds_sum", 1e-7, 60.0);
    between("custody_checkpoint_age_seconds", 0.0, 60.0);
    between("custody_disk_log_bytes", 1e3, 1e9);
    between("custody_disk_free_bytes", 1e6, 1e18);
    between("process_resident_memory_bytes", 1e6, 4e9);
    between("process_cpu_seconds_total", 0.0, 600.0);
    between("process_open_fds", 5.0, metrics.get("process_max_fds"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    between("process_start_time_seconds", now - 600.0, now + 1.0);
    between("custody_checkpoint_timestamp_seconds", now - 60.0, now + 1.0);
}

fn a_stream_counts_while_it_is_open(server: &Server) {
    let mut stream = TcpStream::connect(&server.http).unwrap();
    write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").unwrap();
    until(|| server.get("/metrics").1.contains("\ncustody_event_streams 1\n"));
    drop(stream);
    // The server sees that it has gone when it next writes to it.
    let record = request(vec![span(9, 9, "chat")]);
    assert_eq!(post_spans(server, &record), 200);
}

#[test]
fn readiness_says_what_drains_and_what_was_begun_is_finished() {
    // It waits for this test, however slow the machine is.
    let flags = ["--drain-timeout", "600", "--body-timeout", "600"];
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &flags);
    let (status, text) = server.get("/readyz");
    let state: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &state["ready"]), (200, &Value::Bool(true)), "{text}");
    for (part, well) in
        [("log", "ok"), ("receivers", "accepting"), ("projection", "ok"), ("signer", "ok"), ("disk", "ok")]
    {
        assert_eq!(state["parts"][part]["state"], well, "{part}");
    }
    // A request that has begun holds the drain open.
    let body = request(vec![span(1, 1, "slow")]).encode_to_vec();
    let mut slow = TcpStream::connect(&server.otlp_http).unwrap();
    write!(
        slow,
        "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    slow.write_all(&body[..5]).unwrap();
    let begun = "\ncustody_ingest_requests_in_flight{transport=\"http\"} 1\n";
    until(|| server.get("/metrics").1.contains(begun));
    assert!(Command::new("kill").arg(server.pid().to_string()).status().unwrap().success());
    until(|| server.get("/readyz").0 == 503);
    let state: Value = serde_json::from_str(&server.get("/readyz").1).unwrap();
    assert_eq!(state["parts"]["receivers"]["state"], "draining", "{state:#}");
    assert!(state["reasons"][0].as_str().unwrap().contains("stopping"), "{state:#}");
    assert!(server.get("/metrics").1.contains("\ncustody_ready 0\n"));
    assert_eq!(server.get("/healthz"), (200, "ok\n".into()), "it lives all the same");
    slow.write_all(&body[5..]).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.stop_and_verify()["records"], 2);
}

#[test]
fn a_disk_that_fills_refuses_before_it_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(folder, &["--disk-free-min", "4611686018427387904"]);
    let spans = request(vec![span(1, 1, "a")]);
    let (status, body) = post(&server, "/v1/traces", &[PROTOBUF], &spans.encode_to_vec());
    assert_eq!(status, 503);
    assert!(String::from_utf8_lossy(&body).contains("disk"), "{body:?}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(async {
        let mut client = TraceServiceClient::connect(format!("http://{}", server.grpc)).await.unwrap();
        client.export(spans).await.unwrap_err()
    });
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    let (status, text) = server.get("/readyz");
    let state: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 503);
    assert_eq!(
        (&state["parts"]["disk"]["state"], &state["parts"]["receivers"]["state"]),
        (&"low".into(), &"refusing".into())
    );
    Metrics::of(&server).assert(&[
        ("custody_ingest_refused_requests_total{reason=disk_low,transport=http}", 1.0),
        ("custody_ingest_refused_requests_total{reason=disk_low,transport=grpc}", 1.0),
        ("custody_log_records", 1.0),
        ("custody_ready", 0.0),
    ]);
    server.stop_and_verify();
}

/// A policy whose one witness is at this address.
fn policy(server_folder: &std::path::Path, url: &str) -> std::path::PathBuf {
    let state = server_folder.join("witness");
    let witness = custody_store::witness::Witness::open(&state, "w.example", None, vec![]).unwrap();
    let path = server_folder.join("policy");
    std::fs::write(&path, format!("witness w {} {url}\nquorum w\n", witness.verifiers()[0])).unwrap();
    path
}

#[test]
fn log_lines_are_objects_and_nothing_from_outside_leaves_its_line() {
    // A witness that answers with what a terminal would obey.
    let evil = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", evil.local_addr().unwrap());
    let witness = std::thread::Builder::new().name("witness".into()).spawn(move || {
        for stream in evil.incoming().take(2) {
            let mut stream = stream.unwrap();
            read_request(&mut stream);
            let body = "\x1b[31mred\x07\u{9b}2J\u{202e}";
            let length = body.len();
            write!(stream, "HTTP/1.1 403 No\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        }
    });
    let witness = witness.unwrap();
    for format in ["json", "text"] {
        let folder = tempfile::tempdir().unwrap();
        let policy = policy(folder.path(), &url);
        let flags = ["--witness-policy", policy.to_str().unwrap(), "--log-format", format, "--log-level", "info"];
        let mut server = Server::start_in(folder, &flags);
        let log = server.path().join("stderr.log");
        let lines = || std::fs::read_to_string(&log).unwrap();
        until(|| lines().contains("red"));
        server.stop();
        let lines = lines();
        assert!(!lines.contains(|c: char| c.is_control() && c != '\n'), "{lines:?}");
        if format == "json" {
            assert!(lines.contains("\\u001b[31mred\\u0007\\u009b2J\\u202e"), "{lines}");
            let messages: Vec<String> = lines.lines().map(message).collect();
            for wanted in ["started", "stopping: finishing what was accepted"] {
                assert!(messages.iter().any(|message| message == wanted), "{messages:?}");
            }
        }
    }
    witness.join().unwrap();
}

/// Reads a request with a body to its end: to close before would break the answer off. Gives its first line.
fn read_request(stream: &mut TcpStream) -> String {
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&request).to_lowercase();
        let head = text.split_once("\r\n\r\n").map(|(head, _)| head);
        let length = head.and_then(|head| head.lines().find_map(|line| line.strip_prefix("content-length:")));
        let length = length.map(|length| length.trim().parse::<usize>().unwrap());
        // The head of a request is ASCII.
        if length.zip(head).is_some_and(|(length, head)| request.len() >= head.len() + 4 + length) {
            return String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
        }
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "the request broke off: {text}");
        request.extend_from_slice(&piece[..read]);
    }
}

/// The message of a line, which must be an object with just these keys.
fn message(line: &str) -> String {
    let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    let keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["time", "level", "target", "message", "fields"]);
    assert!(object["fields"].is_object());
    object["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_filter_that_cannot_be_read_is_refused() {
    let mut command = Command::new(support::CUSTODY);
    let output = command.args(["serve", "--log-level", "custody=loud"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && stderr.contains("--log-level custody=loud"), "{stderr}");
}
