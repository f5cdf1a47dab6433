//! What OTLP clients are told, over real sockets (interop: OTLP/gRPC, OTLP/HTTP).

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use custody_ingest::{Bound, Config, Log, Receivers, Work};
use custody_proto::Limits;
use custody_proto::otlp::collector_logs::logs_service_client::LogsServiceClient;
use custody_proto::otlp::collector_metrics::metrics_service_client::MetricsServiceClient;
use custody_proto::otlp::collector_trace::trace_service_client::TraceServiceClient;
use custody_proto::otlp::collector_trace::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use custody_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span};
use custody_store::{Error, Options, Prepared, Reader, Receipt, Writer, open};
use prost::Message as _;
use tonic::Code;
use tonic::codec::CompressionEncoding;

/// A log that counts its group commits, and fails when told to.
struct Probe {
    writer: Writer,
    groups: Arc<Mutex<Vec<usize>>>,
    dir: std::path::PathBuf,
}

impl Log for Probe {
    fn append(&mut self, batch: Vec<Prepared>) -> Result<Vec<Receipt>, Error> {
        self.groups.lock().unwrap().push(batch.len());
        if self.dir.join("fail").exists() {
            // A second writer cannot open the directory: a real error of the log.
            return Err(open(&self.dir, Options::default()).err().expect("the directory is in use"));
        }
        self.writer.append(batch)
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        self.writer.checkpoint()
    }

    fn run(&mut self, work: Work) {
        self.writer.run(work);
    }
}

struct Server {
    bound: Bound,
    reader: Reader,
    dir: tempfile::TempDir,
    groups: Arc<Mutex<Vec<usize>>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    done: tokio::task::JoinHandle<Result<(), String>>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (writer, reader) = open(dir.path(), Options::default()).unwrap();
        let groups = Arc::default();
        let log = Probe { writer, groups: Arc::clone(&groups), dir: dir.path().to_owned() };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config { grpc: any, http: any, limits, ..Config::default() };
        let receivers = Receivers::bind(config, log).await.unwrap();
        let bound = receivers.bound().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let done = tokio::spawn(receivers.run(async {
            let _ = stopped.await;
        }));
        Self { bound, reader, dir, groups, stop: Some(stop), done }
    }

    async fn finish(mut self) -> Result<(), String> {
        self.stop.take();
        self.done.await.unwrap()
    }

    async fn client(&self) -> TraceServiceClient<tonic::transport::Channel> {
        TraceServiceClient::connect(format!("http://{}", self.bound.grpc)).await.unwrap()
    }

    /// Sends raw bytes to the HTTP port and reads the whole answer.
    fn raw(&self, request: Vec<u8>) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.bound.http).unwrap();
        stream.write_all(&request).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let split = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer with headers");
        let head = String::from_utf8_lossy(&answer[..split]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap();
        (status, head, answer[split + 4..].to_vec())
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut request =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        let request = [request.as_bytes(), b"\r\n", body].concat();
        tokio::task::block_in_place(|| self.raw(request))
    }
}

const PROTOBUF: (&str, &str) = ("Content-Type", "application/x-protobuf");
const JSON: (&str, &str) = ("Content-Type", "application/json; charset=utf-8");

fn span(id: u8) -> Span {
    Span { trace_id: vec![1; 16], span_id: vec![id; 8], name: format!("span {id}"), ..Default::default() }
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..Default::default() }] }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_signals_and_compressions_over_grpc() {
    let server = Server::start(Limits::default()).await;
    let mut client = server.client().await;
    let answer = client.export(request(vec![span(1)])).await.unwrap().into_inner();
    assert_eq!(answer.partial_success, None);
    for (id, compression) in [(2, CompressionEncoding::Gzip), (3, CompressionEncoding::Zstd)] {
        let mut client = server.client().await.send_compressed(compression);
        client.export(request(vec![span(id)])).await.unwrap();
    }
    let url = format!("http://{}", server.bound.grpc);
    LogsServiceClient::connect(url.clone())
        .await
        .unwrap()
        .export(custody_proto::otlp::collector_logs::ExportLogsServiceRequest::default())
        .await
        .unwrap();
    MetricsServiceClient::connect(url)
        .await
        .unwrap()
        .export(custody_proto::otlp::collector_metrics::ExportMetricsServiceRequest::default())
        .await
        .unwrap();
    assert_eq!(server.reader.head().size, 4);
    let content = server.reader.block_at(3).unwrap().unwrap().content.unwrap();
    assert_eq!(content.payload(), &request(vec![span(3)]).encode_to_vec());
    assert_eq!(content.identity(), "peer:127.0.0.1");
    server.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_errors_are_those_of_the_specification() {
    let server = Server::start(Limits { body_bytes_max: 1000, ..Limits::default() }).await;
    let mut client = server.client().await;
    let wrong = vec![Span { span_id: vec![1; 7], ..span(1) }, span(2)];
    let partial = client.export(request(wrong)).await.unwrap().into_inner().partial_success.unwrap();
    assert_eq!(partial.rejected_spans, 1);
    assert!(partial.error_message.contains("span.span_id has 7 bytes"), "{}", partial.error_message);
    let long = Span { name: "x".repeat(2000), ..span(3) };
    let status = client.export(request(vec![long.clone()])).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("limit of 1000 bytes"), "{}", status.message());
    let mut compressed = server.client().await.send_compressed(CompressionEncoding::Gzip);
    assert_eq!(compressed.export(request(vec![long])).await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(server.reader.head().size, 2);
    server.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_takes_protobuf_and_json_with_and_without_compression() {
    let server = Server::start(Limits::default()).await;
    let body = request(vec![span(1)]).encode_to_vec();
    let (status, head, answer) = server.post("/v1/traces", &[PROTOBUF], &body).await;
    assert_eq!((status, answer.len()), (200, 0));
    assert!(head.contains("content-type: application/x-protobuf"), "{head}");
    let json = br#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"01010101010101010101010101010101","spanId":"0202020202020202","name":"j"}]}]}]}"#;
    let (status, head, answer) = server.post("/v1/traces", &[JSON], json).await;
    assert_eq!((status, answer.as_slice()), (200, &b"{}"[..]));
    assert!(head.contains("content-type: application/json"), "{head}");
    let packed = gzip(&request(vec![span(3)]).encode_to_vec());
    assert_eq!(server.post("/v1/traces", &[PROTOBUF, ("Content-Encoding", "gzip")], &packed).await.0, 200);
    let packed = zstd::bulk::compress(&request(vec![span(4)]).encode_to_vec(), 1).unwrap();
    assert_eq!(server.post("/v1/traces", &[PROTOBUF, ("Content-Encoding", "zstd")], &packed).await.0, 200);
    assert_eq!(server.post("/v1/traces", &[PROTOBUF], b"").await.0, 200);
    assert_eq!(server.reader.head().size, 5);
    let flags = server.reader.commitments_at(2).unwrap().unwrap().flags;
    assert_eq!(flags, [custody_proto::entry::FLAG_JSON]);
    server.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_errors_are_those_of_the_specification() {
    let server = Server::start(Limits { body_bytes_max: 1000, ..Limits::default() }).await;
    let (status, _, body) = server.post("/v1/traces", &[PROTOBUF], b"\xff\xff").await;
    assert_eq!(status, 400);
    assert!(String::from_utf8_lossy(&body).contains("not a valid protobuf"));
    let (status, _, body) = server.post("/v1/logs", &[JSON], b"{\"resourceLogs\":7}").await;
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, json["code"].as_i64()), (400, Some(3)));
    assert!(json["message"].as_str().unwrap().contains("resourceLogs must be"), "{json}");
    let wrong = Span { trace_id: vec![0; 16], ..span(1) };
    let (status, _, body) = server.post("/v1/traces", &[PROTOBUF], &request(vec![wrong]).encode_to_vec()).await;
    let partial = ExportTraceServiceResponse::decode(&body[..]).unwrap().partial_success.unwrap();
    assert_eq!((status, partial.rejected_spans), (200, 1));
    assert_eq!(server.post("/v1/traces", &[PROTOBUF], &vec![0; 1001]).await.0, 413);
    let bomb = gzip(&vec![0; 1 << 20]);
    assert_eq!(
        server.post("/v1/traces", &[PROTOBUF, ("Content-Encoding", "gzip")], &bomb[..900.min(bomb.len())]).await.0,
        413
    );
    assert_eq!(server.post("/v1/traces", &[("Content-Type", "text/plain")], b"x").await.0, 415);
    assert_eq!(server.post("/v1/traces", &[PROTOBUF, ("Content-Encoding", "br")], b"x").await.0, 415);
    assert_eq!(server.post("/v1/unknown", &[PROTOBUF], b"").await.0, 404);
    let get = b"GET /v1/traces HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec();
    let (status, head, _) = tokio::task::block_in_place(|| server.raw(get));
    assert_eq!(status, 405);
    assert!(head.contains("allow: post"), "{head}");
    assert_eq!(server.reader.head().size, 1);
    server.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_leaves_nothing_and_the_server_goes_on() {
    let server = Server::start(Limits::default()).await;
    tokio::task::block_in_place(|| {
        for body in ["", "half"] {
            let mut stream = TcpStream::connect(server.bound.http).unwrap();
            let head = format!(
                "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\n{body}"
            );
            stream.write_all(head.as_bytes()).unwrap();
        }
    });
    server.client().await.export(request(vec![span(1)])).await.unwrap();
    assert_eq!(server.reader.head().size, 2);
    server.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_share_commits_and_each_is_durable_once() {
    let server = Server::start(Limits::default()).await;
    let client = server.client().await;
    let calls = (1..=100u8).map(|id| {
        let mut client = client.clone();
        tokio::spawn(async move { client.export(request(vec![span(id)])).await.map(drop) })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    assert_eq!(server.reader.head().size, 101);
    let groups = server.groups.lock().unwrap().clone();
    assert_eq!(groups.iter().sum::<usize>(), 100);
    let reader = server.reader.clone();
    server.finish().await.unwrap();
    let note = reader.checkpoint().unwrap().unwrap();
    assert!(note.contains("\n101\n"), "{note}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_log_fails_clients_are_told_to_retry_and_the_server_stops() {
    let server = Server::start(Limits::default()).await;
    let mut client = server.client().await;
    std::fs::write(server.dir.path().join("fail"), "").unwrap();
    let status = client.export(request(vec![span(1)])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.details().windows(9).any(|w| w == b"RetryInfo"), "{status:?}");
    drop(client);
    let error = server.done.await.unwrap().unwrap_err();
    assert!(error.contains("in use"), "{error}");
    assert_eq!(server.reader.head().size, 1);
}
