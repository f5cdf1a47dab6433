//! The table `finished_spans`: spans that came while they ran and came again when they had ended, which docs/otlp.md
//! allows. The log flags the second as conflicting, for its content is another; but nothing that was said is taken back.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;

use datafusion::arrow::array::{Array as _, RecordBatch};
use serde_json::Value as Json;

use crate::Error;
use crate::projection::Snapshot;
use crate::rows::{Cell as _, Time, table};
use crate::segments::{Table, Wanted};
use crate::tables::SpanRow;

/// Running spans that are remembered, at most; the oldest go first.
const RUNNING_MAX: usize = 50_000;

table! {
    /// A span that its sender had sent while it ran, and that says the same and more now that it has ended.
    FinishedRow, FinishedBuilder {
        /// The record that ended it.
        seq: u64,
    }
}

/// Whose it is, its trace and its id.
type Key = (Option<String>, String, String);

/// What a span said while it ran: digests, for what senders write may be long.
#[derive(Debug)]
struct Said {
    whole: u64,
    status: Option<u64>,
    parts: HashSet<u64>,
}

/// Spans that run.
#[derive(Debug, Default)]
pub(super) struct Running {
    hasher: RandomState,
    said: HashMap<Key, Said>,
    order: VecDeque<(i64, Key)>,
    finished: BTreeSet<u64>,
}

impl Running {
    /// Takes spans in, and notes the records that end one and change nothing else.
    pub(super) fn take(&mut self, batch: &RecordBatch) {
        let Some(ends) = batch.column_by_name("end_time") else { return };
        if ends.null_count() == 0 && self.said.is_empty() {
            return;
        }
        let [trace, span, tenant] = ["trace_id", "span_id", "tenant"].map(|name| batch.column_by_name(name));
        let (Some(trace), Some(span), Some(tenant)) = (trace, span, tenant) else { return };
        for i in 0..batch.num_rows() {
            let mut key = (<Option<String>>::read(tenant, i), String::read(trace, i), String::read(span, i));
            let mut is_known = self.said.contains_key(&key);
            if !is_known && key.0.is_some() {
                // It may not have said before whose it is.
                let nobodys = (None, key.1.clone(), key.2.clone());
                is_known = self.said.contains_key(&nobodys);
                key = if is_known { nobodys } else { key };
            }
            if is_known == ends.is_null(i) {
                continue;
            }
            // Only of the few that run, or did, all is read.
            let Some(row) = SpanRow::read(&batch.slice(i, 1)).pop() else { continue };
            let said = self.said_by(&row);
            if !is_known {
                self.order.push_back((row.ingest_time.0, key.clone()));
                self.said.insert(key, said);
            } else if self.said.get(&key).is_some_and(|before| goes_on(before, &said)) {
                self.said.remove(&key);
                self.finished.insert(row.seq);
            }
        }
    }

    fn said_by(&self, row: &SpanRow) -> Said {
        let own =
            (&row.submitter, &row.parent_span_id, &row.trace_state, row.flags, &row.name, &row.kind, row.start_time.0);
        let source = (&row.service_name, &row.service_instance_id, &row.scope_name, &row.scope_version, &row.resource);
        let status = (&row.status_code, &row.status_message);
        let mut parts = HashSet::new();
        for (what, json) in [(0, &row.attributes), (1, &row.events), (2, &row.links)] {
            let mut add = |name: &str, value: &Json| {
                parts.insert(self.hasher.hash_one((what, name, value.to_string())));
            };
            match serde_json::from_str(json) {
                Ok(Json::Object(fields)) => fields.iter().for_each(|(name, value)| add(name, value)),
                Ok(Json::Array(items)) => items.iter().for_each(|item| add("", item)),
                _ => {}
            }
        }
        let is_unset = row.status_code == "unset";
        Said {
            whole: self.hasher.hash_one((own, source)),
            status: (!is_unset).then(|| self.hasher.hash_one(status)),
            parts,
        }
    }

    /// Forgets spans that came before a time, and the oldest beyond the bound.
    pub(super) fn let_go(&mut self, before: i64) {
        while let Some((_, key)) = self.order.pop_front_if(|(time, _)| *time < before) {
            self.said.remove(&key);
        }
        while self.order.len() > RUNNING_MAX {
            let oldest = self.order.pop_front();
            oldest.and_then(|(_, key)| self.said.remove(&key));
        }
    }

    /// What ended is told; what came before a time is forgotten.
    pub(super) fn next(&mut self, before: i64) {
        self.finished.clear();
        self.let_go(before);
    }

    /// Takes in the spans in a range of a snapshot.
    pub(super) fn read(&mut self, snapshot: &Snapshot, range: Range<u64>, window: i64) -> Result<(), Error> {
        let (mut first, columns, end) = (None, ["seq", "end_time"], range.end);
        snapshot.read(&Wanted::all(Table::Spans).seqs(range).columns(&columns), |batch| {
            let [seqs, ends] = batch.columns() else { return Ok(true) };
            let running = (0..batch.num_rows()).find(|i| ends.is_null(*i));
            first = running.map(|i| u64::read(seqs, i));
            Ok(first.is_none())
        })?;
        let Some(first) = first else { return Ok(()) };
        snapshot.read(&Wanted::all(Table::Spans).seqs(first..end), |batch| {
            let times = batch.column_by_name("ingest_time").filter(|times| !times.is_empty());
            let time = times.map_or(i64::MIN, |times| Time::read(times, 0).0);
            self.let_go(time.saturating_sub(window));
            self.take(batch);
            Ok(true)
        })
    }

    /// What ended.
    pub(super) fn rows(&self) -> RecordBatch {
        FinishedRow::batch(&self.finished.iter().map(|seq| FinishedRow { seq: *seq }).collect::<Vec<_>>())
    }
}

/// Whether a span says all that it said before.
fn goes_on(before: &Said, now: &Said) -> bool {
    before.whole == now.whole
        && before.status.is_none_or(|status| now.status == Some(status))
        && before.parts.is_subset(&now.parts)
}

/// The ends of all spans of a snapshot that ran.
pub(super) fn of_all(snapshot: &Snapshot, window: i64) -> Result<RecordBatch, Error> {
    let mut running = Running::default();
    running.read(snapshot, 0..snapshot.size, window)?;
    Ok(running.rows())
}
