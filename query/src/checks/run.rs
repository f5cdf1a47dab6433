//! Runs rules over a set of rows: all of a snapshot, or the few that new records touch. Rules are
//! planned once; each run gives the plans other rows to read.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use custody_store::Reader;
use custody_store::system::SeqSet;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result as DfResult};
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{DataFrame, SessionContext, col};

use super::ends::{self, EndedRow};
use super::fields::Fields;
use super::habits::{self, HabitRow};
use super::here::{Here, Touched, Used};
use super::hit::HitRow;
use super::judged::Judged;
use super::relations::{about, without_asides};
use super::running::{self, FinishedRow};
use super::sequences::{self, NumberedRow};
use super::span_ids::{self, SpanIdRow};
use super::spared::Ran;
use super::tuning::Tuning;
use super::uses::{UseRow, all_uses};
use super::{Rule, functions};
use crate::Error;
use crate::catalog::{Lazy, Ledger, Made, TOOL_CALLS, authority_covers};
use crate::event::EventRow;
use crate::grants::{DenialRow, GrantRow, Grants, denials};
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Time, own_bytes};
use crate::segments::{SealedTable, Table, Wanted};
use crate::tables::{LedgerRow, SpanRow};
use crate::tenancy::Tenancy;

/// Memory of one run's sorts and joins.
const MEMORY_BYTES: usize = 256 << 20;

/// Events up to this size are held while all rules run over them.
const EVENTS_BYTES_MAX: usize = 128 << 20;

/// Records that a hit cites, at most: the first and the last.
pub(super) const EVIDENCE_MAX: usize = 1000;

/// What a rule must give, beside what its head says.
const COLUMNS: [&str; 8] = ["verdict", "seq", "trace_id", "span_id", "grant_id", "agent_id", "detail", "evidence"];

/// The tables that a rule may name.
pub(crate) const RULE_TABLES: [&str; 12] = [
    "events",
    "tool_calls",
    "grants",
    "denials",
    "spans",
    "ledger",
    "call_uses",
    "call_habits",
    "span_ids",
    "numbered",
    "ended_grants",
    "finished_spans",
];

/// Where the ledger's entries are read.
#[derive(Clone)]
pub(crate) enum Entries {
    /// In the log.
    Log(Reader),
    /// These, of examples.
    These(RecordBatch),
}

impl Entries {
    /// Whose a record is: its event says so, and the log where it gave none.
    pub(crate) fn tenancy(&self, seq: u64, event: Option<&EventRow>) -> Tenancy {
        match (event, self) {
            (Some(event), _) => Tenancy { tenant: event.tenant.clone(), workspace: event.workspace.clone() },
            (None, Self::Log(reader)) => Tenancy::of_seq(reader, seq),
            (None, Self::These(_)) => Tenancy::default(),
        }
    }
}

/// The tables of a run over everything.
pub(crate) struct Tables(HashMap<&'static str, Arc<dyn TableProvider>>);

impl Tables {
    /// All rows of a snapshot.
    pub(crate) fn whole(
        snapshot: &Arc<Snapshot>,
        entries: &Entries,
        now: Time,
        tuning: &Arc<Tuning>,
    ) -> DfResult<Self> {
        let mut all: HashMap<&'static str, Arc<dyn TableProvider>> = HashMap::new();
        all.insert("events", Arc::new(SealedTable::new(snapshot, Table::Events)));
        all.insert("spans", Arc::new(SealedTable::new(snapshot, Table::Spans)));
        let ledger: Arc<dyn TableProvider> = match entries {
            Entries::Log(reader) => {
                let entries = Ledger::between(reader.clone(), 0, snapshot.size, snapshot.visible().clone());
                Arc::new(StreamingTable::try_new(LedgerRow::schema(), vec![Arc::new(entries)])?)
            }
            Entries::These(rows) => Arc::new(MemTable::try_new(LedgerRow::schema(), vec![vec![rows.clone()]])?),
        };
        all.insert("ledger", ledger);
        let mut lazy = |name: &'static str, schema: SchemaRef, make: fn(&Snapshot, &Tuning, Time) -> Made| {
            let (of, tuning) = (Arc::clone(snapshot), Arc::clone(tuning));
            all.insert(name, Arc::new(Lazy::new(schema, move || make(&of, &tuning, now))));
        };
        lazy("grants", GrantRow::schema(), |of, _, now| Ok(GrantRow::batch(Grants::of(of, AsOf::Now, now)?.rows())));
        lazy("denials", DenialRow::schema(), |of, _, _| Ok(DenialRow::batch(&denials(of, AsOf::Now)?)));
        lazy("call_uses", UseRow::schema(), |of, tuning, _| all_uses(of, tuning.window()));
        lazy("call_habits", HabitRow::schema(), |of, tuning, _| habits::of_all(of, tuning.window()));
        lazy("span_ids", SpanIdRow::schema(), |of, _, _| span_ids::of_all(of));
        lazy("numbered", NumberedRow::schema(), |of, _, _| sequences::of_all(of));
        lazy("finished_spans", FinishedRow::schema(), |of, tuning, _| running::of_all(of, tuning.window()));
        lazy("ended_grants", EndedRow::schema(), |of, tuning, now| {
            let grants = Grants::without_uses(of, AsOf::Now, now)?;
            Ok(EndedRow::batch(&ends::of(of, grants.rows().iter(), now, tuning.grace())?))
        });
        Ok(Self(all))
    }

    /// One of them.
    pub(super) fn get(&self, name: &str) -> DfResult<&Arc<dyn TableProvider>> {
        self.0.get(name).ok_or_else(|| DataFusionError::Internal(format!("{name} has no rows in this run")))
    }
}

/// All events, if they are few enough to be held: every rule reads them, and each would open the files anew.
fn few_events(snapshot: &Snapshot) -> Result<Option<Vec<RecordBatch>>, Error> {
    let (mut batches, mut bytes) = (Vec::new(), 0);
    snapshot.read(&Wanted::all(Table::Events), |batch| {
        bytes += own_bytes(batch);
        // Files carry more about their columns than the rows' own schema says.
        let batch = RecordBatch::try_new(EventRow::schema(), batch.columns().to_vec());
        let batch = batch.and_then(|batch| without_asides(&batch));
        batches.push(batch.map_err(|e| Error::internal(format!("events cannot be held: {e}")))?);
        Ok(bytes <= EVENTS_BYTES_MAX)
    })?;
    Ok((bytes <= EVENTS_BYTES_MAX).then_some(batches))
}

/// A rule, planned: over everything, and for hits about some records only.
pub(super) struct Planned {
    pub(super) rule: Rule,
    /// As it is written: most servers never ask for everything, and need not wait for it at the start.
    whole: LogicalPlan,
    /// Ready to be run, again and again: what new records cost must not be the planning.
    pub(super) judged: Arc<dyn ExecutionPlan>,
}

/// Rules, planned.
pub struct Checker {
    rules: Vec<Planned>,
    /// The tables that they read.
    read: HashSet<String>,
    state: SessionState,
    tuning: Arc<Tuning>,
    pub(super) judged: Judged,
    /// What the rules read of attributes, and which columns of events.
    fields: Arc<Fields>,
    used: Vec<usize>,
    /// One run at a time is about some records only.
    one_by_one: tokio::sync::Mutex<()>,
    /// Counts records that a rule failed on, for each rule.
    pub(super) unjudged: AtomicU64,
}

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").field("rules", &self.rules.len()).finish_non_exhaustive()
    }
}

impl Checker {
    /// Plans the rules that the tuning turns on somewhere.
    ///
    /// # Errors
    ///
    /// Names the rule whose SQL is wrong, and says what is.
    pub async fn new(rules: Vec<Rule>, tuning: Tuning) -> Result<Arc<Self>, Error> {
        let tuning = Arc::new(tuning);
        let wrong = |e: DataFusionError| Error::internal(format!("the checks cannot be set up: {e}"));
        let pool = FairSpillPool::new(MEMORY_BYTES);
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).build_arc().map_err(wrong)?;
        let mut config = crate::functions::config().with_target_partitions(1).with_information_schema(false);
        // Plans that say more as they run cannot be run again.
        config.options_mut().optimizer.enable_dynamic_filter_pushdown = false;
        let state = crate::functions::session().with_config(config).with_runtime_env(runtime);
        let mut context = SessionContext::new_with_state(state.build());
        datafusion_functions_json::register_all(&mut context).map_err(wrong)?;
        context.register_udf(authority_covers());
        context.register_udf(crate::functions::tenants::same_tenant());
        functions::all(&tuning).into_iter().for_each(|function| context.register_udf(function));
        let judged = Judged::default();
        let schemas = [
            ("events", EventRow::schema()),
            ("grants", GrantRow::schema()),
            ("denials", DenialRow::schema()),
            ("spans", SpanRow::schema()),
            ("ledger", LedgerRow::schema()),
            ("call_uses", UseRow::schema()),
            ("call_habits", HabitRow::schema()),
            ("span_ids", SpanIdRow::schema()),
            ("numbered", NumberedRow::schema()),
            ("ended_grants", EndedRow::schema()),
            ("finished_spans", FinishedRow::schema()),
        ];
        let used = Used::default();
        for (name, schema) in schemas {
            let here = Here { name, schema, used: Arc::clone(&used) };
            context.register_table(name, Arc::new(here)).map_err(wrong)?;
        }
        let view = context.sql(TOOL_CALLS).await.map_err(wrong)?.into_view();
        context.register_table("tool_calls", view).map_err(wrong)?;
        let mut frames = Vec::new();
        for rule in rules {
            if tuning.is_on_somewhere(&rule.id) {
                frames.push(frame(&context, &rule).await.map(|frame| (rule, frame))?);
            }
        }
        let (fields, read, rules) = plan(&context.state(), frames, &judged).await?;
        let used = used.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let one_by_one = tokio::sync::Mutex::default();
        let (state, fields) = (context.state(), Arc::new(fields));
        Ok(Arc::new(Self { rules, read, state, tuning, judged, fields, used, one_by_one, unjudged: AtomicU64::new(0) }))
    }

    /// The plans of the rules, as `EXPLAIN` shows them.
    #[cfg(test)]
    pub(super) fn plans(&self) -> impl Iterator<Item = (&str, String)> {
        let shown = |plan| datafusion::physical_plan::displayable(plan).indent(false).to_string();
        self.rules.iter().map(move |planned| (planned.rule.id.as_str(), shown(planned.judged.as_ref())))
    }

    /// What the rules read of attributes.
    pub(super) fn fields(&self) -> &Arc<Fields> {
        &self.fields
    }

    /// The columns of `events` that the rules read about what is judged, by place; behind the table's own come
    /// those of [`Self::fields`].
    pub(super) fn used(&self) -> &[usize] {
        &self.used
    }

    /// The tuning that it goes by.
    pub(crate) fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// What a check fires on, in words.
    pub(crate) fn about(&self, check: &str) -> &str {
        self.rules.iter().find(|planned| planned.rule.id == check).map_or("", |planned| planned.rule.about.as_str())
    }

    /// Whether a check runs and is about events; spans and the ends of grants are looked at once, as they come.
    pub(crate) fn judges_events(&self, check: &str) -> bool {
        let once = |on: &String| on == "span" || on == "grant_end";
        self.rules.iter().any(|planned| planned.rule.id == check && !planned.rule.on.iter().any(once))
    }

    /// Whether a rule that is on reads a table.
    pub(crate) fn reads(&self, table: &str) -> bool {
        self.read.contains(table)
    }

    /// Runs the rules that can have a hit about one of these kinds, for hits about these records. Gives what
    /// they find, without what the tuning turns off: that goes by the workspace, which `describe` tells.
    pub(crate) async fn run(&self, touched: Touched, kinds: &HashSet<String>, judged: SeqSet) -> Result<Ran, Error> {
        let _one_by_one = self.one_by_one.lock().await;
        self.judged.set(judged.clone());
        let mut state = self.state.clone();
        state.config_mut().set_extension(Arc::new(touched));
        let is_event = |kind: &String| !matches!(kind.as_str(), "span" | "record" | "grant_end");
        let has_events = kinds.iter().any(is_event);
        let concerns = |rule: &Rule| rule.on.iter().any(|on| (on == "any" && has_events) || kinds.contains(on));
        let (mut ran, mut done) = (Ran::default(), Ok(()));
        for planned in self.rules.iter().filter(|planned| concerns(&planned.rule)) {
            done = self.ask(planned, &judged, &state, &mut ran).await;
            if done.is_err() {
                break;
            }
        }
        self.judged.set(SeqSet::default());
        done.map(|()| ran)
    }

    /// Runs all rules over everything.
    async fn found(&self, tables: Tables, snapshot: &Snapshot) -> Result<Vec<(HitRow, bool)>, Error> {
        let mut state = match snapshot.places().is_empty() {
            true => self.state.clone(),
            false => with_places(&self.state, snapshot)?,
        };
        state.config_mut().set_extension(Arc::new(tables));
        let mut out = Vec::new();
        for Planned { rule, whole, .. } in &self.rules {
            let whole = state.optimize(whole).map_err(|e| named(rule, Error::query(&e)))?;
            let physical = state.query_planner().create_physical_plan(&whole, &state).await;
            out.extend(hits(rule, physical, &state).await?);
        }
        Ok(out)
    }

    /// Puts in whose the record is that a hit is about; none if the check is off for its workspace.
    pub(crate) fn describe(&self, mut hit: HitRow, of: Tenancy, now: Time) -> Option<HitRow> {
        hit.workspace = hit.workspace.or(of.workspace);
        hit.tenant = of.tenant;
        let workspace = hit.workspace.as_deref();
        if !self.tuning.is_on(workspace, &hit.check_id) {
            return None;
        }
        hit.severity = self.tuning.severity(workspace, &hit.check_id);
        hit.evidence.sort_unstable();
        hit.evidence.dedup();
        if let Some(over) = hit.evidence.len().checked_sub(EVIDENCE_MAX).filter(|over| *over > 0) {
            hit.evidence.drain(EVIDENCE_MAX / 2..EVIDENCE_MAX / 2 + over);
            hit.detail.push_str(&format!(" ({over} more records say so)"));
        }
        hit.detected_time = now;
        Some(hit)
    }

    /// All hits in a snapshot, as of now. What may still be taken back within the grace time is probable.
    ///
    /// # Errors
    ///
    /// If rows cannot be read, or a rule needs more than it may.
    pub(crate) async fn everything(
        &self,
        snapshot: &Arc<Snapshot>,
        entries: &Entries,
        now: Time,
    ) -> Result<Vec<HitRow>, Error> {
        let wrong = |e: DataFusionError| Error::query(&e);
        let mut tables = Tables::whole(snapshot, entries, now, &self.tuning).map_err(wrong)?;
        let of = Arc::clone(snapshot);
        let few = tokio::task::spawn_blocking(move || few_events(&of)).await;
        let few = few.map_err(|e| Error::internal(format!("the checks failed: {e}")))??;
        let events = about(few, tables.0.get("events").cloned()).map_err(wrong)?;
        tables.0.insert("events", events);
        let found = self.found(tables, snapshot).await?;
        let seqs: BTreeSet<u64> = found.iter().map(|(hit, _)| hit.seq).collect();
        let of = Arc::clone(snapshot);
        let events = tokio::task::spawn_blocking(move || of.events_at(&seqs)).await;
        let events = events.map_err(|e| Error::internal(format!("the checks failed: {e}")))??;
        let events: HashMap<u64, &EventRow> = events.iter().map(|event| (event.seq, event)).collect();
        let grace = self.tuning.grace();
        let mut out = Vec::new();
        for (mut hit, waits) in found {
            let event = events.get(&hit.seq).copied();
            if waits && event.is_some_and(|e| e.ingest_time.0.saturating_add(grace) > now.0) && hit.verdict == "proven"
            {
                hit.verdict = "probable".into();
            }
            let of = entries.tenancy(hit.seq, event);
            out.extend(self.describe(hit, of, now));
        }
        Ok(once(out))
    }
}

/// Each check tells a record once.
pub(crate) fn once(hits: Vec<HitRow>) -> Vec<HitRow> {
    let mut seen = HashSet::new();
    let mut hits: Vec<HitRow> = hits.into_iter().filter(|hit| seen.insert(hit.key())).collect();
    hits.sort_by_key(HitRow::key);
    hits
}

/// What one rule finds.
pub(super) async fn hits(
    rule: &Rule,
    physical: DfResult<Arc<dyn ExecutionPlan>>,
    state: &SessionState,
) -> Result<Vec<(HitRow, bool)>, Error> {
    let failed = |e: DataFusionError| named(rule, Error::query(&e));
    let start = Instant::now();
    let mut out = Vec::new();
    for batch in collect(physical.map_err(failed)?, state.task_ctx()).await.map_err(failed)? {
        out.extend(read(&batch).map_err(failed)?.into_iter().map(|hit| {
            let hit = HitRow { check_id: rule.id.clone(), tags: rule.tags.clone(), ..hit };
            (hit, rule.waits)
        }));
    }
    tracing::debug!(rule = rule.id, hits = out.len(), elapsed = ?start.elapsed(), "a rule ran");
    Ok(out)
}

fn named(rule: &Rule, error: Error) -> Error {
    Error { message: format!("rule {}: {}", rule.id, error.message), ..error }
}

/// What a rule says, with the columns that it must give.
async fn frame(context: &SessionContext, rule: &Rule) -> Result<DataFrame, Error> {
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let sql = functions::bind(&rule.id, &rule.sql);
    let frame = context.sql_with_options(&sql, options).await;
    let frame = frame.map_err(|e| {
        let mut error = Error::query(&e);
        if let Some(name) = error.message.strip_prefix("table 'datafusion.public.").and_then(|m| m.split('\'').next()) {
            error.message = format!("there is no table {name}; rules read {}", RULE_TABLES.join(", "));
        }
        named(rule, error)
    })?;
    for column in COLUMNS {
        if frame.schema().field_with_unqualified_name(column).is_err() {
            let all = COLUMNS.join(", ");
            return Err(named(rule, Error::invalid(format!("its query gives no column {column}; it must give {all}"))));
        }
    }
    frame.select_columns(&COLUMNS).map_err(|e| named(rule, Error::query(&e)))
}

/// The names of the tables that a plan reads.
fn tables(plan: &LogicalPlan, read: &mut HashSet<String>) -> DfResult<()> {
    let look = |node: &LogicalPlan| {
        if let LogicalPlan::TableScan(scan) = node {
            read.insert(scan.table_name.table().to_owned());
        }
        Ok(TreeNodeRecursion::Continue)
    };
    plan.apply_with_subqueries(look).map(drop)
}

/// Plans rules; gives what they read of attributes, and of which tables, too.
async fn plan(
    state: &SessionState,
    frames: Vec<(Rule, DataFrame)>,
    judged: &Judged,
) -> Result<(Fields, HashSet<String>, Vec<Planned>), Error> {
    let mut plans = Vec::with_capacity(frames.len());
    for (rule, frame) in frames {
        let failed = |e: DataFusionError| named(&rule, Error::query(&e));
        let whole = frame.logical_plan().clone();
        // Said of the answer, and carried down by the optimizer to where the judged records are read: what they
        // are joined with is read in whole, and joined with no others.
        let few = frame.filter(judged.holds(col("seq"))).map_err(failed)?.into_unoptimized_plan();
        plans.push((rule, whole, few));
    }
    let (mut few, mut read) = (Vec::with_capacity(plans.len()), HashSet::new());
    for (rule, _, plan) in &plans {
        let optimized = state.optimize(plan).and_then(|plan| tables(&plan, &mut read).map(|()| plan));
        few.push(optimized.map_err(|e| named(rule, Error::query(&e)))?);
    }
    let fields = Fields::of(few.iter()).map_err(|e| Error::query(&e))?;
    let mut out = Vec::with_capacity(plans.len());
    for (rule, whole, plan) in plans {
        let failed = |e: DataFusionError| named(&rule, Error::query(&e));
        let plan = state.optimize(&fields.put_into(plan).map_err(failed)?).map_err(failed)?;
        let judged = state.query_planner().create_physical_plan(&plan, state).await.map_err(failed)?;
        out.push(Planned { rule, whole, judged });
    }
    Ok((fields, read, out))
}

/// The rows of a rule's answer, whatever kinds of text and number it used.
fn read(batch: &RecordBatch) -> DfResult<Vec<HitRow>> {
    let schema = HitRow::schema();
    let rows = batch.num_rows();
    let empty = HitRow::batch(&vec![HitRow::default(); rows]);
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (i, field) in schema.fields().iter().enumerate() {
        columns.push(match batch.column_by_name(field.name()) {
            Some(own) => cast(own, field.data_type())?,
            None => Arc::clone(empty.column(i)),
        });
    }
    let fields: Vec<_> = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    let loose = Arc::new(datafusion::arrow::datatypes::Schema::new(fields));
    Ok(HitRow::read(&RecordBatch::try_new(loose, columns)?))
}

/// A state that can read a snapshot's segments.
fn with_places(state: &SessionState, snapshot: &Snapshot) -> Result<SessionState, Error> {
    let pool = FairSpillPool::new(MEMORY_BYTES);
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).build_arc();
    let runtime = runtime.map_err(|e| Error::query(&e))?;
    for place in snapshot.places() {
        runtime.register_object_store(place.url().as_ref(), Arc::clone(place.store()));
    }
    Ok(SessionStateBuilder::new_from_existing(state.clone()).with_runtime_env(runtime).build())
}
