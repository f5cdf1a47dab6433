//! What queries and event streams count, for Prometheus.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use custody_store::measure::{Family, Histogram, Value};

use crate::error::{Error, ErrorKind};
use crate::gate::Place;

/// Bounds for the time of queries, in ns: 1 ms to 10 min.
const TIMES: &[u64] = &[
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
    300_000_000_000,
    600_000_000_000,
];

/// What queries end with when they do not succeed.
const REASONS: [&str; 9] = [
    "invalid_query",
    "read_only",
    "timeout",
    "resources_exhausted",
    "unavailable",
    "internal",
    "cancelled",
    "forbidden",
    "too_many_queries",
];

/// `cancelled`: the one who asked has gone.
const CANCELLED: usize = 6;

/// Counters since the start, and gauges of what is now.
#[derive(Debug)]
pub struct QueryStats {
    queries: AtomicU64,
    running: AtomicU64,
    errors: [AtomicU64; REASONS.len()],
    seconds: Histogram,
    rested_nanos: AtomicU64,
    event_pages: AtomicU64,
    event_pages_made: AtomicU64,
    event_streams: AtomicU64,
}

impl Default for QueryStats {
    fn default() -> Self {
        Self {
            queries: AtomicU64::new(0),
            running: AtomicU64::new(0),
            errors: Default::default(),
            seconds: Histogram::new(TIMES),
            rested_nanos: AtomicU64::new(0),
            event_pages: AtomicU64::new(0),
            event_pages_made: AtomicU64::new(0),
            event_streams: AtomicU64::new(0),
        }
    }
}

/// A query that runs, in all threads that work on it; one that is dropped without [`Self::ended`]
/// was cancelled.
pub(crate) struct Running {
    stats: Arc<QueryStats>,
    start: Instant,
    outcome: AtomicUsize,
    _place: Place,
}

/// It succeeded.
const FINE: usize = usize::MAX;

impl Running {
    pub(crate) fn ended<T>(&self, result: &Result<T, Error>) {
        self.outcome.store(result.as_ref().err().map_or(FINE, |error| reason(error.kind)), Relaxed);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stats.running.fetch_sub(1, Relaxed);
        self.stats.seconds.observe(self.start.elapsed().as_nanos() as u64);
        if let Some(errors) = self.stats.errors.get(self.outcome.load(Relaxed)) {
            errors.fetch_add(1, Relaxed);
        }
    }
}

/// An event stream that is open.
pub(crate) struct Streaming(Arc<QueryStats>);

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.event_streams.fetch_sub(1, Relaxed);
    }
}

fn reason(kind: ErrorKind) -> usize {
    match kind {
        ErrorKind::Invalid => 0,
        ErrorKind::ReadOnly => 1,
        ErrorKind::Timeout => 2,
        ErrorKind::Resources => 3,
        ErrorKind::Unavailable => 4,
        ErrorKind::Internal => 5,
        ErrorKind::Forbidden => 7,
        ErrorKind::Busy => 8,
    }
}

impl QueryStats {
    pub(crate) fn begin(self: &Arc<Self>, place: Place) -> Running {
        self.queries.fetch_add(1, Relaxed);
        self.running.fetch_add(1, Relaxed);
        Running { stats: Arc::clone(self), start: Instant::now(), outcome: CANCELLED.into(), _place: place }
    }

    /// One that was not let in.
    pub(crate) fn refused(&self, error: &Error) {
        self.errors[reason(error.kind)].fetch_add(1, Relaxed);
    }

    /// Queries that run, in any thread.
    pub fn running(&self) -> u64 {
        self.running.load(Relaxed)
    }

    /// Queries that last rest for so long.
    pub(crate) fn rested(&self, time: std::time::Duration) {
        self.rested_nanos.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    pub(crate) fn page(&self) {
        self.event_pages.fetch_add(1, Relaxed);
    }

    /// One was written, and not found.
    pub(crate) fn page_made(&self) {
        self.event_pages_made.fetch_add(1, Relaxed);
    }

    pub(crate) fn stream(self: &Arc<Self>) -> Streaming {
        self.event_streams.fetch_add(1, Relaxed);
        Streaming(Arc::clone(self))
    }

    /// All that is counted.
    pub fn families(&self) -> Vec<Family> {
        let gauge = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        let errors = REASONS.into_iter().zip(&self.errors);
        let seconds: Value = self.seconds.read(1e-9);
        vec![
            Family::counter("custody_sql_queries", "SQL queries begun, over HTTP and Flight SQL", &self.queries),
            Family::counters("custody_sql_errors", "SQL queries that gave no answer", "reason", errors),
            Family::gauge("custody_sql_queries_running", "SQL queries that run", gauge(&self.running)),
            Family::one("custody_sql_query_duration_seconds", "Time of SQL queries, however they ended", seconds),
            Family::one(
                "custody_sql_rested_seconds",
                "Time in which SQL queries that last left the processors to the taking of records",
                Value::Counter(gauge(&self.rested_nanos) * 1e-9),
            ),
            Family::counter("custody_event_pages", "Pages of events served", &self.event_pages),
            Family::counter(
                "custody_event_pages_made",
                "Pages written for readers and their streams; what others find is not written again",
                &self.event_pages_made,
            ),
            Family::gauge("custody_event_streams", "Event streams that are open", gauge(&self.event_streams)),
        ]
    }
}
