//! The one that appends: requests of all connections, in one order, sharing an fsync.
//!
//! [`Commit::step`] is plain and synchronous; a thin thread around it waits for
//! work. While one group is being synced the next one gathers, so that load makes
//! the groups larger and the fsyncs no more.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use custody_store::{Error, Prepared, Receipt, Writer};
use tokio::sync::{oneshot, watch};

use crate::stats::Stats;

/// What the sequencer appends to.
pub trait Log: Send + 'static {
    /// Appends a group with one fsync.
    fn append(&mut self, batch: Vec<Prepared>) -> Result<Vec<Receipt>, Error>;
    /// Signs what is not yet covered by a checkpoint.
    fn checkpoint(&mut self) -> Result<(), Error>;
}

impl Log for Writer {
    fn append(&mut self, batch: Vec<Prepared>) -> Result<Vec<Receipt>, Error> {
        Writer::append(self, batch)
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        Writer::checkpoint(self)
    }
}

/// How the sequencer groups and signs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most payload bytes in one group.
    pub group_bytes_max: usize,
    /// Most requests in one group.
    pub group_requests_max: usize,
    /// While records arrive, a checkpoint is signed this often.
    pub checkpoint_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { group_bytes_max: 32 << 20, group_requests_max: 1024, checkpoint_interval: Duration::from_secs(1) }
    }
}

/// Why a request was not appended, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// The server is stopping; another will take it.
    Draining,
    /// The log failed; the request may or may not be in it.
    Failed(String),
}

struct Job {
    request: Prepared,
    reply: oneshot::Sender<Result<Receipt, SubmitError>>,
}

/// Hands requests to the thread that appends. Cheap to clone.
#[derive(Clone)]
pub struct Sequencer {
    queue: Arc<Mutex<Option<Sender<Job>>>>,
    failed: watch::Receiver<Option<String>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Sequencer {
    /// Starts the thread, which owns the log from now on.
    pub fn start(log: impl Log, settings: Settings, stats: Arc<Stats>) -> std::io::Result<Self> {
        let (queue, jobs) = channel();
        let (failure, failed) = watch::channel(None);
        let commit = Commit { log, settings, stats, unsigned_since: None, signed_at: None };
        let run = move || {
            if let Err(error) = commit.run(&jobs) {
                tracing::error!(%error, "the log failed; the server stops so that a restart can recover it");
                failure.send_replace(Some(error.to_string()));
                for job in jobs.try_iter() {
                    let _ = job.reply.send(Err(SubmitError::Failed(error.to_string())));
                }
            }
        };
        let thread = std::thread::Builder::new().name("sequencer".into()).spawn(run)?;
        let thread = Arc::new(Mutex::new(Some(thread)));
        Ok(Self { queue: Arc::new(Mutex::new(Some(queue))), failed, thread })
    }

    /// Appends a request; resolves when it is durable.
    pub async fn submit(&self, request: Prepared) -> Result<Receipt, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let sent = match &*self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(queue) => queue.send(Job { request, reply }).map_err(|_| ()),
            None => return Err(SubmitError::Draining),
        };
        let failed = || SubmitError::Failed(self.failed.borrow().clone().unwrap_or_else(|| "the log stopped".into()));
        sent.map_err(|()| failed())?;
        answer.await.unwrap_or_else(|_| Err(failed()))
    }

    /// Resolves when the log has failed, with the reason.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        let reason = failed.wait_for(Option::is_some).await.map(|reason| reason.clone());
        match reason {
            Ok(reason) => reason.unwrap_or_default(),
            // The thread ended well: the log will never fail.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes no more requests, finishes those accepted, signs, and ends the thread.
    /// Blocks; gives the log's error if it failed.
    pub fn finish(&self) -> Result<(), String> {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
            && thread.join().is_err()
        {
            return Err("the sequencer panicked".into());
        }
        self.failed.borrow().clone().map_or(Ok(()), Err)
    }
}

/// The state of the appending thread.
struct Commit<L> {
    log: L,
    settings: Settings,
    stats: Arc<Stats>,
    unsigned_since: Option<Instant>,
    signed_at: Option<Instant>,
}

impl<L: Log> Commit<L> {
    fn run(mut self, jobs: &Receiver<Job>) -> Result<(), Error> {
        loop {
            match jobs.recv_timeout(self.until_checkpoint()) {
                Ok(first) => self.step(first, jobs)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.log.checkpoint(),
            }
            if self.unsigned_since.is_some() && self.until_checkpoint().is_zero() {
                self.log.checkpoint()?;
                self.unsigned_since = None;
                self.signed_at = Some(Instant::now());
            }
        }
    }

    /// How long until records must be signed; long if all are.
    fn until_checkpoint(&self) -> Duration {
        if self.unsigned_since.is_none() {
            return Duration::from_secs(3600);
        }
        let waited = self.signed_at.map_or(Duration::MAX, |at| at.elapsed());
        self.settings.checkpoint_interval.saturating_sub(waited)
    }

    /// One group: `first` and what has come meanwhile, appended and answered.
    fn step(&mut self, first: Job, jobs: &Receiver<Job>) -> Result<(), Error> {
        let mut bytes = first.request.bytes();
        let mut group = vec![first];
        while group.len() < self.settings.group_requests_max && bytes < self.settings.group_bytes_max {
            let Ok(job) = jobs.try_recv() else { break };
            bytes += job.request.bytes();
            group.push(job);
        }
        let (requests, replies): (Vec<_>, Vec<_>) = group.into_iter().map(|job| (job.request, job.reply)).unzip();
        let start = Instant::now();
        let receipts = match self.log.append(requests) {
            Ok(receipts) => receipts,
            Err(error) => {
                for reply in replies {
                    let _ = reply.send(Err(SubmitError::Failed(error.to_string())));
                }
                return Err(error);
            }
        };
        self.stats.committed(start.elapsed().as_nanos() as u64);
        assert_eq!(receipts.len(), replies.len(), "every request has its receipt");
        if receipts.iter().any(|r| r.appended > 0) {
            self.unsigned_since.get_or_insert_with(Instant::now);
        }
        for (reply, receipt) in replies.into_iter().zip(receipts) {
            // A client that hung up has its record all the same.
            let _ = reply.send(Ok(receipt));
        }
        Ok(())
    }
}
