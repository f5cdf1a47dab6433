//! Verification: a separate reading of the format that derives everything anew.
//!
//! It shares with the writer the byte layouts and nothing else: not its state,
//! not its indexes. One thread reads entries, layouts and payloads side by side, in
//! seq order; workers recompute commitments, chain and leaves of each block; the
//! calling thread joins the blocks: chain, counters, tree, keys, erasures, and the
//! root at every size that was signed. Memory does not grow with the log, but for a
//! counter of each submitter and the ranges of what was erased.

mod block;
mod erased;
mod read;
mod receipts;
mod signed;
mod state;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use custody_proto::Hash;

use crate::checkpoint::Checkpoint;
use crate::format::{Commitments, cf, node_key, seq_of_key};
use crate::ledger::read_checkpoint;
use crate::note::VerifierKey;
use crate::reader::Reader;
use crate::rotate;
use crate::system::{SeqSet, event};
use crate::tree::Node;
use crate::{Error, ErrorKind};

use block::{Checked, check};
use read::{Chunk, Column, Source};
use signed::Signed;

pub use receipts::{ReceiptVerdict, verify_receipts};
pub use state::State;

/// What is verified, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A signed checkpoint that somebody kept: nothing that it covers may be changed or gone.
    pub trusted: Option<String>,
    /// Keys that the caller trusts: the first record, or a rotation that leads on from it,
    /// must name exactly these. Without them the keys of the first record are taken as they are.
    pub keys: Vec<VerifierKey>,
    /// How many workers hash; 0 takes as many as the machine has cores.
    pub workers: usize,
    /// Where an earlier verification of the same log got to.
    pub state: Option<State>,
}

/// What verification found.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Everything is as it was signed.
    Sound(Box<Summary>),
    /// Something was changed, removed, swapped or inserted.
    Tampered(Finding),
}

/// Counts of a sound log.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Records verified.
    pub records: u64,
    /// Of these, how many were erased: as many as the log's records about erasure name.
    pub erased: u64,
    /// Blocks (accepted requests) verified.
    pub blocks: u64,
    /// Payload bytes hashed.
    pub bytes: u64,
    /// Nodes of the tree compared.
    pub nodes: u64,
    /// Checkpoints whose root and signatures hold.
    pub checkpoints: u64,
    /// Durable records that no checkpoint covers yet.
    pub unsigned: u64,
    /// The checkpoint, whose signatures verify.
    pub checkpoint: String,
    /// The log's public keys in force, Ed25519 first.
    pub keys: Vec<String>,
    /// How many records an earlier verification, whose state was given, had read; they
    /// were not read again.
    pub resumed_at: u64,
    /// For going on from here.
    pub state: State,
}

/// The first thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The first seq that is not what was signed.
    pub seq: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// The seq of a finding whose place the joining knows.
const UNPLACED: u64 = u64::MAX;

type Step<T = ()> = Result<T, Stop>;

/// Why a reading ends early.
enum Stop {
    Found(Finding),
    Unreadable(Error),
}

/// Verifies a data directory, or a copy of one. `Err` means that it could not be
/// told: the store is not readable at all. `progress` hears how many records are
/// done, of how many, and can keep the state.
pub fn verify(dir: &Path, options: &Options, progress: impl FnMut(&State, u64)) -> Result<Verdict, Error> {
    // The checkpoint first: the log may grow meanwhile, but never below it.
    let note = match read_checkpoint(dir) {
        Ok(note) => note,
        Err(e) if e.kind() == ErrorKind::Corrupt => {
            return Ok(Verdict::Tampered(Finding { seq: 0, reason: e.to_string() }));
        }
        Err(e) => return Err(e),
    };
    let reader = Reader::open(dir)?;
    match Reading::new(&reader, options).and_then(|reading| reading.run(note, progress)) {
        Ok(summary) => Ok(Verdict::Sound(Box::new(summary))),
        Err(Stop::Found(finding)) => Ok(Verdict::Tampered(finding)),
        Err(Stop::Unreadable(error)) => Err(error),
    }
}

fn found<T>(seq: u64, reason: impl Into<String>) -> Step<T> {
    Err(Stop::Found(Finding { seq, reason: reason.into() }))
}

/// A storage error while reading what begins at `seq`: damage is a finding.
fn damage(seq: u64, error: Error) -> Stop {
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Invalid => Stop::Found(Finding { seq, reason: error.to_string() }),
        _ => Stop::Unreadable(error),
    }
}

impl Stop {
    /// A finding of the reading; one without a place is at the first seq that is not verified.
    fn at(self, seq: u64) -> Self {
        match self {
            Self::Found(finding) if finding.seq == UNPLACED => Self::Found(Finding { seq, ..finding }),
            Self::Found(finding) => Self::Found(finding),
            Self::Unreadable(error) => Self::Unreadable(error),
        }
    }
}

struct Reading<'a> {
    reader: &'a Reader,
    options: &'a Options,
    state: State,
    previous_block: Option<u64>,
    /// Signed roots by size, still to come.
    signed: BTreeMap<u64, Vec<Signed>>,
    newest: Option<Checkpoint>,
    /// What the index says was erased: so that a gap is found where it is.
    hinted: SeqSet,
    /// The first gap of which the index does not say so: if no record does, it comes first.
    unhinted: Option<u64>,
    nodes: Vec<Node>,
    checkpoint_note: String,
    /// That a root is not the signed one.
    rewritten: Option<Finding>,
}

impl<'a> Reading<'a> {
    fn new(reader: &'a Reader, options: &'a Options) -> Step<Self> {
        let hints = reader.erasures().unwrap_or_default();
        let hinted = SeqSet::of(hints.iter().flat_map(|(_, set)| set.ranges().iter().cloned()));
        let mut state = options.state.clone().unwrap_or_default();
        if options.state.is_some() && state.origin != reader.origin() {
            return Err(Stop::Unreadable(Error::invalid(format!(
                "the state of the earlier verification is of {}, not of {}",
                state.origin,
                reader.origin()
            ))));
        }
        state.origin = reader.origin().to_owned();
        if state.head.size > reader.head().size {
            return found(
                reader.head().size,
                format!("the log ends before size {}, up to which it was verified earlier", state.head.size),
            );
        }
        Ok(Self {
            reader,
            options,
            state,
            previous_block: None,
            signed: BTreeMap::new(),
            newest: None,
            hinted,
            unhinted: None,
            nodes: Vec::new(),
            checkpoint_note: String::new(),
            rewritten: None,
        })
    }

    fn run(mut self, note: Option<String>, mut progress: impl FnMut(&State, u64)) -> Step<Summary> {
        self.checkpoints(note)?;
        let total = self.reader.head().size;
        let from = self.state.head.size;
        let workers = match self.options.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            some => some,
        };
        let reader = self.reader;
        std::thread::scope(|scope| {
            let (work, chunks) = sync_channel::<(u64, Chunk)>(2 * workers);
            let (done, checked) = sync_channel::<(u64, Vec<Checked>)>(2 * workers);
            let chunks = std::sync::Arc::new(Mutex::new(chunks));
            for _ in 0..workers {
                let (chunks, done) = (std::sync::Arc::clone(&chunks), done.clone());
                scope.spawn(move || work_off(&chunks, &done));
            }
            drop(done);
            scope.spawn(move || Source::open(reader, from).send(&work));
            self.join(&checked, |state| progress(state, total))
        })
        .map_err(|stop| self.first_of(stop))?;
        self.no_other_nodes()?;
        self.ends()?;
        self.erased_behind(from)?;
        self.erasures()?;
        self.summary()
    }

    /// A finding, or the gap before it that nothing explains.
    fn first_of(&self, stop: Stop) -> Stop {
        match (self.unhinted, stop) {
            (Some(seq), Stop::Found(finding)) if seq < finding.seq && !self.state.erased.contains(seq) => {
                let reason = format!("the content of seq {seq} is missing, and no record says that it was erased");
                Stop::Found(Finding { seq, reason })
            }
            (_, stop) => stop,
        }
    }

    /// Takes the blocks in order.
    fn join(&mut self, checked: &Receiver<(u64, Vec<Checked>)>, mut progress: impl FnMut(&State)) -> Step {
        let mut early = BTreeMap::new();
        let mut next = 0;
        for (index, blocks) in checked {
            early.insert(index, blocks);
            while let Some(blocks) = early.remove(&next) {
                next += 1;
                for block in blocks {
                    self.block(block)?;
                }
                progress(&self.state);
            }
        }
        Ok(())
    }

    fn block(&mut self, checked: Checked) -> Step {
        let expected = self.state.head.size;
        let first = checked.key.map_err(|stop| stop.at(expected))?;
        if first > expected {
            return found(expected, format!("the entries of seq {expected} to {} are missing", first - 1));
        }
        let Some(block) = checked.block else {
            return found(expected, "the entries are not in the format's layout");
        };
        if first < expected || block.first_seq != first {
            return found(first.min(expected), "the entries stand under a seq that is not theirs");
        }
        if block.ingest_time < self.state.last_time {
            return found(first, "the ingest time is before that of the record before it");
        }
        self.state.last_time = block.ingest_time;
        if let Some(finding) = checked.finding {
            return Err(Stop::Found(finding));
        }
        if self.unhinted.is_none() {
            self.unhinted = checked.gaps.seqs().find(|seq| !self.hinted.contains(*seq));
        }
        let reached = self.link(&block, &checked.leaves, checked.end)?;
        self.counter(&block)?;
        for (seq, record) in &checked.system {
            self.system(*seq, record)?;
            self.state.own.push(*seq);
        }
        for (root, signed) in reached {
            self.reached(root, signed)?;
        }
        let state = &mut self.state;
        checked.gaps.ranges().iter().for_each(|range| state.gaps.append(range.clone()));
        if !checked.copies.is_empty() {
            state.copies.push((first, checked.copies));
        }
        if !checked.frame_for.is_empty() {
            state.frames.push((first, checked.frame_for));
        }
        state.blocks += 1;
        state.bytes += checked.bytes;
        Ok(())
    }

    fn counter(&mut self, block: &Commitments) -> Step {
        let next = self.state.counters.entry(block.submitter).or_insert(0);
        if *next != block.counter {
            return found(
                block.first_seq,
                format!("the submitter's counter is {}, but {next} of its records came before", block.counter),
            );
        }
        *next += block.count();
        Ok(())
    }

    /// Chain and tree; gives the roots at the sizes that were signed.
    fn link(&mut self, block: &Commitments, leaves: &[Hash], end: Hash) -> Step<Vec<(Hash, Signed)>> {
        let seq = block.first_seq;
        if block.previous != self.state.head.chain {
            return self.broken_link(block).map(|()| Vec::new());
        }
        let mut reached = Vec::new();
        for leaf in leaves {
            self.state.frontier.push(*leaf, |node| self.nodes.push(node));
            self.state.head.size += 1;
            for signed in self.signed.remove(&self.state.head.size).unwrap_or_default() {
                reached.push((self.state.frontier.root(), signed));
            }
        }
        self.state.head.chain = end;
        self.previous_block = Some(seq);
        self.nodes_so_far()?;
        Ok(reached)
    }

    fn system(&mut self, seq: u64, record: &crate::system::SystemRecord) -> Step {
        match record.event.as_str() {
            event::GENESIS | event::KEYS => {
                if (seq == 0) != (record.event == event::GENESIS) {
                    return found(seq, "a genesis record that is not the first, or a first record that is none");
                }
                let before = self.state.keys_at(seq);
                let keys = rotate::follow(before, self.reader.origin(), seq, record).map_err(|e| damage(seq, e))?;
                self.state.keys.push((seq, keys));
            }
            event::ERASURE => {
                let set = record.text("custody.erasure.seqs").and_then(SeqSet::parse);
                let Some(set) = set.filter(|set| set.ranges().last().is_none_or(|range| range.end <= seq)) else {
                    return found(seq, "the erasure record does not name earlier records");
                };
                let text = rotate::erasure_statement(self.reader.origin(), seq, &set.to_string());
                let lines = record.texts("custody.erasure.signatures").unwrap_or_default();
                if !rotate::is_signed(&text, lines, self.state.keys_at(seq)) {
                    return found(seq, "the erasure record is not signed by the log's keys");
                }
                if let Some(own) = self.state.own.iter().find(|own| set.contains(**own)) {
                    return found(seq, format!("the erasure record names record {own}, which is the ledger's own"));
                }
                self.state.erased = self.state.erased.union(&set);
            }
            _ => {}
        }
        Ok(())
    }

    /// Two blocks do not join. Which of them was changed? The one whose stored
    /// hashes the block after does not bear out.
    fn broken_link(&self, block: &Commitments) -> Step {
        let end = |previous| block.chained(previous).last().map(|link| link.chain);
        let next = match self.reader.commitments_at(block.end_seq()) {
            Ok(Some(next)) => Some(next.previous),
            _ => Some(self.reader.head().chain).filter(|_| self.reader.head().size == block.end_seq()),
        };
        if next.is_some() && next == end(self.state.head.chain) {
            return found(block.first_seq, "the hash of the entry before it was changed");
        }
        let first = self.previous_block.unwrap_or(0);
        found(
            first,
            format!(
                "an entry of the block at seq {first} to {} was changed, swapped or inserted: the chain after it \
                 does not continue from it",
                block.first_seq.saturating_sub(1)
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
                Some(stored) if stored[..] == node.hash => self.state.nodes += 1,
                Some(_) => return found(first, format!("{range} is not the hash of its entries")),
                None => return found(first, format!("{range} is missing")),
            }
        }
        Ok(())
    }

    /// No node that the log is too short for.
    fn no_other_nodes(&self) -> Step {
        let size = self.state.head.size;
        let mut stored = Column::open(self.reader, cf::NODES, None);
        let mut count = 0;
        while let Some((key, _)) = stored.next(size)? {
            let (level, index) = key.split_first().ok_or_else(|| damage(0, Error::corrupt("an empty tile key")))?;
            let index = seq_of_key(index).map_err(|e| damage(0, e))?;
            let end = 256u64.checked_pow((*level).into()).and_then(|w| w.checked_mul(index.checked_add(1)?));
            if *level == 0 || end.is_none_or(|end| end > size) {
                return found(size, format!("tile node {index} of level {level} was inserted"));
            }
            count += 1;
        }
        if count != self.state.nodes {
            return found(0, "the tree has nodes that were inserted");
        }
        Ok(())
    }

    fn summary(self) -> Step<Summary> {
        let state = self.state;
        let Some(newest) = self.newest else { return found(0, "the checkpoint is missing, so no record is proved") };
        Ok(Summary {
            records: state.head.size,
            erased: state.erased.count(),
            blocks: state.blocks,
            bytes: state.bytes,
            nodes: state.nodes,
            checkpoints: state.checkpoints,
            unsigned: state.head.size - newest.size,
            checkpoint: self.checkpoint_note,
            keys: state.keys_at(state.head.size).iter().map(ToString::to_string).collect(),
            resumed_at: self.options.state.as_ref().map_or(0, State::size),
            state,
        })
    }
}

/// A worker: takes chunks until there are none.
fn work_off(chunks: &Mutex<Receiver<(u64, Chunk)>>, done: &SyncSender<(u64, Vec<Checked>)>) {
    loop {
        let next = chunks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        let Ok((index, chunk)) = next else { return };
        // The reader of the results has stopped at a finding.
        if done.send((index, chunk.into_iter().map(check).collect())).is_err() {
            return;
        }
    }
}
