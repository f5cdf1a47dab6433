//! Three signals, by every way they may come.

use serde_json::json;

use crate::requests::{SIGNALS, Signal};
use crate::support::Server;
use crate::wire::{Answer, Client, JSON, PROTOBUF, pack};

fn assert_full_success(answer: &Answer, content_type: &str, why: &str) {
    assert_eq!(answer.status, 200, "{why}: {answer:?}");
    assert_eq!(answer.header("content-type"), content_type, "{why}");
    // An Export*ServiceResponse without partial_success has no bytes, and no member.
    let want: &[u8] = if content_type == JSON { b"{}" } else { b"" };
    assert_eq!(&answer.body[..], want, "{why}");
}

/// OTLP/gRPC Request, OTLP/HTTP Request, Full Success (both): each signal over gRPC, and
/// over HTTP/1.1 and HTTP/2 as protobuf and JSON, each with no compression, gzip and zstd.
#[test]
fn every_signal_by_every_transport_encoding_and_compression() {
    let mut server = Server::start();
    let mut grpc = Client::http2(&server.grpc);
    let mut http = [Client::http1(&server.otlp_http), Client::http2(&server.otlp_http)];
    let mut n = 0;
    for signal in SIGNALS {
        for encoding in ["", "identity", "gzip", "zstd"] {
            n += 1;
            let answer = grpc.call(signal.method(), encoding, &signal.protobuf(n));
            // gRPC Compression: the answer tells which encodings may be used.
            assert_eq!(answer.header("grpc-accept-encoding"), "identity,gzip,zstd");
            assert_eq!(&answer.message::<crate::wire::RpcStatus>(), &Default::default(), "an empty message");
            for http in &mut http {
                let encoded = [("content-encoding", encoding)];
                let encoded = if encoding.is_empty() { &encoded[..0] } else { &encoded[..] };
                n += 1;
                let body = pack(encoding, &signal.protobuf(n));
                let answer = http.post(signal.path(), PROTOBUF, encoded, body);
                assert_full_success(&answer, PROTOBUF, &format!("{signal:?} {encoding}"));
                n += 1;
                let body = pack(encoding, signal.json(n).as_bytes());
                let answer = http.post(signal.path(), JSON, encoded, body);
                assert_full_success(&answer, JSON, &format!("{signal:?} {encoding}"));
            }
        }
    }
    let counted = server.sql(
        "SELECT kind, count(*) AS n, count(*) FILTER (WHERE array_has(flags, 'json')) AS json, \
         count(DISTINCT record_hash) AS different FROM ledger WHERE seq > 0 GROUP BY 1 ORDER BY 1",
    );
    let row = |kind| json!({"kind": kind, "n": 20, "json": 8, "different": 20});
    assert_eq!(counted, [row("log"), row("metric"), row("span")], "a record each, and which were transcoded");
    let spans = server.sql("SELECT count(DISTINCT name) AS names, max(service_name) AS service FROM spans");
    assert_eq!(spans, [json!({"names": 20, "service": "payments"})]);
    server.stop_and_verify();
}

/// Full Success: "If the server receives an empty request [...] the server SHOULD respond
/// with success"; Empty Telemetry Envelopes: a receiver may ignore them.
#[test]
fn an_empty_request_is_a_success_and_leaves_nothing() {
    let mut server = Server::start();
    let mut grpc = Client::http2(&server.grpc);
    let mut http = Client::http1(&server.otlp_http);
    for (signal, list, scopes) in [
        (Signal::Traces, "resourceSpans", "scopeSpans"),
        (Signal::Logs, "resourceLogs", "scopeLogs"),
        (Signal::Metrics, "resourceMetrics", "scopeMetrics"),
    ] {
        for encoding in ["", "gzip", "zstd"] {
            grpc.call(signal.method(), encoding, b"").message::<crate::wire::RpcStatus>();
        }
        // ResourceSpans { scope_spans: [ScopeSpans {}] }: an envelope of nothing.
        for body in [&b""[..], b"\x0a\x00", b"\x0a\x02\x12\x00"] {
            assert_full_success(&http.post(signal.path(), PROTOBUF, &[], body), PROTOBUF, "empty");
        }
        for body in ["{}", &format!(r#"{{"{list}":[]}}"#), &format!(r#"{{"{list}":[{{"{scopes}":[{{}}]}}]}}"#)] {
            assert_full_success(&http.post(signal.path(), JSON, &[], body.to_owned()), JSON, body);
        }
    }
    assert_eq!(server.stop_and_verify()["records"], 1, "the genesis record alone");
}

/// Binary Protobuf Encoding, JSON Protobuf Encoding: the content type names the encoding; RFC
/// 9110, section 8.3: case does not matter in it, and parameters may follow.
#[test]
fn a_content_type_is_read_in_any_case_and_with_parameters() {
    let mut server = Server::start();
    let mut http = Client::http1(&server.otlp_http);
    for (n, (content_type, answered)) in (1..).zip([
        ("application/json; charset=utf-8", JSON),
        ("Application/JSON;charset=\"UTF-8\"", JSON),
        ("application/json ; x=y", JSON),
        ("APPLICATION/X-PROTOBUF", PROTOBUF),
        ("application/x-protobuf; proto=x", PROTOBUF),
    ]) {
        let body = if answered == JSON { Signal::Logs.json(n).into_bytes() } else { Signal::Logs.protobuf(n) };
        assert_full_success(&http.post("/v1/logs", content_type, &[], body), answered, content_type);
    }
    let mut grpc = Client::http2(&server.grpc);
    for (n, content_type) in (10..).zip(["application/grpc+proto", "Application/gRPC", "application/grpc; x=y"]) {
        let message = crate::wire::frame(false, &Signal::Logs.protobuf(n));
        let answer = grpc.post(Signal::Logs.method(), content_type, &[("te", "trailers")], message);
        assert_eq!(answer.grpc_status(), tonic::Code::Ok, "{content_type}");
    }
    assert_eq!(server.stop_and_verify()["records"], 9);
}
