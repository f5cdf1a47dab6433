//! Verification, beside plain BLAKE3 over the same payload bytes.

use std::time::Instant;

use custody_proto::{Limits, Signal, scan};
use custody_store::verify::{Verdict, verify};
use custody_store::{Encoding, Options, Prepared, open};

use crate::{median, requests};

const ROUNDS: usize = 5;

/// Prints one line.
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
    let bytes: usize = requests.iter().map(Vec::len).sum();
    let timed = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(timed(&mut || {
            let verdict = verify(dir.path(), |_, _| ()).expect("the log is readable");
            assert!(matches!(verdict, Verdict::Sound(_)), "the log is sound");
        }));
        plain.push(timed(&mut || {
            for request in &requests {
                std::hint::black_box(blake3::hash(request));
            }
        }));
    }
    let ratios: Vec<f64> = ours.iter().zip(&plain).map(|(o, p)| p / o).collect();
    let rate = |seconds: f64| bytes as f64 / seconds / 1e6;
    println!(
        "verify: {} spans, {:.0} MB: {:.0} MB/s, plain BLAKE3 (whole requests, one thread) {:.0} MB/s; speed ratio {:.2} \
         (medians of {ROUNDS})",
        requests.len() * 512,
        bytes as f64 / 1e6,
        rate(median(ours)),
        rate(median(plain)),
        median(ratios),
    );
}
