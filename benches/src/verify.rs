//! Verification, beside plain BLAKE3 over the same payload bytes.

use std::time::Instant;

use custody_proto::{Limits, Signal, scan};
use custody_store::verify::{self, Verdict, verify};
use custody_store::{Encoding, Options, Prepared, open};

use crate::{median, requests};

const ROUNDS: usize = 5;

/// Prints a line for one worker, and one for as many as there are cores.
pub fn run() {
    let requests = requests(800, 512);
    let dir = tempfile::tempdir().expect("a folder");
    let (mut writer, _) = open(dir.path(), Options::default()).expect("the log opens");
    for group in requests.chunks(8) {
        let prepare = |request: &Vec<u8>| {
            let found = scan(Signal::Traces, request, &Limits::default()).expect("a good request");
            Prepared::new(Signal::Traces, Encoding::Protobuf, request.clone().into(), found, "bench")
        };
        writer.append(group.iter().map(prepare).collect()).expect("it is appended");
    }
    writer.checkpoint().expect("it is signed");
    drop(writer);
    // Opened once more, the write-ahead log becomes tables: a log that is long has little else.
    drop(open(dir.path(), Options::default()).expect("the log opens"));
    let bytes: usize = requests.iter().map(Vec::len).sum();
    for workers in [1, 0] {
        measure(dir.path(), &requests, bytes, workers);
    }
}

fn measure(dir: &std::path::Path, requests: &[Vec<u8>], bytes: usize, workers: usize) {
    let timed = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    let (mut ours, mut plain, mut each) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(timed(&mut || {
            let options = verify::Options { workers, ..Default::default() };
            let verdict = verify(dir, &options, |_, _| ()).expect("the log is readable");
            assert!(matches!(verdict, Verdict::Sound(_)), "the log is sound");
        }));
        plain.push(timed(&mut || {
            for request in requests {
                std::hint::black_box(blake3::hash(request));
            }
        }));
        // What the format asks for: a hash of each record, none of them longer than a chunk of BLAKE3.
        each.push(timed(&mut || {
            for request in requests {
                for record in request.chunks(bytes / (requests.len() * 512)) {
                    std::hint::black_box(blake3::hash(record));
                }
            }
        }));
    }
    let ratio = |base: &[f64]| median(ours.iter().zip(base).map(|(o, p)| p / o).collect());
    let rate = |seconds: &[f64]| bytes as f64 / median(seconds.to_vec()) / 1e6;
    println!(
        "verify, {}: {} spans, {:.0} MB: {:.0} MB/s; plain BLAKE3 in one thread: whole requests {:.0} MB/s (ratio {:.2}), \
         record by record {:.0} MB/s (ratio {:.2}) (medians of {ROUNDS})",
        if workers == 1 { "one worker" } else { "a worker a core" },
        requests.len() * 512,
        bytes as f64 / 1e6,
        rate(&ours),
        rate(&plain),
        ratio(&plain),
        rate(&each),
        ratio(&each),
    );
}
