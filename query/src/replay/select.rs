//! Which records belong to an id: of a trace all its spans and logs; of anything else its
//! own events, and all of the traces that they are in. An id that names several things is
//! all of them, unless it is said which is meant.

use std::collections::{BTreeSet, HashSet};

use datafusion::arrow::record_batch::RecordBatch;
use serde_json::Value as Json;

use super::{Named, Room};
use crate::Error;
use crate::adapt::hex_as_stored;
use crate::ids::{Finder, Kind, Posting};
use crate::lineage::below;
use crate::projection::Snapshot;
use crate::rows::Cell;
use crate::segments::{Table, Wanted};

/// What a seq takes in a set, and an id of a trace, about.
const SEQ_BYTES: usize = 32;
const TRACE_BYTES: usize = 128;

/// So many records without rows are looked at: an erasure may take many at once.
const GONE_MAX: usize = 64;

/// What of an event tells whether it is of an id, and where it belongs.
const COLUMNS: [&str; 10] = [
    "seq",
    "kind",
    "trace_id",
    "agent_id",
    "agent_name",
    "grant_id",
    "parent_grant_id",
    "correlation_id",
    "conversation_id",
    "attributes",
];

/// What was chosen.
pub(super) struct Chosen {
    /// The seqs, in order.
    pub(super) seqs: Vec<u64>,
    /// What the id names, where one of that would not be all of it.
    pub(super) names: Vec<&'static str>,
    /// A record that the index names and that no row is there of.
    pub(super) lost: Option<u64>,
}

/// What an id names, all of it: whoever knows the id of a grant could else hide its replay behind a trace of that id.
pub(super) fn select(
    snapshot: &Snapshot,
    finder: &Finder<'_>,
    (id, named): (&str, Named),
    room: Room<'_>,
) -> Result<Chosen, Error> {
    let stored = hex_as_stored(id, 32).unwrap_or_else(|| id.to_owned());
    let trace = if named.takes(Named::Trace) { of_trace(snapshot, finder, &stored)? } else { Vec::new() };
    room(trace.len().saturating_mul(SEQ_BYTES))?;
    let mut own = Own::read(snapshot, finder, (id, named), room)?;
    if own.seqs.is_empty() {
        return Ok(Chosen { seqs: trace, names: Vec::new(), lost: own.lost });
    }
    own.cited(snapshot, finder)?;
    room(own.traces.len().saturating_mul(TRACE_BYTES))?;
    let mut all = own.seqs;
    for other in own.traces.iter().filter(|other| trace.is_empty() || **other != stored) {
        let seqs = of_trace(snapshot, finder, other)?;
        room(seqs.len().saturating_mul(SEQ_BYTES))?;
        all.extend(seqs);
    }
    own.names.extend((!trace.is_empty()).then_some("a trace"));
    let in_trace = trace.len();
    all.extend(trace);
    let is_told = own.names.len() > 1 && all.len() > in_trace && named == Named::Any;
    let names = if is_told { own.names.into_iter().collect() } else { Vec::new() };
    Ok(Chosen { seqs: all.into_iter().collect(), names, lost: own.lost })
}

/// An id's own events, without the traces that they are in.
#[derive(Default)]
struct Own {
    seqs: BTreeSet<u64>,
    traces: HashSet<String>,
    /// What alerts of this id cite.
    evidence: BTreeSet<u64>,
    names: BTreeSet<&'static str>,
    lost: Option<u64>,
}

impl Own {
    fn read(
        snapshot: &Snapshot,
        finder: &Finder<'_>,
        (id, named): (&str, Named),
        room: Room<'_>,
    ) -> Result<Self, Error> {
        // A grant is also what was done under those derived from it.
        let grants = if named.takes(Named::Grant) { below(finder, snapshot, id)? } else { HashSet::new() };
        let kinds =
            [(Named::Agent, Kind::Agent), (Named::Conversation, Kind::Conversation), (Named::Alert, Kind::Correlation)];
        let others = kinds.into_iter().filter(|(as_what, _)| named.takes(*as_what)).map(|(_, kind)| (kind, id));
        let mut found = BTreeSet::new();
        for (kind, id) in others.chain(grants.iter().map(|grant| (Kind::Grant, grant.as_str()))) {
            let postings = finder.find(kind, id)?;
            room(postings.len().saturating_mul(SEQ_BYTES))?;
            found.extend(postings.into_iter().map(Posting::seq));
        }
        let found: Vec<u64> = found.into_iter().collect();
        let mut own = Self::default();
        if !found.is_empty() {
            let mut is_there = vec![false; found.len()];
            snapshot.records(Table::Events, &COLUMNS, &found, &mut |batch| {
                own.take(id, batch);
                let seqs = batch.column_by_name("seq");
                let seqs = seqs.into_iter().flat_map(|c| (0..batch.num_rows()).map(move |i| <u64 as Cell>::read(c, i)));
                seqs.filter_map(|seq| found.binary_search(&seq).ok()).for_each(|at| is_there[at] = true);
                Ok(())
            })?;
            let gone = found.iter().zip(is_there).filter(|(_, is_there)| !is_there).map(|(seq, _)| *seq);
            own.lost = lost(snapshot, gone)?;
        }
        Ok(own)
    }

    fn take(&mut self, id: &str, batch: &RecordBatch) {
        let text = |name: &str, i: usize| {
            batch.column_by_name(name).and_then(|column| <Option<String> as Cell>::read(column, i))
        };
        for i in 0..batch.num_rows() {
            let is = |name: &str| text(name, i).as_deref() == Some(id);
            let is_alert = text("kind", i).as_deref() == Some("alert") && is("correlation_id");
            let names: Vec<&str> = [
                ("a grant", is("grant_id") || is("parent_grant_id")),
                ("an agent", is("agent_id") || is("agent_name")),
                ("a conversation", is("conversation_id")),
                ("an alert", is_alert),
                ("a correlation", !is_alert && is("correlation_id")),
            ]
            .into_iter()
            .filter_map(|(name, is_so)| is_so.then_some(name))
            .collect();
            // Keys of the index are short: another id may have the same.
            if names.is_empty() && text("grant_id", i).is_none() {
                continue;
            }
            self.names.extend(names);
            self.seqs.extend(batch.column_by_name("seq").map(|column| <u64 as Cell>::read(column, i)));
            self.traces.extend(text("trace_id", i));
            if is_alert {
                self.evidence.extend(evidence(&text("attributes", i).unwrap_or_default()));
            }
        }
    }

    /// Adds the records that an alert cites, and their traces, also of those that no mapping reads.
    fn cited(&mut self, snapshot: &Snapshot, finder: &Finder<'_>) -> Result<(), Error> {
        let cited: Vec<u64> = self.evidence.iter().copied().filter(|seq| *seq < finder.end()).collect();
        if cited.is_empty() {
            return Ok(());
        }
        for table in [Table::Events, Table::Spans, Table::Logs] {
            snapshot.records(table, &["seq", "trace_id"], &cited, &mut |batch| {
                if let Some(traces) = batch.column_by_name("trace_id") {
                    let read = |i| <Option<String> as Cell>::read(traces, i);
                    self.traces.extend((0..batch.num_rows()).filter_map(read));
                }
                Ok(())
            })?;
        }
        self.seqs.extend(cited);
        Ok(())
    }
}

/// The first of some records without rows that was not erased, so that there should be one. Of an erased record the index
/// may speak for a moment longer than its row is there.
fn lost(snapshot: &Snapshot, gone: impl Iterator<Item = u64>) -> Result<Option<u64>, Error> {
    let Some(reader) = &snapshot.log.0 else { return Ok(None) };
    for seq in gone.take(GONE_MAX) {
        let block = reader.block_at(seq).map_err(Error::store)?;
        let is_there = block.is_some_and(|block| {
            let i = (seq - block.commitments.first_seq) as usize;
            block.content.as_ref().is_some_and(|content| !content.is_erased(i))
        });
        if is_there {
            return Ok(Some(seq));
        }
    }
    Ok(None)
}

/// The records of a trace.
fn of_trace(snapshot: &Snapshot, finder: &Finder<'_>, trace: &str) -> Result<Vec<u64>, Error> {
    if trace.len() != 32 {
        return Ok(Vec::new());
    }
    if let Some(seqs) = snapshot.trace_seqs(trace, finder.end())? {
        return Ok(seqs);
    }
    let mut seqs = BTreeSet::new();
    for table in [Table::Spans, Table::Logs, Table::Events] {
        let wanted = Wanted::all(table).columns(&["seq"]).seqs(0..finder.end()).only("trace_id", [trace]);
        snapshot.read(&wanted, |batch| {
            seqs.extend((0..batch.num_rows()).map(|i| <u64 as Cell>::read(batch.column(0), i)));
            Ok(true)
        })?;
    }
    Ok(seqs.into_iter().collect())
}

/// The seqs that an alert cites.
fn evidence(attributes: &str) -> Vec<u64> {
    let fields: Json = serde_json::from_str(attributes).unwrap_or_default();
    let cited = fields.get("security.alert.evidence").and_then(Json::as_array);
    let seq = |item: &Json| item.as_u64().or_else(|| item.as_str()?.parse().ok());
    cited.into_iter().flatten().filter_map(seq).collect()
}
