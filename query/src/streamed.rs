//! The rows of a query as they come: bounded in time, rows and bytes, and audited.
//!
//! Rows are made on the query threads and wait in a short channel; when whoever asked goes, the
//! task that makes them is cancelled. When he stays and takes nothing, the deadline ends it: no reader
//! holds memory or a place for longer than a query may take.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use custody_store::system::{Attribute, SystemRecord};
use datafusion::arrow::array::AsArray as _;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use futures::StreamExt as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::audit::Audit;
use crate::caller::Caller;
use crate::engine::{AbortOnDrop, QueryLimits, tell};
use crate::error::{Error, ErrorKind};
use crate::notes::Notes;
use crate::stats::Running;

/// Batches that wait for whoever asked.
const WAITING: usize = 2;

/// The rows of a query.
pub struct Streamed {
    /// The columns.
    pub schema: SchemaRef,
    /// The query saw all records below this seq, and none other.
    pub as_of_size: u64,
    /// How many rows came so far.
    pub rows: usize,
    /// Whether there were more than allowed; known at the end.
    pub truncated: bool,
    /// Bytes of the rows that came so far.
    pub(crate) bytes: usize,
    limits: QueryLimits,
    until: Instant,
    receiver: mpsc::Receiver<Result<RecordBatch, Error>>,
    /// A batch that came and is not yet given.
    pending: Option<RecordBatch>,
    /// Batches that were looked at, and go first.
    head: VecDeque<RecordBatch>,
    /// Whether the rows were broken off at the deadline, perhaps with nobody reading.
    late: Arc<AtomicBool>,
    /// What ended it too early.
    failed: Option<Error>,
    running: Weak<Running>,
    _task: AbortOnDrop<()>,
    /// Says at the end how many rows there were.
    pub(crate) ending: Option<Ending>,
    notes: Arc<Notes>,
    /// The span of the query, if it is traced; it ends with the rows.
    pub(crate) span: Option<opentelemetry::Context>,
}

impl Streamed {
    /// Makes the rows of a plan on the query threads. `held` is let go of when that ends.
    pub(crate) fn begin(
        runtime: &Handle,
        mut batches: SendableRecordBatchStream,
        held: (Arc<Running>, SessionContext),
        limits: (QueryLimits, Instant),
        as_of_size: u64,
    ) -> Self {
        let (schema, (limits, until)) = (batches.schema(), limits);
        let (sender, receiver) = mpsc::channel(WAITING);
        let notes = Notes::of(&held.1.copied_config());
        let (late, running) = (Arc::new(AtomicBool::new(false)), Arc::downgrade(&held.0));
        let (told_late, own_limits) = (Arc::clone(&late), limits.clone());
        let task = runtime.spawn(async move {
            let work = async {
                while let Some(batch) = batches.next().await {
                    let batch = batch.map_err(|e| Error::query(&e));
                    let failed = batch.as_ref().err().cloned();
                    if sender.send(batch).await.is_err() {
                        return Ok(false);
                    }
                    if let Some(error) = failed {
                        return Err(error);
                    }
                }
                Ok(true)
            };
            let ended = tokio::time::timeout_at(until.into(), work).await;
            let ended = ended.unwrap_or_else(|_| {
                told_late.store(true, Ordering::Release);
                Err(too_long(&own_limits))
            });
            // One whose reader has gone is left as it is: cancelled.
            if !matches!(ended, Ok(false)) {
                held.0.ended(&ended);
            }
            // Before the channel closes: who sees its end finds the place free.
            drop((batches, held));
            drop(sender);
        });
        let task = AbortOnDrop(task);
        Self {
            schema,
            as_of_size,
            rows: 0,
            truncated: false,
            bytes: 0,
            limits,
            until,
            receiver,
            pending: None,
            head: VecDeque::new(),
            late,
            failed: None,
            running,
            _task: task,
            ending: None,
            notes,
            span: None,
        }
    }

    /// With batches that [`Self::next`] has given already, and gives once more.
    pub(crate) fn with_head(mut self, head: Vec<RecordBatch>) -> Self {
        self.head = head.into();
        self
    }

    /// What is to be said of the answer; all of it is known at its end.
    pub fn notes(&self) -> Vec<String> {
        self.notes.all()
    }

    /// The next batch; `None` at the end, which may be that of what is allowed. Giving up a call loses no row.
    ///
    /// # Errors
    ///
    /// What ended the query: its deadline, its memory, an error in its rows.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, Error> {
        if let Some(batch) = self.head.pop_front() {
            return Ok(Some(batch));
        }
        let next = self.step().await;
        if let Err(error) = &next {
            self.failed = Some(error.clone());
        }
        if let (Some(running), true) = (self.running.upgrade(), self.truncated || next.is_err()) {
            running.ended(&next);
        }
        next
    }

    async fn step(&mut self) -> Result<Option<RecordBatch>, Error> {
        if self.truncated {
            return Ok(None);
        }
        if self.pending.is_none() {
            self.pending = self.pull().await?;
        }
        let Some(rows) = self.pending.as_ref().map(RecordBatch::num_rows) else { return Ok(None) };
        let room = self.limits.rows_max - self.rows;
        let truncated = rows > room || rows == room && self.has_more().await?;
        let Some(batch) = self.pending.take() else { return Ok(None) };
        let batch = if rows > room { batch.slice(0, room) } else { batch };
        self.truncated = truncated;
        self.rows += batch.num_rows();
        self.bytes = self.bytes.saturating_add(sliced_bytes(&batch));
        if self.bytes > self.limits.answer_bytes_max {
            let message = format!(
                "the answer is larger than {} MiB; ask for fewer rows or columns, or page by seq",
                self.limits.answer_bytes_max >> 20
            );
            return Err(Error::new(ErrorKind::Resources, message));
        }
        Ok(Some(batch))
    }

    /// Whether rows come behind those that just fit.
    async fn has_more(&mut self) -> Result<bool, Error> {
        loop {
            match self.pull().await? {
                None => return Ok(false),
                Some(more) if more.num_rows() == 0 => {}
                Some(_) => return Ok(true),
            }
        }
    }

    /// What was made next. That nothing comes any more is an end only if all was made.
    async fn pull(&mut self) -> Result<Option<RecordBatch>, Error> {
        match tokio::time::timeout_at(self.until.into(), self.receiver.recv()).await {
            Ok(Some(batch)) => batch.map(Some),
            Ok(None) if !self.late.load(Ordering::Acquire) => Ok(None),
            Ok(None) | Err(_) => Err(too_long(&self.limits)),
        }
    }

    /// How it ended, or that it was given up.
    fn outcome(&self) -> &'static str {
        let is_done = self.truncated || self.receiver.is_closed() && self.receiver.is_empty();
        match &self.failed {
            Some(error) => error.kind.code(),
            None if self.late.load(Ordering::Acquire) => ErrorKind::Timeout.code(),
            None if is_done => "ok",
            None => "cancelled",
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if let Some(span) = &self.span {
            tell(span, &self.failed.as_ref().map_or(Ok((self.rows, self.as_of_size)), Err));
        }
        if let Some(Ending { audit, caller, number, start }) = self.ending.take() {
            let elapsed = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let outcome = self.outcome();
            let record = audit
                .act(&caller, "query_end")
                .with("custody.audit.of", number)
                .with("custody.audit.outcome", outcome)
                .with("custody.audit.rows", self.rows as u64)
                .with("custody.audit.elapsed_ns", elapsed);
            audit.tell(&caller, record);
        }
    }
}

/// What is to be said at the end of a stream.
pub(crate) struct Ending {
    audit: Audit,
    caller: Caller,
    number: u64,
    start: Instant,
}

/// The bytes that the rows of a batch take, of arrays that others may share.
pub(crate) fn sliced_bytes(batch: &RecordBatch) -> usize {
    let bytes = |column: &Arc<dyn datafusion::arrow::array::Array>| match column.as_string_view_opt() {
        // Views of some texts hold what is shared with all others.
        Some(views) => views.views().len() * size_of::<u128>() + views.total_buffer_bytes_used(),
        None => column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()),
    };
    batch.columns().iter().map(bytes).sum()
}

pub(crate) fn too_long(limits: &QueryLimits) -> Error {
    let seconds = limits.timeout.as_secs_f64();
    let message =
        format!("the query took longer than {seconds} s; narrow it (by seq, trace_id or time), or raise timeout_ms");
    Error::new(ErrorKind::Timeout, message)
}

/// What the audit says of a query. One that is dropped before its end was cancelled.
pub(crate) struct Watched {
    audit: Audit,
    caller: Caller,
    record: Option<SystemRecord>,
    start: Instant,
}

impl Watched {
    /// A query with its text and parameters.
    pub(crate) fn begin(audit: &Audit, caller: &Caller, text: &str, params: &[ScalarValue]) -> Self {
        let record = audit.watches(caller).then(|| {
            let record = audit.with_text(audit.act(caller, "query"), text);
            if params.is_empty() {
                return record;
            }
            let params: Vec<String> = params.iter().map(ToString::to_string).collect();
            record.with("custody.audit.params", audit.kept(&params.join(", ")))
        });
        Self { audit: audit.clone(), caller: caller.clone(), record, start: Instant::now() }
    }

    /// What somebody else's record tells of.
    pub(crate) fn nothing(caller: &Caller) -> Self {
        Self { audit: Audit::default(), caller: caller.clone(), record: None, start: Instant::now() }
    }

    fn ended(&mut self, outcome: &str, rows: u64) -> Option<SystemRecord> {
        let record = self.record.take()?;
        let elapsed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let record = record.with("custody.audit.outcome", outcome).with("custody.audit.rows", rows);
        Some(record.with("custody.audit.elapsed_ns", elapsed))
    }

    /// What to say at the end of its rows, which come after its record.
    pub(crate) fn ending(&self) -> Option<Ending> {
        let number = self.record.as_ref()?.attributes.iter().find(|(key, _)| key == "custody.audit.number")?;
        let Attribute::Int(number) = number.1 else { return None };
        Some(Ending {
            audit: self.audit.clone(),
            caller: self.caller.clone(),
            number: number.unsigned_abs(),
            start: self.start,
        })
    }

    /// Says how it ended, before the answer is given.
    ///
    /// # Errors
    ///
    /// If that cannot be recorded: then there is no answer.
    pub(crate) async fn end(mut self, outcome: &str, rows: u64) -> Result<(), Error> {
        match self.ended(outcome, rows) {
            Some(record) => self.audit.say(&self.caller, record).await,
            None => Ok(()),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(record) = self.ended("cancelled", 0) {
            self.audit.tell(&self.caller, record);
        }
    }
}
