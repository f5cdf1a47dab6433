//! Grants: from their events to their present state, and the chains they form.

mod fields;
mod inherited;

use std::collections::HashMap;

use crate::Error;
use crate::authority::{Verdict, dimensions, narrowing};
use crate::event::EventRow;
use crate::ids::{Finder, Kind};
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Cell, Time, table};
use crate::segments::{Table, Wanted};

use fields::Fields;

/// Kinds of events that change what is known of a grant.
pub(crate) const KINDS: [&str; 4] = ["grant_issued", "grant_derived", "grant_denied", REVOKED];

/// The one that takes it back.
pub(crate) const REVOKED: &str = "grant_revoked";

table! {
    /// One grant, with its present state.
    GrantRow, GrantBuilder {
        /// Id.
        grant_id: String,
        /// The grant it was derived from; null for a root.
        parent_grant_id: Option<String>,
        /// The first grant of its chain, as far as the ledger knows it.
        root_grant_id: Option<String>,
        /// Derivations from that first grant.
        depth: u32,
        /// Who gave it.
        issuer: Option<String>,
        /// The agent that may act under it.
        subject: Option<String>,
        /// Whom it is to be shown to.
        audience: Option<String>,
        /// For whom it was given.
        initiator_id: Option<String>,
        /// user or process.
        initiator_type: Option<String>,
        /// Patterns of allowed actions.
        actions: Vec<String>,
        /// Patterns of allowed resources; null if they are not limited.
        resources: Option<Vec<String>>,
        /// Allowed parameters, JSON; null if they are not limited.
        constraints: Option<String>,
        /// Start of validity.
        not_before: Option<Time>,
        /// End of validity.
        expires_at: Option<Time>,
        /// How many calls it is good for.
        max_uses: Option<u32>,
        /// How often it may be derived from.
        max_depth: Option<u32>,
        /// What it is for.
        purpose: Option<String>,
        /// Workspace.
        workspace: Option<String>,
        /// Records of tool calls that named it.
        uses: u64,
        /// active, expired, revoked, denied or invalid (its record breaks the model's rules).
        state: String,
        /// When it was issued, as its issuer says.
        issued_time: Time,
        /// The record that issued (or denied) it.
        issued_seq: u64,
        /// When it, or a grant above it, was revoked: `authz.effective_at`, or when that was recorded.
        revoked_time: Option<Time>,
        /// The record that did so.
        revoked_seq: Option<u64>,
        /// Whether its token is its issuer's: verified, invalid, or unverified (no keys of that issuer are
        /// configured); null without a token.
        signature: Option<String>,
        /// ok, missing (a parent was never received) or cycle.
        lineage: String,
        /// Dimensions in which it exceeds its parent.
        widened_by: Vec<String>,
        /// Dimensions that cannot be compared with its parent's.
        undecidable: Vec<String>,
        /// The deepest that a grant may be here, by the max_depth of those above; null if none of them limits it.
        deepest: Option<u32>,
        /// The grant above that says so.
        deepest_by: Option<String>,
        /// Grants of its chain that need a person's approval, itself among them: the first 15 from the root, and the last.
        awaits: Vec<String>,
        /// Why it was denied, or how the record breaks the model.
        reasons: Vec<String>,
        /// Commitment of the record that issued it, hex.
        record_hash: String,
    }
}

table! {
    /// One step of a delegation chain, from the root down.
    ChainRow, ChainBuilder {
        /// 0 for the first grant that is known.
        depth: u32,
        /// Id.
        grant_id: String,
        /// The grant it was derived from.
        parent_grant_id: Option<String>,
        /// Who gave it.
        issuer: Option<String>,
        /// The agent that may act under it.
        subject: Option<String>,
        /// Patterns of allowed actions.
        actions: Vec<String>,
        /// Patterns of allowed resources; null if they are not limited.
        resources: Option<Vec<String>>,
        /// Allowed parameters, JSON.
        constraints: Option<String>,
        /// Start of validity.
        not_before: Option<Time>,
        /// End of validity.
        expires_at: Option<Time>,
        /// Whether every dimension is equal to or inside its parent's; null where no parent is known.
        narrowed: Option<bool>,
        /// Dimensions that exceed the parent's.
        widened_by: Vec<String>,
        /// Dimensions that cannot be compared.
        undecidable: Vec<String>,
        /// Tool calls that named it.
        uses: u64,
        /// active, expired, revoked, denied, invalid or missing.
        state: String,
        /// Record that revoked it or a grant above it.
        revoked_seq: Option<u64>,
        /// Record that issued or denied it; null if it was never received.
        seq: Option<u64>,
        /// Commitment of that record, hex.
        record_hash: Option<String>,
        /// What else is to be said.
        note: Option<String>,
    }
}

table! {
    /// A refusal: of a grant by its issuer, or of a call by its executor.
    DenialRow, DenialBuilder {
        /// Record of the refusal.
        seq: u64,
        /// When.
        event_time: Time,
        /// The agent that was refused.
        agent_id: Option<String>,
        /// Patterns of refused actions.
        actions: Vec<String>,
        /// Patterns of refused resources; null if the refusal names none.
        resources: Option<Vec<String>>,
        /// The refused call, where the refusal names it.
        tool_call_id: Option<String>,
        /// The trace of the refusal.
        trace_id: Option<String>,
        /// By whom and why.
        reason: String,
    }
}

/// When each grant was revoked, at the earliest, and the record that did so.
pub(crate) type Revoked = HashMap<String, (Time, u64)>;

/// All grants that the ledger knows of, by id.
#[derive(Debug, Default)]
pub struct Grants {
    rows: Vec<GrantRow>,
    by_id: HashMap<String, usize>,
    /// Id of the next grant up, by place.
    parents: Vec<Option<usize>>,
}

impl Grants {
    /// Folds the grants' events up to `as_of`. `now` decides what has expired.
    pub fn of(snapshot: &Snapshot, as_of: AsOf, now: Time) -> Result<Self, Error> {
        let mut grants = Self::without_uses(snapshot, as_of, now)?;
        grants.count_uses(snapshot, as_of)?;
        Ok(grants)
    }

    /// As [`Self::of`], but how often each was used is not counted.
    pub(crate) fn without_uses(snapshot: &Snapshot, as_of: AsOf, now: Time) -> Result<Self, Error> {
        let mut grants = Self::default();
        let mut revoked = Revoked::new();
        for event in &snapshot.events_of(&KINDS, as_of)? {
            grants.take(event, &mut revoked);
        }
        grants.finish(&revoked, now);
        Ok(grants)
    }

    /// Takes an event of a grant in.
    pub(crate) fn take(&mut self, event: &EventRow, revoked: &mut Revoked) {
        let Some(id) = &event.grant_id else { return };
        if event.kind == "grant_revoked" {
            let ended = (effective(event), event.seq);
            revoked.entry(id.clone()).and_modify(|known| *known = ended.min(*known)).or_insert(ended);
        } else {
            self.insert(grant_row(event));
        }
    }

    /// What follows from all that was taken in.
    pub(crate) fn finish(&mut self, revoked: &Revoked, now: Time) {
        self.link();
        self.settle(revoked, now);
    }

    /// The rows, to fill in what is counted elsewhere.
    pub(crate) fn rows_mut(&mut self) -> &mut [GrantRow] {
        &mut self.rows
    }

    /// A grant that was given wins over a refusal under the same id; the first over later ones.
    fn insert(&mut self, row: GrantRow) {
        match self.by_id.get(&row.grant_id) {
            Some(&at) if self.rows[at].state != "active" && row.state == "active" => self.rows[at] = row,
            Some(_) => {}
            None => {
                self.by_id.insert(row.grant_id.clone(), self.rows.len());
                self.rows.push(row);
            }
        }
    }

    fn link(&mut self) {
        let parent = |row: &GrantRow| row.parent_grant_id.as_ref().and_then(|id| self.by_id.get(id).copied());
        self.parents = self.rows.iter().map(parent).collect();
    }

    /// What follows from the grants above: root, depth, lineage, revocation, narrowing.
    /// Each grant is settled once, parents first, so that long chains cost no more.
    fn settle(&mut self, revoked: &Revoked, now: Time) {
        let mut settled = vec![false; self.rows.len()];
        for start in 0..self.rows.len() {
            let mut path = Vec::new();
            let mut on_path = std::collections::HashSet::new();
            let mut at = Some(start);
            while let Some(i) = at.filter(|&i| !settled[i] && on_path.insert(i)) {
                path.push(i);
                at = self.parents[i];
            }
            // The walk came back to its own path: what lies from there on is a loop. What is below it hangs on it.
            let first = at.filter(|&i| !settled[i]).and_then(|i| path.iter().position(|&on| on == i));
            let turn = path.split_off(first.unwrap_or(path.len()));
            // Each grant of a loop is above all others: where one ends, all do.
            let ended = turn.iter().filter_map(|&i| revoked.get(&self.rows[i].grant_id).copied()).min();
            let above = path.into_iter().rev().map(|i| (i, false));
            for (i, is_loop) in turn.into_iter().map(|i| (i, true)).chain(above) {
                self.settle_one(i, is_loop.then_some(ended), revoked, now);
                settled[i] = true;
            }
        }
    }

    /// `cycle` is for a grant of a loop: how that ended, if it did.
    fn settle_one(&mut self, i: usize, cycle: Option<Option<(Time, u64)>>, revoked: &Revoked, now: Time) {
        let parent = self.parents[i].map(|p| self.rows[p].clone());
        let row = &mut self.rows[i];
        let own = revoked.get(&row.grant_id).copied();
        let mut above = None;
        match (&parent, &row.parent_grant_id) {
            _ if cycle.is_some() => {
                row.lineage = "cycle".into();
                above = cycle.flatten();
            }
            (Some(parent), _) => {
                inherited::pass_down(parent, row);
                row.lineage.clone_from(&parent.lineage);
                row.depth = parent.depth + 1;
                row.root_grant_id.clone_from(&parent.root_grant_id);
                above = parent.revoked_time.zip(parent.revoked_seq);
            }
            (None, Some(_)) => row.lineage = "missing".into(),
            (None, None) => row.lineage = "ok".into(),
        }
        row.root_grant_id.get_or_insert_with(|| row.grant_id.clone());
        let ended = [own, above].into_iter().flatten().min();
        (row.revoked_time, row.revoked_seq) = ended.unzip();
        if let Some(parent) = &parent {
            let verdicts = narrowing(parent, row);
            row.widened_by = dimensions(&verdicts, Verdict::Widened);
            row.undecidable = dimensions(&verdicts, Verdict::Undecidable);
        }
        if row.state == "active" {
            let expired = row.expires_at.is_some_and(|end| end <= now);
            row.state = if ended.is_some_and(|(at, _)| at <= now) {
                "revoked"
            } else if expired {
                "expired"
            } else {
                "active"
            }
            .into();
        }
    }

    /// Tool calls are many: only what is needed of them is read.
    fn count_uses(&mut self, snapshot: &Snapshot, as_of: AsOf) -> Result<(), Error> {
        let keys = self.rows.iter().map(|row| Kind::Grant.key(&row.grant_id)).collect();
        if let Some(uses) = Finder::new(snapshot, as_of)?.uses(&keys)? {
            for row in &mut self.rows {
                row.uses = uses.get(&Kind::Grant.key(&row.grant_id)).copied().unwrap_or(0);
            }
            return Ok(());
        }
        let columns = ["seq", "ingest_time", "grant_id"];
        let calls = Wanted::all(Table::Events).columns(&columns).known_by(as_of).only("kind", ["tool_call"]);
        snapshot.read(&calls, |batch| {
            let [seq, ingest_time, grant_id] = batch.columns() else { return Ok(true) };
            for i in 0..batch.num_rows() {
                let known = as_of.holds(<u64 as Cell>::read(seq, i), <Time as Cell>::read(ingest_time, i));
                let id = <Option<String> as Cell>::read(grant_id, i).filter(|_| known);
                if let Some(&at) = id.and_then(|id| self.by_id.get(&id)) {
                    self.rows[at].uses += 1;
                }
            }
            Ok(true)
        })
    }

    /// All grants, in the order they were issued.
    pub fn rows(&self) -> &[GrantRow] {
        &self.rows
    }

    /// One grant.
    pub fn get(&self, id: &str) -> Option<&GrantRow> {
        self.by_id.get(id).map(|&at| &self.rows[at])
    }

    /// The grant and those above it, from it up; ends at a cycle.
    pub fn ancestry(&self, id: &str) -> Vec<&GrantRow> {
        let mut out = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let mut at = self.by_id.get(id).copied();
        while let Some(i) = at.filter(|&i| seen.insert(i)) {
            out.push(&self.rows[i]);
            at = self.parents[i];
        }
        out
    }

    /// The delegation chain of a grant, from the first grant that is known down.
    pub fn chain(&self, id: &str) -> Vec<ChainRow> {
        let mut up = self.ancestry(id);
        up.reverse();
        let mut out = Vec::with_capacity(up.len() + 1);
        let Some(first) = up.first() else {
            return vec![missing(id, 0, "this grant was never received")];
        };
        if let Some(parent) = &first.parent_grant_id {
            let cycle = self.by_id.contains_key(parent);
            out.push(match cycle {
                true => missing(parent, 0, "cycle: this grant is also further down its own chain"),
                false => missing(parent, 0, "the parent grant was never received"),
            });
        }
        for row in up {
            let depth = out.len() as u32;
            let has_parent = row.parent_grant_id.as_ref().is_some_and(|id| self.by_id.contains_key(id));
            out.push(chain_row(row, depth, has_parent));
        }
        out
    }
}

fn missing(id: &str, depth: u32, note: &str) -> ChainRow {
    ChainRow {
        depth,
        grant_id: id.to_owned(),
        state: "missing".into(),
        note: Some(note.to_owned()),
        ..ChainRow::default()
    }
}

fn chain_row(row: &GrantRow, depth: u32, has_parent: bool) -> ChainRow {
    let mut notes = Vec::new();
    if row.state == "denied" {
        notes.push(format!("refused: {}", row.reasons.join("; ")));
    }
    if row.state == "invalid" {
        notes.push(format!("invalid: {}", row.reasons.join("; ")));
    }
    if !row.widened_by.is_empty() {
        notes.push(format!("exceeds its parent in {}", row.widened_by.join(", ")));
    }
    ChainRow {
        depth,
        grant_id: row.grant_id.clone(),
        parent_grant_id: row.parent_grant_id.clone(),
        issuer: row.issuer.clone(),
        subject: row.subject.clone(),
        actions: row.actions.clone(),
        resources: row.resources.clone(),
        constraints: row.constraints.clone(),
        not_before: row.not_before,
        expires_at: row.expires_at,
        narrowed: has_parent.then_some(row.widened_by.is_empty() && row.undecidable.is_empty()),
        widened_by: row.widened_by.clone(),
        undecidable: row.undecidable.clone(),
        uses: row.uses,
        state: row.state.clone(),
        revoked_seq: row.revoked_seq,
        seq: Some(row.issued_seq),
        record_hash: Some(row.record_hash.clone()),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
    }
}

/// From when on a revocation holds: as it says, or from when it was made.
fn effective(event: &EventRow) -> Time {
    Fields::of(event).time("authz.effective_at").unwrap_or(event.event_time)
}

pub(crate) fn grant_row(event: &EventRow) -> GrantRow {
    let fields = Fields::of(event);
    let state = match event.kind.as_str() {
        "grant_denied" => "denied",
        _ if event.invalid_reasons.is_empty() => "active",
        _ => "invalid",
    };
    GrantRow {
        grant_id: event.grant_id.clone().unwrap_or_default(),
        parent_grant_id: event.parent_grant_id.clone(),
        issuer: fields.text("authz.grant.issuer").or_else(|| event.service.clone()),
        subject: event.agent_id.clone(),
        audience: fields.text("authz.grant.audience"),
        initiator_id: event.initiator_id.clone(),
        initiator_type: event.initiator_type.clone(),
        actions: fields.list("authz.grant.actions").unwrap_or_default(),
        resources: fields.list("authz.grant.resources"),
        constraints: fields.text("authz.grant.constraints"),
        not_before: fields.time("authz.grant.not_before"),
        expires_at: fields.time("authz.grant.expires_at"),
        max_uses: fields.number("authz.grant.max_uses"),
        max_depth: fields.number("authz.grant.max_depth"),
        purpose: fields.text("authz.grant.purpose"),
        workspace: event.workspace.clone(),
        awaits: inherited::own_awaits(event, &fields),
        state: state.into(),
        issued_time: event.event_time,
        issued_seq: event.seq,
        signature: fields.text(crate::issuers::STATE),
        reasons: event.reasons.iter().chain(&event.invalid_reasons).cloned().collect(),
        record_hash: event.record_hash.clone(),
        ..GrantRow::default()
    }
}

/// Kinds of events that refuse.
const REFUSING: [&str; 2] = ["grant_denied", "executor_decision"];

/// All refusals up to `as_of`.
pub fn denials(snapshot: &Snapshot, as_of: AsOf) -> Result<Vec<DenialRow>, Error> {
    let events = snapshot.events_of(&REFUSING, as_of)?;
    Ok(events.iter().filter(|event| refuses(event)).map(denial_row).collect())
}

/// Whether an event is a refusal, of a grant or of a call.
pub(crate) fn refuses(event: &EventRow) -> bool {
    REFUSING.contains(&event.kind.as_str()) && event.decision.as_deref() == Some("deny")
}

pub(crate) fn denial_row(event: &EventRow) -> DenialRow {
    let fields = Fields::of(event);
    let own = |one: &Option<String>| one.clone().map(|one| vec![one]);
    let (actions, resources) = match event.kind.as_str() {
        "grant_denied" => (fields.list("authz.grant.actions"), fields.list("authz.grant.resources")),
        _ => (own(&event.action.clone().or_else(|| event.tool.clone())), own(&event.resource)),
    };
    let who = event.service.as_deref().unwrap_or(&event.submitter);
    let why = if event.reasons.is_empty() { String::new() } else { format!(": {}", event.reasons.join("; ")) };
    DenialRow {
        seq: event.seq,
        event_time: event.event_time,
        agent_id: event.agent_id.clone(),
        actions: actions.unwrap_or_default(),
        resources,
        tool_call_id: event.tool_call_id.clone(),
        trace_id: event.trace_id.clone(),
        reason: format!("{} by {who}{why}", event.kind),
    }
}

#[cfg(test)]
#[path = "grants_tests.rs"]
mod tests;
