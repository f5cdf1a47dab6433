//! The decoders of this crate that outside bytes reach first, fed with what was right
//! once and is changed at random. As in `store/tests/fuzz.rs`, a run is deterministic;
//! with `CUSTODY_FUZZ_SECONDS=600` each target runs that long, from a seed that is printed.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::Refusal;
use crate::admission::{Admission, Held};
use crate::body::{Compression, decompress};
use crate::grpc::unframe;

/// Rounds of each target in a normal run.
const ROUNDS: u64 = 3000;

/// The bound of decompression here.
const MAX: usize = 1 << 16;

/// xorshift64*: enough for choosing places.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides.max(1)
    }

    /// A changed copy: bits, bytes, cuts, repeats, swaps.
    fn change(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut out = seed.to_vec();
        for _ in 0..self.roll(5) {
            if out.is_empty() {
                break;
            }
            let (at, len) = (self.roll(out.len()), 1 + self.roll(24));
            let end = (at + len).min(out.len());
            match self.roll(7) {
                0 => out[at] ^= 1 << self.roll(8),
                1 => out[at] = [0, 1, 0x7f, 0x80, 0xff, 0x1f, 0x28][self.roll(7)],
                2 => drop(out.drain(at..end)),
                3 => {
                    let part = out[at..end].to_vec();
                    out.splice(at..at, part);
                }
                4 => out.truncate(at),
                5 => out.extend_from_slice(seed),
                _ => {
                    let other = self.roll(out.len());
                    out.swap(at, other);
                }
            }
        }
        out
    }
}

/// Runs a target over changed seeds.
fn fuzz(seeds: &[Vec<u8>], mut target: impl FnMut(Bytes)) {
    let seconds: Option<u64> = std::env::var("CUSTODY_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let (start, seed) = (Instant::now(), seconds.map_or(7, |_| u64::from(std::process::id())));
    println!("seed {seed}");
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ seed);
    for round in 0.. {
        let is_over = match seconds {
            Some(seconds) => start.elapsed() > Duration::from_secs(seconds),
            None => round >= ROUNDS,
        };
        if is_over {
            println!("{round} rounds");
            return;
        }
        let seed = &seeds[dice.roll(seeds.len())];
        target(dice.change(seed).into());
    }
}

fn held() -> Held {
    Admission::new(Default::default(), Default::default()).client("peer".into()).hold()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What must hold of a decoder's answer: the whole, within the bound, or a refusal that says which.
fn is_bounded(body: &Bytes, compression: Compression, whole: impl FnOnce(&[u8]) -> Option<Vec<u8>>) {
    let mut held = held();
    let made = decompress(body.clone(), compression, MAX, &mut held);
    assert!(held.bytes() <= MAX as u64 + (64 << 10), "it made {} bytes", held.bytes());
    match (made, whole(body)) {
        (Ok(made), Some(whole)) => assert!(made == whole),
        (Ok(_), None) => panic!("it takes what the library refuses: {body:x?}"),
        (Err(Refusal::TooLarge(MAX)), whole) => assert!(whole.is_none_or(|whole| whole.len() > MAX)),
        (Err(Refusal::Invalid(_)), whole) => assert!(whole.is_none(), "it refuses what the library takes: {body:x?}"),
        (Err(other), _) => panic!("{other:?}"),
    }
}

#[test]
fn gzip_is_read_as_the_library_reads_it_and_no_further_than_the_bound() {
    let text = b"a step of an agent ".repeat(40);
    let seeds = [gzip(&text), [gzip(b"one"), gzip(&text)].concat(), gzip(&vec![0; 3 * MAX]), gzip(b"")];
    fuzz(&seeds, |body| {
        is_bounded(&body, Compression::Gzip, |body| {
            let mut out = Vec::new();
            // Bounded too: what is larger is told apart by its length.
            let read = flate2::read::MultiGzDecoder::new(body).take(2 * MAX as u64).read_to_end(&mut out);
            read.is_ok().then_some(out)
        });
    });
}

#[test]
fn zstd_is_read_as_the_library_reads_it_and_no_further_than_the_bound() {
    let text = b"a step of an agent ".repeat(40);
    let pack = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let seeds = [pack(&text), [&pack(b"one")[..], &skippable, &pack(&text)].concat(), pack(&vec![0; 3 * MAX])];
    fuzz(&seeds, |body| {
        is_bounded(&body, Compression::Zstd, |body| {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(body).ok()?;
            decoder.window_log_max(25).ok()?;
            let mut out = Vec::new();
            decoder.take(2 * MAX as u64).read_to_end(&mut out).is_ok().then_some(out)
        });
    });
}

#[test]
fn a_frame_of_grpc_is_the_one_message_or_refused() {
    let message = |flag: u8, bytes: &[u8]| [&[flag], &(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    let seeds = [message(0, b"a request"), message(1, &gzip(b"a request")), message(0, b"")];
    fuzz(&seeds, |body| {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            match unframe(body.clone(), compression) {
                Ok((bytes, packed)) => assert_eq!(body, message(packed.into(), &bytes)),
                Err(Refusal::Invalid(why)) => assert!(!why.is_empty()),
                Err(other) => panic!("{other:?}"),
            }
        }
    });
}
