//! The second pass: the rows, fetched in causal order a batch at a time, with their notes,
//! and the markers of what is missing between them.

use std::collections::{HashMap, HashSet};

use datafusion::arrow::record_batch::RecordBatch;
use serde_json::Value as Json;

use super::keys::{Keys, Placed, Placing, rank};
use super::order::{NONE, Tree, flag};
use super::{StepBuilder, StepRow};
use crate::Error;
use crate::authority::covers;
use crate::event::EventRow;
use crate::grants::{DenialRow, denial_row, meet};
use crate::lookup::RECORDS_MAX;
use crate::mapping::call_attributes;
use crate::projection::Snapshot;
use crate::rows::Time;

/// Steps of a batch.
const BATCH_STEPS: usize = 1024;

/// Characters of a result that are shown.
const RESULT_CHARS: usize = 200;

/// Refusals of one agent of a tenant that a call is compared with, at most: the earliest of each authority.
const REFUSALS_MAX: usize = 1000;

/// Orders the steps and tells them.
pub(super) fn tell(
    snapshot: &Snapshot,
    keys: Keys,
    each: &mut dyn FnMut(RecordBatch) -> Result<bool, Error>,
) -> Result<(), Error> {
    let Placed { parents, flags, causes } = Placing::place(&keys);
    let mut tree = Tree::new(parents, flags);
    let order = tree.order(causes.into_iter(), |i| {
        let node = &keys.nodes[i as usize];
        (node.time, node.rank, node.seq)
    });
    let refusals = Refusals::read(snapshot, &keys)?;
    let steps_of = vec![0u32; keys.nodes.len()];
    let mut teller = Teller { keys: &keys, tree: &tree, refusals, steps_of, next: 0, missing: HashSet::new() };
    let mut blocks = snapshot.blocks();
    for some in order.chunks(BATCH_STEPS) {
        let mut seqs: Vec<u64> = some.iter().map(|i| keys.nodes[*i as usize].seq).collect();
        seqs.sort_unstable();
        seqs.dedup();
        let rows = snapshot.few_events(&seqs, blocks.as_mut())?;
        let mut batch = StepBuilder::default();
        for i in some {
            let node = &keys.nodes[*i as usize];
            let at = rows.partition_point(|row| row.seq < node.seq) + usize::from(node.nth);
            // A record that was erased since the order was computed has no row any more.
            if let Some(row) = rows.get(at).filter(|row| row.seq == node.seq) {
                teller.step(*i, row, &mut batch);
            }
        }
        if !each(batch.finish())? {
            break;
        }
    }
    Ok(())
}

struct Teller<'a> {
    keys: &'a Keys,
    tree: &'a Tree,
    refusals: Refusals,
    /// The number of each step that was told.
    steps_of: Vec<u32>,
    next: u32,
    missing: HashSet<String>,
}

impl Teller<'_> {
    /// Tells one step, with the markers before and after it.
    fn step(&mut self, i: u32, event: &EventRow, batch: &mut StepBuilder) {
        let (depth, parent) = (self.tree.depth(i), self.tree.parents[i as usize]);
        let parent = (parent != NONE).then(|| u64::from(self.steps_of[parent as usize]));
        for what in self.missing_before(event, self.keys.nodes[i as usize].is_span) {
            self.marker(what, event, (depth, parent), batch);
        }
        let flags = self.tree.flags[i as usize];
        let mut row = row(event);
        (row.step, row.depth, row.parent_step) = (u64::from(self.next), depth, parent);
        row.is_last = flags & flag::LAST != 0;
        row.note = self.note(event, i, flags);
        self.steps_of[i as usize] = self.next;
        self.next += 1;
        batch.push(&row);
        if flags & flag::NO_CALL != 0 {
            let call = event.tool_call_id.as_deref().unwrap_or_default();
            let what = format!("the span of call {call}, which was allowed here, was never received");
            self.marker(what, event, (depth + 1, Some(row.step)), batch);
        }
    }

    fn marker(&mut self, what: String, event: &EventRow, at: (u32, Option<u64>), batch: &mut StepBuilder) {
        if !self.missing.insert(what.clone()) {
            return;
        }
        batch.push(&StepRow {
            step: u64::from(self.next),
            depth: at.0,
            parent_step: at.1,
            kind: "missing".into(),
            trace_id: event.trace_id.clone(),
            missing: Some(what),
            ..StepRow::default()
        });
        self.next += 1;
    }

    /// What a step refers to and was never received.
    fn missing_before(&self, event: &EventRow, is_span: bool) -> Vec<String> {
        let trace = event.trace_id.as_deref().unwrap_or_default();
        let lacks_span = |id: &&String| !self.keys.has_span(trace, id);
        let lacks_grant = |id: &&String| self.keys.grants.get(event.tenant.as_deref(), id).is_none();
        let acts = matches!(event.kind.as_str(), "tool_call" | "executor_decision" | "grant_revoked");
        let above = event.parent_span_id.as_ref().filter(lacks_span);
        let own = event.span_id.as_ref().filter(|id| !is_span && !trace.is_empty() && lacks_span(id));
        let grant = event.grant_id.as_ref().filter(|id| acts && lacks_grant(id));
        let over = event.parent_grant_id.as_ref().filter(lacks_grant);
        let what = [
            above.map(|id| format!("parent span {id} was never received")),
            own.map(|id| format!("span {id}, within which this was logged, was never received")),
            grant.map(|id| format!("grant {id} was never issued in this ledger")),
            over.map(|id| format!("parent grant {id} was never received")),
        ];
        what.into_iter().flatten().collect()
    }

    /// What a reader must not miss about a step.
    fn note(&mut self, event: &EventRow, i: u32, flags: u8) -> Option<String> {
        let mut notes = Vec::new();
        if event.kind == "tool_call" {
            notes.extend(self.refusals.of(event, self.keys));
        }
        let grant = event.grant_id.as_ref().and_then(|id| self.keys.grants.get(event.tenant.as_deref(), id));
        if let (Some(grant), "grant_derived") = (grant, event.kind.as_str())
            && !grant.widened_by.is_empty()
        {
            notes.push(format!("exceeds its parent in {}", grant.widened_by.join(", ")));
        }
        let node = &self.keys.nodes[i as usize];
        if node.is_span && node.end == i64::MIN {
            notes.push("no record says that it ended".into());
        }
        let said = [
            (flag::BEFORE_PARENT, "its clock says that it began before its parent"),
            (flag::BEFORE_GRANT, "its clock says that it was done before its authority was given"),
            (flag::BEFORE_LINK, "its clock says that it began before what it links to"),
            (flag::LOOP, "its parents are a loop, which is cut here"),
            (flag::CAUSES_LOOP, "what it follows from also follows from it"),
            (flag::AGAIN, "a further record of the same span"),
        ];
        notes.extend(said.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, text)| (*text).to_owned()));
        notes.extend(event.invalid_reasons.iter().map(|r| format!("invalid: {r}")));
        (!notes.is_empty()).then(|| notes.join("; "))
    }
}

/// The refusals among the steps.
#[derive(Default)]
struct Refusals {
    /// By trace and call, and whose it is: ids of calls need be unique in their trace only.
    calls: HashMap<Call, HashMap<Option<String>, (u64, Time)>>,
    /// By agent, its id or its name, and whose they are.
    agents: HashMap<String, HashMap<Option<String>, Vec<Refusal>>>,
    /// Calls that an executor allowed, and of whom it said so.
    allowed: HashMap<Call, HashSet<Option<String>>>,
}

/// A call, with its trace.
type Call = (Option<String>, String);

fn call_of(event: &EventRow) -> Option<Call> {
    Some((event.trace_id.clone(), event.tool_call_id.clone()?))
}

struct Refusal {
    said: DenialRow,
    has_id: bool,
    by_executor: bool,
}

impl Refusals {
    fn read(snapshot: &Snapshot, keys: &Keys) -> Result<Self, Error> {
        let decides = |rank: u8| matches!(rank, rank::DENIED | rank::EXECUTOR);
        let told = keys.nodes.iter().filter(|node| decides(node.rank) && (node.denies || node.allows));
        let mut seqs: Vec<u64> = told.map(|node| node.seq).collect();
        seqs.dedup();
        let (mut own, mut blocks) = (Self::default(), snapshot.blocks());
        for some in seqs.chunks(RECORDS_MAX) {
            for event in snapshot.few_events(some, blocks.as_mut())? {
                own.take(&event);
            }
        }
        Ok(own)
    }

    fn take(&mut self, event: &EventRow) {
        let by_executor = event.kind == "executor_decision";
        if event.decision.as_deref() == Some("allow") {
            if let Some(call) = call_of(event) {
                self.allowed.entry(call).or_default().insert(event.tenant.clone());
            }
            return;
        }
        if event.decision.as_deref() != Some("deny") || !(by_executor || event.kind == "grant_denied") {
            return;
        }
        if let Some(call) = call_of(event) {
            let refused = (event.seq, event.event_time);
            let of_call = self.calls.entry(call).or_default().entry(event.tenant.clone());
            of_call.and_modify(|first| *first = refused.min(*first)).or_insert(refused);
        }
        for name in [&event.agent_id, &event.agent_name].into_iter().flatten() {
            let said = denial_row(event);
            let known = self.agents.entry(name.clone()).or_default().entry(event.tenant.clone()).or_default();
            let same = |r: &Refusal| (&r.said.actions, &r.said.resources) == (&said.actions, &said.resources);
            if known.len() < REFUSALS_MAX && !known.iter().any(|r| same(r) && r.by_executor == by_executor) {
                known.push(Refusal { said, has_id: event.agent_id.is_some(), by_executor });
            }
        }
    }

    /// Whether a call was refused before it was made: itself, or another of the same agent
    /// that did the same.
    fn of(&self, call: &EventRow, keys: &Keys) -> Option<String> {
        let meets = |tenant: &Option<String>| meet(tenant.as_deref(), call.tenant.as_deref());
        let refused = call_of(call).and_then(|id| self.calls.get(&id)).into_iter().flatten();
        let refused = refused.filter(|(tenant, (_, at))| meets(tenant) && *at <= call.event_time);
        if let Some((seq, _)) = refused.map(|(_, refused)| refused).min() {
            return Some(format!("executed although refused at seq {seq}"));
        }
        let of = |name: &Option<String>| {
            let of_name = name.as_ref().and_then(|name| self.agents.get(name)).into_iter().flatten();
            of_name.filter(|(tenant, _)| meets(tenant)).flat_map(|(_, refusals)| refusals)
        };
        // Two agents may have one name: where both have ids, the ids decide.
        let by_name = of(&call.agent_name).filter(|refusal| call.agent_id.is_none() || !refusal.has_id);
        let found = of(&call.agent_id).chain(by_name).filter(|refusal| self.covers(refusal, call));
        let since = found.filter(|refusal| !granted_since(keys, &refusal.said, call));
        let refusal = since.min_by_key(|refusal| refusal.said.seq)?;
        let retried = refusal.said.tool_call_id.as_ref().filter(|id| call.tool_call_id.as_ref() != Some(*id));
        let retried = retried.map_or_else(String::new, |id| format!(" as call {id}"));
        Some(format!("executed although refused{retried} at seq {}", refusal.said.seq))
    }

    fn covers(&self, refusal: &Refusal, call: &EventRow) -> bool {
        let said = &refusal.said;
        let action = call.action.as_ref().or(call.tool.as_ref());
        let meets = |tenant: &Option<String>| meet(tenant.as_deref(), call.tenant.as_deref());
        let is_allowed = || {
            let allowed = call_of(call).and_then(|id| self.allowed.get(&id));
            allowed.is_some_and(|tenants| tenants.iter().any(meets))
        };
        let resource = match (&said.resources, &call.resource) {
            // An executor refuses one call: what is not known of it is no reason to see it again.
            (None, _) => !refusal.by_executor,
            (Some(patterns), Some(resource)) => covers(patterns, resource),
            (Some(_), None) => false,
        };
        let same = action.is_some_and(|action| covers(&said.actions, action)) && resource;
        same && said.event_time <= call.event_time && !(refusal.by_executor && is_allowed())
    }
}

/// Whether the agent was given what it had been refused, before it acted.
fn granted_since(keys: &Keys, refusal: &DenialRow, call: &EventRow) -> bool {
    let Some(action) = &call.action else { return false };
    keys.grants.rows().iter().any(|grant| {
        grant.subject.is_some()
            && grant.subject == call.agent_id
            && meet(grant.tenant.as_deref(), call.tenant.as_deref())
            && grant.is_given()
            && grant.lineage == "ok"
            && grant.issued_time > refusal.event_time
            && grant.issued_time <= call.event_time
            && covers(&grant.actions, action)
            && match (&grant.resources, &call.resource) {
                (Some(patterns), Some(resource)) => covers(patterns, resource),
                _ => true,
            }
    })
}

/// What a row of `events` says of its step.
fn row(event: &EventRow) -> StepRow {
    let is_call = event.kind == "tool_call";
    // Most other steps have neither arguments nor results, and long attributes.
    let tells = is_call || event.attributes.contains("gen_ai.tool.call.");
    let fields: Json = if tells { serde_json::from_str(&event.attributes).unwrap_or_default() } else { Json::Null };
    let text = |name: &str| {
        fields.get(name).filter(|v| !v.is_null()).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    let [arguments, result] = call_attributes(if is_call { &event.source } else { "" });
    let first = |names: &[&str]| names.iter().find_map(|name| text(name));
    let arguments = first(arguments);
    let result = first(result).map(|r| r.chars().take(RESULT_CHARS).collect());
    StepRow {
        seq: Some(event.seq),
        record_hash: Some(event.record_hash.clone()),
        event_time: Some(event.event_time),
        kind: event.kind.clone(),
        agent_id: event.agent_id.clone(),
        agent_name: event.agent_name.clone(),
        initiator_id: event.initiator_id.clone(),
        grant_id: event.grant_id.clone(),
        parent_grant_id: event.parent_grant_id.clone(),
        decision: event.decision.clone(),
        reasons: event.reasons.clone(),
        tool: event.tool.clone(),
        tool_call_id: event.tool_call_id.clone(),
        action: event.action.clone(),
        resource: event.resource.clone(),
        arguments_digest: arguments.as_ref().map(|a| digest(a)),
        arguments,
        result,
        status: event.status.clone(),
        duration_ns: event.end_time.map(|end| end.0.saturating_sub(event.event_time.0)),
        trace_id: event.trace_id.clone(),
        span_id: event.span_id.clone(),
        parent_span_id: event.parent_span_id.clone(),
        service: event.service.clone(),
        ..StepRow::default()
    }
}

fn digest(text: &str) -> String {
    // The same algorithm as the log's own commitments.
    const_hex::encode(&blake3::hash(text.as_bytes()).as_bytes()[..16])
}
