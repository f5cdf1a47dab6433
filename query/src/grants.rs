//! Grants: from their events to their present state, and the chains they form.

mod chain;
mod conflict;
mod fields;
mod inherited;
mod whose;

use std::collections::HashMap;

use crate::Error;
use crate::authority::{Verdict, dimensions, narrowing};
use crate::event::EventRow;
use crate::ids::{Finder, Kind};
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Cell, Time, table};
use crate::segments::{Table, Wanted};

use fields::Fields;
use whose::Key;

pub(crate) use whose::{Revoked, Scope, meet};

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
        /// Records of tool calls that named its id, in whichever tenant.
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
        /// ok, missing (a parent was never received), cycle, or refused or invalid (a grant above it was denied, or its
        /// record breaks the model's rules: it passes nothing on).
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
        /// Whose it is, as the record that issued it says. The same id in two tenants is two grants.
        tenant: Option<String>,
        /// The first two records that give this id and differ; empty if all that give it say the same. The row is that
        /// of the narrower, where one lies inside the other, else of the first.
        conflicting_seqs: Vec<u64>,
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
        /// Whether every dimension is equal to or inside its parent's; null where no parent is known, false below
        /// one that was denied or is invalid.
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
        /// Whose it is. An id that two tenants use has a chain in each, one after the other.
        tenant: Option<String>,
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
        /// Whose it is, as the record says.
        tenant: Option<String>,
    }
}

impl GrantRow {
    fn key(&self) -> Key {
        (self.tenant.clone(), self.grant_id.clone())
    }

    /// Whether it was given, and so was all above it that is known: what was refused, or breaks the model's rules,
    /// authorises nothing and passes nothing on.
    pub(crate) fn is_given(&self) -> bool {
        !matches!(self.state.as_str(), "denied" | "invalid") && !self.is_below_nothing()
    }

    /// Whether a grant above it gave nothing.
    fn is_below_nothing(&self) -> bool {
        matches!(self.lineage.as_str(), "refused" | "invalid")
    }
}

/// All grants that the ledger knows of.
#[derive(Debug, Default)]
pub struct Grants {
    rows: Vec<GrantRow>,
    by_key: HashMap<Key, usize>,
    /// All that have an id: one of each tenant that uses it.
    by_id: HashMap<String, Vec<usize>>,
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
        let mut revoked = Revoked::default();
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
            revoked.take(event.tenant.as_deref(), id, ended);
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

    /// A grant that was given wins over a refusal under the same id, and over a record that breaks the rules. Of two
    /// that were given `conflict` tells.
    fn insert(&mut self, row: GrantRow) {
        let key = row.key();
        match self.by_key.get(&key).map(|&at| &mut self.rows[at]) {
            Some(known) if row.state == "active" && known.state != "active" => *known = row,
            Some(known) if row.state == "active" => conflict::meet(known, row),
            Some(_) => {}
            None => {
                self.by_id.entry(row.grant_id.clone()).or_default().push(self.rows.len());
                self.by_key.insert(key, self.rows.len());
                self.rows.push(row);
            }
        }
    }

    fn link(&mut self) {
        let parent = |row: &GrantRow| self.meant(row.tenant.as_deref(), row.parent_grant_id.as_ref()?);
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
            let ended = turn.iter().filter_map(|&i| revoked.of(&self.rows[i])).min();
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
        let own = revoked.of(row);
        let mut above = None;
        match (&parent, &row.parent_grant_id) {
            _ if cycle.is_some() => {
                row.lineage = "cycle".into();
                above = cycle.flatten();
            }
            (Some(parent), _) => {
                inherited::pass_down(parent, row);
                row.lineage = passed_on(parent).into();
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
        let mut uses: HashMap<String, u64> = self.rows.iter().map(|row| (row.grant_id.clone(), 0)).collect();
        snapshot.read(&calls, |batch| {
            let [seq, ingest_time, grant_id] = batch.columns() else { return Ok(true) };
            for i in 0..batch.num_rows() {
                let known = as_of.holds(<u64 as Cell>::read(seq, i), <Time as Cell>::read(ingest_time, i));
                let id = <Option<String> as Cell>::read(grant_id, i).filter(|_| known);
                if let Some(uses) = id.and_then(|id| uses.get_mut(&id)) {
                    *uses += 1;
                }
            }
            Ok(true)
        })?;
        for row in &mut self.rows {
            row.uses = uses.get(&row.grant_id).copied().unwrap_or(0);
        }
        Ok(())
    }

    /// All grants, in the order they were issued.
    pub fn rows(&self) -> &[GrantRow] {
        &self.rows
    }
}

/// The lineage of what is derived from a grant.
fn passed_on(parent: &GrantRow) -> &str {
    match parent.state.as_str() {
        "denied" => "refused",
        "invalid" => "invalid",
        _ => &parent.lineage,
    }
}

/// From when on a revocation holds: as it says, or from when it was made.
fn effective(event: &EventRow) -> Time {
    Fields::of(event).time("authz.effective_at").unwrap_or(event.event_time)
}

pub(crate) fn grant_row(event: &EventRow) -> GrantRow {
    let fields = Fields::of(event);
    let (constraints, unread) = match fields.constraints() {
        Ok(constraints) => (constraints, None),
        Err(why) => (fields.text("authz.grant.constraints"), Some(why.to_owned())),
    };
    let state = match event.kind.as_str() {
        "grant_denied" => "denied",
        _ if event.invalid_reasons.is_empty() && unread.is_none() => "active",
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
        constraints,
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
        reasons: event.reasons.iter().chain(&event.invalid_reasons).cloned().chain(unread).collect(),
        record_hash: event.record_hash.clone(),
        tenant: event.tenant.clone(),
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
    let own = |one: &Option<String>| one.clone().map(|one| vec![one]);
    let (actions, resources) = match event.kind.as_str() {
        "grant_denied" => {
            let fields = Fields::of(event);
            (fields.list("authz.grant.actions"), fields.list("authz.grant.resources"))
        }
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
        tenant: event.tenant.clone(),
    }
}

#[cfg(test)]
#[path = "grants_tests.rs"]
mod tests;
