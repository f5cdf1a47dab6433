//! The evaluator: takes each new event once, judges what it touches, and tells what is new.
//! It has no clock and writes nothing: `follow` gives it both.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use custody_store::system::SeqSet;

use super::ends::{self, EndedRow};
use super::habits::HabitRow;
use super::here::Touched;
use super::hit::{HitRow, withholds_details};
use super::relations::{expiry, gives, is_aside};
use super::run::{Checker, Entries, once};
use super::running::Running;
use super::sequences::{self, Sequences};
use super::span_ids::SpanIdRow;
use super::spared::Ran;
use super::state::{DECISIONS_HELD, Held, State};
use super::touched::{self, Counted};
use super::uses::{UseRow, count_old};
use crate::Error;
use crate::event::EventRow;
use crate::grants::KINDS as GRANTS;
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Cell as _, Time};
use crate::segments::{Table, Wanted};

/// Records that one step takes, at most. Most are no events; what those touch is looked at once a step.
pub(crate) const STEP_RECORDS: u64 = 16_384;

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
    sequences: Sequences,
    running: Running,
    /// The next seq to take.
    at: u64,
    newest: i64,
    /// Records whose grace time runs, in order.
    due: VecDeque<(i64, u64)>,
    /// Records of grants by when they will have ended, the grace time included.
    ends: BTreeSet<(i64, u64)>,
    raised: BTreeMap<(u64, String), Raised>,
    /// Hits that may still be taken back.
    pending: BTreeMap<(u64, String), HitRow>,
    /// How many were raised when those of strangers were forgotten last.
    known: usize,
    wants: Wants,
}

/// What the rules that run ask for, of that which is kept for them alone.
struct Wants {
    ends: bool,
    numbered: bool,
    span_ids: bool,
    finished: bool,
}

/// The hits about one record.
fn keys_of<T>(hits: &BTreeMap<(u64, String), T>, seq: u64) -> Vec<(u64, String)> {
    let of = (seq, String::new())..(seq.saturating_add(1), String::new());
    hits.range(of).map(|(key, _)| key.clone()).collect()
}

impl Evaluator {
    /// From a seq on, without a past.
    pub(crate) fn new(checker: Arc<Checker>, entries: Entries, at: u64) -> Self {
        let whole = EventRow::schema().index_of("attributes").is_ok_and(|at| checker.used().contains(&at));
        let fields = (Arc::clone(checker.fields()), whole);
        let state = State::new(checker.tuning().window(), checker.tuning().memory_bytes, fields);
        let reads = |table: &str| checker.reads(table);
        let (ends, numbered) = (reads("ended_grants"), reads("numbered"));
        let wants = Wants { ends, numbered, span_ids: reads("span_ids"), finished: reads("finished_spans") };
        Self {
            wants,
            checker,
            entries,
            state,
            sequences: Sequences::default(),
            running: Running::default(),
            at,
            newest: 0,
            due: VecDeque::new(),
            ends: BTreeSet::new(),
            raised: BTreeMap::new(),
            pending: BTreeMap::new(),
            known: 0,
        }
    }

    /// With the past that a snapshot tells: the events of one window before, the records of grants,
    /// and what was raised already.
    pub(crate) fn recover(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let (at, window) = (self.at, self.window());
        for event in snapshot.events_of(&GRANTS, AsOf::Now)?.into_iter().filter(|e| e.seq < at && !is_aside(e)) {
            self.newest = self.newest.max(event.ingest_time.0);
            self.note_end(&event);
            self.state.insert(event);
        }
        let before = self.at.saturating_sub(1);
        let last = snapshot.events_at(&(before.saturating_sub(64)..self.at).collect())?;
        self.newest = last.iter().map(|e| e.ingest_time.0).fold(self.newest, i64::max);
        let from = self.newest.saturating_sub(window);
        let columns = ["seq", "ingest_time", "kind", "decision"];
        let mut recent = BTreeSet::new();
        snapshot.read(&Wanted::all(Table::Events).columns(&columns).seqs(0..self.at), |batch| {
            let [seq, time, kind, decision] = batch.columns() else { return Ok(true) };
            for i in 0..batch.num_rows() {
                let said = <Option<String>>::read(decision, i);
                let held = State::is_held(&String::read(kind, i), said.as_deref());
                if Time::read(time, i).0
                    >= from.min(if held { self.newest.saturating_sub(DECISIONS_HELD) } else { from })
                {
                    recent.insert(u64::read(seq, i));
                }
            }
            Ok(true)
        })?;
        if let Some(first) = recent.first().filter(|_| self.wants.numbered) {
            sequences::read(snapshot, *first..self.at)?.into_iter().for_each(|record| self.sequences.take(record));
        }
        if let Some(first) = recent.first().filter(|_| self.wants.finished) {
            self.running.read(snapshot, *first..at, window)?;
        }
        count_old(snapshot, self.state.tally(), at, &recent, window)?;
        // A busy hour may be more than may be held: the newest stay.
        let recent = Vec::from_iter(recent);
        for some in recent.chunks(STEP_RECORDS as usize) {
            for event in snapshot.events_at(&some.iter().copied().collect())? {
                if !is_aside(&event) {
                    self.state.insert(event);
                }
            }
            self.let_go(&mut Found::default());
        }
        for event in snapshot.events_of(&["alert", "alert_superseded"], AsOf::Now)? {
            self.remember(&event);
        }
        self.let_go(&mut Found::default());
        let (state, at) = (&self.state, self.at);
        let sequences = &self.sequences;
        self.raised.retain(|(seq, _), _| *seq >= at || state.get(*seq).is_some() || sequences.has(*seq));
        Ok(())
    }

    /// Takes in what the log says was raised.
    fn remember(&mut self, event: &EventRow) {
        if event.submitter != custody_store::system::CHECKS_IDENTITY {
            return;
        }
        // One whose details are not in the log is raised again.
        let Some(hit) = HitRow::of_alert(event).filter(|_| !withholds_details(event)) else { return };
        let stands = event.kind == "alert";
        let revision = self.raised.get(&hit.key()).map_or(0, |raised| raised.revision) + u32::from(stands);
        self.raised.insert(hit.key(), Raised { hit, revision, stands });
    }

    fn window(&self) -> i64 {
        self.checker.tuning().window()
    }

    /// Has the end of a grant looked at, when it comes.
    fn note_end(&mut self, event: &EventRow) {
        let grace = self.checker.tuning().grace();
        if let Some(end) = Some(event).filter(|event| self.wants.ends && gives(event)).and_then(expiry) {
            self.ends.insert((end.max(event.ingest_time.0).saturating_add(grace), event.seq));
        }
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
        let settled = self.due.front().map(|(time, _)| *time);
        settled.into_iter().chain(self.ends.first().map(|(time, _)| *time)).min()
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
            settled.extend(self.state.touched_by(*seq, waiting));
            settled.extend(self.sequences.after(*seq).into_iter().filter(|after| *after < waiting));
        }
        settled.extend(self.state.children_of(&spans, waiting));
        let judged: BTreeSet<u64> = fresh.union(&settled).copied().collect();
        let found = match judged.is_empty() && spans.is_empty() {
            true => (Ran::default(), BTreeSet::new()),
            false => self.judge(snapshot, (from, to), &judged, spans, Time(clock)).await?,
        };
        let (found, shown) = found;
        self.at = to;
        let mut out = self.tell(found, &judged, (&settled, &shown), now);
        let ended = self.judge_ended(snapshot, Time(clock)).await?;
        let none = BTreeSet::new();
        out.raise.extend(self.tell(ended, &none, (&none, &none), now).raise);
        self.let_go(&mut out);
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
                // A record can be several events.
                if fresh.insert(event.seq) {
                    self.due.push_back((event.ingest_time.0.saturating_add(grace), event.seq));
                }
                self.note_end(&event);
                let (seq, ends) = (event.seq, self.wants.ends && event.kind == "grant_revoked");
                self.state.insert(event);
                for ended in if ends { self.state.ended_by(seq) } else { Vec::new() } {
                    self.ends.insert((self.newest.saturating_add(grace), ended));
                }
            }
            Ok(true)
        })?;
        if self.wants.numbered {
            self.take_numbered(snapshot, (from, to), &mut fresh)?;
        }
        let newest = &mut self.newest;
        // Only rules about missing spans need the ids of all.
        let mut ids = self.wants.span_ids.then_some(self.state.spans());
        snapshot.read(&Wanted::all(Table::Spans).seqs(from..to), |batch| {
            if let Some(times) = batch.column_by_name("ingest_time") {
                *newest = (0..batch.num_rows()).map(|i| Time::read(times, i).0).fold(*newest, i64::max);
            }
            if let Some(ids) = &mut ids {
                ids.take(batch);
            }
            self.running.take(batch);
            spans.push(batch.clone());
            Ok(true)
        })?;
        Ok((fresh, spans))
    }

    /// Takes the numbered records of a range in: they are judged whether they are events or not.
    fn take_numbered(
        &mut self,
        snapshot: &Snapshot,
        (from, to): (u64, u64),
        fresh: &mut BTreeSet<u64>,
    ) -> Result<(), Error> {
        let grace = self.checker.tuning().grace();
        let mut more = false;
        for record in sequences::read(snapshot, from..to)? {
            if fresh.insert(record.seq) {
                self.newest = self.newest.max(record.time);
                self.due.push_back((record.time.saturating_add(grace), record.seq));
                more = true;
            }
            self.sequences.take(record);
        }
        if more {
            self.due.make_contiguous().sort_unstable();
        }
        Ok(())
    }

    /// What was counted of some records.
    fn counted(&self, judged: &BTreeSet<u64>, seqs: &BTreeSet<u64>, ended: &[EndedRow]) -> Counted {
        Counted {
            uses: UseRow::batch(&self.state.uses(seqs)),
            habits: HabitRow::batch(&self.state.habits(judged)),
            span_ids: SpanIdRow::batch(&self.state.span_ids(judged)),
            numbered: self.sequences.rows(judged.iter()),
            ended: EndedRow::batch(ended),
            finished: self.running.rows(),
        }
    }

    /// Runs the rules about grants that have ended, over those that now have.
    async fn judge_ended(&mut self, snapshot: &Arc<Snapshot>, clock: Time) -> Result<Ran, Error> {
        let mut ended = BTreeSet::new();
        while let Some(end) = self.ends.first().copied().filter(|(time, _)| *time <= clock.0) {
            self.ends.remove(&end);
            // One that was let go for want of room is not looked at.
            ended.extend(Some(end.1).filter(|seq| self.state.get(*seq).is_some()));
            if ended.len() as u64 >= STEP_RECORDS {
                break;
            }
        }
        if ended.is_empty() {
            return Ok(Ran::default());
        }
        let seqs = self.state.lineage(&ended, snapshot)?;
        let held = self.held_of(&seqs);
        let grants = touched::grants(&held, clock);
        let own = grants.rows().iter().filter(|grant| ended.contains(&grant.issued_seq));
        let rows = ends::of(snapshot, own, clock, self.checker.tuning().grace())?;
        let counted = self.counted(&ended, &seqs, &rows);
        let entries = (&self.entries, self.at, self.at);
        let touched = Touched::of(&self.checker, &held, Vec::new(), entries, clock, counted);
        let kinds = HashSet::from(["grant_end".to_owned()]);
        self.checker.run(touched, &kinds, SeqSet::of_seqs(ended.iter().copied())).await
    }

    /// Events at hand, with what is kept beside them.
    fn held_of(&self, seqs: &BTreeSet<u64>) -> Vec<&Held> {
        seqs.iter().flat_map(|seq| self.state.held(*seq)).collect()
    }

    /// Runs the rules over what some records touch; gives also which events those are.
    async fn judge(
        &mut self,
        snapshot: &Arc<Snapshot>,
        range: (u64, u64),
        judged: &BTreeSet<u64>,
        spans: Vec<datafusion::arrow::array::RecordBatch>,
        now: Time,
    ) -> Result<(Ran, BTreeSet<u64>), Error> {
        let seqs = self.state.context(judged, snapshot)?;
        let mut kinds: HashSet<String> =
            judged.iter().flat_map(|s| self.state.all(*s)).map(|e| e.kind.clone()).collect();
        if !spans.is_empty() {
            kinds.insert("span".into());
        }
        if judged.iter().any(|seq| self.sequences.has(*seq)) {
            kinds.insert("record".into());
        }
        let counted = self.counted(judged, &seqs, &[]);
        let entries = (&self.entries, range.0, range.1);
        let touched = Touched::of(&self.checker, &self.held_of(&seqs), spans, entries, now, counted);
        let about = SeqSet::of_seqs(judged.iter().copied().chain(range.0..range.1));
        let mut ran = self.checker.run(touched, &kinds, about).await?;
        let is_new = |seq: u64| (range.0..range.1).contains(&seq) && self.state.get(seq).is_none();
        ran.hits.retain(|(hit, _)| judged.contains(&hit.seq) || is_new(hit.seq));
        Ok((ran, seqs))
    }

    /// What of the found is new, and what does not stand any more. Where a rule failed, or was not shown all that a
    /// hit cites, what it found before stays.
    fn tell(
        &mut self,
        ran: Ran,
        judged: &BTreeSet<u64>,
        (settled, shown): (&BTreeSet<u64>, &BTreeSet<u64>),
        now: Time,
    ) -> Found {
        let (mut out, Ran { hits: found, failed }) = (Found::default(), ran);
        self.pending.retain(|key, _| !judged.contains(&key.0) || failed.has(key));
        let mut stands = HashSet::new();
        let waiting: HashSet<(u64, String)> =
            found.iter().filter(|(_, waits)| *waits).map(|(hit, _)| hit.key()).collect();
        let hits = found.into_iter().filter_map(|(hit, _)| {
            let of = self.entries.tenancy(hit.seq, self.state.get(hit.seq));
            self.checker.describe(hit, of, now)
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
            stands.insert(key);
            self.raise(hit, &mut out);
        }
        for seq in settled {
            for key in keys_of(&self.pending, *seq) {
                let kept = self.pending.remove(&key);
                kept.into_iter().for_each(|hit| self.raise(hit, &mut out));
            }
            let of = (*seq, String::new())..(seq.saturating_add(1), String::new());
            // Only with all of its evidence shown can it be said that a hit does not stand.
            let (sequences, checker) = (&self.sequences, &self.checker);
            let is_refuted = |key: &(u64, String), raised: &Raised| {
                let is_at_hand = |seq: &u64| shown.contains(seq) || sequences.has(*seq);
                let at_hand = is_at_hand(&key.0) && raised.hit.evidence.iter().all(is_at_hand);
                let is_hidden = failed.has(key) || failed.hides(&key.1, &raised.hit.evidence);
                let is_known = !stands.contains(key) && !is_hidden;
                raised.stands && is_known && at_hand && checker.judges_events(&key.1)
            };
            for (_, raised) in self.raised.range_mut(of).filter(|(key, raised)| is_refuted(key, raised)) {
                raised.stands = false;
                out.take_back.push(raised.hit.clone());
            }
        }
        out
    }

    /// Raises a hit, unless it stands raised already.
    fn raise(&mut self, mut hit: HitRow, out: &mut Found) {
        let before = self.raised.get(&hit.key());
        if before.is_some_and(|raised| raised.stands && raised.hit.verdict == hit.verdict) {
            return;
        }
        let revision = before.map_or(1, |raised| raised.revision + 1);
        let supersedes = before.and_then(|raised| raised.hit.alert_id.clone());
        hit.alert_id = Some(hit.id(revision));
        self.raised.insert(hit.key(), Raised { hit: hit.clone(), revision, stands: true });
        out.raise.push((hit, supersedes));
    }

    /// Lets go of what is old, or has no room. A hit that waits for its grace time is told before its record
    /// goes: as probable, for nothing that comes later can be held against it.
    fn let_go(&mut self, out: &mut Found) {
        let before = self.newest.saturating_sub(self.window());
        self.sequences.let_go(before);
        self.running.next(before);
        for seq in self.state.let_go(before) {
            for key in keys_of(&self.pending, seq) {
                if let Some(hit) = self.pending.remove(&key) {
                    self.raise(hit, out);
                }
            }
            let stays = self.sequences.has(seq);
            for key in keys_of(&self.raised, seq).into_iter().filter(|_| !stays) {
                self.raised.remove(&key);
            }
        }
        self.forget_strangers();
    }

    /// Forgets what was raised about records that are not at hand and never will be judged again, when those
    /// have become many: of spans and the like nobody says when they go.
    fn forget_strangers(&mut self) {
        const STRANGERS_MAX: usize = 16_384;
        if self.raised.len() < STRANGERS_MAX.max(2 * self.known) {
            return;
        }
        let (settled, state, sequences) = (self.settled(), &self.state, &self.sequences);
        self.raised.retain(|(seq, _), _| *seq >= settled || state.get(*seq).is_some() || sequences.has(*seq));
        self.known = self.raised.len();
    }
}
