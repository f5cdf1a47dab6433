//! How far an agent or an identity reached, and could have: `blast_radius`; and how much of what
//! was done was covered by authority: `authority_coverage`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use datafusion::arrow::record_batch::RecordBatch;

use crate::Error;
use crate::authority::covers;
use crate::grants::{GrantRow, Grants};
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Cell, Time, table};
use crate::segments::{Table, Wanted};

table! {
    /// How far an agent or an identity got on accepted requests before it was verified again (actual), and how far
    /// its grants of that time would have let it (potential). One row per subject and window between two
    /// verifications: an allow of a policy, an approval, or a grant that was given to it. Windows in which it did nothing are
    /// left out, except the last.
    BlastRow, BlastBuilder {
        /// agent or identity.
        subject_type: String,
        /// Its id.
        subject: String,
        /// When it was verified; null for what it did before it ever was.
        window_start: Option<Time>,
        /// The kind of event that verified it.
        verified_by: Option<String>,
        /// The record of it.
        verified_seq: Option<u64>,
        /// When it was verified next; null if it was not.
        window_end: Option<Time>,
        /// Accepted requests: tool calls, retrievals, outputs and updates that did not fail and were not refused.
        requests: u64,
        /// Distinct services that they came from or went through.
        services: u64,
        /// Distinct resources.
        resources: u64,
        /// Distinct tools.
        tools: u64,
        /// Distinct data classifications.
        classifications: u64,
        /// The tools, the first hundred of them.
        reached_tools: Vec<String>,
        /// The resources, the first hundred of them.
        reached_resources: Vec<String>,
        /// The data classifications, the first hundred of them.
        reached_classifications: Vec<String>,
        /// Grants that it held at some time in the window.
        live_grants: u64,
        /// Patterns of actions that they allow.
        potential_actions: Vec<String>,
        /// Patterns of resources that they allow.
        potential_resources: Vec<String>,
        /// Whether one of them does not limit resources.
        potential_unlimited: bool,
        /// Distinct resources, of all that anybody reached in this ledger, that they allow.
        potential_known_resources: u64,
    }
}

table! {
    /// How many tool calls were made under a valid and verified grant. One row over all (`by` is all), and one per
    /// agent, workspace and tool.
    AuthorityRow, AuthorityBuilder {
        /// all, agent, workspace or tool.
        by: String,
        /// Which; null for all, and for calls that name none.
        value: Option<String>,
        /// Tool calls.
        tool_calls: u64,
        /// Those that name a grant.
        with_grant: u64,
        /// Those whose grant the ledger knows.
        known: u64,
        /// Those whose grant was valid for the call: given, in time, not revoked, of sound lineage and not widened,
        /// its subject the agent, the action and the resource inside it.
        valid: u64,
        /// Those of them whose grant's token was verified.
        verified: u64,
        /// verified / tool_calls; null without calls.
        coverage: Option<f64>,
        /// valid / tool_calls, verified or not; null without calls.
        coverage_unverified: Option<f64>,
    }
}

/// Members of a list in a row, at most.
const LISTED_MAX: usize = 100;

/// What is read of an event, in the table's order.
const COLUMNS: [&str; 16] = [
    "seq",
    "event_time",
    "kind",
    "trace_id",
    "tenant",
    "service",
    "initiator_id",
    "agent_id",
    "grant_id",
    "workspace",
    "action",
    "resource",
    "tool",
    "tool_call_id",
    "decision",
    "classification",
];

/// One row of [`COLUMNS`].
struct Step {
    seq: u64,
    time: Time,
    kind: String,
    service: Option<String>,
    initiator_id: Option<String>,
    agent_id: Option<String>,
    grant_id: Option<String>,
    workspace: Option<String>,
    action: Option<String>,
    resource: Option<String>,
    tool: Option<String>,
    tool_call_id: Option<String>,
    decision: Option<String>,
    classification: Option<String>,
    trace_id: Option<String>,
    tenant: Option<String>,
    failed: bool,
    is_valid: bool,
}

/// Reads events of some kinds, one by one.
fn steps(snapshot: &Snapshot, kinds: &[&str], mut each: impl FnMut(Step)) -> Result<(), Error> {
    let columns: Vec<&str> = COLUMNS.into_iter().chain(["status", "invalid_reasons"]).collect();
    let wanted = Wanted::all(Table::Events).columns(&columns).only("kind", kinds.iter().copied());
    snapshot.read(&wanted, |batch: &RecordBatch| {
        let text = |column: usize, row| <Option<String> as Cell>::read(batch.column(column).as_ref(), row);
        for i in 0..batch.num_rows() {
            each(Step {
                seq: Cell::read(batch.column(0).as_ref(), i),
                time: Cell::read(batch.column(1).as_ref(), i),
                kind: text(2, i).unwrap_or_default(),
                trace_id: text(3, i),
                tenant: text(4, i),
                service: text(5, i),
                initiator_id: text(6, i),
                agent_id: text(7, i),
                grant_id: text(8, i),
                workspace: text(9, i),
                action: text(10, i),
                resource: text(11, i),
                tool: text(12, i),
                tool_call_id: text(13, i),
                decision: text(14, i),
                classification: text(15, i),
                failed: text(16, i).as_deref() == Some("error"),
                is_valid: <Vec<String> as Cell>::read(batch.column(17).as_ref(), i).is_empty(),
            });
        }
        Ok(true)
    })
}

type Subject = (&'static str, String);

fn subjects(step: &Step) -> impl Iterator<Item = Subject> {
    let agent = step.agent_id.clone().map(|id| ("agent", id));
    agent.into_iter().chain(step.initiator_id.clone().map(|id| ("identity", id)))
}

/// When each subject was verified, by what and by which record, in the order of the times.
type Verified = HashMap<Subject, Vec<(Time, u64, String)>>;

/// What was reached between two verifications.
#[derive(Default)]
struct Reached {
    requests: u64,
    services: BTreeSet<String>,
    resources: BTreeSet<String>,
    tools: BTreeSet<String>,
    classifications: BTreeSet<String>,
}

/// The table `blast_radius`.
pub fn blast_radius(snapshot: &Snapshot, now: Time) -> Result<Vec<BlastRow>, Error> {
    // Ids of calls need be unique in their trace only.
    let mut refused: HashSet<(Option<String>, String)> = HashSet::new();
    steps(snapshot, &["executor_decision"], |step| {
        if step.decision.as_deref() == Some("deny") {
            refused.extend(step.tool_call_id.map(|call| (step.trace_id, call)));
        }
    })?;
    let mut verified = Verified::new();
    steps(snapshot, &["policy_evaluation", "approval", "grant_issued", "grant_derived"], |step| {
        let is_so = match step.kind.as_str() {
            "policy_evaluation" => step.decision.as_deref() == Some("allow"),
            "approval" => step.decision.as_deref() == Some("approved"),
            _ => true,
        };
        // A record that breaks the model's rules authorises nothing, and verifies nobody.
        for subject in subjects(&step).filter(|_| is_so && step.is_valid) {
            verified.entry(subject).or_default().push((step.time, step.seq, step.kind.clone()));
        }
    })?;
    verified.values_mut().for_each(|turns| turns.sort());
    // The window is the number of verifications before it: 0 is before the first.
    let mut reached: BTreeMap<(Subject, usize), Reached> = BTreeMap::new();
    let mut known = BTreeSet::new();
    steps(snapshot, &["tool_call", "context_retrieval", "output", "system_update"], |step| {
        let call = step.tool_call_id.clone().map(|call| (step.trace_id.clone(), call));
        if step.failed || call.is_some_and(|call| refused.contains(&call)) {
            return;
        }
        known.extend(step.resource.clone());
        for subject in subjects(&step) {
            let turns = verified.get(&subject).map_or(&[][..], Vec::as_slice);
            let window = turns.partition_point(|turn| turn.0 <= step.time);
            let at = reached.entry((subject, window)).or_default();
            at.requests += 1;
            at.services.extend(step.service.clone());
            at.resources.extend(step.resource.clone());
            at.tools.extend(step.tool.clone());
            at.classifications.extend(step.classification.clone());
        }
    })?;
    // What could be reached now counts also for who did nothing since.
    for (subject, turns) in &verified {
        reached.entry((subject.clone(), turns.len())).or_default();
    }
    let grants = Grants::of(snapshot, AsOf::Now, now)?;
    let mut held: HashMap<Subject, Vec<&GrantRow>> = HashMap::new();
    for grant in grants.rows().iter().filter(|g| g.is_given()) {
        let agent = grant.subject.clone().map(|id| ("agent", id));
        let identity = grant.initiator_id.clone().map(|id| ("identity", id));
        agent.into_iter().chain(identity).for_each(|subject| held.entry(subject).or_default().push(grant));
    }
    let row = |((subject, window), reached): ((Subject, usize), Reached)| {
        let turns = verified.get(&subject).map_or(&[][..], Vec::as_slice);
        let start = window.checked_sub(1).map(|i| &turns[i]);
        let end = turns.get(window).map(|turn| turn.0);
        let held = held.get(&subject).map_or(&[][..], Vec::as_slice);
        let live: Vec<&GrantRow> =
            held.iter().copied().filter(|g| is_live(g, start.map(|turn| turn.0), end.unwrap_or(now))).collect();
        let mut row = reached.row(&live, &known);
        (row.subject_type, row.subject) = (subject.0.to_owned(), subject.1);
        row.window_start = start.map(|turn| turn.0);
        row.verified_seq = start.map(|turn| turn.1);
        row.verified_by = start.map(|turn| turn.2.clone());
        row.window_end = end;
        row
    };
    Ok(reached.into_iter().map(row).collect())
}

/// Whether a grant could be used at some time of a window.
fn is_live(grant: &GrantRow, start: Option<Time>, end: Time) -> bool {
    let ended = [grant.expires_at, grant.revoked_time].into_iter().flatten().min();
    let begins = grant.not_before.unwrap_or(grant.issued_time).max(grant.issued_time);
    begins <= end && ended.zip(start).is_none_or(|(ended, start)| ended > start)
}

impl Reached {
    fn row(self, live: &[&GrantRow], known: &BTreeSet<String>) -> BlastRow {
        let actions: BTreeSet<&String> = live.iter().flat_map(|g| &g.actions).collect();
        let patterns: BTreeSet<&String> = live.iter().flat_map(|g| g.resources.iter().flatten()).collect();
        let patterns: Vec<String> = patterns.into_iter().cloned().collect();
        let unlimited = live.iter().any(|g| g.resources.is_none());
        let reachable = known.iter().filter(|resource| unlimited || covers(&patterns, resource)).count();
        let first = |set: &BTreeSet<String>| set.iter().take(LISTED_MAX).cloned().collect();
        BlastRow {
            requests: self.requests,
            services: self.services.len() as u64,
            resources: self.resources.len() as u64,
            tools: self.tools.len() as u64,
            classifications: self.classifications.len() as u64,
            reached_tools: first(&self.tools),
            reached_resources: first(&self.resources),
            reached_classifications: first(&self.classifications),
            live_grants: live.len() as u64,
            potential_actions: actions.into_iter().cloned().collect(),
            potential_resources: patterns,
            potential_unlimited: unlimited,
            potential_known_resources: reachable as u64,
            ..BlastRow::default()
        }
    }
}

/// The table `authority_coverage`.
pub fn authority_coverage(snapshot: &Snapshot, now: Time) -> Result<Vec<AuthorityRow>, Error> {
    let grants = Grants::of(snapshot, AsOf::Now, now)?;
    let mut rows: BTreeMap<(&'static str, Option<String>), AuthorityRow> = BTreeMap::new();
    rows.entry(("all", None)).or_default();
    steps(snapshot, &["tool_call"], |call| {
        let grant = call.grant_id.as_ref().and_then(|id| grants.get(call.tenant.as_deref(), id));
        let known = grant.is_some_and(|g| g.state != "denied");
        let valid = grant.is_some_and(|g| is_valid(g, &call));
        let verified = valid && grant.is_some_and(|g| g.signature.as_deref() == Some("verified"));
        let groups = [
            ("all", None),
            ("agent", call.agent_id.clone()),
            ("workspace", call.workspace.clone()),
            ("tool", call.tool.clone()),
        ];
        for group in groups {
            let row = rows.entry(group).or_default();
            row.tool_calls += 1;
            row.with_grant += u64::from(call.grant_id.is_some());
            row.known += u64::from(known);
            row.valid += u64::from(valid);
            row.verified += u64::from(verified);
        }
    })?;
    let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let finish = |((by, value), row): ((&str, Option<String>), AuthorityRow)| AuthorityRow {
        by: by.to_owned(),
        value,
        coverage: share(row.verified, row.tool_calls),
        coverage_unverified: share(row.valid, row.tool_calls),
        ..row
    };
    Ok(rows.into_iter().map(finish).collect())
}

/// Whether a grant covered a call, as the checks see it.
fn is_valid(grant: &GrantRow, call: &Step) -> bool {
    let is_sound = grant.lineage == "ok" && grant.widened_by.is_empty();
    let in_time = grant.not_before.is_none_or(|t| t <= call.time) && grant.expires_at.is_none_or(|t| call.time <= t);
    let is_kept = grant.revoked_time.is_none_or(|t| call.time <= t);
    let own = grant.subject.is_none() || call.agent_id.is_none() || grant.subject == call.agent_id;
    let acts = call.action.as_ref().is_none_or(|action| covers(&grant.actions, action));
    let reaches = match (&grant.resources, &call.resource) {
        (Some(patterns), Some(resource)) => covers(patterns, resource),
        _ => true,
    };
    grant.is_given() && is_sound && in_time && is_kept && own && acts && reaches
}

#[cfg(test)]
mod tests;
