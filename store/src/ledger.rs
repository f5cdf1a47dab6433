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
//! appended. Where they disagree the log is not opened for writing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, Options as DbOptions,
};

use crate::checkpoint::{Checkpoint, replace_file};
use crate::commit;
use crate::format::{FORMAT_VERSION, Head, cf, meta};
use crate::keys::{KeySource, SigningKeys, SubmitterSecret};
use crate::note::VerifierKey;
use crate::reader::Reader;
use crate::tree::{Frontier, root_at};
use crate::writer::{Parts, Writer};
use crate::{Clock, Error, SystemClock, rotate};

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
        Self { origin: None, clock, keys, durability, compression: true }
    }
}

/// What the writer and the readers share.
pub(crate) struct Shared {
    pub(crate) db: DB,
    pub(crate) dir: PathBuf,
    pub(crate) origin: String,
    state: Mutex<Published>,
    changed: Condvar,
}

/// What readers may see.
struct Published {
    head: Head,
    checkpoint: Option<Arc<str>>,
    keys: Vec<VerifierKey>,
}

impl Shared {
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
    let fresh = claim(dir)?;
    let db = open_db(dir, false, options.compression)?;
    let origin = settle_origin(&db, &options, fresh)?;
    let shared = share(db, dir, origin, vec![])?;
    let fresh = shared.head().size == 0;
    rotate::finish(&shared)?;
    let keys = SigningKeys::open(&options.keys, dir, &shared.origin, fresh)?;
    check_keys(&shared, &keys)?;
    shared.publish_keys(keys.verifiers());
    let secret = SubmitterSecret::open(&dir.join("keys/submitter.key"), fresh)?;
    let reader = Reader::new(Arc::clone(&shared));
    check_tail(&reader)?;
    let frontier = Frontier::load(shared.head().size, &reader)?;
    let signed_size = check_checkpoint(&reader)?;
    let (clock, durability) = (options.clock, options.durability);
    let mut writer = Writer::new(Parts { shared, frontier, keys, secret, clock, durability, signed_size }, &reader)?;
    if fresh {
        writer.append_genesis()?;
    }
    writer.note_durability()?;
    write_vkeys(dir, &writer.keys_text())?;
    writer.checkpoint()?;
    // An erasure that a crash broke off before the files were written anew.
    reader.purge()?;
    Ok((writer, reader))
}

/// Opens a data directory only for reading: beside a running server, or a copy.
pub(crate) fn open_read_only(dir: &Path) -> Result<Arc<Shared>, Error> {
    check_format(dir)?;
    let note = read_checkpoint(dir)?;
    let db = open_db(dir, true, true)?;
    let origin = read_origin(&db)?.ok_or_else(|| Error::corrupt("the log has no origin"))?;
    let vkeys = fs::read_to_string(dir.join("log.vkey")).unwrap_or_default();
    let keys = vkeys.lines().map(VerifierKey::parse).collect::<Result<_, _>>();
    let keys = keys.map_err(|e| Error::corrupt(format!("log.vkey: {e}")))?;
    let shared = share(db, dir, origin, keys)?;
    if let Some(note) = note {
        shared.publish_checkpoint(&note);
    }
    Ok(shared)
}

fn share(db: DB, dir: &Path, origin: String, keys: Vec<VerifierKey>) -> Result<Arc<Shared>, Error> {
    let shared = Shared {
        db,
        dir: dir.to_owned(),
        origin,
        state: Mutex::new(Published { head: Head::EMPTY, checkpoint: None, keys }),
        changed: Condvar::new(),
    };
    let head = match shared.db.get_cf(shared.cf(cf::META), meta::HEAD)? {
        Some(bytes) => Head::decode(&bytes).ok_or_else(|| Error::corrupt("the log's head is not readable"))?,
        None => Head::EMPTY,
    };
    shared.publish_head(head);
    Ok(Arc::new(shared))
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

/// Makes the directory a data directory, or checks that it is one. True if it is new.
fn claim(dir: &Path) -> Result<bool, Error> {
    let fail = |e: std::io::Error| {
        Error::invalid(format!(
            "the data directory {} cannot be written: {e}; choose another with --data-dir",
            dir.display()
        ))
    };
    fs::create_dir_all(dir).map_err(fail)?;
    if dir.join("FORMAT").exists() {
        check_format(dir)?;
        let probe = dir.join("FORMAT");
        fs::OpenOptions::new().append(true).open(probe).map_err(fail)?;
        return Ok(false);
    }
    let mut entries = fs::read_dir(dir).map_err(fail)?;
    if entries.next().is_some() {
        return Err(Error::invalid(format!(
            "{} is not empty and is not a Custody data directory; choose another with --data-dir",
            dir.display()
        )));
    }
    let text = format!("custody log format {FORMAT_VERSION}\n");
    fs::write(dir.join("FORMAT"), text).map_err(fail)?;
    Ok(true)
}

fn check_format(dir: &Path) -> Result<(), Error> {
    let path = dir.join("FORMAT");
    let text = fs::read_to_string(&path).map_err(|e| {
        Error::invalid(format!("{} is not a readable Custody data directory: {}: {e}", dir.display(), path.display()))
    })?;
    let version = text.trim().strip_prefix("custody log format ").and_then(|n| n.parse::<u32>().ok());
    match version {
        Some(n) if n == u32::from(FORMAT_VERSION) => Ok(()),
        Some(n) => Err(Error::invalid(format!(
            "{} has log format {n}; this version of custody reads format {FORMAT_VERSION}: use a newer custody",
            dir.display()
        ))),
        None => Err(Error::invalid(format!("{} does not name a Custody log format", path.display()))),
    }
}

fn open_db(dir: &Path, read_only: bool, compression: bool) -> Result<DB, Error> {
    let path = dir.join("log");
    let cache = Cache::new_lru_cache(64 << 20);
    let families = cf::ALL.map(|name| ColumnFamilyDescriptor::new(name, family_options(name, &cache, compression)));
    let options = db_options();
    check_frozen(&path)?;
    let opened = if read_only {
        DB::open_cf_descriptors_read_only(&options, &path, families, false)
    } else {
        DB::open_cf_descriptors(&options, &path, families)
    };
    opened.map_err(|e| {
        let text = e.to_string();
        if text.contains("lock") && !read_only {
            Error::unavailable(format!(
                "the data directory {} is in use by another process; stop that one, or choose another with --data-dir",
                dir.display()
            ))
        } else {
            Error::corrupt(format!("the log in {} cannot be opened: {text}", dir.display()))
        }
    })
}

/// Logs that were made before format 1 was settled have fewer column families.
fn check_frozen(log: &Path) -> Result<(), Error> {
    match DB::list_cf(&DbOptions::default(), log) {
        Ok(families) if !families.iter().any(|name| name == cf::SYSTEM) => Err(Error::invalid(format!(
            "{} was made by a development version, before log format 1 was settled; start a new data directory with \
             --data-dir, and keep the old one with the version that made it",
            log.display()
        ))),
        _ => Ok(()),
    }
}

fn db_options() -> DbOptions {
    let mut options = DbOptions::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_background_jobs(2);
    options.set_db_write_buffer_size(128 << 20);
    options.set_max_total_wal_size(256 << 20);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(4 << 20);
    options
}

fn family_options(name: &str, cache: &Cache, compression: bool) -> DbOptions {
    let mut options = DbOptions::default();
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_format_version(5);
    if matches!(name, cf::IDS | cf::REQUESTS | cf::SUBMITTERS) {
        table.set_bloom_filter(10.0, false);
    }
    options.set_block_based_table_factory(&table);
    let (hot, cold) = if compression {
        (DBCompressionType::Lz4, DBCompressionType::Zstd)
    } else {
        (DBCompressionType::None, DBCompressionType::None)
    };
    options.set_compression_type(hot);
    options.set_bottommost_compression_type(cold);
    options.set_write_buffer_size(32 << 20);
    options
}

fn read_origin(db: &DB) -> Result<Option<String>, Error> {
    let family = db.cf_handle(cf::META).ok_or_else(|| Error::corrupt("the log has no column family meta"))?;
    if let Some(version) = db.get_cf(family, meta::FORMAT)?
        && version != [FORMAT_VERSION]
    {
        return Err(Error::invalid("the log inside this data directory has another format than its FORMAT file says"));
    }
    let origin = db.get_cf(family, meta::ORIGIN)?;
    origin.map(|o| String::from_utf8(o).map_err(|_| Error::corrupt("the log's origin is not text"))).transpose()
}

fn settle_origin(db: &DB, options: &Options, fresh: bool) -> Result<String, Error> {
    if let Some(origin) = read_origin(db)? {
        return match &options.origin {
            Some(asked) if *asked != origin => Err(Error::invalid(format!(
                "this log's origin is {origin} and cannot become {asked}; leave out --origin, or use a new data directory"
            ))),
            _ => Ok(origin),
        };
    }
    let head = db.cf_handle(cf::META).map(|family| db.get_cf(family, meta::HEAD)).transpose()?.flatten();
    if !fresh && head.is_some() {
        return Err(Error::corrupt("the log has records but no origin"));
    }
    let origin = options.origin.clone().unwrap_or_else(random_origin);
    if origin.is_empty() || origin.contains(|c: char| c.is_whitespace() || c == '+' || c.is_control()) {
        return Err(Error::invalid(
            "an origin is a URL without its scheme, such as logs.example.com/agents, with no space and no +",
        ));
    }
    let family = db.cf_handle(cf::META).ok_or_else(|| Error::corrupt("the log has no column family meta"))?;
    let mut sync = rocksdb::WriteOptions::default();
    sync.set_sync(true);
    let mut batch = rocksdb::WriteBatch::default();
    batch.put_cf(family, meta::FORMAT, [FORMAT_VERSION]);
    batch.put_cf(family, meta::ORIGIN, &origin);
    db.write_opt(batch, &sync)?;
    Ok(origin)
}

fn random_origin() -> String {
    let mut bytes = [0; 8];
    commit::random(&mut bytes);
    format!("custody.local/{}", const_hex::encode(bytes))
}

/// The newest signed checkpoint on disk.
pub(crate) fn read_checkpoint(dir: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(dir.join("checkpoint")) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => Err(Error::corrupt("the checkpoint is not text")),
        Err(e) => Err(Error::corrupt(format!("the checkpoint cannot be read: {e}"))),
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

fn no_checkpoint(dir: &Path) -> Error {
    Error::corrupt(format!(
        "{} is missing, so nothing shows whether the log lost its tail; put the file back from a backup, or see what \
         `custody repair` says",
        dir.join("checkpoint").display()
    ))
}

/// The log must hold what was signed. Gives the signed size.
fn check_checkpoint(reader: &Reader) -> Result<u64, Error> {
    let shared = reader.shared();
    let size = shared.head().size;
    let Some(note) = read_checkpoint(&shared.dir)? else {
        // A crash between the genesis record and the first checkpoint leaves just that record.
        return if size <= 1 { Ok(0) } else { Err(no_checkpoint(&shared.dir)) };
    };
    // After a crash in a rotation of keys the newest checkpoint is still by the former ones.
    let checkpoint = Checkpoint::parse_unverified(&note)?;
    let checkpoint = Checkpoint::verify(&note, &rotate::keys_at(reader, checkpoint.size)?)?;
    if checkpoint.size > size {
        return Err(Error::corrupt(format!(
            "the signed checkpoint covers {} records but the log holds {size}: it was rolled back or lost its tail; \
             restore the directory, or run `custody verify`",
            checkpoint.size
        )));
    }
    if root_at(checkpoint.size, reader)? != checkpoint.root {
        return Err(Error::corrupt(
            "the log's tree is not the one its checkpoint was signed for; run `custody verify`",
        ));
    }
    shared.publish_checkpoint(&note);
    Ok(checkpoint.size)
}
