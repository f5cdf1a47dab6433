//! The tables as SQL sees them: sealed rows by DataFusion's own Parquet source, and
//! the rows in memory beside them.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Result, ScalarValue, Statistics};
use datafusion::datasource::file_format::FileFormat as _;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

use super::visible::{VisibleExec, pruning, widened};
use super::{Place, Segment, SegmentFile, Table};
use crate::lookup;
use crate::projection::Snapshot;
use crate::text_views;

/// The files of a table, with the segments that they are of.
type Files<'a> = Vec<(&'a Segment, &'a SegmentFile)>;

/// One table over one snapshot.
#[derive(Debug)]
pub(crate) struct SealedTable {
    snapshot: Arc<Snapshot>,
    table: Table,
    /// Its columns; texts as rows in memory have them, or as views.
    schema: SchemaRef,
}

impl SealedTable {
    /// A table over a snapshot.
    pub(crate) fn new(snapshot: &Arc<Snapshot>, table: Table) -> Self {
        Self { snapshot: Arc::clone(snapshot), table, schema: table.schema() }
    }

    /// The same rows with their texts as views. Not for a caller who sees some rows: what hides the others
    /// looks at them as they are.
    pub(crate) fn as_views(&self) -> Option<Self> {
        let schema = text_views::viewed(&self.schema);
        self.snapshot.visible().is_open().then(|| Self {
            snapshot: Arc::clone(&self.snapshot),
            table: self.table,
            schema,
        })
    }

    /// Rows that are in memory.
    async fn in_memory(
        &self,
        state: &dyn Session,
        rows: Vec<Vec<RecordBatch>>,
        projection: Option<&Vec<usize>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let projected = |schema: &SchemaRef| match projection {
            Some(columns) => schema.project(columns).map(Arc::new),
            None => Ok(Arc::clone(schema)),
        };
        let (own, wanted) = (projected(&self.table.schema())?, projected(&self.schema)?);
        if own == wanted {
            return MemTable::try_new(self.table.schema(), rows)?.scan(state, projection, &[], limit).await;
        }
        // Only of what is read views are made: that costs 16 bytes a text, and copies none.
        let viewed = |batch: &RecordBatch| match projection {
            Some(columns) => text_views::retyped(&batch.project(columns)?, &wanted),
            None => text_views::retyped(batch, &wanted),
        };
        let rows = rows.iter().map(|batches| batches.iter().map(viewed).collect()).collect::<Result<Vec<Vec<_>>>>()?;
        MemTable::try_new(wanted, rows)?.scan(state, None, &[], limit).await
    }

    /// The files of the table, apart by place.
    fn files(&self) -> Vec<(&Arc<Place>, Files<'_>)> {
        let mut out: Vec<(&Arc<Place>, Files<'_>)> = Vec::new();
        for segment in self.snapshot.segments.iter() {
            let Some(file) = segment.file(self.table) else { continue };
            match out.iter_mut().find(|(place, _)| Arc::ptr_eq(place, &file.place)) {
                Some((_, files)) => files.push((segment, file)),
                None => out.push((&file.place, vec![(segment, file)])),
            }
        }
        out
    }

    /// What is known of a file without reading it: how many rows, and between which seqs.
    fn statistics(&self, from: u64, to: u64, rows: u64, bytes: u64) -> Statistics {
        let mut columns = vec![ColumnStatistics::new_unknown(); self.schema().fields().len()];
        if let Some(seq) = columns.first_mut() {
            seq.null_count = Precision::Exact(0);
            // Bounds, not the least and greatest seq that there are.
            seq.min_value = Precision::Inexact(ScalarValue::UInt64(Some(from)));
            seq.max_value = Precision::Inexact(ScalarValue::UInt64(Some(to.saturating_sub(1))));
        }
        Statistics {
            num_rows: Precision::Exact(rows as usize),
            total_byte_size: Precision::Inexact(bytes as usize),
            column_statistics: columns,
        }
    }

    async fn sealed(
        &self,
        state: &dyn Session,
        place: &Place,
        files: &Files<'_>,
        asked: (Option<&Vec<usize>>, &[Expr], Option<usize>),
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (projection, filters, limit) = asked;
        let (mut rows, mut bytes) = (0, 0);
        let mut group = Vec::new();
        for (segment, file) in files {
            let known = self.statistics(segment.from, segment.to, file.entry.rows, file.entry.bytes);
            let one = PartitionedFile::new(file.entry.path.as_str(), file.entry.bytes);
            group.push(one.with_statistics(Arc::new(known)));
            rows += file.entry.rows;
            bytes += file.entry.bytes;
        }
        let (from, to) = (files.first().map_or(0, |f| f.0.from), files.last().map_or(0, |f| f.0.to));
        let groups = FileGroup::new(group).split_files(state.config().target_partitions());
        let mut source =
            ParquetSource::new(self.schema()).with_table_parquet_options(state.table_options().parquet.clone());
        let visible = self.snapshot.visible();
        source = match visible.is_open() {
            true => source.with_pushdown_filters(is_lookup(self.table, filters)),
            // Only to leave out row groups: nothing of the query is tried on a row that may be hidden.
            false => {
                source.with_pushdown_filters(false).with_predicate(pruning(state, &self.schema(), visible, filters)?)
            }
        };
        let mut known = self.statistics(from, to, rows, bytes);
        if let Some(left) = left(files, filters) {
            // By this it is decided which side of a join is held in memory.
            let share = left as f64 / (rows as f64).max(1.0);
            known.num_rows = Precision::Inexact(left as usize);
            known.total_byte_size = Precision::Inexact((bytes as f64 * share) as usize);
        }
        let config = FileScanConfigBuilder::new(place.url().clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(known)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        ParquetFormat::default().create_physical_plan(state, config).await
    }
}

/// How many rows filters by kind leave, if the files say how many there are of each.
fn left(files: &Files<'_>, filters: &[Expr]) -> Option<u64> {
    let kinds = filters.iter().filter_map(lookup::ids).find(|(column, _)| *column == "kind").map(|(_, kinds)| kinds)?;
    files.iter().try_fold(0, |sum, (_, file)| {
        let counts = Some(&file.entry.kinds).filter(|counts| !counts.is_empty())?;
        Some(sum + kinds.iter().filter_map(|kind| counts.get(kind)).sum::<u64>())
    })
}

/// Whether few rows are looked for by their id or seq. Then it pays to test those columns
/// before the others are read; for aggregates it costs more than it saves.
fn is_lookup(table: Table, filters: &[Expr]) -> bool {
    let is_id = |expr: &Expr| match expr {
        Expr::Column(column) => column.name == "seq" || table.bloomed().contains(&column.name.as_str()),
        _ => false,
    };
    filters.iter().any(|filter| match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => is_id(left) || is_id(right),
        Expr::InList(list) => !list.negated && is_id(&list.expr),
        _ => false,
    })
}

#[async_trait]
impl TableProvider for SealedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Filters leave out files, row groups and pages; each row is looked at again above.
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
        let rows = self.snapshot.visible();
        if let Some(rows) = lookup::few(&self.snapshot, self.table, filters).await? {
            return self.in_memory(state, vec![vec![rows]], projection, limit).await;
        }
        let columns = if rows.is_open() { None } else { Some(widened(&self.schema(), projection)?) };
        // A limit counts visible rows.
        let limit = limit.filter(|_| rows.is_open());
        let projection = columns.as_ref().or(projection);
        let mut plans = Vec::new();
        for (place, files) in self.files() {
            plans.push(self.sealed(state, place, &files, (projection, filters, limit)).await?);
        }
        let in_memory: Vec<_> = self.snapshot.in_memory().map(|tail| tail.of(self.table).to_vec()).collect();
        if plans.is_empty() || in_memory.iter().any(|batches| !batches.is_empty()) {
            plans.push(self.in_memory(state, in_memory, projection, limit).await?);
        }
        let plan = UnionExec::try_new(plans)?;
        Ok(if rows.is_open() { plan } else { Arc::new(VisibleExec::new(plan, rows.clone())?) })
    }
}
