//! What clients are told when something is wrong: partial success, and failures.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::{
    Exemplar, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, metric::Data,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::Code;

use crate::requests::{SIGNALS, Signal, hex, log, logs, metric, metrics, span, traces};
use crate::support::Server;
use crate::wire::{Client, JSON, PROTOBUF, RpcStatus, frame, pack};

/// Two metrics with three points between them that cannot be accepted, and one that can.
fn some_metrics() -> Vec<Metric> {
    let exemplars = vec![Exemplar { trace_id: vec![1; 3], ..Default::default() }];
    let wrong = NumberDataPoint { exemplars: exemplars.clone(), ..Default::default() };
    let gauge = Gauge { data_points: vec![wrong, NumberDataPoint::default()] };
    let point = HistogramDataPoint { exemplars, ..Default::default() };
    let histogram = Histogram { data_points: vec![point], aggregation_temporality: 2 };
    vec![
        Metric { name: "wrong".into(), data: Some(Data::Gauge(gauge)), ..Default::default() },
        metric(1),
        Metric { name: "wrong too".into(), data: Some(Data::Histogram(histogram)), ..Default::default() },
    ]
}

/// Partial Success (OTLP/gRPC and OTLP/HTTP): the response of the full success with
/// `partial_success`: how many spans, log records and, of metrics, data points were rejected,
/// and why. The rest is accepted.
#[test]
fn a_partial_success_counts_spans_log_records_and_data_points() {
    let mut server = Server::start();
    let mut grpc = Client::http2(&server.grpc);
    let mut http = Client::http1(&server.otlp_http);
    let spans = traces(vec![Span { span_id: vec![1; 7], ..span(1) }, span(2), Span { trace_id: vec![], ..span(3) }]);
    let records = logs(vec![log(1), LogRecord { trace_id: vec![1; 5], ..log(2) }]);
    let points = metrics(some_metrics());

    let told = grpc.call(Signal::Traces.method(), "", &spans.encode_to_vec());
    let told = told.message::<ExportTraceServiceResponse>().partial_success.unwrap();
    assert_eq!(told.rejected_spans, 2);
    assert!(told.error_message.contains("span.span_id has 7 bytes"), "{}", told.error_message);
    let told = grpc.call(Signal::Logs.method(), "gzip", &records.encode_to_vec());
    let told = told.message::<ExportLogsServiceResponse>().partial_success.unwrap();
    assert_eq!(told.rejected_log_records, 1);
    assert!(told.error_message.contains("log.trace_id has 5 bytes"), "{}", told.error_message);
    let told = grpc.call(Signal::Metrics.method(), "zstd", &points.encode_to_vec());
    let told = told.message::<ExportMetricsServiceResponse>().partial_success.unwrap();
    assert_eq!(told.rejected_data_points, 3, "points, not metrics");
    assert!(told.error_message.contains("Exemplar with an id of the wrong length"), "{}", told.error_message);

    // Again over HTTP: what was accepted is known already, what was rejected is rejected again.
    let told = http.post("/v1/traces", PROTOBUF, &[], spans.encode_to_vec());
    let response = ExportTraceServiceResponse::decode(&told.body[..]).unwrap();
    assert_eq!((told.status, response.partial_success.unwrap().rejected_spans), (200, 2));
    let told = http.post("/v1/logs", PROTOBUF, &[], records.encode_to_vec());
    let response = ExportLogsServiceResponse::decode(&told.body[..]).unwrap();
    assert_eq!((told.status, response.partial_success.unwrap().rejected_log_records), (200, 1));
    let told = http.post("/v1/metrics", PROTOBUF, &[], points.encode_to_vec());
    let response = ExportMetricsServiceResponse::decode(&told.body[..]).unwrap();
    assert_eq!((told.status, response.partial_success.unwrap().rejected_data_points), (200, 3));

    // JSON Protobuf Encoding: an int64 is written as a string.
    for (signal, member, body) in [
        (
            Signal::Traces,
            "rejectedSpans",
            r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"00","spanId":"01"}]}]}]}"#,
        ),
        (Signal::Logs, "rejectedLogRecords", r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"spanId":"01"}]}]}]}"#),
        (
            Signal::Metrics,
            "rejectedDataPoints",
            r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"sum":{"dataPoints":[{"exemplars":[{"spanId":"01"}]}]}}]}]}]}"#,
        ),
    ] {
        let told = http.post(signal.path(), JSON, &[], body);
        assert_eq!((told.status, &told.json()["partialSuccess"][member]), (200, &json!("1")), "{told:?}");
        let why = told.json()["partialSuccess"]["errorMessage"].as_str().unwrap().to_owned();
        assert!(why.contains("length") || why.contains("bytes"), "{why}");
    }
    let kept = server.sql("SELECT kind, count(*) AS n FROM ledger WHERE seq > 0 GROUP BY 1 ORDER BY 1");
    let one = |kind| json!({"kind": kind, "n": 1});
    assert_eq!(kept, [one("log"), one("metric"), one("span")]);
    // What was rejected is no record, but evidence: the request is kept as it came.
    let bytes = server.sql("SELECT encode(payload(seq), 'hex') AS hex FROM ledger WHERE kind = 'span'");
    assert_eq!(bytes[0]["hex"], json!(hex(&span(2).encode_to_vec())));
    server.stop_and_verify();
}

/// Failures, Bad Data (OTLP/gRPC, OTLP/HTTP): INVALID_ARGUMENT, or 400 with a
/// `google.rpc.Status` in the request's encoding, with BadRequest in its details.
#[test]
fn bad_data_is_told_in_the_requests_encoding_and_is_not_retried() {
    const BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";
    let mut server = Server::start();
    let mut grpc = Client::http2(&server.grpc);
    let mut http = [Client::http1(&server.otlp_http), Client::http2(&server.otlp_http)];
    for signal in SIGNALS {
        for encoding in ["", "gzip", "zstd"] {
            let told = grpc.call(signal.method(), encoding, b"\xff\xff");
            assert_eq!(told.grpc_status(), Code::InvalidArgument);
            let details = told.grpc_details();
            assert_eq!((details.code, details.details[0].type_url.as_str()), (3, BAD_REQUEST));
            assert!(details.message.contains("not a valid protobuf Export"), "{details:?}");
        }
        for http in &mut http {
            let told = http.post(signal.path(), PROTOBUF, &[], &b"\xff\xff"[..]);
            let status = RpcStatus::decode(&told.body[..]).unwrap();
            assert_eq!((told.status, told.header("content-type"), status.code), (400, PROTOBUF, 3));
            assert!(status.message.contains("not a valid protobuf Export"), "{status:?}");
            assert_eq!(status.details[0].type_url, BAD_REQUEST);
            let told = http.post(signal.path(), JSON, &[], "{\"resource");
            let status = told.json();
            assert_eq!((told.status, told.header("content-type"), &status["code"]), (400, JSON, &json!(3)));
            assert!(status["message"].as_str().unwrap().contains("line 1 column"), "{status}");
            assert_eq!(status["details"][0]["@type"], BAD_REQUEST);
            assert_eq!(told.header("retry-after"), "");
            // What says that it is compressed, and is not.
            let told = http.post(signal.path(), PROTOBUF, &[("content-encoding", "gzip")], "garbage");
            assert_eq!(told.status, 400);
            assert!(told.problem().1.contains("cannot be decompressed"), "{told:?}");
        }
    }
    // Bytes that are another signal's, and text that is no UTF-8 (proto3: a string is UTF-8).
    let other = http[0].post("/v1/metrics", PROTOBUF, &[], traces(vec![span(1)]).encode_to_vec());
    assert_eq!(other.status, 400, "{other:?}");
    let mut wrong = traces(vec![Span { name: "NAME".into(), ..span(1) }]).encode_to_vec();
    let at = wrong.windows(4).position(|w| w == b"NAME").unwrap();
    wrong[at] = 0xff;
    let told = grpc.call(Signal::Traces.method(), "", &wrong);
    assert_eq!(told.grpc_status(), Code::InvalidArgument);
    assert!(told.grpc_details().message.contains("name that is not UTF-8"), "{told:?}");
    assert_eq!(server.stop_and_verify()["records"], 1);
}

/// gRPC (PROTOCOL-HTTP2, "Length-Prefixed-Message"; "Compression"): one message with its
/// length; an encoding that is not known is UNIMPLEMENTED, with those that are.
#[test]
fn what_is_no_unary_grpc_call_is_refused() {
    let mut server = Server::start();
    let mut grpc = Client::http2(&server.grpc);
    let method = Signal::Traces.method();
    let message = Signal::Traces.protobuf(1);
    for encoding in ["snappy", "deflate", "br", "gzip,zstd"] {
        let told = grpc.call(method, encoding, &message);
        assert_eq!(told.grpc_status(), Code::Unimplemented, "{encoding}");
        assert_eq!(told.header("grpc-accept-encoding"), "identity,gzip,zstd");
    }
    let two = [&frame(false, &message)[..], &frame(false, &message)].concat();
    let short = frame(false, &message).slice(..40);
    let unnamed = frame(true, &pack("gzip", &message));
    for (body, why) in [
        (two, "Export takes one message"),
        (short.to_vec(), "came"),
        (vec![], "no message"),
        (vec![0, 0], "no message"),
        (unnamed.to_vec(), "no grpc-encoding"),
        (vec![7, 0, 0, 0, 0], "neither 0 nor 1"),
    ] {
        let told = grpc.post(method, "application/grpc", &[("te", "trailers")], body);
        assert_eq!(told.grpc_status(), Code::InvalidArgument, "{why}");
        assert!(told.grpc_details().message.contains(why), "{why}: {told:?}");
    }
    let refused = |server: &Server| {
        let is_counter = |line: &&str| line.starts_with("custody_ingest_refused_requests_total{");
        let is_ours = |line: &&str| line.contains("\"grpc\"") && line.contains("\"unsupported\"");
        let metrics = server.get("/metrics").1;
        let line = metrics.lines().filter(is_counter).find(is_ours);
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).expect("it is counted")
    };
    let before = refused(&server);
    for path in ["/", "/opentelemetry.proto.collector.trace.v1.TraceService/Import", "/grpc.health.v1.Health/Check"] {
        assert_eq!(grpc.call(path, "", &message).grpc_status(), Code::Unimplemented, "{path}");
    }
    let json = grpc.post(method, "application/grpc+json", &[], "{}");
    assert_eq!(json.header("grpc-status"), "12");
    // "If Content-Type does not begin with application/grpc, [...] HTTP status of 415".
    let told = grpc.post("/v1/traces", PROTOBUF, &[], message.clone());
    assert_eq!((told.status, told.header("content-type")), (415, PROTOBUF));
    assert!(told.problem().1.contains("4318"), "the exporter's log names the other port: {told:?}");
    let told = Client::http1(&server.grpc).post("/v1/traces", JSON, &[], "{}");
    assert_eq!((told.status, told.header("content-type")), (415, JSON));
    let told = grpc.send("GET", method, &[("content-type", "application/grpc")], "");
    assert_eq!((told.status, told.header("allow")), (405, "POST"));
    // A browser speaks no HTTP/2 in the clear: no page, of any origin, can call.
    let told = Client::http1(&server.grpc).post(method, "application/grpc", &[], frame(false, &message));
    assert_eq!(told.status, 505);
    // An exporter that was given the wrong port shows.
    assert_eq!(refused(&server) - before, 8.0, "three methods, JSON, and four that were no gRPC");
    assert_eq!(server.stop_and_verify()["records"], 1);
}

/// OTLP/HTTP Request, Failures ("The response body for all HTTP 4xx and HTTP 5xx responses
/// MUST be a Protobuf-encoded Status message"), All Other Responses: 404, 405 with Allow (RFC
/// 9110, 15.5.6), 415 (15.5.16), each in the request's encoding where that is known.
#[test]
fn wrong_paths_methods_and_types() {
    let mut server = Server::start();
    for mut http in [Client::http1(&server.otlp_http), Client::http2(&server.otlp_http)] {
        for path in ["/", "/v1", "/v1/trace", "/v1/traces/", "/V1/traces", "/v1development/profiles"] {
            for content_type in [PROTOBUF, JSON] {
                let told = http.post(path, content_type, &[], "");
                assert_eq!((told.status, told.header("content-type")), (404, content_type), "{path}");
                assert!(told.problem().1.contains("/v1/traces, /v1/logs or /v1/metrics"), "{told:?}");
            }
        }
        for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let told = http.send(method, "/v1/logs", &[("content-type", PROTOBUF)], "");
            assert_eq!((told.status, told.header("allow"), told.header("content-type")), (405, "POST", PROTOBUF));
            assert!(told.problem().1.contains(method), "{told:?}");
        }
        assert_eq!(http.send("HEAD", "/v1/logs", &[], "").status, 405);
        for content_type in [
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "application/protobuf",
            "x",
            "application/json5",
        ] {
            let told = http.post("/v1/traces", content_type, &[], Signal::Traces.json(1));
            assert_eq!((told.status, told.header("content-type")), (415, JSON), "{content_type}");
            assert_eq!(told.header("accept"), "application/x-protobuf, application/json");
            assert_eq!(told.header("accept-encoding"), "", "the encoding was not the matter");
            assert!(told.problem().1.contains("Content-Type must be"), "{told:?}");
        }
        assert_eq!(http.send("POST", "/v1/traces", &[], Signal::Traces.json(1)).status, 415, "no type at all");
        for encoding in ["br", "deflate", "gzip, zstd", "snappy"] {
            let told = http.post("/v1/traces", PROTOBUF, &[("content-encoding", encoding)], Signal::Traces.protobuf(1));
            assert_eq!((told.status, told.header("content-type")), (415, PROTOBUF), "{encoding}");
            assert_eq!(told.header("accept-encoding"), "gzip, zstd, identity");
        }
        let twice = [("content-encoding", "gzip"), ("content-encoding", "zstd")];
        assert_eq!(http.post("/v1/traces", JSON, &twice, "").status, 415);
        let query = http.post("/v1/traces?tenant=x", JSON, &[], Signal::Traces.json(1));
        assert_eq!((query.status, query.json()), (200, Value::Object(Default::default())));
    }
    assert_eq!(server.stop_and_verify()["records"], 2);
}

/// RFC 9110, section 9.3.2: an answer to HEAD has no content; HTTP/2 (RFC 9113, section 8.1) takes one for a broken stream.
#[test]
fn who_asks_for_the_head_alone_gets_it_also_when_he_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    std::fs::write(&policy, "[[allow]]\nidentity = \"spiffe://a/b\"\nactor = \"agent\"\nroles = [\"write\"]\n")
        .unwrap();
    let guarded = Server::start_in(folder, &["--policy", policy.to_str().unwrap()]);
    let open = Server::start();
    let (api, records) = (["/api/v1/queries", "/healthz", "/nothing"], ["/v1/traces", "/nothing"]);
    let call = Signal::Traces.method();
    for (server, told) in [(&guarded, [[401, 200, 401], [401, 401, 401]]), (&open, [[200, 200, 404], [405, 404, 404]])]
    {
        for connect in [Client::http1, Client::http2] {
            let mut client = connect(&server.http);
            for (path, status) in api.into_iter().zip(told[0]) {
                let answer = client.send("HEAD", path, &[], "");
                assert_eq!((answer.status, answer.body.len()), (status, 0), "{path}: {answer:?}");
            }
            let mut client = connect(&server.otlp_http);
            for (path, status) in records.into_iter().zip(told[1]) {
                let answer = client.send("HEAD", path, &[], "");
                assert_eq!((answer.status, answer.body.len()), (status, 0), "{path}: {answer:?}");
            }
        }
        // What calls by gRPC is answered in its words; the answer comes whole, whichever it is.
        for address in [&server.grpc, &server.flight_sql] {
            for content_type in ["application/grpc", "text/plain"] {
                let answer = Client::http2(address).send("HEAD", call, &[("content-type", content_type)], "");
                assert_eq!(answer.body.len(), 0, "{address} {content_type}: {answer:?}");
            }
        }
    }
}
