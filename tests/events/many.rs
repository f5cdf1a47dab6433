//! A hundred readers, slow and fast, while records come in.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{CUSTODY, Server, until};

/// What one reader has seen, when he may end.
struct Reader<'a> {
    http: &'a str,
    /// How long he takes over a page.
    slowness: Duration,
    limit: usize,
    done: &'a AtomicBool,
    /// Seconds from the acknowledgement of an event to its arrival.
    lags: &'a Mutex<Vec<f64>>,
}

impl Reader<'_> {
    /// Pages by cursor with long polls, until the sender is done and nothing more comes.
    fn pages(&self) -> Vec<u64> {
        let agent = ureq::Agent::new_with_defaults();
        let (mut got, mut cursor) = (Vec::new(), String::new());
        loop {
            let done = self.done.load(Ordering::SeqCst);
            let url = format!("http://{}/api/v1/events?wait=1s&limit={}&after={cursor}", self.http, self.limit);
            let mut answer = agent.get(url).call().unwrap();
            cursor = answer.headers()["x-next-cursor"].to_str().unwrap().to_owned();
            let page = answer.body_mut().with_config().limit(1 << 30).read_to_string().unwrap();
            let page: Vec<u64> = page.lines().map(seq_of).collect();
            if page.is_empty() && done {
                return got;
            }
            got.extend(page);
            std::thread::sleep(self.slowness);
        }
    }

    /// Server-sent events, until the last one that there is.
    fn stream(&self) -> Vec<u64> {
        let agent = ureq::Agent::new_with_defaults();
        let answer =
            agent.get(format!("http://{}/api/v1/events", self.http)).header("Accept", "text/event-stream").call();
        let mut got = Vec::new();
        for line in BufReader::new(answer.unwrap().into_body().into_reader()).lines() {
            let line = line.unwrap();
            let Some(data) = line.strip_prefix("data: ") else { continue };
            got.push(seq_of(data));
            if self.slowness.is_zero() {
                self.lags.lock().unwrap().push(lag(behind(data, "\"ingest_time\":\"")));
            }
            if data.contains("\"security.alert.id\":\"the-end\"") {
                return got;
            }
            if got.len() % 100 == 0 {
                std::thread::sleep(self.slowness);
            }
        }
        panic!("the stream ended before the last event");
    }
}

/// The text behind a name, up to the next quote or comma: a hundred readers that parse JSON would be the load.
fn behind<'a>(line: &'a str, name: &str) -> &'a str {
    let rest = &line[line.find(name).unwrap() + name.len()..];
    rest.split(['"', ',', '}']).next().unwrap()
}

fn seq_of(line: &str) -> u64 {
    behind(line, "\"sequence\":").parse().unwrap()
}

/// Seconds since a time of today or yesterday, such as 2026-11-20T09:00:00.5Z.
fn lag(time: &str) -> f64 {
    let part = |range: std::ops::Range<usize>| time[range].parse::<f64>().unwrap();
    let taken = part(11..13) * 3600.0 + part(14..16) * 60.0 + part(17..time.len() - 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() % 86_400.0;
    (now - taken).rem_euclid(86_400.0)
}

/// The last record: an alert that ends every stream.
fn end(server: &Server) {
    let log = serde_json::json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [{
        "timeUnixNano": "1795165200000000000", "eventName": "security.alert",
        "attributes": [{"key": "security.alert.id", "value": {"stringValue": "the-end"}}]}]}]}]});
    let agent = ureq::Agent::new_with_defaults();
    let url = format!("http://{}/v1/logs", server.otlp_http);
    agent.post(url).header("Content-Type", "application/json").send(log.to_string().as_bytes()).unwrap();
}

fn high_water_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_hundred_slow_and_fast_readers_see_everything_in_order() {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &["--event-requests-per-minute", "1000000"]);
    let loadgen: PathBuf = std::path::Path::new(CUSTODY).with_file_name("custody-loadgen");
    let (done, lags) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    // One that takes nothing at all holds nobody up.
    let stuck = std::net::TcpStream::connect(&server.http).unwrap();
    std::io::Write::write_all(
        &mut &stuck,
        b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n",
    )
    .unwrap();
    until(|| server.get("/metrics").1.contains("\ncustody_event_streams 1\n"));
    let (http, pid) = (server.http.clone(), server.pid());
    let seen = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..100)
            .map(|i| {
                let (http, done, lags) = (&http, &done, &lags);
                let slowness = Duration::from_millis([0, 0, 20, 100][i % 4]);
                let reader = Reader { http, slowness, limit: [1000, 50, 10_000, 333][(i / 4) % 4], done, lags };
                scope.spawn(move || if i % 2 == 0 { reader.pages() } else { reader.stream() })
            })
            .collect();
        let mut load = Command::new(&loadgen)
            .args(["--target", &format!("http://{}", server.grpc), "--count", "3000", "--batch", "50", "--json", "-"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(load.wait().unwrap().success());
        end(&server);
        server.wait_until_visible();
        done.store(true, Ordering::SeqCst);
        readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
    });
    let want = server.sql("SELECT seq FROM events ORDER BY seq");
    let want: Vec<u64> = want.iter().map(|row| row["seq"].as_u64().unwrap()).collect();
    assert!(want.len() > 1500, "{}", want.len());
    for (i, got) in seen.iter().enumerate() {
        assert!(*got == want, "reader {i} saw {} of {} events", got.len(), want.len());
    }
    let mut lags = lags.into_inner().unwrap();
    lags.sort_unstable_by(f64::total_cmp);
    let at = |part: f64| lags[((lags.len() - 1) as f64 * part) as usize];
    let memory = high_water_bytes(pid);
    eprintln!(
        "delivery lag of fast readers: p50 {:.3} s, p99 {:.3} s; {} MiB at most",
        at(0.5),
        at(0.99),
        memory >> 20
    );
    assert!(memory < 512 << 20, "{} MiB", memory >> 20);
    drop(stuck);
    server.stop_and_verify();
}
