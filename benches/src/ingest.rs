//! Spans over gRPC into the log, beside the bare loop.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bytes::Bytes;
use custody_ingest::{Config, Receivers};
use rocksdb::{ColumnFamilyDescriptor, DB, DBCompressionType, Options, WriteBatch, WriteOptions};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::{cpu_seconds, median, requests, sized};

/// Spans in all, and how often each batch size is measured.
const SPANS: u64 = 200_000;
const ROUNDS: usize = 3;

/// Requests under way at once.
pub const CONCURRENCY: usize = 8;

/// The server process: receivers and log, nothing else.
pub fn serve(dir: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads start");
    runtime.block_on(async {
        let (writer, _) =
            custody_store::open(Path::new(dir), custody_store::Options::default()).expect("the log opens");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config { grpc: any, http: any, ..Config::default() };
        let receivers = Receivers::bind(config, writer).await.expect("ports are free");
        println!("{}", receivers.bound().expect("it is bound").grpc);
        let mut line = String::new();
        let stop = tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut line).map(drop));
        receivers
            .run(async {
                let _ = stop.await;
            })
            .await
            .expect("the log is well");
    });
}

pub struct Server {
    child: Child,
    pub address: String,
}

impl Server {
    pub fn start(dir: &Path) -> Self {
        let own = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(own)
            .arg("serve")
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut address = String::new();
        let out = child.stdout.take().expect("its output is piped");
        BufReader::new(out).read_line(&mut address).expect("it says its address");
        Self { child, address: address.trim().to_owned() }
    }

    pub fn stop(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().expect("the server ends");
    }
}

/// Sends bytes as they are, so that the client's own work is small.
#[derive(Clone, Copy, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        bytes::BufMut::put(out, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        let len = bytes::Buf::remaining(from);
        Ok(Some(bytes::Buf::copy_to_bytes(from, len)))
    }
}

/// Bytes that wait for the server at once, at most: it lets one client have three quarters of 256 MiB.
const IN_FLIGHT_BYTES_MAX: usize = 128 << 20;

/// How many requests of this size are sent at once.
fn most_at_once(bytes: usize) -> usize {
    CONCURRENCY.min(IN_FLIGHT_BYTES_MAX / bytes.max(1)).max(1)
}

pub async fn send(address: &str, requests: Vec<Bytes>) {
    let at_once = most_at_once(requests.iter().map(Bytes::len).max().unwrap_or(0));
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint.connect().await.expect("the server answers");
    let requests = std::sync::Arc::new(std::sync::Mutex::new(requests.into_iter()));
    let workers: Vec<_> = (0..at_once)
        .map(|_| {
            let (channel, requests) = (channel.clone(), std::sync::Arc::clone(&requests));
            tokio::spawn(async move {
                let mut client = tonic::client::Grpc::new(channel);
                let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
                loop {
                    let next = requests.lock().expect("no worker panicked").next();
                    let Some(request) = next else { return };
                    client.ready().await.expect("the connection is well");
                    let path = path.parse().expect("a path");
                    client.unary(tonic::Request::new(request), path, Raw).await.expect("it is acknowledged");
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("no worker panicked");
    }
}

/// What one way of taking the requests cost.
struct Cost {
    cpu: f64,
    wall: f64,
}

fn custody(requests: &[Vec<u8>]) -> Cost {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a thread");
    let requests = requests.iter().map(|r| Bytes::copy_from_slice(r)).collect();
    let before = cpu_seconds(server.child.id());
    let start = Instant::now();
    runtime.block_on(send(&server.address, requests));
    let cost = Cost { cpu: cpu_seconds(server.child.id()) - before, wall: start.elapsed().as_secs_f64() };
    drop(runtime);
    server.stop();
    cost
}

/// Copy, BLAKE3, LZ4 and RocksDB's write-ahead log with fsync: the same bytes.
fn bare(requests: &[Vec<u8>]) -> Cost {
    let dir = tempfile::tempdir().expect("a folder");
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    let mut family = Options::default();
    family.set_compression_type(DBCompressionType::Lz4);
    let db = DB::open_cf_descriptors(&options, dir.path(), [ColumnFamilyDescriptor::new("payloads", family)]);
    let db = db.expect("the database opens");
    let payloads = db.cf_handle("payloads").expect("it is open");
    let mut sync = WriteOptions::default();
    sync.set_sync(true);
    let own = std::process::id();
    let before = cpu_seconds(own);
    let start = Instant::now();
    // The groups that the server forms under this load, so that both fsync as often.
    let at_once = most_at_once(requests.iter().map(Vec::len).max().unwrap_or(0));
    for (number, group) in requests.chunks(at_once).enumerate() {
        let mut batch = WriteBatch::default();
        for (i, request) in group.iter().enumerate() {
            let copy = request.clone();
            let hash = blake3::hash(&copy);
            let key = ((number * at_once + i) as u64).to_be_bytes();
            batch.put_cf(payloads, key, &copy);
            batch.put(hash.as_bytes(), key);
        }
        db.write_opt(batch, &sync).expect("it is written");
    }
    db.flush_cf(payloads).expect("it is flushed");
    Cost { cpu: cpu_seconds(own) - before, wall: start.elapsed().as_secs_f64() }
}

/// Prints one line for each batch size.
pub fn run() {
    heading(&SPANS.to_string());
    for batch in [16, 128, 512, 8192] {
        let spans = if batch < 100 { SPANS / 5 } else { SPANS };
        line(batch, &requests(spans / batch, batch));
    }
}

/// The same for spans of given sizes, and for other batches.
pub fn run_sized(payloads: &[usize], batches: &[u64]) {
    heading(&format!("up to {SPANS}"));
    for (payload, batch) in payloads.iter().flat_map(|p| batches.iter().map(move |b| (*p, *b))) {
        let request_bytes = payload as u64 * batch;
        if request_bytes > sized::REQUEST_BYTES_MAX {
            println!("{batch:>7} {payload:>9} a request of {} MB is more than the receivers take", request_bytes >> 20);
            continue;
        }
        // As many as are told apart from noise: fewer where each costs an fsync, or is large.
        let spans = SPANS.min(batch * 10_000).min((256 << 20) / payload as u64);
        line(batch, &sized::requests((spans / batch).max(4), batch, payload));
    }
}

/// Has the host of a virtual machine give its memory now: the first use of a page there costs
/// more than all that is done with it, and would be counted for whoever happens to come first.
fn touch_memory() {
    const BYTES: usize = 1 << 30;
    const PAGE: usize = 4096;
    let mut memory = vec![0u8; BYTES];
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
}

fn heading(spans: &str) {
    println!(
        "ingest: {spans} spans over gRPC, at most {CONCURRENCY} requests at once, fsynced; medians of {ROUNDS} rounds"
    );
    println!(
        "{:>7} {:>9} {:>12} {:>14} {:>14} {:>12} {:>12}",
        "batch", "bytes/span", "spans/s", "CPU us/span", "bare us/span", "CPU ratio", "wall ratio"
    );
}

fn line(batch: u64, requests: &[Vec<u8>]) {
    let spans = (requests.len() as u64 * batch) as f64;
    let bytes = requests.iter().map(Vec::len).sum::<usize>() as f64 / spans;
    let round = |_| {
        touch_memory();
        let ours = custody(requests);
        touch_memory();
        (ours, bare(requests))
    };
    let rounds: Vec<(Cost, Cost)> = (0..ROUNDS).map(round).collect();
    let of = |f: &dyn Fn(&(Cost, Cost)) -> f64| median(rounds.iter().map(f).collect());
    println!(
        "{batch:>7} {bytes:>9.0} {:>12.0} {:>14.2} {:>14.2} {:>12.2} {:>12.2}",
        of(&|r| spans / r.0.wall),
        of(&|r| r.0.cpu * 1e6 / spans),
        of(&|r| r.1.cpu * 1e6 / spans),
        of(&|r| r.0.cpu / r.1.cpu),
        of(&|r| r.0.wall / r.1.wall),
    );
}
