//! Keeping the index: opening it, writing what is in memory, merging, filling gaps,
//! forgetting what was erased. Nothing here can fail the projection: what is not indexed
//! is looked through.
//!
//! What a crash leaves: files that overlap others, or that were never renamed. The widest
//! ones are taken at the next opening, the others deleted; what is missing is made again
//! from the rows.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use custody_store::system::SeqSet;

use super::file::{About, write};
use super::{FileRun, Ids, MEMORY_ENTRIES_MAX, Run, find};
use crate::Error;
use crate::projection::{Projection, Snapshot};
use crate::segments::lock;

/// The folder of the index in a data directory.
const FOLDER: &str = "index";

/// So many files of like size are merged into one.
pub(super) const MERGED: usize = 8;

/// A gap is filled in steps of so many records.
const STEP_RECORDS: u64 = 1_000_000;

/// Postings that are worth a file when the process ends.
const WORTH_A_FILE: usize = 8192;

/// What the index needs beside the snapshot.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    folder: OnceLock<PathBuf>,
    names: AtomicU64,
    /// Held while files are written or replaced; taken before `books`.
    busy: Mutex<()>,
}

impl Projection {
    /// Takes over the files of the folder that fit this log. Only who owns the log may
    /// delete the others, and write new ones.
    pub(crate) fn open_index(&self) {
        let folder = self.reader.dir().join(FOLDER);
        if self.is_own && custody_store::make_dir(&folder).is_ok() {
            let _ = self.index.folder.set(folder.clone());
        }
        let files = self.fitting(&folder);
        let runs: Vec<Run> = files.into_iter().map(|run| Run::File(Arc::new(run))).collect();
        if !runs.is_empty() {
            self.put_ids(|ids| ids.runs = Arc::new(runs));
        }
        if self.is_own {
            let mended = self.index_without(&|since| self.erased_since(since));
            told(mended, "what was erased is not yet out of the index");
        }
    }

    /// The files that are of this log, as it is, without overlaps.
    fn fitting(&self, folder: &Path) -> Vec<FileRun> {
        let mut found = Vec::new();
        for path in names(folder) {
            let number = path.file_stem().and_then(|s| s.to_str()?.rsplit_once("-g")?.1.parse::<u64>().ok());
            self.index.names.fetch_max(number.unwrap_or(0), Ordering::SeqCst);
            let run = FileRun::open(&path)
                .ok()
                .filter(|run| self.about(run.range(), run.about.erased_to).is_ok_and(|about| about == run.about));
            match run {
                Some(run) => found.push(run),
                None => self.delete(&path),
            }
        }
        found.sort_by_key(|run| (run.range().start, std::cmp::Reverse(run.range().end)));
        let mut end = 0;
        found.retain(|run| {
            let fits = run.range().start >= end;
            if fits {
                end = run.range().end;
            } else {
                self.delete(&run.path);
            }
            fits
        });
        found
    }

    fn about(&self, range: Range<u64>, erased_to: u64) -> Result<About, Error> {
        let root = self.reader.root_at(range.end).map_err(Error::store)?;
        let origin = *blake3::hash(self.reader.origin().as_bytes()).as_bytes();
        Ok(About { range, erased_to, origin, root })
    }

    fn delete(&self, path: &Path) {
        if self.is_own {
            let _ = std::fs::remove_file(path);
        }
    }

    fn put_ids(&self, change: impl FnOnce(&mut Ids)) {
        let _books = lock(&self.books);
        let mut next = Snapshot::clone(&self.snapshot());
        change(&mut next.ids);
        self.set(next);
    }

    /// Whether there is something to do for [`Self::tend_index`].
    pub(crate) fn index_is_due(&self) -> bool {
        let snapshot = self.snapshot();
        self.index.folder.get().is_some()
            && (snapshot.ids.in_memory() >= MEMORY_ENTRIES_MAX
                || !snapshot.ids.gaps(snapshot.size).is_empty()
                || mergeable(snapshot.ids.runs()).is_some())
    }

    /// Writes, fills and merges until nothing is due.
    pub(crate) fn tend_index(&self) {
        while self.is_well() && self.index_is_due() {
            if let Err(error) = self.index_step() {
                tracing::warn!(%error, "the index is not kept; rows are looked through instead");
                return;
            }
        }
    }

    fn index_step(&self) -> Result<(), Error> {
        let _busy = lock(&self.index.busy);
        let snapshot = self.snapshot();
        if let Some(gap) = snapshot.ids.gaps(snapshot.size).into_iter().next() {
            let piece = gap.start..gap.end.min(gap.start + STEP_RECORDS);
            let run = Run::Memory(find::fill(&snapshot, piece)?.into());
            self.put_ids(|ids| ids.replace(run));
            return Ok(());
        }
        if snapshot.ids.in_memory() >= MEMORY_ENTRIES_MAX {
            return self.write_memory(&snapshot);
        }
        match mergeable(snapshot.ids.runs()) {
            Some(picked) => self.rewrite(&snapshot.ids.runs()[picked], &SeqSet::default(), None),
            None => Ok(()),
        }
    }

    /// Writes the first neighbouring runs in memory as one file.
    fn write_memory(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let in_memory = |run: &Run| matches!(run, Run::Memory(_));
        let runs = snapshot.ids.runs();
        let Some(start) = runs.iter().position(in_memory) else { return Ok(()) };
        let next =
            |i: &usize| in_memory(&runs[*i]) && (*i == start || runs[*i - 1].range().end == runs[*i].range().start);
        let end = (start..runs.len()).take_while(next).count() + start;
        self.rewrite(&runs[start..end], &SeqSet::default(), None)
    }

    /// Puts one file in the place of neighbouring runs.
    fn rewrite(&self, runs: &[Run], erased: &SeqSet, erased_to: Option<u64>) -> Result<(), Error> {
        let (Some(folder), Some(first), Some(last)) = (self.index.folder.get(), runs.first(), runs.last()) else {
            return Ok(());
        };
        let range = first.range().start..last.range().end;
        let of_files = runs.iter().filter_map(|run| match run {
            Run::File(file) => Some(file.about.erased_to),
            Run::Memory(_) => None,
        });
        // Rows in memory are without whatever was erased before.
        let erased_to = erased_to.or_else(|| of_files.min()).unwrap_or_else(|| lock(&self.books).erased_to);
        let number = self.index.names.fetch_add(1, Ordering::SeqCst) + 1;
        let path = folder.join(format!("ids-{:012}-{:012}-g{number:06}.idx", range.start, range.end));
        let file = write(&path, runs, &self.about(range, erased_to)?, erased)?;
        self.put_ids(|ids| ids.replace(Run::File(Arc::new(file))));
        // Who still reads an old one has it open.
        for run in runs {
            if let Run::File(file) = run {
                self.delete(&file.path);
            }
        }
        Ok(())
    }

    /// Takes erased records out of the index.
    pub(crate) fn forget_in_index(&self, erased: &SeqSet) -> Result<(), Error> {
        self.put_ids(|ids| ids.forget(erased));
        self.index_without(&|_| Ok(erased.clone()))
    }

    fn index_without(&self, erased_since: &dyn Fn(u64) -> Result<SeqSet, Error>) -> Result<(), Error> {
        let _busy = lock(&self.index.busy);
        let head = self.reader.head().size;
        for run in self.snapshot().ids.runs() {
            let Run::File(file) = run else { continue };
            let erased = erased_since(file.about.erased_to)?;
            let range = file.range();
            if erased.ranges().iter().any(|r| r.start < range.end && range.start < r.end) {
                self.rewrite(std::slice::from_ref(run), &erased, Some(head))?;
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn write_all_for_test(&self) {
        let _busy = lock(&self.index.busy);
        self.write_memory(&self.snapshot()).unwrap();
    }

    /// What is in memory is written when the process ends, if it is worth a file.
    pub(crate) fn close_index(&self) {
        let _busy = lock(&self.index.busy);
        let snapshot = self.snapshot();
        if snapshot.ids.in_memory() >= WORTH_A_FILE {
            told(self.write_memory(&snapshot), "the newest part of the index is not written");
        }
    }
}

fn told(done: Result<(), Error>, what: &str) {
    if let Err(error) = done {
        tracing::warn!(%error, "{what}; it is made again from the rows");
    }
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(folder).into_iter().flatten().flatten();
    listed.map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "idx" || e == "new")).collect()
}

/// Neighbouring files of like size, if they are many.
fn mergeable(runs: &[Run]) -> Option<Range<usize>> {
    let level = |run: &Run| match run {
        Run::File(file) => Some((file.entries / MEMORY_ENTRIES_MAX as u64).max(1).ilog(MERGED as u64)),
        Run::Memory(_) => None,
    };
    let fits = |start: &usize| {
        let some = &runs[*start..*start + MERGED];
        let alike = some.iter().all(|run| level(run).is_some() && level(run) == level(&some[0]));
        alike && some.windows(2).all(|two| two[0].range().end == two[1].range().start)
    };
    let last = runs.len().checked_sub(MERGED)?;
    (0..=last).rev().find(fits).map(|start| start..start + MERGED)
}
