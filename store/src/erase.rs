//! Erasure under law: content goes, for good; entries and proofs stay.
//!
//! One write removes the content and appends the record that says so, so that a
//! crash leaves both or neither. What is gone from the database may still lie in
//! its files until they are compacted: a mark says so until that is done, and
//! opening the log finishes it.
//!
//! Of a block that keeps other records the erased ones become zeros, and the salt
//! from which all salts of the block came is replaced by those of the parts that stay.

use std::collections::BTreeMap;
use std::sync::Arc;

use custody_proto::otlp::logs::LogRecord;
use custody_proto::otlp::trace::Span;
use custody_proto::scan::Range;
use custody_proto::{Hash, Signal};
use prost::Message as _;
use rocksdb::{BottommostLevelCompaction, CompactOptions, WriteBatch, WriteOptions};

use crate::commit::Digests;
use crate::format::{COPY_BIT, Layout, Part, Salts, cf, log_key, meta, request_key, seq_key, seqs, span_key};
use crate::ledger::Shared;
use crate::reader::{Block, Content};
use crate::system::{SeqSet, SystemRecord, event};
use crate::writer::Writer;
use crate::{Error, Reader};

/// Of how many records one record about erasure speaks at most.
const RECORDS_PER_ERASURE: u64 = 16_384;

/// Why content goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Somebody may demand it.
    Erasure,
    /// It is older than what is kept.
    Retention,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Self::Erasure => "erasure",
            Self::Retention => "retention",
        }
    }
}

/// What is to be erased, and what the log shall say about it.
#[derive(Clone, Debug)]
pub struct Erasure {
    /// The records.
    pub seqs: SeqSet,
    /// Why it goes.
    pub cause: Cause,
    /// The reason, in words.
    pub reason: String,
    /// Who decided it, as he says.
    pub actor: String,
    /// Who asked for it, as authenticated.
    pub identity: String,
}

/// What was erased.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// How many records lost their content now.
    pub records: u64,
    /// How many of those asked for had none any more.
    pub before: u64,
    /// Payload bytes that are gone.
    pub bytes: u64,
    /// The seqs of the records that say so.
    pub said_by: Vec<u64>,
}

/// A legal hold: its records may not be erased until it is released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Its name.
    pub id: String,
    /// What it holds.
    pub seqs: SeqSet,
    /// Why.
    pub reason: String,
    /// The seq of the record that placed it.
    pub placed_by: u64,
}

impl Reader {
    /// All records whose content was erased, each set with the seq of the record that says so.
    pub fn erasures(&self) -> Result<Vec<(u64, SeqSet)>, Error> {
        let records = self.system_records(&[event::ERASURE])?;
        let read = |(seq, record): (u64, SystemRecord)| {
            let set = record.text("custody.erasure.seqs").and_then(SeqSet::parse);
            let set = set.ok_or_else(|| Error::corrupt(format!("the erasure record at seq {seq} is not readable")))?;
            Ok((seq, set))
        };
        records.into_iter().map(read).collect()
    }

    /// The legal holds in force.
    pub fn holds(&self) -> Result<Vec<Hold>, Error> {
        let mut holds: BTreeMap<String, Hold> = BTreeMap::new();
        for (seq, record) in self.system_records(&[event::HOLD])? {
            let text = |key| record.text(key).unwrap_or_default().to_owned();
            let id = text("custody.hold.id");
            if record.text("custody.hold.state") == Some("released") {
                holds.remove(&id);
                continue;
            }
            let seqs = SeqSet::parse(&text("custody.hold.seqs")).unwrap_or_default();
            let hold = Hold { id: id.clone(), seqs, reason: text("custody.hold.reason"), placed_by: seq };
            holds.insert(id, hold);
        }
        Ok(holds.into_values().collect())
    }

    /// The first seq that was taken at or after a time; the size of the log if there is none.
    pub fn first_at(&self, time: u64) -> Result<u64, Error> {
        let (mut low, mut high) = (0, self.head().size);
        while low < high {
            let middle = low + (high - low) / 2;
            let Some(block) = self.commitments_at(middle)? else { break };
            if block.ingest_time < time {
                low = block.end_seq();
            } else {
                high = block.first_seq;
            }
        }
        Ok(low)
    }

    /// Writes files anew in which erased content may still lie. Blocks the calling
    /// thread, but no appends. Does nothing if nothing was erased since.
    pub fn purge(&self) -> Result<(), Error> {
        let shared = self.shared();
        let meta_family = shared.cf(cf::META);
        if shared.db.get_cf(meta_family, meta::PURGE)?.is_none() {
            return Ok(());
        }
        // The write-ahead log held the content too: once every memtable is a file, it is dropped.
        let families: Vec<_> = cf::ALL.iter().map(|name| shared.cf(name)).collect();
        shared.db.flush_cfs_opt(&families, &rocksdb::FlushOptions::default())?;
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        options.set_exclusive_manual_compaction(false);
        for name in [cf::PAYLOADS, cf::BLOCKS, cf::IDS, cf::REQUESTS] {
            shared.db.compact_range_cf_opt(shared.cf(name), None::<&[u8]>, None::<&[u8]>, &options);
        }
        // A crash before this line: the next opening does it again.
        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        shared.db.delete_cf_opt(meta_family, meta::PURGE, &sync)?;
        Ok(())
    }
}

impl Writer {
    /// Erases the content of records and says so in the log. [`Reader::purge`] must
    /// follow. Records of the ledger's own are never erased; with [`Cause::Erasure`]
    /// asking for one is an error, as is asking for one under a hold.
    pub fn erase(&mut self, erasure: &Erasure) -> Result<Erased, Error> {
        let todo = self.erasable(erasure)?;
        let mut erased = Erased { before: erasure.seqs.count() - todo.count(), ..Erased::default() };
        let mut rest = todo;
        while !rest.is_empty() {
            let (now, later) = split(&rest, RECORDS_PER_ERASURE);
            let mut stage = Stage::new(self);
            let bytes = stage.erase(&now)?;
            let record = SystemRecord::new(event::ERASURE)
                .with("custody.erasure.seqs", now.to_string())
                .with("custody.erasure.records", now.count())
                .with("custody.erasure.cause", erasure.cause.name())
                .with("custody.erasure.reason", erasure.reason.as_str())
                .with("custody.erasure.actor", erasure.actor.as_str())
                .with("custody.erasure.identity", erasure.identity.as_str());
            erased.said_by.push(self.append_with(&record, |write| stage.put(write))?);
            erased.records += now.count();
            erased.bytes += bytes;
            rest = later;
        }
        Ok(erased)
    }

    /// What of it may and can be erased.
    fn erasable(&self, erasure: &Erasure) -> Result<SeqSet, Error> {
        let size = self.head_size();
        if let Some(beyond) = erasure.seqs.ranges().last().filter(|range| range.end > size) {
            return Err(Error::invalid(format!("there is no record {}; the log ends at {}", beyond.end - 1, size - 1)));
        }
        let own = SeqSet::of_seqs(self.reader.system_index()?.into_iter().map(|(seq, _)| seq));
        let is_erasure = erasure.cause == Cause::Erasure;
        if let Some(seq) = own.seqs().find(|seq| is_erasure && erasure.seqs.contains(*seq)) {
            return Err(Error::invalid(format!("record {seq} is the ledger's own and cannot be erased")));
        }
        let mut todo = erasure.seqs.without(&own);
        for hold in self.reader.holds()? {
            let left = todo.without(&hold.seqs);
            if is_erasure && left != todo {
                let held = todo.without(&left);
                return Err(Error::invalid(format!(
                    "record {held} is under the legal hold {:?} ({}); release it first with `custody hold release`",
                    hold.id, hold.reason
                )));
            }
            todo = left;
        }
        for (_, set) in self.reader.erasures()? {
            todo = todo.without(&set);
        }
        Ok(todo)
    }

    /// Places a hold on records, or releases it; gives the seq of the record about it.
    pub fn hold(&mut self, hold: &Hold, place: bool, actor: &str, identity: &str) -> Result<u64, Error> {
        let is_placed = self.reader.holds()?.iter().any(|placed| placed.id == hold.id);
        if is_placed == place {
            let state = if place { "in force already" } else { "not in force" };
            return Err(Error::invalid(format!("the legal hold {:?} is {state}", hold.id)));
        }
        let record = SystemRecord::new(event::HOLD)
            .with("custody.hold.id", hold.id.as_str())
            .with("custody.hold.state", if place { "placed" } else { "released" })
            .with("custody.hold.seqs", hold.seqs.to_string())
            .with("custody.hold.reason", hold.reason.as_str())
            .with("custody.hold.actor", actor)
            .with("custody.hold.identity", identity);
        self.append_system(&record)
    }
}

/// The first `count` seqs of a set, and the others.
fn split(set: &SeqSet, count: u64) -> (SeqSet, SeqSet) {
    let mut left = count;
    let mut now = Vec::new();
    for range in set.ranges() {
        let end = range.end.min(range.start.saturating_add(left));
        left -= end - range.start;
        now.push(range.start..end);
    }
    let now = SeqSet::of(now);
    let later = set.without(&now);
    (now, later)
}

/// An erasure in the making.
struct Stage {
    shared: Arc<Shared>,
    reader: Reader,
    /// Blocks that keep something, by first seq.
    edited: BTreeMap<u64, Edited>,
    /// Blocks that keep nothing.
    gone: Vec<u64>,
    /// New values in `ids`; empty ones are removed.
    ids: BTreeMap<[u8; 25], Vec<u64>>,
    requests: Vec<[u8; 16]>,
}

struct Edited {
    layout: Layout,
    payload: Vec<u8>,
}

impl Stage {
    fn new(writer: &Writer) -> Self {
        Self {
            shared: Arc::clone(&writer.shared),
            reader: writer.reader.clone(),
            edited: BTreeMap::new(),
            gone: Vec::new(),
            ids: BTreeMap::new(),
            requests: Vec::new(),
        }
    }

    /// Erases these records; gives how many bytes go.
    fn erase(&mut self, seqs: &SeqSet) -> Result<u64, Error> {
        let mut bytes = 0;
        let mut at = 0;
        while let Some(seq) = next_in(seqs, at) {
            let block = self.reader.block_at(seq)?;
            let block = block.ok_or_else(|| Error::invalid(format!("there is no record {seq}")))?;
            at = block.commitments.end_seq();
            bytes += self.erase_in(&block, seqs)?;
        }
        Ok(bytes)
    }

    fn erase_in(&mut self, block: &Block, seqs: &SeqSet) -> Result<u64, Error> {
        let first = block.commitments.first_seq;
        let Some(content) = &block.content else { return Ok(0) };
        let erased: Vec<usize> = (0..content.records()).filter(|&i| seqs.contains(first + i as u64)).collect();
        let mut bytes = 0;
        for &i in &erased {
            bytes += content.record(i).len() as u64;
            self.forget(block.commitments.signal, first + i as u64, content.record(i))?;
        }
        let whole = !(0..content.records()).any(|i| content.is_erased(i));
        if whole {
            self.requests.push(request_key(block.commitments.signal, content.payload()));
        }
        let keeps = (0..content.records()).any(|i| !content.is_erased(i) && !seqs.contains(first + i as u64));
        if keeps {
            self.edit(first, content).erase_records(&erased);
        } else {
            bytes = content.payload().len() as u64;
            self.edited.remove(&first);
            self.gone.push(first);
        }
        Ok(bytes)
    }

    /// The block's newest state, for changing.
    fn edit(&mut self, first: u64, content: &Content) -> &mut Edited {
        self.edited.entry(first).or_insert_with(|| Edited::new(content))
    }

    /// Takes a record out of the indexes, and its copies out of other blocks.
    fn forget(&mut self, signal: Signal, seq: u64, record: &[u8]) -> Result<(), Error> {
        let Some(key) = index_key(signal, seq, record) else { return Ok(()) };
        if !self.ids.contains_key(&key) {
            let stored = self.shared.db.get_cf(self.shared.cf(cf::IDS), key)?;
            self.ids.insert(key, seqs(&stored.unwrap_or_default()).collect());
        }
        let list = self.ids.get_mut(&key).map(std::mem::take).unwrap_or_default();
        let copies: Vec<u64> = list.iter().filter(|s| **s & COPY_BIT != 0).map(|s| s & !COPY_BIT).collect();
        for first in copies {
            self.erase_copies(first, seq)?;
        }
        let left = list.into_iter().filter(|s| *s != seq).collect();
        self.ids.insert(key, left);
        Ok(())
    }

    fn erase_copies(&mut self, first: u64, original: u64) -> Result<(), Error> {
        if self.gone.contains(&first) {
            return Ok(());
        }
        let Some(block) = self.reader.block_at(first)? else { return Ok(()) };
        if let Some(content) = &block.content {
            if !(0..content.records()).any(|i| content.is_erased(i)) {
                self.requests.push(request_key(block.commitments.signal, content.payload()));
            }
            self.edit(first, content).erase_copies(original);
        }
        Ok(())
    }

    fn put(&self, write: &mut WriteBatch) -> Result<(), Error> {
        let family = |name| self.shared.cf(name);
        for first in &self.gone {
            write.delete_cf(family(cf::PAYLOADS), seq_key(*first));
            write.delete_cf(family(cf::BLOCKS), seq_key(*first));
        }
        for (first, edited) in &self.edited {
            write.put_cf(family(cf::PAYLOADS), seq_key(*first), &edited.payload);
            write.put_cf(family(cf::BLOCKS), seq_key(*first), edited.layout.encode());
        }
        for (key, list) in &self.ids {
            if list.iter().all(|seq| seq & COPY_BIT != 0) {
                write.delete_cf(family(cf::IDS), key);
            } else {
                let value: Vec<u8> = list.iter().flat_map(|seq| seq.to_be_bytes()).collect();
                write.put_cf(family(cf::IDS), key, value);
            }
        }
        for key in &self.requests {
            write.delete_cf(family(cf::REQUESTS), key);
        }
        write.put_cf(family(cf::META), meta::PURGE, [1]);
        Ok(())
    }
}

/// The smallest seq of a set that is at least `at`.
fn next_in(set: &SeqSet, at: u64) -> Option<u64> {
    set.ranges().iter().find(|range| range.end > at).map(|range| range.start.max(at))
}

/// Under which key of `ids` a record is found.
fn index_key(signal: Signal, seq: u64, record: &[u8]) -> Option<[u8; 25]> {
    match signal {
        Signal::Traces => {
            let span = Span::decode(record).ok()?;
            Some(span_key(&span.trace_id.try_into().ok()?, &span.span_id.try_into().ok()?))
        }
        Signal::Logs => {
            let log = LogRecord::decode(record).ok()?;
            Some(log_key(&log.trace_id.try_into().ok()?, seq))
        }
        Signal::Metrics => None,
    }
}

impl Edited {
    fn new(content: &Content) -> Self {
        let mut layout = content.layout().clone();
        let digests = Digests::new(content.layout(), content.payload());
        let parts = digests.parts().to_vec();
        layout.salts = Salts::Partly(parts);
        Self { layout, payload: content.payload().to_vec() }
    }

    fn erase_records(&mut self, records: &[usize]) {
        for &i in records {
            let range = self.layout.records[i].range;
            self.clear(range);
            self.set(self.layout.record_part(i), [0; 32]);
        }
        self.erase_groups();
    }

    /// Resources and scopes that no record needs any more.
    fn erase_groups(&mut self) {
        let resources = self.layout.resource_parts();
        let mut needed = vec![false; self.layout.part_count()];
        for (i, record) in self.layout.records.iter().enumerate() {
            let group = record.group as usize;
            if !self.is_erased(self.layout.record_part(i)) {
                needed[resources[group]] = true;
                needed[self.layout.scope_part(group)] = true;
            }
        }
        for (group, resource) in resources.into_iter().enumerate() {
            let ranges = self.layout.groups[group];
            for (part, range) in [(resource, ranges.resource), (self.layout.scope_part(group), ranges.scope)] {
                if !needed[part] && !self.is_erased(part) {
                    self.clear(range);
                    self.set(part, [0; 32]);
                }
            }
        }
    }

    fn erase_copies(&mut self, original: u64) {
        for i in 0..self.layout.copies.len() {
            let part = self.layout.copy_part(i);
            if self.layout.copies[i].seq == original && !self.is_erased(part) {
                let digest = Digests::new(&self.layout, &self.payload).copy(i);
                let range = self.layout.copies[i].range;
                self.clear(range);
                self.set(part, digest);
            }
        }
    }

    fn is_erased(&self, part: usize) -> bool {
        matches!(&self.layout.salts, Salts::Partly(parts) if matches!(parts[part], Part::Erased(_)))
    }

    fn set(&mut self, part: usize, digest: Hash) {
        if let Salts::Partly(parts) = &mut self.layout.salts {
            parts[part] = Part::Erased(digest);
        }
    }

    fn clear(&mut self, range: Range) {
        let (at, len) = (range.at as usize, range.len as usize);
        match at.checked_sub(self.payload.len()) {
            Some(at) if len > 0 => self.layout.annex[at..at + len].fill(0),
            _ => self.payload[at..at + len].fill(0),
        }
    }
}
