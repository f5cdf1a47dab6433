//! The RFC 6962 tree over the entries, as tiles of height 8 (C2SP tlog-tiles).
//!
//! What is stored are the nodes at tile boundaries from level 1 up: the root of
//! every full tile of 256. Leaves are not stored; they are the hashes of the
//! stored entries. Full tiles never change; partial ones are read off the same
//! nodes on demand.
//!
//! The Merkle arithmetic for any size is `tlog_tiles`'; the frontier here keeps
//! the right edge, so that appending and signing need no reads.

use custody_proto::{ENTRY_BYTES, Hash};
use tlog_tiles::tlog;

use crate::Error;

/// How many nodes a full tile has.
pub const TILE_WIDTH: u64 = 256;

/// The RFC 6962 leaf hash of an entry: `SHA-256(0x00 ‖ entry)`.
pub fn leaf_hash(entry: &[u8; ENTRY_BYTES]) -> Hash {
    tlog::record_hash(entry).0
}

/// The RFC 6962 node hash: `SHA-256(0x01 ‖ left ‖ right)`.
pub(crate) fn node_hash(left: Hash, right: Hash) -> Hash {
    tlog::node_hash(tlog::Hash(left), tlog::Hash(right)).0
}

/// The Merkle tree hash of a list of subtree hashes (RFC 6962, section 2.1).
/// The last may be of a smaller subtree than the others.
pub(crate) fn subtree(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => tlog::EMPTY_HASH.0,
        [one] => *one,
        many => {
            let split = many.len().next_power_of_two() / 2;
            node_hash(subtree(&many[..split]), subtree(&many[split..]))
        }
    }
}

/// A node that became complete, and is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Tile level: the node covers `256^level` leaves.
    pub level: u8,
    /// Its place in the level.
    pub index: u64,
    /// Its hash.
    pub hash: Hash,
}

/// The right edge of the tree: the partial tile of each level.
#[derive(Clone, Debug, Default)]
pub struct Frontier {
    size: u64,
    levels: Vec<Vec<Hash>>,
}

impl Frontier {
    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf, and hands every node that it completes to `complete`.
    pub fn push(&mut self, leaf: Hash, mut complete: impl FnMut(Node)) {
        let mut hash = leaf;
        let mut index = self.size;
        self.size += 1;
        for level in 0.. {
            if self.levels.len() == level {
                self.levels.push(Vec::with_capacity(TILE_WIDTH as usize));
            }
            let tile = &mut self.levels[level];
            tile.push(hash);
            if (tile.len() as u64) < TILE_WIDTH {
                return;
            }
            hash = subtree(tile);
            tile.clear();
            index /= TILE_WIDTH;
            complete(Node { level: level as u8 + 1, index, hash });
        }
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        let mut right: Option<Hash> = None;
        let mut scratch = Vec::with_capacity(TILE_WIDTH as usize);
        for tile in &self.levels {
            scratch.clear();
            scratch.extend(tile.iter().copied().chain(right));
            if !scratch.is_empty() {
                right = Some(subtree(&scratch));
            }
        }
        right.unwrap_or(tlog::EMPTY_HASH.0)
    }

    /// The partial tile of each level.
    pub(crate) fn levels(&self) -> &[Vec<Hash>] {
        &self.levels
    }

    /// The frontier of these tiles; `None` if they are not those of a tree of that size.
    pub(crate) fn of(size: u64, levels: Vec<Vec<Hash>>) -> Option<Self> {
        let mut width = size;
        for tile in &levels {
            if tile.len() as u64 != width % TILE_WIDTH {
                return None;
            }
            width /= TILE_WIDTH;
        }
        (width == 0).then_some(Self { size, levels })
    }

    /// The frontier of a stored tree of that size.
    pub(crate) fn load(size: u64, nodes: &impl Nodes) -> Result<Self, Error> {
        let mut levels = Vec::new();
        let mut width = size;
        while width > 0 {
            let count = width % TILE_WIDTH;
            levels.push(nodes.nodes(levels.len() as u8, width - count, count as usize)?);
            width /= TILE_WIDTH;
        }
        Ok(Self { size, levels })
    }
}

/// Reads nodes of a stored tree.
pub(crate) trait Nodes {
    /// `count` nodes of a tile level, from `first` on, all of them complete.
    fn nodes(&self, level: u8, first: u64, count: usize) -> Result<Vec<Hash>, Error>;
}

/// The root of the first `size` leaves of a stored tree.
pub(crate) fn root_at(size: u64, nodes: &impl Nodes) -> Result<Hash, Error> {
    let reader = HashReader { nodes };
    tlog::tree_hash(size, &reader).map(|h| h.0).map_err(|e| Error::corrupt(format!("the tree cannot be read: {e}")))
}

/// The inclusion path of a leaf in the tree of a size (RFC 6962, section 2.1.1).
pub(crate) fn prove_inclusion(index: u64, size: u64, nodes: &impl Nodes) -> Result<Vec<Hash>, Error> {
    let proof = tlog::prove_record(size, index, &HashReader { nodes });
    let proof = proof.map_err(|e| Error::corrupt(format!("the tree cannot be read: {e}")))?;
    Ok(proof.into_iter().map(|hash| hash.0).collect())
}

/// The consistency path between the trees of two sizes (RFC 6962, section 2.1.2).
pub(crate) fn prove_consistency(old: u64, new: u64, nodes: &impl Nodes) -> Result<Vec<Hash>, Error> {
    if old == 0 || old == new {
        return Ok(Vec::new());
    }
    let proof = tlog::prove_tree(new, old, &HashReader { nodes });
    let proof = proof.map_err(|e| Error::corrupt(format!("the tree cannot be read: {e}")))?;
    Ok(proof.into_iter().map(|hash| hash.0).collect())
}

/// `tlog_tiles`' view of our nodes.
struct HashReader<'a, N> {
    nodes: &'a N,
}

impl<N: Nodes> tlog::HashReader for HashReader<'_, N> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, tlog::Error> {
        let read = |&index: &u64| {
            let (height, n) = tlog::split_stored_hash_index(index);
            let within = height % 8;
            let hashes = self.nodes.nodes(height / 8, n << within, 1 << within);
            hashes.map(|hashes| tlog::Hash(subtree(&hashes))).map_err(|_| tlog::Error::IndexesNotInTree)
        };
        indexes.iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    struct Memory {
        leaves: Vec<Hash>,
        nodes: HashMap<(u8, u64), Hash>,
    }

    impl Nodes for Memory {
        fn nodes(&self, level: u8, first: u64, count: usize) -> Result<Vec<Hash>, Error> {
            (first..first + count as u64)
                .map(|i| match level {
                    0 => Ok(self.leaves[i as usize]),
                    _ => self.nodes.get(&(level, i)).copied().ok_or_else(|| Error::corrupt("no node")),
                })
                .collect()
        }
    }

    fn grow(size: u64) -> (Frontier, Memory) {
        let mut frontier = Frontier::default();
        let mut memory = Memory { leaves: vec![], nodes: HashMap::new() };
        for i in 0..size {
            let leaf = tlog::record_hash(&i.to_be_bytes()).0;
            memory.leaves.push(leaf);
            frontier.push(leaf, |node| {
                memory.nodes.insert((node.level, node.index), node.hash);
            });
        }
        (frontier, memory)
    }

    /// A root by the definition, with no cleverness.
    fn by_definition(leaves: &[Hash]) -> Hash {
        subtree(leaves)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_root_is_that_of_rfc_6962(size in 1u64..3000, earlier in 1u64..3000) {
            let (frontier, memory) = grow(size);
            prop_assert_eq!(frontier.root(), by_definition(&memory.leaves));
            let earlier = earlier.min(size);
            prop_assert_eq!(root_at(earlier, &memory).unwrap(), by_definition(&memory.leaves[..earlier as usize]));
            let proof = prove_consistency(earlier, size, &memory).unwrap().into_iter().map(tlog::Hash).collect();
            let (new, old) = (tlog::Hash(frontier.root()), tlog::Hash(root_at(earlier, &memory).unwrap()));
            prop_assert!(tlog::check_tree(&proof, size, new, earlier, old).is_ok());
            let loaded = Frontier::load(size, &memory).unwrap();
            prop_assert_eq!(loaded.root(), frontier.root());
        }
    }

    #[test]
    fn three_levels_of_tiles_agree_with_tlog_tiles() {
        let (frontier, memory) = grow(65_536 + 257);
        assert_eq!(frontier.root(), root_at(frontier.size(), &memory).unwrap());
        assert!(memory.nodes.contains_key(&(2, 0)));
        let mut loaded = Frontier::load(frontier.size(), &memory).unwrap();
        loaded.push([7; 32], |_| ());
        let mut grown = frontier;
        grown.push([7; 32], |_| ());
        assert_eq!(loaded.root(), grown.root());
    }
}
