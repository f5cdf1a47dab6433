//! From the log to rows: a thread follows the log, decodes what is new, and
//! publishes a new snapshot. Every reader keeps the snapshot that it began with.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use custody_proto::Signal;
use custody_proto::otlp::common::InstrumentationScope;
use custody_proto::otlp::logs::LogRecord;
use custody_proto::otlp::metrics::Metric;
use custody_proto::otlp::resource::Resource;
use custody_proto::otlp::trace::Span;
use custody_store::{Block, Content, Reader};
use datafusion::arrow::array::{Array as _, BooleanArray, StringArray, UInt64Array};
use datafusion::arrow::compute::{concat_batches, filter_record_batch};
use datafusion::arrow::record_batch::RecordBatch;
use prost::Message as _;
use tokio::sync::watch;

use crate::Error;
use crate::event::{EventBuilder, EventRow};
use crate::mapping::{RecordContext, map_log, map_span};
use crate::metrics::{MetricBuilder, metric_row};
use crate::rows::Time;
use crate::tables::{LogBuilder, SpanBuilder, log_row, resource_json, span_row};

/// Records are published in steps of about this many.
const STEP_RECORDS: u64 = 8192;

/// Batches are joined until they have this many rows.
const BATCH_ROWS: usize = 32_768;

/// The rows of all records below one size of the log. Never changes.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All records below this seq are in.
    pub size: u64,
    /// Batches of `spans`, in seq order.
    pub spans: Vec<RecordBatch>,
    /// Batches of `logs`, in seq order.
    pub logs: Vec<RecordBatch>,
    /// Batches of `metrics`, in seq order.
    pub metrics: Vec<RecordBatch>,
    /// Batches of `events`, in seq order.
    pub events: Vec<RecordBatch>,
}

/// What an answer shall be limited to: what the ledger knew then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AsOf {
    /// Everything.
    #[default]
    Now,
    /// Records up to and including this seq.
    Seq(u64),
    /// Records that were taken up to this time.
    Time(Time),
}

impl AsOf {
    /// Whether a record was known by then.
    pub(crate) fn holds(self, seq: u64, ingest_time: Time) -> bool {
        match self {
            Self::Now => true,
            Self::Seq(last) => seq <= last,
            Self::Time(last) => ingest_time <= last,
        }
    }
}

impl Snapshot {
    /// The events of some kinds, read back as rows.
    pub(crate) fn events_of(&self, kinds: &[&str], as_of: AsOf) -> Vec<EventRow> {
        self.events_where("kind", as_of, |kind| kind.is_some_and(|kind| kinds.contains(&kind)))
    }

    /// The events whose text column passes a test.
    pub(crate) fn events_where(&self, column: &str, as_of: AsOf, test: impl Fn(Option<&str>) -> bool) -> Vec<EventRow> {
        let mut out = Vec::new();
        for batch in &self.events {
            let Some(texts) = batch.column_by_name(column).and_then(|c| c.as_any().downcast_ref::<StringArray>())
            else {
                continue;
            };
            let mask: BooleanArray =
                (0..texts.len()).map(|i| Some(test(texts.is_valid(i).then(|| texts.value(i))))).collect();
            if let Ok(found) = filter_record_batch(batch, &mask) {
                out.extend(EventRow::read(&found).into_iter().filter(|e| as_of.holds(e.seq, e.ingest_time)));
            }
        }
        out
    }

    /// The event rows of some seqs.
    pub(crate) fn events_at(&self, seqs: &std::collections::BTreeSet<u64>) -> Vec<EventRow> {
        let mut out = Vec::new();
        for batch in &self.events {
            let Some(column) = batch.column(0).as_any().downcast_ref::<UInt64Array>() else { continue };
            let mask: BooleanArray = column.values().iter().map(|seq| Some(seqs.contains(seq))).collect();
            if let Ok(found) = filter_record_batch(batch, &mask) {
                out.extend(EventRow::read(&found));
            }
        }
        out
    }
}

/// Adds a batch, joining small ones so that a log of many small requests does
/// not become a table of many small batches.
fn add(batches: &mut Vec<RecordBatch>, batch: RecordBatch) {
    if batch.num_rows() == 0 {
        return;
    }
    batches.push(batch);
    while let [.., before, last] = batches.as_slice() {
        if before.num_rows() > 2 * last.num_rows() || before.num_rows() + last.num_rows() > BATCH_ROWS {
            break;
        }
        let Ok(joined) = concat_batches(&last.schema(), [before, last]) else { break };
        batches.truncate(batches.len() - 2);
        batches.push(joined);
    }
}

/// The projection of one log: its newest snapshot, and who waits for the next.
pub struct Projection {
    reader: Reader,
    current: RwLock<Arc<Snapshot>>,
    visible: watch::Sender<u64>,
    stop: AtomicBool,
    /// How often content was erased, and how often that was followed by a projection anew.
    forget: AtomicU64,
    forgot: watch::Sender<u64>,
}

impl Projection {
    /// Projects all that the reader has, once. For a log that nobody writes to.
    pub fn of(reader: Reader) -> Result<Arc<Self>, Error> {
        let projection = Arc::new(Self::empty(reader));
        while projection.step()? {}
        Ok(projection)
    }

    fn empty(reader: Reader) -> Self {
        Self {
            reader,
            current: RwLock::default(),
            visible: watch::channel(0).0,
            stop: AtomicBool::new(false),
            forget: AtomicU64::new(0),
            forgot: watch::channel(0).0,
        }
    }

    /// Projects all that the reader has, then follows the log in a thread of its
    /// own until the handle is dropped.
    pub fn follow(reader: Reader) -> Result<(Arc<Self>, Follower), Error> {
        let projection = Self::of(reader)?;
        let own = Arc::clone(&projection);
        let thread = std::thread::Builder::new().name("projection".into()).spawn(move || own.run());
        let thread = thread.map_err(|e| Error::internal(format!("the projection's thread does not start: {e}")))?;
        Ok((Arc::clone(&projection), Follower { projection, thread: Some(thread) }))
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells up to which size the log is visible.
    pub fn visible(&self) -> watch::Receiver<u64> {
        self.visible.subscribe()
    }

    /// The log's reader.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Whether it follows the log; false after it met something unreadable.
    pub fn is_well(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Makes all rows anew, because content was erased; blocks until those of erased
    /// records are gone. Only for a projection that follows its log.
    pub fn forget(&self) {
        let wanted = self.forget.fetch_add(1, Ordering::SeqCst) + 1;
        let mut forgot = self.forgot.subscribe();
        while *forgot.borrow_and_update() < wanted && self.is_well() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Projects the log from its beginning, and publishes that when it has caught up.
    fn project_anew(&self) -> Result<(), Error> {
        let wanted = self.forget.load(Ordering::SeqCst);
        let fresh = Self::empty(self.reader.clone());
        while fresh.step()? {}
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh.snapshot();
        self.visible.send_replace(fresh.snapshot().size);
        self.forgot.send_replace(wanted);
        Ok(())
    }

    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            if *self.forgot.borrow() < self.forget.load(Ordering::SeqCst)
                && let Err(error) = self.project_anew()
            {
                tracing::error!(%error, "the projection could not be made anew");
                self.stop.store(true, Ordering::Relaxed);
                return;
            }
            self.reader.wait(self.snapshot().size, Duration::from_millis(200));
            if let Err(error) = self.step() {
                tracing::error!(%error, "the projection stopped; queries see the log only up to here");
                self.stop.store(true, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Publishes one more step; false if there was nothing new.
    fn step(&self) -> Result<bool, Error> {
        let mut next = Snapshot::clone(&self.snapshot());
        let size = self.reader.head().size;
        if next.size >= size {
            return Ok(false);
        }
        let end = size.min(next.size + STEP_RECORDS);
        let mut rows = Rows::default();
        while next.size < end {
            let block = self.reader.block_at(next.size).map_err(Error::store)?;
            let block = block.ok_or_else(|| Error::internal("the log shrank under the projection"))?;
            rows.block(&block);
            next.size = block.commitments.end_seq();
        }
        add(&mut next.spans, rows.spans.finish());
        add(&mut next.logs, rows.logs.finish());
        add(&mut next.metrics, rows.metrics.finish());
        add(&mut next.events, rows.events.finish());
        let visible = next.size;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        self.visible.send_replace(visible);
        Ok(true)
    }
}

/// Ends the projection's thread when dropped.
pub struct Follower {
    projection: Arc<Projection>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.projection.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Rows in the making.
#[derive(Default)]
struct Rows {
    spans: SpanBuilder,
    logs: LogBuilder,
    metrics: MetricBuilder,
    events: EventBuilder,
}

/// What the records of one group share, decoded once.
struct Shared {
    group: usize,
    resource: Resource,
    resource_json: String,
    scope: InstrumentationScope,
}

impl Shared {
    fn of(content: &Content, i: usize) -> Self {
        // What the scanner let in, the decoder reads; a damaged log shows as empty fields and in `verify`.
        let resource = Resource::decode(content.resource(i)).unwrap_or_default();
        let scope = InstrumentationScope::decode(content.scope(i)).unwrap_or_default();
        Self { group: content.group(i), resource_json: resource_json(&resource), resource, scope }
    }
}

impl Rows {
    /// Adds the rows of a block; an erased one has none.
    fn block(&mut self, block: &Block) {
        let Some(content) = &block.content else { return };
        let mut shared: Option<Shared> = None;
        for i in (0..content.records()).filter(|&i| !content.is_erased(i)) {
            let fits = shared.as_ref().is_some_and(|s| s.group == content.group(i));
            let shared = if fits { shared.as_ref() } else { Some(&*shared.insert(Shared::of(content, i))) };
            let Some(shared) = shared else { continue };
            let record_hash = const_hex::encode(block.commitments.commitments[i]);
            let context = RecordContext {
                seq: block.commitments.first_seq + i as u64,
                record_hash: &record_hash,
                ingest_time: Time(i64::try_from(block.commitments.ingest_time).unwrap_or(i64::MAX)),
                submitter: content.identity(),
                resource: &shared.resource,
                scope: &shared.scope,
            };
            self.record(block.commitments.signal, &context, &shared.resource_json, content.record(i));
        }
    }

    fn record(&mut self, signal: Signal, context: &RecordContext<'_>, resource_json: &str, bytes: &[u8]) {
        let events = match signal {
            Signal::Traces => {
                let Ok(span) = Span::decode(bytes) else { return };
                self.spans.push(&span_row(context, resource_json, &span));
                map_span(context, &span)
            }
            Signal::Logs => {
                let Ok(log) = LogRecord::decode(bytes) else { return };
                self.logs.push(&log_row(context, resource_json, &log));
                map_log(context, &log)
            }
            Signal::Metrics => {
                let Ok(metric) = Metric::decode(bytes) else { return };
                self.metrics.push(&metric_row(context, &metric));
                return;
            }
        };
        events.iter().for_each(|event| self.events.push(event));
    }
}
