//! Compressed bytes that are made once and stand in the answers of many readers, between bytes that are each
//! reader's own: a gzip member (RFC 1952), and a zstd frame (RFC 8878), is a row of blocks, and blocks that lean on
//! nothing before them may stand behind any others. Those of zstd lean on the offsets of the last compressed ones, so
//! that in a frame what many share stands once, between stored blocks.
//!
//! An answer is one member or one frame. Several would be as good by either RFC, but clients that are in use
//! end with the first one and lose the rest.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compress, Compression, Crc, FlushCompress};

use super::coding::Coding;
use crate::error::Error;

/// What is smaller is not worth it.
pub(super) const BYTES_MIN: usize = 1 << 10;

/// Compressing must keep up with the log, on one of the processors that take it.
const GZIP_LEVEL: u32 = 3;
const ZSTD_LEVEL: i32 = 1;

/// A gzip member begins so: deflate, no name, no time, an unknown system.
const GZIP_HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// What makes a decoder give out all that it has: an empty stored block, at the end of a byte.
const GZIP_FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// An empty block that is the last.
const GZIP_LAST: [u8; 5] = [1, 0, 0, 0xff, 0xff];
const ZSTD_LAST: [u8; 3] = [1, 0, 0];

/// A zstd frame begins so: neither its size nor a checksum is told, and decoders keep 2 MiB to refer back to, less
/// than the 8 MiB that a coding of HTTP may ask for (RFC 9659).
const ZSTD_WINDOW_LOG: u8 = 21;
const ZSTD_HEAD: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0, (ZSTD_WINDOW_LOG - 10) << 3];

/// Room for what comes out of deflate, at least; it must have room for a flush in any case.
const GZIP_ROOM: usize = 16 << 10;

/// The most bytes of a block that is stored as it is.
const GZIP_STORED_MAX: usize = 0xffff;
const ZSTD_STORED_MAX: usize = 128 << 10;

/// Compressed blocks that lean on nothing before them but stored ones, none of them the last.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) coding: Coding,
    pub(super) blocks: Bytes,
    /// Of what they stand for; gzip alone has it.
    crc: Crc,
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("events cannot be compressed: {error}"))
}

impl Packed {
    /// Compresses what lies in these parts.
    pub(super) fn make<'a>(coding: Coding, parts: impl Iterator<Item = &'a [u8]>) -> Result<Self, Error> {
        let mut crc = Crc::new();
        let blocks = match coding {
            Coding::Identity => return Err(Error::internal("what is sent as it is has no blocks")),
            Coding::Gzip => {
                let (mut deflate, mut out) = (Compress::new(Compression::new(GZIP_LEVEL), false), Vec::new());
                for part in parts {
                    crc.update(part);
                    push(&mut deflate, part, &mut out, FlushCompress::None)?;
                }
                // Ends at the end of a byte, and is not the end.
                push(&mut deflate, &[], &mut out, FlushCompress::Sync)?;
                out
            }
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).map_err(failed)?;
                let mut bytes = 0;
                for part in parts {
                    bytes += part.len();
                    encoder.write_all(part).map_err(failed)?;
                }
                match bytes {
                    0 => Vec::new(),
                    _ => blocks_of(encoder.finish().map_err(failed)?).ok_or_else(|| failed("this is another frame"))?,
                }
            }
        };
        Ok(Self { coding, blocks: blocks.into_boxed_slice().into(), crc })
    }
}

/// Compresses more. A flush has ended when room is left over: `DeflateEncoder` asks for the rest of a long one without
/// saying again that it is one, and is not given it.
fn push(deflate: &mut Compress, mut data: &[u8], out: &mut Vec<u8>, flush: FlushCompress) -> Result<(), Error> {
    loop {
        out.reserve(GZIP_ROOM);
        let before = deflate.total_in();
        deflate.compress_vec(data, out, flush).map_err(failed)?;
        data = &data[(deflate.total_in() - before) as usize..];
        if data.is_empty() && out.len() < out.capacity() {
            return Ok(());
        }
    }
}

/// The blocks of a frame that was made without a known size, none of them the last.
fn blocks_of(mut frame: Vec<u8>) -> Option<Vec<u8>> {
    let (begin, last) = (ZSTD_HEAD.len(), ZSTD_HEAD.len() - 1);
    // The same as ours, or with less to refer back to.
    if frame.get(..last)? != &ZSTD_HEAD[..last] || *frame.get(last)? > ZSTD_HEAD[last] {
        return None;
    }
    let mut at = begin;
    loop {
        let head = frame.get(at..at + 3)?;
        let head = u32::from_le_bytes([head[0], head[1], head[2], 0]);
        let bytes = match (head >> 1) & 3 {
            // One byte, so many times.
            1 => 1,
            _ => head as usize >> 3,
        };
        let end = at + 3 + bytes;
        if head & 1 == 1 {
            (end == frame.len()).then_some(())?;
            frame[at] &= !1;
            frame.drain(..begin);
            return Some(frame);
        }
        at = end;
    }
}

/// One compressed text under way: its blocks, one behind the other.
#[derive(Debug)]
pub(super) struct Packing {
    coding: Coding,
    crc: Crc,
    /// Whether something compressed stands in it.
    has_shared: bool,
    /// Blocks that were not taken.
    own: Vec<u8>,
}

impl Packing {
    /// A member, or a frame; or what is sent as it is.
    pub(super) fn begin(coding: Coding) -> Self {
        let own = match coding {
            Coding::Identity => Vec::new(),
            Coding::Gzip => GZIP_HEAD.to_vec(),
            Coding::Zstd => ZSTD_HEAD.to_vec(),
        };
        Self { coding, crc: Crc::new(), has_shared: false, own }
    }

    /// Whether it is sent as it is.
    pub(super) fn is_plain(&self) -> bool {
        self.coding == Coding::Identity
    }

    /// Bytes of this reader's own, as they are.
    pub(super) fn store(&mut self, bytes: &[u8]) {
        match self.coding {
            Coding::Identity => self.own.extend_from_slice(bytes),
            Coding::Gzip => {
                self.crc.update(bytes);
                for part in bytes.chunks(GZIP_STORED_MAX) {
                    let len = part.len() as u16;
                    self.own.push(0);
                    self.own.extend(len.to_le_bytes());
                    self.own.extend((!len).to_le_bytes());
                    self.own.extend_from_slice(part);
                }
            }
            Coding::Zstd => {
                for part in bytes.chunks(ZSTD_STORED_MAX) {
                    self.own.extend(&((part.len() as u32) << 3).to_le_bytes()[..3]);
                    self.own.extend_from_slice(part);
                }
            }
        }
    }

    /// Bytes that many have; in a frame of zstd once.
    pub(super) fn share(&mut self, packed: &Packed) -> [Bytes; 2] {
        assert_eq!(self.coding, packed.coding, "blocks of another coding");
        assert!(self.coding != Coding::Zstd || !self.has_shared, "the second blocks of a frame");
        self.has_shared = true;
        self.crc.combine(&packed.crc);
        [self.taken(), packed.blocks.clone()]
    }

    /// What is not taken yet; a reader can read all of it when it has come.
    pub(super) fn flush(&mut self) -> Bytes {
        if self.coding == Coding::Gzip {
            self.own.extend(GZIP_FLUSH);
        }
        self.taken()
    }

    fn taken(&mut self) -> Bytes {
        std::mem::take(&mut self.own).into()
    }

    /// The end.
    pub(super) fn end(mut self) -> Bytes {
        match self.coding {
            Coding::Identity => {}
            Coding::Gzip => {
                self.own.extend(GZIP_LAST);
                self.own.extend(self.crc.sum().to_le_bytes());
                self.own.extend(self.crc.amount().to_le_bytes());
            }
            Coding::Zstd => self.own.extend(ZSTD_LAST),
        }
        self.own.into()
    }
}

/// Compresses parts for one reader.
pub(super) fn whole(coding: Coding, parts: &[&[u8]]) -> Result<Vec<Bytes>, Error> {
    let packed = Packed::make(coding, parts.iter().copied())?;
    let mut packing = Packing::begin(coding);
    let mut out = packing.share(&packed).to_vec();
    out.push(packing.end());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read as _;

    fn read(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match coding {
            Coding::Identity => out.extend(bytes),
            // One member alone, with its checksum, and nothing behind it.
            Coding::Gzip => {
                let mut decoder = flate2::bufread::GzDecoder::new(bytes);
                decoder.read_to_end(&mut out).unwrap();
                assert!(decoder.into_inner().is_empty());
            }
            Coding::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).unwrap().single_frame();
                decoder.read_to_end(&mut out).unwrap();
                assert!(decoder.finish().is_empty());
            }
        }
        out
    }

    /// Text that compresses, about, and bytes that do not.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(Vec::new()),
            proptest::collection::vec(any::<u8>(), 0..2000),
            ("[a-e]{1,12}", 1..9000usize).prop_map(|(text, times)| text.repeat(times).into_bytes()),
            (any::<u8>(), 0..300_000usize).prop_map(|(byte, times)| vec![byte; times]),
            (any::<u64>(), 0..40_000usize).prop_map(|(seed, numbers)| {
                let scatter = |n: usize| (n as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
                (0..numbers).flat_map(|n| scatter(n).to_le_bytes()).collect()
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Blocks of many and of one's own, in any order: one member, or one frame, that is all of them. A frame has
        /// one row of blocks that many have.
        #[test]
        fn what_is_unpacked_is_what_was_packed(
            pieces in proptest::collection::vec((piece(), any::<bool>(), any::<bool>()), 0..6),
        ) {
            for coding in [Coding::Identity, Coding::Gzip, Coding::Zstd] {
                let (mut packing, mut sent, mut want) = (Packing::begin(coding), Vec::new(), Vec::new());
                for (piece, is_shared, flushes) in &pieces {
                    want.extend_from_slice(piece);
                    if *is_shared && coding != Coding::Identity && !(coding == Coding::Zstd && packing.has_shared) {
                        let (head, tail) = piece.split_at(piece.len() / 3);
                        let packed = Packed::make(coding, [head, tail].into_iter()).unwrap();
                        packing.share(&packed).iter().for_each(|part| sent.extend_from_slice(part));
                    } else {
                        packing.store(piece);
                    }
                    if *flushes {
                        sent.extend_from_slice(&packing.flush());
                    }
                }
                sent.extend_from_slice(&packing.end());
                prop_assert!(read(coding, &sent) == want, "{coding:?}");
            }
        }
    }

    #[test]
    fn what_was_flushed_can_be_read_at_once() {
        let event = "data: {\"a\":1}\nid: x\n\n".repeat(100);
        let packed = Packed::make(Coding::Gzip, [event.as_bytes()].into_iter()).unwrap();
        let mut packing = Packing::begin(Coding::Gzip);
        let mut decoder = flate2::Decompress::new_gzip(15);
        let mut got = |sent: &[u8]| {
            let mut out = Vec::with_capacity(10_000);
            decoder.decompress_vec(sent, &mut out, flate2::FlushDecompress::None).unwrap();
            String::from_utf8(out).unwrap()
        };
        for _ in 0..3 {
            packing.store(b":\n\n");
            assert_eq!(got(&packing.flush()), ":\n\n");
            assert_eq!(got(&packing.share(&packed).concat()), event);
        }
    }

    #[test]
    fn what_is_no_frame_has_no_blocks() {
        let frame = zstd::stream::encode_all(&b"events ".repeat(1000)[..], 1).unwrap();
        assert!(blocks_of(frame.clone()).is_some());
        for len in 0..frame.len() {
            assert_eq!(blocks_of(frame[..len].to_vec()), None);
        }
        assert_eq!(blocks_of([&frame[..], b"more"].concat()), None);
    }
}
