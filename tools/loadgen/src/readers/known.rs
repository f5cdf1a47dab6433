//! What readers are given together: compressed bytes that were inflated and looked at once. Who is given the very
//! same bytes at the same place need not look again; whether they join with what he has is looked at for each.
//!
//! A hundred readers that inflate and read the same would be what is measured, and not the server. Bytes are compared,
//! all of them, so that nothing is taken for what it is not.

use std::collections::{HashMap, VecDeque};
use std::io::Read as _;
use std::sync::Arc;

use super::text::Told;
use super::trail::Batch;
use crate::options::ReaderWay;

/// Compressed bytes that are remembered; the oldest go first.
const BYTES_MAX: usize = 64 << 20;

/// Bytes that may become of a page.
const INFLATED_MAX: u64 = 256 << 20;

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    Gzip,
    Zstd,
    /// Whole blocks of deflate that lean on nothing before them, out of a member of gzip that goes on.
    Blocks,
}

impl Coding {
    /// As headers name it.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// What was compressed; one member, or one frame, and nothing behind it.
    pub fn inflate(self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(bytes.len() * 8);
        let (read, rest) = match self {
            Self::Gzip => {
                let mut decoder = flate2::bufread::GzDecoder::new(bytes);
                let read = (&mut decoder).take(INFLATED_MAX).read_to_end(&mut out);
                (read, decoder.into_inner().len())
            }
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(|e| e.to_string())?;
                let mut decoder = decoder.single_frame();
                let read = (&mut decoder).take(INFLATED_MAX).read_to_end(&mut out);
                (read, decoder.finish().len())
            }
            Self::Blocks => {
                // With an empty block behind them that is the last they are whole, or they were not.
                let whole = [bytes, &[1, 0, 0, 0xff, 0xff]].concat();
                let mut decoder = flate2::bufread::DeflateDecoder::new(&whole[..]);
                let read = (&mut decoder).take(INFLATED_MAX).read_to_end(&mut out);
                (read, decoder.into_inner().len())
            }
        };
        read.map_err(|e| format!("what came is not {self:?}: {e}"))?;
        if rest > 0 {
            return Err(format!("{rest} bytes came behind the end of {self:?}"));
        }
        Ok(out)
    }
}

/// Bytes of the head of a member of gzip.
pub const HEAD_BYTES: usize = 10;

/// How a flush of deflate ends.
pub const FLUSH: [u8; 4] = [0, 0, 0xff, 0xff];

/// The bytes of a member of gzip behind its head, if it has but what a head must have.
pub fn behind_head(bytes: &[u8]) -> Option<&[u8]> {
    bytes.strip_prefix(&[0x1f, 0x8b, 8, 0]).and_then(|rest| rest.get(HEAD_BYTES - 4..))
}

/// A frame of zstd that begins with a block as it is, behind a head without a size: that block, which is somebody's
/// own, and a frame of the rest. Stored bytes leave a decoder as it was, and what can be read without them
/// does not refer to them.
pub fn stored_first(frame: &[u8]) -> Option<(&[u8], Vec<u8>)> {
    const HEAD: [u8; 5] = [0x28, 0xb5, 0x2f, 0xfd, 0];
    let block = frame.strip_prefix(&HEAD)?.get(1..)?;
    let head = u32::from_le_bytes([*block.first()?, *block.get(1)?, *block.get(2)?, 0]);
    let (own, rest) = block[3..].split_at_checked(head as usize >> 3)?;
    (head & 0b111 == 0).then(|| (own, [&frame[..6], rest].concat()))
}

/// Bytes that somebody has looked at.
#[derive(Debug)]
pub struct Known {
    bytes: Box<[u8]>,
    pub batch: Batch,
    /// The cursor behind them, if they say it.
    pub cursor: Option<String>,
}

/// Where they were, and how many.
type Place = (ReaderWay, u64, usize);

/// What was looked at, by where it was.
#[derive(Debug, Default)]
pub struct Store {
    known: HashMap<Place, Arc<Known>>,
    order: VecDeque<Place>,
    bytes: usize,
}

impl Store {
    /// What these bytes are, for a reader at a place: what is known of the same ones, or what is found out now.
    pub fn look(
        &mut self,
        (way, position): (ReaderWay, u64),
        coding: Coding,
        bytes: &[u8],
        read: impl FnOnce(&[u8]) -> Told,
    ) -> Result<Arc<Known>, String> {
        let place = (way, position, bytes.len());
        if let Some(known) = self.known.get(&place).filter(|known| *known.bytes == *bytes) {
            return Ok(Arc::clone(known));
        }
        let (batch, cursor) = read(&coding.inflate(bytes)?)?;
        let known = Arc::new(Known { bytes: bytes.into(), batch, cursor });
        if self.known.insert(place, Arc::clone(&known)).is_none() {
            self.order.push_back(place);
            self.bytes += bytes.len();
        }
        while self.bytes > BYTES_MAX {
            let Some(place) = self.order.pop_front() else { break };
            self.bytes -= place.2;
            self.known.remove(&place);
        }
        Ok(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn blocks(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.flush().unwrap();
        std::mem::take(encoder.get_mut())
    }

    #[test]
    fn one_whole_member_frame_or_row_of_blocks_is_read() {
        let text = b"data: {\"a\":1}\n\n".repeat(50);
        let zstd = zstd::stream::encode_all(&text[..], 1).unwrap();
        for (coding, bytes) in [(Coding::Gzip, gzip(&text)), (Coding::Zstd, zstd), (Coding::Blocks, blocks(&text))] {
            assert_eq!(coding.inflate(&bytes).unwrap(), text, "{coding:?}");
            assert!(coding.inflate(&bytes[..bytes.len() - 1]).is_err(), "{coding:?}");
            assert!(coding.inflate(&[&bytes[..], &bytes[..]].concat()).is_err() || coding == Coding::Blocks);
        }
        // Blocks that refer to what was before them are not known by themselves.
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&text).unwrap();
        encoder.flush().unwrap();
        encoder.get_mut().clear();
        encoder.write_all(&text).unwrap();
        encoder.flush().unwrap();
        assert!(Coding::Blocks.inflate(&std::mem::take(encoder.get_mut())).is_err());
        assert_eq!(behind_head(&gzip(&text)).map(<[u8]>::len), Some(gzip(&text).len() - 10));
        assert_eq!(behind_head(b"data: 1"), None);
    }

    #[test]
    fn a_stored_block_before_a_frame_is_taken_off() {
        let frame = zstd::stream::encode_all(&b"event ".repeat(100)[..], 1).unwrap();
        let with = [&frame[..6], &[5 << 3, 0, 0], b"rest!", &frame[6..]].concat();
        assert_eq!(Coding::Zstd.inflate(&with).unwrap(), [&b"rest!"[..], &b"event ".repeat(100)].concat());
        assert_eq!(stored_first(&with), Some((&b"rest!"[..], frame.clone())));
        assert_eq!(stored_first(&frame), None);
    }

    #[test]
    fn the_same_bytes_at_the_same_place_are_looked_at_once() {
        let (mut store, mut looks) = (Store::default(), 0);
        let mut look = |position: u64, bytes: &[u8]| {
            let read = |_: &[u8]| {
                looks += 1;
                Ok((Batch::default(), None))
            };
            store.look((ReaderWay::Pages, position), Coding::Gzip, bytes, read).map(drop)
        };
        let (one, other) = (gzip(b"one"), gzip(b"two"));
        assert_eq!(one.len(), other.len());
        for (position, bytes) in [(0, &one), (0, &one), (5, &one), (0, &other), (0, &other), (5, &one)] {
            look(position, bytes).unwrap();
        }
        look(0, b"no gzip").unwrap_err();
        assert_eq!(looks, 3);
        let mut store = Store::default();
        let noise: Vec<u8> = (0..1_000_000u64).flat_map(|n| crate::random::mix(n).to_le_bytes()).collect();
        let noise = gzip(&noise);
        for position in 0..20 {
            store.look((ReaderWay::Sse, position), Coding::Gzip, &noise, |_| Ok((Batch::default(), None))).unwrap();
            assert!(store.bytes <= BYTES_MAX && store.known.len() == store.order.len());
        }
    }
}
