//! What is said in the log about who came in and what was configured, by `system:audit`.
//!
//! Failures are put together: a record for the first second of trouble, then for two, four and so on
//! up to a minute. A flood of bad tokens makes a record a minute, which has the count of all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use custody_query::{Recorder, Said};
use custody_store::system::{AUDIT_IDENTITY, Attribute, SystemRecord};
use tokio::task::JoinSet;

/// Somebody could not come in.
pub const LOGIN_FAILED: &str = "custody.audit.login_failed";
/// Who may do what was configured anew, or could not be; or a token was made.
pub const CONFIG: &str = "custody.audit.config";

/// Names of one kind that a record has; of more it has the number.
const NAMES_MAX: usize = 16;

/// The first and the longest time over which failures are put together.
const WINDOW_MIN: Duration = Duration::from_secs(1);
const WINDOW_MAX: Duration = Duration::from_secs(60);

/// The way to the log.
#[derive(Default)]
pub struct Audit {
    recorder: OnceLock<Arc<dyn Recorder>>,
    failures: Mutex<Failures>,
    /// What was said and may not be durable yet.
    said: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct Failures {
    count: u64,
    reasons: BTreeMap<&'static str, u64>,
    peers: Names,
    identities: Names,
    /// When the first of them was.
    since: Option<Instant>,
}

/// Some names, and how many more there were.
#[derive(Default)]
struct Names(BTreeMap<String, u64>, u64);

impl Names {
    fn add(&mut self, name: &str) {
        if let Some(count) = self.0.get_mut(name) {
            *count += 1;
        } else if self.0.len() < NAMES_MAX {
            self.0.insert(name.to_owned(), 1);
        } else {
            self.1 += 1;
        }
    }

    fn texts(&self) -> Attribute {
        Attribute::Texts(self.0.iter().map(|(name, count)| format!("{name} {count}")).collect())
    }
}

impl Audit {
    /// From now on there is a log to say it in.
    pub fn begin(self: &Arc<Self>, recorder: Arc<dyn Recorder>) {
        let _ = self.recorder.set(recorder);
        tokio::spawn(Arc::clone(self).put_together());
    }

    /// Says something, without waiting for it to be durable.
    pub fn say(&self, record: SystemRecord) {
        let Some(recorder) = self.recorder.get() else { return };
        let appended = recorder.append(vec![Said { identity: AUDIT_IDENTITY.into(), record }]);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        while said.try_join_next().is_some() {}
        said.spawn(async move {
            if let Err(error) = appended.await {
                tracing::error!(%error, "the log takes no audit record");
            }
        });
    }

    /// Says something, and waits until it is durable.
    pub async fn said(&self, record: SystemRecord) -> Result<(), custody_query::Error> {
        let Some(recorder) = self.recorder.get() else { return Ok(()) };
        recorder.append(vec![Said { identity: AUDIT_IDENTITY.into(), record }]).await.map(drop)
    }

    /// Somebody could not come in. `identity` is who he is or claims to be, if that is known.
    pub fn failed(&self, reason: &'static str, peer: &str, identity: Option<&str>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.count += 1;
        failures.since.get_or_insert_with(Instant::now);
        *failures.reasons.entry(reason).or_default() += 1;
        failures.peers.add(peer);
        if let Some(identity) = identity {
            failures.identities.add(identity);
        }
    }

    /// Says what was not said yet, and waits until that and what was said before is durable: the server stops.
    pub async fn flush(&self) {
        let failures = std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(since) = failures.since {
            self.say(failures.record(Duration::from_secs(since.elapsed().as_secs() + 1)));
        }
        // Failures that were taken before those have been said by now.
        let mut said = std::mem::take(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner));
        while said.join_next().await.is_some() {}
    }

    async fn put_together(self: Arc<Self>) {
        let mut window = WINDOW_MIN;
        loop {
            tokio::time::sleep(window).await;
            window = self.say_failures(window);
        }
    }

    /// Says what failed within a window; gives the next one.
    fn say_failures(&self, window: Duration) -> Duration {
        // Held until it is said: who finds none there waits for all that was said before.
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = std::mem::take(&mut *failures);
        if taken.count == 0 {
            return WINDOW_MIN;
        }
        tracing::warn!(count = taken.count, reasons = ?taken.reasons, "some could not come in");
        self.say(taken.record(window));
        (window * 2).min(WINDOW_MAX)
    }
}

impl Failures {
    fn record(&self, window: Duration) -> SystemRecord {
        let reasons = self.reasons.iter().map(|(reason, count)| format!("{reason} {count}"));
        let mut record = SystemRecord::new(LOGIN_FAILED)
            .with("custody.audit.count", self.count)
            .with("custody.audit.seconds", window.as_secs())
            .with("custody.audit.reasons", Attribute::Texts(reasons.collect()))
            .with("custody.audit.peers", self.peers.texts());
        if self.peers.1 > 0 {
            record = record.with("custody.audit.other_peers", self.peers.1);
        }
        if !self.identities.0.is_empty() {
            record = record.with("custody.audit.identities", self.identities.texts());
        }
        if self.identities.1 > 0 {
            record = record.with("custody.audit.other_identities", self.identities.1);
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_record_that_counts_all_of_it() {
        let audit = Audit::default();
        for n in 0..10_000 {
            audit.failed("signature", &format!("peer:10.0.{}.{}", n / 250, n % 250), (n % 2 == 0).then_some("jwt:a#b"));
        }
        let record = audit.failures.lock().unwrap().record(WINDOW_MIN);
        let value = |key: &str| record.attributes.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        assert_eq!(value("custody.audit.count"), Some(10_000u64.into()));
        assert_eq!(value("custody.audit.reasons"), Some(Attribute::Texts(vec!["signature 10000".into()])));
        assert_eq!(record.texts("custody.audit.peers").unwrap().len(), NAMES_MAX);
        assert_eq!(value("custody.audit.other_peers"), Some((10_000 - NAMES_MAX as u64).into()));
        assert_eq!(value("custody.audit.identities"), Some(Attribute::Texts(vec!["jwt:a#b 5000".into()])));
    }
}
