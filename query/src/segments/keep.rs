//! Keeping segments: opening them, sealing what is in memory, merging, forgetting what
//! was erased, making all of it again.
//!
//! Locks, in this order: `rewriting` (segments are read to be written anew), `sealing`
//! (rows in memory are being written), `stepping` (rows are being made from the log),
//! `books` (a new snapshot, and the manifest with it).
//!
//! What a crash leaves: files that no manifest names (cleared at the next opening), or
//! files that the manifest has ceased to name (cleared too). The manifest is replaced in
//! one step, after its files are durable, so no row is doubled or lost by it.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use custody_store::Reader;
use custody_store::system::SeqSet;

use super::manifest::{self, Loaded, Manifest};
use super::{Place, Segment, SegmentLimits, Tail, compact, write};
use crate::Error;
use crate::projection::{Projection, Snapshot};
use crate::rows::own_bytes;

/// The folder of segments in a data directory.
const FOLDER: &str = "segments";

/// What was made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Segments that were looked at or replaced; once also those that the opening had found unfit.
    pub segments: usize,
    /// Those of them that were made again.
    pub made: usize,
    /// Records of those.
    pub records: u64,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Projection {
    /// Opens the segments of a log that this process alone writes to.
    pub(crate) fn open_own(reader: Reader, limits: SegmentLimits) -> Result<Self, Error> {
        let place = Place::folder(&reader.dir().join(FOLDER))?;
        Self::open_at(reader, limits, place)
    }

    /// As [`Self::open_own`], at another place.
    pub(super) fn open_at(reader: Reader, limits: SegmentLimits, place: Arc<Place>) -> Result<Self, Error> {
        let loaded = Manifest::load(&place, &reader, true).unwrap_or_else(|error| {
            tracing::warn!(%error, "the segments are made again from the log");
            Loaded::default()
        });
        let named: HashSet<String> =
            loaded.segments.iter().flat_map(|s| &s.files).map(|file| file.entry.path.clone()).collect();
        place.keep_only(&|name| name == manifest::NAME || named.contains(name))?;
        let own = Self::empty(reader, limits, Some(place));
        own.files.store(loaded.generation, Ordering::SeqCst);
        own.take_over(loaded)?;
        own.open_index();
        Ok(own)
    }

    /// Looks at the segments of a log that others may write to. Changes nothing there; what
    /// they lack is made in a temporary folder, if it is too much for memory.
    pub(crate) fn open_to_look(reader: Reader, limits: SegmentLimits) -> Result<Self, Error> {
        let place = Place::existing(&reader.dir().join(FOLDER))?;
        let loaded = place.as_ref().map(|place| Manifest::load(place, &reader, false)).transpose();
        let loaded = loaded.unwrap_or_else(|error| {
            tracing::warn!(%error, "the segments are left aside");
            None
        });
        let looking = Self::empty(reader, limits, None);
        looking.take_over(loaded.unwrap_or_default())?;
        looking.open_index();
        Ok(looking)
    }

    /// Rewrites segments that hold what was erased while nobody minded them. For commands
    /// that change a log by themselves.
    pub fn tidy(reader: Reader) -> Result<(), Error> {
        let dir = reader.dir().join(FOLDER);
        if !dir.is_dir() {
            return Ok(());
        }
        Self::open_own(reader, SegmentLimits::default()).map(drop)
    }

    /// Begins with what was loaded, without what was erased, and fills its gaps.
    fn take_over(&self, loaded: Loaded) -> Result<(), Error> {
        let head = self.reader.head().size;
        let erased = self.erased_since(loaded.erased_to)?;
        let (mut segments, replaced) = self.purged(&loaded.segments, &erased)?;
        lock(&self.books).left_aside = loaded.left_aside;
        let mut from = 0;
        let mut filled = Vec::with_capacity(segments.len());
        for segment in segments.drain(..) {
            if segment.from > from {
                filled.extend(self.build(from..segment.from, &mut |_| {})?);
            }
            from = segment.to;
            filled.push(segment);
        }
        self.publish(Some(head), |next| {
            next.size = from;
            next.tail = Tail::at(from);
            next.segments = Arc::new(filled);
        })?;
        if replaced.is_empty() { Ok(()) } else { self.clear() }
    }

    /// What records from a seq on say was erased.
    pub(crate) fn erased_since(&self, since: u64) -> Result<SeqSet, Error> {
        let told = self.reader.erasures().map_err(Error::store)?;
        let told = told.into_iter().filter(|(said_by, _)| *said_by >= since);
        Ok(told.fold(SeqSet::default(), |all, (_, set)| all.union(&set)))
    }

    /// The segments without erased rows, and those that were replaced.
    fn purged(&self, segments: &[Segment], erased: &SeqSet) -> Result<(Vec<Segment>, Vec<Segment>), Error> {
        let (mut out, mut replaced) = (Vec::new(), Vec::new());
        for segment in segments {
            if segment.files.is_empty() || !compact::touches(erased, segment.from..segment.to) {
                out.push(segment.clone());
                continue;
            }
            let range = segment.from..segment.to;
            let place = self.place()?;
            match compact::rewrite(self.spot(range.clone())?, &place, std::slice::from_ref(segment), erased, None) {
                Ok(rewritten) => out.push(rewritten),
                Err(error) => {
                    tracing::warn!(%error, "a segment with erased rows is made again from the log");
                    out.extend(self.build(range, &mut |_| {})?);
                }
            }
            replaced.push(segment.clone());
        }
        Ok((out, replaced))
    }

    /// Makes the segments of a range again from the log, each as large as merging would make it.
    pub(crate) fn build(&self, range: Range<u64>, progress: &mut dyn FnMut(u64)) -> Result<Vec<Segment>, Error> {
        let mut out = Vec::new();
        let mut from = range.start;
        while from < range.end {
            let to = range.end.min(from.saturating_add(self.far(from, range.end)?));
            // A step ends where a block does.
            let to =
                self.reader.block_at(to - 1).map_err(Error::store)?.map_or(to, |block| block.commitments.end_seq());
            let to = to.min(range.end);
            let mut filling = write::Filling::new(self.spot(from..to)?);
            while from < to {
                let mut rows = self.room(to - from);
                let mut tail = Tail::at(from);
                tail.to = self.project(&mut rows, from, to)?;
                let _ = self.keep(rows, tail.to - from, &mut tail);
                filling.add(&tail)?;
                from = tail.to;
                progress(from);
            }
            out.push(filling.finish()?);
        }
        Ok(out)
    }

    /// How many records a segment from a seq on may have: as many as merging would put into one, by what some of them weigh.
    fn far(&self, from: u64, end: u64) -> Result<u64, Error> {
        const SAMPLES: u64 = 8;
        let most = self.limits.merged_records_max.max(self.limits.records_max).min(end - from);
        let mut record_bytes = 1;
        for sample in 0..SAMPLES {
            let block = self.reader.block_at(from + most * sample / SAMPLES).map_err(Error::store)?;
            let bytes = block.as_ref().and_then(|block| Some(block.content.as_ref()?.payload().len() as u64));
            let records = block.map_or(1, |block| block.commitments.end_seq() - block.commitments.first_seq).max(1);
            record_bytes = record_bytes.max(bytes.unwrap_or(0) / records);
        }
        Ok(most.min(compact::MERGED_BYTES_MAX / record_bytes).max(1))
    }

    /// Publishes a changed snapshot, and the manifest before it.
    fn publish(&self, erased_to: Option<u64>, change: impl FnOnce(&mut Snapshot)) -> Result<(), Error> {
        let mut books = lock(&self.books);
        let mut next = Snapshot::clone(&self.snapshot());
        change(&mut next);
        let erased_to = erased_to.unwrap_or(books.erased_to);
        if let (true, Some(place)) = (self.is_own, self.place.get()) {
            let generation = self.files.load(Ordering::SeqCst);
            Manifest::save(place, self.reader.origin(), (generation, erased_to), &next.segments)?;
            // A crash here: the new manifest holds; what it has ceased to name is cleared at the next opening.
            place.step()?;
        }
        books.erased_to = erased_to;
        self.set(next);
        Ok(())
    }

    /// Lays the rows in memory aside to be sealed, if it is time.
    pub(crate) fn freeze(&self, is_wanted: impl FnOnce(&Tail) -> bool) -> bool {
        let _books = lock(&self.books);
        let current = self.snapshot();
        if current.frozen.is_some() || !is_wanted(&current.tail) {
            return false;
        }
        let mut next = Snapshot::clone(&current);
        let rest = Tail::at(next.tail.to);
        next.frozen = Some(Arc::new(std::mem::replace(&mut next.tail, rest)));
        self.set(next);
        true
    }

    /// Seals what was laid aside.
    pub(crate) fn seal(&self) -> Result<(), Error> {
        let _sealing = lock(&self.sealing);
        let Some(frozen) = self.snapshot().frozen.clone() else { return Ok(()) };
        let spot = self.fresh(frozen.from..frozen.to)?;
        let segment = write::of_tail(spot, &frozen)?;
        self.publish(None, |next| {
            Arc::make_mut(&mut next.segments).push(segment);
            next.frozen = None;
        })
    }

    /// Where the rows of a range are written for the first time.
    fn fresh(&self, range: Range<u64>) -> Result<write::Spot, Error> {
        let is_merged_later = range.end - range.start < self.limits.merged_records_max / 2;
        let spot = self.spot(range)?;
        Ok(if is_merged_later { spot.quick() } else { spot })
    }

    /// Where the rows of a range are written.
    fn spot(&self, range: Range<u64>) -> Result<write::Spot, Error> {
        let copied_rows_min = self.limits.copied_rows_min;
        write::Spot::new(&self.place()?, &self.reader, range, &self.files, copied_rows_min)
    }

    /// Merges some neighbouring segments; false if there are none to merge.
    pub(crate) fn merge(&self) -> Result<bool, Error> {
        let _rewriting = lock(&self.rewriting);
        let segments = Arc::clone(&self.snapshot().segments);
        let Some(picked) = compact::pick(&segments, self.limits.merged_records_max) else { return Ok(false) };
        let old = &segments[picked];
        let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(false) };
        let (place, spot) = (self.place()?, self.spot(first.from..last.to)?);
        let range = first.from..last.to;
        let merged = match compact::rewrite(spot, &place, old, &SeqSet::default(), Some(&self.stop)) {
            Ok(merged) => vec![merged],
            Err(error) if self.stop.load(Ordering::Relaxed) => return Err(error),
            Err(error) => {
                // Else nothing behind a damaged file would ever be merged.
                tracing::warn!(%error, "segments that cannot be merged are made again from the log");
                self.build(range.clone(), &mut |_| {})?
            }
        };
        self.replace(range, merged)?;
        Ok(true)
    }

    /// Puts segments in the place of those of a range, and has those deleted when unused.
    pub(super) fn replace(&self, range: Range<u64>, by: Vec<Segment>) -> Result<(), Error> {
        let mut old = Vec::new();
        self.publish(None, |next| {
            let segments = Arc::make_mut(&mut next.segments);
            let start = segments.partition_point(|s| s.from < range.start);
            let end = segments.partition_point(|s| s.to <= range.end);
            old = segments.splice(start..end, by).collect();
        })?;
        old.iter().flat_map(|segment| &segment.files).for_each(|file| file.replace());
        Ok(())
    }

    /// Deletes all files but those of the newest snapshot at once, also from under queries
    /// that read an older one: what was erased must be gone. Only while nothing is written.
    fn clear(&self) -> Result<(), Error> {
        let (true, Some(place)) = (self.is_own, self.place.get()) else { return Ok(()) };
        let segments = Arc::clone(&self.snapshot().segments);
        let named: HashSet<&str> = segments.iter().flat_map(|s| &s.files).map(|f| f.entry.path.as_str()).collect();
        place.keep_only(&|name| name == manifest::NAME || named.contains(name))
    }

    /// Forgets the rows of erased records, in memory and in files; they are gone when
    /// this returns.
    pub fn forget(&self) -> Result<(), Error> {
        let _rewriting = lock(&self.rewriting);
        let _sealing = lock(&self.sealing);
        let _stepping = lock(&self.stepping);
        let head = self.reader.head().size;
        let since = lock(&self.books).erased_to;
        let erased = self.erased_since(since)?;
        let (segments, replaced) = self.purged(&self.snapshot().segments, &erased)?;
        // Before, too: whoever reads from here on knows what was erased, and what it is that he does not find.
        self.recent.clear();
        self.publish(Some(head), |next| {
            next.segments = Arc::new(segments);
            let tails = next.frozen.as_mut().map(Arc::make_mut).into_iter().chain([&mut next.tail]);
            tails.for_each(|tail| tail.forget(&erased));
        })?;
        self.forget_in_index(&erased)?;
        self.recent.clear();
        if erased.is_empty() || replaced.is_empty() { Ok(()) } else { self.clear() }
    }

    /// Throws segments away and makes them again from the log, while rows come in and
    /// queries go on; with `only_damaged` only those whose bytes are not what was written.
    /// `progress` is told how far it is, and how far it has to go.
    pub fn rebuild(&self, only_damaged: bool, progress: &mut dyn FnMut(u64, u64)) -> Result<Rebuilt, Error> {
        let rewriting = lock(&self.rewriting);
        let segments = Arc::clone(&self.snapshot().segments);
        let end = segments.last().map_or(0, |segment| segment.to);
        let (made, records) = std::mem::take(&mut lock(&self.books).left_aside);
        let mut rebuilt = Rebuilt { segments: segments.len().max(made), made, records };
        for segment in segments.iter() {
            let range = segment.from..segment.to;
            let is_sound = || segment.files.iter().all(|file| file.sound().is_ok());
            if !only_damaged || !is_sound() {
                let made = self.build(range.clone(), &mut |done| progress(done, end))?;
                self.replace(range, made)?;
                rebuilt.made += 1;
                rebuilt.records += segment.records();
            }
            progress(segment.to, end);
        }
        drop((rewriting, segments));
        while self.merge()? {}
        self.sweep()?;
        Ok(rebuilt)
    }

    /// Deletes files that were replaced and that nothing reads any more.
    pub(crate) fn sweep(&self) -> Result<(), Error> {
        self.place.get().map_or(Ok(()), |place| place.sweep())
    }

    /// Where segments are written: the log's own folder, or a temporary one.
    fn place(&self) -> Result<Arc<Place>, Error> {
        if let Some(place) = self.place.get() {
            return Ok(Arc::clone(place));
        }
        let place = Place::scratch()?;
        Ok(Arc::clone(self.place.get_or_init(|| place)))
    }
}

impl Tail {
    pub(crate) fn forget(&mut self, erased: &SeqSet) {
        if !compact::touches(erased, self.from..self.to) {
            return;
        }
        for batches in &mut self.tables {
            for batch in batches.iter_mut() {
                // What cannot be filtered is not kept.
                *batch = compact::without(batch, erased).unwrap_or_else(|_| batch.slice(0, 0));
            }
            batches.retain(|batch| batch.num_rows() > 0);
        }
        self.bytes = self.tables.iter().flatten().map(own_bytes).sum();
    }
}
