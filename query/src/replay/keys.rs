//! The first pass: of every step only what its place depends on.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use datafusion::arrow::record_batch::RecordBatch;

use super::order::{NONE, flag};
use crate::Error;
use crate::grants::Grants;
use crate::ids::{Finder, Kind, Role};
use crate::projection::Snapshot;
use crate::rows::{Cell, Time};
use crate::segments::Table;

/// What of `events` decides an order.
const EVENT_COLUMNS: [&str; 15] = [
    "seq",
    "event_time",
    "end_time",
    "kind",
    "trace_id",
    "span_id",
    "parent_span_id",
    "links",
    "submitter",
    "agent_id",
    "agent_name",
    "grant_id",
    "parent_grant_id",
    "tool_call_id",
    "decision",
];

/// What of `spans` does.
const SPAN_COLUMNS: [&str; 6] = ["seq", "trace_id", "span_id", "parent_span_id", "end_time", "submitter"];

/// What comes first at the same time: asking, deciding, giving, acting.
pub(super) mod rank {
    pub(crate) const REQUEST: u8 = 0;
    pub(crate) const POLICY: u8 = 1;
    pub(crate) const APPROVAL: u8 = 2;
    pub(crate) const GIVEN: u8 = 3;
    pub(crate) const DENIED: u8 = 4;
    pub(crate) const REVOKED: u8 = 5;
    pub(crate) const EXECUTOR: u8 = 6;
    pub(crate) const AGENT: u8 = 7;
    pub(crate) const CALL: u8 = 8;
    pub(crate) const OTHER: u8 = 9;
}

fn rank_of(kind: &str) -> u8 {
    match kind {
        "request" => rank::REQUEST,
        "policy_evaluation" => rank::POLICY,
        "approval" => rank::APPROVAL,
        "grant_issued" | "grant_derived" => rank::GIVEN,
        "grant_denied" => rank::DENIED,
        "grant_revoked" => rank::REVOKED,
        "executor_decision" => rank::EXECUTOR,
        "agent_invocation" => rank::AGENT,
        "tool_call" => rank::CALL,
        _ => rank::OTHER,
    }
}

/// One step, in few bytes. Ids are hashes under a key of this replay, or numbers of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) seq: u64,
    pub(super) time: i64,
    /// `i64::MIN` if it says no end.
    pub(super) end: i64,
    /// Its span, with its trace; 0 for none.
    pub(super) span: u64,
    /// Its parent span; 0 for none.
    pub(super) above: u64,
    /// Its call; 0 for none.
    pub(super) call: u64,
    pub(super) trace: u32,
    pub(super) agent: u32,
    pub(super) grant: u32,
    pub(super) over: u32,
    /// Which of the events of its record.
    pub(super) nth: u16,
    pub(super) rank: u8,
    /// Whether the record is a span, and not a log within one.
    pub(super) is_span: bool,
    pub(super) allows: bool,
    pub(super) denies: bool,
}

/// A span that is known, mapped to an event or not.
#[derive(Clone, Copy)]
struct Known {
    parent: u64,
    /// Who sent it finished, as a hash; 0 if nobody did.
    finished_by: u64,
}

/// All that the order is computed from.
pub(super) struct Keys {
    /// In seq order.
    pub(super) nodes: Vec<Node>,
    /// The grants that are named, and all above them.
    pub(super) grants: Grants,
    /// Pairs of a step and a span that it links to.
    pub(super) links: Vec<(u64, u64)>,
    spans: HashMap<u64, Known>,
    span_seqs: Vec<u64>,
    /// Running versions of spans: seq, span, sender.
    running: Vec<(u64, u64, u64)>,
    also_finished: HashSet<(u64, u64)>,
    names: HashMap<String, u32>,
    named_grants: HashSet<String>,
    hash: RandomState,
}

impl Keys {
    /// Reads the keys of some records, and of those that gave or ended the authority that they name.
    pub(super) fn read(snapshot: &Snapshot, finder: &Finder<'_>, seqs: Vec<u64>, now: Time) -> Result<Self, Error> {
        let mut keys = Self {
            nodes: Vec::new(),
            grants: Grants::default(),
            links: Vec::new(),
            spans: HashMap::new(),
            span_seqs: Vec::new(),
            running: Vec::new(),
            also_finished: HashSet::new(),
            names: HashMap::new(),
            named_grants: HashSet::new(),
            hash: RandomState::new(),
        };
        keys.take(snapshot, &seqs)?;
        keys.grants = Grants::found(finder, snapshot, keys.named_grants.drain().collect(), now)?;
        // The authority that these steps refer to, also where it was logged elsewhere.
        let mut more = BTreeSet::new();
        for grant in keys.grants.rows() {
            let told = finder.seqs(Kind::Grant, &grant.grant_id, &[Role::Given, Role::Revoked, Role::Approval])?;
            more.extend(told.into_iter().filter(|seq| seqs.binary_search(seq).is_err()));
        }
        let more: Vec<u64> = more.into_iter().collect();
        keys.take(snapshot, &more)?;
        let superseded: HashSet<u64> = keys.superseded();
        keys.nodes.retain(|node| !superseded.contains(&node.seq));
        keys.nodes.sort_unstable_by_key(|node| (node.seq, node.nth));
        Ok(keys)
    }

    fn take(&mut self, snapshot: &Snapshot, seqs: &[u64]) -> Result<(), Error> {
        snapshot.records(Table::Spans, &SPAN_COLUMNS, seqs, &mut |batch| {
            self.take_spans(batch);
            Ok(())
        })?;
        self.span_seqs.sort_unstable();
        snapshot.records(Table::Events, &EVENT_COLUMNS, seqs, &mut |batch| {
            self.take_events(batch);
            Ok(())
        })
    }

    /// The key of a span in its trace; never 0.
    fn span_key(&self, trace: &str, span: &str) -> u64 {
        self.hash.hash_one((trace, span)).max(1)
    }

    fn take_spans(&mut self, batch: &RecordBatch) {
        let text = |name: &str, i: usize| {
            batch.column_by_name(name).and_then(|column| <Option<String> as Cell>::read(column, i))
        };
        for i in 0..batch.num_rows() {
            let seq = batch.column_by_name("seq").map_or(0, |column| <u64 as Cell>::read(column, i));
            let (Some(trace), Some(span)) = (text("trace_id", i), text("span_id", i)) else { continue };
            let key = self.span_key(&trace, &span);
            let parent = text("parent_span_id", i).map_or(0, |parent| self.span_key(&trace, &parent));
            let sender = self.hash.hash_one(text("submitter", i)).max(1);
            let finished = batch.column_by_name("end_time").is_some_and(|column| column.is_valid(i));
            let known = self.spans.entry(key).or_insert(Known { parent, finished_by: 0 });
            if !finished {
                self.running.push((seq, key, sender));
            } else if known.finished_by == 0 {
                *known = Known { parent, finished_by: sender };
            } else if known.finished_by != sender {
                self.also_finished.insert((key, sender));
            }
            self.span_seqs.push(seq);
        }
    }

    /// Records of running spans that the same sender sent finished, too.
    fn superseded(&self) -> HashSet<u64> {
        let finished = |span: &u64, sender: &u64| {
            self.spans.get(span).is_some_and(|known| known.finished_by == *sender)
                || self.also_finished.contains(&(*span, *sender))
        };
        self.running.iter().filter(|(_, span, sender)| finished(span, sender)).map(|(seq, ..)| *seq).collect()
    }

    /// A number for a text.
    fn name(&mut self, text: Option<String>) -> u32 {
        let Some(text) = text else { return NONE };
        let next = self.names.len() as u32;
        *self.names.entry(text).or_insert(next)
    }

    fn take_events(&mut self, batch: &RecordBatch) {
        let text = |name: &str, i: usize| {
            batch.column_by_name(name).and_then(|column| <Option<String> as Cell>::read(column, i))
        };
        let time = |name: &str, i: usize| {
            batch.column_by_name(name).and_then(|column| <Option<Time> as Cell>::read(column, i))
        };
        for i in 0..batch.num_rows() {
            let seq = batch.column_by_name("seq").map_or(0, |column| <u64 as Cell>::read(column, i));
            let nth = self.nodes.last().filter(|last| last.seq == seq).map_or(0, |last| last.nth.saturating_add(1));
            let (trace, span) = (text("trace_id", i), text("span_id", i));
            let key = |own: &Self, span: &Option<String>| match (&trace, span) {
                (Some(trace), Some(span)) => own.span_key(trace, span),
                _ => 0,
            };
            let (span, above) = (key(self, &span), key(self, &text("parent_span_id", i)));
            let links = batch.column_by_name("links").map(|column| <Vec<String> as Cell>::read(column, i));
            for link in links.iter().flatten() {
                let key = link.split_once(':').map(|(trace, span)| self.span_key(trace, span));
                self.links.extend(key.map(|key| (seq, key)));
            }
            let decision = text("decision", i);
            let (grant, over) = (text("grant_id", i), text("parent_grant_id", i));
            self.named_grants.extend(grant.iter().chain(&over).cloned());
            let call = text("tool_call_id", i).map_or(0, |call| self.hash.hash_one((&trace, call)).max(1));
            let agent = text("agent_id", i).or_else(|| text("agent_name", i));
            let node = Node {
                seq,
                time: time("event_time", i).map_or(0, |time| time.0),
                end: time("end_time", i).map_or(i64::MIN, |time| time.0),
                span,
                above,
                call,
                trace: self.name(trace),
                agent: self.name(agent),
                grant: self.name(grant),
                over: self.name(over),
                nth,
                rank: rank_of(&text("kind", i).unwrap_or_default()),
                is_span: span != 0 && self.span_seqs.binary_search(&seq).is_ok(),
                allows: decision.as_deref() == Some("allow"),
                denies: decision.as_deref() == Some("deny"),
            };
            self.nodes.push(node);
        }
    }

    /// Whether any record of a span is here.
    pub(super) fn has_span(&self, trace: &str, span: &str) -> bool {
        self.spans.contains_key(&self.span_key(trace, span))
    }
}

/// Where each step stands.
pub(super) struct Placed {
    pub(super) parents: Vec<u32>,
    pub(super) flags: Vec<u8>,
    /// Pairs of a cause and its effect.
    pub(super) causes: Vec<(u32, u32)>,
}

/// Agents' invocations by when they begin, looked through backwards, at most so many.
const LOOKED_AT_MAX: usize = 1000;

/// Finds what each step stands under, and what it was caused by.
pub(super) struct Placing<'a> {
    keys: &'a Keys,
    /// The step of each span.
    by_span: HashMap<u64, u32>,
    /// The step above spans that are no steps themselves.
    above: HashMap<u64, u32>,
    up: Vec<u32>,
    flags: Vec<u8>,
    /// Until when anything under an agent's invocation went on.
    until: HashMap<u32, i64>,
    of_trace: HashMap<u32, Vec<u32>>,
    of_agent: HashMap<(u32, u32), Vec<u32>>,
}

impl<'a> Placing<'a> {
    pub(super) fn place(keys: &'a Keys) -> Placed {
        let count = keys.nodes.len();
        let mut own = Self {
            keys,
            by_span: HashMap::new(),
            above: HashMap::new(),
            up: vec![NONE; count],
            flags: vec![0; count],
            until: HashMap::new(),
            of_trace: HashMap::new(),
            of_agent: HashMap::new(),
        };
        own.spans();
        own.agents();
        for i in 0..count {
            if !keys.nodes[i].is_span {
                own.up[i] = own.of_log(i).filter(|at| *at != i as u32).unwrap_or(NONE);
            }
        }
        let causes = own.causes();
        own.mark_clocks();
        Placed { parents: own.up, flags: own.flags, causes }
    }

    fn node(&self, i: u32) -> &Node {
        &self.keys.nodes[i as usize]
    }

    /// The steps that are spans, and what they stand under.
    fn spans(&mut self) {
        for (i, node) in self.keys.nodes.iter().enumerate().filter(|(_, node)| node.is_span) {
            let first = *self.by_span.entry(node.span).or_insert(i as u32);
            if first != i as u32 && self.keys.nodes[first as usize].seq != node.seq {
                self.flags[i] |= flag::AGAIN;
            }
        }
        for (i, node) in self.keys.nodes.iter().enumerate().filter(|(_, node)| node.is_span) {
            let first = self.by_span.get(&node.span).copied().unwrap_or(i as u32);
            // Further events of one record stand under its first.
            let again = first != i as u32 && self.keys.nodes[first as usize].seq == node.seq;
            self.up[i] = if again { first } else { self.step_of(node.above) };
        }
    }

    /// The step of a span, or of the nearest one above it. Spans that no mapping knows are stepped over.
    fn step_of(&mut self, span: u64) -> u32 {
        let (mut path, mut at) = (Vec::new(), span);
        let found = loop {
            if at == 0 {
                break NONE;
            }
            if let Some(&step) = self.by_span.get(&at).or_else(|| self.above.get(&at)) {
                break step;
            }
            // A loop of such spans comes back here, and leads nowhere.
            self.above.insert(at, NONE);
            path.push(at);
            at = self.keys.spans.get(&at).map_or(0, |known| known.parent);
        };
        self.above.extend(path.into_iter().map(|span| (span, found)));
        found
    }

    /// Until when each agent, or anything under it, was at work. Latest first, so that a
    /// walk upwards ends where an earlier one has been.
    fn agents(&mut self) {
        let nodes = &self.keys.nodes;
        let mut ends: Vec<u32> = (0..nodes.len() as u32).filter(|i| self.node(*i).end != i64::MIN).collect();
        ends.sort_unstable_by_key(|i| std::cmp::Reverse((self.node(*i).end, *i)));
        let mut visited = vec![false; nodes.len()];
        for i in ends {
            let (end, mut at) = (self.node(i).end, i);
            while at != NONE && !std::mem::replace(&mut visited[at as usize], true) {
                if nodes[at as usize].rank == rank::AGENT {
                    self.until.insert(at, end);
                }
                at = self.up[at as usize];
            }
        }
        let mut agents: Vec<u32> = self.until.keys().copied().collect();
        agents.sort_unstable_by_key(|i| (self.node(*i).time, *i));
        for i in agents {
            let Node { trace, agent, .. } = *self.node(i);
            self.of_trace.entry(trace).or_default().push(i);
            if agent != NONE {
                self.of_agent.entry((trace, agent)).or_default().push(i);
            }
        }
    }

    /// The last begun of some agents that was at work at a time.
    fn working(&self, agents: Option<&Vec<u32>>, time: i64) -> Option<u32> {
        let agents = agents?;
        let begun = agents.partition_point(|i| self.node(*i).time <= time);
        let last = agents[..begun].iter().rev().take(LOOKED_AT_MAX);
        last.copied().find(|i| self.until.get(i).is_some_and(|until| *until >= time))
    }

    /// What a log stands under.
    fn of_log(&mut self, i: usize) -> Option<u32> {
        let node = self.keys.nodes[i];
        // What was decided about an agent stands under that agent, if it was at work.
        if matches!(node.rank, rank::DENIED | rank::EXECUTOR | rank::POLICY) && node.agent != NONE {
            let named = self.working(self.of_agent.get(&(node.trace, node.agent)), node.time);
            if named.is_some() {
                return named;
            }
        }
        if node.span == 0 {
            return self.working(self.of_trace.get(&node.trace), node.time);
        }
        let at = self.step_of(node.span);
        if at == NONE {
            return None;
        }
        let own = self.by_span.get(&node.span) == Some(&at);
        // What is decided within a call's own span still comes before the call, and what is given to
        // an agent within its own span before the agent.
        let above = self.node(at);
        let is_before = above.rank != rank::AGENT || (node.rank == rank::GIVEN && node.agent == above.agent);
        let beside = own && is_before && self.up[at as usize] != NONE;
        Some(if beside { self.up[at as usize] } else { at })
    }

    /// Which steps were caused by which, beside those that stand under each other.
    fn causes(&mut self) -> Vec<(u32, u32)> {
        let nodes = &self.keys.nodes;
        let (mut given, mut decided): (HashMap<u32, u32>, HashMap<u64, u32>) = Default::default();
        let mut calls: HashSet<u64> = HashSet::new();
        for (i, node) in nodes.iter().enumerate() {
            match node.rank {
                rank::GIVEN if node.grant != NONE => {
                    given.entry(node.grant).or_insert(i as u32);
                }
                rank::EXECUTOR if node.call != 0 => {
                    decided.insert(node.call, i as u32);
                }
                rank::CALL if node.call != 0 => {
                    calls.insert(node.call);
                }
                _ => {}
            }
        }
        let mut causes = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            let effect = i as u32;
            let mut by = |cause: Option<&u32>| causes.extend(cause.filter(|c| **c != effect).map(|c| (*c, effect)));
            if node.rank != rank::GIVEN {
                by(given.get(&node.grant));
            }
            by(given.get(&node.over));
            if node.rank == rank::CALL && node.call != 0 {
                by(decided.get(&node.call));
            }
            if node.rank == rank::EXECUTOR && node.allows && node.call != 0 && !calls.contains(&node.call) {
                self.flags[i] |= flag::NO_CALL;
            }
            // A grant comes before the work of the agent that it was given to.
            if node.rank == rank::GIVEN {
                let agents = self.of_agent.get(&(node.trace, node.agent)).into_iter().flatten();
                let begins = |i: &&u32| self.until.get(*i).is_some_and(|until| *until >= node.time);
                let begun = agents.take(LOOKED_AT_MAX).find(begins);
                causes.extend(begun.map(|agent| (effect, *agent)));
            }
        }
        for (seq, span) in &self.keys.links {
            let from = nodes.partition_point(|node| node.seq < *seq) as u32;
            let to = self.by_span.get(span).copied();
            causes.extend(to.filter(|to| *to != from).map(|to| (to, from)));
        }
        causes
    }

    /// Marks the steps whose clocks contradict what they followed from.
    fn mark_clocks(&mut self) {
        let nodes = &self.keys.nodes;
        let mut given: HashMap<u32, i64> = HashMap::new();
        for node in nodes.iter().filter(|node| node.rank == rank::GIVEN && node.grant != NONE) {
            given.entry(node.grant).or_insert(node.time);
        }
        for (i, node) in nodes.iter().enumerate() {
            let parent = self.up[i];
            if node.is_span && parent != NONE && node.time < nodes[parent as usize].time {
                self.flags[i] |= flag::BEFORE_PARENT;
            }
            let uses = matches!(node.rank, rank::CALL | rank::EXECUTOR | rank::REVOKED);
            let by = [uses.then(|| given.get(&node.grant)), (node.rank == rank::GIVEN).then(|| given.get(&node.over))];
            if by.into_iter().flatten().flatten().any(|at| node.time < *at) {
                self.flags[i] |= flag::BEFORE_GRANT;
            }
        }
        for (seq, span) in &self.keys.links {
            let from = nodes.partition_point(|node| node.seq < *seq);
            let to = self.by_span.get(span).map(|to| self.node(*to).time);
            if nodes.get(from).is_some_and(|node| node.seq == *seq && to.is_some_and(|to| node.time < to)) {
                self.flags[from] |= flag::BEFORE_LINK;
            }
        }
    }
}
