//! Asking the index: for one snapshot, as the ledger knew it at one point.

use std::collections::HashSet;
use std::ops::Range;

use super::{COLUMNS, Kind, MemoryRun, Posting, Role, Run, entries};
use crate::Error;
use crate::projection::{AsOf, Snapshot};
use crate::segments::{Table, Wanted};

/// A gap of up to this many records is read once and kept; a larger one is looked through
/// for each id, by the segments' own filters.
const FILL_RECORDS_MAX: u64 = 1 << 20;

/// Finds the events of ids.
pub(crate) struct Finder<'a> {
    snapshot: &'a Snapshot,
    /// Records below this seq were known.
    end: u64,
    /// What fills gaps of the index, for this finder alone.
    filled: Vec<Run>,
    unread: Vec<Range<u64>>,
    /// For a caller who may see some rows: one over all of them. What it finds is looked for among his.
    beneath: Option<Box<Finder<'a>>>,
}

impl<'a> Finder<'a> {
    /// Over what the ledger knew.
    pub(crate) fn new(snapshot: &'a Snapshot, as_of: AsOf) -> Result<Self, Error> {
        let end = snapshot.end_of(as_of)?;
        let (mut filled, mut unread) = (Vec::new(), Vec::new());
        if let Some(beneath) = &snapshot.beneath {
            let beneath = Some(Box::new(Finder::new(beneath, as_of)?));
            return Ok(Self { snapshot, end, filled, unread, beneath });
        }
        for gap in snapshot.ids.gaps(end) {
            if gap.end - gap.start <= FILL_RECORDS_MAX {
                filled.push(Run::Memory(fill(snapshot, gap)?.into()));
            } else {
                unread.push(gap);
            }
        }
        Ok(Self { snapshot, end, filled, unread, beneath: None })
    }

    /// Records below this seq were known.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The events of an id, in seq order.
    pub(crate) fn find(&self, kind: Kind, id: &str) -> Result<Vec<Posting>, Error> {
        if let Some(beneath) = &self.beneath {
            let mut found = beneath.find(kind, id)?;
            let seqs = found.iter().map(|posting| posting.seq()).collect();
            let shown = self.snapshot.shown_among(&[Table::Events], seqs)?;
            found.retain(|posting| shown.contains(&posting.seq()));
            return Ok(found);
        }
        let key = kind.key(id);
        let mut found = Vec::new();
        for run in self.snapshot.ids.runs().iter().filter(|run| run.range().start < self.end) {
            let before = found.len();
            if let Err(error) = run.find(key, &mut found) {
                // An index can be made again; the rows tell the same.
                tracing::warn!(%error, "the index is left aside for a range");
                found.truncate(before);
                self.look(kind, id, run.range(), &mut found)?;
            }
        }
        for run in &self.filled {
            run.find(key, &mut found)?;
        }
        for range in &self.unread {
            self.look(kind, id, range.clone(), &mut found)?;
        }
        found.retain(|posting| posting.seq() < self.end);
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The seqs of an id's events that have one of these roles.
    pub(crate) fn seqs(&self, kind: Kind, id: &str, roles: &[Role]) -> Result<Vec<u64>, Error> {
        let found = self.find(kind, id)?.into_iter().filter(|posting| roles.contains(&posting.role()));
        let mut seqs: Vec<u64> = found.map(Posting::seq).collect();
        seqs.dedup();
        Ok(seqs)
    }

    /// Looks the rows of a range through.
    fn look(&self, kind: Kind, id: &str, range: Range<u64>, found: &mut Vec<Posting>) -> Result<(), Error> {
        let key = kind.key(id);
        for column in kind.columns() {
            let wanted = Wanted::all(Table::Events).columns(&COLUMNS).seqs(range.clone()).only(column, [id]);
            self.snapshot.read(&wanted, |batch| {
                found.extend(entries(batch).into_iter().filter(|(k, _)| *k == key).map(|(_, posting)| posting));
                Ok(true)
            })?;
        }
        Ok(())
    }

    /// How many tool calls name each grant of the index, by key; `None` where that cannot be told at once.
    pub(crate) fn uses(&self, keys: &HashSet<u64>) -> Result<Option<std::collections::HashMap<u64, u64>>, Error> {
        // The index does not say who may see what it counts.
        if !self.unread.is_empty() || self.beneath.is_some() {
            return Ok(None);
        }
        let mut out = std::collections::HashMap::new();
        for run in self.snapshot.ids.runs().iter().filter(|run| run.range().start < self.end).chain(&self.filled) {
            let mut lists = super::file::Lists::of(run)?;
            while let Some((key, postings)) = lists.advance()? {
                if keys.contains(&key) {
                    let uses = postings.iter().filter(|p| p.role() == Role::Use && p.seq() < self.end).count();
                    *out.entry(key).or_default() += uses as u64;
                }
            }
        }
        Ok(Some(out))
    }
}

/// The postings of a range, read off its rows.
pub(super) fn fill(snapshot: &Snapshot, range: Range<u64>) -> Result<MemoryRun, Error> {
    let mut run = MemoryRun { range: range.clone(), entries: Vec::new() };
    snapshot.read(&Wanted::all(Table::Events).columns(&COLUMNS).seqs(range), |batch| {
        run.entries.extend(entries(batch));
        Ok(true)
    })?;
    run.entries.sort_unstable();
    run.entries.dedup();
    Ok(run)
}
