//! `custody verify --url`: a live log read over HTTP as any C2SP tlog-tiles client reads
//! it. What is there to verify is entries, chain, counters, tiles, root and signatures;
//! content is not served by tiles, and needs the data directory or a bundle.

use std::collections::HashMap;

use custody_proto::{ENTRY_BYTES, Entry, Hash};
use custody_query::serve::tiles::TilePath;
use custody_store::Checkpoint;
use custody_store::note::VerifierKey;
use custody_store::tree::{Frontier, TILE_WIDTH, leaf_hash};

use crate::Failure;
use crate::source::Source;

/// What was found.
pub enum Told {
    /// As many records, with this checkpoint.
    Sound(u64, String),
    /// The first seq that is wrong, and why.
    Tampered(u64, String),
}

/// A log behind a URL.
pub struct Remote<'a> {
    source: Source,
    keys: &'a [VerifierKey],
    trusted: Option<&'a str>,
    progress: Box<dyn FnMut(u64, u64) + 'a>,
}

/// Why the reading ends early.
enum Stop {
    Wrong(u64, String),
    Unable(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Unable(failure)
    }
}

impl<'a> Remote<'a> {
    /// Reads the log behind an API. Its checkpoint must be signed by these keys.
    pub fn new(
        source: Source,
        keys: &'a [VerifierKey],
        trusted: Option<&'a str>,
        progress: impl FnMut(u64, u64) + 'a,
    ) -> Self {
        Self { source, keys, trusted, progress: Box::new(progress) }
    }

    /// Reads it all.
    pub fn verify(mut self) -> Result<Told, Failure> {
        match self.walk() {
            Ok((size, note)) => Ok(Told::Sound(size, note)),
            Err(Stop::Wrong(seq, reason)) => Ok(Told::Tampered(seq, reason)),
            Err(Stop::Unable(failure)) => Err(failure),
        }
    }

    fn walk(&mut self) -> Result<(u64, String), Stop> {
        let note = String::from_utf8_lossy(&self.get("/checkpoint")?).into_owned();
        let wrong = |e: custody_store::Error| Stop::Wrong(0, e.to_string());
        let signed = Checkpoint::verify(&note, self.keys).map_err(wrong)?;
        let trusted = self.trusted.map(Checkpoint::parse_unverified).transpose().map_err(wrong)?;
        if let Some(trusted) = trusted.as_ref().filter(|t| t.size > signed.size || t.origin != signed.origin) {
            let reason = format!("the trusted checkpoint covers {} records: the log was rolled back", trusted.size);
            return Err(Stop::Wrong(signed.size, reason));
        }
        let mut tree = Tree::default();
        let mut chain = Chain::default();
        for index in 0..signed.size.div_ceil(TILE_WIDTH) {
            let width = (signed.size - index * TILE_WIDTH).min(TILE_WIDTH) as u16;
            let bundle = self.get(&format!("/tile/{}", TilePath { level: None, index, width }))?;
            let leaves = chain.bundle(&bundle, width)?;
            self.tile(0, index, &leaves)?;
            for leaf in leaves {
                tree.push(leaf);
                if let Some(trusted) = trusted.as_ref().filter(|t| t.size == tree.frontier.size())
                    && trusted.root != tree.frontier.root()
                {
                    let reason = "the root at the size of the trusted checkpoint is another: the log was written anew";
                    return Err(Stop::Wrong(0, reason.into()));
                }
            }
            self.full_tiles(&mut tree)?;
            (self.progress)(tree.frontier.size(), signed.size);
        }
        for (level, (index, nodes)) in tree.levels.iter().enumerate() {
            if !nodes.is_empty() {
                self.tile(level as u8 + 1, *index, nodes)?;
            }
        }
        if tree.frontier.root() != signed.root {
            return Err(Stop::Wrong(0, "the root of the entries is not the one that was signed".into()));
        }
        Ok((signed.size, note))
    }

    /// Compares the tiles above the leaves that became full.
    fn full_tiles(&mut self, tree: &mut Tree) -> Result<(), Stop> {
        for level in 0..tree.levels.len() {
            if tree.levels[level].1.len() as u64 == TILE_WIDTH {
                let (index, nodes) = (tree.levels[level].0, std::mem::take(&mut tree.levels[level].1));
                tree.levels[level].0 += 1;
                self.tile(level as u8 + 1, index, &nodes)?;
            }
        }
        Ok(())
    }

    fn tile(&mut self, level: u8, index: u64, nodes: &[Hash]) -> Result<(), Stop> {
        let path = TilePath { level: Some(level), index, width: nodes.len() as u16 };
        let served = self.get(&format!("/tile/{path}"))?;
        if served == nodes.concat() {
            return Ok(());
        }
        let first = index.saturating_mul(TILE_WIDTH.saturating_pow(u32::from(level) + 1));
        Err(Stop::Wrong(first, format!("tile {path} is not the hash of its entries")))
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        self.source.get(path).map(|got| got.body).map_err(|failure| Failure::unable(failure.message))
    }
}

/// The tree over what was read, and the nodes of each tile level that no tile is full of yet.
#[derive(Default)]
struct Tree {
    frontier: Frontier,
    levels: Vec<(u64, Vec<Hash>)>,
}

impl Tree {
    fn push(&mut self, leaf: Hash) {
        let levels = &mut self.levels;
        self.frontier.push(leaf, |node| {
            let level = usize::from(node.level) - 1;
            if levels.len() <= level {
                levels.resize_with(level + 1, Default::default);
            }
            levels[level].1.push(node.hash);
        });
    }
}

/// Where the chain of entries stands.
#[derive(Default)]
struct Chain {
    next: u64,
    previous: Hash,
    time: u64,
    counters: HashMap<[u8; 16], u64>,
}

impl Chain {
    /// Reads a bundle of entries; gives their leaf hashes.
    fn bundle(&mut self, mut bytes: &[u8], width: u16) -> Result<Vec<Hash>, Stop> {
        let mut leaves = Vec::with_capacity(width.into());
        while let Some((len, rest)) = bytes.split_first_chunk::<2>() {
            let len = usize::from(u16::from_be_bytes(*len));
            let bad = || Stop::Wrong(self.next, "the entry bundle is not in the format's layout".into());
            let (entry, rest) = rest.split_at_checked(len).ok_or_else(bad)?;
            let entry: &[u8; ENTRY_BYTES] = entry.try_into().map_err(|_| bad())?;
            leaves.push(leaf_hash(entry));
            self.entry(&Entry::decode(entry).ok_or_else(bad)?)?;
            bytes = rest;
        }
        if bytes.is_empty() && leaves.len() == usize::from(width) {
            return Ok(leaves);
        }
        Err(Stop::Wrong(self.next, "the entry bundle has another number of entries".into()))
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), Stop> {
        let counter = self.counters.entry(entry.submitter).or_default();
        let reason = if entry.seq != self.next || entry.previous != self.previous {
            "the entry does not continue the chain"
        } else if entry.counter != *counter {
            "the submitter's counter has a gap"
        } else if entry.ingest_time < self.time {
            "the ingest time is before that of the record before it"
        } else {
            *counter += 1;
            (self.next, self.previous, self.time) = (entry.seq + 1, entry.chain(), entry.ingest_time);
            return Ok(());
        };
        Err(Stop::Wrong(self.next, reason.into()))
    }
}
