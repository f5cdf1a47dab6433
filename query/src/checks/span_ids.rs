//! The table `span_ids`: the spans that the ledger has, and whose they are. Where checks follow the log, those of the
//! newest traces.

use std::collections::{HashMap, HashSet, VecDeque};

use datafusion::arrow::array::{Array as _, AsArray as _};
use datafusion::arrow::record_batch::RecordBatch;

use crate::Error;
use crate::projection::Snapshot;
use crate::rows::{Cell as _, Time, table};
use crate::segments::{Table, Wanted};

/// Span ids at hand, at most: the traces that were longest without a span go first.
const SPANS_MAX: usize = 1_000_000;

/// A tenant's name, which may be long, counts as so many ids in each trace that it is in: one for each few bytes.
const NAME_BYTES: usize = 8;

table! {
    /// A span that the ledger has.
    SpanIdRow, SpanIdBuilder {
        /// Its trace.
        trace_id: String,
        /// Its id.
        span_id: String,
        /// Whose it is, as its record says.
        tenant: Option<String>,
    }
}

/// The spans of one trace.
#[derive(Debug, Default)]
struct Trace {
    /// When the newest came.
    newest: i64,
    nobodys: HashSet<u64>,
    of: HashMap<Box<str>, HashSet<u64>>,
}

impl Trace {
    fn count(&self) -> usize {
        let of = self.of.iter().map(|(tenant, spans)| tenant.len() / NAME_BYTES + spans.len());
        self.nobodys.len() + of.sum::<usize>()
    }

    /// Takes a span in; how much larger it is then.
    fn add(&mut self, span: u64, tenant: Option<&str>) -> usize {
        let Some(tenant) = tenant else { return usize::from(self.nobodys.insert(span)) };
        if let Some(spans) = self.of.get_mut(tenant) {
            return usize::from(spans.insert(span));
        }
        self.of.insert(tenant.into(), HashSet::from([span]));
        tenant.len() / NAME_BYTES + 1
    }
}

/// Span ids by trace.
#[derive(Debug, Default)]
pub(super) struct SpanIds {
    by_trace: HashMap<u128, Trace>,
    /// Traces in the order in which time lets them go.
    order: VecDeque<(i64, u128)>,
    count: usize,
}

impl SpanIds {
    /// Takes spans in.
    pub(super) fn take(&mut self, batch: &RecordBatch) {
        let texts = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let (trace, span, tenant) = (texts("trace_id"), texts("span_id"), texts("tenant"));
        if let (Some(trace), Some(span), Some(tenant), Some(time)) =
            (trace, span, tenant, batch.column_by_name("ingest_time"))
        {
            for i in 0..batch.num_rows() {
                let tenant = tenant.is_valid(i).then(|| tenant.value(i));
                self.insert((trace.value(i), span.value(i)), tenant, Time::read(time, i).0);
            }
        }
    }

    /// Takes the id of a span in. What is no id of OTLP is no span's parent either.
    fn insert(&mut self, (trace, span): (&str, &str), tenant: Option<&str>, ingest_time: i64) {
        let (Ok(trace), Ok(span)) = (u128::from_str_radix(trace, 16), u64::from_str_radix(span, 16)) else { return };
        if !self.by_trace.contains_key(&trace) {
            self.order.push_back((ingest_time, trace));
        }
        let of = self.by_trace.entry(trace).or_default();
        of.newest = ingest_time;
        self.count += of.add(span, tenant);
    }

    /// Lets go of traces that had no span since `before`, and of the oldest beyond the bound.
    pub(super) fn let_go(&mut self, before: i64) {
        while let Some(&(time, trace)) = self.order.front() {
            let last = self.by_trace.get(&trace).map_or(time, |of| of.newest);
            let is_over = self.count > SPANS_MAX;
            if time >= before && !is_over {
                break;
            }
            self.order.pop_front();
            // It had spans since it was put there: it is not yet the oldest.
            if last > time && (last >= before || is_over) {
                self.order.push_back((last, trace));
            } else if let Some(spans) = self.by_trace.remove(&trace) {
                self.count -= spans.count();
            }
        }
    }

    /// The spans of some traces.
    pub(super) fn rows<'a>(&self, traces: impl IntoIterator<Item = &'a String>) -> Vec<SpanIdRow> {
        let mut out = Vec::new();
        for trace in traces {
            let Some(of) = u128::from_str_radix(trace, 16).ok().and_then(|id| self.by_trace.get(&id)) else { continue };
            let mut add = |span: &u64, tenant: Option<&str>| {
                let (span_id, tenant) = (format!("{span:016x}"), tenant.map(str::to_owned));
                out.push(SpanIdRow { trace_id: trace.clone(), span_id, tenant });
            };
            of.nobodys.iter().for_each(|span| add(span, None));
            for (tenant, spans) in &of.of {
                spans.iter().for_each(|span| add(span, Some(tenant)));
            }
        }
        out
    }
}

/// All spans.
pub(super) fn of_all(snapshot: &Snapshot) -> Result<RecordBatch, Error> {
    let mut rows = SpanIdBuilder::default();
    snapshot.read(&Wanted::all(Table::Spans).columns(&["trace_id", "span_id", "tenant"]), |batch| {
        let [trace, span, tenant] = batch.columns() else { return Ok(true) };
        for i in 0..batch.num_rows() {
            let (trace_id, span_id) = (String::read(trace, i), String::read(span, i));
            rows.push(&SpanIdRow { trace_id, span_id, tenant: <Option<String>>::read(tenant, i) });
        }
        Ok(true)
    })?;
    Ok(rows.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_id_in_two_tenants_is_two_spans_and_traces_go_with_time() {
        let mut spans = SpanIds::default();
        for (span, tenant, time) in
            [("a", None, 1), ("a", Some("acme"), 2), ("a", Some("acme"), 3), ("b", Some("globex"), 4)]
        {
            spans.insert(("1", span), tenant, time);
        }
        spans.insert(("2", "c"), None, 2);
        let trace = "00000000000000000000000000000001".to_owned();
        let mut rows: Vec<_> = spans.rows([&trace]).into_iter().map(|row| (row.span_id, row.tenant)).collect();
        rows.sort();
        let id = |span: char| format!("000000000000000{span}");
        assert_eq!(rows, [(id('a'), None), (id('a'), Some("acme".into())), (id('b'), Some("globex".into()))]);
        assert_eq!(spans.count, 4);
        spans.let_go(3);
        assert_eq!((spans.count, spans.by_trace.len()), (3, 1), "the other had nothing since");
        spans.let_go(5);
        assert!(spans.count == 0 && spans.by_trace.is_empty() && spans.order.is_empty());
    }
}
