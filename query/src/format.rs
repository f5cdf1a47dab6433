//! Answers as JSON, CSV, Arrow IPC, Parquet, and as a table for people.

use datafusion::arrow::csv;
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::arrow::json::writer::{JsonArray, WriterBuilder};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::arrow::util::display::FormatOptions;
use datafusion::arrow::util::pretty::pretty_format_batches_with_options;
use datafusion::parquet::arrow::ArrowWriter;
use serde_json::{Map, Value as Json, json};

use crate::engine::Answer;
use crate::error::Error;

fn failed(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("the answer cannot be written: {error}"))
}

/// Rows as JSON objects, nulls included.
pub fn rows(batches: &[RecordBatch]) -> Result<Vec<Map<String, Json>>, Error> {
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
    for batch in batches.iter().filter(|b| b.num_rows() > 0) {
        writer.write(batch).map_err(failed)?;
    }
    writer.finish().map_err(failed)?;
    let bytes = writer.into_inner();
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&bytes).map_err(failed)
}

/// `{"columns": [...], "rows": [...], "stats": {...}}`.
pub fn json(answer: &Answer) -> Result<Vec<u8>, Error> {
    let column = |f: &std::sync::Arc<datafusion::arrow::datatypes::Field>| json!({"name": f.name(), "type": f.data_type().to_string()});
    let body = json!({
        "columns": answer.schema.fields().iter().map(column).collect::<Vec<_>>(),
        "rows": rows(&answer.batches)?,
        "stats": {
            "rows": answer.rows,
            "truncated": answer.truncated,
            "log_size": answer.as_of_size,
            "elapsed_ms": answer.elapsed.as_millis() as u64,
        },
    });
    Ok(body.to_string().into_bytes())
}

/// CSV with a header; lists as JSON text.
pub fn csv(answer: &Answer) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let mut writer = csv::WriterBuilder::new().with_header(true).build(&mut out);
    let plain = |batch: &RecordBatch| lists_as_text(batch);
    if answer.batches.is_empty() {
        writer.write(&plain(&RecordBatch::new_empty(answer.schema.clone()))?).map_err(failed)?;
    }
    for batch in &answer.batches {
        writer.write(&plain(batch)?).map_err(failed)?;
    }
    drop(writer);
    Ok(out)
}

/// CSV has no lists: each is written as it would be shown.
fn lists_as_text(batch: &RecordBatch) -> Result<RecordBatch, Error> {
    use datafusion::arrow::array::{Array as _, ArrayRef, StringArray};
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    use datafusion::arrow::util::display::ArrayFormatter;
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if !field.data_type().is_nested() {
            fields.push(field.as_ref().clone());
            columns.push(column.clone());
            continue;
        }
        let options = FormatOptions::default();
        let shown = ArrayFormatter::try_new(column, &options).map_err(failed)?;
        let texts: StringArray =
            (0..column.len()).map(|i| column.is_valid(i).then(|| shown.value(i).to_string())).collect();
        fields.push(Field::new(field.name(), DataType::Utf8, true));
        columns.push(std::sync::Arc::new(texts));
    }
    RecordBatch::try_new(std::sync::Arc::new(Schema::new(fields)), columns).map_err(failed)
}

/// An Arrow IPC stream.
pub fn arrow(answer: &Answer) -> Result<Vec<u8>, Error> {
    let mut writer = StreamWriter::try_new(Vec::new(), &answer.schema).map_err(failed)?;
    for batch in &answer.batches {
        writer.write(batch).map_err(failed)?;
    }
    writer.into_inner().map_err(failed)
}

/// A Parquet file.
pub fn parquet(answer: &Answer) -> Result<Vec<u8>, Error> {
    let mut writer = ArrowWriter::try_new(Vec::new(), answer.schema.clone(), None).map_err(failed)?;
    for batch in &answer.batches {
        writer.write(batch).map_err(failed)?;
    }
    writer.into_inner().map_err(failed)
}

/// Reads an Arrow IPC stream back.
pub fn from_arrow(bytes: &[u8]) -> Result<(datafusion::arrow::datatypes::SchemaRef, Vec<RecordBatch>), Error> {
    let reader = datafusion::arrow::ipc::reader::StreamReader::try_new(bytes, None).map_err(failed)?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    Ok((schema, batches))
}

/// A table for people. Control characters in the data are taken out, so that no
/// record can command the reader's terminal.
pub fn table(schema: &datafusion::arrow::datatypes::SchemaRef, batches: &[RecordBatch]) -> Result<String, Error> {
    let options = FormatOptions::default().with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.3f"));
    let empty = [RecordBatch::new_empty(schema.clone())];
    let batches = if batches.is_empty() { &empty } else { batches };
    let text = pretty_format_batches_with_options(batches, &options).map_err(failed)?.to_string();
    Ok(text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect())
}
