//! Sizes, decompression bombs, and overload.

use std::io::Write as _;
use std::net::TcpStream;

use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;
use serde_json::json;
use tonic::Code;

use crate::requests::{Signal, log, logs, span, text, traces};
use crate::support::{Server, until};
use crate::wire::{Client, JSON, PROTOBUF, frame, head, pack, read_head};

const MIB: usize = 1 << 20;

/// A request of spans with a megabyte of text each.
fn large(first: u64, spans: u64) -> Vec<u8> {
    let prompt = "x".repeat(MIB);
    let with_text = |n| {
        let mut span = span(n);
        span.attributes.push(text("gen_ai.input.messages", &prompt));
        span
    };
    traces((first..first + spans).map(with_text).collect()).encode_to_vec()
}

/// OTLP/gRPC Request ("MUST enforce a message size limit [...] RESOURCE_EXHAUSTED"; not
/// retryable: no RetryInfo), OTLP/HTTP Request ("MUST limit the size of the request body [...]
/// including after decompression [...] 413"): 64 MiB unless configured.
#[test]
fn a_request_of_64_mib_is_taken_and_a_larger_one_is_not_by_default() {
    let mut server = Server::start();
    let mut http = Client::http1(&server.otlp_http);
    let fits = large(1, 60);
    assert_eq!(http.post("/v1/traces", PROTOBUF, &[], fits).status, 200);
    let more = large(100, 65);
    for encoding in ["", "gzip", "zstd"] {
        let told = Client::http2(&server.grpc).call(Signal::Traces.method(), encoding, &more);
        assert_eq!(told.grpc_status(), Code::ResourceExhausted, "{encoding}");
        assert_eq!(told.header("grpc-status-details-bin"), "", "with RetryInfo it would come again");
        assert!(told.header("grpc-message").contains("67108864"), "{told:?}");
        for mut http in [Client::http1(&server.otlp_http), Client::http2(&server.otlp_http)] {
            let told = http.post("/v1/traces", PROTOBUF, &[("content-encoding", encoding)], pack(encoding, &more));
            assert_eq!((told.status, told.header("content-type")), (413, PROTOBUF), "{encoding}");
            assert_eq!(told.header("retry-after"), "");
            let (code, message) = told.problem();
            assert_eq!(code, 8);
            assert!(message.contains("67108864 bytes") && message.contains("smaller batches"), "{message}");
        }
    }
    // A client that writes all of it before it reads is told, too.
    let mut stream = TcpStream::connect(&server.otlp_http).unwrap();
    stream.write_all(&head("/v1/traces", more.len())).unwrap();
    stream.write_all(&more).unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 413 "));
    assert_eq!(server.sql("SELECT count(*) AS n FROM spans"), [json!({"n": 60})]);
    server.stop_and_verify();
}

/// The same: the limit is configurable, and is met to the byte.
#[test]
fn the_limit_is_configurable_and_exact() {
    let body = logs(vec![LogRecord { severity_text: "x".repeat(2000), ..log(1) }]).encode_to_vec();
    let flag = body.len().to_string();
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &["--request-bytes-max", &flag]);
    let mut more = body.clone();
    more.extend([0x9a, 0x06, 0x00]); // An unknown field, for three bytes more.
    let mut http = Client::http1(&server.otlp_http);
    let mut grpc = Client::http2(&server.grpc);
    for encoding in ["identity", "gzip", "zstd"] {
        let encoded = [("content-encoding", encoding)];
        assert_eq!(http.post("/v1/logs", PROTOBUF, &encoded, pack(encoding, &body)).status, 200);
        assert_eq!(http.post("/v1/logs", PROTOBUF, &encoded, pack(encoding, &more)).status, 413);
        assert_eq!(grpc.call(Signal::Logs.method(), encoding, &body).grpc_status(), Code::Ok);
        assert_eq!(grpc.call(Signal::Logs.method(), encoding, &more).grpc_status(), Code::ResourceExhausted);
    }
    let told = http.post("/v1/logs", JSON, &[], " ".repeat(body.len() + 1));
    assert_eq!((told.status, told.header("content-type")), (413, JSON));
    assert_eq!(server.stop_and_verify()["records"], 2);
}

/// The most memory that a process had, in KiB.
fn peak(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// OTLP/HTTP Request ("including after decompression, to mitigate possible excessive memory
/// usage"): a quarter of a gibibyte of zeros in a small body never becomes more than the limit,
/// however many come at once.
#[test]
fn a_decompression_bomb_is_never_made() {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &["--request-bytes-max", "16777216"]);
    // Many gzip members, and as many zstd frames: either is one valid body.
    let bomb = |encoding| pack(encoding, &vec![0; MIB]).repeat(256);
    let (gzip, zstd) = (bomb("gzip"), bomb("zstd"));
    assert!(gzip.len() < 3 * MIB && zstd.len() < MIB, "{} {}", gzip.len(), zstd.len());
    let before = peak(server.pid());
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (encoding, bomb) = if i % 2 == 0 { ("gzip", &gzip) } else { ("zstd", &zstd) };
            let (http, grpc) = (&server.otlp_http, &server.grpc);
            scope.spawn(move || {
                let encoded = [("content-encoding", encoding)];
                let told = Client::http1(http).post("/v1/logs", PROTOBUF, &encoded, bomb.clone());
                // Or, while others hold what memory there is for requests, "later".
                assert!(matches!(told.status, 413 | 503), "{told:?}");
                let headers = [("te", "trailers"), ("grpc-encoding", encoding)];
                let told =
                    Client::http2(grpc).post(Signal::Logs.method(), "application/grpc", &headers, frame(true, bomb));
                assert!(matches!(told.grpc_status(), Code::ResourceExhausted | Code::Unavailable), "{told:?}");
            });
        }
    });
    let grown = (peak(server.pid()) - before) / 1024;
    assert!(grown < 512, "four gibibytes in sixteen requests took {grown} MiB");
    // One alone, with nothing beside it, is certainly told that it is too large.
    let encoded = [("content-encoding", "gzip")];
    assert_eq!(Client::http1(&server.otlp_http).post("/v1/logs", PROTOBUF, &encoded, gzip).status, 413);
    assert_eq!(server.stop_and_verify()["records"], 1);
}

/// OTLP/gRPC Throttling ("UNAVAILABLE [...] RetryInfo"), OTLP/HTTP Throttling ("503 [...] and
/// MAY include Retry-After"): while the memory for requests is taken, and only then.
#[test]
fn overload_is_told_with_a_time_to_come_again() {
    // A slow client may be as slow as this test is.
    let flags = ["--in-flight-bytes-max", "400000", "--body-timeout", "600"];
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &flags);
    let body = |n| {
        let mut span = span(n);
        span.attributes.push(text("text", &"x".repeat(150_000)));
        traces(vec![span]).encode_to_vec()
    };
    // A slow client has most of the memory.
    let slow = [body(1), traces((10..1510).map(span).collect()).encode_to_vec(), body(2)].concat();
    assert!(slow.len() > 380_000 && slow.len() < 400_000, "{}", slow.len());
    let mut stream = TcpStream::connect(&server.otlp_http).unwrap();
    stream.write_all(&head("/v1/traces", slow.len())).unwrap();
    stream.write_all(&slow[..slow.len() - 1]).unwrap();
    let mut http = Client::http1(&server.otlp_http);
    // All of it has come: until then there may be room for others.
    until(|| {
        let metrics = server.get("/metrics").1;
        let held = metrics.lines().find_map(|line| line.strip_prefix("custody_ingest_in_flight_bytes "));
        held.and_then(|held| held.parse::<f64>().ok()).is_some_and(|held| held >= slow.len() as f64 - 1.0)
    });
    let told = http.post("/v1/traces", PROTOBUF, &[], body(3));
    assert_eq!(told.status, 503, "{told:?}");
    assert_eq!((told.header("retry-after"), told.header("content-type")), ("1", PROTOBUF));
    let (code, message) = told.problem();
    assert_eq!(code, 14);
    assert!(message.contains("try again"), "{message}");
    let told = http.post("/v1/traces", JSON, &[], " ".repeat(150_000));
    assert_eq!((told.status, told.header("retry-after")), (503, "1"));
    let retry = &told.json()["details"][0];
    assert_eq!(retry, &json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"}));
    let told = Client::http2(&server.grpc).call(Signal::Traces.method(), "", &body(4));
    assert_eq!(told.grpc_status(), Code::Unavailable);
    let detail = &told.grpc_details().details[0];
    assert_eq!(detail.type_url, "type.googleapis.com/google.rpc.RetryInfo");
    assert_eq!(detail.value, [0x0a, 2, 0x08, 1], "RetryInfo {{ retry_delay: 1 s }}");
    // The slow client ends well, and then there is room again for who comes again.
    stream.write_all(&slow[slow.len() - 1..]).unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 "));
    let mut grpc = Client::http2(&server.grpc);
    until(|| grpc.call(Signal::Traces.method(), "", &body(4)).grpc_status() == Code::Ok);
    assert_eq!(
        server.sql("SELECT count(*) AS n FROM spans WHERE name IN ('span 1', 'span 2', 'span 4')"),
        [json!({"n": 3})]
    );
    server.stop_and_verify();
}
