//! Queries that last leave the processors to those who take records.
//!
//! Niceness alone does not: it decides who is next on a processor, and not what it costs to have the other one full. Two
//! virtual processors are often one real one, a container may have a share of several, and what is used up by queries
//! is then gone. So queries that have run for a while rest: the more of the processors the rest of this process
//! needs, the less of them they use. Short ones do not; they are gone before it matters.
//!
//! What is used is read from the kernel's books (`proc_pid_stat(5)`, `/proc/thread-self/schedstat`); where there are none, nobody rests.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::stats::QueryStats;

/// How often it is looked at what was used: the kernel counts a process in hundredths of a second.
const LOOK: Duration = Duration::from_millis(50);

/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(2);

/// Up to this part of all processors others may use before lasting queries leave them any.
const FREE: f64 = 0.1;

/// From this part on they have the least.
const BUSY: f64 = 0.25;

/// The least part of all processors that lasting queries have together: they shall end, too.
const LEAST: f64 = 0.05;

/// The kernel's clock of `/proc/self/stat`, in ns: `USER_HZ` is 100 wherever this runs.
const TICK_NANOS: u64 = 10_000_000;

/// Which part of all processors lasting queries may use while the rest of the process uses another one.
fn share(used: f64) -> f64 {
    let left = (BUSY - used) / (BUSY - FREE);
    left.clamp(LEAST, 1.0)
}

/// Processor time in ns.
#[derive(Clone, Copy, Debug)]
struct Used {
    /// Of all that does not give way.
    others: u64,
    /// Of query threads.
    queries: u64,
}

/// How long lasting queries rest after some time in which so much was used.
fn rest(time: Duration, used: Used, processors: f64) -> Duration {
    let whole = time.as_nanos() as f64 * processors;
    if whole <= 0.0 {
        return Duration::ZERO;
    }
    let share = share(used.others as f64 / whole);
    let too_much = (used.queries as f64 - whole * share).max(0.0);
    Duration::from_nanos((too_much / (share * processors)) as u64).min(REST_MAX)
}

/// A thread that gives way.
#[derive(Debug)]
struct Thread {
    book: PathBuf,
    seen: u64,
    /// Whether it makes rows of queries.
    asks: bool,
}

/// Those of this process.
static THREADS: Mutex<Vec<Thread>> = Mutex::new(Vec::new());

/// The present thread gives way, and is none of those that others give way to; `asks`: it makes rows of queries.
pub(crate) fn enter(asks: bool) {
    let Ok(own) = fs::read_link("/proc/thread-self") else { return };
    let book = PathBuf::from("/proc").join(own).join("schedstat");
    let Some(seen) = nanos(&book) else { return };
    let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    // Those that have ended, and one that had the same number.
    threads.retain(|thread| thread.book != book && thread.book.exists());
    threads.push(Thread { book, seen, asks });
}

/// What a thread has used: the first number of its `schedstat`.
fn nanos(book: &PathBuf) -> Option<u64> {
    fs::read_to_string(book).ok()?.split_whitespace().next()?.parse().ok()
}

/// What this process has used: the 14th and 15th field, behind a name that may hold anything.
fn of_process() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some((user + system) * TICK_NANOS)
}

#[derive(Debug)]
struct Books {
    looked: Instant,
    all: u64,
}

impl Books {
    /// What was used since this was asked last; threads that have ended are left out.
    fn since(&mut self) -> Option<Used> {
        let (all, mut queries, mut rest) = (of_process()?, 0, 0);
        THREADS.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|thread| {
            let Some(now) = nanos(&thread.book) else { return false };
            let used = now.saturating_sub(std::mem::replace(&mut thread.seen, now));
            *(if thread.asks { &mut queries } else { &mut rest }) += used;
            true
        });
        let before = std::mem::replace(&mut self.all, all);
        Some(Used { others: all.saturating_sub(before).saturating_sub(queries + rest), queries })
    }
}

/// What lasting queries have left.
#[derive(Debug)]
pub(crate) struct Leeway {
    begun: Instant,
    processors: f64,
    /// When they go on, in ns since this began.
    rests_until: AtomicU64,
    books: Mutex<Books>,
    stats: Arc<QueryStats>,
}

impl Leeway {
    pub(crate) fn new(stats: Arc<QueryStats>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let books = Books { looked: Instant::now(), all: of_process().unwrap_or(0) };
        Self { begun: books.looked, processors, rests_until: AtomicU64::new(0), books: Mutex::new(books), stats }
    }

    /// Until when a query that lasts has to rest, if it has to.
    fn rests(&self, now: Instant, is_first: bool) -> Option<Instant> {
        self.look(now, is_first);
        let until = self.begun + Duration::from_nanos(self.rests_until.load(Relaxed));
        (until > now).then_some(until)
    }

    /// Looks at what was used, if that was not done just now; one does it for all. What was used before anybody lasted
    /// is nobody's debt.
    fn look(&self, now: Instant, is_first: bool) {
        let mut books = match self.books.try_lock() {
            Ok(books) => books,
            Err(TryLockError::Poisoned(books)) => books.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let time = now.saturating_duration_since(books.looked);
        if time < LOOK {
            return;
        }
        books.looked = now;
        let Some(used) = books.since() else { return };
        if is_first && time > LOOK * 4 {
            return;
        }
        let rest = rest(time, used, self.processors);
        self.rests_until.store((now + rest).saturating_duration_since(self.begun).as_nanos() as u64, Relaxed);
        self.stats.rested(rest);
    }
}

/// One query's.
#[derive(Debug)]
pub(crate) struct Own {
    all: Arc<Leeway>,
    /// From when on it lasts.
    lasts: Option<Instant>,
    /// Whether it has been seen to last.
    is_known: AtomicBool,
}

impl Own {
    /// That of a query that begins now, and lasts when it is still there after some time.
    pub(crate) fn new(all: &Arc<Leeway>, prompt: Option<Duration>) -> Self {
        let lasts = prompt.and_then(|prompt| Instant::now().checked_add(prompt));
        Self { all: Arc::clone(all), lasts, is_known: AtomicBool::new(false) }
    }

    /// Until when the query has to rest, if it has to.
    pub(crate) fn rests(&self) -> Option<Instant> {
        let (lasts, now) = (self.lasts?, Instant::now());
        if now < lasts {
            return None;
        }
        self.all.rests(now, !self.is_known.swap(true, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn who_has_the_processors_alone_never_rests() {
        for queries in [0, SECOND, 2 * SECOND] {
            let used = Used { others: SECOND / 10, queries };
            assert_eq!(rest(Duration::from_secs(1), used, 2.0), Duration::ZERO);
        }
    }

    #[test]
    fn over_time_lasting_queries_use_their_share() {
        for (others, share) in [(0.15, 2.0 / 3.0), (0.2, 1.0 / 3.0), (0.5, 0.05), (0.9, 0.05)] {
            let others = (others * 2e9) as u64;
            // All that was left, for a twentieth of a second.
            let queries = (SECOND * 2 - others) / 20;
            let time = Duration::from_millis(50);
            let used = Used { others: others / 20, queries };
            let whole = time + rest(time, used, 2.0);
            let part = queries as f64 / (whole.as_nanos() as f64 * 2.0);
            assert!((part - share).abs() < 0.001, "{part} of the processors beside {others}, and not {share}");
        }
        let used = Used { others: 100 * SECOND, queries: 100 * SECOND };
        assert_eq!(rest(Duration::from_secs(100), used, 2.0), REST_MAX);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_used_is_found_in_the_books() {
        let busy = |asks| {
            enter(asks);
            let (begun, mut sum) = (Instant::now(), 0_u64);
            while begun.elapsed() < Duration::from_millis(100) {
                sum = std::hint::black_box(sum + 1);
            }
            PathBuf::from("/proc").join(fs::read_link("/proc/thread-self").unwrap()).join("schedstat")
        };
        let is_known = |book: &PathBuf| THREADS.lock().unwrap().iter().any(|thread| thread.book == *book);
        let mut books = Books { looked: Instant::now(), all: of_process().unwrap() };
        let (gone, is_gone) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let work = move || {
            tell.send(busy(true)).unwrap();
            // Until the other end is dropped.
            let _ = is_gone.recv();
        };
        let thread = std::thread::Builder::new().name("asks".into()).spawn(work).unwrap();
        let book = told.recv().unwrap();
        assert!(is_known(&book));
        assert!(books.since().unwrap().queries > 0);
        drop(gone);
        thread.join().unwrap();
        // The kernel forgets a thread a moment after it has ended.
        while is_known(&book) {
            books.since().unwrap();
        }
    }
}
