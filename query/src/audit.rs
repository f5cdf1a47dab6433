//! The watchers are watched: who asked what, followed which events, exported or changed what is a
//! record in the log, by `system:audit`.
//!
//! A query's record is durable before its answer is given: when it cannot be appended, there is no
//! answer. Records are appended in batches, one batch at a time, however many ask; so auditing
//! costs ingest a request per batch at most, and nobody floods the log by asking faster.
//!
//! A record names the identity and what was asked for, never what authenticated it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use custody_store::system::{AUDIT_IDENTITY, SystemRecord};
use tokio::sync::{mpsc, oneshot};

use crate::caller::{ActorType, Caller};
use crate::error::{Error, ErrorKind};
use crate::recorder::{Recorder, Said};
use crate::repeated::Repeats;

/// Bytes of a text (a query, its parameters) that are kept; its digest is of the whole.
const TEXT_BYTES_MAX: usize = 4096;

/// Records of one batch.
const BATCH_MAX: usize = 256;

/// Records that wait, at most; who comes later waits before his record does.
const WAITING_MAX: usize = 1024;

/// Whose doings are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditMode {
    /// Everybody's, also of whom nobody authenticated.
    All,
    /// Those of authenticated callers.
    #[default]
    Identified,
    /// Nobody's.
    Off,
}

impl AuditMode {
    /// Its name in flags and settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Identified => "identified",
            Self::Off => "off",
        }
    }

    /// The mode of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::All, Self::Identified, Self::Off].into_iter().find(|mode| mode.name() == name)
    }
}

/// Takes secrets out of a text before it is recorded.
pub type Redaction = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// A record that waits, and who waits for it. Without one, who waits for all that were told before.
pub(crate) type Waiting = (Option<SystemRecord>, oneshot::Sender<Result<(), Error>>);

/// Records what callers do. Without a recorder it records nothing.
#[derive(Clone, Default)]
pub struct Audit {
    mode: AuditMode,
    pub(crate) sender: Option<mpsc::Sender<Waiting>>,
    redaction: Option<Redaction>,
    count: Arc<AtomicU64>,
    /// What is done again and again, counted.
    pub(crate) repeats: Arc<Repeats>,
}

impl Audit {
    /// Appends through a recorder. To be called within a Tokio runtime, which appends.
    pub fn new(recorder: Arc<dyn Recorder>, mode: AuditMode) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(append(recorder, receiver));
        let repeats = Arc::<Repeats>::default();
        tokio::spawn(Repeats::tell(Arc::downgrade(&repeats), sender.downgrade()));
        // Numbers of one start of the server follow on each other, and are not those of another start.
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let count = Arc::new(AtomicU64::new(since.map_or(0, |since| since.as_nanos() as u64)));
        Self { mode, sender: Some(sender), redaction: None, count, repeats }
    }

    /// With a way to take secrets out of texts.
    pub fn with_redaction(mut self, redaction: Redaction) -> Self {
        self.redaction = Some(redaction);
        self
    }

    /// Whether this caller's doings are recorded.
    pub fn watches(&self, caller: &Caller) -> bool {
        self.sender.is_some()
            && match self.mode {
                AuditMode::All => true,
                AuditMode::Identified => caller.actor != ActorType::Unknown,
                AuditMode::Off => false,
            }
    }

    /// Begins a record of something that a caller does; `custody.audit.` goes before the action.
    pub fn act(&self, caller: &Caller, action: &str) -> SystemRecord {
        SystemRecord::new(&format!("custody.audit.{action}"))
            .with("custody.audit.identity", &*caller.identity)
            .with("custody.audit.actor_type", caller.actor.name())
            .with("custody.audit.action", action)
            // Two that say the same within one nanosecond are two.
            .with("custody.audit.number", self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// Adds a text, such as a query: its beginning, and the digest and length of the whole.
    pub fn with_text(&self, record: SystemRecord, text: &str) -> SystemRecord {
        let kept = self.kept(text);
        record
            .with("custody.audit.text", kept)
            .with("custody.audit.text.digest", blake3::hash(text.as_bytes()).to_hex().to_string())
            .with("custody.audit.text.bytes", text.len() as u64)
    }

    /// As much of a text as a record keeps, without secrets.
    pub fn kept(&self, text: &str) -> String {
        // Redacted before it is cut: half a secret is one, too.
        let clean = self.redaction.as_ref().map_or_else(|| text.to_owned(), |redact| redact(text));
        match clean.len() > TEXT_BYTES_MAX {
            true => format!("{}...", &clean[..clean.floor_char_boundary(TEXT_BYTES_MAX)]),
            false => clean,
        }
    }

    /// Appends a record, if this caller is watched; returns when it is durable.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`]: what was asked for must not be given.
    pub async fn say(&self, caller: &Caller, record: SystemRecord) -> Result<(), Error> {
        let Some(sender) = self.sender.as_ref().filter(|_| self.watches(caller)) else { return Ok(()) };
        let failed = |_| unrecorded("the server is stopping");
        let (done, wait) = oneshot::channel();
        sender.send((Some(record), done)).await.map_err(|_| unrecorded("the server is stopping"))?;
        wait.await.map_err(failed)?
    }

    /// Appends a record of what nobody waits for any more: an end, or what was broken off.
    pub fn tell(&self, caller: &Caller, record: SystemRecord) {
        let Some(sender) = self.sender.clone().filter(|_| self.watches(caller)) else { return };
        let (done, _) = oneshot::channel();
        if let Err(mpsc::error::TrySendError::Full(waiting)) = sender.try_send((Some(record), done))
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { sender.send(waiting).await });
        }
    }
}

impl Audit {
    /// Records that a stream (of events, of an export) begins, and at its end how much it gave.
    ///
    /// # Errors
    ///
    /// As [`Self::say`]: the stream must not begin.
    pub async fn begin_stream(&self, caller: &Caller, what: &str) -> Result<StreamWatch, Error> {
        let start = Instant::now();
        self.say(caller, self.with_text(self.act(caller, "stream_begin"), what)).await?;
        Ok(StreamWatch { audit: self.clone(), caller: caller.clone(), what: what.to_owned(), start, rows: 0 })
    }
}

/// A stream that is being given; its end is recorded when this is dropped.
pub struct StreamWatch {
    audit: Audit,
    caller: Caller,
    what: String,
    start: Instant,
    /// How many rows were given.
    pub rows: u64,
}

impl Drop for StreamWatch {
    fn drop(&mut self) {
        let elapsed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let record = self.audit.with_text(self.audit.act(&self.caller, "stream_end"), &self.what);
        let record = record.with("custody.audit.rows", self.rows).with("custody.audit.elapsed_ns", elapsed);
        self.audit.tell(&self.caller, record);
    }
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit").field("mode", &self.mode).finish_non_exhaustive()
    }
}

fn unrecorded(why: &str) -> Error {
    let message = format!("what you ask for is recorded, and the record cannot be appended ({why}); ask again later");
    Error::new(ErrorKind::Unavailable, message)
}

/// Appends what waits, a batch at a time, until nobody can ask any more.
async fn append(recorder: Arc<dyn Recorder>, mut receiver: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::new();
    while receiver.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let (records, waiting): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        let identity: Arc<str> = AUDIT_IDENTITY.into();
        let said = records.into_iter().flatten().map(|record| Said { identity: Arc::clone(&identity), record });
        let said: Vec<Said> = said.collect();
        if said.is_empty() {
            waiting.into_iter().for_each(|done| drop(done.send(Ok(()))));
            continue;
        }
        // A log that stands still must not hold those who ask for ever.
        let appended = tokio::time::timeout(Duration::from_secs(30), recorder.append(said)).await;
        let outcome = match appended {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(unrecorded(&error.message)),
            Err(_) => Err(unrecorded("the log does not answer")),
        };
        if let Err(error) = &outcome {
            tracing::error!(%error, records = waiting.len(), "who asked what could not be recorded");
        }
        for done in waiting {
            let _ = done.send(outcome.clone());
        }
    }
}
