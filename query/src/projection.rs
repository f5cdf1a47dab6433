//! From the log to rows: a thread follows the log, decodes what is new, and
//! publishes a new snapshot. Every reader keeps the snapshot that it began with.
//! Rows are in memory first, and sealed when they are many: see `segments`.

mod making;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use custody_store::Reader;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::execution::cache::cache_manager::CacheManagerConfig;
use tokio::sync::watch;

use crate::Error;
use crate::caller::RowFilter;
use crate::ids::{Ids, Keeper};
use crate::lookup::Log;
use crate::rows::Time;
use crate::segments::{Place, Segment, SegmentLimits, Tail, lock};

use making::Shape;

pub(crate) use making::Rows;

/// Records are published in steps of about this many.
const STEP_RECORDS: u64 = 8192;

/// Steps of fewer records do not say what the next are like.
const SHAPE_RECORDS_MIN: usize = 256;

/// Or when this many bytes were read.
const STEP_BYTES: usize = 32 << 20;

/// The rows of all records below one size of the log: sealed ones, and those in memory.
/// Never changes.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All records below this seq are in.
    pub size: u64,
    /// Sealed rows, in seq order and without gaps from 0 on.
    pub(crate) segments: Arc<Vec<Segment>>,
    /// Rows behind them that are being sealed.
    pub(crate) frozen: Option<Arc<Tail>>,
    /// The newest rows.
    pub(crate) tail: Tail,
    /// Which of the rows are shown: see [`Self::seen_by`].
    pub(crate) visible: RowFilter,
    /// Where the events of an id are.
    pub(crate) ids: Ids,
    /// The log that all of it is made from.
    pub(crate) log: Log,
    /// For a caller who may see some rows: all of them, to find out by id where rows lie. What is shown is
    /// read off this snapshot, never off that one.
    pub(crate) beneath: Option<Arc<Snapshot>>,
}

/// What an answer shall be limited to: what the ledger knew then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AsOf {
    /// Everything.
    #[default]
    Now,
    /// Records up to and including this seq.
    Seq(u64),
    /// Records that were taken up to this time.
    Time(Time),
}

impl AsOf {
    /// Whether a record was known by then.
    pub(crate) fn holds(self, seq: u64, ingest_time: Time) -> bool {
        match self {
            Self::Now => true,
            Self::Seq(last) => seq <= last,
            Self::Time(last) => ingest_time <= last,
        }
    }
}

impl Snapshot {
    /// The rows in memory, in seq order.
    pub(crate) fn in_memory(&self) -> impl Iterator<Item = &Tail> {
        self.frozen.as_deref().into_iter().chain([&self.tail])
    }

    /// How many segments there are, the bytes of their files, and bytes of rows in memory.
    pub fn extent(&self) -> (usize, u64, usize) {
        let bytes = self.segments.iter().map(Segment::bytes).sum();
        (self.segments.len(), bytes, self.in_memory().map(|tail| tail.bytes).sum())
    }

    /// Where its sealed rows are.
    pub(crate) fn places(&self) -> Vec<Arc<Place>> {
        let mut places: Vec<Arc<Place>> = Vec::new();
        for file in self.segments.iter().flat_map(|segment| &segment.files) {
            if !places.iter().any(|place| Arc::ptr_eq(place, &file.place)) {
                places.push(Arc::clone(&file.place));
            }
        }
        places
    }

    /// A snapshot of events alone, all in memory.
    #[cfg(test)]
    pub(crate) fn of_events(batches: Vec<RecordBatch>, size: u64) -> Self {
        let mut tail = Tail { to: size, ..Tail::default() };
        tail.tables[crate::segments::Table::Events as usize] = batches;
        Self { size, tail, ..Self::default() }
    }
}

/// The projection of one log: its newest snapshot, and who waits for the next.
pub struct Projection {
    pub(crate) reader: Reader,
    pub(crate) limits: SegmentLimits,
    /// Whether segments are written to the log's own folder.
    pub(crate) is_own: bool,
    pub(crate) place: OnceLock<Arc<Place>>,
    /// Counts up for every segment that is written: names are never used again.
    pub(crate) files: AtomicU64,
    pub(crate) rewriting: Mutex<()>,
    pub(crate) sealing: Mutex<()>,
    pub(crate) stepping: Mutex<()>,
    pub(crate) books: Mutex<Books>,
    /// The checks that follow it, if any do.
    pub(crate) checks: OnceLock<Arc<crate::checks::Live>>,
    pub(crate) index: Keeper,
    /// What the newest step was like, so that the next has room for as much.
    shape: Mutex<Shape>,
    current: RwLock<Arc<Snapshot>>,
    visible: watch::Sender<u64>,
    /// The newest events, encoded for all who follow them.
    pub(crate) recent: crate::serve::events::Recent,
    pub(crate) stop: AtomicBool,
}

/// What is kept beside the snapshot.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// Erasures that records below this seq tell of are done in all rows.
    pub(crate) erased_to: u64,
    /// Segments that the opening could not use and made again, and of how many records they are, until a rebuild told.
    pub(crate) left_aside: (usize, u64),
}

impl Projection {
    /// Projects all that the reader has, once, to look at it: nothing is written to the
    /// log's directory. What its segments lack is made in memory, or in a temporary folder.
    pub fn of(reader: Reader) -> Result<Arc<Self>, Error> {
        apart(|| {
            let projection = Self::open_to_look(reader, SegmentLimits::default())?;
            projection.catch_up()?;
            Ok(Arc::new(projection))
        })
    }

    pub(crate) fn empty(reader: Reader, limits: SegmentLimits, place: Option<Arc<Place>>) -> Self {
        let is_own = place.is_some();
        let first = Snapshot { log: Log(Some(reader.clone())), ..Snapshot::default() };
        Self {
            reader,
            limits,
            is_own,
            place: place.map_or_else(OnceLock::new, OnceLock::from),
            files: AtomicU64::new(0),
            rewriting: Mutex::default(),
            sealing: Mutex::default(),
            stepping: Mutex::default(),
            books: Mutex::default(),
            checks: OnceLock::new(),
            index: Keeper::default(),
            shape: Mutex::default(),
            current: RwLock::new(Arc::new(first)),
            visible: watch::channel(0).0,
            recent: crate::serve::events::Recent::default(),
            stop: AtomicBool::new(false),
        }
    }

    /// Projects what the reader has and that is not sealed, and follows the log, in a thread
    /// of its own until the handle is dropped. Who must not see less than what was there at
    /// the start waits for [`Self::visible`]. Only for the one process that writes the log:
    /// segments are written to its directory.
    pub fn follow(reader: Reader, limits: SegmentLimits) -> Result<(Arc<Self>, Follower), Error> {
        let projection = apart(|| Self::open_own(reader, limits).map(Arc::new))?;
        let own = Arc::clone(&projection);
        let thread = std::thread::Builder::new().name("projection".into()).spawn(move || own.run());
        let thread = thread.map_err(|e| Error::internal(format!("the projection's thread does not start: {e}")))?;
        Ok((Arc::clone(&projection), Follower { projection, thread: Some(thread) }))
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the snapshot; the caller holds the books.
    pub(crate) fn set(&self, next: Snapshot) {
        let visible = next.size;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        self.visible.send_replace(visible);
    }

    /// The caches that queries share: footers of segments, which are not read for every query.
    pub(crate) fn caches(&self) -> CacheManagerConfig {
        let footers =
            self.snapshot().segments.iter().flat_map(|s| &s.files).map(|f| Arc::clone(f.place.footers())).next();
        let limit = footers.as_ref().map(|footers| footers.cache_limit());
        let config = CacheManagerConfig::default().with_file_metadata_cache(footers);
        // Each session sets the limit of the cache that it is given: to that of DataFusion, if nothing is said.
        limit.into_iter().fold(config, CacheManagerConfig::with_metadata_cache_limit)
    }

    /// Tells up to which size the log is visible.
    pub fn visible(&self) -> watch::Receiver<u64> {
        self.visible.subscribe()
    }

    /// The log's reader.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Whether it follows the log; false after it met something unreadable.
    pub fn is_well(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Projects all that there is, sealing as it goes.
    fn catch_up(&self) -> Result<(), Error> {
        while self.step()? {
            if self.freeze(|tail| tail.is_full(&self.limits)) {
                self.seal()?;
            }
        }
        Ok(())
    }

    fn run(self: Arc<Self>) {
        let mut workers = Workers::default();
        // What a rebuild or many short runs left.
        let _ = workers.merge(&self);
        let _ = workers.look_over(&self);
        while !self.stop.load(Ordering::Relaxed) {
            // Not within the call: that would hold on to the snapshot, and to files that were replaced.
            let size = self.snapshot().size;
            self.reader.wait(size, Duration::from_millis(200));
            let done = self.step().and_then(|_| workers.tend(&self));
            if let Err(error) = done {
                tracing::error!(%error, "the projection stopped; queries see the log only up to here");
                self.stop.store(true, Ordering::Relaxed);
            }
        }
        workers.join();
        self.close_index();
        // So that the next start need not project it again; what is little is not worth a file.
        let is_much = |tail: &Tail| tail.rows() > 0 && tail.to - tail.from >= STEP_RECORDS.min(self.limits.records_max);
        let sealed = self.seal().map(|()| self.freeze(is_much)).and_then(|_| self.seal()).and_then(|()| self.sweep());
        if let Err(error) = sealed {
            tracing::warn!(%error, "the newest rows are not sealed; the next start projects them again");
        }
    }

    /// Publishes one more step; false if there was nothing new.
    pub(crate) fn step(&self) -> Result<bool, Error> {
        let _stepping = lock(&self.stepping);
        let (from, size) = (self.snapshot().size, self.reader.head().size);
        if from >= size {
            return Ok(false);
        }
        let mut rows = self.room(size - from);
        let to = self.project(&mut rows, from, size)?;
        let _books = lock(&self.books);
        let mut next = Snapshot::clone(&self.snapshot());
        let events = self.keep(rows, to - from, &mut next.tail);
        next.ids.add(from..to, &events);
        next.tail.to = to;
        next.size = to;
        self.set(next);
        Ok(true)
    }

    /// Rows in the making, with room for those of so many records as far as one step takes them.
    pub(crate) fn room(&self, records: u64) -> Rows {
        Rows::with_room(records.min(STEP_RECORDS) as usize, &lock(&self.shape))
    }

    /// Moves the rows of some records behind those of a tail; gives the events among them.
    pub(crate) fn keep(&self, rows: Rows, records: u64, tail: &mut Tail) -> RecordBatch {
        let (events, shape) = rows.finish(records as usize, tail);
        // A few records say little about many.
        if shape.records >= SHAPE_RECORDS_MIN {
            *lock(&self.shape) = shape;
        }
        events
    }

    /// Makes the rows of one step from `from`, and of nothing from `end` on; gives where it ends.
    pub(crate) fn project(&self, rows: &mut Rows, from: u64, end: u64) -> Result<u64, Error> {
        let (mut to, mut bytes) = (from, 0);
        while to < end && to - from < STEP_RECORDS && bytes < STEP_BYTES {
            let block = self.reader.block_at(to).map_err(Error::store)?;
            let block = block.ok_or_else(|| Error::internal("the log shrank under the projection"))?;
            bytes += block.content.as_ref().map_or(0, |content| content.payload().len());
            rows.block(&block);
            to = block.commitments.end_seq();
        }
        Ok(to)
    }
}

/// Threads that seal and merge beside the projection.
#[derive(Default)]
struct Workers {
    sealing: Option<JoinHandle<Result<(), Error>>>,
    merging: Option<JoinHandle<()>>,
    indexing: Option<JoinHandle<()>>,
    looking: Option<JoinHandle<()>>,
}

impl Workers {
    /// Begins what is due. Waits for a seal only when memory holds twice as much as it may.
    fn tend(&mut self, projection: &Arc<Projection>) -> Result<(), Error> {
        if let Err(error) = projection.sweep() {
            tracing::warn!(%error, "files of segments that were replaced are not deleted; the next start does it");
        }
        if projection.index_is_due() && self.indexing.as_ref().is_none_or(|thread| thread.is_finished()) {
            let own = Arc::clone(projection);
            self.indexing = Some(spawn("index", move || {
                crate::leeway::enter(false);
                crate::threads::QUERIES.give();
                own.tend_index();
            })?);
        }
        let limits = projection.limits;
        let is_full = projection.snapshot().tail.is_full(&limits);
        if self.sealing.as_ref().is_some_and(|thread| thread.is_finished() || is_full) {
            let done = self.sealing.take().map(|thread| thread.join());
            done.unwrap_or(Ok(Ok(()))).map_err(|_| Error::internal("sealing panicked"))??;
            self.merge(projection)?;
        }
        if self.sealing.is_none() && projection.freeze(|tail| tail.is_due(&limits)) {
            let own = Arc::clone(projection);
            self.sealing = Some(spawn("seal", move || own.seal())?);
        }
        Ok(())
    }

    fn merge(&mut self, projection: &Arc<Projection>) -> Result<(), Error> {
        if self.merging.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        let own = Arc::clone(projection);
        self.merging = Some(spawn("merge", move || {
            crate::leeway::enter(false);
            crate::threads::QUERIES.give();
            let mut merged = Ok(true);
            while matches!(merged, Ok(true)) && own.is_well() {
                merged = own.merge();
            }
            // Segments that are not merged are as good as before.
            if let (Err(error), true) = (merged.and_then(|_| own.sweep()), own.is_well()) {
                tracing::warn!(%error, "segments could not be merged");
            }
        })?);
        Ok(())
    }

    /// Once: whether what was there before this start is still what was written.
    fn look_over(&mut self, projection: &Arc<Projection>) -> Result<(), Error> {
        let own = Arc::clone(projection);
        self.looking = Some(spawn("look-over", move || {
            crate::leeway::enter(false);
            crate::threads::QUERIES.give();
            if let Err(error) = own.look_over() {
                tracing::warn!(%error, "segments that are damaged could not be made again");
            }
        })?);
        Ok(())
    }

    fn join(&mut self) {
        for thread in [self.merging.take(), self.indexing.take(), self.looking.take()].into_iter().flatten() {
            let _ = thread.join();
        }
        if let Some(Ok(Err(error))) = self.sealing.take().map(|thread| thread.join()) {
            tracing::warn!(%error, "rows could not be sealed");
        }
    }
}

/// Does blocking work on a thread of its own and waits for it, also within a runtime.
fn apart<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("projection".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| Error::internal(format!("the projection's thread does not start: {e}")))?;
        thread.join().unwrap_or_else(|_| Err(Error::internal("the projection's thread panicked")))
    })
}

fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>, Error> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.map_err(|e| Error::internal(format!("the thread to {name} does not start: {e}")))
}

/// Ends the projection's thread when dropped.
pub struct Follower {
    projection: Arc<Projection>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.projection.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
