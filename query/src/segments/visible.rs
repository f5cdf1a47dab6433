//! The row filter as a step of every plan that reads rows: right above them, below all that a
//! query does.
//!
//! It is a barrier. No predicate of the query is pushed through it, so none is ever tried on a
//! hidden row: not by its error message, nor by its side effects, can a hidden value be read. For
//! the same reason no statistics come out of it. What the query filters by is used below only to
//! leave out files, row groups and pages, whose errors nobody sees.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, AsArray as _, BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DFSchema, DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties as _, Partitioning, PhysicalExpr,
    PlanProperties, ReplaceChildrenOptions, SendableRecordBatchStream,
};
use futures::StreamExt as _;

use crate::caller::RowFilter;

/// The columns that it looks at.
const COLUMNS: [&str; 2] = ["tenant", "workspace"];

/// Shows the rows of some tenants and workspaces.
#[derive(Debug)]
pub(super) struct VisibleExec {
    input: Arc<dyn ExecutionPlan>,
    rows: RowFilter,
    /// The columns of the input that come out.
    shown: usize,
    properties: Arc<PlanProperties>,
}

/// The columns to read for a projection: those, and behind them the ones to look at.
pub(super) fn widened(schema: &SchemaRef, projection: Option<&Vec<usize>>) -> Result<Vec<usize>> {
    let mut columns = projection.cloned().unwrap_or_else(|| (0..schema.fields().len()).collect());
    for name in COLUMNS {
        columns.push(schema.index_of(name)?);
    }
    Ok(columns)
}

/// What leaves out files, row groups and pages.
pub(super) fn pruning(
    state: &dyn Session,
    schema: &SchemaRef,
    rows: &RowFilter,
    filters: &[Expr],
) -> Result<Arc<dyn PhysicalExpr>> {
    let within = |name: &str, allowed: &Option<Arc<[String]>>| {
        allowed.as_ref().map(|allowed| match &allowed[..] {
            [] => lit(false),
            some => col(name).in_list(some.iter().map(|value| lit(value.as_str())).collect(), false),
        })
    };
    let own = [within(COLUMNS[0], &rows.tenants), within(COLUMNS[1], &rows.workspaces)];
    let own: Vec<Expr> = own.into_iter().flatten().collect();
    let schema = DFSchema::try_from(Arc::clone(schema))?;
    let both = conjunction(own.iter().chain(filters).cloned()).unwrap_or(lit(true));
    // A filter that cannot be planned here prunes nothing; it is looked at again above.
    state
        .create_physical_expr(both, &schema)
        .or_else(|_| state.create_physical_expr(conjunction(own).unwrap_or(lit(true)), &schema))
}

impl VisibleExec {
    /// Over a plan of [`widened`] columns.
    pub(super) fn new(input: Arc<dyn ExecutionPlan>, rows: RowFilter) -> Result<Self> {
        let shown = input.schema().fields().len().saturating_sub(COLUMNS.len());
        let schema = Arc::new(input.schema().project(&(0..shown).collect::<Vec<_>>())?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        Ok(Self { input, rows, shown, properties: Arc::new(properties) })
    }
}

/// The visible rows, without the columns that were only looked at.
fn visible(batch: &RecordBatch, rows: &RowFilter, shown: usize) -> Result<RecordBatch> {
    let missing = || DataFusionError::Internal("the columns tenant and workspace are not there".into());
    let [tenants, workspaces] = [shown, shown + 1].map(|i| batch.columns().get(i)?.as_string_opt::<i32>());
    let (tenants, workspaces) = tenants.zip(workspaces).ok_or_else(missing)?;
    let sees = |i: usize| {
        let value = |column: &'_ datafusion::arrow::array::StringArray| column.is_valid(i).then_some(i);
        rows.sees(value(tenants).map(|i| tenants.value(i)), value(workspaces).map(|i| workspaces.value(i)))
    };
    let mask: BooleanArray = (0..batch.num_rows()).map(|i| Some(sees(i))).collect();
    let kept = filter_record_batch(batch, &mask)?;
    Ok(kept.project(&(0..shown).collect::<Vec<_>>())?)
}

impl DisplayAs for VisibleExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VisibleExec")
    }
}

impl ExecutionPlan for VisibleExec {
    fn name(&self) -> &'static str {
        "VisibleExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    /// It does, but does not say so: a sort would be pushed through it.
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[_; 1]>::try_from(children)
            .map_err(|_| DataFusionError::Internal("rows are shown of one input".into()))?;
        Ok(Arc::new(Self::new(input, self.rows.clone())?))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        use datafusion::physical_plan::ChildrenPropertiesMode::Recompute;
        self.replace_children(children, ReplaceChildrenOptions::new(Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (rows, shown) = (self.rows.clone(), self.shown);
        let batches = self.input.execute(partition, context)?;
        let shown = batches.map(move |batch| visible(&batch?, &rows, shown));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), shown)))
    }
}
