//! Which records belong to an id: of a trace all its spans and logs; of anything else its
//! own events, and all of the traces that they are in.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value as Json;

use super::Room;
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

/// The seqs, in order.
pub(super) fn select(snapshot: &Snapshot, finder: &Finder<'_>, id: &str, room: Room<'_>) -> Result<Vec<u64>, Error> {
    let trace = of_trace(snapshot, finder, &hex_as_stored(id, 32).unwrap_or_else(|| id.to_owned()))?;
    if !trace.is_empty() {
        room(trace.len().saturating_mul(SEQ_BYTES))?;
        return Ok(trace);
    }
    // A grant is also what was done under those derived from it.
    let grants = below(finder, snapshot, id)?;
    let names = [Kind::Agent, Kind::Conversation, Kind::Correlation].map(|kind| (kind, id));
    let mut own = BTreeSet::new();
    for (kind, id) in names.into_iter().chain(grants.iter().map(|grant| (Kind::Grant, grant.as_str()))) {
        let found = finder.find(kind, id)?;
        room(found.len().saturating_mul(SEQ_BYTES))?;
        own.extend(found.into_iter().map(Posting::seq));
    }
    let own: Vec<u64> = own.into_iter().collect();
    let (mut all, mut traces) = (BTreeSet::new(), HashSet::new());
    let mut cited = BTreeSet::new();
    let columns = [
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
    snapshot.records(Table::Events, &columns, &own, &mut |batch| {
        let text = |name: &str, i: usize| {
            batch.column_by_name(name).and_then(|column| <Option<String> as Cell>::read(column, i))
        };
        for i in 0..batch.num_rows() {
            // Keys of the index are short: another id may have the same.
            let names = ["agent_id", "agent_name", "parent_grant_id", "correlation_id", "conversation_id"];
            let grant = text("grant_id", i);
            if grant.is_none() && !names.iter().any(|name| text(name, i).as_deref() == Some(id)) {
                continue;
            }
            all.extend(batch.column_by_name("seq").map(|column| <u64 as Cell>::read(column, i)));
            traces.extend(text("trace_id", i));
            if text("kind", i).as_deref() == Some("alert") && text("correlation_id", i).as_deref() == Some(id) {
                cited.extend(evidence(&text("attributes", i).unwrap_or_default()));
            }
        }
        Ok(())
    })?;
    // An alert is about the records that it cites.
    let cited: Vec<u64> = cited.into_iter().filter(|seq| *seq < finder.end()).collect();
    snapshot.records(Table::Events, &["seq", "trace_id"], &cited, &mut |batch| {
        traces.extend((0..batch.num_rows()).filter_map(|i| {
            batch.column_by_name("trace_id").and_then(|column| <Option<String> as Cell>::read(column, i))
        }));
        Ok(())
    })?;
    all.extend(cited);
    room(traces.len().saturating_mul(TRACE_BYTES))?;
    for trace in traces {
        let seqs = of_trace(snapshot, finder, &trace)?;
        room(seqs.len().saturating_mul(SEQ_BYTES))?;
        all.extend(seqs);
    }
    Ok(all.into_iter().collect())
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
