//! Counts the uses of grants, in the order in which the ledger takes them. A use is one call, however many records
//! tell of it, and it counts for its grant and for all grants above that limit their uses. Which grants are meant goes by
//! tenant: its own under that id, and nobody's. A tenant's calls are no uses to another: what nobody's grant is good for,
//! it is for each.
//!
//! Records that are of one call: versions of one span (the same sender, start, and nothing that contradicts), as a
//! span may be sent while it runs; and spans of the same call id, tool, action and resource in one trace of which one is
//! the parent of the other, as a caller and who is called tell each of it. An id alone is not enough, for who is watched
//! chooses it; nor do more than three spans make one use.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU64;

use super::uses::UseRow;
use crate::event::EventRow;
use crate::grants::{Scope, grant_row};

/// Spans that tell of one call, at most: of who plans it, of the client and of the server.
const SPANS_OF_USE_MAX: u8 = 3;
/// Spans of calls that are remembered after a step, at most; the oldest go first. With those of one more step a table of
/// them is just full.
const SPANS_MAX: usize = 96_000;
/// Grants of a chain that a use is counted for, at most.
const CHAIN_MAX: usize = 1000;
/// Uses that wait for the record of a grant, at most; then they wait no more.
const WAITING_MAX: usize = 100_000;
/// Counts of uses of grants with those of all below, two or three for each, at most; then some other begins anew.
const TOTALS_MAX: usize = 1 << 21;

/// What tells whether two records are of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) seq: u64,
    /// When the ledger took it, and when it began.
    pub(super) times: (i64, i64),
    pub(super) grant: &'a str,
    pub(super) tenant: Option<&'a str>,
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
            tenant: event.tenant.as_deref(),
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
    over: Option<(Key, u64)>,
}

/// A use that waits for the record of a grant: its call, whose that is, and for which grants it was counted.
#[derive(Clone, Debug)]
struct Waiting {
    seq: u64,
    of: Option<String>,
    counted: HashSet<Key>,
}

/// What a grant goes by: whose it is, and its id.
type Key = (Option<String>, String);

/// A grant that is meant.
#[derive(Clone, Copy, Debug)]
struct Meant<'a> {
    whose: &'a Option<String>,
    id: &'a str,
    given: &'a Given,
}

impl Meant<'_> {
    fn key(&self) -> Key {
        (self.whose.clone(), self.id.to_owned())
    }
}

/// Hashes of the call id, tool, action and resource.
type What = [Option<NonZeroU64>; 4];

/// Which use: the how-manieth of its grant, and a key that no other has.
#[derive(Clone, Copy, Debug)]
struct Use {
    nth: u64,
    key: u64,
}

/// A span that told of a use.
#[derive(Debug)]
struct Told {
    began: i64,
    submitter: u64,
    what: What,
    of_use: Use,
}

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    hasher: RandomState,
    /// By id, and whose they are.
    grants: HashMap<String, HashMap<Option<String>, Given>>,
    /// Uses by the grant that they name, and whose they are.
    named: HashMap<String, HashMap<Option<String>, u64>>,
    /// Uses of grants that limit them, with those of all below, by grant and scope.
    totals: HashMap<u64, u64>,
    /// Uses that count further up when the record of this grant comes, by who means it.
    waiting: HashMap<String, HashMap<Option<String>, Vec<Waiting>>>,
    waiting_count: usize,
    records: HashMap<u64, Counted>,
    /// Spans by grant, trace, id and scope.
    spans: HashMap<u64, Told>,
    /// Uses by the span that called, and what it is.
    below: HashMap<u64, Use>,
    /// How many spans told of a use.
    tellers: HashMap<u64, u8>,
    /// The keys of each span in these, in the order in which time lets them go.
    order: VecDeque<(i64, [u64; 5])>,
}

impl Tally {
    /// Takes the record of a grant in: the first of its tenant that is valid, or else the first.
    pub(super) fn give(&mut self, event: &EventRow) {
        let Some(id) = event.grant_id.as_ref().filter(|_| event.kind != crate::grants::REVOKED) else { return };
        let is_valid = event.kind != "grant_denied" && event.invalid_reasons.is_empty();
        let of_id = self.grants.entry(id.clone()).or_default();
        if of_id.get(&event.tenant).is_some_and(|known| known.is_valid || !is_valid) {
            return;
        }
        let is_limited = event.kind != "grant_denied" && event.attributes.contains("max_uses");
        let max_uses = if is_limited { grant_row(event).max_uses } else { None };
        of_id.insert(event.tenant.clone(), Given { parent: event.parent_grant_id.clone(), max_uses, is_valid });
        let is_only = of_id.len() == 1;
        for (tenant, waited) in self.waited(id, &event.tenant, is_only) {
            self.climb(waited, &tenant, id);
        }
    }

    /// The uses that waited for a grant of this tenant, in the order of the log, each with who meant it. Nobody's is meant by
    /// all who have none, and who is nobody means the only one.
    fn waited(&mut self, id: &str, given: &Option<String>, is_only: bool) -> Vec<(Option<String>, Waiting)> {
        let Some(of_id) = self.waiting.get_mut(id) else { return Vec::new() };
        let met: Vec<_> = match given {
            None => of_id.drain().collect(),
            Some(_) => {
                let met = [Some(given), is_only.then_some(&None)].into_iter().flatten();
                met.filter_map(|tenant| of_id.remove_entry(tenant)).collect()
            }
        };
        if of_id.is_empty() {
            self.waiting.remove(id);
        }
        let each =
            |(tenant, waited): (Option<String>, Vec<Waiting>)| waited.into_iter().map(move |w| (tenant.clone(), w));
        let mut out: Vec<_> = met.into_iter().flat_map(each).collect();
        self.waiting_count -= out.len();
        // One that waited for a tenant's and for nobody's, too, goes on once.
        out.sort_by_key(|(tenant, waited)| (waited.seq, tenant.is_none()));
        out.dedup_by(|(_, again), (_, first)| {
            let is_same = again.seq == first.seq;
            if is_same {
                first.counted.extend(again.counted.drain());
            }
            is_same
        });
        out
    }

    /// The grants that a record of a tenant can mean by an id, of those that came: its own, and nobody's, for what one gives
    /// himself takes no bound off the other. A record that names no tenant means nobody's, or the only one there is.
    fn meant<'a>(&'a self, tenant: &Option<String>, id: &'a str) -> impl Iterator<Item = Meant<'a>> {
        let of_id = self.grants.get(id);
        let of = |tenant: &Option<String>| of_id?.get_key_value(tenant);
        let own = of(tenant).filter(|_| tenant.is_some());
        let only = || of_id?.iter().next().filter(|_| tenant.is_none() && of_id.is_some_and(|of_id| of_id.len() == 1));
        let others = of(&None).or_else(only);
        own.into_iter().chain(others).map(move |(whose, given)| Meant { whose, id, given })
    }

    /// The grants that a record of a tenant can mean by an id and all above them, as far as they are known, the nearest
    /// first and each once; and those whose records are missing.
    fn chain<'a>(
        &'a self,
        tenant: &'a Option<String>,
        id: &'a str,
    ) -> (Vec<Meant<'a>>, Vec<(&'a Option<String>, &'a str)>) {
        let (mut found, mut missing) = (Vec::from_iter(self.meant(tenant, id)), Vec::new());
        if found.is_empty() {
            missing.push((tenant, id));
        }
        let mut seen: HashSet<_> = found.iter().map(|meant| (meant.whose, meant.id)).collect();
        let mut at = 0;
        while let Some(&Meant { whose, given, .. }) = found.get(at).filter(|_| at < CHAIN_MAX) {
            at += 1;
            let Some(parent) = &given.parent else { continue };
            let mut is_there = false;
            for meant in self.meant(whose, parent) {
                is_there = true;
                if seen.insert((meant.whose, meant.id)) {
                    found.push(meant);
                }
            }
            if !is_there {
                missing.push((whose, parent));
            }
        }
        (found, missing)
    }

    /// Takes a call in.
    pub(super) fn take(&mut self, call: Call<'_>) {
        let what = call.what.map(|text| NonZeroU64::new(self.hasher.hash_one(text?) | 1));
        let known = self.known(&call, what);
        let of = call.tenant.map(str::to_owned);
        let of_use = known.unwrap_or_else(|| {
            let named = self.named.entry(call.grant.to_owned()).or_default();
            let nth = named.entry(of.clone()).or_default();
            *nth += 1;
            Use { nth: *nth, key: self.hasher.hash_one((call.tenant, call.grant, *nth)) }
        });
        self.records.insert(call.seq, Counted { grant: call.grant.to_owned(), nth: of_use.nth, over: None });
        if known.is_none() {
            let tenant = of.clone();
            self.climb(Waiting { seq: call.seq, of, counted: HashSet::new() }, &tenant, call.grant);
        }
        self.remember(&call, what, of_use);
    }

    /// The place of a span of a call's trace.
    fn place(&self, call: &Call<'_>, span: &str, scope: Scope<'_>) -> Option<u64> {
        let (trace, _) = call.span?;
        Some(self.hasher.hash_one((call.grant, trace, span, scope)))
    }

    /// The use that a call is, if something that it meets told of it before.
    fn known(&mut self, call: &Call<'_>, what: What) -> Option<Use> {
        let (_, span) = call.span?;
        let scopes = Scope::looks_in(call.tenant);
        let places = scopes.map(|scope| self.place(call, span, scope).unwrap_or_default());
        let submitter = self.hasher.hash_one(call.submitter);
        let mut is_told = false;
        for place in places {
            let Some(told) = self.spans.get_mut(&place) else { continue };
            let fits = told.what.iter().zip(&what).all(|(a, b)| a.is_none() || b.is_none() || a == b);
            if fits && (told.submitter, told.began) == (submitter, call.times.1) {
                told.what.iter_mut().zip(what).for_each(|(known, new)| *known = known.or(new));
                return Some(told.of_use);
            }
            is_told = true;
        }
        what[0].filter(|_| !is_told)?;
        let above = |scope: &Scope<'_>| self.spans.get(&self.place(call, call.parent?, *scope)?);
        let above = scopes.iter().filter_map(above).find(|told| told.what == what).map(|told| told.of_use);
        let below = || places.iter().find_map(|place| self.below.get(&self.hasher.hash_one((place, what))).copied());
        let of_use = above.or_else(below)?;
        let tellers = self.tellers.get_mut(&of_use.key)?;
        let is_one = *tellers < SPANS_OF_USE_MAX;
        *tellers += u8::from(is_one);
        is_one.then_some(of_use)
    }

    fn remember(&mut self, call: &Call<'_>, what: What, of_use: Use) {
        let Some((_, span)) = call.span else { return };
        let submitter = self.hasher.hash_one(call.submitter);
        let (mut keys, mut free) = ([0; 5], 0);
        for scope in Scope::lies_in(call.tenant) {
            let Some(place) = self.place(call, span, scope).filter(|place| !self.spans.contains_key(place)) else {
                continue;
            };
            self.spans.insert(place, Told { began: call.times.1, submitter, what, of_use });
            let above = call.parent.and_then(|parent| self.place(call, parent, scope));
            let below = above.map(|above| self.hasher.hash_one((above, what))).filter(|_| what[0].is_some());
            if let Some(below) = below {
                self.below.entry(below).or_insert(of_use);
            }
            keys[free..free + 2].copy_from_slice(&[place, below.unwrap_or_default()]);
            free += 2;
        }
        if free > 0 {
            self.tellers.entry(of_use.key).or_insert(1);
            keys[4] = of_use.key;
            self.order.push_back((call.times.0, keys));
        }
    }

    /// Counts a use of somebody's for each grant from this one up that limits its uses, as far as the chain is known.
    fn climb(&mut self, mut of_use: Waiting, tenant: &Option<String>, id: &str) {
        let (found, missing) = self.chain(tenant, id);
        let limits = found.iter().filter_map(|meant| Some((meant.key(), u64::from(meant.given.max_uses?))));
        let limits: Vec<_> = limits.collect();
        let missing: Vec<Key> = missing.into_iter().map(|(whose, id)| (whose.clone(), id.to_owned())).collect();
        let mut over = None;
        for (key, max) in limits {
            if of_use.counted.contains(&key) {
                continue;
            }
            let total = self.count(&key, of_use.of.as_deref());
            if total > max && over.is_none() {
                over = Some((key.clone(), total));
            }
            of_use.counted.insert(key);
        }
        if let Some(record) = self.records.get_mut(&of_use.seq).filter(|record| record.over.is_none()) {
            record.over = over;
        }
        for place in missing {
            self.wait(of_use.clone(), place);
        }
    }

    /// Counts a use of a grant; gives how many it then has, as its tenant sees them.
    fn count(&mut self, grant: &Key, tenant: Option<&str>) -> u64 {
        for scope in Scope::lies_in(tenant) {
            let place = self.hasher.hash_one((grant, scope));
            make_room(&mut self.totals, place);
            *self.totals.entry(place).or_default() += 1;
        }
        let seen = Scope::looks_in(tenant).map(|scope| self.totals.get(&self.hasher.hash_one((grant, scope))));
        seen.into_iter().flatten().sum()
    }

    fn wait(&mut self, waiting: Waiting, (tenant, grant): Key) {
        if self.waiting_count >= WAITING_MAX {
            self.waiting.clear();
            self.waiting_count = 0;
        }
        self.waiting.entry(grant).or_default().entry(tenant).or_default().push(waiting);
        self.waiting_count += 1;
    }

    /// Whether a grant that a tenant can mean, or one above it, limits its uses, as far as is known.
    pub(super) fn is_limited(&self, tenant: Option<&str>, grant: &str) -> bool {
        self.chain(&tenant.map(str::to_owned), grant).0.iter().any(|meant| meant.given.max_uses.is_some())
    }

    /// These are all uses of a grant, each with whose it is, of which nothing was at hand.
    pub(super) fn recount(&mut self, grant: &str, uses: &[(u64, Option<String>)]) {
        let mut named = HashMap::<Option<String>, u64>::new();
        for (seq, tenant) in uses {
            let nth = named.entry(tenant.clone()).or_default();
            *nth += 1;
            if let Some(record) = self.records.get_mut(seq) {
                record.nth = *nth;
            }
        }
        if !uses.is_empty() {
            self.named.insert(grant.to_owned(), named);
        }
    }

    /// A record goes.
    pub(super) fn forget(&mut self, seq: u64) {
        self.records.remove(&seq);
    }

    /// The records of a tenant's grant went.
    pub(super) fn forget_grant(&mut self, grant: &str, tenant: &Option<String>) {
        take_out(&mut self.grants, grant, tenant);
    }

    /// Nothing at hand has to do with a tenant's uses of a grant any more: the index has them. What was counted for it with those below
    /// stays, for nothing else has that.
    pub(super) fn forget_uses(&mut self, grant: &str, tenant: &Option<String>) {
        take_out(&mut self.named, grant, tenant);
        let waited = take_out(&mut self.waiting, grant, tenant);
        self.waiting_count -= waited.map_or(0, |waited| waited.len());
    }

    /// Whose uses of a grant are counted, or wait for it.
    pub(super) fn users(&self, grant: &str) -> Vec<Option<String>> {
        let named = self.named.get(grant).into_iter().flat_map(HashMap::keys);
        named.chain(self.waiting.get(grant).into_iter().flat_map(HashMap::keys)).cloned().collect()
    }

    /// Forgets spans that came before a time, and the oldest beyond the bound.
    pub(super) fn let_go(&mut self, before: i64) {
        while let Some(&(time, [places @ .., of_use])) = self.order.front() {
            if time >= before && self.order.len() <= SPANS_MAX {
                break;
            }
            self.order.pop_front();
            for [place, below] in places.as_chunks::<2>().0 {
                self.spans.remove(place);
                self.below.remove(below);
            }
            self.tellers.remove(&of_use);
        }
    }

    /// What was counted for some records.
    pub(super) fn rows<'a>(&self, seqs: impl IntoIterator<Item = &'a u64>) -> Vec<UseRow> {
        let row = |seq: &u64| {
            let Counted { grant, nth, over } = self.records.get(seq)?;
            let ((over_tenant, over_grant_id), over_nth) = match over.clone() {
                Some(((tenant, id), nth)) => ((tenant, Some(id)), Some(nth)),
                None => Default::default(),
            };
            Some(UseRow { seq: *seq, grant_id: grant.clone(), nth: *nth, over_grant_id, over_nth, over_tenant })
        };
        seqs.into_iter().filter_map(row).collect()
    }

    /// Grants, and those that have uses, each of each tenant.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        let grants = self.grants.values().map(HashMap::len).sum();
        (grants, self.named.values().map(HashMap::len).sum())
    }

    /// Whether nothing of what is at hand is in it.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.named.is_empty() && self.records.is_empty() && self.waiting.is_empty() && self.order.is_empty()
    }
}

/// Takes out what is a tenant's of an id.
fn take_out<T>(
    by_id: &mut HashMap<String, HashMap<Option<String>, T>>,
    id: &str,
    tenant: &Option<String>,
) -> Option<T> {
    let of_id = by_id.get_mut(id)?;
    let out = of_id.remove(tenant);
    if of_id.is_empty() {
        by_id.remove(id);
    }
    out
}

/// Room for the count of one more grant.
fn make_room(totals: &mut HashMap<u64, u64>, grant: u64) {
    if totals.len() >= TOTALS_MAX && !totals.contains_key(&grant) {
        let some = totals.keys().next().copied();
        some.and_then(|some| totals.remove(&some));
    }
}

#[cfg(test)]
#[path = "tally_tests.rs"]
mod tests;
