//! `custody sql --evidence`: an answer, with all that proves the records that it was made of.
//!
//! The bundle is that of `custody export`. The answer is attached to it, and its digest stands in the
//! record of the export, which the log commits to: so neither the rows nor the query can be changed
//! afterwards without `custody check` finding it. That the rows follow from the records is for
//! whoever asks again: the query and the size of the log that it saw are there.

use std::path::Path;

use custody_query::{Answer, format};
use custody_store::system::SeqSet;
use datafusion::arrow::array::AsArray as _;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, UInt64Type};
use datafusion::arrow::record_batch::RecordBatch;
use serde_json::{Value, json};

use crate::Failure;
use crate::control::{Control, Request};
use crate::evidence::write_bundle;
use crate::source::Source;

/// What the attachment of a bundle is called that holds an answer.
const KIND: &str = "custody-sql";

/// Asks, and writes the answer and its evidence to a file.
pub fn write(file: &Path, dir: &Path, ask: &Value) -> Result<(), Failure> {
    let mut control = Control::of(dir)?;
    // As with an export: without a server the question is answered before the log is opened for writing.
    let (source, control) = match control.url()? {
        Some(url) => (Source::at(url), Some(control)),
        None => {
            drop(control);
            (Source::of_directory(dir)?, None)
        }
    };
    let (schema, batches, truncated) = source.sql(ask)?;
    if truncated {
        return Err(Failure::wrong("the answer has more rows than --max-rows; evidence is of whole answers"));
    }
    drop(source);
    let seqs = seqs(&batches)?;
    let rows = batches.iter().map(RecordBatch::num_rows).sum();
    let answer = Answer { schema, batches, rows, truncated, as_of_size: 0, elapsed: std::time::Duration::ZERO };
    let result = String::from_utf8(format::csv(&answer).map_err(Failure::unable)?).map_err(Failure::unable)?;
    let attached = json!({
        "type": KIND, "sql": ask["sql"], "params": ask["params"], "rows": rows, "format": "csv", "result": result,
    });
    let query = format!("{}{}", said(&attached), ask["sql"].as_str().unwrap_or_default());
    let mut control = control.map_or_else(|| Control::of(dir), Ok)?;
    let request = Request::Export { seqs: seqs.to_string(), all: false, query, reason: String::new(), attached };
    write_bundle(file, &mut control, &request)
}

/// The records of an answer: those of its column `seq`, and of lists such as `evidence`.
fn seqs(batches: &[RecordBatch]) -> Result<SeqSet, Failure> {
    let list = DataType::List(std::sync::Arc::new(Field::new("item", DataType::UInt64, true)));
    let mut seqs = Vec::new();
    let mut known = false;
    for batch in batches {
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            let wrong = |_| Failure::wrong(format!("the column {} does not hold seqs", field.name()));
            match field.name().as_str() {
                "seq" | "issued_seq" | "verified_seq" if !field.data_type().is_nested() => {
                    let numbers = cast(column, &DataType::UInt64).map_err(wrong)?;
                    seqs.extend(numbers.as_primitive::<UInt64Type>().iter().flatten());
                    known = true;
                }
                "seqs" | "evidence" => {
                    let lists = cast(column, &list).map_err(wrong)?;
                    let lists = lists.as_list::<i32>().iter().flatten().collect::<Vec<_>>();
                    seqs.extend(lists.iter().flat_map(|l| l.as_primitive::<UInt64Type>().iter().flatten()));
                    known = true;
                }
                _ => {}
            }
        }
    }
    if !known {
        return Err(Failure::wrong(
            "nothing in the answer says which records it is made of: add the column seq, or to groups \
             array_agg(seq) AS seqs; an answer without rows has no evidence",
        ));
    }
    if seqs.is_empty() {
        return Err(Failure::wrong("no row of the answer names a record"));
    }
    Ok(SeqSet::of_seqs(seqs))
}

/// How the record of an export names the answer: by its digest.
fn said(attached: &Value) -> String {
    let mut digest = blake3::Hasher::new();
    for part in ["sql", "params", "result"] {
        let text = attached[part].as_str().map_or_else(|| attached[part].to_string(), str::to_owned);
        digest.update(&(text.len() as u64).to_be_bytes()).update(text.as_bytes());
    }
    format!("answer blake3:{} to ", digest.finalize().to_hex())
}

/// Checks the answer that a bundle brings, if it does. The manifest's `query` is that of the log.
pub fn check(manifest: &Value) -> Result<Option<String>, Failure> {
    let attached = &manifest["attached"];
    if attached["type"] != KIND {
        return Ok(None);
    }
    let query = manifest["query"].as_str().unwrap_or_default();
    let sql = attached["sql"].as_str().unwrap_or_default();
    if query != format!("{}{sql}", said(attached)) {
        return Err(Failure::wrong("the answer that is attached is not the one whose digest the log has"));
    }
    Ok(Some(format!("its answer of {} rows is the one whose digest the log has\n", attached["rows"])))
}
