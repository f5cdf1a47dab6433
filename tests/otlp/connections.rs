//! Connections: many calls at once, kept alive, and clients that go away.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message as _;
use serde_json::json;
use tonic::codec::CompressionEncoding;

use crate::requests::{Signal, span, traces};
use crate::support::{Server, until};
use crate::wire::{Client, JSON, PROTOBUF, connect2, head, read_head, runtime};

/// OTLP/gRPC Concurrent Requests: many unary calls on one connection, by a generated client,
/// beyond what the server serves at once; OTLP/HTTP Concurrent Requests likewise on HTTP/2.
#[test]
fn many_concurrent_calls_on_one_connection() {
    let mut server = Server::start();
    let runtime = runtime();
    runtime.block_on(async {
        let client = TraceServiceClient::connect(format!("http://{}", server.grpc)).await.unwrap();
        let client = client.send_compressed(CompressionEncoding::Zstd).accept_compressed(CompressionEncoding::Gzip);
        let calls = (0..500).map(|n| {
            let mut client = client.clone();
            tokio::spawn(async move { client.export(traces(vec![span(n)])).await.unwrap().into_inner() })
        });
        for call in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap().partial_success, None);
        }
        let sender = connect2(&server.otlp_http).await;
        let calls = (500..1000).map(|n| {
            let mut sender = sender.clone();
            let request =
                Request::post(format!("http://{}/v1/traces", server.otlp_http)).header("content-type", PROTOBUF);
            let request = request.body(Full::from(Signal::Traces.protobuf(n))).unwrap();
            tokio::spawn(async move {
                sender.ready().await.unwrap();
                sender.send_request(request).await.unwrap().status().as_u16()
            })
        });
        for call in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap(), 200);
        }
    });
    let rows = server.sql("SELECT count(*) AS n, count(DISTINCT span_id) AS ids FROM spans");
    assert_eq!(rows, [json!({"n": 1000, "ids": 1000})]);
    server.stop_and_verify();
}

/// OTLP/HTTP Connection: "The client SHOULD keep the connection alive between requests"; it
/// survives refusals too.
#[test]
fn a_connection_is_kept_alive_over_successes_and_refusals() {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &["--request-bytes-max", "1000"]);
    // `Client` has one connection and cannot open another.
    for (first, mut http) in [(0, Client::http1(&server.otlp_http)), (100, Client::http2(&server.otlp_http))] {
        for n in first..first + 50 {
            assert_eq!(http.post("/v1/traces", PROTOBUF, &[], Signal::Traces.protobuf(n)).status, 200);
            assert_eq!(http.post("/v1/traces", JSON, &[], "{").status, 400);
            assert_eq!(http.post("/v1/nothing", JSON, &[], "{}").status, 404);
            assert_eq!(http.send("GET", "/v1/traces", &[], "").status, 405);
            assert_eq!(http.post("/v1/traces", "text/plain", &[], "x").status, 415);
        }
    }
    let mut grpc = Client::http2(&server.grpc);
    for n in 200..250 {
        let method = Signal::Traces.method();
        assert_eq!(grpc.call(method, "", &Signal::Traces.protobuf(n)).header("grpc-status"), "0");
        assert_eq!(grpc.call(method, "", &[0xff; 2]).header("grpc-status"), "3");
        assert_eq!(grpc.call(method, "lz4", &[0; 2]).header("grpc-status"), "12");
        assert_eq!(grpc.call(method, "", &[0; 1001]).header("grpc-status"), "8");
    }
    assert_eq!(server.stop_and_verify()["records"], 151);
}

/// RFC 9112, section 9.6: who has sent a request and shuts down his side still reads the answer.
#[test]
fn a_client_that_shuts_down_its_side_behind_a_request_is_answered() {
    let mut server = Server::start();
    for n in 0..5 {
        let body = Signal::Traces.protobuf(n);
        let mut stream = TcpStream::connect(&server.otlp_http).unwrap();
        stream.write_all(&[head("/v1/traces", body.len()), body].concat()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let told = read_head(&mut stream);
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
    }
    // Half of a request is none.
    let mut stream = TcpStream::connect(&server.otlp_http).unwrap();
    stream.write_all(&[head("/v1/traces", 100), vec![0; 50]].concat()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut told = String::new();
    let _ = stream.read_to_string(&mut told);
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 4") || told.starts_with("HTTP/1.1 5"), "{told}");
    assert_eq!(server.stop_and_verify()["records"], 6);
}

/// RFC 9112, section 10.1 (and curl above a mebibyte): a client that asks before it sends is
/// told to go on, or is refused without the body.
#[test]
fn a_client_may_ask_before_it_sends() {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &["--request-bytes-max", "1000"]);
    let body = Signal::Logs.protobuf(1);
    let ask = |length: usize| {
        let mut stream = TcpStream::connect(&server.otlp_http).unwrap();
        let head = String::from_utf8(head("/v1/logs", length)).unwrap();
        stream.write_all(head.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n").as_bytes()).unwrap();
        let told = read_head(&mut stream);
        (stream, told)
    };
    let (mut stream, told) = ask(body.len());
    assert_eq!(told, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&body).unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 "));
    assert!(ask(1001).1.starts_with("HTTP/1.1 413 "));
    assert_eq!(server.stop_and_verify()["records"], 2);
}

/// All Other Responses: "If the server disconnects [...]" has its other side: a client that
/// hangs up. What had not come whole is not recorded, what had is, and the server goes on.
#[test]
fn a_client_that_hangs_up_leaves_all_of_a_request_or_nothing() {
    let mut server = Server::start();
    let body = |first: u64| traces((first..first + 100).map(span).collect()).encode_to_vec();
    for (first, part) in [(0, 0), (100, 1), (200, 5000), (300, body(300).len() - 1)] {
        let mut stream = TcpStream::connect(&server.otlp_http).unwrap();
        stream.write_all(&head("/v1/traces", body(first).len())).unwrap();
        stream.write_all(&body(first)[..part]).unwrap();
        // An answer or a closed connection: the server has seen the end of it.
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = stream.read(&mut [0; 512]);
    }
    assert_eq!(server.sql("SELECT count(*) AS n FROM spans"), [json!({"n": 0})]);
    // A whole request, and nobody who reads its answer.
    let mut stream = TcpStream::connect(&server.otlp_http).unwrap();
    stream.write_all(&[head("/v1/traces", body(1000).len()), body(1000)].concat()).unwrap();
    until(|| server.sql("SELECT count(*) AS n FROM spans") == [json!({"n": 100})]);
    drop(stream);
    // Calls that are cancelled at any moment: a stream is reset, the connection goes on.
    let runtime = runtime();
    let mut answered = 0;
    for n in 0..60 {
        let address = &server.otlp_http;
        answered += runtime.block_on(async move {
            let mut sender = connect2(address).await;
            let request = Request::post(format!("http://{address}/v1/traces")).header("content-type", PROTOBUF);
            let request = request.body(Full::from(body(2000 + n * 100))).unwrap();
            let call = tokio::time::timeout(Duration::from_micros(n * 200), sender.send_request(request));
            u64::from(call.await.is_ok_and(|answer| answer.unwrap().status() == 200))
        });
    }
    assert_eq!(Client::http1(&server.otlp_http).post("/v1/traces", PROTOBUF, &[], body(9000)).status, 200);
    let blocks = server.sql("SELECT block_seq, count(*) AS n FROM ledger WHERE seq > 0 GROUP BY 1");
    assert!(blocks.iter().all(|block| block["n"] == 100), "a part of a request: {blocks:?}");
    let n = blocks.len() as u64;
    assert!(n >= 2 + answered, "{n} blocks, {answered} answers and two that were not cancelled");
    server.stop_and_verify();
}
