//! The tables `call_uses` and `span_ids`: what a rule cannot count itself when it sees only a part of the log.

use std::collections::HashMap;

use datafusion::arrow::record_batch::RecordBatch;

use crate::Error;
use crate::projection::Snapshot;
use crate::rows::{Cell as _, table};
use crate::segments::{Table, Wanted};

table! {
    /// The how-manieth use of its grant a call is, in the order in which the ledger took them.
    UseRow, UseBuilder {
        /// The call.
        seq: u64,
        /// Its grant.
        grant_id: String,
        /// 1 for the first.
        nth: u64,
    }
}

table! {
    /// A span that the ledger has.
    SpanIdRow, SpanIdBuilder {
        /// Its trace.
        trace_id: String,
        /// Its id.
        span_id: String,
    }
}

/// The uses of all grants.
pub(super) fn all_uses(snapshot: &Snapshot) -> Result<RecordBatch, Error> {
    let (mut rows, mut counts) = (UseBuilder::default(), HashMap::<String, u64>::new());
    let columns = ["seq", "grant_id"];
    snapshot.read(&Wanted::all(Table::Events).columns(&columns).only("kind", ["tool_call"]), |batch| {
        let [seq, grant] = batch.columns() else { return Ok(true) };
        for i in 0..batch.num_rows() {
            let Some(grant_id) = <Option<String>>::read(grant, i) else { continue };
            let nth = counts.entry(grant_id.clone()).or_default();
            *nth += 1;
            rows.push(&UseRow { seq: u64::read(seq, i), grant_id, nth: *nth });
        }
        Ok(true)
    })?;
    Ok(rows.finish())
}

/// All spans.
pub(super) fn all_span_ids(snapshot: &Snapshot) -> Result<RecordBatch, Error> {
    let mut rows = SpanIdBuilder::default();
    snapshot.read(&Wanted::all(Table::Spans).columns(&["trace_id", "span_id"]), |batch| {
        let [trace, span] = batch.columns() else { return Ok(true) };
        for i in 0..batch.num_rows() {
            rows.push(&SpanIdRow { trace_id: String::read(trace, i), span_id: String::read(span, i) });
        }
        Ok(true)
    })?;
    Ok(rows.finish())
}
