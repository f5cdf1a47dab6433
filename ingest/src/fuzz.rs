//! The decoders of this crate that outside bytes reach first, fed with what was right
//! once and is changed at random.

#[path = "../../tests/support/dice.rs"]
mod dice;

use std::io::{Read as _, Write as _};

use bytes::Bytes;

use crate::Refusal;
use crate::admission::{Admission, Held};
use crate::body::{Compression, decompress};
use crate::grpc::unframe;

/// Rounds of each target in a normal run.
const ROUNDS: u64 = 3000;

/// The bound of decompression here.
const MAX: usize = 1 << 16;

/// Runs a target over changed bodies.
fn fuzz(seeds: &[Vec<u8>], target: impl Fn(Bytes)) {
    dice::fuzz(ROUNDS, seeds, |body, _| target(Bytes::copy_from_slice(body)));
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
fn is_bounded(body: &Bytes, compression: Compression, whole: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut held = held();
    let made = decompress(body.clone(), compression, MAX, &mut held);
    assert!(held.bytes() <= MAX as u64 + (64 << 10), "it made {} bytes", held.bytes());
    match (made, whole(body)) {
        (Ok(made), Some(whole)) => assert!(made == whole),
        (Ok(_), None) => panic!("it takes what the library refuses: {body:x?}"),
        (Err(Refusal::TooLarge(MAX)), whole) => assert!(whole.is_none_or(|whole| whole.len() > MAX)),
        // With room for all of it, libzstd compares a frame with the size that it claims; in small
        // pieces it does not. We give it 64 KiB at a time, and so refuse small liars.
        (Err(Refusal::Invalid(_)), Some(_)) if compression == Compression::Zstd => {
            assert!(zstd::bulk::decompress(body, 8 * MAX).is_err(), "it refuses what the library takes: {body:x?}");
        }
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
