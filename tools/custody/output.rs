//! Answers as they are printed, or written to a file.
//!
//! What goes to a terminal goes there with control characters as pictures, in every format: no value can command
//! the terminal, or look like another row.

use clap::ValueEnum;
use custody_query::format;
use custody_query::pieces::{Format, Pieces, Stats};
use datafusion::arrow::array::{Array as _, AsArray as _};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;

use crate::Failure;
use crate::source::Ended;

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// A row a line.
    Json,
    /// With a header.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

impl Output {
    /// Its name.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it is nothing to look at.
    pub fn is_binary(self) -> bool {
        matches!(self, Self::Arrow | Self::Parquet)
    }
}

/// Writes an answer as its rows come.
pub struct Writing {
    pieces: Pieces,
    schema: SchemaRef,
    format: Output,
    is_terminal: bool,
}

impl Writing {
    /// Begins an answer with these columns. A table cannot be begun: its widths depend on all rows.
    pub fn new(format: Output, schema: &SchemaRef, is_terminal: bool) -> Result<Self, Failure> {
        let kind = match format {
            Output::Table | Output::Json => Format::Ndjson,
            Output::Csv => Format::Csv,
            Output::Arrow => Format::Arrow,
            Output::Parquet => Format::Parquet,
        };
        if format.is_binary() && is_terminal {
            let name = format.name();
            return Err(Failure::wrong(format!("{name} is nothing for a terminal; write it to a file")));
        }
        let columns = match (format, is_terminal) {
            (Output::Csv, true) => columns(&format::shown(schema, &[]).map_err(Failure::unable)?, schema),
            _ => schema.clone(),
        };
        let pieces = Pieces::new(kind, &columns).map_err(Failure::unable)?;
        Ok(Self { pieces, schema: schema.clone(), format, is_terminal })
    }

    /// The next rows.
    pub fn rows(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, Failure> {
        if !(self.is_terminal && self.format == Output::Csv) {
            let bytes = self.pieces.batch(batch).map_err(Failure::unable)?;
            return Ok(self.harmless(bytes));
        }
        let mut out = Vec::new();
        for texts in format::shown(&self.schema, std::slice::from_ref(batch)).map_err(Failure::unable)? {
            out.extend(self.pieces.batch(&texts).map_err(Failure::unable)?);
        }
        Ok(out)
    }

    /// What comes behind the last rows.
    pub fn end(&mut self, ended: &Ended) -> Result<Vec<u8>, Failure> {
        let Ended { rows, truncated, log_size, notes } = ended.clone();
        let stats = Stats { rows: rows as u64, truncated, log_size, elapsed_ms: 0, notes };
        self.pieces.end(&stats).map_err(Failure::unable)
    }

    /// JSON writes line breaks of texts as such, and leaves other signs as they are.
    fn harmless(&self, bytes: Vec<u8>) -> Vec<u8> {
        if !self.is_terminal || self.format.is_binary() {
            return bytes;
        }
        format::plain_lines(&String::from_utf8_lossy(&bytes)).into_bytes()
    }
}

fn columns(batches: &[RecordBatch], otherwise: &SchemaRef) -> SchemaRef {
    batches.first().map_or_else(|| otherwise.clone(), RecordBatch::schema)
}

/// Says what is to be said of an answer, where it does not stand among its rows.
pub fn say(notes: &[String]) {
    for note in notes {
        eprintln!("custody sql: {}", format::plain(note));
    }
}

/// A table for people, with the number of its rows.
pub fn table(schema: &SchemaRef, batches: &[RecordBatch], truncated: bool) -> Result<String, Failure> {
    let table = format::table(schema, batches).map_err(Failure::unable)?;
    Ok(format!("{table}\n{}", counted(batches, truncated)))
}

/// `3 rows`, on a line.
fn counted(batches: &[RecordBatch], truncated: bool) -> String {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let more = if truncated { " (there are more; --max-rows allows them)" } else { "" };
    let noun = if rows == 1 { "row" } else { "rows" };
    format!("{rows} {noun}{more}\n")
}

/// A column a line, for rows that are wider than a screen.
pub fn expanded(schema: &SchemaRef, batches: &[RecordBatch], truncated: bool) -> Result<String, Failure> {
    let texts = format::shown(schema, batches).map_err(Failure::unable)?;
    let names: Vec<String> = columns(&texts, schema).fields().iter().map(|field| field.name().clone()).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or_default();
    let (mut out, mut number) = (String::new(), 0);
    for batch in &texts {
        for row in 0..batch.num_rows() {
            number += 1;
            let head = format!("-[ record {number} ]");
            out += &format!("{head:-<rule$}\n", rule = (width + 3).max(head.len() + 1));
            for (name, column) in names.iter().zip(batch.columns()) {
                let column = column.as_string::<i32>();
                let value = if column.is_valid(row) { column.value(row) } else { "" };
                // What EXPLAIN says has lines of its own.
                let value = value.replace('\n', &format!("\n{:width$} | ", ""));
                out += format!("{name:<width$} | {value}").trim_end();
                out.push('\n');
            }
        }
    }
    Ok(out + &counted(batches, truncated))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{ArrayRef, StringArray};
    use std::sync::Arc;

    fn evil() -> RecordBatch {
        let column: ArrayRef = Arc::new(StringArray::from(vec![Some("a\u{1b}[2J\nb\u{202e}"), None]));
        let other: ArrayRef = Arc::new(StringArray::from(vec!["x", "y"]));
        RecordBatch::try_from_iter_with_nullable([("text", column, true), ("other_column", other, false)]).unwrap()
    }

    fn written(format: Output, is_terminal: bool) -> String {
        let batch = evil();
        let mut writing = Writing::new(format, &batch.schema(), is_terminal).unwrap();
        let mut out = writing.rows(&batch).unwrap();
        out.extend(writing.end(&Ended { rows: 2, ..Ended::default() }).unwrap());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_terminal_gets_pictures_and_a_file_the_values() {
        for format in [Output::Json, Output::Csv] {
            let shown = written(format, true);
            assert!(!shown.contains('\u{1b}') && !shown.contains('\u{202e}'), "{shown:?}");
            assert!(written(format, false).contains('\u{202e}'));
        }
        assert_eq!(written(Output::Csv, true).lines().count(), 3, "a row a line");
        assert_eq!(written(Output::Csv, true).lines().next(), Some("text,other_column"));
        assert!(Writing::new(Output::Parquet, &evil().schema(), true).is_err());
    }

    #[test]
    fn expanded_rows_have_a_column_a_line() {
        let text = expanded(&evil().schema(), &[evil()], true).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("-[ record 1 ]--"), "{text}");
        assert_eq!(lines[1], "text         | a\u{241b}[2J\u{240a}b\u{fffd}");
        assert_eq!((lines[4], lines[5]), ("text         |", "other_column | y"));
        assert_eq!(lines[6], "2 rows (there are more; --max-rows allows them)");
    }
}
