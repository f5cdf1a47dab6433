//! kill -9 while requests stream in: what was acknowledged is there, once, after a
//! restart, and the log verifies.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use support::{Server, verify};

/// How many spans each request has.
const SPANS: u64 = 5;

/// How often the server is killed.
const ROUNDS: u64 = 5;

fn request(id: u64) -> ExportTraceServiceRequest {
    let span = |i: u64| Span {
        trace_id: [&[1; 8][..], &(id + 1).to_be_bytes()].concat(),
        span_id: (id * SPANS + i + 1).to_be_bytes().to_vec(),
        name: format!("step {}", id * SPANS + i),
        ..Default::default()
    };
    let scope_spans = vec![ScopeSpans { spans: (0..SPANS).map(span).collect(), ..Default::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..Default::default() }] }
}

/// Sends from `first` on, on four connections, until the server dies. Gives the ids
/// that were acknowledged, and those that were sent.
fn stream(server: &Server, first: u64, kill: impl FnOnce() + Send) -> (Vec<u64>, u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let url = format!("http://{}", server.grpc);
    let next = Arc::new(std::sync::atomic::AtomicU64::new(first));
    let enough = Arc::new(AtomicBool::new(false));
    let acknowledged = runtime.block_on(async {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (url, next, enough) = (url.clone(), Arc::clone(&next), Arc::clone(&enough));
                tokio::spawn(async move {
                    let mut client = TraceServiceClient::connect(url).await.unwrap();
                    let mut acknowledged = Vec::new();
                    loop {
                        let id = next.fetch_add(1, Ordering::Relaxed);
                        match client.export(request(id)).await {
                            Ok(_) => acknowledged.push(id),
                            Err(_) => return acknowledged,
                        }
                        if acknowledged.len() == 40 {
                            enough.store(true, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        // The kill comes in the middle of the stream, whenever that is.
        while !enough.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
        }
        kill();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.await.unwrap());
        }
        all
    });
    (acknowledged, next.load(Ordering::Relaxed))
}

#[test]
fn what_was_acknowledged_survives_kill_9_once() {
    let mut folder = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    let mut sent = 0;
    for round in 0..ROUNDS {
        let server = Server::start_in(folder, &[]);
        let pid = server.pid();
        let (more, next) = stream(&server, sent, || {
            let kill = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
            assert!(kill.success());
        });
        assert!(more.len() >= 40, "round {round}: only {} acknowledged", more.len());
        acknowledged.extend(more);
        sent = next;
        folder = server.kill();
        verify(&folder.path().join("data"));
    }
    let mut server = Server::start_in(folder, &[]);
    // The exporters send again what was not acknowledged, and some that was.
    let again = (0..sent).filter(|id| !acknowledged.contains(id) || id % 7 == 0);
    server.send_grpc(again.map(|id| support::Request::Traces(request(id))).collect());
    let rows = server.sql("SELECT name, count(*) AS times FROM spans GROUP BY name");
    let times: BTreeMap<&str, u64> =
        rows.iter().map(|r| (r["name"].as_str().unwrap(), r["times"].as_u64().unwrap())).collect();
    for id in 0..sent {
        for i in 0..SPANS {
            let name = format!("step {}", id * SPANS + i);
            assert_eq!(times.get(name.as_str()), Some(&1), "{name} is in the ledger once");
        }
    }
    assert_eq!(server.stop_and_verify()["records"], 1 + sent * SPANS);
}

#[test]
fn a_directory_in_use_unwritable_or_of_a_newer_format_is_refused_in_one_line() {
    let mut server = Server::start();
    let serve = |dir: &std::path::Path| {
        let mut command = std::process::Command::new(support::CUSTODY);
        command.arg("serve").args(support::FREE_PORTS);
        let output = command.arg("--data-dir").arg(dir).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, text) = serve(&server.data_dir());
    assert_eq!(status, Some(2));
    assert!(text.contains("in use by another process") && text.lines().count() == 1, "{text}");
    server.stop();
    std::fs::write(server.data_dir().join("FORMAT"), "custody log format 9\n").unwrap();
    let (status, text) = serve(&server.data_dir());
    assert_eq!(status, Some(2));
    assert!(text.contains("use a newer custody") && text.lines().count() == 1, "{text}");
    let file = server.path().join("a-file");
    std::fs::write(&file, "").unwrap();
    let (status, text) = serve(&file.join("data"));
    assert_eq!(status, Some(2));
    assert!(text.contains("cannot be written") && text.lines().count() == 1, "{text}");
}

#[test]
fn a_non_loopback_address_is_refused_with_the_mend() {
    let output = std::process::Command::new(support::CUSTODY).args(["serve", "--http", "0.0.0.0:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("not a loopback address") && text.contains("127.0.0.1"), "{text}");
}
