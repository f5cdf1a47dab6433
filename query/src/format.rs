//! Answers as rows of JSON, as bytes of any format, and as a table for people.

use custody_proto::seen::is_steering;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::json::writer::{JsonArray, WriterBuilder};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::arrow::util::display::FormatOptions;
use datafusion::arrow::util::pretty::pretty_format_batches_with_options;
use serde_json::{Map, Value as Json};

use crate::engine::Answer;
use crate::error::Error;
use crate::pieces::{Format, Pieces};

pub(crate) fn failed(error: impl std::fmt::Display) -> Error {
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

/// An answer in a format, all of it.
pub fn bytes(answer: &Answer, format: Format) -> Result<Vec<u8>, Error> {
    let mut pieces = Pieces::new(format, &answer.schema)?;
    let mut out = Vec::new();
    for batch in &answer.batches {
        out.extend_from_slice(&pieces.batch(batch)?);
    }
    out.extend_from_slice(&pieces.end(&answer.stats())?);
    Ok(out)
}

/// Refuses times that no calendar here has: as texts they would be the words of an error, among the values.
pub(crate) fn times_can_be_told(batch: &RecordBatch) -> Result<(), Error> {
    use datafusion::arrow::array::AsArray as _;
    use datafusion::arrow::compute::{max, min};
    use datafusion::arrow::datatypes::{
        DataType, TimeUnit, TimestampMicrosecondType as Micros, TimestampMillisecondType as Millis,
        TimestampSecondType as Seconds,
    };
    /// Seconds from 1970 to the end of the year 262,142, and to the beginning of -262,143.
    const SECONDS: std::ops::RangeInclusive<i64> = -8_334_601_228_800..=8_210_266_876_799;
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let (range, scale) = match field.data_type() {
            DataType::Timestamp(TimeUnit::Second, _) => {
                let times = column.as_primitive::<Seconds>();
                ((min(times), max(times)), 1)
            }
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                let times = column.as_primitive::<Millis>();
                ((min(times), max(times)), 1_000)
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                let times = column.as_primitive::<Micros>();
                ((min(times), max(times)), 1_000_000)
            }
            _ => continue,
        };
        if [range.0, range.1].into_iter().flatten().any(|time| !SECONDS.contains(&time.div_euclid(scale))) {
            let message = format!("the column {} has a time beyond the year 262142", field.name());
            return Err(Error::invalid(message + "; is the number in milli-, micro- or nanoseconds?"));
        }
    }
    Ok(())
}

/// CSV has no lists: each is written as it would be shown.
pub(crate) fn lists_as_text(batch: &RecordBatch) -> Result<RecordBatch, Error> {
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

/// Reads an Arrow IPC stream back.
pub fn from_arrow(bytes: &[u8]) -> Result<(SchemaRef, Vec<RecordBatch>), Error> {
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
        c if is_steering(c) => '\u{FFFD}',
        c => c,
    }
}

/// Lines as they may go to a terminal: each as [`plain`] makes it, but for the tabs between columns.
pub fn plain_lines(text: &str) -> String {
    let line = |line: &str| line.split('\t').map(plain).collect::<Vec<_>>().join("\t");
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// A table for people, its cells as [`plain`] makes them.
pub fn table(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<String, Error> {
    let texts = shown(schema, batches)?;
    Ok(pretty_format_batches_with_options(&texts, &FormatOptions::default()).map_err(failed)?.to_string())
}

/// All values as texts for people, as [`plain`] makes them: at least one batch, be it empty.
pub fn shown(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<RecordBatch>, Error> {
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
    batches.iter().map(shown).collect()
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
        assert_eq!(
            plain_lines("a\tb\u{1b}\r\n\n{\"x\": \"\u{9b}\"}\n"),
            "a\tb\u{241b}\u{240d}\n\n{\"x\": \"\u{fffd}\"}\n"
        );
        let plan: Vec<(&str, ArrayRef)> = vec![
            ("plan_type", Arc::new(StringArray::from(vec!["logical"]))),
            ("plan", Arc::new(StringArray::from(vec!["a\n  b\u{1b}"]))),
        ];
        let batch = RecordBatch::try_from_iter(plan).unwrap();
        let text = table(&batch.schema(), &[batch]).unwrap();
        assert!(text.lines().count() == 6 && !text.contains('\u{1b}'), "{text}");
    }
}
