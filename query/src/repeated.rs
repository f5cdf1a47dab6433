//! What callers do again and again: pages of events that a poller asks for, what somebody is refused
//! who keeps trying.
//!
//! The first time is recorded by itself, and durable before the answer. What follows of the same
//! caller with the same words is counted, and each minute one record says how often it was and how
//! much was given. So one who polls each second makes a record a minute, and whoever polls for the first
//! time is known even if the server dies right after. A crash loses the counts of the last minute, a
//! stop none.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use custody_store::system::SystemRecord;
use tokio::sync::mpsc;

use crate::audit::{Audit, Waiting};
use crate::caller::Caller;
use crate::error::Error;

/// Over how long things are put together.
const WINDOW: Duration = Duration::from_secs(60);

/// Different words of one caller in a window; more of them are counted together.
const WORDS_MAX: usize = 32;

/// Callers and words that are counted at a time; what is beyond is recorded one by one.
const ENTRIES_MAX: usize = 20_000;

/// Instead of words that are too many.
const OTHERS: &str = "(others)";

/// Who, what he does, and with which words.
type Key = (Arc<str>, &'static str, String);

/// What is counted at present.
#[derive(Default)]
pub(crate) struct Repeats(Mutex<HashMap<Key, Arc<Entry>>>);

struct Entry {
    /// The record but for its counts.
    record: SystemRecord,
    counts: Mutex<Counts>,
}

struct Counts {
    since: Instant,
    times: u64,
    rows: u64,
    seqs: Option<Range<u64>>,
}

impl Default for Counts {
    fn default() -> Self {
        Self { since: Instant::now(), times: 0, rows: 0, seqs: None }
    }
}

/// One time of several. What was given is added when it is known.
#[derive(Default)]
pub(crate) struct Repeat(Option<Arc<Entry>>);

impl Repeat {
    /// So many rows were given, off these records.
    pub(crate) fn gave(&self, rows: u64, seqs: Range<u64>) {
        let Some(entry) = &self.0 else { return };
        let mut counts = entry.counts();
        counts.rows += rows;
        counts.seqs = Some(match counts.seqs.take() {
            None => seqs,
            Some(before) => before.start.min(seqs.start)..before.end.max(seqs.end),
        });
    }
}

impl Entry {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of what was counted since the last one; `None` if there is nothing.
    fn told(&self) -> Option<SystemRecord> {
        let counts = std::mem::take(&mut *self.counts());
        if counts.times == 0 && counts.rows == 0 {
            return None;
        }
        let record = self.record.clone().with("custody.audit.count", counts.times);
        let record = record.with("custody.audit.seconds", counts.since.elapsed().as_secs_f64().ceil() as u64);
        Some(match counts.seqs {
            None => record,
            Some(seqs) => record
                .with("custody.audit.rows", counts.rows)
                .with("custody.audit.first_seq", seqs.start)
                .with("custody.audit.next_seq", seqs.end),
        })
    }
}

impl Repeats {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more time, if it is not the first.
    fn again(&self, key: &mut Key) -> Option<Arc<Entry>> {
        let entries = self.lock();
        let words = || entries.keys().filter(|(who, what, _)| *who == key.0 && *what == key.1).count();
        if !entries.contains_key(key) && words() >= WORDS_MAX {
            key.2 = OTHERS.into();
        }
        let entry = entries.get(key)?;
        entry.counts().times += 1;
        Some(Arc::clone(entry))
    }

    /// What comes after the first time is counted from here on.
    fn begin(&self, key: Key, record: SystemRecord) -> Option<Arc<Entry>> {
        let mut entries = self.lock();
        if entries.len() >= ENTRIES_MAX {
            return None;
        }
        let entry = entries.entry(key).or_insert_with(|| Arc::new(Entry { record, counts: Mutex::default() }));
        Some(Arc::clone(entry))
    }

    /// The records of what was counted; what was not done for a whole window is forgotten.
    pub(crate) fn told(&self) -> Vec<SystemRecord> {
        let mut told = Vec::new();
        self.lock().retain(|_, entry| {
            let record = entry.told();
            let stays = record.is_some() || Arc::strong_count(entry) > 1;
            told.extend(record);
            stays
        });
        told
    }

    /// Says once a window what was counted, as long as there is somebody to count for.
    pub(crate) async fn tell(repeats: Weak<Self>, sender: mpsc::WeakSender<Waiting>) {
        loop {
            tokio::time::sleep(WINDOW).await;
            let (Some(repeats), Some(sender)) = (repeats.upgrade(), sender.upgrade()) else { return };
            for record in repeats.told() {
                let (done, _) = tokio::sync::oneshot::channel();
                let _ = sender.send((Some(record), done)).await;
            }
        }
    }
}

impl Audit {
    /// Records that a caller does something that is done again and again: the first time before this
    /// returns, later ones once a minute. `begins` and `does` are the actions of the two.
    ///
    /// # Errors
    ///
    /// As [`Self::say`]: what was asked for must not be given.
    pub(crate) async fn repeated(
        &self,
        caller: &Caller,
        (begins, does): (&'static str, &'static str),
        text: &str,
    ) -> Result<Repeat, Error> {
        if !self.watches(caller) {
            return Ok(Repeat::default());
        }
        let mut key = (Arc::clone(&caller.identity), does, text.to_owned());
        if let Some(entry) = self.repeats.again(&mut key) {
            return Ok(Repeat(Some(entry)));
        }
        let text = key.2.clone();
        self.say(caller, self.with_text(self.act(caller, begins), &text)).await?;
        let entry = self.repeats.begin(key, self.with_text(self.act(caller, does), &text));
        if let Some(entry) = &entry {
            entry.counts().times += 1;
        }
        Ok(Repeat(entry))
    }

    /// Records that a caller was refused something; nobody waits for it.
    pub(crate) fn refused(&self, caller: &Caller, what: &str) {
        const ACTION: &str = "refused";
        if !self.watches(caller) {
            return;
        }
        let mut key = (Arc::clone(&caller.identity), ACTION, what.to_owned());
        if self.repeats.again(&mut key).is_some() {
            return;
        }
        let record = self.with_text(self.act(caller, ACTION), &key.2);
        self.tell(caller, record.clone().with("custody.audit.count", 1u64));
        self.repeats.begin(key, record);
    }

    /// Makes durable what was counted and told until now: the server stops.
    pub async fn flush(&self) {
        let Some(sender) = &self.sender else { return };
        let mut waiting = Vec::new();
        for record in self.repeats.told().into_iter().map(Some).chain([None]) {
            let (done, wait) = tokio::sync::oneshot::channel();
            if sender.send((record, done)).await.is_ok() {
                waiting.push(wait);
            }
        }
        futures::future::join_all(waiting).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::{Recorder, Said};
    use crate::{ActorType, AuditMode};
    use custody_store::system::Attribute;
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    #[derive(Default)]
    struct Kept(Mutex<Vec<SystemRecord>>);

    impl Recorder for Kept {
        fn append(&self, said: Vec<Said>) -> BoxFuture<'static, Result<Vec<u64>, Error>> {
            let count = said.len();
            self.0.lock().unwrap().extend(said.into_iter().map(|said| said.record));
            async move { Ok(vec![0; count]) }.boxed()
        }
    }

    impl Kept {
        /// Name, text and the numbers of what was recorded since.
        fn take(&self) -> Vec<(String, String, Vec<u64>)> {
            let records = std::mem::take(&mut *self.0.lock().unwrap());
            let told = records.into_iter().map(|record| {
                let value = |name: &str| {
                    let name = format!("custody.audit.{name}");
                    record.attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone())
                };
                let numbers =
                    ["count", "rows", "first_seq", "next_seq"].into_iter().filter_map(|name| match value(name) {
                        Some(Attribute::Int(number)) => Some(number as u64),
                        _ => None,
                    });
                let Some(Attribute::Text(text)) = value("text") else { panic!("no text") };
                (record.event.clone(), text, numbers.collect())
            });
            told.collect()
        }
    }

    fn ada() -> Caller {
        Caller { identity: "jwt:idp#ada".into(), actor: ActorType::Human, ..Caller::local(None) }
    }

    #[tokio::test]
    async fn a_poller_is_a_record_at_first_and_then_one_a_minute() {
        let kept = Arc::new(Kept::default());
        let audit = Audit::new(kept.clone(), AuditMode::Identified);
        for n in 0..60 {
            let page = audit.repeated(&ada(), ("poll_begin", "polled"), "events").await.unwrap();
            page.gave(2, n * 10..n * 10 + 10);
        }
        assert_eq!(kept.take(), [("custody.audit.poll_begin".to_owned(), "events".to_owned(), vec![])]);
        audit.flush().await;
        assert_eq!(kept.take(), [("custody.audit.polled".to_owned(), "events".to_owned(), vec![60, 120, 0, 600])]);
        // He goes on: no new beginning. After a minute without him there is one.
        audit.repeated(&ada(), ("poll_begin", "polled"), "events").await.unwrap();
        audit.flush().await;
        assert_eq!(kept.take().len(), 1);
        audit.flush().await;
        audit.repeated(&ada(), ("poll_begin", "polled"), "events").await.unwrap();
        assert_eq!(kept.take()[0].0, "custody.audit.poll_begin");
        let local = Caller::local(None);
        audit.repeated(&local, ("poll_begin", "polled"), "events").await.unwrap();
        assert!(kept.take().is_empty(), "nobody was authenticated");
    }

    #[tokio::test]
    async fn who_changes_his_words_all_the_time_floods_nothing() {
        let kept = Arc::new(Kept::default());
        let audit = Audit::new(kept.clone(), AuditMode::Identified);
        for n in 0..1000 {
            audit.repeated(&ada(), ("poll_begin", "polled"), &format!("events of {n}")).await.unwrap();
            audit.refused(&ada(), "asking");
        }
        audit.flush().await;
        let told = kept.take();
        let others: u64 =
            told.iter().filter(|(name, text, _)| name.ends_with("polled") && text == OTHERS).map(|(.., n)| n[0]).sum();
        assert_eq!(others, 1000 - WORDS_MAX as u64);
        assert_eq!(told.iter().filter(|(name, ..)| name.ends_with("poll_begin")).count(), WORDS_MAX + 1);
        let refused: Vec<u64> =
            told.iter().filter(|(name, ..)| name.ends_with("refused")).map(|(.., n)| n[0]).collect();
        assert_eq!(refused, [1, 999]);
    }
}
