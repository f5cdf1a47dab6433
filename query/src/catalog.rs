//! What a query sees: the tables, views and functions over one snapshot.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use custody_store::Reader;
use datafusion::arrow::array::{Array, BooleanArray, ListArray, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{MemTable, Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{DataFusionError, Result, ScalarValue, plan_err};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarUDF, TableType, Volatility, create_udf};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};
use datafusion::prelude::SessionContext;
use tokio::sync::OnceCell;

use crate::attributes::parse_time;
use crate::authority::covers;
use crate::caller::RowFilter;
use crate::grant_table::GrantTable;
use crate::grants::{ChainRow, DenialRow, Grants, denials};
use crate::late_views;
use crate::library;
use crate::notes::Notes;
use crate::projection::{AsOf, Snapshot};
use crate::proofs;
use crate::replay_table::ReplayFunction;
use crate::rows::{Cell, Time};
use crate::segments::{SealedTable, Table};
use crate::spans::Spans;
use crate::tables::LedgerRow;
use crate::tenancy::{Bindings, Tenancy};
use crate::views;

/// The view `tool_calls`.
pub(crate) const TOOL_CALLS: &str = include_str!("tool_calls.sql");

/// The view `model_calls`.
pub(crate) const MODEL_CALLS: &str = include_str!("model_calls.sql");

/// The view `coverage_of_mapping`.
const COVERAGE: &str = include_str!("coverage_of_mapping.sql");

/// The tables and views, for people.
pub(crate) const TABLES: &[&str] = &[
    "spans",
    "logs",
    "metrics",
    "events",
    "grants",
    "denials",
    "tool_calls",
    "model_calls",
    "alerts",
    "violations",
    "dwell_time",
    "coverage",
    "coverage_of_mapping",
    "ledger",
    "audit",
    "foreign_claims",
    "retrievals",
    "decisions",
    "alert_outcomes",
    "blast_radius",
    "authority_coverage",
    "checkpoints",
    "custody_tables",
    "custody_columns",
];

/// Registers everything that a query may name.
pub(crate) fn register(
    context: &SessionContext,
    snapshot: &Arc<Snapshot>,
    reader: &Reader,
    now: Time,
    bindings: Option<&Bindings>,
) -> Result<()> {
    late_views::prepare(context)?;
    for table in Table::ALL {
        context.register_table(table.name(), Arc::new(SealedTable::new(snapshot, table)))?;
    }
    if let Some(records) = context.deregister_table("spans")? {
        context.register_table("spans", Arc::new(Spans::new(records, snapshot)))?;
    }
    let ledger = Ledger::between(reader.clone(), 0, snapshot.size, snapshot.visible().clone());
    context
        .register_table("ledger", Arc::new(StreamingTable::try_new(LedgerRow::schema(), vec![Arc::new(ledger)])?))?;
    let lazy = |name: &str, schema: SchemaRef, make: fn(&Snapshot, Time) -> Made| {
        let snapshot = Arc::clone(snapshot);
        context.register_table(name, Arc::new(Lazy::new(schema, move || make(&snapshot, now))))
    };
    context.register_table("grants", Arc::new(GrantTable::new(snapshot, now)))?;
    lazy("denials", DenialRow::schema(), |s, _| Ok(DenialRow::batch(&denials(s, AsOf::Now)?)))?;
    library::register(context, snapshot, reader, now)?;
    context.register_udf(authority_covers());
    context.register_udf(crate::functions::tenants::same_tenant());
    for function in proofs::functions(reader, snapshot.visible()) {
        context.register_udf(function);
    }
    let function = |make: fn(&Snapshot, &str, AsOf, Time) -> Made, schema: SchemaRef, what: &'static str| {
        Arc::new(Function { snapshot: Arc::clone(snapshot), now, make, schema, what })
    };
    context.register_udtf(
        "delegation_chain",
        function(
            |s, id, as_of, now| Ok(ChainRow::batch(&Grants::near(s, [id], as_of, s.clock(as_of, now)?)?.chain(id))),
            ChainRow::schema(),
            "delegation_chain('<grant id>')",
        ),
    );
    context.register_udtf("replay", Arc::new(ReplayFunction { snapshot: Arc::clone(snapshot), now }));
    let made = [
        ("tool_calls", TOOL_CALLS),
        ("model_calls", MODEL_CALLS),
        ("coverage_of_mapping", COVERAGE),
        ("retrievals", library::RETRIEVALS),
        ("decisions", library::DECISIONS),
    ];
    for (name, sql) in made {
        late_views::add(context, name, sql)?;
    }
    views::register(context, bindings, snapshot.visible())
}

/// Rows that were made, or why not.
pub(crate) type Made = std::result::Result<RecordBatch, crate::Error>;

/// A table that is made when it is first read, on a thread that may block: what it is
/// made from may lie in files.
pub(crate) struct Lazy {
    schema: SchemaRef,
    make: Arc<dyn Fn() -> Made + Send + Sync>,
    made: OnceCell<RecordBatch>,
    /// What is said if there are no rows.
    if_none: Option<String>,
}

impl Lazy {
    pub(crate) fn new(schema: SchemaRef, make: impl Fn() -> Made + Send + Sync + 'static) -> Self {
        Self { schema, make: Arc::new(make), made: OnceCell::new(), if_none: None }
    }

    /// With what is said beside the answer if there are no rows.
    pub(crate) fn if_none(self, note: String) -> Self {
        Self { if_none: Some(note), ..self }
    }

    async fn make(&self) -> Result<RecordBatch> {
        let make = Arc::clone(&self.make);
        let made = tokio::task::spawn_blocking(move || make()).await;
        let made = made.map_err(|e| DataFusionError::Execution(format!("the table cannot be made: {e}")))?;
        made.map_err(|e| DataFusionError::External(Box::new(e)))
    }
}

impl fmt::Debug for Lazy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lazy").field("schema", &self.schema).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for Lazy {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batch = self.made.get_or_try_init(|| self.make()).await?.clone();
        if let (0, Some(note)) = (batch.num_rows(), &self.if_none) {
            Notes::of(state.config()).say(note.clone());
        }
        MemTable::try_new(self.schema(), vec![vec![batch]])?.scan(state, projection, filters, limit).await
    }
}

/// A table function of an id and, perhaps, a point in the log's history.
struct Function {
    snapshot: Arc<Snapshot>,
    now: Time,
    make: fn(&Snapshot, &str, AsOf, Time) -> Made,
    schema: SchemaRef,
    what: &'static str,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// The arguments of such a function.
pub(crate) fn id_and_as_of(args: &TableFunctionArgs, what: &str, size: u64) -> Result<(String, AsOf)> {
    let (id, as_of) = match args.exprs() {
        [id] => (id, AsOf::Now),
        [id, as_of] => (id, read_as_of(as_of, size)?),
        _ => return plan_err!("{what} takes an id and, optionally, a seq or a time"),
    };
    let Some(id) = text(id) else {
        return plan_err!("{what} takes its id as a text literal, such as 'abc'");
    };
    Ok((id, as_of))
}

impl TableFunctionImpl for Function {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let (id, as_of) = id_and_as_of(&args, self.what, self.snapshot.size)?;
        let (snapshot, make, now) = (Arc::clone(&self.snapshot), self.make, self.now);
        Ok(Arc::new(Lazy::new(Arc::clone(&self.schema), move || make(&snapshot, &id, as_of, now))))
    }
}

pub(crate) fn text(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Literal(
            ScalarValue::Utf8(Some(s)) | ScalarValue::LargeUtf8(Some(s)) | ScalarValue::Utf8View(Some(s)),
            _,
        ) => Some(s.clone()),
        _ => None,
    }
}

/// A point in the history of a log of this size.
pub(crate) fn read_as_of(expr: &Expr, size: u64) -> Result<AsOf> {
    // Seconds since 1970 would be taken for a seq beyond all, and the answer be that of now.
    let in_the_log = |seq: u64| match seq < size {
        true => Ok(AsOf::Seq(seq)),
        false => plan_err!(
            "what the ledger knew when? It has {size} records, and seq {seq} is none of them yet; a time is written \
             such as '2026-11-20T09:00:00Z'"
        ),
    };
    if let Expr::Literal(ScalarValue::Int64(Some(seq)), _) = expr
        && let Ok(seq) = u64::try_from(*seq)
    {
        return in_the_log(seq);
    }
    if matches!(expr, Expr::Literal(value, _) if value.is_null()) {
        return Ok(AsOf::Now);
    }
    // A driver may bind all that it has as texts.
    if let Some(seq) = text(expr).and_then(|t| t.parse().ok()) {
        return in_the_log(seq);
    }
    match text(expr).and_then(|t| parse_time(&t)) {
        Some(time) => Ok(AsOf::Time(time)),
        None => plan_err!(
            "what the ledger knew when? The moment (the last argument, --as-of, as_of) is a seq such as 120 or a time such as '2026-11-20T09:00:00Z'"
        ),
    }
}

/// `authority_covers(patterns, value)`: whether one of the patterns matches.
pub(crate) fn authority_covers() -> ScalarUDF {
    let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    let run = |args: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(args)?;
        let patterns = arrays[0].as_any().downcast_ref::<ListArray>();
        let values = arrays[1].as_any().downcast_ref::<StringArray>();
        let (Some(patterns), Some(values)) = (patterns, values) else {
            return Err(DataFusionError::Execution("authority_covers takes a list of texts and a text".into()));
        };
        let row = |i| {
            let valid = patterns.is_valid(i) && values.is_valid(i);
            valid.then(|| covers(&<Vec<String> as Cell>::read(patterns, i), values.value(i)))
        };
        let out: BooleanArray = (0..values.len()).map(row).collect();
        Ok(ColumnarValue::Array(Arc::new(out)))
    };
    create_udf("authority_covers", vec![list, DataType::Utf8], DataType::Boolean, Volatility::Immutable, Arc::new(run))
}

/// The table `ledger`, read off the log's entries as it is needed.
pub(crate) struct Ledger {
    reader: Reader,
    from: u64,
    size: u64,
    rows: RowFilter,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("size", &self.size).finish_non_exhaustive()
    }
}

/// Which entries of a block the caller may see, if not all: those of records that he may. Their
/// contents say so, so an entry whose content is erased is not among them.
fn shown(
    reader: &Reader,
    rows: &RowFilter,
    block: &custody_store::Commitments,
) -> std::result::Result<Option<Vec<bool>>, custody_store::Error> {
    if rows.is_open() {
        return Ok(None);
    }
    let whole = reader.block_at(block.first_seq)?;
    let sees = |i| {
        let tenancy = whole.as_ref().and_then(|whole| Tenancy::of_block(whole, i));
        tenancy.is_some_and(|t| rows.sees(t.tenant.as_deref(), t.workspace.as_deref()))
    };
    Ok(Some((0..block.commitments.len()).map(sees).collect()))
}

impl Ledger {
    /// The entries of the blocks from the one at `from` on, up to a size.
    pub(crate) fn between(reader: Reader, from: u64, size: u64, rows: RowFilter) -> Self {
        Self { reader, from, size, rows }
    }

    /// The rows of the block at `seq`, and the seq after it.
    fn block(
        reader: &Reader,
        rows: &RowFilter,
        seq: u64,
    ) -> std::result::Result<(RecordBatch, u64), custody_store::Error> {
        use custody_proto::entry::{FLAG_CONFLICT, FLAG_JSON};
        let Some(block) = reader.commitments_at(seq)? else { return Ok((LedgerRow::batch(&[]), u64::MAX)) };
        let shown = shown(reader, rows, &block)?;
        let lengths = reader.record_lengths(block.first_seq)?;
        let flags = |bits: u16| {
            let names = [(FLAG_CONFLICT, "conflicting_span"), (FLAG_JSON, "json")];
            names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned()).collect()
        };
        let row = |(i, custody_store::format::Link { entry, bytes, chain }): (usize, _)| LedgerRow {
            seq: entry.seq,
            kind: block.signal.record_name().to_owned(),
            ingest_time: Time(i64::try_from(entry.ingest_time).unwrap_or(i64::MAX)),
            submitter: const_hex::encode(entry.submitter),
            submitter_counter: entry.counter,
            record_hash: const_hex::encode(entry.commitment),
            chain_hash: const_hex::encode(chain),
            leaf_hash: const_hex::encode(custody_store::tree::leaf_hash(&bytes)),
            block_seq: block.first_seq,
            record_bytes: lengths.as_ref().and_then(|l| *l.get(i)?).map(u64::from),
            flags: flags(entry.flags),
        };
        let links = block.chained(block.previous).enumerate().filter(|(i, _)| shown.as_ref().is_none_or(|s| s[*i]));
        let rows: Vec<LedgerRow> = links.map(row).collect();
        Ok((LedgerRow::batch(&rows), block.end_seq()))
    }
}

impl PartitionStream for Ledger {
    fn schema(&self) -> &SchemaRef {
        static SCHEMA: std::sync::LazyLock<SchemaRef> = std::sync::LazyLock::new(LedgerRow::schema);
        &SCHEMA
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (reader, from, size, rows) = (self.reader.clone(), self.from, self.size, self.rows.clone());
        let blocks = std::iter::successors(Some((None, from)), move |(_, seq)| {
            (*seq < size).then(|| match Self::block(&reader, &rows, *seq) {
                Ok((batch, next)) => (Some(Ok(batch)), next),
                Err(error) => (Some(Err(DataFusionError::External(Box::new(error)))), u64::MAX),
            })
        });
        let batches = blocks.filter_map(|(batch, _)| batch);
        Box::pin(RecordBatchStreamAdapter::new(LedgerRow::schema(), futures::stream::iter(batches)))
    }
}
