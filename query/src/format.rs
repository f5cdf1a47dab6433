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

/// Text of the log's senders as it may go to a terminal: what would command it, or make it show what is not
/// there, is replaced by a picture of it. Line breaks too: no value can look like another row.
pub fn plain(text: &str) -> String {
    text.chars().map(plain_char).collect()
}

fn plain_char(c: char) -> char {
    match c {
        '\0'..='\u{1F}' => char::from_u32(0x2400 + c as u32).unwrap_or(' '),
        '\u{7F}' => '\u{2421}',
        // C1 controls, directions (marks, embeddings, overrides, isolates), separators of lines, tags.
        '\u{80}'..='\u{9F}'
        | '\u{61C}'
        | '\u{200E}'
        | '\u{200F}'
        | '\u{2028}'..='\u{202E}'
        | '\u{2066}'..='\u{2069}' => '\u{FFFD}',
        '\u{E0000}'..='\u{E007F}' => '\u{FFFD}',
        c => c,
    }
}

/// A table for people, its cells as [`plain`] makes them.
pub fn table(schema: &datafusion::arrow::datatypes::SchemaRef, batches: &[RecordBatch]) -> Result<String, Error> {
    use datafusion::arrow::array::{Array as _, ArrayRef, StringArray};
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    use datafusion::arrow::util::display::ArrayFormatter;
    let options = FormatOptions::default().with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.3f"));
    let names: Vec<&String> = schema.fields().iter().map(|f| f.name()).collect();
    // What EXPLAIN says has lines of its own.
    let is_plan = names == ["plan_type", "plan"];
    let cell = |text: String| match is_plan {
        true => text.lines().map(plain).collect::<Vec<_>>().join("\n"),
        false => plain(&text),
    };
    let fields: Vec<Field> = names.iter().map(|name| Field::new(plain(name), DataType::Utf8, true)).collect();
    let texts = std::sync::Arc::new(Schema::new(fields));
    let shown = |batch: &RecordBatch| {
        let column = |column: &ArrayRef| {
            let shown = ArrayFormatter::try_new(column, &options).map_err(failed)?;
            let texts = (0..column.len()).map(|i| column.is_valid(i).then(|| cell(shown.value(i).to_string())));
            Ok(std::sync::Arc::new(texts.collect::<StringArray>()) as ArrayRef)
        };
        let columns = batch.columns().iter().map(column).collect::<Result<Vec<_>, Error>>()?;
        let options = datafusion::arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(texts.clone(), columns, &options).map_err(failed)
    };
    let empty = [RecordBatch::new_empty(schema.clone())];
    let batches = if batches.is_empty() { &empty } else { batches };
    let batches = batches.iter().map(shown).collect::<Result<Vec<_>, _>>()?;
    Ok(pretty_format_batches_with_options(&batches, &FormatOptions::default()).map_err(failed)?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{ArrayRef, ListBuilder, StringArray, StringBuilder};
    use std::sync::Arc;

    #[test]
    fn no_value_commands_a_terminal_or_looks_like_another_row() {
        let evil = "a\u{1b}[2J\u{9b}31m\n| b | forged |\r\u{202e}x\u{2066}\u{e0041}";
        let mut list = ListBuilder::new(StringBuilder::new());
        list.values().append_value(evil);
        list.append(true);
        let columns: Vec<(&str, ArrayRef)> =
            vec![("te\u{1b}xt", Arc::new(StringArray::from(vec![evil]))), ("list", Arc::new(list.finish()))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let text = table(&batch.schema(), &[batch]).unwrap();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.contains("a\u{241b}[2J"), "{text}");
        assert!(!text.chars().any(|c| c != '\n' && (c.is_control() || plain_char(c) != c)), "{text:?}");
        let plan: Vec<(&str, ArrayRef)> = vec![
            ("plan_type", Arc::new(StringArray::from(vec!["logical"]))),
            ("plan", Arc::new(StringArray::from(vec!["a\n  b\u{1b}"]))),
        ];
        let batch = RecordBatch::try_from_iter(plan).unwrap();
        let text = table(&batch.schema(), &[batch]).unwrap();
        assert!(text.lines().count() == 6 && !text.contains('\u{1b}'), "{text}");
    }
}
