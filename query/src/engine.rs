//! Queries: read-only, bounded in time, memory and rows, each over one snapshot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::ParamValues;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{FunctionRegistry as _, SessionStateBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::scalar::ScalarValue;
use futures::StreamExt as _;
use opentelemetry::trace::{Status, TraceContextExt as _};
use opentelemetry::{Context, KeyValue};
use tokio::runtime::Runtime;

use crate::catalog;
use crate::error::{Error, ErrorKind};
use crate::projection::{Projection, Snapshot};
use crate::rows::Time;
use crate::serve::observe;
use crate::stats::QueryStats;

/// Functions whose result can be far larger than their arguments, outside of any
/// memory pool; a query has no need of them.
const REMOVED_FUNCTIONS: [&str; 13] = [
    "repeat",
    "lpad",
    "rpad",
    "replace",
    "regexp_replace",
    "array_repeat",
    "list_repeat",
    "array_resize",
    "list_resize",
    "range",
    "generate_series",
    "string_agg",
    "overlay",
];

/// What one query may use.
#[derive(Clone, Debug)]
pub struct QueryLimits {
    /// How long planning and running may take together.
    pub timeout: Duration,
    /// Rows beyond this are cut off, and the answer says so.
    pub rows_max: usize,
    /// Memory of sorts, joins and aggregates.
    pub memory_bytes_max: usize,
}

impl Default for QueryLimits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), rows_max: 10_000, memory_bytes_max: 512 << 20 }
    }
}

/// The answer to a query.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// How many rows.
    pub rows: usize,
    /// Whether there were more than allowed.
    pub truncated: bool,
    /// The query saw all records below this seq, and none other.
    pub as_of_size: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Runs queries over a projection.
#[derive(Clone)]
pub struct Engine {
    projection: Arc<Projection>,
    runtime: Arc<QueryRuntime>,
    stats: Arc<QueryStats>,
}

/// Threads for queries alone, so that none of them slows what comes in.
struct QueryRuntime(Option<Runtime>);

impl Drop for QueryRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Engine {
    /// An engine over a projection.
    pub fn new(projection: Arc<Projection>) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("query")
            // Deep expressions recurse; the planner is given room before it is given up.
            .thread_stack_size(8 << 20)
            .enable_all()
            .build()
            .map_err(|e| Error::internal(format!("the query threads do not start: {e}")))?;
        Ok(Self { projection, runtime: Arc::new(QueryRuntime(Some(runtime))), stats: Arc::default() })
    }

    /// The projection behind it.
    pub fn projection(&self) -> &Arc<Projection> {
        &self.projection
    }

    /// What queries and event streams count.
    pub fn stats(&self) -> &Arc<QueryStats> {
        &self.stats
    }

    /// Runs one query. Dropping the future cancels it.
    pub async fn sql(&self, text: &str, params: Vec<ScalarValue>, limits: QueryLimits) -> Result<Answer, Error> {
        let start = Instant::now();
        let snapshot = self.projection.snapshot();
        let (projection, text, timeout) = (Arc::clone(&self.projection), text.to_owned(), limits.timeout);
        let work = async move { run(&projection, snapshot, &text, params, &limits).await };
        let (running, span) = (self.stats.begin(), observe::child("custody.query"));
        let done = self.bounded(timeout, work).await;
        running.ended(&done);
        if let Some(span) = span {
            tell(&span, &done);
        }
        let mut answer = done?;
        answer.elapsed = start.elapsed();
        Ok(answer)
    }

    /// The columns that a query would have.
    pub async fn describe(&self, text: &str, limits: QueryLimits) -> Result<SchemaRef, Error> {
        let snapshot = self.projection.snapshot();
        let (projection, text, timeout) = (Arc::clone(&self.projection), text.to_owned(), limits.timeout);
        let work = async move {
            let context = session(&projection, &snapshot, &limits).await?;
            let frame = context.sql_with_options(&text, options()).await.map_err(|e| read_only(&text, &e))?;
            Ok(Arc::clone(frame.schema().inner()))
        };
        self.bounded(timeout, work).await
    }

    /// Runs work on the query threads, for at most this long.
    async fn bounded<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let Some(runtime) = &self.runtime.0 else { return Err(Error::internal("the query threads have stopped")) };
        let task = AbortOnDrop(runtime.spawn(work));
        let done = tokio::time::timeout(timeout, task).await;
        let done = done.map_err(|_| {
            let seconds = timeout.as_secs_f64();
            Error::new(
                ErrorKind::Timeout,
                format!(
                    "the query took longer than {seconds} s; narrow it (by seq, trace_id or time), or raise timeout_ms"
                ),
            )
        })?;
        done.map_err(|e| Error::internal(format!("the query failed: {e}")))?
    }
}

/// Ends the span of a query. Its text is not told: it may hold what is private.
fn tell(context: &Context, done: &Result<Answer, Error>) {
    let span = context.span();
    match done {
        Ok(answer) => span.set_attributes([
            KeyValue::new("db.response.returned_rows", answer.rows as i64),
            KeyValue::new("custody.log.size", answer.as_of_size as i64),
        ]),
        Err(error) => {
            span.set_attribute(KeyValue::new("error.type", error.kind.code()));
            span.set_status(Status::error(""));
        }
    }
    span.end();
}

/// Cancels its task when it is dropped.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(context)
    }
}

async fn run(
    projection: &Projection,
    snapshot: Arc<Snapshot>,
    text: &str,
    params: Vec<ScalarValue>,
    limits: &QueryLimits,
) -> Result<Answer, Error> {
    let context = session(projection, &snapshot, limits).await?;
    let frame = context.sql_with_options(text, options()).await.map_err(|e| read_only(text, &e))?;
    let frame = match params.is_empty() {
        true => frame,
        false => frame.with_param_values(ParamValues::from(params)).map_err(|e| Error::query(&e))?,
    };
    let mut stream = frame.execute_stream().await.map_err(|e| Error::query(&e))?;
    let schema = stream.schema();
    let (mut batches, mut rows, mut truncated) = (Vec::new(), 0, false);
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(|e| Error::query(&e))?;
        let room = limits.rows_max - rows;
        if batch.num_rows() > room {
            truncated = true;
            batches.push(batch.slice(0, room));
            rows += room;
            break;
        }
        rows += batch.num_rows();
        batches.push(batch);
    }
    Ok(Answer { schema, batches, rows, truncated, as_of_size: snapshot.size, elapsed: Duration::ZERO })
}

/// Nothing but queries.
fn options() -> SQLOptions {
    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false)
}

/// What is refused for wanting to change something is told apart from what is wrong.
fn read_only(text: &str, error: &datafusion::error::DataFusionError) -> Error {
    let message = error.strip_backtrace();
    if message.contains("not supported: ") && ["DDL", "DML", "Statement"].iter().any(|w| message.contains(w)) {
        let verb = text.split_whitespace().next().unwrap_or_default().to_uppercase();
        return Error::new(ErrorKind::ReadOnly, format!("{verb} is not allowed: the ledger is read-only; use SELECT"));
    }
    let mut error = Error::query(error);
    if let Some(name) = error.message.strip_prefix("table 'datafusion.public.").and_then(|m| m.split('\'').next()) {
        error.message = format!("there is no table {name}; there are {}", catalog::TABLES.join(", "));
    }
    if error.position.is_none() && error.message.contains("found: EOF") {
        let last = text.lines().last().unwrap_or_default();
        error.position = Some((text.lines().count().max(1) as u64, last.chars().count() as u64 + 1));
    }
    error
}

async fn session(
    projection: &Projection,
    snapshot: &Arc<Snapshot>,
    limits: &QueryLimits,
) -> Result<SessionContext, Error> {
    let wrong = |e: datafusion::error::DataFusionError| Error::internal(format!("the query cannot be set up: {e}"));
    let consumers = std::num::NonZeroUsize::new(5).unwrap_or(std::num::NonZeroUsize::MIN);
    let pool = TrackConsumersPool::new(FairSpillPool::new(limits.memory_bytes_max), consumers);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_max_temp_directory_size(2 << 30)
        .with_cache_manager(projection.caches())
        .build_arc()
        .map_err(wrong)?;
    for place in snapshot.places() {
        runtime.register_object_store(place.url().as_ref(), Arc::clone(place.store()));
    }
    let mut config = SessionConfig::new().with_information_schema(true).with_target_partitions(2);
    config.options_mut().sql_parser.collect_spans = true;
    let state =
        SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features().build();
    let mut context = SessionContext::new_with_state(state);
    datafusion_functions_json::register_all(&mut context).map_err(wrong)?;
    catalog::register(&context, snapshot, projection.reader(), now()).await.map_err(wrong)?;
    crate::checks::register(&context, projection, snapshot, now()).map_err(wrong)?;
    let state = context.state_ref();
    let mut state = state.write();
    for name in REMOVED_FUNCTIONS {
        state.deregister_udf(name).map_err(wrong)?;
        state.deregister_udaf(name).map_err(wrong)?;
        state.deregister_udtf(name).map_err(wrong)?;
    }
    drop(state);
    Ok(context)
}

/// The time of a query, for what has expired and what is still open.
pub(crate) fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Time(since.map_or(0, |d| d.as_nanos() as i64))
}
