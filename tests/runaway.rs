//! A query that runs away does not take ingest with it: what requests cost beside two of them, and without.
//!
//! Pairs of windows, one alone and one beside, are measured until their ratio is known well enough: others may use
//! this machine, too, so what is compared is the faster quarter of each. And all threads of queries, and no others, must
//! be those that give way, whatever the clock says, and queries that last must rest.

mod support;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use support::{Request, Server};

/// Requests of one window.
const REQUESTS: u64 = 48;

/// Pairs of windows that are measured at least, and at most.
const PAIRS: std::ops::RangeInclusive<usize> = 6..=40;

/// How much longer requests may take beside runaway queries.
const RATIO_MAX: f64 = 1.1;

/// The niceness of threads that give way.
const NICE: i64 = 12;

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

/// The name and niceness of a thread (`proc_pid_stat(5)`, the nineteenth field).
fn thread(stat: String) -> (String, i64) {
    let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(')').unwrap();
    // The state is the third field, and the first behind the name.
    (name.to_owned(), rest.split_whitespace().nth(16).unwrap().parse().unwrap())
}

/// The threads of the server.
fn threads(server: &Server) -> Vec<(String, i64)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    // One may end while they are listed.
    tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok()).map(thread).collect()
}

/// The time that the faster quarter of some windows stays below.
fn quarter(times: &[Duration]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 4].as_secs_f64()
}

#[test]
fn runaway_queries_leave_ingest_its_speed() {
    // Whoever runs the tests may give way himself.
    let own = thread(std::fs::read_to_string("/proc/self/stat").unwrap()).1;
    // Whatever is asked lasts.
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &["--query-prompt", "0"]);
    server.send_grpc(requests(0));
    server.wait_until_visible();
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let mut round = 0;
    let mut ratio = f64::MAX;
    while alone.len() < *PAIRS.end() && (alone.len() < *PAIRS.start() || ratio > RATIO_MAX) {
        // Which of a pair comes first changes, for what grows with the log.
        for running in [[0, 2], [2, 0]][alone.len() % 2] {
            let mut queries: Vec<Child> = (0..running).map(|_| run_away(&server)).collect();
            let line = format!("\ncustody_sql_queries_running {running}\n");
            support::until(|| server.get("/metrics").1.contains(&line));
            round += 1;
            let batch = requests(round);
            let start = Instant::now();
            server.send_grpc(batch);
            let took = start.elapsed();
            if running == 0 { &mut alone } else { &mut beside }.push(took);
            if running > 0 {
                // A thread has its name a moment before it gives way.
                support::until(|| {
                    threads(&server).iter().all(|(name, nice)| {
                        let gives_way = name.starts_with("query");
                        let takes_records = ["tokio-rt-worker", "sequencer"].iter().any(|of| name.starts_with(of));
                        (!gives_way || *nice == NICE) && (!takes_records || *nice == own)
                    })
                });
            }
            for query in &mut queries {
                query.kill().unwrap();
                query.wait().unwrap();
            }
            support::until(|| server.get("/metrics").1.contains("\ncustody_sql_queries_running 0\n"));
        }
        ratio = quarter(&beside) / quarter(&alone);
        println!(
            "{} pairs of 24,576 spans: {:?} alone, {:?} beside: {ratio:.3}",
            alone.len(),
            alone.last(),
            beside.last()
        );
    }
    assert!(ratio <= RATIO_MAX, "{ratio:.3}: {alone:?} {beside:?}");
    let metrics = server.get("/metrics").1;
    let rested = metrics.lines().find_map(|line| line.strip_prefix("custody_sql_rested_seconds_total "));
    assert!(rested.is_some_and(|seconds| seconds.parse::<f64>().unwrap() > 0.0), "{rested:?}");
    server.stop_and_verify();
}
