//! A stopping server says so, and loses nothing that it acknowledged.

use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;

use crate::harness::{Answer, PROTOBUF, Target, connect, head, post_from, read_to_end, request, request_of, span};
use crate::support::{until, verify};

fn terminate(target: &Target) {
    assert!(Command::new("kill").arg(target.server.pid().to_string()).status().unwrap().success());
}

#[test]
fn a_stopping_server_finishes_what_has_begun_and_turns_away_the_rest() {
    // It waits for this test, however slow the machine is.
    let mut target = Target::start(&["--drain-timeout", "600", "--body-timeout", "600"]);
    let body = request(1, 1);
    let mut begun = connect(1, &target.server.otlp_http);
    begun.write_all(head(PROTOBUF, body.len()).as_bytes()).unwrap();
    begun.write_all(&body[..5]).unwrap();
    until(|| target.server.get("/metrics").1.contains("\ncustody_ingest_in_flight_bytes 5\n"));
    terminate(&target);
    until(|| target.server.get("/readyz").0 == 503);
    assert!(target.server.get("/readyz").1.contains("the server is stopping"));
    let answer = post_from(2, &target.server.otlp_http, PROTOBUF, &request(2, 1));
    answer.is_unavailable("the server is stopping");
    let (status, why, details) = crate::http2::turned_away(&target);
    assert_eq!(status, 14, "{why}");
    assert!(why.contains("stopping") && details.contains("google.rpc.RetryInfo"), "{why} {details}");
    begun.write_all(&body[5..]).unwrap();
    assert_eq!(Answer::parse(&read_to_end(&mut begun)).status, 200);
    target.server.wait();
    let summary = verify(&target.server.data_dir());
    assert_eq!((&summary["records"], &summary["unsigned"]), (&2.into(), &0.into()));
}

/// Eight clients send while the server is stopped: what was acknowledged is in the log, and
/// what was refused was refused in a way that every exporter retries.
#[test]
fn nothing_acknowledged_is_lost_when_it_is_stopped_under_load() {
    let mut target = Target::start(&[]);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let http: Vec<_> = (0..4u64)
        .map(|client| {
            let (address, acknowledged) = (target.server.otlp_http.clone(), Arc::clone(&acknowledged));
            crate::harness::spawn(move || {
                for n in 0.. {
                    let Ok(mut stream) = std::net::TcpStream::connect(&address) else { return };
                    let body = request(client << 32 | n, 1);
                    let _ = stream.write_all(&[head(PROTOBUF, body.len()).as_bytes(), &body].concat());
                    let came = read_to_end(&mut stream);
                    if came.starts_with(b"HTTP/1.1 200") {
                        acknowledged.fetch_add(1, Ordering::SeqCst);
                    } else if !came.is_empty() {
                        Answer::parse(&came).is_unavailable("stopping");
                    }
                }
            })
        })
        .collect();
    let (url, pid) = (format!("http://{}", target.server.grpc), target.server.pid());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let grpc: Vec<_> = (8..12u64)
            .map(|client| {
                let (url, acknowledged) = (url.clone(), Arc::clone(&acknowledged));
                tokio::spawn(async move {
                    let mut service = TraceServiceClient::connect(url).await.unwrap();
                    for n in 0.. {
                        match service.export(request_of(vec![span(client << 32 | n)])).await {
                            Ok(_) => drop(acknowledged.fetch_add(1, Ordering::SeqCst)),
                            Err(status) => return status,
                        }
                    }
                    unreachable!()
                })
            })
            .collect();
        while acknowledged.load(Ordering::SeqCst) < 300 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert!(Command::new("kill").arg(pid.to_string()).status().unwrap().success());
        for client in grpc {
            let status = client.await.unwrap();
            // tonic calls a connection that closed under a call Unavailable, Cancelled or Unknown; never an answer.
            let retried = [tonic::Code::Unavailable, tonic::Code::Cancelled, tonic::Code::Unknown];
            assert!(retried.contains(&status.code()), "{status:?}");
        }
    });
    http.into_iter().for_each(|thread| thread.join().unwrap());
    target.server.wait();
    let summary = verify(&target.server.data_dir());
    assert_eq!(summary["unsigned"], 0);
    let records = summary["records"].as_u64().unwrap();
    let acknowledged = acknowledged.load(Ordering::SeqCst);
    // A record may be in the log whose answer the client did not wait for; none is missing.
    assert!(
        records > acknowledged && records <= 1 + acknowledged + 8,
        "{records} records, {acknowledged} acknowledged"
    );
    target.server = target.server.restart();
    let rows = target.server.sql("SELECT count(DISTINCT span_id) AS spans FROM spans");
    assert_eq!(rows[0]["spans"].as_u64(), Some(records - 1));
}
