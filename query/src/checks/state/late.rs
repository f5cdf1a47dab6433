//! What evidence that comes late touches: the records that are judged once more.
//!
//! What one agent did, or was done in one conversation or under one grant, is much, and of decisions and approvals each is
//! evidence: of these only records are touched that did not begin before it. All rules that join by them ask for what was
//! earlier. With records of the same trace or call, and about the same grant, it may be otherwise.

use std::collections::{BTreeSet, HashMap, HashSet};

use datafusion::arrow::array::{Array as _, AsArray as _, RecordBatch};

use super::{Held, Named, State};
use crate::checks::relations::{By, found_under, gives};
use crate::event::EventRow;
use crate::grants::{KINDS as GRANTS, REVOKED};

/// Settled records that one piece of late evidence has judged again, the newest of each relation.
pub(super) const AGAIN_MAX: usize = 1000;

/// Kinds after whose late arrival settled records are judged again.
const EVIDENCE: [&str; 10] = [
    "grant_issued",
    "grant_derived",
    "grant_denied",
    "grant_revoked",
    "executor_decision",
    "policy_evaluation",
    "approval",
    "guardrail",
    "context_retrieval",
    "authority_change",
];

/// What makes evidence of a record of any kind: that a session ended.
const SESSION_STATE: &str = "session.state";

/// Whether records that have it in common are asked for by their times.
pub(super) fn is_by_time(by: By) -> bool {
    matches!(by, By::Agent | By::Conversation | By::Use)
}

impl State {
    /// The records that gave the grant that a record ends, and those derived from it.
    pub(crate) fn ended_by(&self, seq: u64) -> Vec<u64> {
        let revokes = self.get(seq).is_some_and(|event| event.kind == REVOKED);
        let touched = if revokes { self.touched_by(seq) } else { BTreeSet::new() };
        touched.into_iter().filter(|seq| self.get(*seq).is_some_and(gives)).collect()
    }

    /// The records that evidence may judge otherwise.
    pub(crate) fn touched_by(&self, seq: u64) -> BTreeSet<u64> {
        let calls = self.all(seq).filter(|event| event.kind == "tool_call");
        let mut out: BTreeSet<u64> = calls.flat_map(|call| self.waited_for(call)).collect();
        let is_evidence =
            |held: &&Held| EVIDENCE.contains(&held.row.kind.as_str()) || self.fields.0.has(&held.found, SESSION_STATE);
        let Some(event) = self.held(seq).find(is_evidence).map(|held| &held.row) else { return out };
        let (whose, since) = (event.tenant.as_deref(), event.event_time.0);
        for (by, value) in [(By::Trace, &event.trace_id), (By::Call, &event.tool_call_id)] {
            out.extend(value.iter().flat_map(|value| self.met(by, value, whose, AGAIN_MAX)));
        }
        for (by, value) in [(By::Agent, &event.agent_id), (By::Conversation, &event.conversation_id)] {
            out.extend(value.iter().flat_map(|value| self.later(by, value, whose, since)));
        }
        let is_of_grant = GRANTS.contains(&event.kind.as_str());
        let named = |event: &EventRow| Some((event.tenant.clone(), event.grant_id.clone()?));
        let (mut below, mut walked): (Vec<Named>, _) = (named(event).into_iter().collect(), HashSet::new());
        let mut agents = HashSet::new();
        while let Some((tenant, id)) = below.pop().filter(|_| walked.len() < AGAIN_MAX) {
            let whose = tenant.as_deref();
            let of = |by: By, most: usize| self.met(by, &id, whose, most);
            out.extend(of(By::Given, AGAIN_MAX).chain(of(By::Grant, AGAIN_MAX)));
            match is_of_grant {
                true => out.extend(of(By::Use, AGAIN_MAX)),
                false => out.extend(self.later(By::Use, &id, whose, since)),
            }
            for child in of(By::Child, usize::MAX) {
                out.insert(child);
                let Some(child) = self.get(child) else { continue };
                // What was given above a grant decides whether it overrules a refusal, whatever the calls name.
                let agent = child.agent_id.as_ref().filter(|_| is_of_grant && event.kind != REVOKED);
                if let Some(agent) = agent.filter(|agent| agents.insert(*agent)) {
                    out.extend(self.met(By::Agent, agent, event.tenant.as_deref(), AGAIN_MAX));
                }
                below.extend(named(child).filter(|named| walked.insert(named.clone())));
            }
        }
        out.retain(|seq| !self.back.contains(seq));
        out
    }

    /// What a call was waited for by: the decisions that allowed it, and the steps of its process that began later.
    fn waited_for(&self, call: &EventRow) -> impl Iterator<Item = u64> {
        let whose = call.tenant.as_deref();
        let of = move |by: By, value: &Option<String>| {
            value.as_ref().into_iter().flat_map(move |value| self.met(by, value, whose, AGAIN_MAX)).collect::<Vec<_>>()
        };
        let is_later = |event: &EventRow| {
            event.kind == "tool_call" && event.process_id == call.process_id && event.event_time >= call.event_time
        };
        let in_trace = if call.process_id.is_some() { of(By::Trace, &call.trace_id) } else { Vec::new() };
        let steps = in_trace.into_iter().filter(move |seq| self.all(*seq).any(is_later));
        let is_decision = |event: &EventRow| event.kind == "executor_decision";
        let decided = of(By::Call, &call.tool_call_id).into_iter().filter(move |seq| self.all(*seq).any(is_decision));
        steps.chain(decided)
    }

    /// The steps below a seq whose parent is among some spans: that it never came may have been told.
    pub(crate) fn children_of(&self, spans: &[RecordBatch], below: u64) -> BTreeSet<u64> {
        let mut came: HashMap<(&str, Option<&str>), HashSet<&str>> = HashMap::new();
        for batch in spans {
            let texts = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
            let (Some(trace), Some(span), Some(tenant)) = (texts("trace_id"), texts("span_id"), texts("tenant")) else {
                continue;
            };
            for i in 0..batch.num_rows() {
                let whose = tenant.is_valid(i).then(|| tenant.value(i));
                came.entry((trace.value(i), whose)).or_default().insert(span.value(i));
            }
        }
        let mut out = BTreeSet::new();
        for ((trace, whose), ids) in came {
            let is_child = |event: &EventRow| event.parent_span_id.as_deref().is_some_and(|id| ids.contains(id));
            let settled = self.met(By::Trace, trace, whose, AGAIN_MAX).filter(|seq| *seq < below);
            out.extend(settled.filter(|seq| !self.back.contains(seq) && self.all(*seq).any(is_child)));
        }
        out
    }

    /// The events that have this in common with one of a tenant, meet it, and did not begin before a time: of each place those
    /// that began last.
    fn later(&self, by: By, value: &str, tenant: Option<&str>, since: i64) -> impl Iterator<Item = u64> {
        debug_assert!(is_by_time(by));
        let places = found_under(by, value, tenant).map(|key| self.by_time.get(&key));
        let later = places.into_iter().flatten().map(move |times| times.range((since, 0)..).rev().take(AGAIN_MAX));
        later.flatten().map(|(_, seq)| *seq)
    }
}
