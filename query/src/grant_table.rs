//! The table `grants`: of some ids, what the index finds; of all, every grant's events.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use tokio::sync::OnceCell;

use crate::grants::{GrantRow, Grants};
use crate::lookup::ids;
use crate::projection::{AsOf, Snapshot};
use crate::rows::Time;

/// The grants of one snapshot.
pub(crate) struct GrantTable {
    snapshot: Arc<Snapshot>,
    now: Time,
    /// All of them, once somebody asked: with how often each was used, and without.
    all: [OnceCell<RecordBatch>; 2],
}

impl GrantTable {
    pub(crate) fn new(snapshot: &Arc<Snapshot>, now: Time) -> Self {
        Self { snapshot: Arc::clone(snapshot), now, all: Default::default() }
    }

    /// Makes rows on a thread that may block.
    async fn make(
        &self,
        make: impl FnOnce(&Snapshot, Time) -> std::result::Result<RecordBatch, crate::Error> + Send + 'static,
    ) -> Result<RecordBatch> {
        let (snapshot, now) = (Arc::clone(&self.snapshot), self.now);
        let made = tokio::task::spawn_blocking(move || make(&snapshot, now)).await;
        let made = made.map_err(|e| DataFusionError::Execution(format!("the grants cannot be read: {e}")))?;
        made.map_err(|e| DataFusionError::External(Box::new(e)))
    }

    async fn all(&self, with_uses: bool) -> Result<RecordBatch> {
        let make = || {
            self.make(move |snapshot, now| {
                let of = if with_uses { Grants::of } else { Grants::without_uses };
                Ok(GrantRow::batch(of(snapshot, AsOf::Now, now)?.rows()))
            })
        };
        self.all[usize::from(with_uses)].get_or_try_init(make).await.cloned()
    }
}

impl fmt::Debug for GrantTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantTable").finish_non_exhaustive()
    }
}

/// The ids that the filters ask for, if they ask for some.
fn asked(filters: &[Expr]) -> Option<Vec<String>> {
    filters.iter().filter_map(ids).find(|(column, _)| *column == "grant_id").map(|(_, values)| values)
}

#[async_trait]
impl TableProvider for GrantTable {
    fn schema(&self) -> SchemaRef {
        GrantRow::schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Each row is looked at again above.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.schema();
        let uses = schema.index_of("uses")?;
        let batch = match asked(filters) {
            Some(ids) => {
                let near = move |snapshot: &Snapshot, now: Time| {
                    let ids: std::collections::BTreeSet<String> = ids.into_iter().collect();
                    let grants = Grants::near(snapshot, ids.iter().cloned(), AsOf::Now, now)?;
                    let rows = grants.rows().iter().filter(|row| ids.contains(&row.grant_id));
                    let rows: Vec<GrantRow> = rows.cloned().collect();
                    Ok(GrantRow::batch(&rows))
                };
                self.make(near).await?
            }
            None => self.all(projection.is_none_or(|columns| columns.contains(&uses))).await?,
        };
        MemTable::try_new(schema, vec![vec![batch]])?.scan(state, projection, &[], None).await
    }
}
