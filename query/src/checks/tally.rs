//! Counts the uses of grants, in the order in which the ledger takes them. A use is one call, however many records
//! tell of it, and it counts for its grant and for all grants above that limit their uses.
//!
//! Records that are of one call: versions of one span (the same sender, start, and nothing that contradicts), as a
//! span may be sent while it runs; and spans of the same call id, tool, action and resource in one trace of which one is
//! the parent of the other, as a caller and who is called tell each of it. An id alone is not enough, for who is watched
//! chooses it; nor do more than three spans make one use.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

use super::uses::UseRow;
use crate::event::EventRow;
use crate::grants::grant_row;

/// Spans that tell of one call, at most: of who plans it, of the client and of the server.
const SPANS_OF_USE_MAX: u8 = 3;
/// Spans of calls that are remembered, at most; the oldest go first.
const SPANS_MAX: usize = 100_000;
/// Grants of a chain that a use is counted for, at most.
const CHAIN_MAX: usize = 1000;
/// Uses that wait for the record of a grant, at most; then they wait no more.
const WAITING_MAX: usize = 100_000;
/// Grants whose uses are counted with those of all below, at most; then that of some other begins anew.
const TOTALS_MAX: usize = 1 << 20;

/// What tells whether two records are of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) seq: u64,
    /// When the ledger took it, and when it began.
    pub(super) times: (i64, i64),
    pub(super) grant: &'a str,
    pub(super) submitter: &'a str,
    /// Trace and span.
    pub(super) span: Option<(&'a str, &'a str)>,
    pub(super) parent: Option<&'a str>,
    /// Call id, tool, action and resource.
    pub(super) what: [Option<&'a str>; 4],
}

impl<'a> Call<'a> {
    /// A tool call that names a grant.
    pub(super) fn of(event: &'a EventRow) -> Option<Self> {
        Some(Self {
            seq: event.seq,
            times: (event.ingest_time.0, event.event_time.0),
            grant: event.grant_id.as_deref()?,
            submitter: &event.submitter,
            span: event.trace_id.as_deref().zip(event.span_id.as_deref()),
            parent: event.parent_span_id.as_deref(),
            what: [&event.tool_call_id, &event.tool, &event.action, &event.resource].map(|text| text.as_deref()),
        })
    }
}

/// A grant whose record came.
#[derive(Debug)]
struct Given {
    parent: Option<String>,
    max_uses: Option<u32>,
    is_valid: bool,
}

/// What was counted for a record.
#[derive(Debug)]
struct Counted {
    grant: String,
    nth: u64,
    /// The nearest grant of its chain of which it is one use too many, and the how-manieth.
    over: Option<(String, u64)>,
}

type What = [Option<u64>; 4];

/// A span that told of a use.
#[derive(Debug)]
struct Told {
    began: i64,
    submitter: u64,
    what: What,
    nth: u64,
}

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    hasher: RandomState,
    grants: HashMap<String, Given>,
    /// Uses by the grant that they name.
    named: HashMap<String, u64>,
    /// Uses of grants that limit them, with those of all below.
    totals: HashMap<String, u64>,
    /// Uses that count further up when the record of this grant comes.
    waiting: HashMap<String, Vec<u64>>,
    waiting_count: usize,
    records: HashMap<u64, Counted>,
    /// Spans by grant, trace and id.
    spans: HashMap<u64, Told>,
    /// Uses by the span that called, and what it is.
    below: HashMap<u64, u64>,
    /// How many spans told of a use.
    tellers: HashMap<u64, u8>,
    /// The keys of each span in these, in the order in which time lets them go.
    order: VecDeque<(i64, [u64; 3])>,
}

impl Tally {
    /// Takes the record of a grant in: the first that is valid, or else the first.
    pub(super) fn give(&mut self, event: &EventRow) {
        let Some(id) = event.grant_id.as_ref().filter(|_| event.kind != crate::grants::REVOKED) else { return };
        let is_valid = event.kind != "grant_denied" && event.invalid_reasons.is_empty();
        if self.grants.get(id).is_some_and(|known| known.is_valid || !is_valid) {
            return;
        }
        let is_limited = event.kind != "grant_denied" && event.attributes.contains("max_uses");
        let max_uses = if is_limited { grant_row(event).max_uses } else { None };
        self.grants.insert(id.clone(), Given { parent: event.parent_grant_id.clone(), max_uses, is_valid });
        let waited = self.waiting.remove(id).unwrap_or_default();
        self.waiting_count -= waited.len();
        for seq in waited {
            self.climb(seq, id.clone());
        }
    }

    /// Takes a call in.
    pub(super) fn take(&mut self, call: Call<'_>) {
        let place = call.span.map(|span| self.hasher.hash_one((call.grant, span)));
        let what = call.what.map(|text| text.map(|text| self.hasher.hash_one(text)));
        let known = place.and_then(|place| self.known(place, &call, what));
        let nth = known.unwrap_or_else(|| {
            let nth = self.named.entry(call.grant.to_owned()).or_default();
            *nth += 1;
            *nth
        });
        self.records.insert(call.seq, Counted { grant: call.grant.to_owned(), nth, over: None });
        if known.is_none() {
            self.climb(call.seq, call.grant.to_owned());
        }
        if let Some(place) = place {
            self.remember(place, &call, what, nth);
        }
    }

    /// The use that a call is, if something told of it before.
    fn known(&mut self, place: u64, call: &Call<'_>, what: What) -> Option<u64> {
        let submitter = self.hasher.hash_one(call.submitter);
        if let Some(told) = self.spans.get_mut(&place) {
            let fits = told.what.iter().zip(&what).all(|(a, b)| a.is_none() || b.is_none() || a == b);
            if !fits || (told.submitter, told.began) != (submitter, call.times.1) {
                return None;
            }
            told.what.iter_mut().zip(what).for_each(|(known, new)| *known = known.or(new));
            return Some(told.nth);
        }
        what[0]?;
        let above = self.above(call).and_then(|above| self.spans.get(&above)).filter(|told| told.what == what);
        let below = self.below.get(&self.hasher.hash_one((place, what)));
        let nth = above.map(|told| told.nth).or(below.copied())?;
        let tellers = self.tellers.get_mut(&self.hasher.hash_one((call.grant, nth)))?;
        let is_one = *tellers < SPANS_OF_USE_MAX;
        *tellers += u8::from(is_one);
        is_one.then_some(nth)
    }

    /// The place of a call's parent.
    fn above(&self, call: &Call<'_>) -> Option<u64> {
        let ((trace, _), parent) = call.span.zip(call.parent)?;
        Some(self.hasher.hash_one((call.grant, (trace, parent))))
    }

    fn remember(&mut self, place: u64, call: &Call<'_>, what: What, nth: u64) {
        if self.spans.contains_key(&place) {
            return;
        }
        let submitter = self.hasher.hash_one(call.submitter);
        self.spans.insert(place, Told { began: call.times.1, submitter, what, nth });
        let of_use = self.hasher.hash_one((call.grant, nth));
        self.tellers.entry(of_use).or_insert(1);
        let below = self.above(call).map(|above| self.hasher.hash_one((above, what)));
        if let Some(below) = below.filter(|_| what[0].is_some()) {
            self.below.entry(below).or_insert(nth);
        }
        self.order.push_back((call.times.0, [place, below.unwrap_or_default(), of_use]));
    }

    /// Counts a use for each grant from this one up that limits its uses, as far as the chain is known.
    fn climb(&mut self, seq: u64, mut at: String) {
        let (mut over, mut seen) = (None, HashSet::new());
        for _ in 0..CHAIN_MAX {
            let Some(given) = self.grants.get(&at) else {
                self.wait(seq, at);
                break;
            };
            if let Some(max) = given.max_uses {
                if !seen.insert(at.clone()) {
                    break;
                }
                make_room(&mut self.totals, &at);
                let total = self.totals.entry(at.clone()).or_default();
                *total += 1;
                if *total > u64::from(max) && over.is_none() {
                    over = Some((at.clone(), *total));
                }
            }
            let Some(parent) = given.parent.clone() else { break };
            at = parent;
        }
        if let Some(record) = self.records.get_mut(&seq).filter(|record| record.over.is_none()) {
            record.over = over;
        }
    }

    fn wait(&mut self, seq: u64, grant: String) {
        if self.waiting_count >= WAITING_MAX {
            self.waiting.clear();
            self.waiting_count = 0;
        }
        self.waiting.entry(grant).or_default().push(seq);
        self.waiting_count += 1;
    }

    /// Whether a grant, or one above it, limits its uses, as far as is known.
    pub(super) fn is_limited(&self, grant: &str) -> bool {
        let mut at = self.grants.get(grant);
        for _ in 0..CHAIN_MAX {
            match at {
                Some(given) if given.max_uses.is_some() => return true,
                Some(given) => at = given.parent.as_ref().and_then(|parent| self.grants.get(parent)),
                None => break,
            }
        }
        false
    }

    /// These are all uses of a grant, of which nothing was at hand.
    pub(super) fn recount(&mut self, grant: &str, uses: &[u64]) {
        for (nth, seq) in (1..).zip(uses) {
            if let Some(record) = self.records.get_mut(seq) {
                record.nth = nth;
            }
        }
        if !uses.is_empty() {
            self.named.insert(grant.to_owned(), uses.len() as u64);
        }
    }

    /// A record goes.
    pub(super) fn forget(&mut self, seq: u64) {
        self.records.remove(&seq);
    }

    /// The records of a grant went; and if nothing at hand names it any more, its uses go, too: the index has them.
    /// What was counted for it with those below stays, for nothing else has that.
    pub(super) fn forget_grant(&mut self, grant: &str, is_named: bool) {
        self.grants.remove(grant);
        if !is_named {
            self.named.remove(grant);
            self.waiting_count -= self.waiting.remove(grant).map_or(0, |waited| waited.len());
        }
    }

    /// Forgets spans that came before a time, and the oldest beyond the bound.
    pub(super) fn let_go(&mut self, before: i64) {
        while let Some(&(time, [place, below, of_use])) = self.order.front() {
            if time >= before && self.order.len() <= SPANS_MAX {
                break;
            }
            self.order.pop_front();
            self.spans.remove(&place);
            self.below.remove(&below);
            self.tellers.remove(&of_use);
        }
    }

    /// What was counted for some records.
    pub(super) fn rows<'a>(&self, seqs: impl IntoIterator<Item = &'a u64>) -> Vec<UseRow> {
        let row = |seq: &u64| {
            let Counted { grant, nth, over } = self.records.get(seq)?;
            let (over_grant_id, over_nth) = over.clone().unzip();
            Some(UseRow { seq: *seq, grant_id: grant.clone(), nth: *nth, over_grant_id, over_nth })
        };
        seqs.into_iter().filter_map(row).collect()
    }

    /// Whether nothing of what is at hand is in it.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.named.is_empty() && self.records.is_empty() && self.waiting.is_empty() && self.order.is_empty()
    }
}

/// Room for the count of one more grant.
fn make_room(totals: &mut HashMap<String, u64>, grant: &str) {
    if totals.len() >= TOTALS_MAX && !totals.contains_key(grant) {
        let some = totals.keys().next().cloned();
        some.and_then(|some| totals.remove(&some));
    }
}

#[cfg(test)]
#[path = "tally_tests.rs"]
mod tests;
