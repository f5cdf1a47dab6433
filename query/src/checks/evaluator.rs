//! The evaluator: takes each new event once, judges what it touches, and tells what is new.
//! It has no clock and writes nothing: `follow` gives it both.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use datafusion::arrow::array::StringArray;
use datafusion::error::DataFusionError;

use super::hit::HitRow;
use super::run::{Checker, Entries, SpanIdRow, Tables, UseRow, once};
use super::state::{DECISIONS_HELD, State, is_aside};
use crate::Error;
use crate::event::EventRow;
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Cell as _, Time};
use crate::segments::{Table, Tail, Wanted};

/// Records that one step takes, at most.
pub(crate) const STEP_RECORDS: u64 = 4096;

/// What was raised about a record.
#[derive(Clone, Debug)]
struct Raised {
    hit: HitRow,
    revision: u32,
    /// Whether it stands: false after it was taken back.
    stands: bool,
}

/// What a step found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// To be raised: the hit, and the alert that it supersedes.
    pub(crate) raise: Vec<(HitRow, Option<String>)>,
    /// To be taken back.
    pub(crate) take_back: Vec<HitRow>,
}

/// Judges events as they come.
pub(crate) struct Evaluator {
    checker: Arc<Checker>,
    entries: Entries,
    state: State,
    /// The next seq to take.
    at: u64,
    newest: i64,
    /// Records whose grace time runs, in order.
    due: VecDeque<(i64, u64)>,
    raised: BTreeMap<(u64, String), Raised>,
    /// Hits that may still be taken back.
    pending: BTreeMap<(u64, String), HitRow>,
}

impl Evaluator {
    /// From a seq on, without a past.
    pub(crate) fn new(checker: Arc<Checker>, entries: Entries, at: u64) -> Self {
        let (raised, pending) = (BTreeMap::new(), BTreeMap::new());
        Self { checker, entries, state: State::default(), at, newest: 0, due: VecDeque::new(), raised, pending }
    }

    /// With the past that a snapshot tells: the events of one window before, the records of grants,
    /// and what was raised already.
    pub(crate) fn recover(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let kinds = ["grant_issued", "grant_derived", "grant_denied", "grant_revoked"];
        let mut limited = HashSet::new();
        for event in snapshot.events_of(&kinds, AsOf::Now)?.into_iter().filter(|e| e.seq < self.at && !is_aside(e)) {
            limited.extend(event.grant_id.clone().filter(|_| event.attributes.contains("max_uses")));
            self.newest = self.newest.max(event.ingest_time.0);
            self.state.insert(event);
        }
        let before = self.at.saturating_sub(1);
        let last = snapshot.events_at(&(before.saturating_sub(64)..self.at).collect())?;
        self.newest = last.iter().map(|e| e.ingest_time.0).fold(self.newest, i64::max);
        let from = self.newest.saturating_sub(self.window());
        let columns = ["seq", "ingest_time", "kind", "grant_id", "decision"];
        let (mut recent, mut counts) = (BTreeSet::new(), HashMap::<String, u64>::new());
        snapshot.read(&Wanted::all(Table::Events).columns(&columns).seqs(0..self.at), |batch| {
            let [seq, time, kind, grant, decision] = batch.columns() else { return Ok(true) };
            for i in 0..batch.num_rows() {
                let said = <Option<String>>::read(decision, i);
                let held = State::is_held(&String::read(kind, i), said.as_deref());
                if Time::read(time, i).0
                    >= from.min(if held { self.newest.saturating_sub(DECISIONS_HELD) } else { from })
                {
                    recent.insert(u64::read(seq, i));
                } else if String::read(kind, i) == "tool_call"
                    && let Some(id) = <Option<String>>::read(grant, i).filter(|id| limited.contains(id))
                {
                    *counts.entry(id).or_default() += 1;
                }
            }
            Ok(true)
        })?;
        counts.into_iter().for_each(|(grant, uses)| self.state.count(grant, uses));
        // A busy hour may be more than may be held: the newest stay.
        let recent = Vec::from_iter(recent);
        for some in recent.chunks(STEP_RECORDS as usize) {
            for event in snapshot.events_at(&some.iter().copied().collect())? {
                if !is_aside(&event) {
                    self.state.insert(event);
                }
            }
            self.let_go();
        }
        for event in snapshot.events_of(&["alert", "alert_superseded"], AsOf::Now)? {
            self.remember(&event);
        }
        self.let_go();
        let (state, at) = (&self.state, self.at);
        self.raised.retain(|(seq, _), _| *seq >= at || state.get(*seq).is_some());
        Ok(())
    }

    /// Takes in what the log says was raised.
    fn remember(&mut self, event: &EventRow) {
        if event.submitter != custody_store::system::CHECKS_IDENTITY {
            return;
        }
        let Some(hit) = HitRow::of_alert(event) else { return };
        let stands = event.kind == "alert";
        let revision = self.raised.get(&hit.key()).map_or(0, |raised| raised.revision) + u32::from(stands);
        self.raised.insert(hit.key(), Raised { hit, revision, stands });
    }

    fn window(&self) -> i64 {
        (self.checker.tuning().window_seconds * 1e9) as i64
    }

    /// The seq that it takes next.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Below this seq everything is settled.
    pub(crate) fn settled(&self) -> u64 {
        self.settled_below(self.at)
    }

    fn settled_below(&self, to: u64) -> u64 {
        self.due.front().map_or(to, |(_, seq)| *seq)
    }

    /// When the next record is settled, if any waits.
    pub(crate) fn next_due(&self) -> Option<i64> {
        self.due.front().map(|(time, _)| *time)
    }

    /// Hits that may still be taken back.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &HitRow> {
        self.pending.values()
    }

    /// How many events are at hand.
    pub(crate) fn held(&self) -> usize {
        self.state.len()
    }

    /// Takes what is new in a snapshot, up to one step, and judges it and what is due.
    pub(crate) async fn step(&mut self, snapshot: &Arc<Snapshot>, now: Time) -> Result<Found, Error> {
        let from = self.at;
        let to = snapshot.size.min(from + STEP_RECORDS).max(from);
        let (fresh, spans) = self.take(snapshot, from, to)?;
        let clock = if to == snapshot.size { now.0.max(self.newest) } else { self.newest };
        let mut settled = BTreeSet::new();
        while let Some((_, seq)) = self.due.pop_front_if(|(time, _)| *time <= clock) {
            settled.insert(seq);
            if settled.len() as u64 >= STEP_RECORDS {
                break;
            }
        }
        // Records come in order, so all from the first that waits on wait, too.
        let waiting = self.settled_below(to);
        for seq in &fresh {
            settled.extend(self.state.touched_by(*seq).range(..waiting));
        }
        let judged: BTreeSet<u64> = fresh.union(&settled).copied().collect();
        let found = match judged.is_empty() && spans.is_empty() {
            true => Vec::new(),
            false => self.judge(snapshot, (from, to), &judged, spans, now).await?,
        };
        self.at = to;
        let out = self.tell(found, &judged, &settled, now);
        self.let_go();
        Ok(out)
    }

    /// Takes the events and spans of a range in.
    fn take(
        &mut self,
        snapshot: &Snapshot,
        from: u64,
        to: u64,
    ) -> Result<(BTreeSet<u64>, Vec<datafusion::arrow::array::RecordBatch>), Error> {
        let (mut fresh, mut spans) = (BTreeSet::new(), Vec::new());
        if from == to {
            return Ok((fresh, spans));
        }
        let grace = self.checker.tuning().grace();
        snapshot.read(&Wanted::all(Table::Events).seqs(from..to), |batch| {
            for event in EventRow::read(batch).into_iter().filter(|event| !is_aside(event)) {
                self.newest = self.newest.max(event.ingest_time.0);
                self.due.push_back((event.ingest_time.0.saturating_add(grace), event.seq));
                fresh.insert(event.seq);
                self.state.insert(event);
            }
            Ok(true)
        })?;
        let newest = &mut self.newest;
        // Only rules about missing spans need the ids of all.
        let mut state = self.checker.reads("span_ids").then_some(&mut self.state);
        snapshot.read(&Wanted::all(Table::Spans).seqs(from..to), |batch| {
            let column = |name: &str| batch.column_by_name(name);
            let texts = |name: &str| column(name).and_then(|c| c.as_any().downcast_ref::<StringArray>());
            if let (Some(trace), Some(span), Some(time)) = (texts("trace_id"), texts("span_id"), column("ingest_time"))
            {
                for i in 0..batch.num_rows() {
                    let time = Time::read(time, i).0;
                    *newest = (*newest).max(time);
                    if let Some(state) = &mut state {
                        state.insert_span(trace.value(i), span.value(i), time);
                    }
                }
            }
            spans.push(batch.clone());
            Ok(true)
        })?;
        Ok((fresh, spans))
    }

    /// Runs the rules over what some records touch.
    async fn judge(
        &mut self,
        snapshot: &Arc<Snapshot>,
        range: (u64, u64),
        judged: &BTreeSet<u64>,
        spans: Vec<datafusion::arrow::array::RecordBatch>,
        now: Time,
    ) -> Result<Vec<(HitRow, bool)>, Error> {
        let seqs = self.state.context(judged, snapshot)?;
        let events: Vec<EventRow> = seqs.iter().filter_map(|seq| self.state.get(*seq).cloned()).collect();
        let mut kinds: HashSet<String> =
            judged.iter().filter_map(|s| self.state.get(*s)).map(|e| e.kind.clone()).collect();
        if !spans.is_empty() {
            kinds.insert("span".into());
        }
        let mut tail = Tail { to: range.1, ..Tail::default() };
        tail.tables[Table::Events as usize] = vec![EventRow::batch(&events)];
        tail.tables[Table::Spans as usize] = spans;
        let few = Arc::new(Snapshot { size: range.1, tail, ..Snapshot::default() });
        let known = (UseRow::batch(&self.state.uses(&seqs)), SpanIdRow::batch(&self.state.span_ids(judged)));
        let wrong = |e: DataFusionError| Error::query(&e);
        let tables = Tables::touched(&few, &self.entries, range.0, now, known).map_err(wrong)?;
        let found = self.checker.run(tables, &few, Some(&kinds)).await?;
        let is_new = |seq: u64| (range.0..range.1).contains(&seq) && self.state.get(seq).is_none();
        Ok(found.into_iter().filter(|(hit, _)| judged.contains(&hit.seq) || is_new(hit.seq)).collect())
    }

    /// What of the found is new, and what does not stand any more.
    fn tell(
        &mut self,
        found: Vec<(HitRow, bool)>,
        judged: &BTreeSet<u64>,
        settled: &BTreeSet<u64>,
        now: Time,
    ) -> Found {
        let mut out = Found::default();
        self.pending.retain(|(seq, _), _| !judged.contains(seq));
        let mut stands = HashSet::new();
        let waiting: HashSet<(u64, String)> =
            found.iter().filter(|(_, waits)| *waits).map(|(hit, _)| hit.key()).collect();
        let hits = found.into_iter().filter_map(|(hit, _)| {
            let event = self.state.get(hit.seq);
            self.checker.describe(hit, event, now)
        });
        for mut hit in once(hits.collect()) {
            let key = hit.key();
            if waiting.contains(&key) && !settled.contains(&hit.seq) {
                if hit.verdict == "proven" {
                    hit.verdict = "probable".into();
                }
                self.pending.insert(key, hit);
                continue;
            }
            stands.insert(key.clone());
            let before = self.raised.get(&key);
            if before.is_some_and(|raised| raised.stands && raised.hit.verdict == hit.verdict) {
                continue;
            }
            let revision = before.map_or(1, |raised| raised.revision + 1);
            let supersedes = before.and_then(|raised| raised.hit.alert_id.clone());
            hit.alert_id = Some(hit.id(revision));
            self.raised.insert(key, Raised { hit: hit.clone(), revision, stands: true });
            out.raise.push((hit, supersedes));
        }
        for seq in settled {
            let of = (*seq, String::new())..(seq.saturating_add(1), String::new());
            let (state, checker) = (&self.state, &self.checker);
            // Only with all of its evidence at hand can it be said that a hit does not stand.
            let is_refuted = |key: &(u64, String), raised: &Raised| {
                let at_hand = raised.hit.evidence.iter().all(|seq| state.get(*seq).is_some());
                raised.stands && !stands.contains(key) && at_hand && checker.judges_events(&key.1)
            };
            for (_, raised) in self.raised.range_mut(of).filter(|(key, raised)| is_refuted(key, raised)) {
                raised.stands = false;
                out.take_back.push(raised.hit.clone());
            }
        }
        out
    }

    fn let_go(&mut self) {
        for seq in self.state.let_go(self.newest.saturating_sub(self.window())) {
            while let Some(key) = self.raised.range((seq, String::new())..).next().map(|(k, _)| k.clone()) {
                if key.0 != seq {
                    break;
                }
                self.raised.remove(&key);
            }
        }
    }
}
