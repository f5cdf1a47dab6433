//! How long an acknowledgement takes, beside a bare fsync of the same bytes.
//!
//! `single`: one request at a time on a server that has nothing else to do.
//! `half`: requests that come at half the rate that the server can take, each
//! timed from when it was due.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rocksdb::{DB, Options, WriteOptions};

use crate::ingest::{CONCURRENCY, Raw, Server};
use crate::{median, requests, requests_from};

const ROUNDS: usize = 3;

/// Where the trace service of gRPC is.
const PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Two quantiles, in microseconds.
#[derive(Clone, Copy)]
struct Times {
    p50: f64,
    p99: f64,
}

fn times(mut all: Vec<Duration>) -> Times {
    all.sort_unstable();
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    Times { p50: at(0.5), p99: at(0.99) }
}

/// A database that does nothing but write its log and sync it.
struct Bare {
    db: DB,
    sync: WriteOptions,
}

impl Bare {
    fn open(dir: &Path) -> Self {
        let mut options = Options::default();
        options.create_if_missing(true);
        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        Self { db: DB::open(&options, dir).expect("the database opens"), sync }
    }

    fn put(&self, number: u64, bytes: &[u8]) -> Duration {
        let start = Instant::now();
        self.db.put_opt(number.to_be_bytes(), bytes, &self.sync).expect("it is written");
        start.elapsed()
    }
}

async fn connect(address: &str) -> tonic::client::Grpc<tonic::transport::Channel> {
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{address}")).expect("an address");
    tonic::client::Grpc::new(endpoint.connect().await.expect("the server answers"))
}

async fn send(client: &mut tonic::client::Grpc<tonic::transport::Channel>, request: Bytes) {
    client.ready().await.expect("the connection is well");
    let path = PATH.parse().expect("a path");
    client.unary(tonic::Request::new(request), path, Raw).await.expect("it is acknowledged");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a thread")
}

/// One small request at a time, in turns with a bare write of the same bytes, so
/// that both meet the same disk.
pub fn single() {
    const REQUESTS: u64 = 1_000;
    println!(
        "single: {REQUESTS} requests of one 450-byte span, one at a time, in turns with bare synced writes; medians of {ROUNDS} rounds"
    );
    let round = |number: u64| {
        let (dir, bare_dir) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let (server, bare) = (Server::start(dir.path()), Bare::open(bare_dir.path()));
        let (mut taken, mut synced) = (Vec::new(), Vec::new());
        runtime().block_on(async {
            let mut client = connect(&server.address).await;
            for (i, request) in requests_from(number * REQUESTS, REQUESTS, 1).into_iter().enumerate() {
                synced.push(bare.put(i as u64, &request));
                let start = Instant::now();
                send(&mut client, request.into()).await;
                taken.push(start.elapsed());
            }
        });
        server.stop();
        (times(taken), times(synced))
    };
    print(&(0..ROUNDS as u64).map(round).collect::<Vec<_>>());
}

fn print(rounds: &[(Times, Times)]) {
    println!("{:>6} {:>16} {:>16} {:>8}", "", "acknowledged us", "bare fsync us", "ratio");
    let of = |f: &dyn Fn(&(Times, Times)) -> f64| median(rounds.iter().map(f).collect());
    let line = |name: &str, of_one: &dyn Fn(&Times) -> f64| {
        let ratio = of(&|r| of_one(&r.0) / of_one(&r.1));
        println!("{name:>6} {:>16.0} {:>16.0} {ratio:>8.2}", of(&|r| of_one(&r.0)), of(&|r| of_one(&r.1)));
    };
    line("p50", &|t| t.p50);
    line("p99", &|t| t.p99);
}

/// Requests at half the highest rate.
pub fn half(batch: u64) {
    const SECONDS: f64 = 5.0;
    println!(
        "half: batches of {batch} spans of 450 bytes at half the rate that {CONCURRENCY} at once reach, for {SECONDS} s; \
         latency from when a request was due; bare synced writes of the same bytes at the same times; medians of {ROUNDS} rounds"
    );
    let spans = (200_000 / batch).max(20);
    let round = |_| {
        let dir = tempfile::tempdir().expect("a folder");
        let server = Server::start(dir.path());
        let start = Instant::now();
        let warm = requests(spans, batch).into_iter().map(Bytes::from).collect();
        let prepared = start.elapsed();
        runtime().block_on(crate::ingest::send(&server.address, warm));
        let rate = spans as f64 / (start.elapsed() - prepared).as_secs_f64() / 2.0;
        let interval = Duration::from_secs_f64(1.0 / rate);
        let count = (SECONDS * rate) as u64 + 1;
        let load: Vec<Bytes> = requests_from(spans, count, batch).into_iter().map(Bytes::from).collect();
        let taken = paced(&server.address, load.clone(), interval);
        server.stop();
        let bare_dir = tempfile::tempdir().expect("a folder");
        let bare = Bare::open(bare_dir.path());
        let start = Instant::now();
        let synced = load.iter().enumerate().map(|(i, request)| {
            std::thread::sleep((start + interval * i as u32).saturating_duration_since(Instant::now()));
            bare.put(i as u64, request)
        });
        let synced = times(synced.collect());
        println!("       (half is {:.0} spans/s)", rate * batch as f64);
        (times(taken), synced)
    };
    print(&(0..ROUNDS).map(round).collect::<Vec<_>>());
}

/// Sends each request when it is due; a thread keeps the time, as the runtime's timer is too coarse.
fn paced(address: &str, load: Vec<Bytes>, interval: Duration) -> Vec<Duration> {
    let (go, mut due) = tokio::sync::mpsc::unbounded_channel();
    let pacing = move || {
        let start = Instant::now();
        for (i, request) in load.into_iter().enumerate() {
            let when = start + interval * i as u32;
            std::thread::sleep(when.saturating_duration_since(Instant::now()));
            if go.send((when, request)).is_err() {
                return;
            }
        }
    };
    let pacer = std::thread::Builder::new().name("pacer".into()).spawn(pacing).expect("a thread starts");
    let taken = runtime().block_on(async {
        let client = connect(address).await;
        let mut tasks = Vec::new();
        while let Some((when, request)) = due.recv().await {
            let mut client = client.clone();
            tasks.push(tokio::spawn(async move {
                send(&mut client, request).await;
                when.elapsed()
            }));
        }
        let mut taken = Vec::new();
        for task in tasks {
            taken.push(task.await.expect("no request panicked"));
        }
        taken
    });
    pacer.join().expect("the pacer is well");
    taken
}
