//! Appending: many requests, one write, one fsync.
//!
//! Everything a batch adds (payloads, layouts, entries, nodes, indexes, counters
//! and the head) is one RocksDB write. A crash before its fsync leaves none of
//! it, a crash after leaves all of it, and only then does anybody hear of it.
//! After any failure the writer is dead: it never goes on from memory.

use std::collections::HashMap;
use std::sync::Arc;

use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::common::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use custody_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use custody_proto::otlp::resource::Resource;
use custody_proto::{Limits, Signal, entry, scan};
use prost::Message as _;
use rocksdb::{WriteBatch, WriteOptions};

use crate::checkpoint::{Checkpoint, replace_file};
use crate::commit::Prepared;
use crate::format::{
    Commitments, Encoding, FORMAT_VERSION, Head, cf, log_key, meta, node_key, request_key, seq_key, seqs, span_key,
};
use crate::keys::{SigningKey, SubmitterSecret};
use crate::ledger::Shared;
use crate::reader::{Content, Reader};
use crate::tree::{Frontier, leaf_hash};
use crate::{Clock, Error};

/// The identity under which the ledger itself appends.
pub const SYSTEM_IDENTITY: &str = "system:custody";

/// Of one span id, at most this many earlier versions are compared.
const VERSIONS_COMPARED: usize = 64;

/// What became of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The seq of the first record appended; of the original for a pure retry.
    pub first_seq: u64,
    /// How many records were appended.
    pub appended: u64,
    /// How many were in the log already, with the same content.
    pub duplicates: u64,
    /// How many of those appended have a span id that is in the log with other content.
    pub conflicts: u64,
}

/// The one that appends.
pub struct Writer {
    shared: Arc<Shared>,
    reader: Reader,
    frontier: Frontier,
    head: Head,
    last_time: u64,
    key: SigningKey,
    secret: SubmitterSecret,
    clock: Arc<dyn Clock>,
    signed_size: u64,
    dead: bool,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        frontier: Frontier,
        key: SigningKey,
        secret: SubmitterSecret,
        clock: Arc<dyn Clock>,
        signed_size: u64,
        reader: &Reader,
    ) -> Result<Self, Error> {
        let head = shared.head();
        assert_eq!(frontier.size(), head.size, "the tree and the log have different sizes");
        let last_time = reader.last_commitments()?.map_or(0, |last| last.ingest_time);
        let reader = reader.clone();
        Ok(Self { shared, reader, frontier, head, last_time, key, secret, clock, signed_size, dead: false })
    }

    /// How many records are durable.
    pub fn head_size(&self) -> u64 {
        self.head.size
    }

    /// Appends a batch with one fsync. After `Ok` all of it is durable; after
    /// `Err` the writer takes nothing more, and what of the batch is on disk is
    /// found by opening the log again.
    pub fn append(&mut self, batch: Vec<Prepared>) -> Result<Vec<Receipt>, Error> {
        if self.dead {
            return Err(Error::fatal("the log stopped after a failed write; restart to recover it"));
        }
        self.dead = true;
        let mut stage = Stage::new(self);
        let receipts = batch.into_iter().map(|request| stage.add(request)).collect::<Result<Vec<_>, _>>()?;
        stage.commit()?;
        self.dead = false;
        Ok(receipts)
    }

    /// Signs and publishes a checkpoint, if there are records that the last one
    /// does not cover. What it covers is durable.
    pub fn checkpoint(&mut self) -> Result<(), Error> {
        if self.dead {
            return Err(Error::fatal("the log stopped after a failed write; restart to recover it"));
        }
        if self.head.size <= self.signed_size {
            return Ok(());
        }
        let checkpoint =
            Checkpoint { origin: self.shared.origin.clone(), size: self.head.size, root: self.frontier.root() };
        let note = checkpoint.sign(&self.key);
        // A crash here forgets a signature that nobody has seen; the same tree is signed again.
        self.dead = true;
        replace_file(&self.shared.dir.join("checkpoint"), note.as_bytes())?;
        self.dead = false;
        self.signed_size = checkpoint.size;
        self.shared.publish_checkpoint(&note);
        Ok(())
    }

    /// Appends the log's first record, which names its origin, format and key.
    pub(crate) fn append_genesis(&mut self) -> Result<(), Error> {
        let payload = genesis(&self.shared.origin, &self.shared.vkey, self.now());
        let scan = scan(Signal::Logs, &payload, &Limits::default()).map_err(|e| Error::invalid(e.message()))?;
        let request = Prepared::new(Signal::Logs, Encoding::Protobuf, payload.into(), scan, SYSTEM_IDENTITY);
        self.append(vec![request]).map(drop)
    }

    fn now(&self) -> u64 {
        self.clock.now().max(self.last_time)
    }
}

/// The genesis record: a log record with the event name `custody.log.genesis`.
fn genesis(origin: &str, vkey: &str, time: u64) -> Vec<u8> {
    let attribute = |key: &str, value| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    };
    let text = |key: &str, value: &str| attribute(key, Value::StringValue(value.into()));
    let record = LogRecord {
        time_unix_nano: time,
        observed_time_unix_nano: time,
        event_name: "custody.log.genesis".into(),
        attributes: vec![
            text("custody.log.origin", origin),
            text("custody.log.vkey", vkey),
            attribute("custody.log.format", Value::IntValue(FORMAT_VERSION.into())),
            text("custody.log.durability", "fsync"),
        ],
        ..Default::default()
    };
    let scope = InstrumentationScope { name: "custody".into(), ..Default::default() };
    let resource = Resource { attributes: vec![text("service.name", "custody")], ..Default::default() };
    let scope_logs = vec![ScopeLogs { scope: Some(scope), log_records: vec![record], ..Default::default() }];
    let resource_logs = vec![ResourceLogs { resource: Some(resource), scope_logs, ..Default::default() }];
    ExportLogsServiceRequest { resource_logs }.encode_to_vec()
}

/// A batch in the making: the write, and what is in it but not yet in the log.
struct Stage<'a> {
    writer: &'a mut Writer,
    write: WriteBatch,
    requests: Vec<(u64, Prepared)>,
    by_request: HashMap<[u8; 16], usize>,
    /// All seqs of a span id, those in the log included.
    by_span: HashMap<[u8; 25], Vec<u64>>,
    counters: HashMap<[u8; 16], u64>,
    head: Head,
    time: u64,
}

/// What is known of one span id before a record with it is appended.
enum Seen {
    Never,
    Same,
    Other,
}

impl<'a> Stage<'a> {
    fn new(writer: &'a mut Writer) -> Self {
        let (head, time) = (writer.head, writer.now());
        Self {
            writer,
            write: WriteBatch::default(),
            requests: Vec::new(),
            by_request: HashMap::new(),
            by_span: HashMap::new(),
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
        let key = request_key(request.layout.signal, &request.payload);
        if let Some(first_seq) = self.same_request(key, &request)? {
            return Ok(Receipt { first_seq, duplicates: sent, ..Receipt::default() });
        }
        let mut flags = vec![base_flags(&request); request.records()];
        if request.layout.signal == Signal::Traces {
            flags = self.drop_known_spans(&mut request)?;
        }
        let (appended, first_seq) = (request.records() as u64, self.head.size);
        let conflicts = flags.iter().filter(|f| **f & entry::FLAG_CONFLICT != 0).count() as u64;
        let receipt = Receipt { first_seq, appended, duplicates: sent - appended, conflicts };
        if appended > 0 {
            self.put(key, request, flags)?;
        }
        Ok(receipt)
    }

    /// The first seq of the same request, if it is in the log or in this batch.
    fn same_request(&self, key: [u8; 16], request: &Prepared) -> Result<Option<u64>, Error> {
        let same = |layout: &crate::format::Layout, payload: &[u8]| {
            layout.signal == request.layout.signal && payload == request.payload
        };
        if let Some(&at) = self.by_request.get(&key) {
            let (first_seq, earlier) = &self.requests[at];
            return Ok(same(&earlier.layout, &earlier.payload).then_some(*first_seq));
        }
        let shared = &self.writer.shared;
        let Some(value) = shared.db.get_pinned_cf(shared.cf(cf::REQUESTS), key)? else { return Ok(None) };
        let Some(first_seq) = seqs(&value).next() else { return Ok(None) };
        let block = self.writer.reader.block_at(first_seq)?;
        let content = block.and_then(|b| b.content);
        Ok(content.filter(|c| same(c.layout(), c.payload())).map(|_| first_seq))
    }

    /// Takes out the spans that the log has; gives the flags of those that stay.
    fn drop_known_spans(&mut self, request: &mut Prepared) -> Result<Vec<u16>, Error> {
        let keys: Vec<[u8; 25]> = request.ids.iter().map(|(trace, span)| span_key(trace, span)).collect();
        let shared = Arc::clone(&self.writer.shared);
        let stored = shared.db.batched_multi_get_cf(shared.cf(cf::IDS), keys.iter(), false);
        let mut here: HashMap<[u8; 25], Vec<usize>> = HashMap::with_capacity(keys.len());
        let mut blocks = BlockCache::default();
        let mut keep = Vec::with_capacity(keys.len());
        let mut flags = Vec::with_capacity(keys.len());
        for (i, (key, stored)) in keys.iter().zip(stored).enumerate() {
            if let Some(stored) = stored?
                && !self.by_span.contains_key(key)
            {
                self.by_span.insert(*key, seqs(&stored).collect());
            }
            let earlier = self.by_span.get(key).map(Vec::as_slice).unwrap_or_default();
            let twins = here.entry(*key).or_default();
            let mut seen = if earlier.is_empty() && twins.is_empty() { Seen::Never } else { Seen::Other };
            if twins.iter().any(|&j| request.content(j) == request.content(i)) {
                seen = Seen::Same;
            }
            for &seq in earlier.iter().rev().take(VERSIONS_COMPARED) {
                if matches!(seen, Seen::Same) {
                    break;
                }
                if self.is_same(seq, request, i, &mut blocks)? {
                    seen = Seen::Same;
                }
            }
            twins.push(i);
            keep.push(!matches!(seen, Seen::Same));
            match seen {
                Seen::Never => flags.push(base_flags(request)),
                Seen::Other => flags.push(base_flags(request) | entry::FLAG_CONFLICT),
                Seen::Same => {}
            }
        }
        if flags.len() < keep.len() {
            request.retain(&keep);
        }
        Ok(flags)
    }

    fn is_same(&self, seq: u64, request: &Prepared, i: usize, blocks: &mut BlockCache) -> Result<bool, Error> {
        let ours = request.content(i);
        if seq >= self.writer.head.size {
            let at = self.requests.partition_point(|(first, _)| *first <= seq) - 1;
            let (first, earlier) = &self.requests[at];
            return Ok(earlier.content((seq - first) as usize) == ours);
        }
        let Some((first, content)) = blocks.get(&self.writer.reader, seq)? else { return Ok(false) };
        Ok(content.parts((seq - first) as usize) == ours)
    }

    /// Puts a request's block into the write.
    fn put(&mut self, key: [u8; 16], request: Prepared, flags: Vec<u16>) -> Result<(), Error> {
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
            commitments: request.commitments.clone(),
        };
        let seq = seq_key(first_seq);
        let (write, frontier) = (&mut self.write, &mut self.writer.frontier);
        write.put_cf(shared.cf(cf::PAYLOADS), seq, &request.payload);
        write.put_cf(shared.cf(cf::BLOCKS), seq, request.layout.encode());
        write.put_cf(shared.cf(cf::ENTRIES), seq, commitments.encode());
        write.put_cf(shared.cf(cf::REQUESTS), key, seq);
        let nodes = shared.cf(cf::NODES);
        for link in commitments.chained(commitments.previous) {
            frontier.push(leaf_hash(&link.bytes), |n| write.put_cf(nodes, node_key(n.level, n.index), n.hash));
            self.head = Head { size: link.entry.seq + 1, chain: link.chain };
        }
        self.index(&request, first_seq)?;
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

    /// Makes the records findable by trace and span id.
    fn index(&mut self, request: &Prepared, first_seq: u64) -> Result<(), Error> {
        let shared = Arc::clone(&self.writer.shared);
        let ids = shared.cf(cf::IDS);
        for (i, (trace, span)) in request.ids.iter().enumerate() {
            let seq = first_seq + i as u64;
            match request.layout.signal {
                Signal::Traces => {
                    let key = span_key(trace, span);
                    self.by_span.entry(key).or_default().push(seq);
                }
                Signal::Logs if *trace != [0; 16] => self.write.put_cf(ids, log_key(trace, seq), seq_key(seq)),
                Signal::Logs | Signal::Metrics => {}
            }
        }
        Ok(())
    }

    fn commit(mut self) -> Result<(), Error> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let shared = Arc::clone(&self.writer.shared);
        let ids = shared.cf(cf::IDS);
        for (key, seqs) in &self.by_span {
            let value: Vec<u8> = seqs.iter().flat_map(|seq| seq.to_be_bytes()).collect();
            self.write.put_cf(ids, key, value);
        }
        for (submitter, count) in &self.counters {
            self.write.put_cf(shared.cf(cf::SUBMITTERS), submitter, count.to_be_bytes());
        }
        self.write.put_cf(shared.cf(cf::META), meta::HEAD, self.head.encode());
        assert_eq!(self.writer.frontier.size(), self.head.size, "the tree and the chain have different sizes");
        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        // A crash before this line loses the batch, which nobody was told of; after it, nothing.
        shared.db.write_opt(self.write, &sync).map_err(|e| Error::fatal(format!("the log cannot be written: {e}")))?;
        self.writer.head = self.head;
        self.writer.last_time = self.time;
        shared.publish_head(self.head);
        Ok(())
    }
}

fn base_flags(request: &Prepared) -> u16 {
    match request.layout.encoding {
        Encoding::Protobuf => 0,
        Encoding::Json => entry::FLAG_JSON,
    }
}

/// The block that was read last: retries come in the order of the original.
#[derive(Default)]
struct BlockCache {
    last: Option<(u64, u64, Option<Content>)>,
}

impl BlockCache {
    fn get(&mut self, reader: &Reader, seq: u64) -> Result<Option<(u64, &Content)>, Error> {
        let hit = self.last.as_ref().is_some_and(|(first, end, _)| (*first..*end).contains(&seq));
        if !hit {
            let Some(block) = reader.block_at(seq)? else { return Ok(None) };
            self.last = Some((block.commitments.first_seq, block.commitments.end_seq(), block.content));
        }
        Ok(self.last.as_ref().and_then(|(first, _, content)| content.as_ref().map(|c| (*first, c))))
    }
}
