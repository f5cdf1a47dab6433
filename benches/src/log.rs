//! The log alone, without sockets: appending beside bare RocksDB, then proofs, traces
//! and bytes of a large one.

use std::time::Instant;

use bytes::Bytes;
use custody_proto::{Limits, Signal, scan};
use custody_store::{Encoding, Options, Prepared, Reader, Writer, open};
use rocksdb::{DB, WriteBatch, WriteOptions};

use crate::{median, requests_from};

/// Spans of each measurement of appending.
const SPANS: u64 = 100_000;
const ROUNDS: usize = 3;

/// How often each kind of proof is made.
const PROOFS: u64 = 2000;

pub(crate) fn prepare(request: &[u8]) -> Prepared {
    let found = scan(Signal::Traces, request, &Limits::default()).expect("a good request");
    Prepared::new(Signal::Traces, Encoding::Protobuf, Bytes::copy_from_slice(request), found, "bench")
}

/// Appending by batch (spans in a request) and by requests that share an fsync.
pub fn append() {
    println!("append: {SPANS} spans, one thread, fsynced; medians of {ROUNDS} rounds, pair by pair");
    println!("  batch  requests/fsync      spans/s   bare spans/s    time ratio");
    for (batch, group) in [(16, 1), (16, 8), (16, 64), (512, 1), (512, 8), (512, 64), (8192, 1), (8192, 8)] {
        let requests = requests_from(0, SPANS / batch, batch);
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(append_ours(&requests, group));
            bare.push(append_bare(&requests, group));
        }
        let spans = (requests.len() as u64 * batch) as f64;
        let ratio = median(ours.iter().zip(&bare).map(|(o, b)| o / b).collect());
        println!("{batch:7}{group:16}{:13.0}{:15.0}{ratio:14.2}", spans / median(ours), spans / median(bare));
    }
}

fn append_ours(requests: &[Vec<u8>], group: usize) -> f64 {
    let dir = tempfile::tempdir().expect("a folder");
    let (mut writer, _) = open(dir.path(), Options::default()).expect("the log opens");
    let start = Instant::now();
    for some in requests.chunks(group) {
        writer.append(some.iter().map(|request| prepare(request)).collect()).expect("it is appended");
    }
    start.elapsed().as_secs_f64()
}

/// The same bytes into RocksDB as it is: copied, and written with as many fsyncs.
fn append_bare(requests: &[Vec<u8>], group: usize) -> f64 {
    let dir = tempfile::tempdir().expect("a folder");
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    let db = DB::open(&options, dir.path()).expect("the database opens");
    let mut sync = WriteOptions::default();
    sync.set_sync(true);
    let (start, mut key) = (Instant::now(), 0u64);
    for some in requests.chunks(group) {
        let mut write = WriteBatch::default();
        for request in some {
            key += 1;
            write.put(key.to_be_bytes(), request);
        }
        db.write_opt(write, &sync).expect("it is written");
    }
    start.elapsed().as_secs_f64()
}

/// Proofs and traces of a log of so many records, and what it takes on disk.
pub fn proofs(records: u64) {
    let dir = tempfile::tempdir().expect("a folder");
    let (mut writer, reader) = open(dir.path(), Options::default()).expect("the log opens");
    fill(&mut writer, records);
    drop((writer, reader));
    // Opened once more, the write-ahead log becomes tables.
    let (_writer, reader) = open(dir.path(), Options::default()).expect("the log opens");
    let size = reader.head().size;
    println!("proofs: a log of {size} records; {PROOFS} at random places, each in one thread");
    let mut state = 7u64;
    let mut place = move |end: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) % end
    };
    timed("inclusion path", || drop(reader.inclusion(place(size), size).expect("it is there")));
    let mut place_too = place;
    timed("tlog-proof, with entry", || drop(reader.proof(place_too(size), false).expect("it is there")));
    timed("tlog-proof, with content", || drop(reader.proof(place_too(size), true).expect("it is there")));
    timed("consistency path", || drop(reader.consistency(1 + place_too(size - 1), size).expect("they are there")));
    timed("records of a trace, by id", || drop(reader.trace(&trace(&reader, place_too(size))).expect("it is there")));
    println!("bytes a record, compressed, in tables:");
    for (name, bytes) in reader.sizes().expect("the tables are listed").into_iter().filter(|(_, bytes)| *bytes > 0) {
        println!("  {name:12}{:8.2}", bytes as f64 / size as f64);
    }
}

/// The trace id of a record: as an investigator has it from elsewhere.
fn trace(reader: &Reader, seq: u64) -> [u8; 16] {
    use prost::Message as _;
    let block = reader.block_at(seq).expect("it is there").expect("it is there");
    let content = block.content.expect("nothing is erased");
    let record = content.record((seq - block.commitments.first_seq) as usize);
    let span = custody_proto::otlp::trace::Span::decode(record).unwrap_or_default();
    span.trace_id.try_into().unwrap_or([9; 16])
}

fn fill(writer: &mut Writer, records: u64) {
    let (batch, group) = (512, 32);
    let mut first = 0;
    while first * batch < records {
        let requests = requests_from(first, group, batch);
        writer.append(requests.iter().map(|request| prepare(request)).collect()).expect("it is appended");
        first += group;
    }
    writer.checkpoint().expect("it is signed");
}

fn timed(what: &str, mut work: impl FnMut()) {
    let mut times: Vec<f64> = (0..PROOFS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    println!("  {what:28} p50 {:8.0} us   p99 {:8.0} us", at(0.5), at(0.99));
}
