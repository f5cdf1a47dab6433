//! Replay: every step of a trace, a grant, an agent, a conversation or an alert,
//! in causal order, with markers where evidence is missing.
//!
//! Parents stand before children, a grant before its use, a refusal before the
//! call it refused. Clocks only break ties; a clock that contradicts causality is
//! named in the step's note.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::Value as Json;

use crate::Error;
use crate::alerts;
use crate::event::EventRow;
use crate::grants::Grants;
use crate::mapping::call_attributes;
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Cell, Time, table};
use crate::segments::{Table, Wanted};

table! {
    /// One step of a replay.
    StepRow, StepBuilder {
        /// 0-based place in the replay.
        step: u64,
        /// How deep it stands in the tree.
        depth: u32,
        /// The step it stands under.
        parent_step: Option<u64>,
        /// The record that shows it; null for a marker of missing evidence.
        seq: Option<u64>,
        /// Commitment of that record, hex.
        record_hash: Option<String>,
        /// When, as its source says.
        event_time: Option<Time>,
        /// The event's kind; missing for a marker.
        kind: String,
        /// The agent that acts.
        agent_id: Option<String>,
        /// Its name.
        agent_name: Option<String>,
        /// For whom.
        initiator_id: Option<String>,
        /// The grant used, given or refused.
        grant_id: Option<String>,
        /// The grant it was derived from.
        parent_grant_id: Option<String>,
        /// allow, deny and the like.
        decision: Option<String>,
        /// Why.
        reasons: Vec<String>,
        /// Tool.
        tool: Option<String>,
        /// Id of the call.
        tool_call_id: Option<String>,
        /// Action.
        action: Option<String>,
        /// What it was done to.
        resource: Option<String>,
        /// Arguments of the call, as the model gave them.
        arguments: Option<String>,
        /// BLAKE3 of the arguments, first 16 bytes, hex.
        arguments_digest: Option<String>,
        /// Result of the call, its first 200 characters.
        result: Option<String>,
        /// ok, error or unset.
        status: Option<String>,
        /// How long it took, ns.
        duration_ns: Option<i64>,
        /// Trace.
        trace_id: Option<String>,
        /// Span.
        span_id: Option<String>,
        /// Parent span.
        parent_span_id: Option<String>,
        /// The service's own claim of its name.
        service: Option<String>,
        /// What evidence is missing here.
        missing: Option<String>,
        /// What else is to be said: refused yet executed, outside its grant, a clock that is off.
        note: Option<String>,
    }
}

/// Characters of a result that are shown.
const RESULT_CHARS: usize = 200;

/// Replays whatever the id names, as the ledger knew it `as_of`.
pub fn replay(snapshot: &Snapshot, id: &str, as_of: AsOf, now: Time) -> Result<Vec<StepRow>, Error> {
    let grants = Grants::of(snapshot, as_of, now)?;
    let events = select(snapshot, id, as_of, &grants)?;
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let spans = known_spans(snapshot, &events, as_of)?;
    Ok(Order::new(&events, &grants, &spans).steps())
}

/// The events that belong to an id.
fn select(snapshot: &Snapshot, id: &str, as_of: AsOf, grants: &Grants) -> Result<Vec<EventRow>, Error> {
    let mut traces: HashSet<String> = HashSet::new();
    let id_lower = id.to_ascii_lowercase();
    let mut of_trace = snapshot.events_where("trace_id", [id_lower.as_str()], as_of)?;
    if of_trace.is_empty() {
        for column in ["grant_id", "agent_id", "conversation_id", "correlation_id"] {
            traces.extend(snapshot.traces_where(column, [id], as_of)?);
        }
        if grants.get(id).is_some() {
            let below = grants.rows().iter().filter(|g| grants.ancestry(&g.grant_id).iter().any(|a| a.grant_id == id));
            let below: HashSet<&str> = below.map(|g| g.grant_id.as_str()).collect();
            traces.extend(snapshot.traces_where("grant_id", below, as_of)?);
        }
        for alert in alerts::alerts(snapshot, as_of)?.into_iter().filter(|a| a.alert_id == id) {
            let cited: BTreeSet<u64> = alert.evidence.into_iter().collect();
            traces.extend(snapshot.events_at(&cited)?.into_iter().filter_map(|e| e.trace_id));
        }
        of_trace = snapshot.events_where("trace_id", traces, as_of)?;
    }
    let mut events = of_trace;
    // The authority that these steps refer to, also where it was logged elsewhere.
    let named = events.iter().filter_map(|e| e.grant_id.as_deref());
    let authority: HashSet<String> = named.flat_map(|g| grants.ancestry(g)).map(|g| g.grant_id.clone()).collect();
    let have: HashSet<u64> = events.iter().map(|e| e.seq).collect();
    let kinds = ["grant_issued", "grant_derived", "grant_denied", "grant_revoked", "approval"];
    let more = snapshot.events_where("grant_id", authority, as_of)?;
    events.extend(more.into_iter().filter(|e| kinds.contains(&e.kind.as_str()) && !have.contains(&e.seq)));
    events.sort_by_key(|e| (e.event_time, e.seq));
    Ok(events)
}

/// The parent of every span in the traces concerned, mapped to an event or not.
fn known_spans(
    snapshot: &Snapshot,
    events: &[EventRow],
    as_of: AsOf,
) -> Result<HashMap<String, Option<String>>, Error> {
    let traces: HashSet<&str> = events.iter().filter_map(|e| e.trace_id.as_deref()).collect();
    let columns = ["seq", "span_id", "parent_span_id", "ingest_time"];
    let wanted = Wanted::all(Table::Spans).columns(&columns).known_by(as_of).only("trace_id", traces);
    let mut out = HashMap::new();
    snapshot.read(&wanted, |batch| {
        let [seq, span, parent, ingest_time] = batch.columns() else { return Ok(true) };
        for i in 0..batch.num_rows() {
            if as_of.holds(<u64 as Cell>::read(seq, i), <Time as Cell>::read(ingest_time, i)) {
                out.insert(<String as Cell>::read(span, i), <Option<String> as Cell>::read(parent, i));
            }
        }
        Ok(true)
    })?;
    Ok(out)
}

/// Puts events into causal order.
struct Order<'a> {
    events: &'a [EventRow],
    grants: &'a Grants,
    spans: &'a HashMap<String, Option<String>>,
    /// Span id to the event of that span.
    by_span: HashMap<&'a str, usize>,
    /// Agents at work: the event, and until when anything under it went on.
    agents: Vec<(usize, Time)>,
    children: Vec<Vec<usize>>,
    steps: Vec<StepRow>,
    missing: HashSet<String>,
}

impl<'a> Order<'a> {
    fn new(events: &'a [EventRow], grants: &'a Grants, spans: &'a HashMap<String, Option<String>>) -> Self {
        let spans_of = |(i, e): (usize, &'a EventRow)| {
            // A log carries the span it was made in; only a span event is that span.
            let id = e.span_id.as_deref().filter(|_| e.end_time.is_some() || e.status.is_some());
            id.map(|id| (id, i))
        };
        let by_span = events.iter().enumerate().filter_map(spans_of).collect();
        let children = vec![Vec::new(); events.len()];
        let (agents, steps, missing) = (Vec::new(), Vec::new(), HashSet::new());
        let mut order = Self { events, grants, spans, by_span, agents, children, steps, missing };
        order.agents = order.extents();
        order
    }

    /// Until when each agent, or anything under it, was at work. Latest first, so
    /// that a walk upwards ends where an earlier one has been.
    fn extents(&self) -> Vec<(usize, Time)> {
        let mut ends: Vec<(Time, usize)> =
            self.events.iter().enumerate().filter_map(|(i, e)| Some((e.end_time?, i))).collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        let mut until: HashMap<usize, Time> = HashMap::new();
        for (end, i) in ends {
            let mut at = Some(i);
            while let Some(i) = at.filter(|i| !until.contains_key(i)) {
                until.insert(i, end);
                at = self.parent(i);
            }
        }
        let agents = until.into_iter().filter(|(i, _)| self.events[*i].kind == "agent_invocation");
        agents.collect()
    }

    /// For a decision about an agent: that agent, if it was then at work.
    fn named_agent_at(&self, event: &EventRow) -> Option<usize> {
        if !matches!(event.kind.as_str(), "grant_denied" | "executor_decision" | "policy_evaluation") {
            return None;
        }
        let working = self.agents.iter().filter(|(i, until)| {
            let agent = &self.events[*i];
            agent.trace_id == event.trace_id
                && agent.agent_id.is_some()
                && agent.agent_id == event.agent_id
                && (agent.event_time..=*until).contains(&event.event_time)
        });
        working.map(|(i, _)| *i).max_by_key(|&i| (self.events[i].event_time, i))
    }

    /// The time by which an event is sorted among its siblings: a grant stands
    /// before the work of the agent that it was given to.
    fn sort_time(&self, i: usize) -> Time {
        let event = &self.events[i];
        if event.kind != "grant_derived" {
            return event.event_time;
        }
        let begun = self.agents.iter().map(|(i, _)| &self.events[*i]).filter(|agent| {
            agent.trace_id == event.trace_id && agent.agent_id.is_some() && agent.agent_id == event.agent_id
        });
        begun.map(|agent| agent.event_time).min().map_or(event.event_time, |begun| begun.min(event.event_time))
    }

    /// For a log that names no span: the agent that had begun last of those then at work.
    fn agent_at(&self, event: &EventRow) -> Option<usize> {
        let working = self.agents.iter().filter(|(i, until)| {
            let agent = &self.events[*i];
            agent.trace_id == event.trace_id && (agent.event_time..=*until).contains(&event.event_time)
        });
        working.map(|(i, _)| *i).max_by_key(|&i| (self.events[i].event_time, i))
    }

    fn steps(mut self) -> Vec<StepRow> {
        let mut roots = Vec::new();
        for i in 0..self.events.len() {
            match self.parent(i) {
                Some(parent) => self.children[parent].push(i),
                None => roots.push(i),
            }
        }
        let children = std::mem::take(&mut self.children);
        let mut reached = vec![false; self.events.len()];
        self.walk(&roots, &children, &mut reached);
        // Spans that are each other's parents hang from no root: they are shown all the same.
        let loose: Vec<usize> = (0..self.events.len()).filter(|&i| !reached[i]).collect();
        for i in loose {
            if !reached[i] {
                self.walk(&[i], &children, &mut reached);
            }
        }
        self.steps
    }

    /// The event that an event stands under: of its parent span, or for a log of its own span.
    fn parent(&self, i: usize) -> Option<usize> {
        let event = &self.events[i];
        let own = match event.span_id.as_deref() {
            Some(own) if self.by_span.get(own) == Some(&i) => own,
            // What was decided about an agent stands under that agent, if it was at work.
            own => match (self.named_agent_at(event), own) {
                (Some(at), _) => return Some(at),
                (None, Some(own)) => own,
                (None, None) => return self.agent_at(event),
            },
        };
        let mut above = match self.by_span.get(own) {
            Some(&at) if at == i => event.parent_span_id.as_deref()?,
            // A refusal made inside the call's own span still comes before the call.
            Some(&at) => return Some(self.parent(at).unwrap_or(at)).filter(|&p| p != i),
            None => own,
        };
        // Spans that no mapping knows are stepped over.
        for _ in 0..1000 {
            if let Some(&at) = self.by_span.get(above) {
                return (at != i).then_some(at);
            }
            above = self.spans.get(above)?.as_deref()?;
        }
        None
    }

    /// Depth first without recursion, so that no depth is too deep.
    fn walk(&mut self, roots: &[usize], children: &[Vec<usize>], reached: &mut [bool]) {
        let mut stack: Vec<(usize, u32, Option<u64>)> = Vec::new();
        let push = |own: &Self, stack: &mut Vec<_>, list: &[usize], depth: u32, parent: Option<u64>| {
            let mut ordered = list.to_vec();
            ordered.sort_by_cached_key(|&i| (own.sort_time(i), rank(&own.events[i].kind), own.events[i].seq));
            stack.extend(ordered.into_iter().rev().map(|i| (i, depth, parent)));
        };
        push(self, &mut stack, roots, 0, None);
        while let Some((i, depth, parent)) = stack.pop() {
            if std::mem::replace(&mut reached[i], true) {
                continue;
            }
            self.mark_missing(i, depth, parent);
            let step = self.steps.len() as u64;
            let row = self.row(i, step, depth, parent);
            self.steps.push(row);
            push(self, &mut stack, &children[i], depth + 1, Some(step));
        }
    }

    /// Markers before a step whose parent or grant was never received.
    fn mark_missing(&mut self, i: usize, depth: u32, parent: Option<u64>) {
        let event = &self.events[i];
        let span = event.parent_span_id.as_ref().filter(|id| !self.spans.contains_key(*id));
        let grant = event.grant_id.as_ref().filter(|id| {
            matches!(event.kind.as_str(), "tool_call" | "executor_decision" | "grant_revoked")
                && self.grants.get(id).is_none()
        });
        let above = event.parent_grant_id.as_ref().filter(|id| self.grants.get(id).is_none());
        let what = [
            span.map(|id| format!("parent span {id} was never received")),
            grant.map(|id| format!("grant {id} was never issued in this ledger")),
            above.map(|id| format!("parent grant {id} was never received")),
        ];
        for what in what.into_iter().flatten() {
            if self.missing.insert(what.clone()) {
                let step = self.steps.len() as u64;
                self.steps.push(StepRow {
                    step,
                    depth,
                    parent_step: parent,
                    kind: "missing".into(),
                    trace_id: self.events[i].trace_id.clone(),
                    missing: Some(what),
                    ..StepRow::default()
                });
            }
        }
    }

    fn row(&self, i: usize, step: u64, depth: u32, parent_step: Option<u64>) -> StepRow {
        let event = &self.events[i];
        let fields: Json = serde_json::from_str(&event.attributes).unwrap_or_default();
        let text = |name: &str| {
            fields.get(name).filter(|v| !v.is_null()).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
        };
        let is_call = event.kind == "tool_call";
        let [arguments, result] = call_attributes(if is_call { &event.source } else { "" });
        let first = |names: &[&str]| names.iter().find_map(|name| text(name));
        let arguments = first(arguments);
        let result = first(result).map(|r| r.chars().take(RESULT_CHARS).collect());
        StepRow {
            step,
            depth,
            parent_step,
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
            missing: None,
            note: self.note(event, parent_step),
        }
    }

    /// What a reader must not miss about a step.
    fn note(&self, event: &EventRow, parent_step: Option<u64>) -> Option<String> {
        let mut notes = Vec::new();
        if event.kind == "tool_call" {
            let refusal = self.events.iter().find(|e| refuses(e, event));
            notes.extend(refusal.map(|e| format!("executed although refused at seq {}", e.seq)));
        }
        let grant = event.grant_id.as_ref().and_then(|id| self.grants.get(id));
        if let (Some(grant), "grant_derived") = (grant, event.kind.as_str())
            && !grant.widened_by.is_empty()
        {
            notes.push(format!("exceeds its parent in {}", grant.widened_by.join(", ")));
        }
        let parent = parent_step.and_then(|p| self.steps.get(p as usize)).and_then(|p| p.event_time);
        if event.end_time.is_some() && parent.is_some_and(|parent| event.event_time < parent) {
            notes.push("its clock says that it began before its parent".into());
        }
        notes.extend(event.invalid_reasons.iter().map(|r| format!("invalid: {r}")));
        (!notes.is_empty()).then(|| notes.join("; "))
    }
}

/// Whether a refusal is of this call: by its id, or by agent, action and resource.
fn refuses(refusal: &EventRow, call: &EventRow) -> bool {
    if refusal.decision.as_deref() != Some("deny") || refusal.event_time > call.event_time {
        return false;
    }
    match refusal.kind.as_str() {
        "executor_decision" => refusal.tool_call_id.is_some() && refusal.tool_call_id == call.tool_call_id,
        "grant_denied" => {
            refusal.agent_id == call.agent_id
                && refusal.action == call.action
                && (refusal.resource.is_none() || refusal.resource == call.resource)
        }
        _ => false,
    }
}

/// What comes first at the same time: asking, deciding, giving, acting.
fn rank(kind: &str) -> u8 {
    match kind {
        "request" => 0,
        "policy_evaluation" => 1,
        "approval" => 2,
        "grant_issued" | "grant_derived" | "grant_denied" | "grant_revoked" => 3,
        "executor_decision" => 4,
        "agent_invocation" => 5,
        _ => 6,
    }
}

fn digest(text: &str) -> String {
    // The same algorithm as the log's own commitments.
    const_hex::encode(&blake3::hash(text.as_bytes()).as_bytes()[..16])
}
