//! Reading rows of a snapshot outside of SQL: sealed ones and those in memory alike, in
//! seq order, a batch at a time, and only the columns and row groups that are needed.
//!
//! It blocks: call it where blocking is allowed.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, BooleanArray, StringArray, UInt64Array};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::parquet::arrow::ParquetRecordBatchStreamBuilder;
use datafusion::parquet::arrow::ProjectionMask;
use datafusion::parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use datafusion::parquet::arrow::arrow_reader::{ArrowPredicate, ArrowPredicateFn, ArrowReaderOptions, RowFilter};
use datafusion::parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStream};
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::metadata::PageIndexPolicy;
use futures::StreamExt as _;

use super::place::failed;
use super::{SegmentFile, Table};
use crate::Error;
use crate::caller;
use crate::event::EventRow;
use crate::projection::{AsOf, Snapshot};

/// Rows of a batch, at most.
const BATCH_ROWS: u64 = 4096;

/// Bytes of a batch, about; rows with large contents come in smaller batches.
const BATCH_BYTES: u64 = 8 << 20;

/// Bloom filters are asked for up to this many values.
const BLOOM_VALUES_MAX: usize = 32;

type Builder = ParquetRecordBatchStreamBuilder<Box<dyn AsyncFileReader>>;
type Stream = ParquetRecordBatchStream<Box<dyn AsyncFileReader>>;

/// Which rows and columns are wanted.
#[derive(Clone)]
pub(crate) struct Wanted<'a> {
    table: Table,
    /// Names in the table's order; none for all.
    columns: &'a [&'a str],
    seqs: Range<u64>,
    only: Option<(&'a str, Arc<HashSet<String>>)>,
    /// What the snapshot shows at all.
    shown: Vec<(&'a str, Arc<HashSet<String>>)>,
    at: Option<Arc<BTreeSet<u64>>>,
}

impl<'a> Wanted<'a> {
    /// All rows of a table.
    pub(crate) fn all(table: Table) -> Self {
        Self { table, columns: &[], seqs: 0..u64::MAX, only: None, shown: Vec::new(), at: None }
    }

    /// Only some columns, which are named in the table's order.
    pub(crate) fn columns(mut self, columns: &'a [&'a str]) -> Self {
        self.columns = columns;
        self
    }

    /// Only rows of seqs in a range.
    pub(crate) fn seqs(mut self, seqs: Range<u64>) -> Self {
        self.seqs = seqs;
        self
    }

    /// Only rows that may have been known by then; the caller looks at each again.
    pub(crate) fn known_by(self, as_of: AsOf) -> Self {
        match as_of {
            AsOf::Seq(last) => self.seqs(0..last.saturating_add(1)),
            AsOf::Now | AsOf::Time(_) => self,
        }
    }

    /// Only rows whose text in a column is one of these.
    pub(crate) fn only<S: Into<String>>(mut self, column: &'a str, values: impl IntoIterator<Item = S>) -> Self {
        self.only = Some((column, Arc::new(values.into_iter().map(Into::into).collect())));
        self
    }

    /// Only rows of these seqs.
    pub(crate) fn at(mut self, seqs: &BTreeSet<u64>) -> Self {
        let range = seqs.first().copied().unwrap_or(0)..seqs.last().map_or(0, |last| last.saturating_add(1));
        self.at = Some(Arc::new(seqs.clone()));
        self.seqs(range)
    }

    /// Only rows that the filter lets through.
    fn shown(mut self, rows: &caller::RowFilter) -> Self {
        for (column, allowed) in [("tenant", &rows.tenants), ("workspace", &rows.workspaces)] {
            let allowed = allowed.as_ref().map(|allowed| allowed.iter().cloned().collect());
            self.shown.extend(allowed.map(|allowed| (column, Arc::new(allowed))));
        }
        self
    }

    /// The columns of text that are looked at, and what of them is wanted.
    fn texts(&self) -> impl Iterator<Item = &(&'a str, Arc<HashSet<String>>)> {
        self.only.iter().chain(&self.shown)
    }

    fn wants(&self, seq: u64) -> bool {
        self.seqs.contains(&seq) && self.at.as_ref().is_none_or(|at| at.contains(&seq))
    }

    /// Whether it can want anything of a range.
    fn touches(&self, range: Range<u64>) -> bool {
        let is_empty = self.texts().any(|(_, values)| values.is_empty());
        let (start, end) = (range.start.max(self.seqs.start), range.end.min(self.seqs.end));
        !is_empty && start < end && self.at.as_ref().is_none_or(|at| at.range(start..end).next().is_some())
    }

    /// The wanted rows and columns of a batch in memory.
    fn of_batch(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let seqs = seq_mask(batch.column(0).as_ref(), |seq| self.wants(seq));
        let mut found = filter_record_batch(batch, &seqs)?;
        for (column, values) in self.texts() {
            let texts = found.column_by_name(column);
            let texts = texts.ok_or_else(|| ArrowError::SchemaError(format!("there is no column {column}")))?;
            let mask = text_mask(texts.as_ref(), values);
            found = filter_record_batch(&found, &mask)?;
        }
        if self.columns.is_empty() {
            return Ok(found);
        }
        let schema = found.schema();
        let indexes = self.columns.iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>()?;
        found.project(&indexes)
    }

    /// Tests that a file's rows must pass before other columns are read.
    fn filters(&self, builder: &Builder, file: &Range<u64>) -> Vec<Box<dyn ArrowPredicate>> {
        let mut filters: Vec<Box<dyn ArrowPredicate>> = Vec::new();
        let mask = |name: &str| ProjectionMask::columns(builder.parquet_schema(), [name]);
        if self.at.is_some() || self.seqs.start > file.start || self.seqs.end < file.end {
            let (seqs, at) = (self.seqs.clone(), self.at.clone());
            let wants = move |seq| seqs.contains(&seq) && at.as_ref().is_none_or(|at| at.contains(&seq));
            let test = move |batch: RecordBatch| Ok(seq_mask(batch.column(0).as_ref(), &wants));
            filters.push(Box::new(ArrowPredicateFn::new(mask("seq"), test)));
        }
        for (column, values) in self.texts() {
            let values = Arc::clone(values);
            let test = move |batch: RecordBatch| Ok(text_mask(batch.column(0).as_ref(), &values));
            filters.push(Box::new(ArrowPredicateFn::new(mask(column), test)));
        }
        filters
    }

    /// The row groups that may have wanted rows, by statistics and bloom filters.
    async fn row_groups(&self, builder: &mut Builder) -> Result<Vec<usize>, ParquetError> {
        let metadata = Arc::clone(builder.metadata());
        let schema = Arc::clone(builder.schema());
        let leaves = builder.parquet_schema().clone();
        let groups = metadata.row_groups();
        let seq = StatisticsConverter::try_new("seq", &schema, &leaves)?;
        let (first, last) = (seq.row_group_mins(groups)?, seq.row_group_maxes(groups)?);
        let bound = |bounds: &dyn datafusion::arrow::array::Array, i: usize, default| {
            let bounds = bounds.as_any().downcast_ref::<UInt64Array>().filter(|b| b.is_valid(i));
            bounds.map_or(default, |b| b.value(i))
        };
        let touched = |i: &usize| self.touches(bound(&first, *i, 0)..bound(&last, *i, u64::MAX - 1) + 1);
        let mut kept: Vec<usize> = (0..groups.len()).filter(touched).collect();
        for (column, values) in self.texts() {
            let texts = StatisticsConverter::try_new(column, &schema, &leaves)?;
            let (low, high) = (texts.row_group_mins(groups)?, texts.row_group_maxes(groups)?);
            let (low, high) = (low.as_any().downcast_ref::<StringArray>(), high.as_any().downcast_ref::<StringArray>());
            if let (Some(low), Some(high)) = (low, high) {
                let may = |i: usize, value: &str| {
                    (low.is_null(i) || low.value(i) <= value) && (high.is_null(i) || value <= high.value(i))
                };
                kept.retain(|&i| values.iter().any(|value| may(i, value)));
            }
        }
        let Some((column, values)) = &self.only else { return Ok(kept) };
        let texts = StatisticsConverter::try_new(column, &schema, &leaves)?;
        let Some(leaf) = texts.parquet_column_index() else { return Ok(kept) };
        if !self.table.bloomed().contains(column) || values.len() > BLOOM_VALUES_MAX {
            return Ok(kept);
        }
        let mut out = Vec::new();
        for i in kept {
            let bloom = builder.get_row_group_column_bloom_filter(i, leaf).await?;
            if bloom.is_none_or(|bloom| values.iter().any(|value| bloom.check(value.as_str()))) {
                out.push(i);
            }
        }
        Ok(out)
    }
}

fn seq_mask(column: &dyn datafusion::arrow::array::Array, wants: impl Fn(u64) -> bool) -> BooleanArray {
    let seqs = column.as_any().downcast_ref::<UInt64Array>();
    seqs.into_iter().flat_map(|seqs| seqs.values().iter()).map(|seq| Some(wants(*seq))).collect()
}

fn text_mask(column: &dyn datafusion::arrow::array::Array, values: &HashSet<String>) -> BooleanArray {
    let texts = column.as_any().downcast_ref::<StringArray>();
    texts.into_iter().flatten().map(|text| Some(text.is_some_and(|text| values.contains(text)))).collect()
}

/// What an error in a segment file means to whoever asked.
fn unreadable(file: &SegmentFile, error: impl std::fmt::Display) -> Error {
    Error::segment(&format!("the segment file {}", file.entry.path), error)
}

impl SegmentFile {
    /// The wanted rows; `None` if the footer says that there are none.
    async fn stream(&self, wanted: &Wanted<'_>, range: Range<u64>) -> Result<Option<Stream>, Error> {
        let fail = |e: ParquetError| unreadable(self, e);
        let reader = self.place.reader(&self.entry.path, self.entry.bytes)?;
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let mut builder = Builder::new_with_options(reader, options).await.map_err(fail)?;
        let groups = wanted.row_groups(&mut builder).await.map_err(fail)?;
        if groups.is_empty() {
            return Ok(None);
        }
        let bytes: i64 = builder.metadata().row_groups().iter().map(|group| group.total_byte_size()).sum();
        let row_bytes = (bytes.unsigned_abs() / self.entry.rows.max(1)).max(1);
        let rows = (BATCH_BYTES / row_bytes).clamp(1, BATCH_ROWS) as usize;
        let mask = match wanted.columns {
            [] => ProjectionMask::all(),
            names => ProjectionMask::columns(builder.parquet_schema(), names.iter().copied()),
        };
        let filters = wanted.filters(&builder, &range);
        let builder = builder.with_row_groups(groups).with_batch_size(rows).with_projection(mask);
        builder.with_row_filter(RowFilter::new(filters)).build().map(Some).map_err(fail)
    }

    /// Reads wanted rows, a batch at a time, until `each` says that it is enough.
    pub(super) async fn read(
        &self,
        wanted: &Wanted<'_>,
        range: Range<u64>,
        mut each: impl AsyncFnMut(RecordBatch) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let Some(mut stream) = self.stream(wanted, range).await? else { return Ok(true) };
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(|e| unreadable(self, e))?;
            if batch.num_rows() > 0 && !each(batch).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Snapshot {
    /// Reads wanted rows in seq order, a batch at a time, until `each` says that it is enough.
    pub(crate) fn read(
        &self,
        wanted: &Wanted<'_>,
        mut each: impl FnMut(&RecordBatch) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let wanted = &wanted.clone().shown(self.visible());
        for segment in self.segments.iter().filter(|s| wanted.touches(s.from..s.to)) {
            let Some(file) = segment.file(wanted.table) else { continue };
            let each = async |batch: RecordBatch| each(&batch);
            if !file.place.wait(file.read(wanted, segment.from..segment.to, each))? {
                return Ok(());
            }
        }
        for tail in self.in_memory().filter(|tail| wanted.touches(tail.from..tail.to)) {
            for batch in tail.of(wanted.table) {
                let found = wanted.of_batch(batch).map_err(|e| failed("rows cannot be read", e))?;
                if found.num_rows() > 0 && !each(&found)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Events, read back as rows.
    fn events(&self, wanted: &Wanted<'_>, as_of: AsOf) -> Result<Vec<EventRow>, Error> {
        let mut out = Vec::new();
        self.read(wanted, |batch| {
            out.extend(EventRow::read(batch).into_iter().filter(|e| as_of.holds(e.seq, e.ingest_time)));
            Ok(true)
        })?;
        Ok(out)
    }

    /// The events of some kinds.
    pub(crate) fn events_of(&self, kinds: &[&str], as_of: AsOf) -> Result<Vec<EventRow>, Error> {
        self.events_where("kind", kinds.iter().copied(), as_of)
    }

    /// The events whose text in a column is one of these.
    pub(crate) fn events_where<S: Into<String>>(
        &self,
        column: &str,
        values: impl IntoIterator<Item = S>,
        as_of: AsOf,
    ) -> Result<Vec<EventRow>, Error> {
        self.events(&Wanted::all(Table::Events).known_by(as_of).only(column, values), as_of)
    }

    /// The same, of those from a seq on.
    pub(crate) fn events_since<S: Into<String>>(
        &self,
        column: &str,
        values: impl IntoIterator<Item = S>,
        from: u64,
        as_of: AsOf,
    ) -> Result<Vec<EventRow>, Error> {
        let end = if let AsOf::Seq(last) = as_of { last.saturating_add(1) } else { u64::MAX };
        self.events(&Wanted::all(Table::Events).only(column, values).seqs(from..end), as_of)
    }

    /// The events of some seqs.
    pub(crate) fn events_at(&self, seqs: &BTreeSet<u64>) -> Result<Vec<EventRow>, Error> {
        self.events(&Wanted::all(Table::Events).at(seqs), AsOf::Now)
    }
}
