//! Repair of what can be made again from the rest: the indexes, the nodes of the
//! tree, and a checkpoint file that is gone. Records, entries and their chain cannot
//! be made again: if they are damaged, only a backup helps, and this says so.
//!
//! Nothing is changed without being asked; a plan says what would be.

use std::collections::HashMap;
use std::path::Path;

use custody_proto::Signal;
use rocksdb::WriteBatch;

use crate::checkpoint::{Checkpoint, replace_file};
use crate::erase::index_key;
use crate::format::{COPY_BIT, Commitments, Head, cf, node_key, request_key, seq_key, seqs};
use crate::keys::{KeySource, SigningKeys, SubmitterSecret};
use crate::ledger::{Shared, open_to_repair, read_checkpoint, synced};
use crate::reader::Content;
use crate::system::{SYSTEM_IDENTITY, SystemRecord};
use crate::tree::{Frontier, leaf_hash};
use crate::{Error, Reader, rotate};

/// Rows that are written at once.
const BATCH_ROWS: usize = 10_000;

/// What can be made again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Nodes of the tree that are missing or wrong.
    pub nodes: u64,
    /// Index rows that are missing or wrong.
    pub index_rows: u64,
    /// Whether the checkpoint file is gone and would be signed anew.
    pub checkpoint: bool,
}

impl Plan {
    /// Whether there is nothing to repair.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Looks at a data directory that no server has open, and repairs it if `apply`. `Err`
/// says what cannot be repaired.
pub fn repair(dir: &Path, source: &KeySource, apply: bool) -> Result<Plan, Error> {
    let shared = open_to_repair(dir)?;
    // Nothing is written before all that cannot be made again was found right.
    let plan = look(dir, &shared, source, false)?;
    if apply && !plan.is_empty() { look(dir, &shared, source, true) } else { Ok(plan) }
}

fn look(dir: &Path, shared: &std::sync::Arc<Shared>, source: &KeySource, apply: bool) -> Result<Plan, Error> {
    let reader = Reader::new(std::sync::Arc::clone(shared));
    let secret = SubmitterSecret::open(&dir.join("keys/submitter.key"), false)?;
    let mut signed: Vec<Checkpoint> = Vec::new();
    for note in read_checkpoint(dir)?.into_iter().chain(reader.witnessed(0, u64::MAX)?.into_iter().map(|k| k.note)) {
        signed.push(Checkpoint::parse_unverified(&note).map_err(beyond_repair)?);
    }
    let mut making = Making {
        shared,
        seed: secret.request_seed(),
        apply,
        write: WriteBatch::default(),
        plan: Plan::default(),
        frontier: Frontier::default(),
        head: Head::EMPTY,
        signed,
        counts: HashMap::new(),
    };
    while making.head.size < reader.head().size {
        let block = reader.commitments_at(making.head.size).and_then(|block| {
            let missing = || Error::corrupt(format!("the entries of seq {} are missing", making.head.size));
            block.ok_or_else(missing)
        });
        making.block(&reader, &block.map_err(beyond_repair)?)?;
    }
    if making.head != reader.head() {
        return Err(beyond_repair(Error::corrupt("the entries do not end in the log's head")));
    }
    if let Some(beyond) = making.signed.iter().find(|signed| signed.size > making.head.size) {
        let what = format!("a checkpoint covers {} records, the log holds {}", beyond.size, making.head.size);
        return Err(beyond_repair(Error::corrupt(what)));
    }
    for (submitter, count) in std::mem::take(&mut making.counts) {
        making.want(cf::SUBMITTERS, &submitter, &count.to_be_bytes())?;
    }
    making.flush()?;
    making.checkpoint(dir, &reader, source)?;
    making.flush()?;
    Ok(making.plan)
}

fn beyond_repair(error: Error) -> Error {
    Error::corrupt(format!("{error}: that cannot be made again from the rest; restore the directory from a backup"))
}

struct Making<'a> {
    shared: &'a Shared,
    seed: u64,
    apply: bool,
    write: WriteBatch,
    plan: Plan,
    frontier: Frontier,
    head: Head,
    /// All checkpoints that are here.
    signed: Vec<Checkpoint>,
    /// How many records each submitter has.
    counts: HashMap<[u8; 16], u64>,
}

impl Making<'_> {
    fn block(&mut self, reader: &Reader, block: &Commitments) -> Result<(), Error> {
        if block.first_seq != self.head.size || block.previous != self.head.chain {
            let what = format!("the entries at seq {} do not continue the chain", self.head.size);
            return Err(beyond_repair(Error::corrupt(what)));
        }
        let mut nodes = Vec::new();
        for link in block.chained(block.previous) {
            self.frontier.push(leaf_hash(&link.bytes), |node| nodes.push(node));
            self.head = Head { size: link.entry.seq + 1, chain: link.chain };
            let signed = self.signed.iter().find(|signed| signed.size == self.head.size);
            if signed.is_some_and(|signed| signed.root != self.frontier.root()) {
                let what = format!("the tree of size {} is not the one that was signed", self.head.size);
                return Err(beyond_repair(Error::corrupt(what)));
            }
        }
        for node in nodes {
            self.want(cf::NODES, &node_key(node.level, node.index), &node.hash)?;
        }
        self.counts.insert(block.submitter, block.counter + block.count());
        let content = reader.block_at(block.first_seq).map_err(beyond_repair)?.and_then(|block| block.content);
        if let Some(content) = content {
            if !content.is_of(block) {
                let what = format!("the content at seq {} is not what its entries commit to", block.first_seq);
                return Err(beyond_repair(Error::corrupt(what)));
            }
            self.index(block, &content)?;
        }
        if self.write.len() > BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    fn index(&mut self, block: &Commitments, content: &Content) -> Result<(), Error> {
        let first = block.first_seq;
        if content.identity() == SYSTEM_IDENTITY {
            let name = SystemRecord::decode(content.record(0)).map(|record| record.event).unwrap_or_default();
            self.want(cf::SYSTEM, &seq_key(first), name.as_bytes())?;
        }
        if !content.is_partly_erased() {
            let key = request_key(self.seed, block.signal, content.payload());
            self.want(cf::REQUESTS, &key, &seq_key(first))?;
        }
        for i in (0..content.records()).filter(|&i| !content.is_erased(i)) {
            self.record(block.signal, first + i as u64, content.record(i))?;
        }
        for copy in content.layout().copies.iter().filter(|_| !content.is_partly_erased()) {
            let at = copy.range.at as usize..(copy.range.at + copy.range.len) as usize;
            self.record(block.signal, first | COPY_BIT, &content.payload()[at])?;
        }
        Ok(())
    }

    /// A record must be found by its ids: in the row of its span, or in one of its own.
    fn record(&mut self, signal: Signal, seq: u64, record: &[u8]) -> Result<(), Error> {
        let Some(key) = index_key(signal, seq, record) else { return Ok(()) };
        if signal == Signal::Logs {
            return self.want(cf::IDS, &key, &seq_key(seq));
        }
        let stored = self.shared.db.get_cf(self.shared.cf(cf::IDS), key)?.unwrap_or_default();
        if seqs(&stored).any(|stored| stored == seq) {
            return Ok(());
        }
        self.want(cf::IDS, &[&key[..], &seq.to_be_bytes()].concat(), &[])
    }

    fn want(&mut self, family: &str, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let family_handle = self.shared.cf(family);
        if self.shared.db.get_cf(family_handle, key)?.as_deref() == Some(value) {
            return Ok(());
        }
        if family == cf::NODES {
            self.plan.nodes += 1
        } else {
            self.plan.index_rows += 1
        }
        if self.apply {
            self.write.put_cf(family_handle, key, value);
        }
        Ok(())
    }

    /// The tree that comes out must be the one that was signed.
    fn checkpoint(&mut self, dir: &Path, reader: &Reader, source: &KeySource) -> Result<(), Error> {
        if let Some(note) = read_checkpoint(dir)? {
            let size = Checkpoint::parse_unverified(&note).map_err(beyond_repair)?.size;
            return Checkpoint::verify(&note, &rotate::keys_at(reader, size)?).map(drop).map_err(beyond_repair);
        }
        if self.head.size <= 1 {
            return Ok(());
        }
        self.plan.checkpoint = true;
        if self.apply {
            let keys = SigningKeys::open(source, dir, reader.origin(), false)?;
            if keys.verifiers() != rotate::keys_at(reader, self.head.size)? {
                return Err(Error::invalid("the signing keys are not those that the log names"));
            }
            let checkpoint =
                Checkpoint { origin: reader.origin().to_owned(), size: self.head.size, root: self.frontier.root() };
            let time = reader.last_commitments()?.map_or(0, |last| last.ingest_time / 1_000_000_000);
            let note = keys.sign_checkpoint(&checkpoint, time)?;
            replace_file(&dir.join("checkpoint"), note.to_string().as_bytes())?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(self.shared.write(std::mem::take(&mut self.write), &synced())?)
    }
}
