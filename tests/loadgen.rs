//! The load generator against the built server: what it sends is there once, over
//! retries, late spans and kill -9, and when it is not, it says what is missing.

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use serde_json::Value;
use support::{CUSTODY, Server, until, verify};
use tonic::{Request, Response, Status};

/// Built beside the server: tools/loadgen has a test of this name too.
fn loadgen(args: &[&str]) -> Command {
    let program: PathBuf = std::path::Path::new(CUSTODY).with_file_name("custody-loadgen");
    assert!(program.exists(), "cargo test --workspace builds {}", program.display());
    let mut command = Command::new(program);
    command.args(args).args(["--json", "-"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The JSON result, and what people read.
fn result(output: &Output) -> (Value, String) {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let json = serde_json::from_slice(&output.stdout);
    (json.unwrap_or_else(|e| panic!("{e}: {told}")), told)
}

fn url(address: &str) -> String {
    format!("http://{address}")
}

#[test]
fn what_is_acknowledged_is_there_once_over_both_protocols() {
    let mut server = Server::start();
    let (grpc, http, api) = (url(&server.grpc), url(&server.otlp_http), url(&server.http));
    // Late by less than the run lasts, so that late spans complete the traces of this run.
    let story = ["--late", "0.1", "--late-by", "1s", "--resend", "0.3", "--count", "4000", "--check", &api];
    let pid = server.pid().to_string();
    let mut sent = 0;
    for more in [
        &["--target", &grpc, "--batch", "64", "--server-pid", &pid][..],
        &["--target", &grpc, "--batch", "1", "--seed", "2", "--count", "300", "--gzip"],
        &["--target", &http, "--protocol", "http", "--batch", "100", "--seed", "3"],
        &["--target", &http, "--protocol", "http", "--batch", "16", "--seed", "4", "--gzip", "--rate", "20k"],
    ] {
        // An option that is said again is not allowed: the count of a run of its own replaces the common one.
        let common = if more.contains(&"--count") { [&story[..6], &story[8..]].concat() } else { story.to_vec() };
        let output = loadgen(&[&common, more].concat()).output().unwrap();
        let (json, told) = result(&output);
        assert_eq!(output.status.code(), Some(0), "{more:?}: {told}");
        let (step, check) = (&json["steps"][0], &json["check"]);
        assert_eq!((&check["missing"], &check["doubled"]), (&0.into(), &0.into()), "{json}");
        assert_eq!((&check["present"], &step["failed_requests"]), (&step["records"], &0.into()), "{json}");
        assert!(step["resent_requests"].as_u64() > Some(0) && step["latency_us"]["p99"].as_u64() > Some(0), "{json}");
        if more.contains(&"--server-pid") {
            assert!(step["server"]["cpu_us_per_record"].as_f64() > Some(0.0), "{json}");
            assert!(step["server"]["rss_bytes_max"].as_u64() > Some(10 << 20), "{json}");
        }
        sent += step["records"].as_u64().unwrap();
    }
    // The same seed again: all of it is a retry, and nothing is appended.
    let again = loadgen(&[&story[..], &["--target", &grpc, "--batch", "64"]].concat()).output().unwrap();
    assert_eq!(again.status.code(), Some(0));
    let rows = server.sql(
        "SELECT (SELECT count(*) FROM spans) + (SELECT count(*) FROM logs WHERE service_name = 'authority-proxy') AS n, \
         (SELECT count(*) FROM spans c JOIN spans p ON p.span_id = c.parent_span_id WHERE p.seq > c.seq + 500) AS late, \
         (SELECT count(*) FROM grants WHERE state = 'revoked') AS revoked, (SELECT count(*) FROM denials) AS denied, \
         (SELECT count(*) FROM tool_calls WHERE grant_id IS NOT NULL) AS calls",
    );
    assert_eq!(rows[0]["n"], sent);
    for column in ["late", "revoked", "denied", "calls"] {
        assert!(rows[0][column].as_u64() > Some(0), "there are {column}: {}", rows[0]);
    }
    server.stop_and_verify();
}

/// Starts a server on the ports of one that was killed.
fn start_on_the_same_ports(server: Server) -> Server {
    let ports = [server.grpc.clone(), server.otlp_http.clone(), server.http.clone(), server.flight_sql.clone()];
    let flags: Vec<&str> = ["--otlp-grpc", "--otlp-http", "--http", "--flight-sql"]
        .into_iter()
        .zip(&ports)
        .flat_map(|(flag, port)| [flag, port.as_str()])
        .collect();
    Server::start_in(server.kill(), &flags)
}

fn finish(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

#[test]
fn kill_9_in_the_middle_costs_nothing_that_was_acknowledged() {
    for protocol in ["grpc", "http"] {
        let server = Server::start();
        let address = if protocol == "grpc" { &server.grpc } else { &server.otlp_http };
        let (target, api) = (url(address), url(&server.http));
        let args = ["--protocol", protocol, "--target", &target, "--check", &api, "--batch", "16", "--count", "16k"];
        // At a rate, so that the kill comes in the middle also if this test is not scheduled for a second.
        let more = ["--resend", "0.2", "--late-by", "1s", "--timeout", "5s", "--rate", "4k"];
        let child = loadgen(&[&args[..], &more].concat());
        let child = { child }.spawn().unwrap();
        let size = |server: &Server| {
            let metrics = server.get("/metrics").1;
            metrics.lines().find_map(|l| l.strip_prefix("custody_log_records ")).unwrap().parse::<u64>().unwrap()
        };
        until(|| size(&server) > 1_000);
        let mut server = start_on_the_same_ports(server);
        let output = finish(child);
        let (json, told) = result(&output);
        assert_eq!(output.status.code(), Some(0), "{protocol}: {told}");
        let (step, check) = (&json["steps"][0], &json["check"]);
        assert_eq!((&step["records"], &check["present"]), (&16_000.into(), &16_000.into()), "{json}");
        assert_eq!((&check["missing"], &check["doubled"]), (&0.into(), &0.into()), "{json}");
        assert!(step["retries"].as_u64() > Some(0), "it was felt: {json}");
        server.stop();
        verify(&server.data_dir());
    }
}

/// Acknowledges everything, passes most of it on, and loses or alters the rest.
struct Liar {
    behind: TraceServiceClient<tonic::transport::Channel>,
    seen: Arc<AtomicU64>,
    fault: Fault,
}

#[derive(Clone, Copy)]
enum Fault {
    /// Every fourth request is dropped.
    Drops,
    /// Every fourth request is passed on a second time, with another name for its first span.
    Doubles,
}

#[tonic::async_trait]
impl TraceService for Liar {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let request = request.into_inner();
        let chosen = self.seen.fetch_add(1, Ordering::Relaxed) % 4 == 2;
        let mut behind = self.behind.clone();
        match (self.fault, chosen) {
            (Fault::Drops, true) => return Ok(Response::new(ExportTraceServiceResponse::default())),
            (Fault::Doubles, true) => {
                let mut other = request.clone();
                other.resource_spans[0].scope_spans[0].spans[0].name.push('!');
                behind.export(other).await?;
            }
            _ => {}
        }
        behind.export(request).await
    }
}

/// The result of a run through such a server.
fn through_a_liar(server: &Server, fault: Fault) -> (Output, Value, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let address = runtime.block_on(async {
        let behind = TraceServiceClient::connect(url(&server.grpc)).await.unwrap();
        let liar = Liar { behind, seen: Arc::default(), fault };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serve = tonic::transport::Server::builder().add_service(TraceServiceServer::new(liar));
        tokio::spawn(serve.serve_with_incoming(incoming));
        address
    });
    let (target, api) = (format!("http://{address}"), url(&server.http));
    let args = ["--target", &target, "--check", &api, "--signals", "traces", "--batch", "10", "--count", "200"];
    let output = loadgen(&[&args[..], &["--concurrency", "1", "--resend", "0"]].concat()).output().unwrap();
    let (json, told) = result(&output);
    (output, json, told)
}

#[test]
fn a_server_that_acknowledges_and_drops_is_found_out() {
    let server = Server::start();
    let (output, json, told) = through_a_liar(&server, Fault::Drops);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!((&json["steps"][0]["records"], &json["check"]["acknowledged"]), (&200.into(), &200.into()));
    assert_eq!((&json["check"]["present"], &json["check"]["missing"]), (&150.into(), &50.into()), "{json}");
    let named = json["check"]["named"][0].as_str().unwrap();
    assert!(named.starts_with("missing: record 20, a span ") && named.ends_with("sent in request 2"), "{named}");
    assert!(told.contains(named) && told.contains("50 missing"), "{told}");
    // What it names is what is not there.
    let span = named.split(' ').nth(5).unwrap();
    assert!(server.sql(&format!("SELECT seq FROM spans WHERE span_id = '{span}'")).is_empty(), "{named}");
}

#[test]
fn a_record_that_is_there_twice_is_found_out() {
    let server = Server::start();
    let (output, json, told) = through_a_liar(&server, Fault::Doubles);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!((&json["check"]["missing"], &json["check"]["doubled"]), (&0.into(), &5.into()), "{json}");
    let named = json["check"]["named"][0].as_str().unwrap();
    let span = named.strip_prefix("doubled: record ").unwrap().split(' ').nth(3).unwrap();
    let rows = server.sql(&format!("SELECT count(*) AS n FROM spans WHERE span_id = '{span}'"));
    assert_eq!(rows[0]["n"], 2, "{named}");
}

#[test]
fn readers_beside_the_load_are_each_held_against_the_ledger() {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &["--event-requests-per-minute", "1000000"]);
    let (grpc, api) = (url(&server.grpc), url(&server.http));
    let args = ["--target", &grpc, "--check", &api, "--count", "2000", "--batch", "50", "--readers", "0,8"];
    let (json, told) = {
        let output = loadgen(&args).output().unwrap();
        let (json, told) = result(&output);
        assert_eq!(output.status.code(), Some(0), "{told}");
        (json, told)
    };
    assert_eq!(json["steps"][0]["readers"], serde_json::json!({"readers": 0}));
    let readers = &json["steps"][1]["readers"];
    let counts = ["readers", "slow", "wrong", "behind"].map(|name| readers[name].as_u64().unwrap());
    assert_eq!(counts, [8, 4, 0, 0], "{json}");
    // The four fast ones have each seen all events of the second step, and those are in the ledger.
    let events = readers["events"].as_u64().unwrap();
    assert!(events > 1000 && readers["delivered_events"].as_u64().unwrap() >= 4 * events, "{json}");
    assert!(readers["lag_us"]["p99"].as_u64() > Some(0), "{json}");
    assert_eq!(json["records_per_second_with_readers"][0]["readers"], 8, "{json}");
    assert!(told.contains("8 readers, 4 slow: ") && told.contains("with 8 readers: "), "{told}");
    // Of some kinds only, and after the first run: what came before is not theirs.
    let more = ["--seed", "2", "--reader-kinds", "grant_denied,grant_issued", "--slow", "0"];
    let output = loadgen(&[&args[..8], &["--readers", "2"], &more[..]].concat()).output().unwrap();
    let (json, told) = result(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let readers = &json["steps"][0]["readers"];
    let few = readers["events"].as_u64().unwrap();
    assert!(few > 0 && few < events / 2, "{json}");
    // Over gRPC, fast and slow.
    let more = ["--seed", "3", "--readers-by", "grpc,sse", "--slow", "0.5"];
    let output = loadgen(&[&args[..8], &["--readers", "6"], &more[..]].concat()).output().unwrap();
    let (json, told) = result(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let readers = &json["steps"][0]["readers"];
    let counts =
        ["readers", "slow", "wrong", "behind", "broken_connections"].map(|name| readers[name].as_u64().unwrap());
    assert_eq!(counts, [6, 3, 0, 0, 0], "{json}");
    assert!(readers["delivered_events"].as_u64() >= Some(3 * readers["events"].as_u64().unwrap()), "{json}");
    assert_eq!(json["parameters"]["readers_by"], serde_json::json!(["grpc", "sse"]), "{json}");
    // By every way however it is compressed: the same events in fewer bytes.
    let bytes_of_an_event = ["identity", "gzip", "zstd"].map(|encoding| {
        let more =
            ["--seed", encoding_seed(encoding), "--readers-by", "pages,grpc,sse", "--readers-encoding", encoding];
        let output = loadgen(&[&args[..8], &["--readers", "6", "--slow", "0"], &more[..]].concat()).output().unwrap();
        let (json, told) = result(&output);
        assert_eq!(output.status.code(), Some(0), "{told}");
        let readers = &json["steps"][0]["readers"];
        let counts = ["wrong", "behind", "broken_connections"].map(|name| readers[name].as_u64().unwrap());
        assert_eq!(counts, [0, 0, 0], "{json}");
        assert_eq!(json["parameters"]["readers_encoding"], encoding, "{json}");
        let [bytes, events] = ["delivered_bytes", "delivered_events"].map(|name| readers[name].as_f64().unwrap());
        assert!(events >= 6.0 * readers["events"].as_f64().unwrap(), "{json}");
        bytes / events
    });
    let [plain, gzip, zstd] = bytes_of_an_event;
    assert!(gzip < plain / 2.0 && zstd < plain / 2.0, "{bytes_of_an_event:?}");
    server.stop_and_verify();
}

/// A seed of its own for each run, so that none is a retry.
fn encoding_seed(encoding: &str) -> &'static str {
    match encoding {
        "identity" => "11",
        "gzip" => "12",
        _ => "13",
    }
}

/// Passes requests on to a server, and leaves the second event out of each answer.
async fn leave_out(api: String, request: axum::extract::Request) -> axum::response::Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let compresses = parts.headers.get("accept-encoding").is_some_and(|value| value == "gzip");
    let answer = tokio::task::spawn_blocking(move || {
        let to = format!("{api}{}", parts.uri);
        let agent = ureq::Agent::new_with_defaults();
        let (answer, body) = match parts.method == "POST" {
            true => agent.post(to).header("Content-Type", "application/json").send(&body[..]),
            false => agent.get(to).call(),
        }
        .unwrap()
        .into_parts();
        let text = body.into_with_config().limit(1 << 30).read_to_string().unwrap();
        let is_page = parts.uri.path() == "/api/v1/events";
        let lines = text.split_inclusive('\n').enumerate();
        let text: String = lines.filter(|(i, _)| !is_page || *i != 1).map(|(_, line)| line).collect();
        (answer.headers, text)
    });
    let (headers, text) = answer.await.unwrap();
    let mut answer = axum::response::Response::new(text.clone().into());
    if compresses {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, text.as_bytes()).unwrap();
        answer = axum::response::Response::new(gzip.finish().unwrap().into());
        answer.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    }
    for name in ["x-next-cursor", "x-seq-range", "x-truncated", "x-log-size"] {
        if let Some(value) = headers.get(name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}

#[test]
fn a_reader_who_is_not_told_all_is_found_out() {
    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let liar = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let api = url(&server.http);
        let app = axum::Router::new().fallback(move |request| leave_out(api.clone(), request));
        tokio::spawn(async move { axum::serve(listener, app).await });
        url(&address.to_string())
    });
    let args = ["--target", &url(&server.grpc), "--count", "200", "--batch", "50", "--readers", "1", "--slow", "0"];
    let output = loadgen(&[&args[..], &["--events", &liar]].concat()).output().unwrap();
    let (json, told) = result(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!(json["steps"][0]["readers"]["wrong"], 1, "{json}");
    assert!(told.contains("reader 0 (fast, pages): saw other events than the ledger has from seq "), "{told}");
    // Also those who do not look again at what another one has looked at, each of them.
    let more =
        ["--readers", "3", "--readers-encoding", "gzip", "--readers-by", "pages", "--seed", "2", "--events", &liar];
    let output = loadgen(&[&args[..6], &["--slow", "0"], &more[..]].concat()).output().unwrap();
    let (json, told) = result(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert_eq!(json["steps"][0]["readers"]["wrong"], 3, "{json}");
}

/// What cannot work is said before anything is sent, and costs no old result.
#[test]
fn what_cannot_be_checked_is_said_before_the_run() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("result.json");
    std::fs::write(&old, "{}").unwrap();
    let grpc = url(&server.grpc);
    for (check, why) in [(server.http.clone(), "give a URL"), (url("127.0.0.1:1"), "does not answer")] {
        let program = std::path::Path::new(CUSTODY).with_file_name("custody-loadgen");
        let args = ["--target", &grpc, "--count", "512", "--check", &check, "--json", old.to_str().unwrap()];
        let output = Command::new(program).args(args).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && told.contains("--check") && told.contains(why), "{told}");
        assert_eq!(std::fs::read_to_string(&old).unwrap(), "{}");
    }
    assert_eq!(server.sql("SELECT count(*) AS n FROM spans")[0]["n"], 0);
}

/// A server that stands still is not fast: what was given up counts with the time that it took.
#[test]
fn what_is_given_up_counts_in_the_quantiles() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("http://{}", silent.local_addr().unwrap());
    let args = ["--target", &target, "--protocol", "http", "--rate", "1000", "--batch", "100", "--count", "500"];
    let output = loadgen(&[&args[..], &["--timeout", "200ms", "--retry-for", "100ms"]].concat()).output().unwrap();
    let (json, told) = result(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    let step = &json["steps"][0];
    assert_eq!((&step["failed_requests"], &step["requests"]), (&5.into(), &0.into()), "{json}");
    assert!(step["latency_us"]["p50"].as_u64() >= Some(200_000), "{json}");
}
