//! The one that appends: requests of all connections, in one order, sharing an fsync.
//!
//! [`Commit::step`] is plain and synchronous; a thin thread around it waits for
//! work. While one group is being synced the next one gathers, so that load makes
//! the groups larger and the fsyncs no more.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use custody_store::{Error, ErrorKind, Prepared, Receipt, Writer};
use opentelemetry::trace::SpanContext;
use tokio::sync::{oneshot, watch};

use crate::pace::{Follow, Pace};
use crate::stats::{Committed, Queued, Stats};
use crate::trace;

/// What the sequencer appends to.
pub trait Log: Send + 'static {
    /// Appends a group with one fsync.
    fn append(&mut self, batch: Vec<Prepared>) -> Result<Vec<Receipt>, Error>;
    /// Signs what is not yet covered by a checkpoint.
    fn checkpoint(&mut self) -> Result<(), Error>;
    /// Does what only the writer can do, between two groups.
    fn run(&mut self, work: Work);
    /// How long the write and fsync of the last group took, in ns.
    fn write_nanos(&self) -> Option<u64> {
        None
    }
}

/// Work for the writer that is no request.
pub type Work = Box<dyn FnOnce(&mut Writer) + Send>;

impl Log for Writer {
    fn append(&mut self, batch: Vec<Prepared>) -> Result<Vec<Receipt>, Error> {
        Writer::append(self, batch)
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        Writer::checkpoint(self)
    }

    fn run(&mut self, work: Work) {
        work(self);
    }

    fn write_nanos(&self) -> Option<u64> {
        Some(Writer::write_nanos(self))
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

/// What waits in the queue.
enum Job {
    Append(Box<Append>),
    /// Work for the writer. Dropped with its reply if the log fails first.
    Command(Work),
}

struct Append {
    request: Prepared,
    reply: oneshot::Sender<Result<Receipt, SubmitError>>,
    /// Given back when the request is durable, also if its client has hung up.
    _hold: Box<dyn Any + Send>,
    /// Counts it as waiting until it is taken into a group.
    queued: Queued,
    /// The span of the request, if it is traced.
    traced: Option<SpanContext>,
}

/// Hands requests to the thread that appends. Cheap to clone.
#[derive(Clone)]
pub struct Sequencer {
    queue: Arc<Mutex<Option<Sender<Job>>>>,
    failed: watch::Receiver<Option<String>>,
    finishing: Arc<AtomicBool>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    stats: Arc<Stats>,
    follow: Arc<OnceLock<Follow>>,
}

impl Sequencer {
    /// Starts the thread, which owns the log from now on.
    pub fn start(log: impl Log, settings: Settings, stats: Arc<Stats>) -> std::io::Result<Self> {
        let (queue, jobs) = channel();
        let (failure, failed) = watch::channel(None);
        let (own_stats, follow) = (Arc::clone(&stats), Arc::<OnceLock<Follow>>::default());
        let pause = settings.checkpoint_interval;
        let (followed, pace) = (Arc::clone(&follow), Pace::default());
        let commit = Commit { log, settings, stats, unsigned_since: None, signed_at: None, pause, followed, pace };
        let run = move || {
            if let Err(error) = commit.run(&jobs) {
                tracing::error!(%error, "the log failed; the server stops so that a restart can recover it");
                failure.send_replace(Some(error.to_string()));
                for job in jobs.try_iter() {
                    let Job::Append(job) = job else { continue };
                    let _ = job.reply.send(Err(SubmitError::Failed(error.to_string())));
                }
            }
        };
        let thread = std::thread::Builder::new().name("sequencer".into()).spawn(run)?;
        let thread = Arc::new(Mutex::new(Some(thread)));
        Ok(Self {
            queue: Arc::new(Mutex::new(Some(queue))),
            failed,
            finishing: Arc::default(),
            thread,
            stats: own_stats,
            follow,
        })
    }

    /// Takes requests more slowly, by at most five times, while readers see records later than `within` after
    /// their acknowledgement. `visible` tells them: all records below it are seen. Only the first call counts.
    pub fn keep_pace(&self, visible: watch::Receiver<u64>, within: Duration) {
        let _ = self.follow.set(Follow { visible, within });
    }

    /// Appends a request; resolves when it is durable. `hold` is dropped when the
    /// request no longer waits, also if the caller has gone by then.
    pub async fn submit(&self, request: Prepared, hold: impl Send + 'static) -> Result<Receipt, SubmitError> {
        self.submit_traced(request, hold, None).await
    }

    /// The same for a request whose span the commit shall belong to.
    pub(crate) async fn submit_traced(
        &self,
        request: Prepared,
        hold: impl Send + 'static,
        traced: Option<SpanContext>,
    ) -> Result<Receipt, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let queued = self.stats.queued(request.bytes() as u64);
        self.send(Job::Append(Box::new(Append { request, reply, _hold: Box::new(hold), queued, traced })))?;
        answer.await.unwrap_or_else(|_| Err(self.failure()))
    }

    /// Has the thread that appends do something else, between two groups; gives what
    /// it gave. What it appended is signed like the rest.
    pub async fn command<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> T + Send + 'static,
    ) -> Result<T, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Command(Box::new(move |writer| {
            // Who asked may have gone; the work is done all the same.
            let _ = reply.send(work(writer));
        })))?;
        answer.await.map_err(|_| self.failure())
    }

    fn send(&self, job: Job) -> Result<(), SubmitError> {
        match &*self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(queue) => queue.send(job).map_err(|_| self.failure()),
            None => Err(SubmitError::Draining),
        }
    }

    fn failure(&self) -> SubmitError {
        SubmitError::Failed(self.failed.borrow().clone().unwrap_or_else(|| "the log stopped".into()))
    }

    /// Why the log failed, if it has.
    pub fn failed_now(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    /// Resolves when the log has failed, with the reason.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        let reason = failed.wait_for(Option::is_some).await.map(|reason| reason.clone());
        match reason {
            Ok(reason) => reason.unwrap_or_default(),
            // The thread ended well: the log will never fail.
            Err(_) if self.finishing.load(Ordering::SeqCst) => std::future::pending().await,
            Err(_) => "the sequencer panicked".into(),
        }
    }

    /// Takes no more requests, finishes those accepted, signs, and ends the thread.
    /// Blocks; gives the log's error if it failed.
    pub fn finish(&self) -> Result<(), String> {
        self.finishing.store(true, Ordering::SeqCst);
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
    /// How long until the next checkpoint is signed.
    pause: Duration,
    /// Readers that shall keep up, if there are any.
    followed: Arc<OnceLock<Follow>>,
    pace: Pace,
}

impl<L: Log> Commit<L> {
    fn run(mut self, jobs: &Receiver<Job>) -> Result<(), Error> {
        loop {
            match jobs.recv_timeout(self.until_checkpoint()) {
                Ok(Job::Append(first)) => self.step(first, jobs)?,
                Ok(Job::Command(work)) => self.command(work),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.log.checkpoint(),
            }
            if self.unsigned_since.is_some() && self.until_checkpoint().is_zero() {
                self.sign()?;
            }
        }
    }

    /// Signs; a signer elsewhere that does not answer now is asked again.
    fn sign(&mut self) -> Result<(), Error> {
        let asked = Instant::now();
        match self.log.checkpoint() {
            Ok(()) => {
                self.stats.signed(true);
                self.unsigned_since = None;
                self.pause = self.settings.checkpoint_interval;
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.stats.signed(false);
                // Appends wait while it is asked: so not often, if asking takes long.
                self.pause = self.settings.checkpoint_interval.max(asked.elapsed() * 5);
                tracing::warn!(%error, "the newest records are durable, but not signed yet");
            }
            Err(error) => return Err(error),
        }
        self.signed_at = Some(Instant::now());
        Ok(())
    }

    /// How long until records must be signed; long if all are.
    fn until_checkpoint(&self) -> Duration {
        if self.unsigned_since.is_none() {
            return Duration::from_secs(3600);
        }
        let waited = self.signed_at.map_or(Duration::MAX, |at| at.elapsed());
        self.pause.saturating_sub(waited)
    }

    /// Work between two groups. If it left the writer dead, signing says so.
    fn command(&mut self, work: Work) {
        self.log.run(work);
        self.unsigned_since.get_or_insert_with(Instant::now);
    }

    /// One group: `first` and what has come meanwhile, appended and answered.
    fn step(&mut self, first: Box<Append>, jobs: &Receiver<Job>) -> Result<(), Error> {
        let mut bytes = first.request.bytes();
        let mut group = vec![first];
        let mut command = None;
        while group.len() < self.settings.group_requests_max && bytes < self.settings.group_bytes_max {
            match jobs.try_recv() {
                Ok(Job::Append(job)) => {
                    bytes += job.request.bytes();
                    group.push(job);
                }
                Ok(Job::Command(work)) => {
                    command = Some(work);
                    break;
                }
                Err(_) => break,
            }
        }
        let traced: Vec<SpanContext> = group.iter_mut().filter_map(|job| job.traced.take()).collect();
        let take = |job: Append| {
            drop(job.queued);
            (job.request, (job.reply, job._hold))
        };
        let (requests, replies): (Vec<_>, Vec<_>) = group.into_iter().map(|job| take(*job)).unzip();
        let (start, begun) = (Instant::now(), SystemTime::now());
        let receipts = match self.log.append(requests) {
            Ok(receipts) => receipts,
            Err(error) => {
                for (reply, _) in replies {
                    let _ = reply.send(Err(SubmitError::Failed(error.to_string())));
                }
                return Err(error);
            }
        };
        let (requests, records) = (receipts.len() as u64, receipts.iter().map(|receipt| receipt.appended).sum());
        let nanos = start.elapsed().as_nanos() as u64;
        // A group that brought nothing new was not written.
        let write_nanos = self.log.write_nanos().filter(|_| records > 0);
        let commit = Committed { requests, records, nanos, write_nanos };
        self.stats.committed(commit);
        trace::committed(&traced, begun, &commit);
        assert_eq!(receipts.len(), replies.len(), "every request has its receipt");
        let size = receipts.iter().filter(|r| r.appended > 0).map(|r| r.first_seq + r.appended).max();
        if size.is_some() {
            self.unsigned_since.get_or_insert_with(Instant::now);
        }
        for ((reply, _), receipt) in replies.into_iter().zip(receipts) {
            // A client that hung up has its record all the same.
            let _ = reply.send(Ok(receipt));
        }
        if let Some(work) = command {
            self.command(work);
        }
        if let (Some(size), Some(follow)) = (size, self.followed.get()) {
            let rest = self.pace.rest(follow, size, Duration::from_nanos(nanos), Instant::now());
            if !rest.is_zero() {
                self.stats.rested(rest);
                std::thread::sleep(rest);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::task::{Context, Waker};

    use custody_proto::{Scan, Signal};
    use custody_store::Encoding;

    /// A log that says what it is given, and goes on when it is told to.
    struct Gate {
        entered: Sender<usize>,
        go: Receiver<()>,
        signed: Arc<AtomicU64>,
    }

    impl Log for Gate {
        fn append(&mut self, batch: Vec<Prepared>) -> Result<Vec<Receipt>, Error> {
            self.entered.send(batch.len()).unwrap();
            self.go.recv().expect("the test tells it to go on, or lets it panic");
            Ok(vec![Receipt { appended: 1, ..Receipt::default() }; batch.len()])
        }

        fn checkpoint(&mut self) -> Result<(), Error> {
            self.signed.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        fn run(&mut self, work: Work) {
            let dir = tempfile::tempdir().unwrap();
            let (mut writer, _) = custody_store::open(dir.path(), custody_store::Options::default()).unwrap();
            work(&mut writer);
        }
    }

    fn request() -> Prepared {
        Prepared::new(Signal::Traces, Encoding::Protobuf, bytes::Bytes::new(), Scan::default(), "peer")
    }

    fn gate(settings: Settings) -> (Sequencer, Receiver<usize>, Sender<()>, Arc<AtomicU64>) {
        let ((entered, groups), (tell, go), signed) = (channel(), channel(), Arc::<AtomicU64>::default());
        let log = Gate { entered, go, signed: Arc::clone(&signed) };
        (Sequencer::start(log, settings, Arc::default()).unwrap(), groups, tell, signed)
    }

    #[tokio::test]
    async fn what_comes_during_an_fsync_shares_the_next_one() {
        let (sequencer, groups, go, signed) = gate(Settings::default());
        let held = Arc::new(());
        let mut submitted: Vec<_> = (0..11).map(|_| Box::pin(sequencer.submit(request(), Arc::clone(&held)))).collect();
        let mut context = Context::from_waker(Waker::noop());
        assert!(submitted[0].as_mut().poll(&mut context).is_pending());
        assert_eq!(groups.recv().unwrap(), 1);
        for later in &mut submitted[1..] {
            assert!(later.as_mut().poll(&mut context).is_pending());
        }
        // A client that hangs up takes nothing back: its request waits, and is still held.
        submitted.pop();
        assert_eq!(Arc::strong_count(&held), 12);
        go.send(()).unwrap();
        assert_eq!(groups.recv().unwrap(), 10);
        go.send(()).unwrap();
        for done in submitted {
            assert_eq!(done.await.unwrap().appended, 1);
        }
        sequencer.finish().unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(signed.load(Ordering::SeqCst) >= 1, "what was appended is signed at the end");
        assert_eq!(sequencer.submit(request(), ()).await, Err(SubmitError::Draining));
    }

    #[tokio::test]
    async fn a_panic_of_the_log_is_a_failure_of_the_log() {
        let (sequencer, groups, go, _) = gate(Settings::default());
        drop(go);
        let failed = sequencer.submit(request(), ()).await;
        assert!(matches!(failed, Err(SubmitError::Failed(_))), "{failed:?}");
        assert_eq!(groups.recv().unwrap(), 1);
        assert_eq!(sequencer.failed().await, "the sequencer panicked");
        assert!(sequencer.finish().is_err());
    }

    #[tokio::test]
    async fn a_command_runs_between_two_groups_and_what_it_did_is_signed() {
        let (sequencer, groups, go, signed) = gate(Settings::default());
        let mut context = Context::from_waker(Waker::noop());
        let mut before = Box::pin(sequencer.submit(request(), ()));
        assert!(before.as_mut().poll(&mut context).is_pending());
        assert_eq!(groups.recv().unwrap(), 1);
        let mut command = Box::pin(sequencer.command(|writer| writer.head_size()));
        assert!(command.as_mut().poll(&mut context).is_pending());
        let mut after = Box::pin(sequencer.submit(request(), ()));
        assert!(after.as_mut().poll(&mut context).is_pending());
        go.send(()).unwrap();
        before.await.unwrap();
        assert_eq!(command.await.unwrap(), 1, "the genesis record");
        assert_eq!(groups.recv().unwrap(), 1, "what came after the command is a group of its own");
        go.send(()).unwrap();
        after.await.unwrap();
        sequencer.finish().unwrap();
        assert!(signed.load(Ordering::SeqCst) >= 1);
        assert_eq!(sequencer.command(|_| ()).await, Err(SubmitError::Draining));
    }

    #[test]
    fn the_last_records_are_signed_without_more_coming() {
        let settings = Settings { checkpoint_interval: Duration::from_millis(1), ..Settings::default() };
        let (sequencer, _groups, go, signed) = gate(settings);
        go.send(()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(sequencer.submit(request(), ())).unwrap();
        while signed.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        sequencer.finish().unwrap();
    }
}
