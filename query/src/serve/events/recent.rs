//! The newest events as lines, encoded once for all readers that are near the end of the log.
//!
//! It holds a bounded number of bytes, without gaps up to the newest record that anybody asked
//! for. Nothing in it outlives an erasure: [`Recent::clear`] begins an epoch, and lines that were
//! made from a snapshot of an older one are not taken.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::lines::{Counted, Format, Line, encode};
use super::page::{Page, Wish};
use crate::error::Error;
use crate::projection::{Projection, Snapshot};
use crate::segments::{Table, Wanted};

/// Bytes of lines that are kept, by format.
const BYTES_MAX: usize = 16 << 20;

/// Who is further behind the newest record than this reads for himself.
pub(crate) const NEAR: u64 = 65_536;

/// Bytes of a run, and rows that are encoded at a time.
const RUN_BYTES: usize = 1 << 20;
const STEP_ROWS: usize = 1024;

/// Bytes of pages that are kept for others who ask for the same.
const PAGES_BYTES_MAX: usize = 16 << 20;

/// Who read old rows at once, at most.
const COLD_READS: usize = 2;

const FORMATS: usize = Format::ALL.len();

/// The lines of a range of the log.
struct Run {
    from: u64,
    to: u64,
    bytes: usize,
    lines: Vec<Arc<Line>>,
}

#[derive(Default)]
struct Ring {
    runs: VecDeque<Run>,
    bytes: usize,
}

impl Ring {
    fn from(&self) -> u64 {
        self.runs.front().map_or(0, |run| run.from)
    }

    fn to(&self) -> u64 {
        self.runs.back().map_or(0, |run| run.to)
    }

    fn push(&mut self, run: Run) {
        if self.to() != run.from {
            self.runs.clear();
            self.bytes = 0;
        }
        self.bytes += run.bytes;
        self.runs.push_back(run);
        while self.bytes > BYTES_MAX && self.runs.len() > 1 {
            self.bytes -= self.runs.pop_front().map_or(0, |run| run.bytes);
        }
    }
}

#[derive(Default)]
struct Inner {
    epoch: u64,
    rings: [Ring; FORMATS],
    pages: VecDeque<(String, Arc<Page>)>,
    pages_bytes: usize,
}

/// What readers share.
pub(crate) struct Recent {
    inner: Mutex<Inner>,
    /// One encodes, the others wait for it.
    turns: [tokio::sync::Mutex<()>; FORMATS],
    /// Few read old rows at once, so that many readers who catch up leave the machine to the receivers.
    cold: Semaphore,
    /// Those who wait for it, each with as many turns: who asks for much at once waits behind himself.
    waiting: Mutex<HashMap<Arc<str>, Weak<Semaphore>>>,
}

impl Default for Recent {
    fn default() -> Self {
        let (inner, turns, waiting) = Default::default();
        Self { inner, turns, cold: Semaphore::new(COLD_READS), waiting }
    }
}

impl Recent {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn to read old rows: first among one's own requests, then among all who ask.
    pub(crate) async fn turn(&self, who: &Arc<str>) -> Result<(OwnedSemaphorePermit, SemaphorePermit<'_>), Error> {
        let own = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let own = waiting.get(who).and_then(Weak::upgrade);
            own.unwrap_or_else(|| {
                waiting.retain(|_, own| own.strong_count() > 0);
                let own = Arc::new(Semaphore::new(COLD_READS));
                waiting.insert(Arc::clone(who), Arc::downgrade(&own));
                own
            })
        };
        let closed = |e: tokio::sync::AcquireError| Error::internal(e.to_string());
        let first = own.acquire_owned().await.map_err(closed)?;
        Ok((first, self.cold.acquire().await.map_err(closed)?))
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

    /// Takes in what is new, if a reader at `from` is near enough to share it.
    pub(crate) async fn extend(projection: &Arc<Projection>, format: Format, from: u64) -> Result<(), Error> {
        let own = &projection.recent;
        let size = projection.snapshot().size;
        if from + NEAR < size || own.lock().rings[format as usize].to() >= size {
            return Ok(());
        }
        let _turn = own.turns[format as usize].lock().await;
        let (epoch, to) = {
            let inner = own.lock();
            (inner.epoch, inner.rings[format as usize].to())
        };
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
            let runs = runs(&snapshot, format, &origin, begin)?;
            let mut inner = projection.recent.lock();
            if inner.epoch == epoch {
                runs.into_iter().for_each(|run| inner.rings[format as usize].push(run));
            }
            Ok(())
        });
        read.await.map_err(|e| Error::internal(format!("the events cannot be read: {e}")))?
    }

    /// The page from a seq on, if it is here up to where the page ends.
    pub(crate) fn page(&self, wish: &Wish, size: u64) -> Option<Page> {
        let inner = self.lock();
        let (ring, from) = (&inner.rings[wish.format as usize], wish.from);
        if ring.runs.is_empty() || from < ring.from() || (from >= ring.to() && from < size) {
            return None;
        }
        let mut page = Page::new(from, wish.limit, wish.bytes);
        let first = ring.runs.partition_point(|run| run.to <= from);
        for run in ring.runs.iter().skip(first) {
            let at = run.lines.partition_point(|line| line.seq < from);
            for line in run.lines[at..].iter().filter(|line| wish.filter.admits(line)) {
                if !page.take(Arc::clone(line)) {
                    return Some(page.ended(ring.to(), size));
                }
            }
        }
        Some(page.ended(ring.to(), size))
    }

    /// A page that somebody asked for before.
    pub(crate) fn kept(&self, key: &str) -> Option<Arc<Page>> {
        self.lock().pages.iter().find(|(kept, _)| kept == key).map(|(_, page)| Arc::clone(page))
    }

    /// Keeps a page that cannot change any more for others, unless something was erased since `epoch`.
    pub(crate) fn keep(&self, epoch: u64, key: String, page: &Arc<Page>) {
        let mut inner = self.lock();
        if inner.epoch != epoch || page.bytes > PAGES_BYTES_MAX / 4 {
            return;
        }
        inner.pages_bytes += page.bytes;
        inner.pages.push_back((key, Arc::clone(page)));
        while inner.pages_bytes > PAGES_BYTES_MAX {
            let Some((_, page)) = inner.pages.pop_front() else { break };
            inner.pages_bytes -= page.bytes;
        }
    }
}

/// The lines from a seq up to the end of a snapshot, or up to where they take as much memory as
/// there is for them.
fn runs(snapshot: &Snapshot, format: Format, origin: &str, begin: u64) -> Result<Vec<Run>, Error> {
    let mut runs = vec![Run { from: begin, to: begin, bytes: 64, lines: Vec::new() }];
    let (mut bytes, mut cut, mut counted) = (0, None, Counted::default());
    snapshot.read(&Wanted::all(Table::Events).seqs(begin..snapshot.size), |batch| {
        for at in (0..batch.num_rows()).step_by(STEP_ROWS) {
            let mut lines = Vec::new();
            let step = batch.slice(at, STEP_ROWS.min(batch.num_rows() - at));
            encode(format, (origin, &snapshot.log), &step, &mut counted, &mut lines)?;
            for line in lines {
                let last = runs.last().and_then(|run| run.lines.last()).map(|line| line.seq);
                // A run ends between records.
                if last != Some(line.seq) && runs.last().is_some_and(|run| run.bytes >= RUN_BYTES) {
                    bytes += runs.last().map_or(0, |run| run.bytes);
                    if bytes >= BYTES_MAX {
                        cut = Some(line.seq);
                        return Ok(false);
                    }
                    runs.push(Run { from: line.seq, to: line.seq, bytes: 64, lines: Vec::new() });
                }
                if let Some(run) = runs.last_mut() {
                    run.bytes += line.bytes();
                    run.lines.push(Arc::new(line));
                }
            }
        }
        Ok(true)
    })?;
    let ends: Vec<u64> = runs.iter().skip(1).map(|run| run.from).chain([cut.unwrap_or(snapshot.size)]).collect();
    runs.iter_mut().zip(ends).for_each(|(run, end)| run.to = end);
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(recent.waiting.lock().unwrap().len() <= 2, "who has gone is forgotten");
    }
}
