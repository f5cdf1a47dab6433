//! Where consumers stand, on disk: `consumers.json`, JSON values one a line. The first line has all of them,
//! each further one the changes that were made durable together; from time to time the file is replaced by
//! one with a single line.
//!
//! Those who come at the same time share one write and one sync, and a change costs its own bytes: so the
//! cost is bounded by the speed of the disk, however many consumers there are and however often they ask.
//! Nothing is answered before it is synced, but that records gave nothing: a crash forgets a minute of that. A last
//! line that is not whole was never answered for, and is dropped; any other that cannot be read is damage, and
//! nothing is guessed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Position;
use super::filter::Place;
use super::marks::Mark;
use crate::error::{Error, ErrorKind};

/// Files of version 1 have one line alone.
const VERSION: u32 = 2;

/// Bytes of changes, at least, before the file is written anew.
const CHANGES_BYTES: u64 = 256 << 10;

/// What a crash may forget is made durable this often, or with what it must not forget.
const IDLE: Duration = Duration::from_secs(60);

/// A batch that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// Where the batch ends.
    pub(super) seq: u64,
    /// Which erasures were told of then; batches of before have the end of all that was erased.
    #[serde(default)]
    pub(super) known: Option<u64>,
    #[serde(default)]
    pub(super) horizon: u64,
    /// What the log has there, as a cursor would say it.
    #[serde(default)]
    pub(super) mark: Option<Mark>,
    /// Until when a further call commits it; ns since the Unix epoch.
    pub(super) until: u64,
    pub(super) limit: usize,
    pub(super) events: usize,
}

/// A consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Consumer {
    pub(super) identity: String,
    pub(super) name: String,
    /// What it is bound to.
    pub(super) filter: String,
    /// Everything below was received.
    pub(super) seq: u64,
    /// Which erasures its puller was told of; consumers of before have the end of all that was erased.
    #[serde(default)]
    pub(super) known: Option<u64>,
    #[serde(default)]
    pub(super) horizon: u64,
    /// What the log has there; consumers of before have none until their next batch is committed.
    #[serde(default)]
    pub(super) mark: Option<Mark>,
    pub(super) lease: Option<Lease>,
    pub(super) committed_events: u64,
    pub(super) redelivered: u64,
}

impl Consumer {
    pub(super) fn place(&self) -> Place {
        let position = Position { seq: self.seq, known: self.known.unwrap_or_default() };
        Place { position, horizon: self.known.is_none().then_some(self.horizon), mark: self.mark }
    }

    /// It goes on from there.
    pub(super) fn go_to(&mut self, position: Position, mark: Option<Mark>) {
        (self.seq, self.known, self.mark) = (position.seq, Some(position.known), mark);
    }

    /// What was given out is received.
    pub(super) fn commit(&mut self) {
        if let Some(lease) = self.lease.take() {
            (self.seq, self.known, self.horizon, self.mark) = (lease.seq, lease.known, lease.horizon, lease.mark);
            self.committed_events += lease.events as u64;
        }
    }
}

/// Identity and name.
pub(super) type Key = (String, String);

/// All consumers of a log.
#[derive(Debug)]
pub(super) struct States {
    file: Mutex<Journal>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    all: BTreeMap<Key, Consumer>,
    /// What is to be made durable, and who waits for it.
    pending: Pending,
    /// Those that went on in memory alone, and since when.
    idle: BTreeSet<Key>,
    idle_since: Option<Instant>,
}

/// The file.
#[derive(Debug)]
struct Journal {
    path: PathBuf,
    /// Where changes go; `None` if the file has to be written anew first.
    file: Option<File>,
    /// Bytes of its first line, and of the others.
    whole: u64,
    changes: u64,
}

#[derive(Deserialize)]
struct Whole {
    version: u32,
    consumers: Vec<Consumer>,
}

/// Changes that became durable together.
#[derive(Default, Serialize, Deserialize)]
struct Changes {
    put: Vec<Consumer>,
    forgotten: Vec<Key>,
}

fn keyed(consumer: Consumer) -> (Key, Consumer) {
    ((consumer.identity.clone(), consumer.name.clone()), consumer)
}

impl States {
    /// Reads the file; none is no consumers.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let fail = |e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Unavailable, format!("{} cannot be read: {e}", path.display()))
        };
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(|e| fail(&e))?,
        };
        let all = read(&bytes).map_err(|e| fail(&e))?;
        // The first change writes it anew: what a crash left at its end is gone then.
        let file = Journal { path: path.to_owned(), file: None, whole: 0, changes: 0 };
        Ok(Self { file: Mutex::new(file), inner: Mutex::new(Inner { all, ..Inner::default() }) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Consumer> {
        self.lock().all.get(key).cloned()
    }

    /// Those of one identity, and how many there are of all.
    pub(super) fn of(&self, identity: &str) -> (Vec<Consumer>, usize) {
        let inner = self.lock();
        let own = inner.all.values().filter(|consumer| consumer.identity == identity).cloned().collect();
        (own, inner.all.len())
    }

    /// Keeps a consumer in memory alone: only for what a crash may forget. Whether it is time to save.
    pub(super) fn remember(&self, key: Key, consumer: Consumer) -> bool {
        let mut inner = self.lock();
        inner.all.insert(key.clone(), consumer);
        inner.idle.insert(key);
        inner.idle_since.get_or_insert_with(Instant::now).elapsed() >= IDLE
    }

    /// Says that a consumer is to be kept, or with `None` forgotten. [`Self::save`] does it, whoever calls it.
    pub(super) fn change(&self, key: Key, consumer: Option<Consumer>) -> oneshot::Receiver<Result<(), Error>> {
        let (done, wait) = oneshot::channel();
        self.lock().pending.push((key, consumer, done));
        wait
    }

    /// Makes durable what is to be, in one write and one sync. It blocks.
    pub(super) fn save(&self) {
        let mut journal = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (changes, pending) = self.lock().take();
        if changes.is_empty() {
            // Who was before saved it, too.
            return;
        }
        let written = match journal.file.is_some() && journal.changes < journal.whole.max(CHANGES_BYTES) {
            true => journal.append(&changes),
            false => {
                let mut next = Inner { all: self.lock().all.clone(), ..Inner::default() };
                changes.iter().for_each(|(key, consumer)| next.set(key, consumer.clone()));
                journal.replace(&next.all)
            }
        };
        // What is not durable did not happen.
        if written.is_ok() {
            let mut inner = self.lock();
            pending.iter().for_each(|(key, consumer, _)| inner.set(key, consumer.clone()));
        }
        for (.., done) in pending {
            // Nobody waits any more where the client has gone.
            let _ = done.send(written.clone());
        }
    }
}

impl Drop for States {
    /// A stop forgets nothing.
    fn drop(&mut self) {
        self.save();
    }
}

type Changed = BTreeMap<Key, Option<Consumer>>;
type Pending = Vec<(Key, Option<Consumer>, oneshot::Sender<Result<(), Error>>)>;

impl Inner {
    /// What is to be made durable: those that went on in memory, and what is waited for.
    fn take(&mut self) -> (Changed, Pending) {
        let idle = std::mem::take(&mut self.idle);
        self.idle_since = None;
        let mut changes: Changed = idle.into_iter().map(|key| (key.clone(), self.all.get(&key).cloned())).collect();
        let pending = std::mem::take(&mut self.pending);
        for (key, consumer, _) in &pending {
            changes.insert(key.clone(), consumer.clone());
        }
        (changes, pending)
    }

    fn set(&mut self, key: &Key, consumer: Option<Consumer>) {
        match consumer {
            Some(consumer) => drop(self.all.insert(key.clone(), consumer)),
            None => drop(self.all.remove(key)),
        }
    }
}

/// The consumers of a file.
fn read(bytes: &[u8]) -> Result<BTreeMap<Key, Consumer>, String> {
    let mut lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).peekable();
    let Some(first) = lines.next() else { return Ok(BTreeMap::new()) };
    let whole: Whole = serde_json::from_slice(first).map_err(|e| e.to_string())?;
    if !(1..=VERSION).contains(&whole.version) {
        return Err(format!("it is of version {}", whole.version));
    }
    let mut all: BTreeMap<Key, Consumer> = whole.consumers.into_iter().map(keyed).collect();
    while let Some(line) = lines.next() {
        let is_last = lines.peek().is_none();
        let changes: Changes = match serde_json::from_slice(line) {
            Ok(changes) => changes,
            // Nobody was answered for a line of which some bytes did not reach the disk.
            Err(_) if is_last => break,
            Err(e) => return Err(format!("a line of changes: {e}")),
        };
        all.extend(changes.put.into_iter().map(keyed));
        changes.forgotten.iter().for_each(|key| drop(all.remove(key)));
    }
    Ok(all)
}

impl Journal {
    /// Adds a line. After an error what is on the disk is not known: the file is written anew the next time.
    fn append(&mut self, changes: &Changed) -> Result<(), Error> {
        let mut line = Changes::default();
        for (key, consumer) in changes {
            match consumer {
                Some(consumer) => line.put.push(consumer.clone()),
                None => line.forgotten.push(key.clone()),
            }
        }
        let text = self.text(&line)?;
        let Some(mut file) = self.file.take() else { return Err(Error::internal("no consumers.json is open")) };
        file.write_all(&text).and_then(|()| file.sync_data()).map_err(|e| self.failed(&e))?;
        self.changes += text.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    /// Writes the file anew. A crash within leaves the old one or the new one.
    fn replace(&mut self, all: &BTreeMap<Key, Consumer>) -> Result<(), Error> {
        let consumers: Vec<&Consumer> = all.values().collect();
        let text = self.text(&serde_json::json!({"version": VERSION, "consumers": consumers}))?;
        self.file = None;
        let new = self.path.with_extension("new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &self.path)?;
            self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())?;
            Ok(file)
        };
        let file = write().map_err(|e: std::io::Error| self.failed(&e))?;
        (self.file, self.whole, self.changes) = (Some(file), text.len() as u64, 0);
        Ok(())
    }

    fn text(&self, value: &impl Serialize) -> Result<Vec<u8>, Error> {
        let mut text = serde_json::to_vec(value).map_err(|e| self.failed(&e))?;
        text.push(b'\n');
        Ok(text)
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> Error {
        Error::new(ErrorKind::Unavailable, format!("{} cannot be written: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(name: &str, seq: u64) -> Consumer {
        let lease =
            Lease { seq: seq + 5, known: Some(0), horizon: 0, mark: Some([7; 8]), until: 9, limit: 10, events: 5 };
        Consumer {
            identity: "jwt:a\nb".into(),
            name: name.into(),
            filter: "[]".into(),
            seq,
            known: Some(0),
            horizon: 0,
            mark: None,
            lease: Some(lease),
            committed_events: 0,
            redelivered: 0,
        }
    }

    /// What is on the disk.
    fn at(path: &Path) -> Inner {
        Inner { all: read(&std::fs::read(path).unwrap()).unwrap(), ..Inner::default() }
    }

    fn put(states: &States, name: &str, seq: u64) {
        let (key, consumer) = keyed(consumer(name, seq));
        let mut done = states.change(key, Some(consumer));
        states.save();
        assert_eq!(done.try_recv().unwrap().map_err(|e| e.message), Ok(()));
    }

    fn seqs(states: &States) -> Vec<(String, u64)> {
        states.of("jwt:a\nb").0.into_iter().map(|consumer| (consumer.name, consumer.seq)).collect()
    }

    #[test]
    fn what_was_answered_for_is_there_after_a_crash_at_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("consumers.json");
        let states = States::open(&path).unwrap();
        put(&states, "a", 0);
        put(&states, "b", 1);
        let before = std::fs::read(&path).unwrap();
        let known = seqs(&states);
        put(&states, "a", 7);
        let mut forget = states.change(("jwt:a\nb".into(), "b".into()), None);
        states.save();
        assert!(forget.try_recv().unwrap().is_ok());
        let after = std::fs::read(&path).unwrap();
        assert_eq!(after[..before.len()], before, "a change adds to the file");
        let first = before.len() + after[before.len()..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in before.len()..=after.len() {
            std::fs::write(&path, &after[..cut]).unwrap();
            let read = seqs(&States::open(&path).unwrap());
            let want = match cut {
                // The end of a line alone may be what is missing.
                cut if cut + 1 < first => known.clone(),
                cut if cut + 1 < after.len() => vec![("a".into(), 7), ("b".into(), 1)],
                _ => vec![("a".into(), 7)],
            };
            assert_eq!(read, want, "cut at {cut} of {}", after.len());
        }
        // What begins anew after a crash has no torn line before it.
        std::fs::write(&path, &after[..after.len() - 3]).unwrap();
        put(&States::open(&path).unwrap(), "c", 3);
        put(&States::open(&path).unwrap(), "d", 4);
        assert_eq!(seqs(&States::open(&path).unwrap()).len(), 4);
    }

    #[test]
    fn damage_is_told_and_files_of_before_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("consumers.json");
        std::fs::write(
            &path,
            r#"{"consumers":[{"committed_events":3,"filter":"[]","horizon":17,"identity":"jwt:a\nb","lease":null,"name":"old","redelivered":0,"seq":42}],"version":1}"#,
        )
        .unwrap();
        let states = States::open(&path).unwrap();
        assert_eq!(seqs(&states), [("old".into(), 42)]);
        let old = states.get(&("jwt:a\nb".into(), "old".into())).unwrap();
        assert_eq!(old.place(), Place { position: Position { seq: 42, known: 0 }, horizon: Some(17), mark: None });
        put(&states, "new", 1);
        put(&states, "new", 2);
        put(&states, "new", 3);
        let text = std::fs::read_to_string(&path).unwrap();
        let damaged = [
            text.replacen("\"put\"", "\"pot", 1),
            text.replacen("\"version\":2", "\"version\":3", 1),
            text.replacen('{', "", 1),
        ];
        for damaged in damaged {
            std::fs::write(&path, &damaged).unwrap();
            let told = States::open(&path).unwrap_err().message;
            assert!(told.contains("consumers.json cannot be read"), "{told}");
        }
    }

    #[test]
    fn those_who_come_together_share_a_write_and_the_file_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("consumers.json");
        let states = States::open(&path).unwrap();
        put(&states, "first", 1);
        let waiting: Vec<_> = (0..50)
            .map(|n| {
                let (key, consumer) = keyed(consumer(&format!("c{n}"), n));
                states.change(key, Some(consumer))
            })
            .collect();
        states.save();
        states.save();
        assert!(waiting.into_iter().all(|mut done| done.try_recv().unwrap().is_ok()));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
        for seq in 0..3_000 {
            put(&states, "first", seq);
            let bytes = std::fs::metadata(&path).unwrap().len();
            assert!(bytes < 2 * CHANGES_BYTES, "{bytes}");
        }
        assert_eq!(seqs(&States::open(&path).unwrap()).len(), 51);
    }

    #[test]
    fn what_a_crash_may_forget_is_written_with_the_rest_and_at_a_stop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("consumers.json");
        let states = States::open(&path).unwrap();
        put(&states, "a", 1);
        let idle = |states: &States, seq: u64| {
            let (key, consumer) = keyed(consumer("a", seq));
            assert!(!states.remember(key, consumer), "it is not time");
        };
        idle(&states, 2);
        assert_eq!(at(&path).all[&keyed(consumer("a", 0)).0].seq, 1);
        put(&states, "b", 1);
        assert_eq!(at(&path).all.len(), 2);
        assert_eq!(at(&path).all[&keyed(consumer("a", 0)).0].seq, 2);
        idle(&states, 3);
        drop(states);
        assert_eq!(at(&path).all[&keyed(consumer("a", 0)).0].seq, 3);
    }

    #[test]
    fn what_cannot_be_written_did_not_happen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone").join("consumers.json");
        let states = States::open(&path).unwrap();
        let (key, first) = keyed(consumer("a", 1));
        let mut done = states.change(key.clone(), Some(first));
        states.save();
        assert_eq!(done.try_recv().unwrap().unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(states.get(&key), None);
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        put(&states, "a", 2);
        assert_eq!(seqs(&States::open(&path).unwrap()), [("a".into(), 2)]);
    }
}
