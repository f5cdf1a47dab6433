//! Verification: a separate reading of the format that derives everything anew.
//!
//! It shares with the writer the byte layouts and nothing else: not its state,
//! not its indexes. It reads payloads, layouts and entries side by side, in seq
//! order, and recomputes every commitment, every link of the chain, every node of
//! the tree, the head and the root, down to the signature of the checkpoint.

use std::path::Path;

use custody_proto::Hash;
use rocksdb::DBRawIterator;

use crate::checkpoint::Checkpoint;
use crate::format::{Commitments, Head, Layout, cf, node_key, seq_of_key};
use crate::ledger::read_checkpoint;
use crate::reader::{Content, Reader};
use crate::tree::{Frontier, Node, leaf_hash};
use crate::{Error, ErrorKind};

/// What verification found.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Everything is as it was signed.
    Sound(Summary),
    /// Something was changed, removed, swapped or inserted.
    Tampered(Finding),
}

/// Counts of a sound log.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Records verified.
    pub records: u64,
    /// Blocks (accepted requests) verified.
    pub blocks: u64,
    /// Payload bytes hashed.
    pub bytes: u64,
    /// Nodes of the tree compared.
    pub nodes: u64,
    /// Durable records that no checkpoint covers yet.
    pub unsigned: u64,
    /// The checkpoint, whose signature verifies.
    pub checkpoint: String,
    /// The log's public key.
    pub vkey: String,
}

/// The first thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The first seq that is not what was signed.
    pub seq: u64,
    /// What is wrong with it.
    pub reason: String,
}

type Step<T = ()> = Result<T, Stop>;

/// Why a reading ends early.
enum Stop {
    Found(Finding),
    Unreadable(Error),
}

impl From<Finding> for Stop {
    fn from(finding: Finding) -> Self {
        Self::Found(finding)
    }
}

/// Verifies a data directory, or a copy of one. `Err` means that it could not be
/// told: the store is not readable at all. `progress` hears how many records are
/// done, of how many.
pub fn verify(dir: &Path, progress: impl FnMut(u64, u64)) -> Result<Verdict, Error> {
    // The checkpoint first: the log may grow meanwhile, but never below it.
    let note = match read_checkpoint(dir) {
        Ok(note) => note,
        Err(e) => return Ok(Verdict::Tampered(Finding { seq: 0, reason: e.to_string() })),
    };
    let reader = Reader::open(dir)?;
    match Reading::new(&reader).run(note, progress) {
        Ok(summary) => Ok(Verdict::Sound(summary)),
        Err(Stop::Found(finding)) => Ok(Verdict::Tampered(finding)),
        Err(Stop::Unreadable(error)) => Err(error),
    }
}

fn found<T>(seq: u64, reason: impl Into<String>) -> Step<T> {
    Err(Finding { seq, reason: reason.into() }.into())
}

/// A storage error while reading what begins at `seq`: damage is a finding.
fn damage(seq: u64, error: Error) -> Stop {
    match error.kind() {
        ErrorKind::Corrupt => Finding { seq, reason: error.to_string() }.into(),
        _ => Stop::Unreadable(error),
    }
}

struct Reading<'a> {
    reader: &'a Reader,
    frontier: Frontier,
    head: Head,
    last_time: u64,
    previous_block: Option<u64>,
    signed: Option<(Checkpoint, Option<Hash>)>,
    nodes: Vec<Node>,
    summary: Summary,
}

impl<'a> Reading<'a> {
    fn new(reader: &'a Reader) -> Self {
        Self {
            reader,
            frontier: Frontier::default(),
            head: Head::EMPTY,
            last_time: 0,
            previous_block: None,
            signed: None,
            nodes: Vec::new(),
            summary: Summary::default(),
        }
    }

    fn run(mut self, note: Option<String>, mut progress: impl FnMut(u64, u64)) -> Step<Summary> {
        self.checkpoint(note)?;
        let total = self.reader.head().size;
        let mut entries = Column::open(self.reader, cf::ENTRIES);
        let mut layouts = Column::open(self.reader, cf::BLOCKS);
        let mut payloads = Column::open(self.reader, cf::PAYLOADS);
        while let Some((key, value)) = entries.next(self.head.size)? {
            let block = self.entries(key, value)?;
            let content = self.content(&block, &mut layouts, &mut payloads)?;
            self.commitments(&block, &content)?;
            self.link(&block)?;
            self.summary.blocks += 1;
            self.summary.bytes += content.payload().len() as u64;
            progress(self.head.size, total);
        }
        for column in [&mut layouts, &mut payloads] {
            if let Some((key, _)) = column.next(self.head.size)? {
                let seq = seq_of_key(key).map_err(|e| damage(self.head.size, e))?;
                return found(seq, format!("{} has content for which there is no entry", column.name));
            }
        }
        self.nodes()?;
        self.ends()?;
        self.genesis()?;
        self.summary.records = self.head.size;
        Ok(self.summary)
    }

    /// The checkpoint's signature; its root is compared when the chain gets there.
    fn checkpoint(&mut self, note: Option<String>) -> Step {
        let Some(note) = note else {
            if self.reader.head().size == 0 && self.reader.last_commitments().is_ok_and(|last| last.is_none()) {
                return found(0, "the log is empty: it has no checkpoint and not even its genesis record");
            }
            return found(0, "the checkpoint is missing, so no record is proved");
        };
        let checkpoint = Checkpoint::verify(&note, self.reader.vkey()).map_err(|e| damage(0, e))?;
        if checkpoint.origin != self.reader.origin() {
            return found(0, format!("the checkpoint is of {}, not of {}", checkpoint.origin, self.reader.origin()));
        }
        self.summary.checkpoint = note;
        self.summary.vkey = self.reader.vkey().to_owned();
        self.signed = Some((checkpoint, None));
        Ok(())
    }

    fn entries(&mut self, key: &[u8], value: &[u8]) -> Step<Commitments> {
        let expected = self.head.size;
        let first = seq_of_key(key).map_err(|e| damage(expected, e))?;
        if first > expected {
            return found(expected, format!("the entries of seq {expected} to {} are missing", first - 1));
        }
        let Some(block) = Commitments::decode(value) else {
            return found(expected, "the entries are not in the format's layout");
        };
        if first < expected || block.first_seq != first {
            return found(first.min(expected), "the entries stand under a seq that is not theirs");
        }
        if block.ingest_time < self.last_time {
            return found(first, "the ingest time is before that of the record before it");
        }
        self.last_time = block.ingest_time;
        Ok(block)
    }

    fn content(&self, block: &Commitments, layouts: &mut Column<'_>, payloads: &mut Column<'_>) -> Step<Content> {
        let seq = block.first_seq;
        let layout = layouts.expect(seq)?;
        let Some(layout) = Layout::decode(layout) else {
            return found(seq, "the block's layout is not in the format's layout");
        };
        let payload = payloads.expect(seq)?.to_vec();
        if layout.records.len() as u64 != block.count() || layout.signal != block.signal {
            return found(seq, "the block's layout does not fit its entries");
        }
        match Content::new(layout, payload.into()) {
            Some(content) => Ok(content),
            None => found(seq, "the payload has another length than the block's layout says"),
        }
    }

    /// Every record against the commitment in its entry.
    fn commitments(&self, block: &Commitments, content: &Content) -> Step {
        let computed = content.commitments();
        let wrong = |i: &usize| computed[*i] != block.commitments[*i];
        let count = block.commitments.len();
        let Some(first) = (0..count).find(wrong) else { return Ok(()) };
        let seq = block.first_seq + first as u64;
        if count > 1 && (0..count).all(|i| wrong(&i)) {
            return found(
                seq,
                format!(
                    "no record of the block (seq {seq} to {}) is what its entry commits to: its resource, scope, \
                     framing, salt or sender was changed",
                    block.end_seq() - 1
                ),
            );
        }
        let name = block.signal.record_name();
        found(seq, format!("the {name} is not what its entry commits to: its content was changed"))
    }

    /// Chain, tree, and the root at the size that was signed.
    fn link(&mut self, block: &Commitments) -> Step {
        let seq = block.first_seq;
        if block.previous != self.head.chain {
            return self.broken_link(block);
        }
        for link in block.chained(block.previous) {
            self.frontier.push(leaf_hash(&link.bytes), |node| self.nodes.push(node));
            self.head = Head { size: link.entry.seq + 1, chain: link.chain };
            if let Some((checkpoint, root)) = &mut self.signed
                && checkpoint.size == self.head.size
            {
                *root = Some(self.frontier.root());
            }
        }
        self.previous_block = Some(seq);
        self.nodes_so_far()
    }

    /// Two blocks do not join. Which of them was changed? The one whose stored
    /// hashes the block after does not bear out.
    fn broken_link(&self, block: &Commitments) -> Step {
        let end = |previous| block.chained(previous).last().map(|link| link.chain);
        let next = match self.reader.commitments_at(block.end_seq()) {
            Ok(Some(next)) => Some(next.previous),
            _ => Some(self.reader.head().chain).filter(|_| self.reader.head().size == block.end_seq()),
        };
        if next.is_some() && next == end(self.head.chain) {
            return found(block.first_seq, "the hash of the entry before it was changed");
        }
        let first = self.previous_block.unwrap_or(0);
        found(
            first,
            format!(
                "an entry of the block at seq {first} to {} was changed, swapped or inserted: the chain after it \
                 does not continue from it",
                block.first_seq - 1
            ),
        )
    }

    /// Compares the nodes that became complete with the stored ones.
    fn nodes_so_far(&mut self) -> Step {
        for node in std::mem::take(&mut self.nodes) {
            let shared = self.reader.shared();
            let stored = shared.db.get_pinned_cf(shared.cf(cf::NODES), node_key(node.level, node.index));
            let width = 256u64.pow(node.level.into());
            let first = node.index * width;
            let stored = stored.map_err(|e| damage(first, e.into()))?;
            let range =
                format!("tile node {} of level {} (seq {first} to {})", node.index, node.level, first + width - 1);
            match stored {
                Some(stored) if stored[..] == node.hash => self.summary.nodes += 1,
                Some(_) => return found(first, format!("{range} is not the hash of its entries")),
                None => return found(first, format!("{range} is missing")),
            }
        }
        Ok(())
    }

    /// No node that the log is too short for.
    fn nodes(&self) -> Step {
        let mut stored = Column::open(self.reader, cf::NODES);
        let mut count = 0;
        while let Some((key, _)) = stored.next(self.head.size)? {
            let (level, index) = key.split_first().ok_or_else(|| damage(0, Error::corrupt("an empty tile key")))?;
            let index = seq_of_key(index).map_err(|e| damage(0, e))?;
            let end = 256u64.checked_pow((*level).into()).and_then(|w| w.checked_mul(index.checked_add(1)?));
            if *level == 0 || end.is_none_or(|end| end > self.head.size) {
                return found(self.head.size, format!("tile node {index} of level {level} was inserted"));
            }
            count += 1;
        }
        if count != self.summary.nodes {
            return found(0, "the tree has nodes that were inserted");
        }
        Ok(())
    }

    /// Head and checkpoint against what was read.
    fn ends(&mut self) -> Step {
        let size = self.head.size;
        let head = self.reader.head();
        if head.size > size {
            return found(size, format!("the log ends at size {size}, but its head says {}", head.size));
        }
        if head != self.head {
            return self.wrong_head(head);
        }
        let Some((checkpoint, root)) = &self.signed else { return Ok(()) };
        match root {
            None => found(
                size,
                format!(
                    "the checkpoint covers {} records, the log holds {size}: the rest was removed",
                    checkpoint.size
                ),
            ),
            Some(root) if *root != checkpoint.root => found(
                0,
                format!(
                    "the log is consistent in itself but is not the one that was signed: the root at size {} differs \
                     from the checkpoint's, so it was written anew",
                    checkpoint.size
                ),
            ),
            Some(_) => {
                self.summary.unsigned = size - checkpoint.size;
                Ok(())
            }
        }
    }

    /// Head and last entry differ. Which of them was changed? If the signed root
    /// bears out the entries, the head.
    fn wrong_head(&self, head: Head) -> Step {
        let size = self.head.size;
        if head.size < size {
            return found(head.size, "records were inserted behind the log's head");
        }
        let borne_out = self.signed.as_ref().is_some_and(|(c, root)| c.size == size && *root == Some(c.root));
        if borne_out {
            return found(size, "the log's head is not the chain hash of its last entry: the head was changed");
        }
        let first = self.previous_block.unwrap_or(0);
        found(first, format!("an entry of the last block (seq {first} to {}) was changed", size - 1))
    }

    /// The key that signed must be the one that the first record names.
    fn genesis(&self) -> Step {
        let block = self.reader.block_at(0).map_err(|e| damage(0, e))?;
        let content = block.and_then(|b| b.content);
        let names_key = |c: &Content| {
            let (record, vkey) = (c.record(0), self.reader.vkey().as_bytes());
            record.windows(vkey.len()).any(|w| w == vkey)
        };
        if content.as_ref().is_some_and(names_key) {
            return Ok(());
        }
        found(0, "log.vkey is not the key that the log's first record names")
    }
}

/// One column family, read in key order.
struct Column<'a> {
    name: &'static str,
    iterator: DBRawIterator<'a>,
    started: bool,
}

impl<'a> Column<'a> {
    fn open(reader: &'a Reader, name: &'static str) -> Self {
        let shared = reader.shared();
        let mut options = rocksdb::ReadOptions::default();
        options.set_verify_checksums(true);
        options.fill_cache(false);
        options.set_readahead_size(2 << 20);
        let iterator = shared.db.raw_iterator_cf_opt(shared.cf(name), options);
        Self { name, iterator, started: false }
    }

    /// The next key and value. `seq` is where the reading stands, for a finding.
    fn next(&mut self, seq: u64) -> Step<Option<(&[u8], &[u8])>> {
        if self.started {
            self.iterator.next();
        } else {
            self.iterator.seek_to_first();
            self.started = true;
        }
        self.iterator.status().map_err(|e| damage(seq, e.into()))?;
        Ok(self.iterator.item())
    }

    /// The next value, which must be that of the block at `seq`.
    fn expect(&mut self, seq: u64) -> Step<&[u8]> {
        let name = self.name;
        let Some((key, value)) = self.next(seq)? else {
            return found(seq, format!("the block at seq {seq} is missing from {name}"));
        };
        let key = seq_of_key(key).map_err(|e| damage(seq, e))?;
        match key.cmp(&seq) {
            std::cmp::Ordering::Equal => Ok(value),
            std::cmp::Ordering::Greater => found(seq, format!("the block at seq {seq} is missing from {name}")),
            std::cmp::Ordering::Less => {
                found(key, format!("{name} has content at seq {key} for which there is no entry"))
            }
        }
    }
}
