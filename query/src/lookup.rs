//! Few rows, made from the log itself: the log finds the records of a trace, the index those
//! of a grant or an agent, and their rows are mapped from their blocks again. No segment
//! is opened for them, and none need be sealed. For a caller who may see some rows they only say
//! where to look: the rows are read off those that he may see.
//!
//! It blocks: call it where blocking is allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use custody_store::{Block, Reader};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use datafusion::scalar::ScalarValue;

use crate::Error;
use crate::event::EventRow;
use crate::ids::{Finder, Kind, Posting};
use crate::projection::{AsOf, Rows, Snapshot};
use crate::rows::{Cell, Time};
use crate::segments::{Table, Wanted};

/// More records than this are read from segments: a block for each costs more than columns.
pub(crate) const RECORDS_MAX: usize = 4096;

/// Bytes of records that are made into rows at once.
const BYTES_MAX: usize = 64 << 20;

/// Bytes of blocks that are kept for the next record.
const BLOCKS_BYTES_MAX: usize = 32 << 20;

/// Ids in a filter, at most; with more, segments are read.
const VALUES_MAX: usize = 32;

/// The log behind a snapshot; without one, everything is read from rows.
#[derive(Clone, Default)]
pub(crate) struct Log(pub(crate) Option<Reader>);

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Log" } else { "no log" })
    }
}

/// Blocks that were read, by their first seq.
pub(crate) struct Blocks<'a> {
    reader: &'a Reader,
    kept: BTreeMap<u64, Block>,
    bytes: usize,
}

impl<'a> Blocks<'a> {
    pub(crate) fn new(reader: &'a Reader) -> Self {
        Self { reader, kept: BTreeMap::new(), bytes: 0 }
    }

    /// The block of a record.
    fn of(&mut self, seq: u64) -> Result<&Block, Error> {
        let kept = self.kept.range(..=seq).next_back().filter(|(_, block)| seq < block.commitments.end_seq());
        let first = match kept {
            Some((first, _)) => *first,
            None => {
                let block = self.reader.block_at(seq).map_err(Error::store)?;
                let block = block.ok_or_else(|| Error::internal("the log has no such record"))?;
                let bytes = block.content.as_ref().map_or(0, |content| content.payload().len());
                if self.bytes + bytes > BLOCKS_BYTES_MAX {
                    self.kept.clear();
                    self.bytes = 0;
                }
                self.bytes += bytes;
                let first = block.commitments.first_seq;
                self.kept.insert(first, block);
                first
            }
        };
        self.kept.get(&first).ok_or_else(|| Error::internal("a block that was just read"))
    }

    /// The rows of some records, in the order of their seqs; `None` if they are too large to
    /// be held at once.
    pub(crate) fn rows(&mut self, table: Table, seqs: &[u64]) -> Result<Option<RecordBatch>, Error> {
        let (mut rows, mut bytes, mut at) = (Rows::of(table), 0, 0);
        while let Some(&seq) = seqs.get(at) {
            let block = self.of(seq)?;
            let (first, end) = (block.commitments.first_seq, block.commitments.end_seq());
            let length = seqs[at..].partition_point(|seq| *seq < end);
            let wanted = &seqs[at..at + length];
            if let Some(content) = &block.content {
                bytes += wanted.iter().map(|seq| content.record((seq - first) as usize).len()).sum::<usize>();
                if bytes > BYTES_MAX {
                    return Ok(None);
                }
            }
            rows.records(block, wanted.iter().map(|seq| (seq - first) as usize));
            at += length;
        }
        Ok(Some(rows.take(table)))
    }
}

impl Snapshot {
    /// Records below this seq were known. Ingest times never run backwards in a log.
    pub(crate) fn end_of(&self, as_of: AsOf) -> Result<u64, Error> {
        let last = match as_of {
            AsOf::Now => return Ok(self.size),
            AsOf::Seq(last) => return Ok(self.size.min(last.saturating_add(1))),
            AsOf::Time(last) => last,
        };
        if let Some(beneath) = &self.beneath {
            return beneath.end_of(as_of);
        }
        let Some(reader) = &self.log.0 else { return self.end_by_rows(last) };
        let (mut low, mut high) = (0, self.size);
        while low < high {
            let middle = low + (high - low) / 2;
            let found = reader.commitments_at(middle).map_err(Error::store)?;
            let found = found.ok_or_else(|| Error::internal("the log has no such record"))?;
            match i64::try_from(found.ingest_time).unwrap_or(i64::MAX) <= last.0 {
                true => low = found.end_seq(),
                false => high = found.first_seq,
            }
        }
        Ok(low.min(self.size))
    }

    /// What the time was then: it decides what had expired. As of a seq that is when its record was taken.
    pub(crate) fn clock(&self, as_of: AsOf, now: Time) -> Result<Time, Error> {
        if let Some(beneath) = &self.beneath {
            return beneath.clock(as_of, now);
        }
        let then = match (as_of, &self.log.0) {
            (AsOf::Time(then), _) => then,
            (AsOf::Seq(seq), Some(reader)) => match reader.commitments_at(seq).map_err(Error::store)? {
                Some(found) => Time(i64::try_from(found.ingest_time).unwrap_or(i64::MAX)),
                None => now,
            },
            _ => now,
        };
        Ok(then.min(now))
    }

    fn end_by_rows(&self, last: Time) -> Result<u64, Error> {
        let mut end = 0;
        self.read(&Wanted::all(Table::Events).columns(&["seq", "ingest_time"]), |batch| {
            let known = |&i: &usize| <Time as Cell>::read(batch.column(1), i) <= last;
            let seqs = (0..batch.num_rows()).filter(known).map(|i| <u64 as Cell>::read(batch.column(0), i));
            end = seqs.max().map_or(end, |seq| end.max(seq + 1));
            Ok(true)
        })?;
        Ok(end)
    }

    /// The seqs of a trace's spans and logs below `end`; `None` if this must be asked of the rows.
    pub(crate) fn trace_seqs(&self, trace_id: &str, end: u64) -> Result<Option<Vec<u64>>, Error> {
        if let Some(beneath) = &self.beneath {
            let Some(all) = beneath.trace_seqs(trace_id, end)? else { return Ok(None) };
            let shown = self.shown_among(&[Table::Spans, Table::Logs, Table::Events], all.iter().copied().collect())?;
            return Ok(Some(shown.into_iter().collect()));
        }
        let mut id = [0; 16];
        let (Some(reader), Ok(())) = (&self.log.0, const_hex::decode_to_slice(trace_id, &mut id)) else {
            return Ok(None);
        };
        let mut seqs = reader.trace(&id).map_err(Error::store)?;
        seqs.retain(|seq| *seq < end.min(self.size));
        seqs.dedup();
        Ok(Some(seqs))
    }

    /// Those of some seqs of which there are rows in one of these tables that the caller may see.
    pub(crate) fn shown_among(&self, tables: &[Table], seqs: BTreeSet<u64>) -> Result<BTreeSet<u64>, Error> {
        let mut shown = BTreeSet::new();
        for table in tables.iter().filter(|_| !seqs.is_empty()) {
            self.read(&Wanted::all(*table).columns(&["seq"]).at(&seqs), |batch| {
                shown.extend((0..batch.num_rows()).map(|i| <u64 as Cell>::read(batch.column(0), i)));
                Ok(true)
            })?;
        }
        Ok(shown)
    }

    /// The rows of few records that the caller may see.
    fn shown_rows(&self, table: Table, seqs: &[u64]) -> Result<RecordBatch, Error> {
        let mut batches = Vec::new();
        self.read(&Wanted::all(table).at(&seqs.iter().copied().collect()), |batch| {
            // Files say more about their columns than the table does.
            let rows = RecordBatch::try_new(table.schema(), batch.columns().to_vec());
            batches.push(rows.map_err(|e| Error::internal(format!("rows cannot be held: {e}")))?);
            Ok(true)
        })?;
        let rows = datafusion::arrow::compute::concat_batches(&table.schema(), &batches);
        rows.map_err(|e| Error::internal(format!("rows cannot be held: {e}")))
    }

    /// The events of some records, in seq order, for those who want few.
    pub(crate) fn few_events<'a>(
        &'a self,
        seqs: &[u64],
        blocks: Option<&mut Blocks<'a>>,
    ) -> Result<Vec<EventRow>, Error> {
        if let (Some(reader), true) = (&self.log.0, seqs.len() <= RECORDS_MAX) {
            let mut own = Blocks::new(reader);
            if let Some(batch) = blocks.unwrap_or(&mut own).rows(Table::Events, seqs)? {
                return Ok(EventRow::read(&batch));
            }
        }
        self.events_at(&seqs.iter().copied().collect::<BTreeSet<u64>>())
    }

    /// Columns of the rows of some records, a batch at a time in seq order: of few from the log,
    /// with all other columns too, of many from segments.
    pub(crate) fn records(
        &self,
        table: Table,
        columns: &[&str],
        seqs: &[u64],
        each: &mut dyn FnMut(&RecordBatch) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if let (Some(reader), true) = (&self.log.0, seqs.len() <= RECORDS_MAX)
            && let Some(batch) = Blocks::new(reader).rows(table, seqs)?
        {
            return each(&batch);
        }
        let wanted = Wanted::all(table).columns(columns).at(&seqs.iter().copied().collect());
        self.read(&wanted, |batch| each(batch).map(|()| true))
    }

    /// Blocks of the log, kept while one question is answered.
    pub(crate) fn blocks(&self) -> Option<Blocks<'_>> {
        self.log.0.as_ref().map(Blocks::new)
    }

    /// All rows of a table that filters by id can let through, if they are few; each is still to
    /// be looked at. `None` if segments must be read.
    pub(crate) fn lookup(&self, table: Table, filters: &[Expr]) -> Result<Option<RecordBatch>, Error> {
        let log = self.beneath.as_ref().map_or(&self.log, |beneath| &beneath.log);
        let Some(reader) = log.0.as_ref().filter(|_| table != Table::Metrics) else { return Ok(None) };
        for (column, values) in filters.iter().filter_map(ids) {
            let mut seqs = Vec::new();
            if column == "trace_id" {
                for value in &values {
                    match self.trace_seqs(value, self.size)? {
                        Some(found) => seqs.extend(found),
                        None => return Ok(None),
                    }
                }
            } else if let (Some(kind), Table::Events) = (Kind::of_column(column), table) {
                let finder = Finder::new(self, AsOf::Now)?;
                for value in &values {
                    seqs.extend(finder.find(kind, value)?.into_iter().map(Posting::seq));
                }
            } else {
                continue;
            }
            seqs.sort_unstable();
            seqs.dedup();
            return match seqs.len() <= RECORDS_MAX {
                true if self.beneath.is_some() => self.shown_rows(table, &seqs).map(Some),
                true => Blocks::new(reader).rows(table, &seqs),
                false => Ok(None),
            };
        }
        Ok(None)
    }
}

/// [`Snapshot::lookup`] for a scan, on a thread that may block; `None` too if no filter is a lookup.
pub(crate) async fn few(
    snapshot: &Arc<Snapshot>,
    table: Table,
    filters: &[Expr],
) -> datafusion::common::Result<Option<RecordBatch>> {
    if !filters.iter().any(|filter| is_lookup(table, filter)) {
        return Ok(None);
    }
    let (snapshot, asked) = (Arc::clone(snapshot), filters.to_vec());
    let found = tokio::task::spawn_blocking(move || snapshot.lookup(table, &asked)).await;
    let found = found.map_err(|e| DataFusionError::Execution(format!("ids cannot be looked up: {e}")))?;
    found.map_err(|e| DataFusionError::External(Box::new(e)))
}

/// Whether a filter asks for few values of a column that is indexed.
fn is_lookup(table: Table, filter: &Expr) -> bool {
    let is_indexed =
        |column: &str| column == "trace_id" || (table == Table::Events && Kind::of_column(column).is_some());
    table != Table::Metrics && ids(filter).is_some_and(|(column, _)| is_indexed(column))
}

/// The column and the texts that a filter asks it to be one of.
pub(crate) fn ids(filter: &Expr) -> Option<(&str, Vec<String>)> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => match (left.as_ref(), right.as_ref()) {
            (Expr::Column(column), value) | (value, Expr::Column(column)) => {
                Some((column.name.as_str(), vec![text(value)?]))
            }
            _ => None,
        },
        // A short list is planned as alternatives.
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let ((column, mut some), (other, more)) = (ids(left)?, ids(right)?);
            some.extend(more);
            (column == other && some.len() <= VALUES_MAX).then_some((column, some))
        }
        Expr::InList(list) if !list.negated && list.list.len() <= VALUES_MAX => match list.expr.as_ref() {
            Expr::Column(column) => Some((column.name.as_str(), list.list.iter().map(text).collect::<Option<_>>()?)),
            _ => None,
        },
        _ => None,
    }
}

fn text(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Literal(
            ScalarValue::Utf8(Some(s)) | ScalarValue::LargeUtf8(Some(s)) | ScalarValue::Utf8View(Some(s)),
            _,
        ) => Some(s.clone()),
        _ => None,
    }
}
