//! Segments from segments: several small ones merged, or one without what was erased.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use custody_store::system::SeqSet;
use datafusion::arrow::array::{BooleanArray, UInt64Array};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::record_batch::RecordBatch;

use super::splice::splice;
use super::write::Spot;
use super::{Place, Segment, Table, Unnamed, Wanted};
use crate::{Error, ErrorKind};

/// Neighbours are merged when there are this many, or when they make half a segment: each merging writes all of
/// their bytes again. With fewer, the rows of a busy log would be merged twice.
const MERGED_MIN: usize = 32;

/// Segments whose files are together larger than this are not merged.
pub(super) const MERGED_BYTES_MAX: u64 = 1 << 30;

/// Which neighbours to merge next. None of them is more than half of the whole, so that
/// a row is written anew only when its segment at least doubles.
pub(super) fn pick(segments: &[Segment], records_max: u64) -> Option<Range<usize>> {
    for start in 0..segments.len() {
        let (mut records, mut bytes, mut largest) = (0, 0, 0);
        let mut found = None;
        for (end, segment) in segments.iter().enumerate().skip(start) {
            records += segment.records();
            bytes += segment.bytes();
            largest = segment.records().max(largest);
            if records > records_max || bytes > MERGED_BYTES_MAX {
                break;
            }
            let many = end + 1 - start >= MERGED_MIN || (end > start && records >= records_max / 2);
            if many && largest <= records / 2 {
                found = Some(start..end + 1);
            }
        }
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Writes the rows of neighbouring segments as one, without those of some records.
pub(super) fn rewrite(
    spot: Spot,
    place: &Place,
    segments: &[Segment],
    erased: &SeqSet,
    stop: Option<&AtomicBool>,
) -> Result<Segment, Error> {
    let mut files = Unnamed::default();
    for table in Table::ALL {
        let inputs: Vec<_> = segments.iter().filter_map(|s| Some((s.from..s.to, s.file(table)?))).collect();
        if inputs.is_empty() {
            continue;
        }
        if erased.is_empty() {
            let files_of: Vec<_> = inputs.iter().map(|(_, file)| *file).collect();
            if let Some(file) = place.wait(splice(&spot, table, &files_of, stop))? {
                files.0.push(file);
                continue;
            }
        }
        let rows = inputs.iter().map(|(_, file)| file.entry.rows).sum::<u64>();
        let wanted = Wanted::all(table);
        let mut output = spot.file(table, rows as usize)?;
        let mut left = 0;
        for (range, file) in inputs {
            // A damaged page may well decode; what is written from it would have a digest that says it is sound.
            file.sound()?;
            let write = async |batch: RecordBatch| {
                if stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                    return Err(Error::new(ErrorKind::Unavailable, "stopping"));
                }
                let batch = without(&batch, erased)?;
                left += batch.num_rows();
                output.write(&batch).await.map(|()| true)
            };
            place.wait(file.read(&wanted, range, write))?;
        }
        if left > 0 {
            files.0.push(place.wait(output.finish())?);
        }
    }
    Ok(spot.segment(files.take()))
}

/// A batch without the rows of some records.
pub(super) fn without(batch: &RecordBatch, erased: &SeqSet) -> Result<RecordBatch, Error> {
    let Some(seqs) = batch.column(0).as_any().downcast_ref::<UInt64Array>().filter(|_| !erased.is_empty()) else {
        return Ok(batch.clone());
    };
    let kept: BooleanArray = seqs.values().iter().map(|seq| Some(!erased.contains(*seq))).collect();
    filter_record_batch(batch, &kept).map_err(|e| Error::internal(e.to_string()))
}

/// Whether any of some seqs lies in a range.
pub(super) fn touches(erased: &SeqSet, range: Range<u64>) -> bool {
    erased.ranges().iter().any(|r| r.start < range.end && range.start < r.end)
}
