//! What evidence that comes late touches: the records that are judged once more.
//!
//! What one agent did, or was done in one conversation or under one grant, is much, and of decisions and approvals each is
//! evidence: of these only records are touched that did not begin before it. All rules that join by them ask for what was
//! earlier. With records of the same trace or call, and about the same grant, it may be otherwise.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use datafusion::arrow::array::{Array as _, AsArray as _, RecordBatch};

use super::{Held, Named, State};
use crate::checks::relations::{By, found_under, gives};
use crate::event::EventRow;
use crate::grants::{KINDS as GRANTS, REVOKED};

/// Settled records that one piece of late evidence has judged again, the newest of each relation; and of the grants below one,
/// so many.
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

/// What makes evidence of a record of any kind: that a session ended, what was read is not to be trusted, or a memory was
/// written or read.
const TELLING: [&str; 3] = ["session.state", "authz.context.trust", "memory.operation"];

/// Whether records that have it in common are asked for by their times.
pub(super) fn is_by_time(by: By) -> bool {
    matches!(by, By::Agent | By::Conversation | By::Use)
}

impl State {
    /// The records that gave the grant that a record ends, and those derived from it.
    pub(crate) fn ended_by(&self, seq: u64) -> Vec<u64> {
        let revokes = self.get(seq).is_some_and(|event| event.kind == REVOKED);
        let touched = if revokes { self.touched_by(seq, u64::MAX) } else { BTreeSet::new() };
        touched.into_iter().filter(|seq| self.get(*seq).is_some_and(gives)).collect()
    }

    /// The settled records, those below a seq, that what came with a record may judge otherwise.
    pub(crate) fn touched_by(&self, seq: u64, below: u64) -> BTreeSet<u64> {
        let mut out = BTreeSet::new();
        for held in self.held(seq) {
            if held.row.kind == "tool_call" {
                self.waited_for(&held.row, below, &mut out);
            }
            if self.is_evidence(held) {
                self.touch(&held.row, below, &mut out);
            }
            self.approved_later(held, below, &mut out);
        }
        out.retain(|seq| !self.back.contains(seq));
        out
    }

    fn is_evidence(&self, held: &Held) -> bool {
        EVIDENCE.contains(&held.row.kind.as_str())
            || held.row.classification.is_some() && held.row.kind == "tool_call"
            || TELLING.iter().any(|key| self.fields.0.has(&held.found, key))
    }

    /// What evidence may judge otherwise.
    fn touch(&self, event: &EventRow, below: u64, out: &mut BTreeSet<u64>) {
        let (whose, since) = (event.tenant.as_deref(), event.event_time.0);
        let met = |by: By, value: &str, whose: Option<&str>| self.met_below(by, value, whose, below, AGAIN_MAX);
        for (by, value) in [(By::Trace, &event.trace_id), (By::Call, &event.tool_call_id)] {
            out.extend(value.iter().flat_map(|value| met(by, value, whose)));
        }
        for (by, value) in [(By::Agent, &event.agent_id), (By::Conversation, &event.conversation_id)] {
            out.extend(value.iter().flat_map(|value| self.later(by, value, whose, (since, below))));
        }
        let is_of_grant = GRANTS.contains(&event.kind.as_str());
        // What is decided of a grant counts for what is derived from it only if it is a person's approval, or about the grant.
        let goes_down = is_of_grant || event.kind == "approval";
        let named = |event: &EventRow| Some((event.tenant.clone(), event.grant_id.clone()?));
        // The nearest first, and of those the newest.
        let mut waiting: VecDeque<Named> = named(event).into_iter().collect();
        let (mut known, mut agents, mut walked) = (HashSet::new(), HashSet::new(), 0);
        while let Some((tenant, id)) = waiting.pop_front().filter(|_| walked < AGAIN_MAX) {
            walked += 1;
            let whose = tenant.as_deref();
            out.extend(met(By::Given, &id, whose).chain(met(By::Grant, &id, whose)));
            match is_of_grant {
                true => out.extend(met(By::Use, &id, whose)),
                false => out.extend(self.later(By::Use, &id, whose, (since, below))),
            }
            let children: Vec<u64> = met(By::Child, &id, whose).take(if goes_down { AGAIN_MAX } else { 0 }).collect();
            out.extend(&children);
            // What was given above a grant, or in another record of it, decides whether it overrules a refusal, whatever the
            // calls name.
            let others = met(By::Given, &id, whose).filter(|seq| *seq != event.seq);
            let given = others.chain(children.iter().copied()).filter_map(|seq| self.get(seq));
            let given = given.filter(|_| is_of_grant && event.kind != REVOKED);
            for agent in given.filter_map(|event| event.agent_id.as_ref()).filter(|agent| agents.insert(*agent)) {
                out.extend(met(By::Agent, agent, event.tenant.as_deref()));
            }
            let children = children.into_iter().filter_map(|seq| named(self.get(seq)?));
            waiting.extend(children.filter(|named| known.insert(named.clone())));
        }
    }

    /// The events that have this in common with one of a tenant, meet it, and did not begin before a time: of each place those
    /// that began last; where these are too many, also those that came last.
    fn later(&self, by: By, value: &str, tenant: Option<&str>, (since, below): (i64, u64)) -> Vec<u64> {
        debug_assert!(is_by_time(by));
        let mut out = Vec::new();
        for key in found_under(by, value, tenant) {
            let Some(times) = self.by_time.get(&key) else { continue };
            let mut looked_at = 0;
            let newest = times.range((since, 0)..).rev().take(AGAIN_MAX).inspect(|_| looked_at += 1);
            out.extend(newest.map(|(_, seq)| *seq).filter(|seq| *seq < below));
            // Whoever dates much into the future hides nothing by it.
            let seqs = self.index.get(&key).filter(|_| looked_at == AGAIN_MAX);
            let came = seqs.into_iter().flat_map(|seqs| seqs.range(..below).rev().take(AGAIN_MAX));
            out.extend(came.filter(|seq| self.all(**seq).any(|event| event.event_time.0 >= since)));
        }
        out
    }

    /// What a person approved after something: how much that was at once goes by all of it.
    fn approved_later(&self, held: &Held, below: u64, out: &mut BTreeSet<u64>) {
        let whose = held.row.tenant.as_deref();
        for (_, approver) in held.more.iter().filter(|(by, _)| *by == By::Approver) {
            let all = self.met_below(By::Approver, approver, whose, below, AGAIN_MAX);
            out.extend(all.filter(|seq| self.all(*seq).any(|event| event.event_time >= held.row.event_time)));
        }
    }

    /// What a call was waited for by: what was decided and told of it, and the steps of its process that began later.
    fn waited_for(&self, call: &EventRow, below: u64, out: &mut BTreeSet<u64>) {
        let whose = call.tenant.as_deref();
        let of = |by: By, value: &Option<String>| {
            let value = value.clone();
            value.into_iter().flat_map(move |value| self.met_below(by, &value, whose, below, AGAIN_MAX))
        };
        out.extend(of(By::Call, &call.tool_call_id));
        let is_later = |event: &EventRow| {
            event.kind == "tool_call" && event.process_id == call.process_id && event.event_time >= call.event_time
        };
        if call.process_id.is_some() {
            out.extend(of(By::Trace, &call.trace_id).filter(|seq| self.all(*seq).any(is_later)));
        }
    }

    /// What some spans, that may have ended long after what is in them, judge otherwise: the steps below a seq whose parent is
    /// among them, and the calls of agents that were invoked by or in them.
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
            let is_one = |id: &Option<String>| id.as_deref().is_some_and(|id| ids.contains(id));
            let settled = || self.met_below(By::Trace, trace, whose, below, AGAIN_MAX);
            if settled().next().is_none() {
                continue;
            }
            let all = self.met(By::Trace, trace, whose, AGAIN_MAX).flat_map(|seq| self.all(seq));
            let invoked = all.filter(|event| event.kind == "agent_invocation");
            let invoked = invoked.filter(|event| is_one(&event.span_id) || is_one(&event.parent_span_id));
            let invoked: HashSet<&str> = invoked.filter_map(|event| event.agent_id.as_deref()).collect();
            let is_call_of = |event: &EventRow| {
                event.kind == "tool_call" && event.agent_id.as_deref().is_some_and(|agent| invoked.contains(agent))
            };
            let is_touched = |event: &EventRow| is_one(&event.parent_span_id) || is_call_of(event);
            out.extend(settled().filter(|seq| !self.back.contains(seq) && self.all(*seq).any(is_touched)));
        }
        out
    }
}
