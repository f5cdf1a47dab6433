//! The table `spans` over the rows of all span records: a span that was running when it was
//! recorded is not shown any more once its sender has sent it finished. Both stay in `ledger`.
//!
//! Only what the same sender says hides a row: with the ids of somebody else's span nobody
//! can take it out of sight. Nothing is kept for this: running spans are looked for when
//! `spans` is read, which costs little where there are none (segments know it of themselves).

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{Array as _, AsArray as _, BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::{SchemaRef, UInt64Type};
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, TableProviderFilterPushDown, TableType, col, lit};
use datafusion::physical_plan::{ExecutionPlan, collect};
use tokio::sync::OnceCell;

use crate::lookup;
use crate::projection::Snapshot;
use crate::segments::{SealedTable, Table};
use crate::text_views;

/// The rows of all span records, without those that were superseded.
pub(crate) struct Spans {
    records: Arc<dyn TableProvider>,
    /// The same, as they are shown: with their texts as views, where a query is run so.
    shown: Arc<dyn TableProvider>,
    /// Where few traces are looked up; without one all is read from the records.
    snapshot: Option<Arc<Snapshot>>,
    superseded: Arc<OnceCell<Vec<u64>>>,
}

impl Spans {
    /// Over the rows of all span records of one snapshot.
    pub(crate) fn new(records: Arc<dyn TableProvider>, snapshot: &Arc<Snapshot>) -> Self {
        Self { snapshot: Some(Arc::clone(snapshot)), ..Self::of_some(records) }
    }

    /// Over some of the records: those that were there at one point.
    pub(crate) fn of_some(records: Arc<dyn TableProvider>) -> Self {
        Self { shown: Arc::clone(&records), records, snapshot: None, superseded: Arc::default() }
    }

    /// The same rows with their texts as views.
    pub(crate) fn as_views(&self) -> Option<Self> {
        let shown = self.records.downcast_ref::<SealedTable>()?.as_views()?;
        Some(Self {
            records: Arc::clone(&self.records),
            shown: Arc::new(shown),
            snapshot: self.snapshot.clone(),
            superseded: Arc::clone(&self.superseded),
        })
    }

    /// The spans of few traces, which the log's own index finds: no segment is opened.
    async fn of_traces(&self, filters: &[Expr]) -> Result<Option<RecordBatch>> {
        let Some(snapshot) = &self.snapshot else { return Ok(None) };
        let found = lookup::few(snapshot, Table::Spans, filters).await?;
        found.map(|batch| text_views::retyped(&current(&batch)?, &self.schema())).transpose()
    }

    fn plan(&self) -> Result<LogicalPlanBuilder> {
        scan_of(&self.records)
    }

    /// Seqs of running spans that came finished, too.
    async fn superseded(&self, state: &dyn Session) -> Result<Vec<u64>> {
        let running = self.plan()?.filter(col("end_time").is_null())?;
        let running = rows(state, running.project(["seq", "trace_id", "span_id", "submitter"].map(col))?).await?;
        if running.iter().all(|batch| batch.num_rows() == 0) {
            return Ok(Vec::new());
        }
        let finished = self.plan()?.filter(col("end_time").is_not_null())?;
        // Of few traces the segments' filters find the rows; of many the ids are read once.
        let traces: HashSet<&str> =
            running.iter().flat_map(|batch| batch.column(1).as_string::<i32>()).flatten().collect();
        let finished = match traces.len() <= TRACES_LISTED_MAX {
            true => finished.filter(col("trace_id").in_list(traces.into_iter().map(lit).collect(), false))?,
            false => finished,
        };
        let running_rows = self.plan()?.filter(col("end_time").is_null())?.alias("running")?;
        let keys = ["trace_id", "span_id", "submitter"];
        let finished = finished.project(keys.map(col))?.alias("finished")?.build()?;
        let joined = running_rows.join(
            finished,
            datafusion::logical_expr::JoinType::LeftSemi,
            (keys.map(|k| format!("running.{k}")).to_vec(), keys.map(|k| format!("finished.{k}")).to_vec()),
            None,
        )?;
        let found = rows(state, joined.project([col("seq")])?).await?;
        let mut seqs: Vec<u64> =
            found.iter().flat_map(|batch| batch.column(0).as_primitive::<UInt64Type>().values().to_vec()).collect();
        seqs.sort_unstable();
        Ok(seqs)
    }
}

fn scan_of(records: &Arc<dyn TableProvider>) -> Result<LogicalPlanBuilder> {
    LogicalPlanBuilder::scan("spans", provider_as_source(Arc::clone(records)), None)
}

/// All versions of some spans, without the running ones that came finished, too.
fn current(batch: &RecordBatch) -> Result<RecordBatch> {
    let [trace, span, submitter] = ["trace_id", "span_id", "submitter"].map(|name| batch.column_by_name(name));
    let (Some(trace), Some(span), Some(submitter)) = (trace, span, submitter) else { return Ok(batch.clone()) };
    let Some(end) = batch.column_by_name("end_time").filter(|end| end.null_count() > 0) else {
        return Ok(batch.clone());
    };
    let texts = [trace, span, submitter].map(|column| column.as_string::<i32>());
    let key = |i: usize| texts.map(|column| column.is_valid(i).then(|| column.value(i)));
    let finished: HashSet<_> = (0..batch.num_rows()).filter(|&i| end.is_valid(i)).map(key).collect();
    let kept: BooleanArray =
        (0..batch.num_rows()).map(|i| Some(end.is_valid(i) || !finished.contains(&key(i)))).collect();
    Ok(filter_record_batch(batch, &kept)?)
}

/// With more traces than this that have running spans, a list of them prunes nothing.
const TRACES_LISTED_MAX: usize = 1000;

async fn rows(state: &dyn Session, plan: LogicalPlanBuilder) -> Result<Vec<RecordBatch>> {
    let plan = state.create_physical_plan(&plan.build()?).await?;
    collect(plan, state.task_ctx()).await
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spans").finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for Spans {
    fn schema(&self) -> SchemaRef {
        self.shown.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// As the records themselves: what they filter exactly, [`Self::scan`] filters too.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        self.records.supports_filters_pushdown(filters)
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(batch) = self.of_traces(filters).await? {
            return MemTable::try_new(self.schema(), vec![vec![batch]])?.scan(state, projection, &[], limit).await;
        }
        let superseded = self.superseded.get_or_try_init(|| self.superseded(state)).await?;
        if superseded.is_empty() {
            return self.shown.scan(state, projection, filters, limit).await;
        }
        let hidden = col("seq").in_list(superseded.iter().map(|seq| lit(*seq)).collect(), true);
        let mut plan = scan_of(&self.shown)?.filter(hidden)?;
        for filter in filters {
            plan = plan.filter(filter.clone())?;
        }
        if let Some(columns) = projection {
            let schema = self.schema();
            plan = plan.project(
                columns.iter().map(|&i| Expr::from(datafusion::common::Column::from_name(schema.field(i).name()))),
            )?;
        }
        let plan = plan.limit(0, limit)?.build()?;
        state.create_physical_plan(&plan).await
    }
}
