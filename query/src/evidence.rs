//! An answer as evidence: which records it is made of, and how a bundle holds it.
//!
//! The bundle is that of `custody export`. The answer is attached to it, and its digest stands in the record of the
//! export, which the log commits to: so neither the rows nor the query can be changed afterwards without
//! `custody check` finding it. That the rows follow from the records is for whoever asks again: the query is there,
//! and the size of the log that it saw.

use std::sync::Arc;

use custody_store::system::SeqSet;
use custody_store::{Block, Reader};
use datafusion::arrow::array::AsArray as _;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, UInt64Type};
use datafusion::arrow::record_batch::RecordBatch;
use serde_json::{Value, json};

use crate::caller::RowFilter;
use crate::engine::Answer;
use crate::error::Error;
use crate::format;
use crate::pieces::Format;
use crate::tenancy::Tenancy;

/// What the attachment of a bundle is called that holds an answer.
const KIND: &str = "custody-sql";

/// An answer as it is attached to a bundle.
///
/// # Errors
///
/// If it was cut off, or cannot be written as CSV.
pub fn attached(sql: &str, params: &Value, answer: &Answer) -> Result<Value, Error> {
    if answer.truncated {
        return Err(Error::invalid("the answer has more rows than max_rows allows; evidence is of whole answers"));
    }
    let result = String::from_utf8(format::bytes(answer, Format::Csv)?).map_err(format::failed)?;
    Ok(json!({
        "type": KIND, "sql": sql, "params": params, "rows": answer.rows, "log_size": answer.as_of_size,
        "format": "csv", "result": result,
    }))
}

/// How the record of an export names the answer: by its digest, and by the query.
pub fn words(attached: &Value) -> String {
    format!("{}{}", said(attached), attached["sql"].as_str().unwrap_or_default())
}

fn said(attached: &Value) -> String {
    let mut digest = blake3::Hasher::new();
    for part in ["sql", "params", "result"] {
        let text = attached[part].as_str().map_or_else(|| attached[part].to_string(), str::to_owned);
        digest.update(&(text.len() as u64).to_be_bytes()).update(text.as_bytes());
    }
    format!("answer blake3:{} to ", digest.finalize().to_hex())
}

/// Checks the answer that a bundle brings, if it does; gives its number of rows. The manifest's `query` is that of
/// the log.
///
/// # Errors
///
/// If it is another answer than the log has the digest of.
pub fn check(manifest: &Value) -> Result<Option<&Value>, Error> {
    let attached = &manifest["attached"];
    if attached["type"] != KIND {
        return Ok(None);
    }
    if manifest["query"].as_str() != Some(&words(attached)) {
        return Err(Error::invalid("the answer that is attached is not the one whose digest the log has"));
    }
    Ok(Some(&attached["rows"]))
}

/// The records of an answer: those of its column `seq`, and of lists such as `evidence`.
///
/// # Errors
///
/// If it names none.
pub fn seqs(batches: &[RecordBatch]) -> Result<SeqSet, Error> {
    let list = DataType::List(Arc::new(Field::new("item", DataType::UInt64, true)));
    let mut seqs = Vec::new();
    let mut known = false;
    for batch in batches {
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            let wrong = |_| Error::invalid(format!("the column {} does not hold seqs", field.name()));
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
        return Err(Error::invalid(
            "nothing in the answer says which records it is made of: add the column seq, or to groups \
             array_agg(seq) AS seqs; an answer without rows has no evidence",
        ));
    }
    if seqs.is_empty() {
        return Err(Error::invalid("no row of the answer names a record"));
    }
    Ok(SeqSet::of_seqs(seqs))
}

/// The first of these records that a caller may not see: a query can name any number.
///
/// # Errors
///
/// If the log cannot be read.
pub(crate) fn hidden(reader: &Reader, rows: &RowFilter, seqs: &SeqSet) -> Result<Option<u64>, Error> {
    if rows.is_open() {
        return Ok(None);
    }
    let mut last = None;
    for seq in seqs.seqs() {
        // As with `proof(seq)`: whose a record was whose content is erased, nothing says any more.
        let holds = |block: &Block| seq.wrapping_sub(block.commitments.first_seq) < block.commitments.count();
        let block = match last.take().filter(holds) {
            Some(block) => Some(block),
            None => reader.block_at(seq).map_err(Error::store)?,
        };
        let Some(block) = block else { return Ok(Some(seq)) };
        let at = (seq - block.commitments.first_seq) as usize;
        let shown = Tenancy::of_block(&block, at);
        if !shown.is_some_and(|of| rows.sees(of.tenant.as_deref(), of.workspace.as_deref())) {
            return Ok(Some(seq));
        }
        last = Some(block);
    }
    Ok(None)
}
