//! Events as lines, encoded once for all readers: the newest ones without gaps up to the newest record
//! that anybody asked for, of the kinds that somebody asks for, and beside them stretches of older ones that
//! somebody is reading.
//!
//! It holds a bounded number of bytes. Nothing in it outlives an erasure: [`Recent::clear`] begins an
//! epoch, and lines that were made from a snapshot of an older one are not taken.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::kept::{Kept, Key, Slot};
use super::kinds::{Asked, Kinds};
use super::lines::{Counted, Format, Line, encode};
use super::steps::Steps;
use super::turns::{Turn, Turns};
use crate::error::Error;
use crate::projection::{Projection, Snapshot};
use crate::segments::{Table, Wanted};

/// Bytes of the newest lines that are kept, by format.
const BYTES_MAX: usize = 32 << 20;

/// Bytes of older lines that are kept, and records and bytes of them that are read at a time.
const OLD_BYTES_MAX: usize = 16 << 20;
const OLD_RECORDS: u64 = 4_096;
const OLD_READ_BYTES: usize = 4 << 20;

/// Who is further behind the newest record than this reads for himself.
pub(crate) const NEAR: u64 = 65_536;

/// Bytes of a run, and rows that are encoded at a time.
const RUN_BYTES: usize = 1 << 20;

/// Runs that have no more lines than this together become one.
const SHORT_LINES: usize = 256;

const STEP_ROWS: usize = 1024;

/// Who read old rows at once, at most.
const COLD_READS: usize = 2;

/// Pages that are compressed at once, at most: there are other things to do.
const PACKED_AT_ONCE: usize = 2;

const FORMATS: usize = Format::ALL.len();

/// The lines of a range of the log.
#[derive(Debug, Default)]
pub(crate) struct Run {
    from: u64,
    pub(crate) to: u64,
    /// Of which kinds it has all lines.
    kinds: Kinds,
    bytes: usize,
    lines: Vec<Arc<Line>>,
}

impl Run {
    fn new(from: u64, kinds: Kinds) -> Self {
        Self { from, to: from, kinds, bytes: size_of::<Self>(), lines: Vec::new() }
    }

    /// This and what comes right behind it.
    fn and(&self, next: &Self) -> Self {
        let lines = self.lines.iter().chain(&next.lines).cloned().collect();
        let bytes = self.bytes + next.bytes - size_of::<Self>();
        Self { from: self.from, to: next.to, kinds: self.kinds, bytes, lines }
    }

    /// Its lines of these seqs.
    pub(crate) fn lines(&self, seqs: Range<u64>) -> &[Arc<Line>] {
        let at = |seq: u64| self.lines.partition_point(|line| line.seq < seq);
        &self.lines[at(seqs.start)..at(seqs.end.max(seqs.start))]
    }
}

#[derive(Default)]
struct Ring {
    runs: VecDeque<Arc<Run>>,
    bytes: usize,
}

impl Ring {
    fn to(&self) -> u64 {
        self.runs.back().map_or(0, |run| run.to)
    }

    fn push(&mut self, mut run: Run) {
        if self.to() != run.from {
            self.runs.clear();
            self.bytes = 0;
        }
        // Of kinds that come rarely the newest lines are those of hours: who comes back then walks through few runs.
        let is_short = |last: &&Arc<Run>| last.kinds == run.kinds && last.lines.len() + run.lines.len() <= SHORT_LINES;
        if let Some(last) = self.runs.back().filter(is_short) {
            (self.bytes, run) = (self.bytes - last.bytes, last.and(&run));
            self.runs.pop_back();
        }
        self.bytes += run.bytes;
        self.runs.push_back(Arc::new(run));
        while self.bytes > BYTES_MAX && self.runs.len() > 1 {
            self.bytes -= self.runs.pop_front().map_or(0, |run| run.bytes);
        }
    }
}

/// Older lines, by where they begin; what was read first goes first.
#[derive(Default)]
struct Old {
    runs: BTreeMap<(usize, u64), Arc<Run>>,
    read: VecDeque<(usize, u64)>,
    bytes: usize,
}

impl Old {
    fn at(&self, format: Format, seq: u64) -> Option<Arc<Run>> {
        let format = format as usize;
        let (_, run) = self.runs.range((format, 0)..=(format, seq)).next_back()?;
        (run.to > seq).then(|| Arc::clone(run))
    }

    fn push(&mut self, format: Format, run: &Arc<Run>) {
        let key = (format as usize, run.from);
        self.bytes += run.bytes;
        match self.runs.insert(key, Arc::clone(run)) {
            Some(before) => self.bytes -= before.bytes,
            None => self.read.push_back(key),
        }
        while self.bytes > OLD_BYTES_MAX {
            let Some(key) = self.read.pop_front() else { break };
            self.bytes -= self.runs.remove(&key).map_or(0, |run| run.bytes);
        }
    }
}

#[derive(Default)]
struct Inner {
    epoch: u64,
    rings: [Ring; FORMATS],
    asked: [Asked; FORMATS],
    old: Old,
    /// Sheets of the end of the log, and of older records.
    near: Kept,
    far: Kept,
}

/// What readers share.
pub(crate) struct Recent {
    inner: Mutex<Inner>,
    /// One encodes, the others wait for it.
    turns: [tokio::sync::Mutex<()>; FORMATS],
    /// The same for old rows.
    old_turns: [tokio::sync::Mutex<()>; FORMATS],
    pub(crate) steps: Steps,
    /// Few read old rows at once, so that many readers who catch up leave the machine to the receivers.
    cold: Turns,
    /// The same for those whose pages are compressed.
    pub(crate) packing: Turns,
}

impl Default for Recent {
    fn default() -> Self {
        let (inner, turns, old_turns, steps) = Default::default();
        Self { inner, turns, old_turns, steps, cold: Turns::new(COLD_READS), packing: Turns::new(PACKED_AT_ONCE) }
    }
}

impl Recent {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn to read old rows.
    pub(crate) async fn turn(&self, who: &Arc<str>) -> Result<Turn<'_>, Error> {
        self.cold.take(who).await
    }

    /// Forgets all lines: records were erased. The snapshot without them is published before.
    pub(crate) fn clear(&self) {
        let mut inner = self.lock();
        *inner = Inner { epoch: inner.epoch + 1, ..Inner::default() };
    }

    /// Counts the erasures since the start.
    pub(crate) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Takes in what is new of the kinds that are asked for, if a reader at `from` is near enough to share it.
    pub(super) async fn extend(
        projection: &Arc<Projection>,
        format: Format,
        from: u64,
        kinds: Kinds,
    ) -> Result<(), Error> {
        let own = &projection.recent;
        let size = projection.snapshot().size;
        if from + NEAR < size || own.ask(format, kinds).1 >= size {
            return Ok(());
        }
        let _turn = own.turns[format as usize].lock().await;
        let (epoch, to, kinds) = own.ask(format, kinds);
        let snapshot = projection.snapshot();
        if to >= snapshot.size {
            return Ok(());
        }
        // After a long time without readers it begins anew.
        let begin =
            if to + NEAR < snapshot.size || to == 0 { from.max(snapshot.size.saturating_sub(NEAR)) } else { to };
        let projection = Arc::clone(projection);
        let origin = projection.reader().origin().to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let runs = runs(&snapshot, (format, kinds), &origin, begin..snapshot.size, BYTES_MAX)?;
            let mut inner = projection.recent.lock();
            if inner.epoch == epoch {
                runs.into_iter().for_each(|run| inner.rings[format as usize].push(run));
            }
            Ok(())
        });
        read.await.map_err(|e| Error::internal(format!("the events cannot be read: {e}")))?
    }

    /// Notes that somebody asks for kinds; gives the epoch, how far there are lines, and which kinds are asked for
    /// from there on.
    fn ask(&self, format: Format, kinds: Kinds) -> (u64, u64, Kinds) {
        let mut inner = self.lock();
        let asked = inner.asked[format as usize].add(kinds, Instant::now());
        (inner.epoch, inner.rings[format as usize].to(), asked)
    }

    /// The run that has the lines of these kinds from a seq on, if it is here.
    pub(super) fn run_at(&self, format: Format, kinds: Kinds, seq: u64) -> Option<Arc<Run>> {
        let inner = self.lock();
        let ring = &inner.rings[format as usize];
        let first = ring.runs.partition_point(|run| run.to <= seq);
        let found = ring.runs.get(first).filter(|run| run.from <= seq && run.kinds.cover(kinds));
        found.map(Arc::clone).or_else(|| inner.old.at(format, seq))
    }

    /// The same for old rows, of all kinds: who does not find it reads some thousand records, which others at the same
    /// place then find. `who` waits for his turn.
    pub(crate) async fn read_at(
        projection: &Arc<Projection>,
        format: Format,
        seq: u64,
        who: &Arc<str>,
    ) -> Result<Arc<Run>, Error> {
        let own = &projection.recent;
        if let Some(run) = own.run_at(format, Kinds::ALL, seq) {
            return Ok(run);
        }
        let _turn = own.turn(who).await?;
        let _old_turn = own.old_turns[format as usize].lock().await;
        if let Some(run) = own.run_at(format, Kinds::ALL, seq) {
            return Ok(run);
        }
        let epoch = own.epoch();
        let (snapshot, projection) = (projection.snapshot(), Arc::clone(projection));
        let read = tokio::task::spawn_blocking(move || {
            let end = ((seq / OLD_RECORDS + 1) * OLD_RECORDS).min(snapshot.size);
            let origin = projection.reader().origin();
            let runs = runs(&snapshot, (format, Kinds::ALL), origin, seq..end, OLD_READ_BYTES)?;
            let runs: Vec<Arc<Run>> = runs.into_iter().map(Arc::new).collect();
            let mut inner = projection.recent.lock();
            if inner.epoch == epoch {
                runs.iter().for_each(|run| inner.old.push(format, run));
            }
            Ok(runs.into_iter().next().unwrap_or_default())
        });
        read.await.map_err(|e| Error::internal(format!("the events cannot be read: {e}")))?
    }

    /// The slot of a sheet, of the end of the log or of older records.
    pub(crate) fn slot(&self, is_near: bool, key: &Key, who: &Arc<str>) -> Arc<Slot> {
        let mut inner = self.lock();
        if is_near { inner.near.slot(key, who) } else { inner.far.slot(key, who) }
    }

    /// Says that a sheet was made.
    pub(crate) fn made(&self, is_near: bool, key: Key, slot: &Arc<Slot>, is_final: bool) {
        let mut inner = self.lock();
        let kept = if is_near { &mut inner.near } else { &mut inner.far };
        kept.made(key, slot, is_final);
    }
}

/// The lines of these kinds of a range, or up to where they have so many bytes.
fn runs(
    snapshot: &Snapshot,
    (format, kinds): (Format, Kinds),
    origin: &str,
    seqs: Range<u64>,
    bytes_max: usize,
) -> Result<Vec<Run>, Error> {
    let mut wanted = Wanted::all(Table::Events).seqs(seqs.clone());
    if let Some(names) = kinds.names() {
        wanted = wanted.only("kind", names);
    }
    let mut runs = vec![Run::new(seqs.start, kinds)];
    let (mut bytes, mut cut, mut counted) = (0, None, Counted::default());
    snapshot.read(&wanted, |batch| {
        for at in (0..batch.num_rows()).step_by(STEP_ROWS) {
            let mut lines = Vec::new();
            let step = batch.slice(at, STEP_ROWS.min(batch.num_rows() - at));
            encode(format, (origin, &snapshot.log), &step, &mut counted, &mut lines)?;
            for line in lines {
                let last = runs.last().and_then(|run| run.lines.last()).map(|line| line.seq);
                // A run ends between records.
                if last != Some(line.seq) && runs.last().is_some_and(|run| run.bytes >= RUN_BYTES) {
                    bytes += runs.last().map_or(0, |run| run.bytes);
                    if bytes >= bytes_max {
                        cut = Some(line.seq);
                        return Ok(false);
                    }
                    runs.push(Run::new(line.seq, kinds));
                }
                if let Some(run) = runs.last_mut() {
                    run.bytes += line.bytes();
                    run.lines.push(Arc::new(line));
                }
            }
        }
        Ok(true)
    })?;
    let ends: Vec<u64> = runs.iter().skip(1).map(|run| run.from).chain([cut.unwrap_or(seqs.end)]).collect();
    runs.iter_mut().zip(ends).for_each(|(run, end)| run.to = end);
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_steps_in_which_little_comes_are_few_runs() {
        let mut ring = Ring::default();
        let kinds = |name: &str| Kinds::of(&[name.to_owned()]);
        for n in 0..10_000u64 {
            let mut run = Run::new(n * 7, kinds(if n < 9_000 { "alert" } else { "request" }));
            run.to = (n + 1) * 7;
            if n % 10 == 3 {
                let line = Line { seq: n * 7 + 2, ..Line::default() };
                run.bytes += line.bytes();
                run.lines.push(Arc::new(line));
            }
            ring.push(run);
        }
        assert!((5..=7).contains(&ring.runs.len()), "{}", ring.runs.len());
        assert_eq!(ring.bytes, ring.runs.iter().map(|run| run.bytes).sum::<usize>());
        let of_lines: usize = ring.runs.iter().flat_map(|run| &run.lines).map(|line| line.bytes()).sum();
        assert_eq!(ring.bytes, of_lines + ring.runs.len() * size_of::<Run>());
        assert!(ring.runs.iter().zip(ring.runs.iter().skip(1)).all(|(one, next)| one.to == next.from));
        assert_eq!((ring.runs[0].from, ring.to()), (0, 70_000));
        let lines: Vec<u64> = ring.runs.iter().flat_map(|run| run.lines(10..70_000)).map(|line| line.seq).collect();
        assert_eq!(lines, (0..10_000).filter(|n| n % 10 == 3).map(|n| n * 7 + 2).collect::<Vec<_>>());
        assert_eq!(ring.runs.back().unwrap().kinds, kinds("request"));
        // What does not follow begins anew.
        ring.push(Run::new(80_000, kinds("request")));
        assert_eq!(ring.runs.len(), 1);
    }

    #[tokio::test]
    async fn who_asks_for_much_at_once_holds_up_himself() {
        let recent = Arc::new(Recent::default());
        let (much, one): (Arc<str>, Arc<str>) = ("much".into(), "one".into());
        let held = [recent.turn(&much).await.unwrap(), recent.turn(&much).await.unwrap()];
        let done = Arc::new(Mutex::new(Vec::new()));
        let ask = |who: &Arc<str>| {
            let (recent, who, done) = (Arc::clone(&recent), Arc::clone(who), Arc::clone(&done));
            tokio::spawn(async move {
                let _turn = recent.turn(&who).await.unwrap();
                done.lock().unwrap().push(who);
                tokio::task::yield_now().await;
            })
        };
        let mut asked: Vec<_> = (0..50).map(|_| ask(&much)).collect();
        tokio::task::yield_now().await;
        asked.push(ask(&one));
        tokio::task::yield_now().await;
        drop(held);
        for asked in asked {
            asked.await.unwrap();
        }
        let done = std::mem::take(&mut *done.lock().unwrap());
        let place = done.iter().position(|who| **who == *one).unwrap();
        assert!(place < 4 && done.len() == 51, "he came {place}.");
        drop(recent.turn(&one).await.unwrap());
        assert!(recent.cold.waiting() <= 2, "who has gone is forgotten");
    }
}
