//! The entry: the fixed-layout commitment to one record, and a leaf of the tree.
//!
//! ```text
//!  offset  bytes  field            (integers big-endian)
//!       0      1  version          1
//!       1      1  kind             1 span, 2 log, 3 metric
//!       2      2  flags            bit 0 conflicting span id, bit 1 sent as JSON
//!       4      4  reserved         0
//!       8      8  seq              0-based, dense
//!      16      8  ingest_time      ns since the Unix epoch, never decreasing
//!      24     16  submitter        keyed BLAKE3 of the identity, first 16 bytes
//!      40      8  counter          how many records of this submitter came before
//!      48     32  commitment       BLAKE3 content commitment
//!      80     32  previous         chain hash of the entry before; zeros at seq 0
//!     112
//! ```
//!
//! `chain = BLAKE3.derive_key("custody chain v1", entry)` and
//! `leaf = SHA-256(0x00 ‖ entry)` (RFC 6962, section 2.1).

use std::sync::LazyLock;

use blake3::Hasher;
use blake3::hazmat::{ContextKey, HasherExt as _, hash_derive_key_context};

/// A 32-byte hash.
pub type Hash = [u8; 32];

/// The size of an entry of version 1.
pub const ENTRY_BYTES: usize = 112;

/// The version byte of the entries that this code writes.
pub const ENTRY_VERSION: u8 = 1;

/// The span id was in the log already, with other content.
pub const FLAG_CONFLICT: u16 = 1;

/// The request came as JSON and was transcoded to protobuf before it was stored.
pub const FLAG_JSON: u16 = 1 << 1;

/// The BLAKE3 context string of the chain.
pub const CHAIN_CONTEXT: &str = "custody chain v1";

/// One commitment, with its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the record is: a [`crate::Signal`] byte.
    pub kind: u8,
    /// [`FLAG_CONFLICT`] and the like.
    pub flags: u16,
    /// The record's place in the log.
    pub seq: u64,
    /// When the ledger took it, in ns since the Unix epoch.
    pub ingest_time: u64,
    /// Who sent it: a keyed hash of the identity.
    pub submitter: [u8; 16],
    /// How many records this submitter had sent before.
    pub counter: u64,
    /// The salted commitment to the record, its resource and its scope.
    pub commitment: Hash,
    /// The chain hash of the entry before this one.
    pub previous: Hash,
}

impl Entry {
    /// The entry's exact bytes.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0u8; ENTRY_BYTES];
        out[0] = ENTRY_VERSION;
        out[1] = self.kind;
        out[2..4].copy_from_slice(&self.flags.to_be_bytes());
        out[8..16].copy_from_slice(&self.seq.to_be_bytes());
        out[16..24].copy_from_slice(&self.ingest_time.to_be_bytes());
        out[24..40].copy_from_slice(&self.submitter);
        out[40..48].copy_from_slice(&self.counter.to_be_bytes());
        out[48..80].copy_from_slice(&self.commitment);
        out[80..112].copy_from_slice(&self.previous);
        out
    }

    /// Reads an entry. `None` if it is not one of version 1, to the byte.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let b: &[u8; ENTRY_BYTES] = bytes.try_into().ok()?;
        if b[0] != ENTRY_VERSION || b[4..8] != [0; 4] {
            return None;
        }
        Some(Self {
            kind: b[1],
            flags: u16::from_be_bytes([b[2], b[3]]),
            seq: be_u64(b, 8),
            ingest_time: be_u64(b, 16),
            submitter: array(b, 24),
            counter: be_u64(b, 40),
            commitment: array(b, 48),
            previous: array(b, 80),
        })
    }

    /// The chain hash after this entry.
    pub fn chain(&self) -> Hash {
        chain_of(&self.encode())
    }
}

/// The chain hash after an encoded entry: `BLAKE3.derive_key(CHAIN_CONTEXT, entry)`,
/// with the context hashed once for all.
pub fn chain_of(encoded: &[u8; ENTRY_BYTES]) -> Hash {
    static KEY: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context(CHAIN_CONTEXT));
    *Hasher::new_from_context_key(&KEY).update(encoded).finalize().as_bytes()
}

fn be_u64(bytes: &[u8; ENTRY_BYTES], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8; ENTRY_BYTES], at: usize) -> [u8; N] {
    let mut out = [0u8; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn entries_survive_the_round_trip(
            kind in 1u8..4, flags: u16, seq: u64, ingest_time: u64, submitter: [u8; 16],
            counter: u64, commitment: [u8; 32], previous: [u8; 32],
        ) {
            let entry = Entry { kind, flags, seq, ingest_time, submitter, counter, commitment, previous };
            prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        }

        #[test]
        fn any_flipped_byte_changes_the_chain(at in 0usize..ENTRY_BYTES, flip in 1u8..) {
            let entry = Entry {
                kind: 1, flags: 0, seq: 7, ingest_time: 9, submitter: [3; 16], counter: 4,
                commitment: [5; 32], previous: [6; 32],
            };
            let mut bytes = entry.encode();
            bytes[at] ^= flip;
            prop_assert_ne!(chain_of(&bytes), entry.chain());
        }
    }

    #[test]
    fn the_chain_is_blake3s_derive_key_mode() {
        assert_eq!(chain_of(&[7; ENTRY_BYTES]), blake3::derive_key(CHAIN_CONTEXT, &[7; ENTRY_BYTES]));
    }

    #[test]
    fn a_reserved_byte_is_refused() {
        let mut bytes = Entry::decode(&[1; ENTRY_BYTES]).map_or([1; ENTRY_BYTES], |e| e.encode());
        bytes[5] = 1;
        assert_eq!(Entry::decode(&bytes), None);
    }
}
