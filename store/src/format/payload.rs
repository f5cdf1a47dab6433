//! The values of the column family `payloads`: the bytes of a request, as they are or compressed.
//!
//! What is large is compressed before it is written, once for the write-ahead log, the memtable
//! and the files: a request of 230 kB is copied to three places as 45, and nothing is left to
//! compress in a burst when a memtable is full. What is small stays as it is: RocksDB compresses
//! it together with its neighbours, which makes less of it.

use std::borrow::Cow;
use std::cell::RefCell;

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{find_frame_compressed_size, get_frame_content_size};

/// From this size on a payload is compressed by itself: that of a block in RocksDB's files, which a
/// payload of this size fills alone.
const PACKED_FROM: usize = 4096;

/// As fast as zstd is, and a quarter smaller than LZ4 on spans.
pub(crate) const ZSTD_LEVEL: i32 = 1;

/// A buffer larger than this is given back after its use.
const SCRATCH_BYTES: usize = 1 << 20;

#[derive(Default)]
struct Tools {
    compressor: Option<Compressor<'static>>,
    decompressor: Option<Decompressor<'static>>,
    scratch: Vec<u8>,
}

thread_local! {
    /// Their tables are half a megabyte: made once a thread.
    static TOOLS: RefCell<Tools> = RefCell::default();
}

/// A payload as a zstd frame (RFC 8878); `None` if it is kept as it is, because it is small or
/// would not become smaller.
pub(crate) fn pack(payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() < PACKED_FROM {
        return None;
    }
    TOOLS.with_borrow_mut(|Tools { compressor, scratch, .. }| {
        if compressor.is_none() {
            *compressor = Compressor::new(ZSTD_LEVEL).ok();
        }
        // What does not fit is not smaller.
        scratch.clear();
        scratch.reserve(payload.len());
        let packed = compressor.as_mut()?.compress_to_buffer(payload, scratch);
        let packed = packed.is_ok_and(|len| len < payload.len()).then(|| scratch.as_slice().into());
        if scratch.capacity() > SCRATCH_BYTES {
            *scratch = Vec::new();
        }
        packed
    })
}

/// What is kept of a payload.
pub(crate) fn kept(payload: &[u8]) -> Cow<'_, [u8]> {
    pack(payload).map_or(Cow::Borrowed(payload), Cow::Owned)
}

/// A payload of `len` bytes from what was kept of it; `None` if this is neither as long nor one
/// zstd frame of so many bytes, with nothing behind it.
pub(crate) fn unpack(kept: Bytes, len: usize) -> Option<Bytes> {
    if kept.len() == len {
        return Some(kept);
    }
    let stated = get_frame_content_size(&kept).ok().flatten();
    if stated != Some(len as u64) || find_frame_compressed_size(&kept) != Ok(kept.len()) {
        return None;
    }
    TOOLS.with_borrow_mut(|Tools { decompressor, .. }| {
        if decompressor.is_none() {
            *decompressor = Decompressor::new().ok();
        }
        let payload = decompressor.as_mut()?.decompress(&kept, len).ok()?;
        (payload.len() == len).then(|| payload.into())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| b"the agent reads its mail and pays "[i % 34] ^ (i / 700) as u8).collect()
    }

    #[test]
    fn what_is_small_or_random_stays_as_it_is() {
        assert_eq!(pack(&text(PACKED_FROM - 1)), None);
        assert!(pack(&text(PACKED_FROM)).unwrap().len() < PACKED_FROM / 2);
        let mut noise = vec![0; 3 * SCRATCH_BYTES];
        crate::commit::random(&mut noise);
        assert_eq!(pack(&noise), None);
        assert_eq!(unpack(noise.clone().into(), noise.len()).unwrap(), noise);
    }

    #[test]
    fn nothing_hides_behind_a_frame_nor_before_it() {
        let payload = text(9000);
        let packed = pack(&payload).unwrap();
        assert_eq!(unpack(packed.clone().into(), payload.len()).unwrap(), payload);
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
        for altered in [
            [&packed[..], &skippable].concat(),
            [&skippable[..], &packed].concat(),
            [&packed[..], b"x"].concat(),
            packed[..packed.len() - 1].to_vec(),
        ] {
            assert_eq!(unpack(altered.into(), payload.len()), None);
        }
        for len in [0, 1, payload.len() - 1, payload.len() + 1, u32::MAX as usize] {
            assert_eq!(unpack(packed.clone().into(), len), None, "{len}");
        }
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_back(
            pieces in prop::collection::vec((any::<u8>(), 1usize..3000), 0..40),
            noise in prop::collection::vec(any::<u8>(), 0..9000),
        ) {
            let mut payload: Vec<u8> = pieces.iter().flat_map(|(byte, n)| vec![*byte; *n]).collect();
            payload.extend(noise);
            let kept = super::kept(&payload).into_owned();
            prop_assert!(kept.len() <= payload.len());
            prop_assert_eq!(unpack(kept.into(), payload.len()).unwrap(), payload);
        }

        /// Whatever a frame is changed into: it is refused, or gives so many bytes.
        #[test]
        fn a_changed_frame_gives_nothing_of_another_length(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let payload = text(9000);
            let mut packed = pack(&payload).unwrap();
            let at = at.index(packed.len());
            packed[at] ^= 1 << bit;
            if let Some(got) = unpack(packed.into(), payload.len()) {
                prop_assert_eq!(got.len(), payload.len());
            }
        }
    }
}
