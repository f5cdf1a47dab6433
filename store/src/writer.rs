//! Appending: many requests, one write, one fsync.
//!
//! Everything a batch adds (payloads, layouts, entries, nodes, indexes, counters
//! and the head) is one RocksDB write. A crash before its fsync leaves none of
//! it, a crash after leaves all of it, and only then does anybody hear of it.
//! After any failure the writer is dead: it never goes on from memory.

mod cache;
mod receipt;
mod said;
mod versions;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use custody_proto::{Signal, entry};
use rocksdb::{WriteBatch, WriteOptions};

use crate::commit::Prepared;
use crate::format::{
    COPY_BIT, Commitments, Encoding, Head, cf, log_key, meta, node_key, request_key, seq_key, seqs, span_key,
};
use crate::keys::{SigningKeys, SubmitterSecret};
use crate::ledger::{Durability, Shared};
use crate::reader::Reader;
use crate::system::{SYSTEM_IDENTITY, SystemRecord};
use crate::tree::{Frontier, leaf_hash};
use crate::{Clock, Error};

use cache::BlockCache;
use versions::{BySpan, VERSIONS_COMPARED, Versions};

pub use receipt::Receipt;
pub(crate) use said::vkeys;

/// The one that appends.
pub struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) reader: Reader,
    frontier: Frontier,
    head: Head,
    last_time: u64,
    pub(crate) keys: SigningKeys,
    /// Keys that signed until the last rotation: the next checkpoint is signed by both.
    pub(crate) former: Option<SigningKeys>,
    secret: SubmitterSecret,
    request_seed: u64,
    clock: Arc<dyn Clock>,
    /// Wall and monotonic time of the last append, in ns.
    clock_mark: Option<(u64, u64)>,
    durability: Durability,
    signed_size: u64,
    /// How long the last durable write took.
    write_nanos: u64,
    dead: bool,
}

/// What a writer is made of.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) frontier: Frontier,
    pub(crate) keys: SigningKeys,
    pub(crate) secret: SubmitterSecret,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) durability: Durability,
    pub(crate) signed_size: u64,
}

impl Writer {
    pub(crate) fn new(parts: Parts, reader: &Reader) -> Result<Self, Error> {
        let head = parts.shared.head();
        assert_eq!(parts.frontier.size(), head.size, "the tree and the log have different sizes");
        Ok(Self {
            last_time: reader.last_commitments()?.map_or(0, |last| last.ingest_time),
            reader: reader.clone(),
            frontier: parts.frontier,
            head,
            shared: parts.shared,
            keys: parts.keys,
            former: None,
            request_seed: parts.secret.request_seed(),
            secret: parts.secret,
            clock: parts.clock,
            clock_mark: None,
            durability: parts.durability,
            signed_size: parts.signed_size,
            write_nanos: 0,
            dead: false,
        })
    }

    /// How many records are durable.
    pub fn head_size(&self) -> u64 {
        self.head.size
    }

    /// How long the last write and its fsync took, in ns, by the monotonic clock.
    pub fn write_nanos(&self) -> u64 {
        self.write_nanos
    }

    /// Reads what is durable.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// A secret of this log for a purpose, which the context names: it stays the same
    /// as long as the log keeps `keys/submitter.key`.
    pub fn secret_for(&self, context: &'static str) -> [u8; 32] {
        self.secret.derive(context)
    }

    /// Appends a batch with one fsync. After `Ok` all of it is durable; after
    /// `Err` the writer takes nothing more, and what of the batch is on disk is
    /// found by opening the log again.
    pub fn append(&mut self, batch: Vec<Prepared>) -> Result<Vec<Receipt>, Error> {
        let jump = self.clock_jump();
        let wanted: Vec<Option<String>> = batch.iter().map(Prepared::wanted_receipt).collect();
        let mut receipts = self.alive(|writer| {
            let mut stage = Stage::new(writer);
            stage.write = WriteBatch::with_capacity_bytes(batch.iter().map(written_bytes).sum());
            if let Some(record) = jump {
                stage.add(record.prepare(stage.time)?)?;
            }
            let receipts = batch.into_iter().map(|request| stage.add(request)).collect::<Result<Vec<_>, _>>()?;
            stage.commit()?;
            Ok(receipts)
        })?;
        // A signer that does not answer is asked once for all of a group: others wait behind it.
        let mut failed: Option<String> = None;
        for (receipt, digest) in receipts.iter_mut().zip(wanted) {
            let Some(digest) = digest else { continue };
            let signed = match &failed {
                Some(why) => Err(why.clone()),
                None => self.sign_receipt(receipt, &digest).map_err(|e| e.to_string()),
            };
            failed = signed.as_ref().err().cloned();
            receipt.signed = Some(signed);
        }
        Ok(receipts)
    }

    /// Appends a record of the ledger's own; gives its seq.
    pub fn append_system(&mut self, record: &SystemRecord) -> Result<u64, Error> {
        self.append_with(record, |_| Ok(()))
    }

    /// Appends a record of the ledger's own, with more in the same write.
    pub(crate) fn append_with(
        &mut self,
        record: &SystemRecord,
        more: impl FnOnce(&mut WriteBatch) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let request = record.prepare(self.now())?;
        self.alive(|writer| {
            let mut stage = Stage::new(writer);
            // What the ledger does to itself is never only in the operating system's hands.
            stage.durability = Durability::Fsync;
            let seq = stage.add(request)?.first_seq;
            more(&mut stage.write)?;
            stage.commit()?;
            Ok(seq)
        })
    }

    /// Runs what must not fail: after an error the writer is dead.
    fn alive<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.dead {
            return Err(stopped());
        }
        self.dead = true;
        let done = work(self)?;
        self.dead = false;
        Ok(done)
    }

    /// The public keys, a line each.
    pub(crate) fn keys_text(&self) -> String {
        self.keys.verifiers().iter().map(|key| format!("{key}\n")).collect()
    }

    pub(crate) fn request_seed(&self) -> u64 {
        self.request_seed
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock.now().max(self.last_time)
    }
}

fn stopped() -> Error {
    Error::fatal("the log stopped after a failed write; restart to recover it")
}

/// About how many bytes a request adds to the write, so that it need not grow by copying.
fn written_bytes(request: &Prepared) -> usize {
    512 + request.bytes() + 128 * request.records()
}

/// A batch in the making: the write, and what is in it but not yet in the log.
struct Stage<'a> {
    writer: &'a mut Writer,
    write: WriteBatch,
    requests: Vec<(u64, Prepared)>,
    by_request: HashMap<[u8; 16], usize>,
    /// All seqs of a span id, those in the log included; with [`COPY_BIT`], blocks that hold a copy.
    by_span: BySpan,
    counters: HashMap<[u8; 16], u64>,
    head: Head,
    time: u64,
    durability: Durability,
}

impl<'a> Stage<'a> {
    fn new(writer: &'a mut Writer) -> Self {
        let (head, time, durability) = (writer.head, writer.now(), writer.durability);
        Self {
            durability,
            writer,
            write: WriteBatch::default(),
            requests: Vec::new(),
            by_request: HashMap::new(),
            by_span: BySpan::default(),
            counters: HashMap::new(),
            head,
            time,
        }
    }

    fn add(&mut self, mut request: Prepared) -> Result<Receipt, Error> {
        let sent = request.records() as u64;
        if sent == 0 {
            return Ok(Receipt { first_seq: self.head.size, ..Receipt::default() });
        }
        let key = request_key(self.writer.request_seed, request.layout.signal, &request.payload);
        if let Some((first_seq, is_foreign)) = self.same_request(key, &request)? {
            let foreign = if is_foreign { sent } else { 0 };
            return Ok(Receipt { first_seq, duplicates: sent, foreign, ..Receipt::default() });
        }
        let mut flags = vec![base_flags(&request); request.records()];
        let (mut first_original, mut foreign) = (None, 0);
        if request.layout.signal == Signal::Traces {
            (flags, first_original, foreign) = self.drop_known_spans(&mut request)?;
        }
        let appended = request.records() as u64;
        // Of a request that brings nothing new: where the first of its records is.
        let first_seq = if appended > 0 { self.head.size } else { first_original.unwrap_or(self.head.size) };
        let conflicts = flags.iter().filter(|f| **f & entry::FLAG_CONFLICT != 0).count() as u64;
        let receipt = Receipt { first_seq, appended, duplicates: sent - appended, foreign, conflicts, signed: None };
        if appended > 0 {
            self.put(key, request, flags)?;
        }
        Ok(receipt)
    }

    /// The first seq of the same request, if it is in the log or in this batch; and whether
    /// somebody else sent that one.
    fn same_request(&self, key: [u8; 16], request: &Prepared) -> Result<Option<(u64, bool)>, Error> {
        let same = |layout: &crate::format::Layout, payload: &[u8]| {
            layout.signal == request.layout.signal && payload == request.payload
        };
        let is_foreign = |layout: &crate::format::Layout| layout.identity != request.layout.identity;
        if let Some(&at) = self.by_request.get(&key) {
            let (first_seq, earlier) = &self.requests[at];
            let found = same(&earlier.layout, &earlier.payload);
            return Ok(found.then(|| (*first_seq, is_foreign(&earlier.layout))));
        }
        let shared = &self.writer.shared;
        let Some(value) = shared.db.get_pinned_cf(shared.cf(cf::REQUESTS), key)? else { return Ok(None) };
        let Some(first_seq) = seqs(&value).next() else { return Ok(None) };
        let block = self.writer.reader.block_at(first_seq);
        let content = block.ok().flatten().and_then(|b| b.content);
        let found = content.filter(|c| same(c.layout(), c.payload()));
        Ok(found.map(|c| (first_seq, is_foreign(c.layout()))))
    }

    /// Takes out the spans that the log has; gives the flags of those that stay, the seq of
    /// the original of the first span, if it has one, and how many somebody else had sent.
    fn drop_known_spans(&mut self, request: &mut Prepared) -> Result<(Vec<u16>, Option<u64>, u64), Error> {
        let keys: Vec<[u8; 25]> = request.ids.iter().map(|(trace, span)| span_key(trace, span)).collect();
        if self.are_new(&keys)? {
            return Ok((vec![base_flags(request); keys.len()], None, 0));
        }
        let known = self.same_in_log(&keys, request);
        let foreign = known.iter().flatten().filter(|(_, is_foreign)| *is_foreign).count() as u64;
        // Where each span id of this request was before, by index; and where the kept ones will be.
        let mut here: HashMap<[u8; 25], Vec<usize>> = HashMap::with_capacity(keys.len());
        let mut originals = vec![None; keys.len()];
        let mut places = vec![0; keys.len()];
        let mut flags = Vec::with_capacity(keys.len());
        for (i, key) in keys.iter().enumerate() {
            places[i] = self.head.size + flags.len() as u64;
            let twins = here.entry(*key).or_default();
            let before = known[i].map(|(seq, _)| seq);
            originals[i] = before.or_else(|| same_twin(request, i, twins).map(|j| originals[j].unwrap_or(places[j])));
            if originals[i].is_none() {
                let is_new =
                    twins.is_empty() && self.by_span.get(key).is_none_or(|seen| seen.versions().next().is_none());
                flags.push(base_flags(request) | if is_new { 0 } else { entry::FLAG_CONFLICT });
            }
            twins.push(i);
        }
        if flags.len() < keys.len() && !flags.is_empty() {
            for (key, _) in keys.iter().zip(&originals).filter(|(_, original)| original.is_some()) {
                self.by_span.entry(*key).or_default().add(self.head.size | COPY_BIT);
            }
        }
        if flags.len() < keys.len() {
            request.take_out(&originals);
        }
        Ok((flags, originals.first().copied().flatten(), foreign))
    }

    /// Reads what the log has of these span ids. Whether each is here for the first time,
    /// in the log, in this batch and in this request.
    fn are_new(&mut self, keys: &[[u8; 25]]) -> Result<bool, Error> {
        let shared = Arc::clone(&self.writer.shared);
        let mut sorted: Vec<&[u8; 25]> = keys.iter().collect();
        sorted.sort_unstable();
        let mut new = sorted.array_windows().all(|[a, b]| a != b);
        let stored = shared.db.batched_multi_get_cf(shared.cf(cf::IDS), sorted.iter().copied(), true);
        for (key, stored) in sorted.into_iter().zip(stored) {
            match (stored?, self.by_span.entry(*key)) {
                (_, Entry::Occupied(_)) => new = false,
                (Some(stored), Entry::Vacant(place)) => {
                    place.insert(Versions::stored(seqs(&stored)));
                    new = false;
                }
                (None, Entry::Vacant(_)) => {}
            }
        }
        Ok(new)
    }

    /// Of each span the seq of a record before this request that is the same, byte for
    /// byte, and whether somebody else sent it. Every block is read once, however the spans lie.
    fn same_in_log(&self, keys: &[[u8; 25]], request: &Prepared) -> Vec<Option<(u64, bool)>> {
        let mut candidates = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            let versions = self.by_span.get(key).into_iter().flat_map(Versions::versions);
            candidates.extend(versions.map(|seq| (seq, i)));
        }
        candidates.sort_unstable();
        let (mut same, mut blocks) = (vec![None; keys.len()], BlockCache::default());
        for (seq, i) in candidates {
            if same[i].is_none() {
                let sender = self.sender_of_same(seq, request, i, &mut blocks);
                same[i] = sender.map(|sender| (seq, sender != request.layout.identity));
            }
        }
        same
    }

    /// Who sent the record at `seq`, if it is the same as the `i`-th of a request.
    fn sender_of_same<'b>(
        &'b self,
        seq: u64,
        request: &Prepared,
        i: usize,
        blocks: &'b mut BlockCache,
    ) -> Option<&'b str> {
        let ours = request.content(i);
        if seq >= self.writer.head.size {
            let at = self.requests.partition_point(|(first, _)| *first <= seq);
            let (first, earlier) = at.checked_sub(1).map(|at| &self.requests[at])?;
            return (earlier.content((seq - first) as usize) == ours).then_some(&earlier.layout.identity);
        }
        // What cannot be read is no reason to refuse what comes: it is kept, as another version.
        let (first, content) = blocks.get(&self.writer.reader, seq).ok().flatten()?;
        let at = (seq - first) as usize;
        (!content.is_erased(at) && content.parts(at) == ours).then(|| content.identity())
    }

    /// Puts a request's block into the write.
    fn put(&mut self, key: [u8; 16], mut request: Prepared, flags: Vec<u16>) -> Result<(), Error> {
        let shared = Arc::clone(&self.writer.shared);
        let first_seq = self.head.size;
        let submitter = self.writer.secret.submitter(&request.layout.identity);
        let counter = self.count(submitter, request.records() as u64)?;
        let commitments = Commitments {
            first_seq,
            signal: request.layout.signal,
            ingest_time: self.time,
            submitter,
            counter,
            previous: self.head.chain,
            flags,
            commitments: std::mem::take(&mut request.commitments),
        };
        let seq = seq_key(first_seq);
        let (write, frontier) = (&mut self.write, &mut self.writer.frontier);
        write.put_cf(shared.cf(cf::PAYLOADS), seq, request.kept());
        write.put_cf(shared.cf(cf::BLOCKS), seq, request.layout.encode());
        write.put_cf(shared.cf(cf::ENTRIES), seq, commitments.encode());
        write.put_cf(shared.cf(cf::REQUESTS), key, seq);
        let nodes = shared.cf(cf::NODES);
        for link in commitments.chained(commitments.previous) {
            frontier.push(leaf_hash(&link.bytes), |n| write.put_cf(nodes, node_key(n.level, n.index), n.hash));
            self.head = Head { size: link.entry.seq + 1, chain: link.chain };
        }
        self.index(&request, first_seq);
        self.by_request.insert(key, self.requests.len());
        self.requests.push((first_seq, request));
        Ok(())
    }

    /// How many records of this submitter came before these.
    fn count(&mut self, submitter: [u8; 16], records: u64) -> Result<u64, Error> {
        let before = match self.counters.get(&submitter) {
            Some(count) => *count,
            None => {
                let shared = &self.writer.shared;
                let value = shared.db.get_pinned_cf(shared.cf(cf::SUBMITTERS), submitter)?;
                value.and_then(|v| seqs(&v).next()).unwrap_or(0)
            }
        };
        self.counters.insert(submitter, before + records);
        Ok(before)
    }

    /// Makes the records findable: by trace and span id, and the ledger's own as such.
    fn index(&mut self, request: &Prepared, first_seq: u64) {
        let shared = &self.writer.shared;
        let (ids, system) = (shared.cf(cf::IDS), shared.cf(cf::SYSTEM));
        if request.layout.identity == SYSTEM_IDENTITY {
            let name = SystemRecord::decode(request.content(0)[0]).map(|record| record.event).unwrap_or_default();
            self.write.put_cf(system, seq_key(first_seq), name);
        }
        for (i, (trace, span)) in request.ids.iter().enumerate() {
            let seq = first_seq + i as u64;
            match request.layout.signal {
                Signal::Traces => self.by_span.entry(span_key(trace, span)).or_default().add(seq),
                Signal::Logs if *trace != [0; 16] => self.write.put_cf(ids, log_key(trace, seq), seq_key(seq)),
                Signal::Logs | Signal::Metrics => {}
            }
        }
    }

    fn commit(mut self) -> Result<(), Error> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let shared = Arc::clone(&self.writer.shared);
        let ids = shared.cf(cf::IDS);
        // In the order of the keys, which is the order of the traces: neighbours in the index are found at once.
        let mut spans: Vec<_> = self.by_span.iter().collect();
        spans.sort_unstable_by_key(|(key, _)| *key);
        for (key, versions) in spans {
            versions.put(key, |key, value| self.write.put_cf(ids, key, value));
        }
        for (submitter, count) in &self.counters {
            self.write.put_cf(shared.cf(cf::SUBMITTERS), submitter, count.to_be_bytes());
        }
        self.write.put_cf(shared.cf(cf::META), meta::HEAD, self.head.encode());
        assert_eq!(self.writer.frontier.size(), self.head.size, "the tree and the chain have different sizes");
        let mut sync = WriteOptions::default();
        sync.set_sync(self.durability == Durability::Fsync);
        let begun = self.writer.clock.monotonic();
        // A crash before this line loses the batch, which nobody was told of; after it, nothing.
        shared.write(self.write, &sync).map_err(|e| Error::fatal(format!("the log cannot be written: {e}")))?;
        self.writer.write_nanos = self.writer.clock.monotonic().saturating_sub(begun);
        self.writer.head = self.head;
        self.writer.last_time = self.time;
        shared.publish_head(self.head);
        Ok(())
    }
}

/// The one of the newest `twins` that is the same as the `i`-th record.
fn same_twin(request: &Prepared, i: usize, twins: &[usize]) -> Option<usize> {
    let newest = twins.iter().rev().take(VERSIONS_COMPARED);
    newest.copied().find(|&j| request.content(j) == request.content(i))
}

fn base_flags(request: &Prepared) -> u16 {
    match request.layout.encoding {
        Encoding::Protobuf => 0,
        Encoding::Json => entry::FLAG_JSON,
    }
}
