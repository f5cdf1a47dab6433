//! Sends: in a closed loop, so many requests at once; in an open loop, each when it
//! is due, whatever became of the others.
//!
//! In an open loop latency is counted from the time at which a request was due. A
//! server (or this program) that is late is charged for everyone who waits, so that
//! nothing is omitted because it was sent later (coordinated omission).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::sync::Semaphore;

use crate::acked::Bits;
use crate::answer::Answer;
use crate::client::{Connection, Target};
use crate::options::{Options, Protocol};
use crate::random::{mix2, within};
use crate::traffic::Traffic;

/// The longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// What one step came to.
#[derive(Clone, Debug)]
pub struct Step {
    /// The rate asked for, in records a second; none in a closed loop.
    pub rate: Option<f64>,
    pub seconds: f64,
    pub requests: u64,
    pub records: u64,
    pub bytes: u64,
    /// Requests given up or refused.
    pub failed: u64,
    /// Records that the server rejected out of requests that it took.
    pub rejected: u64,
    /// Attempts that had to be repeated.
    pub retries: u64,
    /// Requests sent a second time on purpose.
    pub resent: u64,
    /// Requests that were due and not begun when the step ended.
    pub not_begun: u64,
    pub errors: BTreeMap<String, u64>,
    /// Microseconds to the acknowledgement.
    pub latency: Histogram<u64>,
    /// Microseconds from when a request was due to when it was begun.
    pub lag: Histogram<u64>,
}

impl Step {
    fn new(rate: Option<f64>) -> Self {
        Self {
            rate,
            seconds: 0.0,
            requests: 0,
            records: 0,
            bytes: 0,
            failed: 0,
            rejected: 0,
            retries: 0,
            resent: 0,
            not_begun: 0,
            errors: BTreeMap::new(),
            latency: histogram(),
            lag: histogram(),
        }
    }

    /// Acknowledged records a second.
    pub fn records_per_second(&self) -> f64 {
        self.records as f64 / self.seconds.max(1e-9)
    }
}

/// From a microsecond to an hour, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap_or_else(|_| unreachable!("the bounds are constants"))
}

fn micros(time: Duration) -> u64 {
    (time.as_micros() as u64).clamp(1, 3_600_000_000)
}

/// All that the workers share.
pub struct Run {
    options: Options,
    traffic: Arc<Traffic>,
    target: Arc<Target>,
    connections: Vec<Connection>,
    step: Mutex<Step>,
    acked: Mutex<Bits>,
    /// The first request of the step, and how many of it are begun.
    base: AtomicU64,
    begun: AtomicU64,
    stop: AtomicBool,
}

/// When the requests of a step are due.
struct Plan {
    start: Instant,
    end: Option<Instant>,
    /// Requests of the step at most.
    limit: u64,
    /// Time from one request to the next, in an open loop.
    interval: Option<Duration>,
    due: Semaphore,
}

impl Run {
    /// Prepares; nothing is connected yet.
    pub fn new(options: Options, traffic: Arc<Traffic>, target: Arc<Target>) -> Self {
        let connections = match options.protocol {
            Protocol::Grpc => options.connections,
            // One for each request under way, and as many for those sent twice at once.
            Protocol::Http => options.in_flight() * 2,
        };
        Self {
            connections: (0..connections).map(|_| Connection::new(Arc::clone(&target))).collect(),
            step: Mutex::new(Step::new(None)),
            acked: Mutex::default(),
            base: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            options,
            traffic,
            target,
        }
    }

    /// Requests begun so far, in all steps.
    pub fn sent(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    /// Which of them are acknowledged.
    pub fn acked(&self) -> std::sync::MutexGuard<'_, Bits> {
        self.acked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present step, as far as it is.
    pub fn step(&self) -> std::sync::MutexGuard<'_, Step> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more requests; those under way are finished.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether it was stopped.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Runs one step to its end.
    pub async fn run_step(self: &Arc<Self>, rate: Option<f64>) -> Result<Step, String> {
        *self.step() = Step::new(rate);
        let plan = Arc::new(self.plan(rate));
        let pacer = plan.interval.map(|_| self.pace(&plan)).transpose()?;
        let workers: Vec<_> = (0..self.options.in_flight())
            .map(|worker| {
                let (run, plan) = (Arc::clone(self), Arc::clone(&plan));
                tokio::spawn(async move { run.work(usize::from(worker), &plan).await })
            })
            .collect();
        for worker in workers {
            worker.await.map_err(|e| format!("a worker failed: {e}"))?;
        }
        if let Some(pacer) = pacer {
            pacer.join().map_err(|_| "the pacer failed")?;
        }
        let begun = self.begun.swap(0, Ordering::Relaxed).min(plan.limit);
        self.base.fetch_add(begun, Ordering::Relaxed);
        let mut step = self.step().clone();
        step.seconds = plan.start.elapsed().as_secs_f64();
        if plan.interval.is_some() && !self.stopped() {
            step.not_begun = plan.limit - begun;
        }
        Ok(step)
    }

    fn plan(&self, rate: Option<f64>) -> Plan {
        let batch = self.traffic.batch();
        let interval = rate.map(|rate| Duration::from_secs_f64(batch as f64 / rate));
        let time = self.options.step_time();
        let of_time = match (interval, time) {
            (Some(interval), Some(time)) => (time.as_secs_f64() / interval.as_secs_f64()).ceil() as u64,
            _ => u64::MAX,
        };
        let of_count = match self.options.steps.is_empty() {
            true => self.options.count.map_or(u64::MAX, |count| count.div_ceil(batch)),
            false => u64::MAX,
        };
        let start = Instant::now();
        let end = time.map(|time| start + time);
        Plan { start, end, limit: of_time.min(of_count).max(1), interval, due: Semaphore::new(0) }
    }

    /// A thread that lets requests go when they are due: the runtime's timer is too coarse.
    fn pace(self: &Arc<Self>, plan: &Arc<Plan>) -> Result<std::thread::JoinHandle<()>, String> {
        let (run, plan) = (Arc::clone(self), Arc::clone(plan));
        let Some(interval) = plan.interval else { return Err("a closed loop has no pace".into()) };
        let pacing = move || {
            let mut released = 0;
            while released < plan.limit && !run.stopped() && plan.end.is_none_or(|end| Instant::now() < end) {
                let due = (plan.start.elapsed().as_nanos() / interval.as_nanos().max(1)) as u64 + 1;
                let more = due.min(plan.limit).saturating_sub(released);
                // A semaphore has a bound; what is beyond it is let go in the next round.
                let room = (Semaphore::MAX_PERMITS - plan.due.available_permits()) as u64;
                plan.due.add_permits(more.min(room) as usize);
                released += more.min(room);
                let next = plan.start + Duration::from_nanos((interval.as_nanos() as u64).saturating_mul(released));
                let wait = next.saturating_duration_since(Instant::now());
                std::thread::sleep(wait.min(Duration::from_millis(50)));
            }
            // Those who wait for what will not come.
            if released < plan.limit {
                plan.due.close();
            }
        };
        std::thread::Builder::new().name("pacer".into()).spawn(pacing).map_err(|e| e.to_string())
    }

    async fn work(self: &Arc<Self>, worker: usize, plan: &Plan) {
        loop {
            if plan.interval.is_some() {
                if self.begun.load(Ordering::Relaxed) >= plan.limit {
                    return plan.due.close();
                }
                match plan.due.acquire().await {
                    Ok(permit) => permit.forget(),
                    Err(_) => return,
                }
            }
            let now = Instant::now();
            if self.stopped() || plan.end.is_some_and(|end| now >= end) {
                return plan.due.close();
            }
            let index = self.begun.fetch_add(1, Ordering::Relaxed);
            if index >= plan.limit {
                return plan.due.close();
            }
            let due = plan.interval.map(|i| plan.start + Duration::from_secs_f64(i.as_secs_f64() * index as f64));
            self.one(worker, self.base.load(Ordering::Relaxed) + index, due).await;
        }
    }

    /// Sends request `n` until it is acknowledged or given up, and perhaps again.
    async fn one(self: &Arc<Self>, worker: usize, n: u64, due: Option<Instant>) {
        let body = match self.target.body(&self.traffic, n) {
            Ok(body) => body,
            Err(error) => return self.failed(error),
        };
        let draw = mix2(self.options.seed ^ 0x7e5e_4d00, n);
        let again = within(draw, self.options.resend);
        // In a closed loop a request is due when it is ready.
        let first = self.deliver(worker, n, due.unwrap_or_else(Instant::now), body.clone());
        match again {
            false => first.await,
            // As after a lost acknowledgement, or while the first is still under way.
            true if draw & 1 == 0 => {
                first.await;
                self.resend(worker, n, body).await;
            }
            true => {
                let other = worker + usize::from(self.options.in_flight());
                tokio::join!(first, self.resend(other, n, body));
            }
        }
    }

    async fn deliver(self: &Arc<Self>, worker: usize, n: u64, due: Instant, body: Bytes) {
        let begun = Instant::now();
        let answer = self.attempts(worker, n, &body).await;
        let (now, batch) = (Instant::now(), self.traffic.batch());
        let mut step = self.step();
        step.lag.saturating_record(micros(begun.saturating_duration_since(due)));
        match answer {
            Answer::Acknowledged => {
                self.acked().insert(n);
                step.requests += 1;
                step.records += batch;
                step.bytes += body.len() as u64;
                step.latency.saturating_record(micros(now.saturating_duration_since(due)));
            }
            Answer::Partial(rejected) => {
                step.failed += 1;
                step.rejected += rejected.unsigned_abs();
                *step.errors.entry("partial success".into()).or_default() += 1;
            }
            Answer::Retry(why, _) => {
                // It would have taken longer still: without it a server that stands still would look fast.
                step.latency.saturating_record(micros(now.saturating_duration_since(due)));
                drop(step);
                self.failed(why);
            }
            Answer::Refused(why) => {
                drop(step);
                self.failed(why);
            }
        }
    }

    fn failed(&self, why: String) {
        let mut step = self.step();
        step.failed += 1;
        *step.errors.entry(why).or_default() += 1;
    }

    async fn resend(self: &Arc<Self>, worker: usize, n: u64, body: Bytes) {
        let answer = self.attempts(worker, n, &body).await;
        let mut step = self.step();
        step.resent += 1;
        if let Answer::Retry(why, _) | Answer::Refused(why) = answer {
            *step.errors.entry(format!("{why} (sent twice)")).or_default() += 1;
        }
    }

    /// Attempts until there is an answer that is for good, or time is up.
    async fn attempts(&self, worker: usize, n: u64, body: &Bytes) -> Answer {
        let until = Instant::now() + self.options.retry_for;
        let connection = &self.connections[worker % self.connections.len()];
        let signal = self.traffic.signal(n);
        let mut backoff = BACKOFF_MIN;
        for attempt in 0u64.. {
            let answer = connection.send(signal, body.clone()).await;
            let Answer::Retry(why, after) = &answer else { return answer };
            // Half of the pause and up to as much again, so that not all come back at once.
            let jitter = 0.5 + (mix2(n, attempt) >> 11) as f64 / (1u64 << 53) as f64;
            let wait = after.unwrap_or_default().max(backoff.mul_f64(jitter));
            if Instant::now() + wait > until {
                return answer;
            }
            {
                let mut step = self.step();
                step.retries += 1;
                *step.errors.entry(format!("{why} (tried again)")).or_default() += 1;
            }
            tokio::time::sleep(wait).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        unreachable!("attempts are not counted out")
    }
}
