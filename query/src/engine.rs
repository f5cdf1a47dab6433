//! Queries: read-only, bounded in time, memory and rows, each over one snapshot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::execution::memory_pool::{GreedyMemoryPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use futures::StreamExt as _;
use opentelemetry::trace::{Status, TraceContextExt as _};
use opentelemetry::{Context, KeyValue};

use crate::asked::Asked;
use crate::audit::Audit;
use crate::caller::{Caller, Role};
use crate::catalog;
use crate::error::Error;
use crate::functions;
use crate::gate::{Concurrency, Gate, SharedPool};
use crate::leeway::{Leeway, Own};
use crate::notes::Notes;
use crate::pieces::Stats;
use crate::projection::{Projection, Snapshot};
use crate::rows::Time;
use crate::stats::{QueryStats, Running};
use crate::streamed::{Streamed, too_long};
use crate::tenancy::Bindings;
use crate::threads::Threads;

/// Memory of all queries together.
const MEMORY_BYTES_MAX: usize = 1 << 30;

/// What one query may spill to disk.
const SPILL_BYTES_MAX: u64 = 2 << 30;

/// What a first query asks: a trace, and a view of events.
pub(crate) const FIRST: [&str; 2] = [
    "SELECT * FROM spans WHERE trace_id = '00000000000000000000000000000000' ORDER BY start_time",
    "SELECT * FROM tool_calls WHERE trace_id = '00000000000000000000000000000000'",
];

/// What one query may use.
#[derive(Clone, Debug)]
pub struct QueryLimits {
    /// How long planning and running may take together.
    pub timeout: Duration,
    /// How long at most a caller may ask for.
    pub timeout_max: Duration,
    /// How long it may use all that nobody else needs at the moment; if it lasts longer, it leaves the processors to
    /// those who take records. `None` where nobody does.
    pub prompt: Option<Duration>,
    /// Rows beyond this are cut off, and the answer says so.
    pub rows_max: usize,
    /// How many rows at most a caller may ask for.
    pub rows_most: usize,
    /// Memory of sorts, joins and aggregates; what more they need they spill.
    pub memory_bytes_max: usize,
    /// An answer with more bytes than this is refused.
    pub answer_bytes_max: usize,
    /// Bytes of a query's text; its parameters count too.
    pub text_bytes_max: usize,
}

impl Default for QueryLimits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            timeout_max: Duration::from_secs(600),
            prompt: None,
            rows_max: 10_000,
            rows_most: 1_000_000,
            memory_bytes_max: 512 << 20,
            answer_bytes_max: 256 << 20,
            text_bytes_max: 256 << 10,
        }
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
    /// What is to be said of it.
    pub notes: Vec<String>,
}

impl Answer {
    /// What is said of it at its end.
    pub fn stats(&self) -> Stats {
        Stats {
            rows: self.rows as u64,
            truncated: self.truncated,
            log_size: self.as_of_size,
            elapsed_ms: self.elapsed.as_millis() as u64,
            notes: self.notes.clone(),
        }
    }
}

/// Runs queries over a projection.
#[derive(Clone)]
pub struct Engine {
    projection: Arc<Projection>,
    runtime: Arc<Threads>,
    stats: Arc<QueryStats>,
    gate: Arc<Gate>,
    memory: Arc<GreedyMemoryPool>,
    leeway: Arc<Leeway>,
    audit: Audit,
    bindings: Option<Bindings>,
}

impl Engine {
    /// An engine over a projection.
    pub fn new(projection: Arc<Projection>) -> Result<Self, Error> {
        let stats = Arc::<QueryStats>::default();
        let leeway = Arc::new(Leeway::new(Arc::clone(&stats)));
        let runtime = Threads::for_queries()?;
        Ok(Self {
            projection,
            runtime: Arc::new(runtime),
            stats,
            gate: Arc::default(),
            memory: Arc::new(GreedyMemoryPool::new(MEMORY_BYTES_MAX)),
            leeway,
            audit: Audit::default(),
            bindings: None,
        })
    }

    /// With so many queries at a time, and so much memory for all of them together.
    pub fn with_limits(mut self, concurrency: Concurrency, memory_bytes_max: usize) -> Self {
        self.gate = Arc::new(Gate::new(concurrency));
        self.memory = Arc::new(GreedyMemoryPool::new(memory_bytes_max));
        self
    }

    /// With a record in the log of who asked what.
    pub fn with_audit(mut self, audit: Audit) -> Self {
        self.audit = audit;
        self
    }

    /// With the tenants that submitters may speak for, for the table `foreign_claims`.
    pub fn with_bindings(mut self, bindings: Bindings) -> Self {
        self.bindings = Some(bindings);
        self
    }

    /// Where it is recorded who asked, followed, exported or changed what.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// The projection behind it.
    pub fn projection(&self) -> &Arc<Projection> {
        &self.projection
    }

    /// The newest state of the log, with the rows that a caller may see. Whatever is answered is
    /// made of this, and of nothing else.
    pub fn view(&self, caller: &Caller) -> Arc<Snapshot> {
        self.projection.snapshot().seen_by(&caller.rows)
    }

    /// What queries and event streams count.
    pub fn stats(&self) -> &Arc<QueryStats> {
        &self.stats
    }

    /// The columns that a query would have.
    pub async fn describe(&self, caller: &Caller, text: &str, limits: QueryLimits) -> Result<SchemaRef, Error> {
        self.describe_bound(caller, text, None, limits).await
    }

    /// The columns that a query would have, and its parameters.
    pub async fn prepare(
        &self,
        caller: &Caller,
        text: &str,
        limits: QueryLimits,
    ) -> Result<(SchemaRef, SchemaRef), Error> {
        let running = self.enter(caller)?;
        let until = Instant::now() + limits.timeout;
        let asked = Asked { text: text.to_owned(), params: None, limits: limits.clone() };
        let plan = self.apart(caller, until, &limits, &running, async move |context: SessionContext, _| {
            asked.described(&context).await
        });
        let done = plan.await;
        running.ended(&done);
        done
    }

    /// The columns that a query has with these parameters: they may be columns themselves.
    pub async fn describe_bound(
        &self,
        caller: &Caller,
        text: &str,
        params: Option<Vec<ScalarValue>>,
        limits: QueryLimits,
    ) -> Result<SchemaRef, Error> {
        let running = self.enter(caller)?;
        let until = Instant::now() + limits.timeout;
        let asked = Asked { text: text.to_owned(), params, limits: limits.clone() };
        let plan = self.apart(caller, until, &limits, &running, async move |context: SessionContext, _| {
            let frame = asked.frame(&context).await?;
            Ok(Arc::clone(frame.schema().inner()))
        });
        let done = plan.await;
        running.ended(&done);
        done
    }

    /// Asks what a first query would, on a query thread, and gives the answer to nobody: the code of planning
    /// is read from the disk, and its tables of functions are made, before somebody waits for them.
    ///
    /// # Errors
    ///
    /// The query threads have stopped.
    pub fn warm(&self) -> Result<tokio::task::JoinHandle<()>, Error> {
        let runtime = self.runtime.handle()?.clone();
        let engine = self.clone();
        let own = runtime.clone();
        let first = async move |text: &str| {
            let (snapshot, limits) = (engine.projection.snapshot(), QueryLimits::default());
            let context = engine.session(&snapshot, &limits).await?;
            let asked = Asked { text: text.to_owned(), params: None, limits };
            let mut rows = asked.rows(&context, &snapshot).await?;
            while let Some(batch) = rows.next().await {
                batch.map_err(|e| Error::query(&e))?;
            }
            Ok::<(), Error>(())
        };
        Ok(runtime.spawn_blocking(move || {
            own.block_on(async {
                for text in FIRST {
                    if let Err(error) = first(text).await {
                        tracing::debug!(%error, "the first query of all could not be asked");
                    }
                }
            });
        }))
    }

    /// Does what blocks on a query thread, which gives way to those that take records.
    pub(crate) async fn apart_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.runtime.handle()?.spawn_blocking(work).await;
        done.map_err(|e| Error::internal(format!("the answer cannot be made: {e}")))?
    }

    /// Lets a query in.
    pub(crate) fn enter(&self, caller: &Caller) -> Result<Arc<Running>, Error> {
        let may = caller.require(&[Role::Read], "asking");
        let may = may.inspect_err(|error| self.audit.refused(caller, &error.message));
        let place = may.and_then(|()| self.gate.enter(&caller.identity));
        let place = place.inspect_err(|error| self.stats.refused(error))?;
        Ok(Arc::new(self.stats.begin(place)))
    }

    /// Plans a query and begins to make its rows.
    pub(crate) async fn start(
        &self,
        caller: &Caller,
        text: &str,
        params: Vec<ScalarValue>,
        limits: QueryLimits,
        running: &Arc<Running>,
    ) -> Result<Streamed, Error> {
        let until = Instant::now() + limits.timeout;
        let asked = Asked { text: text.to_owned(), params: Some(params), limits: limits.clone() };
        let plan = self.apart(caller, until, &limits, running, async move |context: SessionContext, snapshot| {
            let batches = asked.rows(&context, &snapshot).await?;
            Ok((batches, snapshot.size, context))
        });
        let (batches, size, context) = plan.await?;
        let runtime = self.runtime.handle()?;
        // The session lives as long as its rows are made: some tables are planned when they are read.
        let held = (Arc::clone(running), context);
        Ok(Streamed::begin(runtime, batches, held, (limits, until), size))
    }

    /// Plans on a thread that can be given up: what cannot be interrupted keeps its thread and its
    /// place, and nothing else.
    async fn apart<T: Send + 'static, W>(
        &self,
        caller: &Caller,
        until: Instant,
        limits: &QueryLimits,
        running: &Arc<Running>,
        work: impl FnOnce(SessionContext, Arc<Snapshot>) -> W + Send + 'static,
    ) -> Result<T, Error>
    where
        W: Future<Output = Result<T, Error>>,
    {
        let runtime = self.runtime.handle()?.clone();
        let (engine, held, snapshot, limits) = (self.clone(), Arc::clone(running), self.view(caller), limits.clone());
        let (waiting, mut gone) = tokio::sync::oneshot::channel::<()>();
        let own = runtime.clone();
        let own_limits = limits.clone();
        let planning = runtime.spawn_blocking(move || {
            let _held = held;
            own.block_on(async move {
                let plan = async {
                    let context = engine.session(&snapshot, &own_limits).await?;
                    work(context, snapshot).await
                };
                tokio::select! {
                    planned = plan => planned,
                    _ = &mut gone => Err(Error::internal("nobody waits for this plan")),
                }
            })
        });
        let planned = tokio::time::timeout_at(until.into(), planning).await;
        drop(waiting);
        let planned = planned.map_err(|_| too_long(&limits))?;
        planned.map_err(|e| Error::internal(format!("the query failed: {e}")))?
    }
}

/// Ends the span of a query: how many rows, of a log of which size, or what went wrong. Its text is not told: it may hold what is private.
pub(crate) fn tell(context: &Context, done: &Result<(usize, u64), &Error>) {
    let span = context.span();
    match done {
        Ok((rows, size)) => span.set_attributes([
            KeyValue::new("db.response.returned_rows", *rows as i64),
            KeyValue::new("custody.log.size", *size as i64),
        ]),
        Err(error) => {
            span.set_attribute(KeyValue::new("error.type", error.kind.code()));
            span.set_status(Status::error(""));
        }
    }
    span.end();
}

/// Cancels its task when it is dropped.
pub(crate) struct AbortOnDrop<T>(pub(crate) tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Engine {
    /// A session over one state of the log.
    pub(crate) async fn session(
        &self,
        snapshot: &Arc<Snapshot>,
        limits: &QueryLimits,
    ) -> Result<SessionContext, Error> {
        let wrong = |e: datafusion::error::DataFusionError| Error::internal(format!("the query cannot be set up: {e}"));
        let consumers = std::num::NonZeroUsize::new(5).unwrap_or(std::num::NonZeroUsize::MIN);
        let share = SharedPool::new(limits.memory_bytes_max, &self.memory);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(TrackConsumersPool::new(share, consumers)))
            .with_max_temp_directory_size(SPILL_BYTES_MAX)
            .with_cache_manager(self.projection.caches())
            .build_arc()
            .map_err(wrong)?;
        for place in snapshot.places() {
            runtime.register_object_store(place.url().as_ref(), Arc::clone(place.store()));
        }
        let config = functions::config().with_target_partitions(2);
        let own = Own::new(&self.leeway, limits.prompt);
        let mut config = config.with_extension(Arc::new(Notes::default())).with_extension(Arc::new(own));
        config.options_mut().sql_parser.collect_spans = true;
        // Columns of a union may have different docs in their metadata, which is no difference of types.
        config.options_mut().execution.skip_physical_aggregate_schema_check = true;
        let state = functions::for_questions().with_config(config).with_runtime_env(runtime).build();
        let mut context = SessionContext::new_with_state(state);
        datafusion_functions_json::register_all(&mut context).map_err(wrong)?;
        let reader = self.projection.reader();
        catalog::register(&context, snapshot, reader, now(), self.bindings.as_ref()).map_err(wrong)?;
        crate::checks::register(&context, &self.projection, snapshot, now()).map_err(wrong)?;
        // Last: it tells of all others.
        crate::columns::register(&context).map_err(wrong)?;
        crate::information_schema::register(&context).map_err(wrong)?;
        Ok(context)
    }
}

/// The time of a query, for what has expired and what is still open.
pub(crate) fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Time(since.map_or(0, |d| d.as_nanos() as i64))
}
