//! What the evaluator keeps at hand: recent events, and the records of grants that are live, by
//! what they have in common. Its size is bounded by time, number and bytes; what is let go is
//! still in the segments, and a grant is read back from there when it is used again.

mod late;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::fields::{Fields, Found};
use super::habits::{HabitRow, Habits};
use super::relations::{
    By, Key, end_of, found_under, gives, is_aside, kept_under, keys, keys_of_attributes, own_under, size,
};
use super::span_ids::{SpanIdRow, SpanIds};
use super::tally::{Call, Tally};
use super::uses::{self, UseRow};
use crate::Error;
use crate::event::EventRow;
use crate::grants::KINDS as GRANTS;
use crate::ids::{Finder, Kind, Posting, Role};
use crate::projection::{AsOf, Snapshot};

/// Events at hand, at most.
const EVENTS_MAX: usize = 500_000;
/// Grants that are known to have no record, at most; then they are asked for anew.
const UNKNOWN_MAX: usize = 100_000;
/// Related events of one kind of relation that a judgement sees, the newest.
const RELATED_MAX: usize = 2000;
/// How long approvals and refusals are kept, in ns: a day.
pub(crate) const DECISIONS_HELD: i64 = 86_400_000_000_000;

/// A grant as a record names it: whose that record is, and the id.
type Named = (Option<String>, String);

/// An event at hand.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Held {
    /// Without its attributes, where nobody reads those as such.
    pub(super) row: EventRow,
    /// What rules read of them.
    pub(super) found: Found,
    /// What it has in common with others, as far as its attributes tell.
    more: Vec<Key>,
}

impl Held {
    fn keys(&self) -> impl Iterator<Item = (By, &str)> {
        keys(&self.row).chain(self.more.iter().map(|(by, value)| (*by, value.as_str())))
    }

    /// Under what it is kept.
    fn places(&self) -> impl Iterator<Item = Key> {
        self.keys().flat_map(|(by, value)| kept_under(by, value, self.row.tenant.as_deref()))
    }

    /// What it takes in memory.
    fn size(&self) -> usize {
        let found = self.found.iter().map(|(_, text)| size_of::<(u16, Box<str>)>() + text.len());
        size(&self.row) + size_of::<Found>() + found.sum::<usize>()
    }
}

/// Events at hand.
pub(crate) struct State {
    /// How many events, and bytes of their texts, at most.
    room: (usize, usize),
    /// What is looked for in attributes, and whether rules read them as they are, too.
    fields: (Arc<Fields>, bool),
    events: BTreeMap<u64, Box<Held>>,
    /// Further events of the same records.
    more: HashMap<u64, Vec<Held>>,
    index: HashMap<Key, BTreeSet<u64>>,
    /// The same in the order of their own times, for what is asked for by those.
    by_time: HashMap<Key, BTreeSet<(i64, u64)>>,
    /// Events in the order in which time lets them go; grants are not among them.
    recent: VecDeque<(i64, u64)>,
    /// Records of grants by the time of their end.
    lasting: BTreeSet<(i64, u64)>,
    lasting_bytes: usize,
    tally: Tally,
    habits: Habits,
    before: HashMap<u64, HabitRow>,
    spans: SpanIds,
    bytes: usize,
    /// Records that were read back: they are looked at, and not judged again.
    back: HashSet<u64>,
    /// Grants that were let go: they are looked for by the index when they are named again.
    let_go: bool,
    /// Ids of which some records went and others are at hand.
    partly: HashSet<String>,
    /// Ids that the index does not have; one whose record comes is none of them any more.
    unknown: HashSet<String>,
}

impl State {
    /// Without a past; `window` is how long events stay, in ns, and `bytes` what they take at most. `fields` is
    /// what rules read of attributes, and whether they read all of them.
    pub(super) fn new(window: i64, bytes: usize, fields: (Arc<Fields>, bool)) -> Self {
        Self {
            room: (EVENTS_MAX, bytes),
            fields,
            events: BTreeMap::new(),
            more: HashMap::new(),
            index: HashMap::new(),
            by_time: HashMap::new(),
            recent: VecDeque::new(),
            lasting: BTreeSet::new(),
            lasting_bytes: 0,
            tally: Tally::default(),
            habits: Habits::new(window),
            before: HashMap::new(),
            spans: SpanIds::default(),
            bytes: 0,
            back: HashSet::new(),
            let_go: false,
            partly: HashSet::new(),
            unknown: HashSet::new(),
        }
    }

    /// The first event of a record.
    pub(crate) fn get(&self, seq: u64) -> Option<&EventRow> {
        self.events.get(&seq).map(|held| &held.row)
    }

    /// All events of a record.
    pub(crate) fn all(&self, seq: u64) -> impl Iterator<Item = &EventRow> {
        self.held(seq).map(|held| &held.row)
    }

    /// All events of a record, with what is kept beside them.
    pub(super) fn held(&self, seq: u64) -> impl Iterator<Item = &Held> {
        let first = self.events.get(&seq).map(Box::as_ref);
        first.into_iter().chain(self.more.get(&seq).into_iter().flatten())
    }

    /// Whether it is an approval or a refusal.
    pub(crate) fn is_held(kind: &str, decision: Option<&str>) -> bool {
        kind == "approval" || matches!(decision, Some("deny" | "rejected"))
    }

    /// Takes an event in.
    pub(crate) fn insert(&mut self, event: EventRow) {
        let until = self.until(&event);
        let held = self.hold(event);
        let event = &held.row;
        if self.held(event.seq).any(|known| *known == held) {
            return;
        }
        if event.kind == "tool_call" {
            self.before.insert(event.seq, self.habits.take_event(event));
            Call::of(event).into_iter().for_each(|call| self.tally.take(call));
        } else if GRANTS.contains(&event.kind.as_str()) {
            self.tally.give(event);
        }
        for key in held.places() {
            if late::is_by_time(key.0) {
                self.by_time.entry(key.clone()).or_default().insert((event.event_time.0, event.seq));
            }
            self.index.entry(key).or_default().insert(event.seq);
        }
        self.bytes += held.size();
        if self.events.contains_key(&event.seq) {
            self.more.entry(event.seq).or_default().push(held);
            return;
        }
        if let Some(id) = event.grant_id.as_ref().filter(|_| GRANTS.contains(&event.kind.as_str())) {
            self.unknown.remove(id);
        }
        match until {
            Some(until) => {
                self.lasting.insert((until, event.seq));
                self.lasting_bytes += held.size();
            }
            None => self.recent.push_back((event.ingest_time.0, event.seq)),
        }
        // A tree keeps room for as many again.
        self.events.insert(event.seq, Box::new(held));
    }

    /// Until when an event stays that stays longer than the window: its attributes tell.
    fn until(&self, event: &EventRow) -> Option<i64> {
        if GRANTS.contains(&event.kind.as_str()) {
            return Some(end_of(event));
        }
        // What was approved or refused counts for later calls.
        let decides = Self::is_held(&event.kind, event.decision.as_deref());
        decides.then(|| event.ingest_time.0.saturating_add(DECISIONS_HELD).max(self.end_of_approved(event)))
    }

    /// The end of the grant that an approval is about: it counts as long as that does.
    fn end_of_approved(&self, event: &EventRow) -> i64 {
        let id = event.grant_id.as_ref().filter(|_| event.kind == "approval");
        let records = id.into_iter().flat_map(|id| self.met(By::Given, id, event.tenant.as_deref(), RELATED_MAX));
        records.filter_map(|seq| self.get(seq)).filter(|event| gives(event)).map(end_of).max().unwrap_or(i64::MIN)
    }

    /// The event as it is kept. Of those that tell of a grant the attributes are read again.
    fn hold(&self, mut row: EventRow) -> Held {
        let (fields, whole) = &self.fields;
        let (found, more) = (fields.read(&row.attributes), keys_of_attributes(&row));
        if !whole && !GRANTS.contains(&row.kind.as_str()) {
            row.attributes = String::new();
        }
        Held { row, found, more }
    }

    /// The counts of uses, to put in what came before.
    pub(super) fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// The ids of spans, to put in those that came.
    pub(super) fn spans(&mut self) -> &mut SpanIds {
        &mut self.spans
    }

    /// Lets go of what is older than `before`, and of the oldest beyond the bounds. Gives their seqs.
    pub(crate) fn let_go(&mut self, before: i64) -> Vec<u64> {
        let mut gone = Vec::new();
        while let Some((_, seq)) = self.recent.pop_front_if(|(time, _)| *time < before) {
            self.remove(seq);
            gone.push(seq);
        }
        while let Some(&(_, seq)) = self.lasting.first().filter(|(end, _)| *end < before) {
            self.let_lasting_go();
            gone.push(seq);
        }
        while self.events.len() > self.room.0 || self.bytes > self.room.1 {
            // What lasts must not push out what is new: it can be found again, and has at most half of the room.
            let lasts = 2 * self.lasting.len() > self.room.0 || 2 * self.lasting_bytes > self.room.1;
            let oldest = self.recent.front().filter(|_| !lasts).map(|(_, seq)| *seq);
            match (oldest, self.lasting.first().map(|(_, seq)| *seq)) {
                (Some(seq), _) => {
                    self.recent.pop_front();
                    self.remove(seq);
                    gone.push(seq);
                }
                (None, Some(seq)) => {
                    self.let_lasting_go();
                    gone.push(seq);
                }
                (None, None) => break,
            }
        }
        self.spans.let_go(before);
        self.tally.let_go(before);
        gone
    }

    /// Lets go of the first of what lasts.
    fn let_lasting_go(&mut self) {
        let Some((_, seq)) = self.lasting.pop_first() else { return };
        if let Some(held) = self.events.get(&seq) {
            self.lasting_bytes = self.lasting_bytes.saturating_sub(held.size());
            self.let_go |= GRANTS.contains(&held.row.kind.as_str());
        }
        self.remove(seq);
    }

    fn remove(&mut self, seq: u64) {
        let Some(event) = self.events.remove(&seq) else { return };
        self.tally.forget(seq);
        self.before.remove(&seq);
        self.back.remove(&seq);
        let more = self.more.remove(&seq).unwrap_or_default();
        for event in std::iter::once(*event).chain(more) {
            self.forget(&event);
        }
    }

    /// Takes an event of a record that goes out of the index.
    fn forget(&mut self, held: &Held) {
        self.bytes = self.bytes.saturating_sub(held.size());
        let event = &held.row;
        for key in held.places() {
            if late::is_by_time(key.0) {
                take_out(&mut self.by_time, &key, &(event.event_time.0, event.seq));
            }
            take_out(&mut self.index, &key, &event.seq);
        }
        if let Some(grant) = &event.grant_id {
            self.forget_in_tally(grant, event);
        }
    }

    /// An event that names a grant went: what is counted of it is kept for as long as a call of that tenant names it, or
    /// a grant is there that such a call means.
    fn forget_in_tally(&mut self, grant: &String, event: &EventRow) {
        let is_used = |state: &Self, tenant: &Option<String>| {
            state.index.contains_key(&own_under(By::Use, grant, tenant.as_deref()))
        };
        let whose = event.tenant.as_deref();
        if GRANTS.contains(&event.kind.as_str()) {
            if !self.index.contains_key(&own_under(By::Given, grant, whose)) {
                self.tally.forget_grant(grant, &event.tenant);
            }
            if self.index.contains_key(&(By::GivenToAny, grant.clone())) {
                self.partly.insert(grant.clone());
            } else {
                self.partly.remove(grant);
                for tenant in self.tally.users(grant) {
                    if !is_used(self, &tenant) {
                        self.tally.forget_uses(grant, &tenant);
                    }
                }
            }
        }
        let is_given = found_under(By::Given, grant, whose).iter().any(|key| self.index.contains_key(key));
        if !is_given && !is_used(self, &event.tenant) {
            self.tally.forget_uses(grant, &event.tenant);
        }
    }

    /// The events that have this in common with one of a tenant, and meet it: the newest of each place.
    fn met<'a>(
        &'a self,
        by: By,
        value: &str,
        tenant: Option<&str>,
        most: usize,
    ) -> impl Iterator<Item = u64> + use<'a> {
        self.met_below(by, value, tenant, u64::MAX, most)
    }

    /// The same of those below a seq.
    fn met_below<'a>(
        &'a self,
        by: By,
        value: &str,
        tenant: Option<&str>,
        below: u64,
        most: usize,
    ) -> impl Iterator<Item = u64> + use<'a> {
        let places = found_under(by, value, tenant).map(|key| self.index.get(&key));
        places.into_iter().flatten().flat_map(move |seqs| seqs.range(..below).rev().take(most).copied())
    }

    /// The events that the judgement of some needs to see.
    pub(crate) fn context(&mut self, judged: &BTreeSet<u64>, snapshot: &Snapshot) -> Result<BTreeSet<u64>, Error> {
        let mut out: Vec<u64> = judged.iter().copied().filter(|seq| self.events.contains_key(seq)).collect();
        let (mut seen, mut named) = (HashSet::new(), HashSet::new());
        for held in out.clone().into_iter().flat_map(|seq| self.held(seq)) {
            let tenant = held.row.tenant.as_deref();
            named.extend(held.row.parent_grant_id.iter().map(|id| (tenant, id.as_str())));
            let is_of_grant = |by| matches!(by, By::Use | By::Grant | By::Given | By::GivenToAny);
            for (by, value) in held.keys().filter(|(by, _)| !is_of_grant(*by)) {
                if seen.insert((by, value, tenant)) {
                    out.extend(self.met(by, value, tenant, RELATED_MAX));
                }
            }
        }
        out.sort_unstable();
        out.dedup();
        // What these, and the others in the same trace or of the same agent, acted under.
        let all = out.iter().flat_map(|seq| self.all(*seq));
        named.extend(all.filter_map(|event| Some((event.tenant.as_deref(), event.grant_id.as_deref()?))));
        let grants = named.into_iter().map(|(tenant, id)| (tenant.map(str::to_owned), id.to_owned())).collect();
        self.with_lineage(grants, snapshot, out)
    }

    /// The records of the grants that some records gave, and of all above them.
    pub(crate) fn lineage(&mut self, given: &BTreeSet<u64>, snapshot: &Snapshot) -> Result<BTreeSet<u64>, Error> {
        let records = given.iter().filter_map(|seq| self.get(*seq));
        let grants = records.filter_map(|event| Some((event.tenant.clone(), event.grant_id.clone()?))).collect();
        self.with_lineage(grants, snapshot, given.iter().copied().collect())
    }

    /// Adds the records of some grants and of all above them.
    fn with_lineage(
        &mut self,
        mut grants: Vec<Named>,
        snapshot: &Snapshot,
        mut out: Vec<u64>,
    ) -> Result<BTreeSet<u64>, Error> {
        self.read_back(&grants, snapshot)?;
        let mut walked = HashSet::new();
        while let Some(named) = grants.pop() {
            if walked.contains(&named) {
                continue;
            }
            let of = |by: By| self.met(by, &named.1, named.0.as_deref(), RELATED_MAX);
            let from = out.len();
            out.extend(of(By::Given).chain(of(By::Grant)));
            walked.insert(named);
            let records = out[from..].iter().flat_map(|seq| self.all(*seq));
            let above = records.filter_map(|event| Some((event.tenant.clone(), event.parent_grant_id.clone()?)));
            let above: Vec<Named> = above.filter(|named| !walked.contains(named)).collect();
            self.read_back(&above, snapshot)?;
            grants.extend(above);
        }
        Ok(out.into_iter().collect())
    }

    /// Reads the records of grants that were let go back, what was decided of them, and how often those were used, by the index: each
    /// costs a lookup, however long the log is, and those that are not there cost one once.
    fn read_back(&mut self, grants: &[Named], snapshot: &Snapshot) -> Result<(), Error> {
        if !self.let_go {
            return Ok(());
        }
        let is_at_hand = |id: &String| self.index.contains_key(&(By::GivenToAny, id.clone()));
        let is_gone = |id: &&String| !is_at_hand(id) && !self.unknown.contains(*id) || self.partly.contains(*id);
        let missing: BTreeSet<String> = grants.iter().map(|(_, id)| id).filter(is_gone).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let finder = Finder::new(snapshot, AsOf::Now)?;
        let newest = self.events.last_key_value().map_or(0, |(seq, _)| *seq);
        for id in missing {
            let found = finder.find(Kind::Grant, &id)?;
            let tells = |role: Role| matches!(role, Role::Given | Role::Revoked | Role::Approval);
            let told = found.iter().filter(|posting| tells(posting.role()));
            let mut told: Vec<u64> = told.map(|posting| posting.seq()).filter(|seq| *seq <= newest).collect();
            told.dedup();
            let mut uses: Vec<u64> = found
                .into_iter()
                .filter(|p| p.role() == Role::Use)
                .map(Posting::seq)
                .filter(|s| *s <= newest)
                .collect();
            uses.dedup();
            if !self.partly.remove(&id) {
                self.tally.recount(&id, &uses::whose(snapshot, &uses)?);
            }
            let is_told = |event: &EventRow| event.kind == "approval" || GRANTS.contains(&event.kind.as_str());
            let is_one = |event: &EventRow| event.grant_id.as_ref() == Some(&id) && is_told(event) && !is_aside(event);
            let mut records = snapshot.few_events(&told, None)?;
            records.retain(|event| is_one(event) && !self.events.contains_key(&event.seq));
            for event in records {
                self.back.insert(event.seq);
                self.insert(event);
            }
            if !self.index.contains_key(&(By::GivenToAny, id.clone())) {
                if self.unknown.len() >= UNKNOWN_MAX {
                    self.unknown.clear();
                }
                self.unknown.insert(id);
            }
        }
        Ok(())
    }

    /// The count of each use among some events.
    pub(crate) fn uses(&self, seqs: &BTreeSet<u64>) -> Vec<UseRow> {
        self.tally.rows(seqs)
    }

    /// What the calls before each call among some events had.
    pub(crate) fn habits(&self, seqs: &BTreeSet<u64>) -> Vec<HabitRow> {
        seqs.iter().filter_map(|seq| self.before.get(seq).cloned()).collect()
    }

    /// The spans of the traces of some events.
    pub(crate) fn span_ids(&self, seqs: &BTreeSet<u64>) -> Vec<SpanIdRow> {
        let traces: BTreeSet<&String> = seqs.iter().filter_map(|s| self.get(*s)?.trace_id.as_ref()).collect();
        self.spans.rows(traces)
    }

    /// How many events are at hand.
    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }
}

/// Takes one out of a place, and the place with its last.
fn take_out<T: Ord>(places: &mut HashMap<Key, BTreeSet<T>>, key: &Key, value: &T) {
    if let Some(values) = places.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            places.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
