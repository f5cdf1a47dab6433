//! The rows of a query as they come: bounded in time, rows and bytes, and audited.
//!
//! Rows are made on the query threads and wait in a short channel; when whoever asked goes, the
//! task that makes them is cancelled.

use std::sync::Arc;
use std::time::Instant;

use custody_store::system::{Attribute, SystemRecord};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::scalar::ScalarValue;
use futures::StreamExt as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::audit::Audit;
use crate::caller::Caller;
use crate::engine::{AbortOnDrop, QueryLimits, tell};
use crate::error::{Error, ErrorKind};

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
    bytes: usize,
    limits: QueryLimits,
    until: Instant,
    receiver: mpsc::Receiver<Result<RecordBatch, Error>>,
    _task: AbortOnDrop<()>,
    /// Says at the end how many rows there were.
    pub(crate) ending: Option<Ending>,
    /// The span of the query, if it is traced; it ends with the rows.
    pub(crate) span: Option<opentelemetry::Context>,
}

impl Streamed {
    /// Makes the rows of a plan on the query threads. `held` is let go of when that ends.
    pub(crate) fn begin(
        runtime: &Handle,
        mut batches: SendableRecordBatchStream,
        held: impl Send + Sync + 'static,
        limits: (QueryLimits, Instant),
        as_of_size: u64,
    ) -> Self {
        let (schema, (limits, until)) = (batches.schema(), limits);
        let (sender, receiver) = mpsc::channel(WAITING);
        let task = runtime.spawn(async move {
            while let Some(batch) = batches.next().await {
                let batch = batch.map_err(|e| Error::query(&e));
                let is_last = batch.is_err();
                if sender.send(batch).await.is_err() || is_last {
                    break;
                }
            }
            drop((batches, held));
        });
        let task = AbortOnDrop(task);
        let (rows, bytes, truncated) = (0, 0, false);
        Self {
            schema,
            as_of_size,
            rows,
            truncated,
            bytes,
            limits,
            until,
            receiver,
            _task: task,
            ending: None,
            span: None,
        }
    }

    /// The next batch; `None` at the end, which may be that of what is allowed.
    ///
    /// # Errors
    ///
    /// What ended the query: its deadline, its memory, an error in its rows.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, Error> {
        if self.truncated {
            return Ok(None);
        }
        let next = tokio::time::timeout_at(self.until.into(), self.receiver.recv()).await;
        let Some(batch) = next.map_err(|_| too_long(&self.limits))?.transpose()? else { return Ok(None) };
        let room = self.limits.rows_max - self.rows;
        let is_cut = batch.num_rows() > room;
        let batch = if is_cut { batch.slice(0, room) } else { batch };
        self.truncated = is_cut || batch.num_rows() == room && self.has_more().await?;
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
            let next = tokio::time::timeout_at(self.until.into(), self.receiver.recv()).await;
            match next.map_err(|_| too_long(&self.limits))?.transpose()? {
                None => return Ok(false),
                Some(more) if more.num_rows() == 0 => {}
                Some(_) => return Ok(true),
            }
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if let Some(span) = &self.span {
            tell(span, &Ok((self.rows, self.as_of_size)));
        }
        if let Some(Ending { audit, caller, number, start }) = self.ending.take() {
            let elapsed = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let is_done = self.receiver.is_closed() && self.receiver.is_empty();
            let record = audit
                .act(&caller, "query_end")
                .with("custody.audit.of", number)
                .with("custody.audit.outcome", if is_done { "ok" } else { "cancelled" })
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
fn sliced_bytes(batch: &RecordBatch) -> usize {
    let bytes = |column: &Arc<dyn datafusion::arrow::array::Array>| {
        column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
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
