//! Pages: the events of a range of the log that match a filter, in seq order.
//!
//! A page looks at all records from one seq up to another, and names both; it holds all events
//! of every record that it touches. What it looks at is durable and projected, so a page that
//! was full never changes, but for what is erased, and for what another version of the product or of the
//! mapping makes otherwise (docs/events.md).

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array as _, UInt64Array};

use super::filter::Filter;
use super::kinds::Kinds;
use super::lines::{Counted, Format, Line, encode};
use super::recent::Recent;
use crate::error::Error;
use crate::projection::{Projection, Snapshot};
use crate::segments::{Table, Wanted};

/// Bytes of the events of a page, about; a page is full with as many.
pub(crate) const PAGE_BYTES: usize = 16 << 20;

/// A page whose filter finds little ends after this time, so that no reader waits for ever.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// One page of events.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The first seq that was looked at.
    pub(crate) from: u64,
    /// Where the next page begins.
    pub(crate) next: u64,
    pub(crate) lines: Vec<Arc<Line>>,
    /// Whether it has as many events as it may.
    pub(crate) full: bool,
    pub(crate) bytes: usize,
    limit: usize,
    bytes_max: usize,
}

impl Page {
    pub(crate) fn new(from: u64, limit: usize, bytes_max: usize) -> Self {
        Self { from, next: from, limit, bytes_max, ..Self::default() }
    }

    /// Adds an event; false if the page is full before it. A seq that has begun is finished, also
    /// beyond the limit.
    pub(crate) fn take(&mut self, line: Arc<Line>) -> bool {
        let begun = self.lines.last().is_some_and(|last| last.seq == line.seq);
        if !begun && (self.lines.len() >= self.limit || self.bytes >= self.bytes_max) {
            self.full = true;
            return false;
        }
        self.bytes += line.bytes();
        self.next = line.seq + 1;
        self.lines.push(line);
        true
    }

    /// The page, when all rows below `seen` were looked at, or it is full.
    pub(crate) fn ended(mut self, seen: u64) -> Self {
        self.full |= self.lines.len() >= self.limit;
        if !self.full {
            self.next = seen.max(self.from);
        }
        self
    }

    /// Whether it has as many events as were asked for.
    pub(crate) fn is_complete(&self) -> bool {
        self.limit > 0 && self.lines.len() >= self.limit
    }

    /// How many records gave no event here.
    pub(crate) fn skipped(&self) -> u64 {
        let mut seqs: Vec<u64> = self.lines.iter().map(|line| line.seq).collect();
        seqs.dedup();
        (self.next - self.from).saturating_sub(seqs.len() as u64)
    }
}

/// What page is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) from: u64,
    /// Records from here on are not looked at.
    pub(crate) to: u64,
    pub(crate) limit: usize,
    pub(crate) bytes: usize,
    pub(crate) filter: Arc<Filter>,
    pub(crate) format: Format,
}

/// The key under which others find what is made of the same events: the format, the filter and the rows
/// that may be seen.
pub(crate) fn shape(filter: &Filter, format: Format) -> Arc<str> {
    format!("{}/{}{:?}", format.name(), filter.key(), filter.rows).into()
}

/// Reads a page from a snapshot.
pub(crate) fn read(snapshot: &Snapshot, origin: &str, wish: &Wish) -> Result<Page, Error> {
    let end = wish.to.min(snapshot.size);
    let mut wanted = Wanted::all(Table::Events).seqs(wish.from..end);
    if !wish.filter.kinds.is_empty() {
        wanted = wanted.only("kind", wish.filter.kinds.iter().map(String::as_str));
    }
    let began = Instant::now();
    let mut page = Page::new(wish.from, wish.limit, wish.bytes);
    let mut seen = wish.from;
    let (mut stopped, mut counted) = (false, Counted::default());
    snapshot.read(&wanted, |batch| {
        let seqs = batch.column(0).as_any().downcast_ref::<UInt64Array>();
        let seqs = seqs.map_or(&[][..], |seqs| seqs.values());
        // Not more is encoded than the page can take.
        let mut at = 0;
        while at < seqs.len() {
            let step = (wish.limit + 1 - page.lines.len().min(wish.limit)).clamp(64, 1024).min(seqs.len() - at);
            let mut lines = Vec::with_capacity(step);
            encode(wish.format, (origin, &snapshot.log), &batch.slice(at, step), &mut counted, &mut lines)?;
            for line in lines.into_iter().filter(|line| wish.filter.admits(line)) {
                if !page.take(Arc::new(line)) {
                    return Ok(false);
                }
            }
            at += step;
        }
        seen = seqs.last().copied().unwrap_or(seen);
        stopped = began.elapsed() >= LOOK_MAX;
        Ok(!stopped)
    })?;
    if stopped && !page.full {
        // The last record may have more events behind: it is looked at again, whole.
        page.lines.retain(|line| line.seq < seen);
        return Ok(Page { next: seen, ..page });
    }
    Ok(page.ended(end))
}

/// A page: from what readers share, or from the rows.
pub(crate) async fn page(projection: &Arc<Projection>, wish: &Wish) -> Result<Page, Error> {
    let size = projection.snapshot().size;
    if wish.from >= wish.to.min(size) {
        return Ok(Page::new(wish.from, wish.limit, wish.bytes).ended(wish.from));
    }
    Recent::extend(projection, wish.format, wish.from, Kinds::of(&wish.filter.kinds)).await?;
    if let Some(page) = joined(projection, wish, size).await? {
        return Ok(page);
    }
    // A filter that finds little is pushed down into the rows.
    let _turn = projection.recent.turn(&wish.filter.who).await?;
    let (snapshot, own, wished) = (projection.snapshot(), Arc::clone(projection), wish.clone());
    // Reading segments blocks.
    let read = tokio::task::spawn_blocking(move || read(&snapshot, own.reader().origin(), &wished));
    read.await.map_err(|e| Error::internal(format!("the events cannot be read: {e}")))?
}

/// A page from lines that are encoded for all readers; `None` where it is better to look for its kinds in
/// the rows.
async fn joined(projection: &Arc<Projection>, wish: &Wish, size: u64) -> Result<Option<Page>, Error> {
    let (began, end) = (Instant::now(), wish.to.min(size));
    let mut page = Page::new(wish.from, wish.limit, wish.bytes);
    let (kinds, mut at) = (Kinds::of(&wish.filter.kinds), wish.from);
    while at < end {
        let run = match projection.recent.run_at(wish.format, kinds, at) {
            Some(run) => run,
            None if wish.filter.kinds.is_empty() => {
                Recent::read_at(projection, wish.format, at, &wish.filter.who).await?
            }
            None => return Ok(None),
        };
        for line in run.lines(at..end).iter().filter(|line| wish.filter.admits(line)) {
            if !page.take(Arc::clone(line)) {
                return Ok(Some(page.ended(end)));
            }
        }
        if run.to <= at {
            return Err(Error::internal("a stretch of the log has no end"));
        }
        at = run.to;
        if at < end && began.elapsed() >= LOOK_MAX {
            return Ok(Some(page.ended(at)));
        }
    }
    Ok(Some(page.ended(end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventRow;
    use proptest::prelude::*;

    fn snapshot(seqs: &[u64], size: u64) -> Snapshot {
        let kind = |seq: &u64| if seq.is_multiple_of(3) { "alert" } else { "tool_call" };
        let row = |seq: &u64| EventRow {
            seq: *seq,
            kind: kind(seq).into(),
            service: Some(format!("s{}", seq % 2)),
            attributes: "{}".into(),
            ..EventRow::default()
        };
        let rows: Vec<EventRow> = seqs.iter().map(row).collect();
        Snapshot::of_events(rows.chunks(7).map(EventRow::batch).collect(), size)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Any page sizes, any filter: no gap, no doubles, in order; and what was skipped is counted.
        #[test]
        fn pages_join_without_gap_or_double(
            gaps in proptest::collection::vec(0u64..4, 0..60), limits in proptest::collection::vec(1usize..9, 1..8),
            alerts: bool, service: bool,
        ) {
            let mut seq = 0;
            let seqs: Vec<u64> = gaps.iter().map(|gap| { seq += gap; seq }).collect();
            let mut filter = Filter::default();
            if alerts { filter.kinds = vec!["alert".into()]; }
            if service { filter.services = vec!["s1".into()]; }
            let filter = Arc::new(filter);
            let snapshot = snapshot(&seqs, seq + 5);
            let (mut got, mut from, mut skipped) = (Vec::new(), 0, 0);
            for limit in limits.iter().cycle() {
                let wish = Wish { to: u64::MAX, from, limit: *limit, bytes: PAGE_BYTES, filter: filter.clone(), format: Format::Raw };
                let page = read(&snapshot, "log", &wish).unwrap();
                got.extend(page.lines.iter().map(|line| line.seq));
                prop_assert!(page.next >= from && page.from == from);
                skipped += page.skipped();
                from = page.next;
                if from >= snapshot.size { break; }
                prop_assert!(page.full);
            }
            let wants = |s: &u64| (!alerts || s.is_multiple_of(3)) && (!service || s % 2 == 1);
            let want: Vec<u64> = seqs.into_iter().filter(wants).collect();
            let mut distinct = got.clone();
            distinct.dedup();
            prop_assert_eq!(skipped, snapshot.size - distinct.len() as u64);
            prop_assert_eq!(got, want);
        }
    }
}
