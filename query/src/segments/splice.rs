//! Segments from segments without decoding them: their row groups are copied as they are, page by page, and only
//! the footer is written anew. To write rows anew costs half of what it costs to make them; copying is the reading and
//! writing of bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use datafusion::object_store::ObjectStoreExt as _;
use datafusion::parquet::basic::Compression;
use datafusion::parquet::bloom_filter::Sbbf;
use datafusion::parquet::column::writer::ColumnCloseResult;
use datafusion::parquet::errors::{ParquetError, Result as ParquetResult};
use datafusion::parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use datafusion::parquet::file::writer::SerializedFileWriter;

use super::place::failed;
use super::write::Spot;
use super::{SegmentFile, Table};
use crate::{Error, ErrorKind};

/// Where rows are large, row groups of so many bytes are copied too.
pub(super) const GROUP_BYTES_MIN: i64 = 8 << 20;

/// Larger files are written anew: one is in memory while it is copied.
const FILE_BYTES_MAX: u64 = 96 << 20;

/// A file that was read, and is what was written.
struct Whole {
    bytes: Bytes,
    footer: ParquetMetaData,
}

/// Writes the rows of files that follow on each other as one file, if all can be copied; `None` if not.
pub(super) async fn splice(
    spot: &Spot,
    table: Table,
    inputs: &[&Arc<SegmentFile>],
    stop: Option<&AtomicBool>,
) -> Result<Option<Arc<SegmentFile>>, Error> {
    if inputs.len() < 2 || inputs.iter().any(|file| file.entry.bytes > FILE_BYTES_MAX) {
        return Ok(None);
    }
    for file in inputs {
        if !are_large(&*footer(file).await?, spot.copied_rows_min) {
            return Ok(None);
        }
    }
    let rows = inputs.iter().map(|file| file.entry.rows).sum();
    let mut open = spot.open(table);
    let mut writer = spot.copier(table, rows as usize)?;
    for file in inputs {
        if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(Error::new(ErrorKind::Unavailable, "stopping"));
        }
        let whole = Whole::read(file).await?;
        let fail = |e: ParquetError| failed(&format!("{} cannot be copied", file.entry.path), e);
        for group in 0..whole.footer.num_row_groups() {
            whole.copy(group, &mut writer).map_err(fail)?;
            open.put(drain(&mut writer).map_err(fail)?).await.map_err(fail)?;
        }
    }
    let fail = |e: ParquetError| failed("the footer of merged segments cannot be written", e);
    writer.finish().map_err(fail)?;
    open.put(drain(&mut writer).map_err(fail)?).await.map_err(fail)?;
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    for (kind, rows) in inputs.iter().flat_map(|file| &file.entry.kinds) {
        *kinds.entry(kind.clone()).or_default() += rows;
    }
    open.finish(rows, kinds).await.map(Some)
}

/// What was written so far and not yet taken.
fn drain(writer: &mut SerializedFileWriter<Vec<u8>>) -> ParquetResult<Bytes> {
    writer.flush()?;
    Ok(std::mem::take(writer.inner_mut()).into())
}

async fn footer(file: &SegmentFile) -> Result<Arc<ParquetMetaData>, Error> {
    let mut reader = file.place.reader(&file.entry.path, file.entry.bytes)?;
    let footer = reader.get_metadata(None).await;
    footer.map_err(|e| failed(&format!("the segment file {} cannot be read", file.entry.path), e))
}

/// Whether all row groups are large, and compressed as they shall stay.
fn are_large(footer: &ParquetMetaData, rows_min: usize) -> bool {
    footer.row_groups().iter().all(|group| {
        let is_large = group.num_rows() >= rows_min as i64 || group.compressed_size() >= GROUP_BYTES_MIN;
        is_large && group.columns().iter().all(|c| matches!(c.compression(), Compression::ZSTD(_)))
    })
}

impl Whole {
    /// Reads a file and looks whether it is what was written: what is copied is not decoded, and a damaged page
    /// would get a digest that says it is sound.
    async fn read(file: &SegmentFile) -> Result<Self, Error> {
        let fail =
            |e: &dyn std::fmt::Display| failed(&format!("the segment file {} cannot be read", file.entry.path), e);
        let got = file.place.store().get(&file.path()).await.map_err(|e| fail(&e))?;
        let bytes = got.bytes().await.map_err(|e| fail(&e))?;
        if blake3::hash(&bytes).to_hex().as_str() != file.entry.digest {
            return Err(file.damaged());
        }
        let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required);
        let footer = reader.parse_and_finish(&bytes).map_err(|e| fail(&e))?;
        Ok(Self { bytes, footer })
    }

    /// Copies a row group behind those that are there.
    fn copy(&self, group: usize, writer: &mut SerializedFileWriter<Vec<u8>>) -> ParquetResult<()> {
        let columns = self.footer.column_index().and_then(|index| index.get(group));
        let offsets = self.footer.offset_index().and_then(|index| index.get(group));
        let from = self.footer.row_group(group);
        let mut to = writer.next_row_group()?;
        for (i, column) in from.columns().iter().enumerate() {
            let close = ColumnCloseResult {
                bytes_written: column.compressed_size().unsigned_abs(),
                rows_written: from.num_rows().unsigned_abs(),
                metadata: column.clone(),
                bloom_filter: Sbbf::read_from_column_chunk(column, &self.bytes)?,
                column_index: columns.and_then(|columns| columns.get(i)).cloned(),
                offset_index: offsets.and_then(|offsets| offsets.get(i)).cloned(),
            };
            to.append_column(&self.bytes, close)?;
        }
        to.close().map(drop)
    }
}
