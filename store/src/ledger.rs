//! Opening a data directory: create, lock, check, recover.
//!
//! ```text
//! <data-dir>/FORMAT            "custody log format 1"
//! <data-dir>/log/              RocksDB: all that the log is
//! <data-dir>/checkpoint        the newest signed checkpoint, replaced atomically
//! <data-dir>/log.vkey          the public key of the log
//! <data-dir>/keys/log.key      the signing key, mode 0600
//! <data-dir>/keys/submitter.key
//! ```
//!
//! Recovery is the normal way of opening: RocksDB replays its write-ahead log up
//! to the first torn record (nothing after it was acknowledged), and the tail is
//! then checked against head, chain, tree and checkpoint before anything is
//! appended. Where they disagree the log is not opened for writing; and as opening
//! for writing drops what cannot be replayed, all this is looked at for reading first.

mod db;
mod dir;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rocksdb::{ColumnFamily, DB, WriteBatch, WriteOptions};

use crate::backup::RESTORED;
use crate::checkpoint::{Checkpoint, replace_file, sync_dir};
use crate::commit;
use crate::format::{FORMAT_VERSION, Head, cf, meta};
use crate::keys::{self, KeySource, SigningKeys, SubmitterSecret};
use crate::note::VerifierKey;
use crate::reader::Reader;
use crate::tree::{Frontier, root_at};
use crate::writer::{Parts, Writer};
use crate::{Clock, Error, ErrorKind, SystemClock, rotate};

use db::{open_db, open_db_to_read};
pub use dir::make_dir;
use dir::{Lock, check_format, claim};

/// How to open a log.
pub struct Options {
    /// The name of a log that is made anew: a URL without its scheme. By default
    /// `custody.local/` and 16 random hexadecimal digits.
    pub origin: Option<String>,
    /// Where ingest times come from.
    pub clock: Arc<dyn Clock>,
    /// Where the keys are that sign.
    pub keys: KeySource,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// Whether a log that was restored from a backup may be gone on with: what was signed
    /// after the backup is then contradicted, and witnesses will say so.
    pub after_restore: bool,
    /// Whether the database compresses what it writes; not where the filesystem does.
    pub compression: bool,
}

/// What an acknowledgement promises. The level in force is in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Written and fsynced: survives a power cut.
    #[default]
    Fsync,
    /// Handed to the operating system: survives `kill -9`, not a power cut. Checkpoints
    /// are still fsynced first.
    Os,
}

impl Durability {
    /// Its name, as on the command line and in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Os => "os",
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        let clock = Arc::new(SystemClock::default());
        let (keys, durability) = (KeySource::Directory, Durability::Fsync);
        Self { origin: None, clock, keys, durability, after_restore: false, compression: true }
    }
}

/// What the writer and the readers share.
pub(crate) struct Shared {
    pub(crate) db: DB,
    pub(crate) dir: PathBuf,
    pub(crate) origin: String,
    state: Mutex<Published>,
    changed: Condvar,
    /// Held by the one that writes files anew after an erasure.
    pub(crate) purging: Mutex<()>,
    /// Held while the database is written to: so that nobody is while its write-ahead log is cut.
    pub(crate) writing: Mutex<()>,
    /// Holds the directory for the one that writes. Dropped after the database.
    _lock: Option<Lock>,
}

/// What readers may see.
struct Published {
    head: Head,
    checkpoint: Option<Arc<str>>,
    keys: Vec<VerifierKey>,
}

impl Shared {
    /// Writes to the database. The write-ahead log is not cut meanwhile.
    pub(crate) fn write(&self, batch: WriteBatch, options: &WriteOptions) -> Result<(), rocksdb::Error> {
        let _held = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.db.write_opt(batch, options)
    }

    pub(crate) fn cf(&self, name: &str) -> &ColumnFamily {
        // The database is never opened without all of its column families.
        self.db.cf_handle(name).expect("a column family of the log is not open")
    }

    fn published(&self) -> MutexGuard<'_, Published> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn head(&self) -> Head {
        self.published().head
    }

    pub(crate) fn checkpoint(&self) -> Option<Arc<str>> {
        self.published().checkpoint.clone()
    }

    /// The public keys in force.
    pub(crate) fn keys(&self) -> Vec<VerifierKey> {
        self.published().keys.clone()
    }

    pub(crate) fn publish_keys(&self, keys: Vec<VerifierKey>) {
        self.published().keys = keys;
    }

    pub(crate) fn publish_head(&self, head: Head) {
        let mut state = self.published();
        assert!(head.size >= state.head.size, "the log cannot shrink");
        state.head = head;
        self.changed.notify_all();
    }

    pub(crate) fn publish_checkpoint(&self, note: &str) {
        self.published().checkpoint = Some(note.into());
    }

    pub(crate) fn wait(&self, beyond: u64, timeout: std::time::Duration) -> Head {
        let waited = self.changed.wait_timeout_while(self.published(), timeout, |state| state.head.size <= beyond);
        waited.unwrap_or_else(PoisonError::into_inner).0.head
    }
}

/// Opens a data directory for writing, or makes a new one. Only one process can
/// have it open so; any number may read beside it.
pub fn open(dir: &Path, options: Options) -> Result<(Writer, Reader), Error> {
    let lock = claim(dir)?;
    let restored = check_restored(dir, options.after_restore)?;
    examine(dir, &options.keys)?;
    // RocksDB would make it with the rights of the umask.
    let log = dir.join("log");
    make_dir(&log).map_err(|e| Error::invalid(format!("{} cannot be made: {e}", log.display())))?;
    let db = open_db(dir, false, options.compression)?;
    let origin = settle_origin(&db, &options)?;
    let fresh = read_head(&db)? == Head::EMPTY;
    let shared = share(db, dir, origin, vec![], Some(lock))?;
    rotate::finish(&shared)?;
    let keys = SigningKeys::open(&options.keys, dir, &shared.origin, fresh)?;
    check_keys(&shared, &keys)?;
    shared.publish_keys(keys.verifiers());
    let secret = SubmitterSecret::open(&dir.join("keys/submitter.key"), fresh)?;
    let reader = Reader::new(Arc::clone(&shared));
    let signed_size = check(&reader)?;
    let frontier = Frontier::load(shared.head().size, &reader)?;
    let (clock, durability) = (options.clock, options.durability);
    let mut writer = Writer::new(Parts { shared, frontier, keys, secret, clock, durability, signed_size }, &reader)?;
    if fresh {
        writer.append_genesis()?;
    }
    if let Some(backup) = restored {
        writer.note_restore(&backup)?;
        fs::remove_file(dir.join(RESTORED))
            .and_then(|()| sync_dir(dir))
            .map_err(|e| Error::fatal(format!("{} cannot be removed: {e}", dir.join(RESTORED).display())))?;
    }
    writer.note_durability()?;
    write_vkeys(dir, &writer.keys_text())?;
    writer.checkpoint()?;
    // An erasure that a crash broke off before the files were written anew.
    reader.purge()?;
    Ok((writer, reader))
}

/// Opens a data directory for repair: locked, and without the checks that it may fail.
pub(crate) fn open_to_repair(dir: &Path) -> Result<Arc<Shared>, Error> {
    check_format(dir)?;
    let lock = claim(dir)?;
    let db = open_db(dir, false, true)?;
    let origin = read_origin(&db)?.ok_or_else(|| lost(None))?;
    share(db, dir, origin, vec![], Some(lock))
}

/// Looks at a log before it is opened for writing. That changes files: RocksDB
/// drops what it cannot replay, and with it the evidence of what happened. A log
/// that lost what was signed stays as it was found.
fn examine(dir: &Path, source: &KeySource) -> Result<(), Error> {
    let note = read_checkpoint(dir)?;
    let own = matches!(source, KeySource::Directory);
    let has_key = keys::in_directory(dir).exists();
    if own && !has_key {
        // The keys are made when the database has its origin and before the first record.
        return note.map_or(Ok(()), |_| Err(keys::missing(&keys::in_directory(dir))));
    }
    // Keys from elsewhere say nothing about whether there was a log; a checkpoint does.
    let was_there = own || note.is_some();
    if !dir.join("log/CURRENT").exists() {
        return if was_there { Err(lost(note.as_deref())) } else { Ok(()) };
    }
    let db = match open_db_to_read(dir) {
        // A crash while the column families were made: they are made now.
        Err(e) if !was_there && e.kind() == ErrorKind::Invalid => return Ok(()),
        db => db?,
    };
    let Some(origin) = read_origin(&db)? else {
        return if was_there { Err(lost(note.as_deref())) } else { Ok(()) };
    };
    let shared = share(db, dir, origin, vec![], None)?;
    if own && !rotate::is_broken_off(dir) {
        check_keys(&shared, &SigningKeys::open(source, dir, &shared.origin, false)?)?;
    }
    if shared.head() != Head::EMPTY {
        SubmitterSecret::open(&dir.join("keys/submitter.key"), false)?;
    }
    check(&Reader::new(shared)).map(drop)
}

/// What a restored directory was restored from, if it may be gone on with.
fn check_restored(dir: &Path, allowed: bool) -> Result<Option<String>, Error> {
    let Ok(backup) = fs::read_to_string(dir.join(RESTORED)) else { return Ok(None) };
    if allowed {
        return Ok(Some(backup.trim().to_owned()));
    }
    Err(Error::invalid(format!(
        "{} was restored from a backup: if anything was signed after it, going on makes two histories of one log; if \
         the log as it was is really lost, start with --after-restore, which the log will say",
        dir.display()
    )))
}

/// The database is empty or gone, but there was a log.
fn lost(note: Option<&str>) -> Error {
    let signed = note.and_then(|note| Checkpoint::parse_unverified(note).ok());
    let signed = signed.map_or("the log has a key".into(), |c| format!("the checkpoint covers {} records", c.size));
    Error::corrupt(format!("{signed}, but the database log/ is empty or gone; restore the directory from a copy"))
}

/// The log's tail and checkpoint must fit each other. Gives the signed size.
fn check(reader: &Reader) -> Result<u64, Error> {
    check_tail(reader)?;
    check_checkpoint(reader)
}

/// Opens a data directory only for reading: beside a running server, or a copy.
pub(crate) fn open_read_only(dir: &Path) -> Result<Arc<Shared>, Error> {
    check_format(dir)?;
    let note = read_checkpoint(dir)?;
    let db = open_db_to_read(dir)?;
    let origin = read_origin(&db)?.ok_or_else(|| lost(note.as_deref()))?;
    let vkeys = fs::read_to_string(dir.join("log.vkey")).unwrap_or_default();
    let keys = vkeys.lines().map(VerifierKey::parse).collect::<Result<_, _>>();
    let keys = keys.map_err(|e| Error::corrupt(format!("log.vkey: {e}")))?;
    let shared = share(db, dir, origin, keys, None)?;
    if let Some(note) = note {
        shared.publish_checkpoint(&note);
    }
    Ok(shared)
}

fn share(db: DB, dir: &Path, origin: String, keys: Vec<VerifierKey>, lock: Option<Lock>) -> Result<Arc<Shared>, Error> {
    let head = read_head(&db)?;
    let state = Mutex::new(Published { head, checkpoint: None, keys });
    Ok(Arc::new(Shared {
        db,
        dir: dir.to_owned(),
        origin,
        state,
        changed: Condvar::new(),
        purging: Mutex::default(),
        writing: Mutex::default(),
        _lock: lock,
    }))
}

/// The keys that sign must be those that the log names.
fn check_keys(shared: &Shared, keys: &SigningKeys) -> Result<(), Error> {
    if keys.name() != shared.origin {
        return Err(Error::invalid(format!(
            "the signing keys are of {}, but the log's origin is {}; use the log's own keys",
            keys.name(),
            shared.origin
        )));
    }
    let named = shared.db.get_cf(shared.cf(cf::META), meta::KEYS)?;
    let ours: String = keys.verifiers().iter().map(|key| format!("{key}\n")).collect();
    match named {
        Some(named) if named != ours.as_bytes() => Err(Error::invalid(
            "the signing keys are not those that the log names; use the log's own keys, or change them with \
             `custody keys rotate`",
        )),
        _ => Ok(()),
    }
}

/// Writes `log.vkey`, if it says something else.
pub(crate) fn write_vkeys(dir: &Path, text: &str) -> Result<(), Error> {
    let path = dir.join("log.vkey");
    if fs::read_to_string(&path).ok().as_deref() == Some(text) {
        return Ok(());
    }
    replace_file(&path, text.as_bytes())
}

fn read_head(db: &DB) -> Result<Head, Error> {
    match db.get_cf(meta_family(db)?, meta::HEAD)? {
        Some(bytes) => Head::decode(&bytes).ok_or_else(|| Error::corrupt("the log's head is not readable")),
        None => Ok(Head::EMPTY),
    }
}

fn meta_family(db: &DB) -> Result<&ColumnFamily, Error> {
    db.cf_handle(cf::META).ok_or_else(|| Error::corrupt("the log has no column family meta"))
}

fn read_origin(db: &DB) -> Result<Option<String>, Error> {
    let family = meta_family(db)?;
    if let Some(version) = db.get_cf(family, meta::FORMAT)?
        && version != [FORMAT_VERSION]
    {
        return Err(Error::invalid("the log inside this data directory has another format than its FORMAT file says"));
    }
    let origin = db.get_cf(family, meta::ORIGIN)?;
    origin.map(|o| String::from_utf8(o).map_err(|_| Error::corrupt("the log's origin is not text"))).transpose()
}

fn settle_origin(db: &DB, options: &Options) -> Result<String, Error> {
    if let Some(origin) = read_origin(db)? {
        return match &options.origin {
            Some(asked) if *asked != origin => Err(Error::invalid(format!(
                "this log's origin is {origin} and cannot become {asked}; leave out --origin, or use a new data directory"
            ))),
            _ => Ok(origin),
        };
    }
    if read_head(db)? != Head::EMPTY {
        return Err(Error::corrupt("the log has records but no origin"));
    }
    let origin = options.origin.clone().unwrap_or_else(random_origin);
    let is_of_a_name = |c: char| !(c.is_whitespace() || c == '+' || c.is_control());
    if origin.is_empty() || origin.contains("://") || !origin.chars().all(is_of_a_name) {
        return Err(Error::invalid(
            "an origin is a URL without its scheme, such as logs.example.com/agents, with no space and no +",
        ));
    }
    let family = meta_family(db)?;
    let mut batch = WriteBatch::default();
    batch.put_cf(family, meta::FORMAT, [FORMAT_VERSION]);
    batch.put_cf(family, meta::ORIGIN, &origin);
    db.write_opt(batch, &synced())?;
    Ok(origin)
}

/// For a write that is durable when it returns.
pub(crate) fn synced() -> WriteOptions {
    let mut sync = WriteOptions::default();
    sync.set_sync(true);
    sync
}

fn random_origin() -> String {
    let mut bytes = [0; 8];
    commit::random(&mut bytes);
    format!("custody.local/{}", const_hex::encode(bytes))
}

/// The newest signed checkpoint on disk. One that cannot be read for now (permission, a failing disk) is no evidence
/// of damage; one that is not text, or not a file, is.
pub(crate) fn read_checkpoint(dir: &Path) -> Result<Option<String>, Error> {
    use std::io::ErrorKind as K;
    match fs::read_to_string(dir.join("checkpoint")) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == K::NotFound => Ok(None),
        Err(e) if e.kind() == K::InvalidData => Err(Error::corrupt("the checkpoint is not text")),
        Err(e) if e.kind() == K::IsADirectory => Err(Error::corrupt("the checkpoint is a directory, not a file")),
        Err(e) => Err(Error::unavailable(format!("the checkpoint cannot be read: {e}; mend that, and ask again"))),
    }
}

/// The last block must be whole and end at the head.
fn check_tail(reader: &Reader) -> Result<(), Error> {
    let head = reader.head();
    let damaged = |what: &str| {
        Error::corrupt(format!("the log's tail is damaged: {what} (size {}); run `custody verify`", head.size))
    };
    let last = reader.last_commitments()?;
    if head.size == 0 {
        return if last.is_none() { Ok(()) } else { Err(damaged("it has entries but no head")) };
    }
    let last = last.ok_or_else(|| damaged("it has a head but no entries"))?;
    if last.end_seq() != head.size || last.chained(last.previous).last().map(|link| link.chain) != Some(head.chain) {
        return Err(damaged("its last entries do not end in its head"));
    }
    let block = reader.block_at(last.first_seq)?.ok_or_else(|| damaged("its last block is missing"))?;
    match block.content {
        Some(content) if !content.is_of(&last) => Err(damaged("its last block is not what its entries commit to")),
        _ => Ok(()),
    }
}

/// The log must hold what was signed. Gives the signed size.
fn check_checkpoint(reader: &Reader) -> Result<u64, Error> {
    let shared = reader.shared();
    let size = shared.head().size;
    let Some(note) = read_checkpoint(&shared.dir)? else {
        // The genesis record is signed before anything else is appended.
        return if size <= 1 { Ok(0) } else { Err(unsigned(size)) };
    };
    // After a crash in a rotation of keys the newest checkpoint is still by the former ones.
    let checkpoint = Checkpoint::parse_unverified(&note)
        .map_err(|e| Error::corrupt(format!("the file checkpoint is damaged: {e}; restore it from a copy")))?;
    if checkpoint.size > size {
        return Err(Error::corrupt(format!(
            "the signed checkpoint covers {} records but the log holds {size}: it was rolled back or lost its tail; \
             restore the directory, or run `custody verify`",
            checkpoint.size
        )));
    }
    Checkpoint::verify(&note, &rotate::keys_at(reader, checkpoint.size)?)?;
    if root_at(checkpoint.size, reader)? != checkpoint.root {
        return Err(Error::corrupt(
            "the log's tree is not the one its checkpoint was signed for; run `custody verify`",
        ));
    }
    shared.publish_checkpoint(&note);
    Ok(checkpoint.size)
}

fn unsigned(size: u64) -> Error {
    Error::corrupt(format!(
        "the checkpoint is missing, though the log holds {size} records: it cannot be told whether more were signed; \
         restore the file checkpoint from a copy"
    ))
}
