//! What the evaluator keeps at hand: recent events, and the records of grants that are live, by
//! what they have in common. Its size is bounded by time, number and bytes; what is let go is
//! still in the segments, and a grant is read back from there when it is used again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use serde_json::Value as Json;

use super::run::{SpanIdRow, UseRow};
use crate::Error;
use crate::attributes::parse_time;
use crate::event::EventRow;
use crate::projection::{AsOf, Snapshot};
use crate::rows::Time;

/// Events at hand, at most.
const EVENTS_MAX: usize = 500_000;
/// Bytes that they take, at most.
const BYTES_MAX: usize = 96 << 20;
/// What an event takes in the lists of what it has in common with others, about.
const INDEX_BYTES: usize = 1024;
/// Span ids at hand, at most: the traces that were longest without a span go first.
const SPANS_MAX: usize = 1_000_000;
/// Related events of one kind of relation that a judgement sees, the newest.
const RELATED_MAX: usize = 2000;
/// Settled records that one piece of late evidence has judged again, the newest.
const AGAIN_MAX: usize = 1000;

/// How long approvals and refusals are kept, in ns: a day.
pub(crate) const DECISIONS_HELD: i64 = 86_400_000_000_000;

/// What events have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum By {
    Trace,
    Grant,
    Child,
    Use,
    Agent,
    Call,
    Conversation,
    Credential,
    Schema,
    Source,
    Approver,
}

type Key = (By, String);

/// Kinds that change what is known of a grant.
const GRANTS: [&str; 4] = ["grant_issued", "grant_derived", "grant_denied", "grant_revoked"];

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

/// Whether the event is one of the ledger's own, or of the people who answer alerts: no check is about those.
pub(crate) fn is_aside(event: &EventRow) -> bool {
    let kind = event.kind.as_str();
    let answers = kind.starts_with("alert") || matches!(kind, "investigation" | "containment_decision" | "erasure");
    answers || event.submitter.starts_with("system:")
}

/// Events at hand.
#[derive(Default)]
pub(crate) struct State {
    events: BTreeMap<u64, EventRow>,
    index: HashMap<Key, BTreeSet<u64>>,
    /// Events in the order in which time lets them go; grants are not among them.
    recent: VecDeque<(i64, u64)>,
    /// Records of grants by the time of their end.
    held: BTreeSet<(i64, u64)>,
    uses: HashMap<String, u64>,
    nth: HashMap<u64, u64>,
    /// Span ids by trace, and when the trace's newest came.
    spans: HashMap<u128, (i64, HashSet<u64>)>,
    /// Traces in the order in which time lets them go.
    traces: VecDeque<(i64, u128)>,
    span_count: usize,
    bytes: usize,
    /// Records that were read back: they are looked at, and not judged again.
    back: HashSet<u64>,
    /// Grants that were let go: they are looked for in the segments when they are named again.
    let_go: bool,
}

impl State {
    pub(crate) fn get(&self, seq: u64) -> Option<&EventRow> {
        self.events.get(&seq)
    }

    /// Whether it is an approval or a refusal.
    pub(crate) fn is_held(kind: &str, decision: Option<&str>) -> bool {
        kind == "approval" || matches!(decision, Some("deny" | "rejected"))
    }

    /// Takes an event in.
    pub(crate) fn insert(&mut self, event: EventRow) {
        if self.events.contains_key(&event.seq) {
            return;
        }
        if let Some(grant) = event.grant_id.as_ref().filter(|_| event.kind == "tool_call") {
            let nth = self.uses.entry(grant.clone()).or_default();
            *nth += 1;
            self.nth.insert(event.seq, *nth);
        }
        for key in keys(&event) {
            self.index.entry(key).or_default().insert(event.seq);
        }
        let decides = Self::is_held(&event.kind, event.decision.as_deref());
        match event.kind.as_str() {
            kind if GRANTS.contains(&kind) => drop(self.held.insert((end_of(&event), event.seq))),
            // What was approved or refused counts for later calls: it stays longer than the window.
            _ if decides => drop(self.held.insert((event.ingest_time.0.saturating_add(DECISIONS_HELD), event.seq))),
            _ => self.recent.push_back((event.ingest_time.0, event.seq)),
        }
        self.bytes += size(&event);
        self.events.insert(event.seq, event);
    }

    /// Uses of a grant that were counted before.
    pub(crate) fn count(&mut self, grant: String, uses: u64) {
        *self.uses.entry(grant).or_default() += uses;
    }

    /// Takes the id of a span in. What is no id of OTLP is no span's parent either.
    pub(crate) fn insert_span(&mut self, trace: &str, span: &str, ingest_time: i64) {
        let (Ok(trace), Ok(span)) = (u128::from_str_radix(trace, 16), u64::from_str_radix(span, 16)) else { return };
        if !self.spans.contains_key(&trace) {
            self.traces.push_back((ingest_time, trace));
        }
        let of = self.spans.entry(trace).or_default();
        of.0 = ingest_time;
        self.span_count += usize::from(of.1.insert(span));
    }

    /// Lets go of what is older than `before`, and of the oldest beyond the bounds. Gives their seqs.
    pub(crate) fn let_go(&mut self, before: i64) -> Vec<u64> {
        let mut gone = Vec::new();
        let over = |state: &Self| state.events.len() > EVENTS_MAX || state.bytes > BYTES_MAX;
        while let Some(&(time, seq)) = self.recent.front().filter(|(time, _)| *time < before || over(self)) {
            let _ = time;
            self.recent.pop_front();
            self.remove(seq);
            gone.push(seq);
        }
        while let Some(&(end, seq)) = self.held.first().filter(|(end, _)| *end < before || over(self)) {
            self.held.remove(&(end, seq));
            let grant = self.events.get(&seq).filter(|event| GRANTS.contains(&event.kind.as_str()));
            if let Some(grant) = grant.and_then(|event| event.grant_id.clone()) {
                self.uses.remove(&grant);
                self.let_go = true;
            }
            self.remove(seq);
            gone.push(seq);
        }
        self.let_spans_go(before);
        gone
    }

    /// Lets go of traces that had no span since `before`, and of the oldest beyond the bound.
    fn let_spans_go(&mut self, before: i64) {
        while let Some(&(time, trace)) = self.traces.front() {
            let last = self.spans.get(&trace).map_or(time, |of| of.0);
            let is_over = self.span_count > SPANS_MAX;
            if time >= before && !is_over {
                break;
            }
            self.traces.pop_front();
            // It had spans since it was put there: it is not yet the oldest.
            if last > time && (last >= before || is_over) {
                self.traces.push_back((last, trace));
            } else if let Some((_, spans)) = self.spans.remove(&trace) {
                self.span_count -= spans.len();
            }
        }
    }

    fn remove(&mut self, seq: u64) {
        let Some(event) = self.events.remove(&seq) else { return };
        self.bytes = self.bytes.saturating_sub(size(&event));
        self.nth.remove(&seq);
        self.back.remove(&seq);
        for key in keys(&event) {
            if let Some(seqs) = self.index.get_mut(&key) {
                seqs.remove(&seq);
                if seqs.is_empty() {
                    self.index.remove(&key);
                }
            }
        }
    }

    fn of(&self, by: By, value: &str) -> impl DoubleEndedIterator<Item = u64> + '_ {
        self.index.get(&(by, value.to_owned())).into_iter().flatten().copied()
    }

    /// The events that the judgement of some needs to see.
    pub(crate) fn context(&mut self, judged: &BTreeSet<u64>, snapshot: &Snapshot) -> Result<BTreeSet<u64>, Error> {
        let mut out: BTreeSet<u64> = judged.iter().copied().filter(|seq| self.events.contains_key(seq)).collect();
        let (mut seen, mut grants) = (HashSet::new(), Vec::new());
        for seq in out.clone() {
            let Some(event) = self.events.get(&seq) else { continue };
            grants.extend(event.grant_id.iter().chain(&event.parent_grant_id).cloned());
            for key in keys(event).into_iter().filter(|key| !matches!(key.0, By::Use | By::Grant)) {
                if seen.insert(key.clone()) {
                    out.extend(self.of(key.0, &key.1).rev().take(RELATED_MAX));
                }
            }
        }
        // What the others in the same trace or of the same agent acted under.
        grants.extend(out.iter().filter_map(|seq| self.events.get(seq)).flat_map(|e| e.grant_id.clone()));
        self.read_back(&grants, snapshot)?;
        let mut walked = HashSet::new();
        while let Some(id) = grants.pop() {
            if !walked.insert(id.clone()) {
                continue;
            }
            let records: Vec<u64> = self.of(By::Grant, &id).rev().take(RELATED_MAX).collect();
            for seq in records {
                out.insert(seq);
                grants.extend(self.events.get(&seq).and_then(|event| event.parent_grant_id.clone()));
            }
            if self.let_go && !grants.is_empty() {
                let next = grants.clone();
                self.read_back(&next, snapshot)?;
            }
        }
        Ok(out)
    }

    /// Reads the records of grants that were let go back from the segments.
    fn read_back(&mut self, grants: &[String], snapshot: &Snapshot) -> Result<(), Error> {
        if !self.let_go {
            return Ok(());
        }
        let missing: BTreeSet<&String> = grants.iter().filter(|id| self.of(By::Grant, id).next().is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        for event in snapshot.events_where("grant_id", missing.into_iter().cloned(), AsOf::Now)? {
            if GRANTS.contains(&event.kind.as_str()) && !is_aside(&event) {
                self.back.insert(event.seq);
                self.insert(event);
            }
        }
        Ok(())
    }

    /// The records that evidence may judge otherwise.
    pub(crate) fn touched_by(&self, seq: u64) -> BTreeSet<u64> {
        let mut out = BTreeSet::new();
        let Some(event) = self.events.get(&seq).filter(|e| EVIDENCE.contains(&e.kind.as_str())) else { return out };
        let take = |by: By, value: &Option<String>, out: &mut BTreeSet<u64>| {
            if let Some(value) = value {
                out.extend(self.of(by, value).rev().take(AGAIN_MAX));
            }
        };
        take(By::Trace, &event.trace_id, &mut out);
        take(By::Call, &event.tool_call_id, &mut out);
        take(By::Agent, &event.agent_id, &mut out);
        take(By::Conversation, &event.conversation_id, &mut out);
        let (mut below, mut walked) = (Vec::from_iter(event.grant_id.clone()), HashSet::new());
        while let Some(id) = below.pop().filter(|_| walked.len() < AGAIN_MAX) {
            let id = Some(id);
            take(By::Use, &id, &mut out);
            take(By::Grant, &id, &mut out);
            for child in id.iter().flat_map(|id| self.of(By::Child, id)) {
                out.insert(child);
                let grant = self.events.get(&child).and_then(|e| e.grant_id.clone());
                below.extend(grant.filter(|g| walked.insert(g.clone())));
            }
        }
        out.retain(|seq| !self.back.contains(seq));
        out
    }

    /// The count of each use among some events.
    pub(crate) fn uses(&self, seqs: &BTreeSet<u64>) -> Vec<UseRow> {
        let one = |seq: &u64| {
            let (nth, event) = (self.nth.get(seq)?, self.events.get(seq)?);
            Some(UseRow { seq: *seq, grant_id: event.grant_id.clone()?, nth: *nth })
        };
        seqs.iter().filter_map(one).collect()
    }

    /// The spans of the traces of some events.
    pub(crate) fn span_ids(&self, seqs: &BTreeSet<u64>) -> Vec<SpanIdRow> {
        let traces: BTreeSet<&String> = seqs.iter().filter_map(|s| self.events.get(s)?.trace_id.as_ref()).collect();
        let mut out = Vec::new();
        for trace in traces {
            let id = u128::from_str_radix(trace, 16).ok();
            let spans = id.and_then(|id| self.spans.get(&id)).into_iter().flat_map(|of| &of.1);
            out.extend(spans.map(|span| SpanIdRow { trace_id: trace.clone(), span_id: format!("{span:016x}") }));
        }
        out
    }

    /// How many events are at hand.
    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }
}

/// What an event has in common with others.
fn keys(event: &EventRow) -> Vec<Key> {
    let mut out = Vec::new();
    let mut add = |by: By, value: Option<String>| out.extend(value.map(|value| (by, value)));
    add(By::Trace, event.trace_id.clone());
    add(if event.kind == "tool_call" { By::Use } else { By::Grant }, event.grant_id.clone());
    add(By::Child, event.parent_grant_id.clone());
    add(By::Agent, event.agent_id.clone());
    add(By::Call, event.tool_call_id.clone());
    add(By::Conversation, event.conversation_id.clone());
    let has = |name: &str| event.attributes.contains(name);
    const NAMES: [&str; 6] = [
        "authz.credential.id",
        "service-account-id",
        "schema_digest",
        "schema.digest",
        "sequence",
        "authz.approval.by",
    ];
    if !NAMES.iter().any(|name| has(name)) {
        return out;
    }
    let fields: Json = serde_json::from_str(&event.attributes).unwrap_or_default();
    let text = |name: &str| match fields.get(name) {
        Some(Json::String(text)) => Some(text.clone()),
        Some(Json::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let mut add = |by: By, value: Option<String>| out.extend(value.map(|value| (by, value)));
    add(By::Credential, text("authz.credential.id").or_else(|| text("service-account-id")));
    add(By::Approver, text("authz.approval.by"));
    if text("authz.tool.schema_digest").or_else(|| text("gen_ai.tool.schema.digest")).is_some() {
        add(By::Schema, event.tool.clone());
    }
    if text("event.sequence").or_else(|| text("metadata.sequence")).is_some() {
        let session = event.conversation_id.as_deref().unwrap_or_default();
        add(By::Source, Some(format!("{}\n{session}", event.service.as_deref().unwrap_or_default())));
    }
    out
}

/// When a grant's record need not be at hand any more: its end; without one, when room is needed.
fn end_of(event: &EventRow) -> i64 {
    let fields: Json = serde_json::from_str(&event.attributes).unwrap_or_default();
    let time = match fields.get("authz.grant.expires_at") {
        Some(Json::String(text)) => parse_time(text),
        Some(Json::Number(seconds)) => seconds.as_i64().and_then(|s| s.checked_mul(1_000_000_000)).map(Time),
        _ => None,
    };
    // What ended before it came in is kept as long as any event.
    time.map_or(i64::MAX, |end| end.0.max(event.ingest_time.0))
}

/// What an event takes in memory: the row, its texts, and its places in the index.
fn size(event: &EventRow) -> usize {
    size_of::<EventRow>() + event.text_bytes() + INDEX_BYTES
}
