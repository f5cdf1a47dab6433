//! The table `call_uses`: what a rule cannot count itself when it sees only a part of the log.

use std::collections::{BTreeSet, HashMap};

use datafusion::arrow::record_batch::RecordBatch;

use super::relations::is_aside;
use super::tally::{Call, Tally};
use crate::Error;
use crate::grants::KINDS as GRANTS;
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Cell, Time, table};
use crate::segments::{Table, Wanted};

table! {
    /// The how-manieth use of its grant a call is, in the order in which the ledger took them, of those that it meets: what
    /// other tenants do is none. Records of one call are one use.
    UseRow, UseBuilder {
        /// The call.
        seq: u64,
        /// Its grant.
        grant_id: String,
        /// 1 for the first of its tenant.
        nth: u64,
        /// The nearest grant of its chain for which it is one use too many; null if there is none.
        over_grant_id: Option<String>,
        /// The how-manieth use of that grant it is, with the uses of all that were derived from it.
        over_nth: Option<u64>,
        /// Whose that grant is.
        over_tenant: Option<String>,
    }
}

/// The uses of all grants; what came longer than a window apart is not of one call.
pub(super) fn all_uses(snapshot: &Snapshot, window: i64) -> Result<RecordBatch, Error> {
    let mut given = snapshot.events_of(&GRANTS, AsOf::Now)?;
    given.retain(|event| !is_aside(event));
    given.sort_by_key(|event| event.seq);
    let mut given = given.into_iter().peekable();
    let (mut tally, mut seqs) = (Tally::default(), Vec::new());
    calls(snapshot, &Wanted::all(Table::Events), |call| {
        while let Some(event) = given.next_if(|event| event.seq < call.seq) {
            tally.give(&event);
        }
        tally.let_go(call.times.0.saturating_sub(window));
        tally.take(call);
        seqs.push(call.seq);
    })?;
    given.for_each(|event| tally.give(&event));
    Ok(UseRow::batch(&tally.rows(&seqs)))
}

/// Counts the uses below a seq that are not to be taken in as recent, of grants that limit them; their records are known.
pub(super) fn count_old(
    snapshot: &Snapshot,
    tally: &mut Tally,
    below: u64,
    recent: &BTreeSet<u64>,
    window: i64,
) -> Result<(), Error> {
    let mut limited = HashMap::<(Option<String>, String), bool>::new();
    calls(snapshot, &Wanted::all(Table::Events).seqs(0..below), |call| {
        let is_old = !recent.contains(&call.seq);
        let key = (call.tenant.map(str::to_owned), call.grant.to_owned());
        if is_old && *limited.entry(key).or_insert_with(|| tally.is_limited(call.tenant, call.grant)) {
            tally.let_go(call.times.0.saturating_sub(window));
            tally.take(call);
            tally.forget(call.seq);
        }
    })
}

/// Reads the tool calls that name a grant.
fn calls(snapshot: &Snapshot, wanted: &Wanted<'_>, mut take: impl FnMut(Call<'_>)) -> Result<(), Error> {
    const TIMES: [&str; 3] = ["seq", "ingest_time", "event_time"];
    const TEXTS: [&str; 10] = [
        "trace_id",
        "span_id",
        "parent_span_id",
        "tenant",
        "submitter",
        "grant_id",
        "tool_call_id",
        "tool",
        "action",
        "resource",
    ];
    let columns = [&TIMES[..], &TEXTS[..]].concat();
    snapshot.read(&wanted.clone().columns(&columns).only("kind", ["tool_call"]), |batch| {
        let [Some(seq), Some(taken), Some(began)] = TIMES.map(|name| batch.column_by_name(name)) else {
            return Ok(true);
        };
        let texts = TEXTS.map(|name| batch.column_by_name(name));
        for i in 0..batch.num_rows() {
            let texts = texts.map(|column| column.and_then(|column| <Option<String>>::read(column, i)));
            let [trace, span, parent, tenant, submitter, grant, what @ ..] =
                texts.each_ref().map(|text| text.as_deref());
            take(Call {
                seq: u64::read(seq, i),
                times: (Time::read(taken, i).0, Time::read(began, i).0),
                grant: if let Some(grant) = grant { grant } else { continue },
                tenant,
                submitter: submitter.unwrap_or_default(),
                span: trace.zip(span),
                parent,
                what,
            });
        }
        Ok(true)
    })
}

/// Whose some uses are; of what is erased, nobody's.
pub(super) fn whose(snapshot: &Snapshot, seqs: &[u64]) -> Result<Vec<(u64, Option<String>)>, Error> {
    let mut tenants = HashMap::new();
    snapshot.records(Table::Events, &["seq", "tenant"], seqs, &mut |batch| {
        if let (Some(seq), Some(tenant)) = (batch.column_by_name("seq"), batch.column_by_name("tenant")) {
            let rows = 0..batch.num_rows();
            tenants.extend(rows.map(|i| (u64::read(seq, i), <Option<String>>::read(tenant, i))));
        }
        Ok(())
    })?;
    Ok(seqs.iter().map(|seq| (*seq, tenants.get(seq).cloned().flatten())).collect())
}
