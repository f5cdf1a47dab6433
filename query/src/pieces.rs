//! An answer as bytes, a batch at a time. Whole answers and streamed ones are made here alike, so that
//! nobody can tell them apart by what they hold.
//!
//! No format keeps more than a batch, but for Parquet, which keeps a row group.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::csv;
use datafusion::arrow::datatypes::{Field, SchemaRef};
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::arrow::json::writer::{JsonArray, LineDelimited, WriterBuilder};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::metadata::KeyValue;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::Error;
use crate::format::{failed, lists_as_text, times_can_be_told};

/// Bytes of a Parquet row group in the making, about.
const ROW_GROUP_BYTES: usize = 8 << 20;

/// How an answer looks.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `{"columns": [...], "rows": [...], "stats": {...}}`.
    #[default]
    Json,
    /// A row a line.
    Ndjson,
    /// With a header; lists as JSON text.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

impl Format {
    /// Its media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

/// What is known of an answer at its end.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
    /// How many rows it has.
    pub rows: u64,
    /// Whether there were more than allowed.
    pub truncated: bool,
    /// The query saw all records below this seq, and none other.
    pub log_size: u64,
    /// How long it took.
    pub elapsed_ms: u64,
    /// What is to be said of it, such as that nothing is known by an id that the query asks about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Makes the bytes of one answer.
pub struct Pieces {
    schema: SchemaRef,
    /// Whether something was given already.
    begun: bool,
    writing: Writing,
}

enum Writing {
    Json,
    Ndjson,
    Csv,
    Arrow(Box<StreamWriter<Vec<u8>>>),
    Parquet(Box<ArrowWriter<Out>>, Out),
}

impl Pieces {
    /// Begins an answer with these columns.
    ///
    /// # Errors
    ///
    /// If the format has no such type of column.
    pub fn new(format: Format, schema: &SchemaRef) -> Result<Self, Error> {
        let writing = match format {
            Format::Json => Writing::Json,
            Format::Ndjson => Writing::Ndjson,
            Format::Csv => Writing::Csv,
            Format::Arrow => Writing::Arrow(Box::new(StreamWriter::try_new(Vec::new(), schema).map_err(failed)?)),
            Format::Parquet => {
                let out = Out::default();
                let writer = ArrowWriter::try_new(out.clone(), Arc::clone(schema), None).map_err(no_parquet)?;
                Writing::Parquet(Box::new(writer), out)
            }
        };
        Ok(Self { schema: Arc::clone(schema), begun: false, writing })
    }

    /// The next rows. It may be nothing: what is kept comes later.
    ///
    /// # Errors
    ///
    /// If a value cannot be written.
    pub fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, Error> {
        if batch.num_rows() == 0 {
            return Ok(Vec::new());
        }
        if matches!(self.writing, Writing::Json | Writing::Ndjson | Writing::Csv) {
            times_can_be_told(batch)?;
        }
        let is_first = !std::mem::replace(&mut self.begun, true);
        match &mut self.writing {
            Writing::Json => {
                let mut out = if is_first { head(&self.schema) } else { b",".to_vec() };
                let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
                writer.write(batch).map_err(failed)?;
                writer.finish().map_err(failed)?;
                let rows = writer.into_inner();
                // Without the brackets: they are around the rows of all batches.
                out.extend_from_slice(rows.get(1..rows.len().saturating_sub(1)).unwrap_or_default());
                Ok(out)
            }
            Writing::Ndjson => {
                let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
                writer.write(batch).map_err(failed)?;
                writer.finish().map_err(failed)?;
                Ok(writer.into_inner())
            }
            Writing::Csv => comma_separated(batch, is_first),
            Writing::Arrow(writer) => {
                writer.write(batch).map_err(failed)?;
                Ok(std::mem::take(writer.get_mut()))
            }
            Writing::Parquet(writer, out) => {
                writer.write(batch).map_err(no_parquet)?;
                if writer.in_progress_size() > ROW_GROUP_BYTES {
                    writer.flush().map_err(failed)?;
                }
                Ok(out.take())
            }
        }
    }

    /// What comes behind the last rows.
    ///
    /// # Errors
    ///
    /// As with [`Self::batch`].
    pub fn end(&mut self, stats: &Stats) -> Result<Vec<u8>, Error> {
        match &mut self.writing {
            Writing::Json => {
                let mut out = if self.begun { Vec::new() } else { head(&self.schema) };
                out.extend_from_slice(format!("],\"stats\":{}}}", json!(stats)).as_bytes());
                Ok(out)
            }
            Writing::Ndjson => Ok(Vec::new()),
            Writing::Csv if self.begun => Ok(Vec::new()),
            Writing::Csv => comma_separated(&RecordBatch::new_empty(Arc::clone(&self.schema)), true),
            Writing::Arrow(writer) => {
                writer.finish().map_err(failed)?;
                Ok(std::mem::take(writer.get_mut()))
            }
            Writing::Parquet(writer, out) => {
                let said = [("rows", stats.rows.to_string()), ("truncated", stats.truncated.to_string())];
                let size = [("log_size", stats.log_size.to_string())];
                for (key, value) in said.into_iter().chain(size) {
                    writer.append_key_value_metadata(KeyValue::new(format!("custody.{key}"), value));
                }
                writer.finish().map_err(failed)?;
                Ok(out.take())
            }
        }
    }
}

/// Parquet has no form for some types, such as intervals.
fn no_parquet(error: impl std::fmt::Display) -> Error {
    Error::invalid(format!(
        "Parquet has no form for this answer ({error}): cast the column to VARCHAR, or ask for Arrow"
    ))
}

/// All before the rows of an answer in JSON.
fn head(schema: &SchemaRef) -> Vec<u8> {
    let column = |f: &Arc<Field>| json!({"name": f.name(), "type": f.data_type().to_string()});
    let columns = schema.fields().iter().map(column).collect::<Vec<_>>();
    format!("{{\"columns\":{},\"rows\":[", json!(columns)).into_bytes()
}

fn comma_separated(batch: &RecordBatch, with_header: bool) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let mut writer = csv::WriterBuilder::new().with_header(with_header).build(&mut out);
    writer.write(&lists_as_text(batch)?).map_err(failed)?;
    drop(writer);
    Ok(out)
}

/// What a writer wrote that wants to have its output.
#[derive(Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl Out {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{ArrayRef, Int64Array, StringArray};
    use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    fn batches() -> Vec<RecordBatch> {
        let batch = |from: i64| {
            let n: ArrayRef = Arc::new(Int64Array::from_iter_values(from..from + 3));
            let texts = (from..from + 3).map(|n| (n % 2 == 0).then(|| format!("a,\"{n}\"")));
            RecordBatch::try_from_iter_with_nullable([
                ("n", n, false),
                ("s", Arc::new(texts.collect::<StringArray>()) as ArrayRef, true),
            ])
            .unwrap()
        };
        vec![batch(0), batch(3).slice(0, 0), batch(3)]
    }

    fn written(format: Format, batches: &[RecordBatch], schema: &SchemaRef) -> Vec<u8> {
        let mut pieces = Pieces::new(format, schema).unwrap();
        let mut out: Vec<u8> = batches.iter().flat_map(|batch| pieces.batch(batch).unwrap()).collect();
        let rows = batches.iter().map(|b| b.num_rows() as u64).sum();
        out.extend(pieces.end(&Stats { rows, truncated: true, log_size: 9, elapsed_ms: 1, notes: vec![] }).unwrap());
        out
    }

    #[test]
    fn batches_and_no_batches_make_whole_answers_in_every_format() {
        let (batches, schema) = (batches(), batches()[0].schema());
        let text = |format, batches: &[RecordBatch]| String::from_utf8(written(format, batches, &schema)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text(Format::Json, &batches)).unwrap();
        assert_eq!(json["columns"][1], json!({"name": "s", "type": "Utf8"}));
        assert_eq!(json["rows"].as_array().unwrap().len(), 6);
        assert_eq!(json["rows"][3], json!({"n": 3, "s": null}), "nulls are there");
        assert_eq!(json["stats"], json!({"rows": 6, "truncated": true, "log_size": 9, "elapsed_ms": 1}));
        let none: serde_json::Value = serde_json::from_str(&text(Format::Json, &[])).unwrap();
        assert_eq!((&none["rows"], &none["columns"]), (&json!([]), &json["columns"]));
        assert_eq!(text(Format::Ndjson, &batches).lines().nth(4), Some(r#"{"n":4,"s":"a,\"4\""}"#));
        assert_eq!(text(Format::Ndjson, &[]), "");
        let csv = text(Format::Csv, &batches);
        assert_eq!((csv.lines().count(), csv.lines().nth(1)), (7, Some(r#"0,"a,""0""""#)));
        assert_eq!(text(Format::Csv, &[]), "n,s\n", "the header is there");
        for some in [&batches[..], &[]] {
            let rows: usize = some.iter().map(RecordBatch::num_rows).sum();
            let (read, came) = crate::format::from_arrow(&written(Format::Arrow, some, &schema)).unwrap();
            assert_eq!((&read, came.iter().map(RecordBatch::num_rows).sum::<usize>()), (&schema, rows));
            let file = bytes::Bytes::from(written(Format::Parquet, some, &schema));
            let read = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            let said = read.metadata().file_metadata().key_value_metadata().unwrap();
            assert!(said.iter().any(|kv| kv.key == "custody.truncated" && kv.value.as_deref() == Some("true")));
            assert_eq!(read.build().unwrap().map(|b| b.unwrap().num_rows()).sum::<usize>(), rows);
        }
    }

    #[test]
    fn what_parquet_has_no_form_for_is_told_to_who_asked() {
        use datafusion::arrow::array::IntervalMonthDayNanoArray;
        let column: ArrayRef = Arc::new(IntervalMonthDayNanoArray::new_null(1));
        let batch = RecordBatch::try_from_iter([("i", column)]).unwrap();
        let written = Pieces::new(Format::Parquet, &batch.schema()).and_then(|mut pieces| {
            let rows = pieces.batch(&batch)?;
            pieces
                .end(&Stats { rows: 1, truncated: false, log_size: 1, elapsed_ms: 1, notes: vec![] })
                .map(|end| (rows, end))
        });
        let error = written.unwrap_err();
        assert!(error.kind == crate::ErrorKind::Invalid && error.message.contains("VARCHAR"), "{error}");
    }

    #[test]
    fn a_parquet_file_comes_in_row_groups() {
        let wide = "x".repeat(1 << 20);
        let texts = StringArray::from_iter_values((0..4).map(|n| format!("{n}{wide}")));
        let batch = RecordBatch::try_from_iter([("s", Arc::new(texts) as ArrayRef)]).unwrap();
        let mut pieces = Pieces::new(Format::Parquet, &batch.schema()).unwrap();
        let given: Vec<usize> = (0..8).map(|_| pieces.batch(&batch).unwrap().len()).collect();
        assert!(given.iter().any(|bytes| *bytes > 1000), "something comes before the end: {given:?}");
    }
}
