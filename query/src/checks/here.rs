//! The rows that one run of the rules is about, for plans that are made once. A plan names its tables; which rows
//! those have is said with each run, and of a table only the columns that some plan reads are made.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use custody_store::system::SeqSet;
use datafusion::arrow::array::{ArrayRef, AsArray as _, BooleanArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::{SchemaRef, UInt64Type};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::source_as_provider;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableScan, TableType};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties, ReplaceChildrenOptions,
    SendableRecordBatchStream,
};
use futures::StreamExt as _;

use super::run::Tables;
use super::spared::Hidden;

/// The table of events.
const EVENTS: &str = "events";

/// Columns of `events` that some plan reads, by place.
pub(super) type Used = Arc<Mutex<BTreeSet<usize>>>;

/// A table whose rows come with each run.
#[derive(Clone, Debug)]
pub(super) struct Here {
    pub(super) name: &'static str,
    pub(super) schema: SchemaRef,
    pub(super) used: Used,
}

impl Here {
    /// The table of a scan, if it is one of these.
    pub(super) fn of(scan: &TableScan) -> Option<Self> {
        source_as_provider(&scan.source).ok()?.downcast_ref::<Self>().cloned()
    }

    pub(super) fn is_events(&self) -> bool {
        self.name == EVENTS
    }

    /// The same with further columns.
    pub(super) fn with_schema(self, schema: SchemaRef) -> Self {
        Self { schema, ..self }
    }
}

#[async_trait]
impl TableProvider for Here {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        // A run over everything has tables of its own, which look for what the filters say.
        if let Some(tables) = state.config().get_extension::<Tables>() {
            return tables.get(self.name)?.scan(state, projection, filters, limit).await;
        }
        let columns = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        if self.is_events() {
            self.used.lock().unwrap_or_else(PoisonError::into_inner).extend(&columns);
        }
        Ok(Arc::new(HereExec::new(self.name, &self.schema, columns)?))
    }
}

/// Some columns of the rows of one table.
pub(super) enum Rows {
    /// Each column, where it was made.
    Columns { columns: Vec<Option<ArrayRef>>, rows: usize },
    /// Read as they are asked for.
    Read(Arc<dyn PartitionStream>),
}

impl From<RecordBatch> for Rows {
    fn from(batch: RecordBatch) -> Self {
        let rows = batch.num_rows();
        Self::Columns { columns: batch.columns().iter().cloned().map(Some).collect(), rows }
    }
}

/// The tables of one run.
#[derive(Default)]
pub(crate) struct Touched(HashMap<&'static str, Vec<Rows>>);

impl Touched {
    /// Puts the rows of a table in.
    pub(super) fn put(&mut self, table: &'static str, rows: Vec<Rows>) {
        self.0.insert(table, rows);
    }

    /// The records whose events there are.
    pub(super) fn events(&self) -> SeqSet {
        let rows = self.0.get(EVENTS).into_iter().flatten();
        let seqs = rows.filter_map(|rows| match rows {
            Rows::Columns { columns, .. } => Some(seqs_of(columns.first()?.as_ref()?).to_vec()),
            Rows::Read(_) => None,
        });
        SeqSet::of_seqs(seqs.flatten())
    }
}

/// The seqs of a column of them.
fn seqs_of(column: &ArrayRef) -> &[u64] {
    column.as_primitive_opt::<UInt64Type>().map_or(&[], |seqs| seqs.values())
}

/// Gives the rows of the run that it is part of.
#[derive(Debug)]
struct HereExec {
    table: &'static str,
    columns: Vec<usize>,
    properties: Arc<PlanProperties>,
}

impl HereExec {
    fn new(table: &'static str, schema: &SchemaRef, columns: Vec<usize>) -> Result<Self> {
        let schema = Arc::new(schema.project(&columns)?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Self { table, columns, properties: Arc::new(properties) })
    }

    fn internal(&self, what: &str) -> DataFusionError {
        DataFusionError::Internal(format!("{} {what}", self.table))
    }

    /// The batches of some rows, none larger than a batch is to be.
    fn batches(
        &self,
        columns: &[Option<ArrayRef>],
        rows: usize,
        size: usize,
        hidden: Option<&Hidden>,
    ) -> Result<Vec<RecordBatch>> {
        let own: Option<Vec<ArrayRef>> = self.columns.iter().map(|at| columns.get(*at)?.clone()).collect();
        let own = own.ok_or_else(|| self.internal("has a column that was not made"))?;
        // Of no columns there can be rows, too.
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let mut batch = RecordBatch::try_new_with_options(self.schema(), own, &options)?;
        if let (Some(Hidden(hidden)), EVENTS, Some(Some(seqs))) = (hidden, self.table, columns.first()) {
            let shown: BooleanArray = seqs_of(seqs).iter().map(|seq| Some(!hidden.contains(*seq))).collect();
            batch = filter_record_batch(&batch, &shown)?;
        }
        let rows = batch.num_rows();
        Ok((0..rows).step_by(size.max(1)).map(|at| batch.slice(at, size.min(rows - at))).collect())
    }
}

impl DisplayAs for HereExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HereExec: {}", self.table)
    }
}

impl ExecutionPlan for HereExec {
    fn name(&self) -> &'static str {
        "HereExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let touched = context.session_config().get_extension::<Touched>();
        let rows = touched.as_ref().and_then(|touched| touched.0.get(self.table));
        let rows = rows.ok_or_else(|| self.internal("has no rows in this run"))?;
        let hidden = context.session_config().get_extension::<Hidden>();
        let (mut batches, mut read) = (Vec::new(), Vec::new());
        for rows in rows {
            match rows {
                Rows::Columns { columns, rows } => {
                    let size = context.session_config().batch_size();
                    batches.extend(self.batches(columns, *rows, size, hidden.as_deref())?);
                }
                Rows::Read(source) => read.push(source.execute(Arc::clone(&context))),
            }
        }
        let columns = self.columns.clone();
        let read = futures::stream::iter(read).flatten().map(move |batch| Ok(batch?.project(&columns)?));
        let all = futures::stream::iter(batches).map(Ok).chain(read);
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), all)))
    }
}
