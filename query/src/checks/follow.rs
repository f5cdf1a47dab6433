//! The checks that follow a projection: a thread of its own takes what is visible, has it judged,
//! and appends what is found. Nothing waits for it but a query of `violations`; how far it is
//! behind is a metric.
//!
//! Invariant: below the seq in `checks.json` every record is settled and its alerts are durable.
//! A crash at any point has some records judged again; what was raised for them is read from the
//! log and not raised again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use custody_store::measure::Family;
use tokio::sync::watch;

use super::evaluator::{Evaluator, Found};
use super::hit::HitRow;
use super::run::{Checker, Entries};
use super::withheld::Cited;
use crate::engine::now;
use crate::projection::Projection;
use crate::recorder::Recorder;
use crate::{Error, ErrorKind};

/// The place of the mark in the log's directory.
const MARK: &str = "checks.json";
/// How often the mark is written, at most.
const MARK_EVERY: Duration = Duration::from_secs(2);
/// What comes one by one is judged together: a step costs some milliseconds for few records as for many, and more the more
/// it has to look at. So a pause follows that is nine times as long, and this at most. Who asks for `violations` does not
/// wait for it, nor what is behind.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Alerts that are appended together, at most.
const APPENDED_MAX: usize = 512;

/// What others see of the checks that follow.
#[derive(Debug)]
pub struct Live {
    checker: Arc<Checker>,
    done: watch::Sender<u64>,
    unsaid: RwLock<Arc<Vec<HitRow>>>,
    raised: AtomicU64,
    taken_back: AtomicU64,
    judged: AtomicU64,
    held: AtomicU64,
    busy_nanos: AtomicU64,
    failures: AtomicU64,
    stop: AtomicBool,
    /// Somebody waits for what is new to be judged, or for the end.
    wanted: tokio::sync::Notify,
    projection: Mutex<std::sync::Weak<Projection>>,
}

impl Live {
    /// The rules in force.
    pub fn checker(&self) -> &Arc<Checker> {
        &self.checker
    }

    /// Below this seq every record was judged at least once.
    pub(crate) fn done(&self) -> watch::Receiver<u64> {
        self.done.subscribe()
    }

    /// Hits that no record of the log says yet: their grace time runs, or they are being appended.
    pub(crate) fn unsaid(&self) -> Arc<Vec<HitRow>> {
        Arc::clone(&self.unsaid.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Below this seq every record was judged at least once.
    pub fn judged_to(&self) -> u64 {
        *self.done.borrow()
    }

    /// How many events are at hand.
    pub fn events_held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// Has them judge what is new, now.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Has them stop before the next step.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
        self.wanted.notify_one();
    }

    /// What is counted, for Prometheus.
    pub fn families(&self) -> Vec<Family> {
        let projection = self.projection.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let size = projection.map_or(0, |p| p.snapshot().size);
        let lag = size.saturating_sub(*self.done.borrow()) as f64;
        let seconds = self.busy_nanos.load(Relaxed) as f64 / 1e9;
        let seconds = custody_store::measure::Value::Counter(seconds);
        vec![
            Family::gauge("custody_checks_lag_records", "Visible records that the checks did not judge yet", lag),
            Family::counter("custody_checks_records", "Records that the checks judged, once each", &self.judged),
            Family::one("custody_checks_busy_seconds", "Time that the checks took", seconds),
            Family::counter("custody_checks_alerts", "Alerts that the checks appended", &self.raised),
            Family::counter("custody_checks_taken_back", "Alerts that later evidence took back", &self.taken_back),
            Family::counter(
                "custody_checks_failures",
                "Steps of the checks that failed and were tried again",
                &self.failures,
            ),
            Family::counter(
                "custody_checks_unjudged_records",
                "Records that a rule failed on, once for each rule; the log of the server names it",
                &self.checker.unjudged,
            ),
            Family::gauge(
                "custody_checks_events_held",
                "Events that the checks keep at hand",
                self.held.load(Relaxed) as f64,
            ),
        ]
    }
}

/// Ends the checks when dropped.
pub struct Following {
    live: Arc<Live>,
    thread: Option<JoinHandle<()>>,
}

impl Following {
    /// What others see of them.
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.live.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Has the checks follow a projection, and append what they find.
///
/// # Errors
///
/// If the thread does not start.
pub fn follow(
    projection: &Arc<Projection>,
    checker: Arc<Checker>,
    recorder: Arc<dyn Recorder>,
) -> Result<Following, Error> {
    let live = Arc::new(Live {
        checker,
        done: watch::channel(0).0,
        unsaid: RwLock::default(),
        raised: AtomicU64::new(0),
        taken_back: AtomicU64::new(0),
        judged: AtomicU64::new(0),
        held: AtomicU64::new(0),
        busy_nanos: AtomicU64::new(0),
        failures: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        wanted: tokio::sync::Notify::new(),
        projection: Mutex::new(Arc::downgrade(projection)),
    });
    let _ = projection.checks.set(Arc::clone(&live));
    let mut task = Task {
        mark: projection.reader().dir().join(MARK),
        projection: Arc::clone(projection),
        live: Arc::clone(&live),
        recorder,
        unseen: Vec::new(),
        marked: (0, Instant::now()),
    };
    // Of several threads, so that this one may wait for segments.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("checks").build();
    let runtime = runtime.map_err(|e| Error::internal(format!("the threads of the checks do not start: {e}")))?;
    let thread = std::thread::Builder::new().name("checks".into()).spawn(move || {
        // A rule that brings its thread down must not end the others for good.
        while catch_unwind(AssertUnwindSafe(|| runtime.block_on(task.run()))).is_err() {
            task.live.failures.fetch_add(1, Relaxed);
            tracing::error!("the checks broke off; they begin again at what they judged for good");
            runtime.block_on(task.pause(Duration::from_secs(1)));
        }
    });
    let thread = thread.map_err(|e| Error::internal(format!("the thread of the checks does not start: {e}")))?;
    Ok(Following { live, thread: Some(thread) })
}

/// What the thread works with.
struct Task {
    projection: Arc<Projection>,
    live: Arc<Live>,
    recorder: Arc<dyn Recorder>,
    mark: PathBuf,
    /// Alerts that were appended and that queries do not see yet.
    unseen: Vec<(u64, HitRow)>,
    marked: (u64, Instant),
}

impl Task {
    async fn run(&mut self) {
        // Another start after a failure begins at the mark: what was judged in between is judged again.
        while !self.stopped() {
            match self.follow().await {
                Ok(()) => break,
                Err(error) => {
                    self.live.failures.fetch_add(1, Relaxed);
                    if error.kind == ErrorKind::Unavailable && self.stopped() {
                        break;
                    }
                    tracing::error!(%error, "the checks failed; they begin again at what they judged for good");
                    self.pause(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn stopped(&self) -> bool {
        self.live.stop.load(Relaxed) || !self.projection.is_well()
    }

    async fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.stopped() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn follow(&mut self) -> Result<(), Error> {
        let from = self.read_mark();
        let mut visible = self.projection.visible();
        // What the log has is visible first: the past, and the alerts that were told, are read from it.
        let size = self.projection.reader().head().size;
        while *visible.borrow_and_update() < size && !self.stopped() {
            let _ = tokio::time::timeout(Duration::from_millis(100), visible.changed()).await;
        }
        let reader = self.projection.reader().clone();
        let mut evaluator = Evaluator::new(Arc::clone(&self.live.checker), Entries::Log(reader), from);
        let snapshot = self.projection.snapshot();
        evaluator.recover(&snapshot)?;
        drop(snapshot);
        while !self.stopped() {
            let snapshot = self.projection.snapshot();
            let (at, start, clock) = (evaluator.at(), Instant::now(), now());
            let found = evaluator.step(&snapshot, clock).await?;
            let spent = start.elapsed();
            let pause = (9 * spent).min(PAUSE_MAX);
            self.live.busy_nanos.fetch_add(spent.as_nanos() as u64, Relaxed);
            self.live.judged.fetch_add(evaluator.at() - at, Relaxed);
            self.live.held.store(evaluator.held() as u64, Relaxed);
            self.unseen.retain(|(seq, _)| *seq >= snapshot.size);
            let behind = evaluator.at() < snapshot.size || evaluator.next_due().is_some_and(|due| due <= clock.0);
            drop(snapshot);
            self.publish(&evaluator, &found);
            self.say(found).await?;
            self.publish(&evaluator, &Found::default());
            self.write_mark(evaluator.settled());
            if behind {
                continue;
            }
            let _ = tokio::time::timeout(pause, self.live.wanted.notified()).await;
            let wait = evaluator.next_due().map_or(i64::MAX, |due| due.saturating_sub(now().0).max(0));
            if wait > 0 && !self.stopped() {
                let wait = Duration::from_nanos(wait as u64).min(Duration::from_millis(100));
                let _ = tokio::time::timeout(wait, visible.changed()).await;
            }
        }
        self.marked.1 = Instant::now().checked_sub(MARK_EVERY).unwrap_or(self.marked.1);
        self.write_mark(evaluator.settled());
        Ok(())
    }

    /// Shows queries what is not in the log yet, and how far the checks are.
    fn publish(&self, evaluator: &Evaluator, found: &Found) {
        // Until it is durable, no record says it.
        let raising = found.raise.iter().map(|(hit, _)| HitRow { alert_id: None, ..hit.clone() });
        let unseen = self.unseen.iter().map(|(_, hit)| hit);
        let unsaid: Vec<HitRow> = evaluator.pending().chain(unseen).cloned().chain(raising).collect();
        *self.live.unsaid.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(unsaid);
        self.live.done.send_replace(evaluator.at());
    }

    /// Appends what was found, and waits until it is durable.
    async fn say(&mut self, found: Found) -> Result<(), Error> {
        for hits in found.raise.chunks(APPENDED_MAX) {
            let cited = Cited::of(&self.projection.snapshot(), hits.iter().map(|(hit, _)| hit))?;
            let (mut said, mut ends) = (Vec::with_capacity(hits.len()), Vec::with_capacity(hits.len()));
            for (hit, earlier) in hits {
                // A crash between the two records of a hit: it is raised again.
                said.extend(cited.said(hit, self.live.checker.about(&hit.check_id), earlier.as_deref()));
                ends.push(said.len());
            }
            let seqs = self.recorder.append(said).await?;
            self.live.raised.fetch_add(hits.len() as u64, Relaxed);
            let last = ends.into_iter().filter_map(|end| seqs.get(end - 1).copied());
            self.unseen.extend(last.zip(hits.iter().map(|(hit, _)| hit.clone())));
        }
        for hits in found.take_back.chunks(APPENDED_MAX) {
            let seqs = self.recorder.append(hits.iter().map(HitRow::take_back).collect()).await?;
            self.live.taken_back.fetch_add(seqs.len() as u64, Relaxed);
        }
        Ok(())
    }

    fn read_mark(&self) -> u64 {
        let text = std::fs::read(&self.mark).unwrap_or_default();
        let mark: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let size = self.projection.reader().head().size;
        // A mark beyond the log is of another log: everything is judged again, and nothing raised twice.
        mark["settled"].as_u64().filter(|seq| *seq <= size).unwrap_or(0)
    }

    /// Replaces the mark. One that is lost only costs work.
    fn write_mark(&mut self, settled: u64) {
        if settled == self.marked.0 || self.marked.1.elapsed() < MARK_EVERY {
            return;
        }
        let new = self.mark.with_extension("json.new");
        let text = serde_json::json!({"settled": settled}).to_string();
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &self.mark));
        if let Err(error) = written {
            tracing::warn!(%error, "how far the checks are is not written; the next start judges more again");
        }
        self.marked = (settled, Instant::now());
    }
}
