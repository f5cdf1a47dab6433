//! A query that runs away does not take ingest with it: what requests cost beside two of them, and
//! without. The ratio is printed; on a machine that does nothing else it is near 1.

mod support;

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use support::{Request, Server};

/// Requests of one round.
const REQUESTS: u64 = 24;

fn requests(round: u64) -> Vec<Request> {
    let attribute = KeyValue {
        key: "note".into(),
        value: Some(AnyValue { value: Some(Value::StringValue("n".repeat(400))) }),
        ..Default::default()
    };
    let span = |id: u64| Span {
        trace_id: u128::from(id + 1).to_be_bytes().to_vec(),
        span_id: (id + 1).to_be_bytes().to_vec(),
        name: "work".into(),
        start_time_unix_nano: 1,
        end_time_unix_nano: 2,
        attributes: vec![attribute.clone()],
        ..Default::default()
    };
    let request = |r: u64| {
        let spans = (0..512).map(|i| span((round * REQUESTS + r) * 512 + i)).collect();
        let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
        let resource_spans = vec![ResourceSpans { scope_spans, ..Default::default() }];
        Request::Traces(ExportTraceServiceRequest { resource_spans })
    };
    (0..REQUESTS).map(request).collect()
}

/// Asks for what never ends.
fn run_away(server: &Server) -> Child {
    let sql = "SELECT count(*) FROM spans a JOIN spans b ON a.seq + b.seq > 0 JOIN spans c ON a.seq * c.seq >= 0";
    let url = format!("http://{}", server.http);
    let args = ["sql", sql, "--timeout-ms", "600000", "--url", &url];
    Command::new(support::CUSTODY).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn runaway_queries_leave_ingest_its_speed() {
    let mut server = Server::start();
    server.send_grpc(requests(0));
    server.wait_until_visible();
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for round in 0..10 {
        let mut queries: Vec<Child> = (0..round % 2 * 2).map(|_| run_away(&server)).collect();
        let running = queries.len();
        support::until(|| server.get("/metrics").1.contains(&format!("\ncustody_sql_queries_running {running}\n")));
        let batch = requests(round + 1);
        let start = Instant::now();
        server.send_grpc(batch);
        let took = start.elapsed();
        if running == 0 {
            alone.push(took)
        } else {
            beside.push(took)
        }
        for query in &mut queries {
            query.kill().unwrap();
            query.wait().unwrap();
        }
        support::until(|| server.get("/metrics").1.contains("\ncustody_sql_queries_running 0\n"));
    }
    alone.sort_unstable();
    beside.sort_unstable();
    // The least of each: others may use this machine, too.
    let ratio = beside[0].as_secs_f64() / alone[0].as_secs_f64();
    println!("12,288 spans: {:?} alone, {:?} beside two runaway queries: {ratio:.2}", alone[0], beside[0]);
    // Queries that took all they could, on each processor, would make it 3 and more.
    assert!(ratio < 2.5, "{alone:?} {beside:?}");
    server.stop_and_verify();
}
