//! Erasure under law: content goes, for good; entries and proofs stay.
//!
//! One write removes the content and appends the record that says so, so that a
//! crash leaves both or neither. What is gone from the database may still lie in
//! its files until they are compacted: a mark says so until that is done, and
//! opening the log finishes it.
//!
//! Of a block that keeps other records only what they need stays: the records, their
//! resources and scopes, the sender. All else becomes zeros, the frame too, of which
//! the digest stays; and the salt from which all salts of the block came is replaced
//! by those of the parts that stay.

mod purge;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use custody_proto::Signal;
use custody_proto::otlp::logs::LogRecord;
use custody_proto::otlp::trace::Span;
use prost::Message as _;
use rocksdb::WriteBatch;

use crate::format::{COPY_BIT, Layout, Salts, cf, log_key, meta, payload, request_key, seq_key, seqs, span_key};
use crate::ledger::Shared;
use crate::reader::{Block, Content};
use crate::system::{SeqSet, SystemRecord, event};
use crate::writer::Writer;
use crate::{Error, Reader, rotate};

/// One write erases about this many records at most.
const RECORDS_PER_ERASURE: u64 = 16_384;

/// One write holds about this many bytes of blocks that keep something.
const BYTES_PER_ERASURE: usize = 16 << 20;

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
    /// What is still to be erased, after [`Writer::erase_some`].
    pub left: SeqSet,
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
}

impl Writer {
    /// Erases the content of records and says so in the log. [`Reader::purge`] must
    /// follow. Records of the ledger's own are never erased; with [`Cause::Erasure`]
    /// asking for one is an error, as is asking for one under a hold.
    pub fn erase(&mut self, erasure: &Erasure) -> Result<Erased, Error> {
        self.erase_some(erasure, usize::MAX)
    }

    /// As [`Self::erase`], but stops after that many writes, so that appends get their
    /// turn; what is left is in the answer.
    pub fn erase_some(&mut self, erasure: &Erasure, limit: usize) -> Result<Erased, Error> {
        let todo = self.erasable(erasure)?;
        let mut erased = Erased { before: erasure.seqs.count() - todo.count(), ..Erased::default() };
        let mut rest = todo;
        while !rest.is_empty() && erased.said_by.len() < limit {
            let mut stage = Stage::new(self);
            let (now, bytes) = stage.erase(&rest, self.request_seed())?;
            let record = SystemRecord::new(event::ERASURE)
                .with("custody.erasure.seqs", now.to_string())
                .with("custody.erasure.records", now.count())
                .with("custody.erasure.cause", erasure.cause.name())
                .with("custody.erasure.reason", erasure.reason.as_str())
                .with("custody.erasure.actor", erasure.actor.as_str())
                .with("custody.erasure.identity", erasure.identity.as_str());
            let said_by = self.head_size();
            let statement = rotate::erasure_statement(&self.shared.origin, said_by, &now.to_string());
            let record = record.with("custody.erasure.signatures", rotate::sign_statement(&self.keys, &statement)?);
            erased.said_by.push(self.append_with(&record, |write| stage.put(write, said_by))?);
            erased.records += now.count();
            erased.bytes += bytes;
            rest = rest.without(&now);
        }
        erased.left = rest;
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

/// An erasure in the making.
struct Stage {
    shared: Arc<Shared>,
    reader: Reader,
    /// Blocks that keep something, by first seq.
    edited: BTreeMap<u64, Edited>,
    /// Blocks that keep nothing.
    gone: BTreeSet<u64>,
    /// Blocks that hold copies of erased records.
    copies: BTreeSet<u64>,
    /// New values in `ids`; empty ones are removed.
    ids: BTreeMap<[u8; 25], Vec<u64>>,
    /// Rows of further versions, to be removed.
    more_ids: Vec<Vec<u8>>,
    requests: Vec<[u8; 16]>,
    /// The blocks that are touched, first and last.
    touched: Option<(u64, u64)>,
    staged_bytes: usize,
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
            gone: BTreeSet::new(),
            copies: BTreeSet::new(),
            ids: BTreeMap::new(),
            more_ids: Vec::new(),
            requests: Vec::new(),
            touched: None,
            staged_bytes: 0,
        }
    }

    /// Erases the first of these records, as many as one write may hold. Gives which,
    /// and how many bytes go.
    fn erase(&mut self, seqs: &SeqSet, key: u64) -> Result<(SeqSet, u64), Error> {
        let (mut bytes, mut at, mut done) = (0, 0, SeqSet::default());
        while let Some(seq) = seqs.next_at(at) {
            let block = self.reader.block_at(seq)?;
            let block = block.ok_or_else(|| Error::invalid(format!("there is no record {seq}")))?;
            at = block.commitments.end_seq();
            bytes += self.erase_in(&block, seqs, key)?;
            seqs.within(block.commitments.first_seq..at).for_each(|range| done.append(range));
            if done.count() >= RECORDS_PER_ERASURE || self.staged_bytes > BYTES_PER_ERASURE {
                break;
            }
        }
        for first in std::mem::take(&mut self.copies) {
            self.erase_copies(first, key)?;
        }
        Ok((done, bytes))
    }

    fn erase_in(&mut self, block: &Block, seqs: &SeqSet, key: u64) -> Result<u64, Error> {
        let first = block.commitments.first_seq;
        let Some(content) = &block.content else { return Ok(0) };
        let erased: Vec<usize> = (0..content.records()).filter(|&i| seqs.contains(first + i as u64)).collect();
        let mut bytes = 0;
        for &i in &erased {
            bytes += content.record(i).len() as u64;
            self.forget(block.commitments.signal, first + i as u64, content.record(i))?;
        }
        let keeps = (0..content.records()).any(|i| !content.is_erased(i) && !seqs.contains(first + i as u64));
        self.touch(first, content, block.commitments.signal, key);
        if keeps {
            self.edited.entry(first).or_insert_with(|| Edited::new(content)).erase(&erased);
            self.staged_bytes += content.payload().len();
        } else {
            bytes = content.payload().len() as u64;
            self.gone.insert(first);
        }
        Ok(bytes)
    }

    /// A request of which something is erased is not recognised when it comes again.
    fn touch(&mut self, first: u64, content: &Content, signal: Signal, key: u64) {
        if !content.is_partly_erased() {
            self.requests.push(request_key(key, signal, content.payload()));
        }
        let (from, to) = self.touched.unwrap_or((first, first));
        self.touched = Some((from.min(first), to.max(first)));
    }

    /// Takes a record out of the indexes, and notes the blocks that hold copies of it.
    fn forget(&mut self, signal: Signal, seq: u64, record: &[u8]) -> Result<(), Error> {
        let Some(key) = index_key(signal, seq, record) else { return Ok(()) };
        if !self.ids.contains_key(&key) {
            let stored = self.shared.db.get_cf(self.shared.cf(cf::IDS), key)?;
            self.ids.insert(key, seqs(&stored.unwrap_or_default()).collect());
        }
        if let Some(list) = self.ids.get_mut(&key) {
            self.copies.extend(list.iter().filter(|s| **s & COPY_BIT != 0).map(|s| s & !COPY_BIT));
            list.retain(|s| *s != seq);
        }
        // Further versions have a row each.
        for row in self.shared.db.prefix_iterator_cf(self.shared.cf(cf::IDS), key) {
            let (row, _) = row?;
            if !row.starts_with(&key) {
                break;
            }
            let Some(other) = row.get(25..33).and_then(|bytes| seqs(bytes).next()) else { continue };
            if other & COPY_BIT != 0 {
                self.copies.insert(other & !COPY_BIT);
            } else if other == seq {
                self.more_ids.push(row.into_vec());
            }
        }
        Ok(())
    }

    /// Erases the frame of a block, where its copies are.
    fn erase_copies(&mut self, first: u64, key: u64) -> Result<(), Error> {
        if self.gone.contains(&first) || self.edited.contains_key(&first) {
            return Ok(());
        }
        let Some(block) = self.reader.block_at(first)? else { return Ok(()) };
        if let Some(content) = block.content.filter(|content| !content.is_partly_erased()) {
            self.touch(first, &content, block.commitments.signal, key);
            let mut edited = Edited::new(&content);
            edited.erase(&[]);
            self.edited.insert(first, edited);
        }
        Ok(())
    }

    fn put(&self, write: &mut WriteBatch, said_by: u64) -> Result<(), Error> {
        let family = |name| self.shared.cf(name);
        for first in &self.gone {
            write.delete_cf(family(cf::PAYLOADS), seq_key(*first));
            write.delete_cf(family(cf::BLOCKS), seq_key(*first));
        }
        for (first, edited) in &self.edited {
            write.put_cf(family(cf::PAYLOADS), seq_key(*first), payload::kept(&edited.payload));
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
        for key in &self.more_ids {
            write.delete_cf(family(cf::IDS), key);
        }
        for key in &self.requests {
            write.delete_cf(family(cf::REQUESTS), key);
        }
        // A mark of its own for each erasure: one that is finished cannot take another's away.
        let (from, to) = self.touched.unwrap_or_default();
        let blocks = [from.to_be_bytes(), to.to_be_bytes()].concat();
        write.put_cf(family(cf::META), [meta::PURGE, &seq_key(said_by)].concat(), blocks);
        Ok(())
    }
}

/// Under which key of `ids` a record is found; `None` if under none.
pub(crate) fn index_key(signal: Signal, seq: u64, record: &[u8]) -> Option<[u8; 25]> {
    match signal {
        Signal::Traces => {
            let span = Span::decode(record).ok()?;
            Some(span_key(&span.trace_id.try_into().ok()?, &span.span_id.try_into().ok()?))
        }
        Signal::Logs => {
            let log = LogRecord::decode(record).ok()?;
            let trace: [u8; 16] = log.trace_id.try_into().ok()?;
            (trace != [0; 16]).then(|| log_key(&trace, seq))
        }
        Signal::Metrics => None,
    }
}

impl Edited {
    fn new(content: &Content) -> Self {
        let mut layout = content.layout().clone();
        let digests = content.digests();
        let (rest, parts) = (digests.rest(), digests.salts().to_vec());
        layout.salts = Salts::Partly { rest, parts };
        Self { layout, payload: content.payload().to_vec() }
    }

    /// Erases records, the frame, and whatever else no record needs any more.
    fn erase(&mut self, records: &[usize]) {
        let Salts::Partly { rest, mut parts } = std::mem::replace(&mut self.layout.salts, Salts::Whole([0; 32])) else {
            return;
        };
        for &i in records {
            parts[self.layout.record_part(i) - 1] = None;
        }
        let needed = self.layout.needed(|i| parts[self.layout.record_part(i) - 1].is_none());
        for (part, needed) in parts.iter_mut().zip(&needed) {
            *part = part.filter(|_| *needed);
        }
        // What is needed is copied to a field of zeros: nothing that was forgotten can stay.
        let mut payload = vec![0; self.payload.len()];
        let mut annex = vec![0; self.layout.annex.len()];
        for (part, range) in self.layout.ranges() {
            let (at, len) = (range.at as usize, range.len as usize);
            if !needed[part - 1] || len == 0 {
                continue;
            }
            match at.checked_sub(payload.len()) {
                Some(at) => annex[at..at + len].copy_from_slice(&self.layout.annex[at..at + len]),
                None => payload[at..at + len].copy_from_slice(&self.payload[at..at + len]),
            }
        }
        (self.payload, self.layout.annex) = (payload, annex);
        self.layout.salts = Salts::Partly { rest, parts };
    }
}

#[cfg(test)]
mod tests;
