//! Writing segment files: zstd (LZ4 where they are so small that a merge writes them anew), row groups sized for
//! pruning, page index, statistics, bloom filters, and in the footer what the file is of.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use custody_store::Reader;
use datafusion::arrow::array::AsArray as _;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::object_store::buffered::BufWriter;
use datafusion::object_store::path::Path;
use datafusion::parquet::arrow::async_writer::AsyncFileWriter;
use datafusion::parquet::arrow::{ArrowWriter, AsyncArrowWriter};
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::errors::{ParquetError, Result as ParquetResult};
use datafusion::parquet::file::metadata::{KeyValue, SortingColumn};
use datafusion::parquet::file::properties::{EnabledStatistics, WriterProperties};
use datafusion::parquet::file::writer::SerializedFileWriter;
use datafusion::parquet::schema::types::ColumnPath;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::io::AsyncWriteExt as _;

use super::manifest::{FileEntry, key, schema_version};
use super::place::failed;
use super::{Place, Segment, SegmentFile, Table, Tail, Unnamed};
use crate::Error;
use crate::mapping::MAPPING_VERSION;

/// Rows of a row group, at most: what one bloom filter and one minimum and maximum are of.
const ROW_GROUP_ROWS: usize = 131_072;

/// Bytes of a row group, at most: what is held in memory while it is written.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// Bytes of a page before it is compressed, about: what is decompressed to look at one row, and small enough to stay in
/// the processor's cache while it is made.
const PAGE_BYTES: usize = 256 << 10;

/// Bytes that are gathered before they are written.
const WRITE_BYTES: usize = 4 << 20;

/// A segment that is to be written.
pub(super) struct Spot {
    place: Arc<Place>,
    origin: String,
    range: Range<u64>,
    root: String,
    generation: u64,
    is_merged_later: bool,
    pub(super) copied_rows_min: usize,
}

impl Spot {
    /// Of a range of the log. `generation` makes its files' names new.
    pub(super) fn new(
        place: &Arc<Place>,
        reader: &Reader,
        range: Range<u64>,
        generation: &AtomicU64,
        copied_rows_min: usize,
    ) -> Result<Self, Error> {
        Ok(Self {
            place: Arc::clone(place),
            origin: reader.origin().to_owned(),
            root: const_hex::encode(reader.root_at(range.end).map_err(Error::store)?),
            range,
            generation: generation.fetch_add(1, Ordering::SeqCst) + 1,
            is_merged_later: false,
            copied_rows_min,
        })
    }

    /// To be merged with others later: what is so small that its rows are written anew then is written fast now.
    pub(super) fn quick(self) -> Self {
        Self { is_merged_later: true, ..self }
    }

    /// Begins the file of a table, of whatever bytes.
    pub(super) fn open(&self, table: Table) -> Open {
        let Range { start, end } = self.range;
        let path = format!("{}-{start:012}-{end:012}-g{:06}.parquet", table.name(), self.generation);
        let store = Arc::clone(self.place.store());
        let file = BufWriter::with_capacity(store, Path::from(path.as_str()), WRITE_BYTES).with_max_concurrency(2);
        let hashing = Hashing { file, hasher: blake3::Hasher::new(), bytes: 0 };
        Open { place: Arc::clone(&self.place), table, path, hashing }
    }

    /// Begins the file of a table that will have about this many rows.
    pub(super) fn file(&self, table: Table, rows: usize) -> Result<Output, Error> {
        let Open { place, path, hashing, .. } = self.open(table);
        let writer = AsyncArrowWriter::try_new(hashing, table.schema(), Some(self.properties(table, rows)));
        let writer = writer.map_err(|e| failed("a segment file cannot be begun", e))?;
        Ok(Output { place, table, path, writer, rows: 0, kinds: BTreeMap::new() })
    }

    /// What writes a file of a table from row groups that there are; its bytes are in memory until they are taken.
    pub(super) fn copier(&self, table: Table, rows: usize) -> Result<SerializedFileWriter<Vec<u8>>, Error> {
        let writer = ArrowWriter::try_new(Vec::new(), table.schema(), Some(self.properties(table, rows)));
        let writer = writer.and_then(ArrowWriter::into_serialized_writer);
        writer.map(|(writer, _)| writer).map_err(|e| failed("a segment file cannot be begun", e))
    }

    fn properties(&self, table: Table, rows: usize) -> WriterProperties {
        let pair = |key: &str, value: String| KeyValue::new(key.to_owned(), value);
        let pairs = vec![
            pair(key::ORIGIN, self.origin.clone()),
            pair(key::TABLE, table.name().to_owned()),
            pair(key::FROM, self.range.start.to_string()),
            pair(key::TO, self.range.end.to_string()),
            pair(key::ROOT, self.root.clone()),
            pair(key::MAPPING, MAPPING_VERSION.to_string()),
            pair(key::SCHEMA, schema_version().to_owned()),
        ];
        let is_copied = rows >= self.copied_rows_min || !self.is_merged_later;
        let compression = if is_copied { Compression::ZSTD(ZstdLevel::default()) } else { Compression::LZ4_RAW };
        let mut builder = WriterProperties::builder()
            .set_compression(compression)
            .set_data_page_size_limit(PAGE_BYTES)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
            .set_statistics_enabled(EnabledStatistics::Page)
            .set_sorting_columns(Some(vec![SortingColumn { column_idx: 0, descending: false, nulls_first: false }]))
            .set_key_value_metadata(Some(pairs))
            .set_created_by(format!("custody {}", env!("CARGO_PKG_VERSION")));
        for column in table.unique() {
            // Every value is another: a dictionary of them is work for nothing.
            builder = builder.set_column_dictionary_enabled(ColumnPath::from(*column), false);
        }
        for column in table.unordered() {
            // Nothing is left out by the smallest and the largest of such texts.
            builder = builder.set_column_statistics_enabled(ColumnPath::from(*column), EnabledStatistics::None);
        }
        for column in table.bloomed() {
            let path = ColumnPath::from(*column);
            builder = builder
                .set_column_bloom_filter_enabled(path.clone(), true)
                .set_column_bloom_filter_fpp(path.clone(), 0.01)
                .set_column_bloom_filter_max_ndv(path, rows.clamp(1, ROW_GROUP_ROWS) as u64);
        }
        builder.build()
    }

    /// The segment of files that were finished.
    pub(super) fn segment(self, files: Vec<Arc<SegmentFile>>) -> Segment {
        Segment { from: self.range.start, to: self.range.end, root: self.root, files }
    }
}

/// A file in the making.
pub(super) struct Output {
    place: Arc<Place>,
    table: Table,
    path: String,
    writer: AsyncArrowWriter<Hashing>,
    rows: u64,
    /// Of events, how many there are of each kind.
    kinds: BTreeMap<String, u64>,
}

impl Output {
    /// Adds rows.
    pub(super) async fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        self.rows += batch.num_rows() as u64;
        if let Some(kinds) = batch.column_by_name("kind").filter(|_| self.table == Table::Events) {
            count(kinds.as_string_opt::<i32>().into_iter().flatten().flatten(), &mut self.kinds);
        }
        self.writer.write(batch).await.map_err(|e| failed(&format!("{} cannot be written", self.path), e))
    }

    /// Ends it: it is durable then.
    pub(super) async fn finish(mut self) -> Result<Arc<SegmentFile>, Error> {
        let fail = |e: ParquetError| failed(&format!("{} cannot be written", self.path), e);
        self.writer.finish().await.map_err(fail)?;
        let hashing = self.writer.into_inner();
        Open { place: self.place, table: self.table, path: self.path, hashing }.settle(self.rows, self.kinds)
    }
}

/// A file whose bytes are made elsewhere.
pub(super) struct Open {
    place: Arc<Place>,
    table: Table,
    path: String,
    hashing: Hashing,
}

impl Open {
    /// Adds bytes.
    pub(super) async fn put(&mut self, bytes: Bytes) -> ParquetResult<()> {
        self.hashing.write(bytes).await
    }

    /// Ends it: it is durable then.
    pub(super) async fn finish(mut self, rows: u64, kinds: BTreeMap<String, u64>) -> Result<Arc<SegmentFile>, Error> {
        let done = self.hashing.complete().await;
        done.map_err(|e| failed(&format!("{} cannot be written", self.path), e))?;
        self.settle(rows, kinds)
    }

    /// Makes a file durable that is written whole.
    fn settle(self, rows: u64, kinds: BTreeMap<String, u64>) -> Result<Arc<SegmentFile>, Error> {
        let entry = FileEntry {
            table: self.table.name().to_owned(),
            rows,
            kinds,
            bytes: self.hashing.bytes,
            digest: self.hashing.hasher.finalize().to_hex().to_string(),
            path: self.path,
        };
        self.place.step()?;
        self.place.sync(&Path::from(entry.path.as_str()))?;
        Ok(SegmentFile::new(&self.place, self.table, entry))
    }
}

/// Counts texts; many are like the one before.
fn count<'a>(texts: impl Iterator<Item = &'a str>, counts: &mut BTreeMap<String, u64>) {
    let (mut last, mut run) = ("", 0);
    let mut add = |text: &str, run: u64| match counts.get_mut(text) {
        Some(count) => *count += run,
        None if run > 0 => _ = counts.insert(text.to_owned(), run),
        None => {}
    };
    for text in texts {
        if text != last {
            add(last, run);
            (last, run) = (text, 0);
        }
        run += 1;
    }
    add(last, run);
}

/// Writes the rows of a range that are in memory.
pub(super) fn of_tail(spot: Spot, tail: &Tail) -> Result<Segment, Error> {
    let mut files = Unnamed::default();
    for table in Table::ALL {
        let batches = tail.of(table);
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        if rows == 0 {
            continue;
        }
        let place = Arc::clone(&spot.place);
        files.0.push(place.wait(async {
            let mut output = spot.file(table, rows)?;
            for batch in batches {
                output.write(batch).await?;
            }
            output.finish().await
        })?);
    }
    Ok(spot.segment(files.take()))
}

/// The files of a segment in the making, whose rows come a few at a time.
pub(super) struct Filling {
    spot: Spot,
    outputs: [Option<Output>; 4],
}

impl Filling {
    /// Begins it.
    pub(super) fn new(spot: Spot) -> Self {
        Self { spot, outputs: [const { None }; 4] }
    }

    /// Adds the rows of a few records.
    pub(super) fn add(&mut self, tail: &Tail) -> Result<(), Error> {
        let place = Arc::clone(&self.spot.place);
        for table in Table::ALL {
            for batch in tail.of(table) {
                let output = match &mut self.outputs[table as usize] {
                    Some(output) => output,
                    none => none.insert(self.spot.file(table, ROW_GROUP_ROWS)?),
                };
                place.wait(output.write(batch))?;
            }
        }
        Ok(())
    }

    /// Ends it.
    pub(super) fn finish(self) -> Result<Segment, Error> {
        let mut files = Unnamed::default();
        for output in self.outputs.into_iter().flatten() {
            files.0.push(self.spot.place.wait(output.finish())?);
        }
        Ok(self.spot.segment(files.take()))
    }
}

/// What goes to the store, hashed on the way.
struct Hashing {
    file: BufWriter,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl AsyncFileWriter for Hashing {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, ParquetResult<()>> {
        self.hasher.update(&bytes);
        self.bytes += bytes.len() as u64;
        let put = async move { self.file.put(bytes).await.map_err(|e| ParquetError::External(Box::new(e))) };
        put.boxed()
    }

    fn complete(&mut self) -> BoxFuture<'_, ParquetResult<()>> {
        async move { self.file.shutdown().await.map_err(|e| ParquetError::External(Box::new(e))) }.boxed()
    }
}
