//! BLAKE3 over many short messages at once.
//!
//! A record has a few hundred bytes: too few for BLAKE3's own parallelism, which begins
//! at two chunks of 1,024. But a request has many records. Those of the same number of
//! blocks go through the compression function side by side, as many as the vector unit
//! takes; only the last block of each, whose length differs, is compressed alone. The
//! digests are those of [`blake3::Hasher::new_from_context_key`], bit for bit, which a
//! test holds; longer messages take that way.
//!
//! The blocks' function is `blake3::platform`, which that crate keeps for its own
//! benchmarks and promises nothing about: the version is pinned in Cargo.lock.

use blake3::hazmat::{ContextKey, HasherExt as _};
use blake3::platform::Platform;
use blake3::{BLOCK_LEN, CHUNK_LEN, Hasher, IncrementCounter};
use custody_proto::Hash;

/// How many messages are compressed side by side at most: 16 lanes of AVX-512.
const LANES: usize = 16;

/// Blocks of a chunk that are not its last one, at most.
const FULL_BLOCKS_MAX: usize = CHUNK_LEN / BLOCK_LEN - 1;

// The flags of the BLAKE3 paper, section 2.2, table 3.
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const ROOT: u8 = 1 << 3;
const DERIVE_KEY_MATERIAL: u8 = 1 << 6;

/// The digest of a message in parts, in derive-key mode.
pub(crate) fn digest(key: &ContextKey, parts: &[&[u8]]) -> Hash {
    let mut hasher = Hasher::new_from_context_key(key);
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// The digests of `count` messages, each of which `message` gives in parts.
pub(crate) fn digests<'a, const PARTS: usize>(
    key: &ContextKey,
    count: usize,
    message: impl Fn(usize) -> [&'a [u8]; PARTS],
) -> Vec<Hash> {
    let mut out = vec![[0; 32]; count];
    let mut lanes = Lanes::new(key);
    for (blocks, same) in by_blocks(count, |i| message(i).iter().map(|part| part.len()).sum()).iter().enumerate() {
        for some in same.chunks(LANES) {
            if blocks > FULL_BLOCKS_MAX {
                some.iter().for_each(|&i| out[i as usize] = digest(key, &message(i as usize)));
            } else {
                let lens = lanes.fill(some, &message);
                lanes.compress(blocks, some.len());
                some.iter().enumerate().for_each(|(lane, &i)| out[i as usize] = lanes.last(lane, blocks, lens[lane]));
            }
        }
    }
    out
}

/// Which messages have how many blocks before their last; the longest share the last place.
fn by_blocks(count: usize, len: impl Fn(usize) -> usize) -> [Vec<u32>; FULL_BLOCKS_MAX + 2] {
    let mut out = [const { Vec::new() }; FULL_BLOCKS_MAX + 2];
    for i in 0..count {
        let blocks = len(i).saturating_sub(1) / BLOCK_LEN;
        out[blocks.min(FULL_BLOCKS_MAX + 1)].push(i as u32);
    }
    out
}

/// Messages side by side, and their chaining values.
struct Lanes {
    platform: Platform,
    key: [u32; 8],
    messages: Box<[[u8; CHUNK_LEN]; LANES]>,
    values: [u8; LANES * 32],
}

impl Lanes {
    fn new(key: &ContextKey) -> Self {
        let messages = Box::new([[0; CHUNK_LEN]; LANES]);
        Self { platform: Platform::detect(), key: words(key), messages, values: [0; LANES * 32] }
    }

    /// Copies messages into their lanes; gives their lengths.
    fn fill<'a, const PARTS: usize>(
        &mut self,
        some: &[u32],
        message: impl Fn(usize) -> [&'a [u8]; PARTS],
    ) -> [usize; LANES] {
        let mut lens = [0; LANES];
        for (lane, &i) in some.iter().enumerate() {
            for part in message(i as usize) {
                self.messages[lane][lens[lane]..lens[lane] + part.len()].copy_from_slice(part);
                lens[lane] += part.len();
            }
        }
        lens
    }

    /// Compresses all blocks but the last ones.
    fn compress(&mut self, blocks: usize, lanes: usize) {
        /// A length in the type, as the function wants it.
        macro_rules! with_length {
            ($($n:literal)*) => {
                match blocks {
                    $($n => self.compress_blocks::<{ $n * BLOCK_LEN }>(lanes),)*
                    _ => {}
                }
            };
        }
        with_length!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }

    fn compress_blocks<const BYTES: usize>(&mut self, lanes: usize) {
        let mut inputs = [const { &[0; BYTES] }; LANES];
        for (input, message) in inputs.iter_mut().zip(self.messages.iter()) {
            // A lane is longer than any of these lengths.
            *input = message.first_chunk().unwrap_or(input);
        }
        let (flags, out) = (DERIVE_KEY_MATERIAL, &mut self.values[..lanes * 32]);
        let inputs = &inputs[..lanes];
        self.platform.hash_many(inputs, &self.key, 0, IncrementCounter::No, flags, CHUNK_START, 0, out);
    }

    /// The digest of a lane, by its last block.
    fn last(&self, lane: usize, blocks: usize, len: usize) -> Hash {
        let mut block = [0; BLOCK_LEN];
        let left = &self.messages[lane][blocks * BLOCK_LEN..len];
        block[..left.len()].copy_from_slice(left);
        let (mut value, start) = match blocks {
            0 => (self.key, CHUNK_START),
            _ => (words(self.values[lane * 32..].first_chunk().unwrap_or(&[0; 32])), 0),
        };
        let flags = DERIVE_KEY_MATERIAL | start | CHUNK_END | ROOT;
        self.platform.compress_in_place(&mut value, &block, left.len() as u8, 0, flags);
        let mut out = [0; 32];
        for (bytes, word) in out.chunks_exact_mut(4).zip(value) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

fn words(bytes: &[u8; 32]) -> [u32; 8] {
    let mut out = [0; 8];
    for (word, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn expected(key: &ContextKey, message: &[u8]) -> Hash {
        *Hasher::new_from_context_key(key).update(message).finalize().as_bytes()
    }

    #[test]
    fn every_length_has_blake3s_digest() {
        let key = blake3::hazmat::hash_derive_key_context("custody test");
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i * 7 % 251) as u8).collect();
        let lens: Vec<usize> = (0..2100).chain([3072, 4096, 5000]).collect();
        let found = digests(&key, lens.len(), |i| [&bytes[..lens[i] / 3], &bytes[lens[i] / 3..lens[i]]]);
        for (len, found) in lens.iter().zip(found) {
            assert_eq!(found, expected(&key, &bytes[..*len]), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_messages_have_blake3s_digests(
            key: [u8; 32],
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..1300), 0..80),
        ) {
            let found = digests(&key, messages.len(), |i| [&messages[i][..]]);
            let expected: Vec<Hash> = messages.iter().map(|message| expected(&key, message)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
