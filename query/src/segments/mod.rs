//! Sealed rows: Parquet files that hold the rows of a range of the log, one file per
//! table and range, and the manifest that names them.
//!
//! Invariants: the ranges of a [`crate::Snapshot`] follow on each other without gap or
//! overlap from seq 0 on; a file never changes, it is replaced by one of another name;
//! what a manifest names was synced before. All of it can be thrown away and made again
//! from the log, and is, where it does not fit.

mod compact;
mod keep;
mod look_over;
mod manifest;
mod place;
mod read;
mod scan;
mod splice;
#[cfg(test)]
pub(crate) mod test_requests;
#[cfg(test)]
mod tests;
mod visible;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::object_store::path::Path;

pub use keep::Rebuilt;
pub(crate) use keep::lock;
pub(crate) use manifest::FileEntry;
pub(crate) use place::{Place, failed};
pub(crate) use read::Wanted;
pub(crate) use scan::SealedTable;

use crate::Error;
use crate::event::EventRow;
use crate::metrics::MetricRow;
use crate::rows::{own_bytes, thinned};
use crate::tables::{LogRow, SpanRow};

/// Batches are joined until they have this many rows.
const BATCH_ROWS: usize = 32_768;

/// So many batches of like size are joined at once.
const JOINED: usize = 8;

/// A table whose rows are made from records, and sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Table {
    Spans,
    Logs,
    Metrics,
    Events,
}

impl Table {
    pub(crate) const ALL: [Self; 4] = [Self::Spans, Self::Logs, Self::Metrics, Self::Events];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spans => "spans",
            Self::Logs => "logs",
            Self::Metrics => "metrics",
            Self::Events => "events",
        }
    }

    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    pub(crate) fn schema(self) -> SchemaRef {
        match self {
            Self::Spans => SpanRow::schema(),
            Self::Logs => LogRow::schema(),
            Self::Metrics => MetricRow::schema(),
            Self::Events => EventRow::schema(),
        }
    }

    /// Columns whose values are nearly all different.
    pub(crate) fn unique(self) -> &'static [&'static str] {
        match self {
            Self::Spans => &["seq", "record_hash", "span_id", "attributes", "start_time", "end_time", "duration_ns"],
            Self::Logs => &["seq", "record_hash", "attributes", "body", "time", "observed_time"],
            Self::Metrics => &["seq", "record_hash", "points"],
            Self::Events => &["seq", "record_hash", "span_id", "attributes", "event_time", "tool_call_id"],
        }
    }

    /// Columns whose texts are in no order that anybody asks for: hashes and JSON.
    pub(crate) fn unordered(self) -> &'static [&'static str] {
        match self {
            Self::Spans => &["record_hash", "resource", "attributes", "events", "links"],
            Self::Logs => &["record_hash", "resource", "attributes", "body"],
            Self::Metrics => &["record_hash", "points"],
            Self::Events => &["record_hash", "attributes"],
        }
    }

    /// Columns with a bloom filter: those that are asked for one value of many.
    pub(crate) fn bloomed(self) -> &'static [&'static str] {
        match self {
            Self::Spans | Self::Logs => &["trace_id", "span_id"],
            Self::Metrics => &["name"],
            Self::Events => {
                &["trace_id", "span_id", "grant_id", "agent_id", "conversation_id", "correlation_id", "kind"]
            }
        }
    }
}

/// When rows are sealed, and into how large segments they are merged.
#[derive(Clone, Copy, Debug)]
pub struct SegmentLimits {
    /// Records whose rows wait in memory, at most.
    pub records_max: u64,
    /// Bytes of rows that wait in memory, about; as many again while they are sealed.
    pub bytes_max: usize,
    /// How long a row waits at most.
    pub age_max: Duration,
    /// Neighbouring segments are merged up to this many records; 0 merges none.
    pub merged_records_max: u64,
    /// Row groups of at least so many rows are copied as they are when they are merged: statistics, dictionaries and
    /// bloom filters of few rows are a burden for all who read, so the rows of smaller ones are written anew.
    pub copied_rows_min: usize,
}

impl Default for SegmentLimits {
    fn default() -> Self {
        Self {
            records_max: 1_000_000,
            bytes_max: 32 << 20,
            age_max: Duration::from_secs(600),
            merged_records_max: 1_000_000,
            copied_rows_min: 16_384,
        }
    }
}

/// From where on the last batches are to be joined: when so many are of like size. A row is then copied once
/// for each time that its batch grows by that factor, and not each time that it doubles.
fn joinable(batches: &[RecordBatch]) -> Option<usize> {
    let largest = batches.last()?.num_rows() * JOINED;
    let alike = batches.iter().rev().take(JOINED).take_while(|batch| batch.num_rows() < largest);
    let (count, rows) = alike.fold((0, 0), |(count, rows), batch| (count + 1, rows + batch.num_rows()));
    (count == JOINED && rows <= BATCH_ROWS).then(|| batches.len() - JOINED)
}

/// The rows of a range of the log, in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail {
    /// First seq.
    pub(crate) from: u64,
    /// The seq after the last.
    pub(crate) to: u64,
    /// Batches by table, in seq order.
    pub(crate) tables: [Vec<RecordBatch>; 4],
    /// Bytes that they take.
    pub(crate) bytes: usize,
    /// Since when there are rows.
    pub(crate) since: Option<Instant>,
}

impl Tail {
    /// Nothing yet, from a seq on.
    pub(crate) fn at(from: u64) -> Self {
        Self { from, to: from, ..Self::default() }
    }

    /// The batches of a table.
    pub(crate) fn of(&self, table: Table) -> &[RecordBatch] {
        &self.tables[table as usize]
    }

    pub(crate) fn rows(&self) -> usize {
        self.tables.iter().flatten().map(RecordBatch::num_rows).sum()
    }

    /// Adds a batch, joining small ones so that a log of many small requests does
    /// not become a table of many small batches.
    pub(crate) fn add(&mut self, table: Table, batch: RecordBatch) {
        if batch.num_rows() == 0 {
            return;
        }
        self.since.get_or_insert_with(Instant::now);
        self.bytes += own_bytes(&batch);
        let batches = &mut self.tables[table as usize];
        batches.push(batch);
        while let Some(from) = joinable(batches) {
            let some = &batches[from..];
            let Ok(joined) = concat_batches(&some[0].schema(), some).map(thinned) else { break };
            let apart: usize = some.iter().map(own_bytes).sum();
            self.bytes = (self.bytes + own_bytes(&joined)).saturating_sub(apart);
            batches.truncate(from);
            batches.push(joined);
        }
    }

    /// Whether it is time to seal it.
    pub(crate) fn is_due(&self, limits: &SegmentLimits) -> bool {
        self.is_full(limits) || self.since.is_some_and(|since| since.elapsed() >= limits.age_max)
    }

    /// Whether it holds as much as it may.
    pub(crate) fn is_full(&self, limits: &SegmentLimits) -> bool {
        self.rows() > 0 && (self.to - self.from >= limits.records_max || self.bytes >= limits.bytes_max)
    }
}

/// A file of a segment. When it was replaced, it is deleted once no snapshot has it.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) place: Arc<Place>,
    pub(crate) table: Table,
    pub(crate) entry: FileEntry,
    replaced: AtomicBool,
}

impl SegmentFile {
    pub(crate) fn new(place: &Arc<Place>, table: Table, entry: FileEntry) -> Arc<Self> {
        Arc::new(Self { place: Arc::clone(place), table, entry, replaced: AtomicBool::new(false) })
    }

    pub(crate) fn path(&self) -> Path {
        Path::from(self.entry.path.as_str())
    }

    /// Looks whether it is what was written.
    fn sound(&self) -> Result<(), Error> {
        if self.place.digest(&self.entry.path)? == self.entry.digest { Ok(()) } else { Err(self.damaged()) }
    }

    fn damaged(&self) -> Error {
        let what = format!("the segment file {} cannot be read", self.entry.path);
        failed(&what, "it is not what was written; `custody rebuild --check` makes it again")
    }

    /// It is in no newer snapshot: delete it with the last one that has it.
    pub(crate) fn replace(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }
}

impl Drop for SegmentFile {
    fn drop(&mut self) {
        if self.replaced.load(Ordering::Relaxed) {
            // A snapshot may be dropped anywhere; the file is deleted where blocking is allowed.
            self.place.doom(self.path());
        }
    }
}

/// Files that no manifest names yet: deleted if they are given up, so that who reads the folder as it is does not
/// find their rows beside those that they were to replace.
#[derive(Default)]
struct Unnamed(Vec<Arc<SegmentFile>>);

impl Unnamed {
    fn take(mut self) -> Vec<Arc<SegmentFile>> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        self.0.iter().for_each(|file| file.replace());
    }
}

/// The sealed rows of a range of the log.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// First seq.
    pub(crate) from: u64,
    /// The seq after the last.
    pub(crate) to: u64,
    /// The tree's root at `to`, hex.
    pub(crate) root: String,
    /// A file for each table that has rows.
    pub(crate) files: Vec<Arc<SegmentFile>>,
}

impl Segment {
    pub(crate) fn file(&self, table: Table) -> Option<&Arc<SegmentFile>> {
        self.files.iter().find(|file| file.table == table)
    }

    pub(crate) fn records(&self) -> u64 {
        self.to - self.from
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.entry.bytes).sum()
    }
}
