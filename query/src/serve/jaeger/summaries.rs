//! Traces in short: their root, how long they took, how many spans each service has in them, and how many of these are
//! errors. The list of results of the Jaeger UI (from 2.19 on) is made of nothing else.

use std::collections::{BTreeMap, HashMap, HashSet};

use datafusion::arrow::record_batch::RecordBatch;
use serde_json::{Value as Json, json};

use super::asker::Asker;
use super::find::{AT_ONCE, NO_SERVICE, Search, in_traces, newest};
use crate::error::{Error, ErrorKind};
use crate::rows::{Cell, Time};

/// The columns that are looked at, in this order.
const COLUMNS: &str = "trace_id, span_id, parent_span_id, service_name, name, start_time, end_time, status_code";

/// A trace in short, as its spans are counted one after the other.
#[derive(Default)]
struct Summary {
    /// The earliest span without a parent, and the earliest of all.
    root: Option<First>,
    first: Option<First>,
    start: i64,
    end: i64,
    spans: u64,
    errors: u64,
    /// Spans and errors of each service.
    services: BTreeMap<String, (u64, u64)>,
    ids: HashSet<u64>,
    parents: Vec<u64>,
}

/// A span that stands for its trace.
struct First {
    start: i64,
    service: String,
    name: String,
}

impl Summary {
    fn add(&mut self, batch: &RecordBatch, row: usize) {
        let text = |column: usize| <Option<String> as Cell>::read(batch.column(column), row);
        // As eight bytes: with a million of them, their digits would be four times as much.
        let id = |column: usize| text(column).and_then(|id| u64::from_str_radix(&id, 16).ok());
        let start = <Time as Cell>::read(batch.column(5), row).0;
        let end = <Option<Time> as Cell>::read(batch.column(6), row).map_or(start, |end| end.0.max(start));
        let is_error = text(7).as_deref() == Some("error");
        let service = text(3).unwrap_or_else(|| NO_SERVICE.to_owned());
        let parent = id(2);
        let earlier = |first: &Option<First>| first.as_ref().is_none_or(|first| start < first.start);
        for (first, may) in [(&mut self.first, true), (&mut self.root, parent.is_none())] {
            if may && earlier(first) {
                *first = Some(First { start, service: service.clone(), name: text(4).unwrap_or_default() });
            }
        }
        self.start = if self.spans == 0 { start } else { self.start.min(start) };
        self.end = self.end.max(end);
        self.spans += 1;
        self.errors += u64::from(is_error);
        let of = self.services.entry(service).or_default();
        *of = (of.0 + 1, of.1 + u64::from(is_error));
        self.ids.extend(id(1));
        self.parents.extend(parent);
    }

    /// As API v3 has it (`TraceSummary`).
    fn json(&self, trace_id: &str) -> Json {
        let root = self.root.as_ref().or(self.first.as_ref());
        let orphans = self.parents.iter().filter(|parent| !self.ids.contains(parent)).count();
        let service = |(name, (spans, errors)): (&String, &(u64, u64))| json!({"name": name, "spanCount": spans, "errorSpanCount": errors});
        json!({
            "traceId": trace_id,
            "rootServiceName": root.map_or("", |root| root.service.as_str()),
            "rootOperationName": root.map_or("", |root| root.name.as_str()),
            "minStartTimeUnixNano": self.start.to_string(),
            "maxEndTimeUnixNano": self.end.to_string(),
            "spanCount": self.spans,
            "errorSpanCount": self.errors,
            "orphanSpanCount": orphans,
            "services": self.services.iter().map(service).collect::<Vec<_>>(),
        })
    }
}

/// The summaries of the traces that a search finds, the newest first.
pub(super) async fn of(asker: &Asker<'_>, search: &Search) -> Result<Vec<Json>, Error> {
    let work = async {
        let ids = newest(asker, search).await?;
        of_traces(asker, &ids).await
    };
    asker.in_parts("search", &search.whole(), work).await
}

/// The summaries of some traces, in their order, and how many spans they have.
async fn of_traces(asker: &Asker<'_>, ids: &[String]) -> Result<(Vec<Json>, u64), Error> {
    let mut out = Vec::new();
    let mut room = asker.spans_max;
    for ids in ids.chunks(AT_ONCE) {
        let sql = format!("SELECT {COLUMNS} FROM spans WHERE {}", in_traces(ids));
        let mut rows = asker.stream("summaries of the traces found", &sql, room).await?;
        let mut of: HashMap<String, Summary> = HashMap::new();
        while let Some(batch) = rows.next().await.map_err(|error| asker.narrower(error))? {
            for row in 0..batch.num_rows() {
                let id = <String as Cell>::read(batch.column(0), row);
                of.entry(id).or_default().add(&batch, row);
            }
        }
        if rows.truncated {
            let most = asker.spans_max;
            let message = format!("the traces that were found have more than {most} spans; ask for fewer traces");
            return Err(Error::new(ErrorKind::Resources, message));
        }
        room -= rows.rows;
        out.extend(ids.iter().filter_map(|id| of.get(id).map(|summary| summary.json(id))));
    }
    Ok((out, (asker.spans_max - room) as u64))
}
