//! The loop that feeds parsers with what was right once and is changed at random; included by the
//! crates whose decoders outside bytes reach first.
//!
//! A run is deterministic. With `CUSTODY_FUZZ_SECONDS=600` each target runs that long, from a
//! seed that is printed.

use std::time::{Duration, Instant};

/// xorshift64*: enough for choosing places.
struct Dice(u64);

/// Bytes at which parsers of binary and of text turn.
const EDGES: &[u8] = b"\x00\x01\x7f\x80\xff\x0a\x12\x1f\x28\"9{}[],:-e.0\\";

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides.max(1)
    }

    /// A changed copy: bits, bytes, cuts, repeats, swaps, a part of another seed. Some stay as they were.
    fn change(&mut self, seed: &[u8], other: &[u8]) -> Vec<u8> {
        let mut out = seed.to_vec();
        for _ in 0..self.roll(5) {
            if out.is_empty() {
                break;
            }
            self.change_once(&mut out, other);
        }
        out
    }

    fn change_once(&mut self, out: &mut Vec<u8>, other: &[u8]) {
        let (at, len) = (self.roll(out.len()), 1 + self.roll(24));
        let end = (at + len).min(out.len());
        match self.roll(11) {
            0 => out[at] ^= 1 << self.roll(8),
            1 => out[at] = EDGES[self.roll(EDGES.len())],
            2 => drop(out.drain(at..end)),
            3 => {
                let part = out[at..end].to_vec();
                out.splice(at..at, part);
            }
            4 => out.truncate(at),
            5 => {
                let place = self.roll(out.len());
                out.swap(at, place);
            }
            6 => out[at] = self.roll(256) as u8,
            7 => {
                let from = self.roll(other.len());
                let part = &other[from..(from + len).min(other.len())];
                out.splice(at..at, part.iter().copied());
            }
            // A number one more or less: lengths that are off by one.
            8 => out[at] = out[at].wrapping_add([1, 255][self.roll(2)]),
            9 => out[at..end].fill(b'9'),
            _ => {
                let mut lines: Vec<&[u8]> = out.split_inclusive(|b| *b == b'\n').collect();
                let (one, two) = (self.roll(lines.len()), self.roll(lines.len()));
                lines.swap(one, two);
                *out = lines.concat();
            }
        }
    }
}

/// Runs a target over changed seeds, so many rounds or as long as the environment says; it is
/// given what it shall take and the seed that this was.
pub fn fuzz(rounds: u64, seeds: &[Vec<u8>], mut target: impl FnMut(&[u8], &[u8])) {
    let seconds: Option<u64> = std::env::var("CUSTODY_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let (start, seed) = (Instant::now(), seconds.map_or(7, |_| u64::from(std::process::id())));
    println!("seed {seed}");
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ seed);
    for round in 0.. {
        let is_over = match seconds {
            Some(seconds) => start.elapsed() > Duration::from_secs(seconds),
            None => round >= rounds,
        };
        if is_over {
            println!("{round} rounds");
            return;
        }
        let seed = &seeds[dice.roll(seeds.len())];
        let other = &seeds[dice.roll(seeds.len())];
        target(&dice.change(seed, other), seed);
    }
}
