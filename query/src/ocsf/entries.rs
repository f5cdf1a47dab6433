//! The hashes of the log's entries, for events that say where they stand in it.

use std::collections::HashMap;

use custody_store::tree::leaf_hash;
use custody_store::{Error, Reader};

/// What the log's entry of a record says, as hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHashes {
    /// The BLAKE3 chain with this entry.
    pub chain: [u8; 32],
    /// Its RFC 6962 leaf.
    pub leaf: [u8; 32],
}

impl EntryHashes {
    /// Those of some seqs, in ascending order: each block that has one of them is read once.
    ///
    /// # Errors
    ///
    /// If the log cannot be read.
    pub fn read(reader: &Reader, seqs: impl IntoIterator<Item = u64>) -> Result<HashMap<u64, Self>, Error> {
        let mut found = HashMap::new();
        let mut seqs = seqs.into_iter().peekable();
        while let Some(seq) = seqs.next() {
            let Some(block) = reader.commitments_at(seq)? else { continue };
            let mut wanted = Some(seq);
            for link in block.chained(block.previous) {
                while wanted.is_some_and(|seq| seq < link.entry.seq) {
                    wanted = seqs.next_if(|seq| *seq < block.end_seq());
                }
                if wanted == Some(link.entry.seq) {
                    found.insert(link.entry.seq, Self { chain: link.chain, leaf: leaf_hash(&link.bytes) });
                    wanted = seqs.next_if(|seq| *seq < block.end_seq());
                }
                if wanted.is_none() {
                    break;
                }
            }
        }
        Ok(found)
    }
}
