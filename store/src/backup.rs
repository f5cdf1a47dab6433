//! Backup and restore, online and incremental: files that earlier backups hold are
//! not copied again. RocksDB's own backup engine copies and checks them.
//!
//! ```text
//! <backup>/db/            the engine's directory, shared by all backups in it
//! <backup>/<id>/          FORMAT, checkpoint, log.vkey; with keys: keys/
//! ```
//!
//! The checkpoint is copied before the database, so that the log of a backup is
//! never shorter than what its checkpoint covers.

use std::fs;
use std::path::Path;
use std::sync::PoisonError;

use rocksdb::Env;
use rocksdb::backup::{BackupEngine, BackupEngineOptions, RestoreOptions};

use crate::format::{cf, meta};
use crate::keys::write_secret;
use crate::ledger::make_dir;
use crate::{Error, Reader};

/// What one backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Its number, rising.
    pub id: u32,
    /// When it was made, in seconds since the Unix epoch.
    pub time: i64,
    /// Bytes of its files, those shared with other backups included.
    pub bytes: u64,
}

fn engine(dir: &Path) -> Result<BackupEngine, Error> {
    let fail =
        |e: rocksdb::Error| Error::invalid(format!("the backup directory {} cannot be used: {e}", dir.display()));
    let mut options = BackupEngineOptions::new(dir.join("db")).map_err(fail)?;
    options.set_sync(true);
    let env = Env::new().map_err(fail)?;
    BackupEngine::open(&options, &env).map_err(fail)
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let fail =
        |e: std::io::Error| Error::unavailable(format!("{} cannot be copied to {}: {e}", from.display(), to.display()));
    fs::copy(from, to).map_err(fail)?;
    fs::File::open(to).and_then(|file| file.sync_all()).map_err(fail)
}

/// Beside a restored log, until it is opened for writing with the knowledge of that.
pub(crate) const RESTORED: &str = "RESTORED";

const FILES: [&str; 3] = ["FORMAT", "checkpoint", "log.vkey"];
const KEYS: [&str; 2] = ["keys/log.key", "keys/submitter.key"];

impl Reader {
    /// Adds a backup to a directory (made if it is not there) and keeps the newest
    /// `keep` of them. Appends go on meanwhile.
    pub fn backup(&self, to: &Path, with_keys: bool, keep: Option<usize>) -> Result<Backup, Error> {
        let fail =
            |e: std::io::Error| Error::invalid(format!("the backup directory {} cannot be made: {e}", to.display()));
        // Both: the database of a backup lies in a directory of somebody else's making, if `to` is one.
        make_dir(&to.join("db")).map_err(fail)?;
        let lock = fs::File::open(to).map_err(fail)?;
        lock.try_lock().map_err(|_| Error::unavailable("another backup to this directory is being made"))?;
        // It begins a new file of the write-ahead log, which must not be while that is cut.
        let _nothing_is_purged = self.shared().purging.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = to.join("new");
        let mut engine = engine(to)?;
        let mut tries = 0;
        loop {
            // Files beside the database must be of the keys that are in force in it.
            let before = self.shared().db.get_cf(self.shared().cf(cf::META), meta::KEYS)?;
            self.stage(&staging, with_keys)?;
            engine.create_new_backup_flush(&self.shared().db, true)?;
            tries += 1;
            if self.shared().db.get_cf(self.shared().cf(cf::META), meta::KEYS)? == before || tries > 3 {
                break;
            }
        }
        let newest = engine.get_backup_info().into_iter().max_by_key(|info| info.backup_id);
        let newest = newest.ok_or_else(|| Error::fatal("the backup engine made no backup"))?;
        engine.verify_backup(newest.backup_id)?;
        // A crash before this line leaves a backup of the database without its checkpoint, which cannot be restored.
        let place = to.join(newest.backup_id.to_string());
        let _ = fs::remove_dir_all(&place);
        fs::rename(&staging, &place).map_err(fail)?;
        if let Some(keep) = keep {
            engine.purge_old_backups(keep.max(1))?;
            let left: Vec<String> = engine.get_backup_info().iter().map(|i| i.backup_id.to_string()).collect();
            remove_others(to, &left).map_err(fail)?;
        }
        Ok(Backup { id: newest.backup_id, time: newest.timestamp, bytes: newest.size })
    }
}

impl Reader {
    /// Copies what stands beside the database.
    fn stage(&self, staging: &Path, with_keys: bool) -> Result<(), Error> {
        let fail =
            |e: std::io::Error| Error::invalid(format!("the backup in {} cannot be made: {e}", staging.display()));
        let _ = fs::remove_dir_all(staging);
        make_dir(staging).map_err(fail)?;
        for name in FILES {
            copy(&self.dir().join(name), &staging.join(name))?;
        }
        // The secret of the submitter ids signs nothing, and without it no record can be added.
        for name in KEYS.iter().filter(|name| with_keys || **name != KEYS[0]) {
            match fs::read(self.dir().join(name)) {
                Ok(secret) => write_secret(&staging.join(name), &secret)?,
                // The keys are held elsewhere.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::invalid(format!("{name} cannot be read: {e}"))),
            }
        }
        Ok(())
    }
}

fn remove_others(to: &Path, left: &[String]) -> std::io::Result<()> {
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_ok() && !left.contains(&name) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// The backups in a directory, oldest first.
pub fn list(dir: &Path) -> Result<Vec<Backup>, Error> {
    if !dir.join("db").is_dir() {
        return Err(Error::invalid(format!("{} holds no backups", dir.display())));
    }
    let info = engine(dir)?.get_backup_info();
    Ok(info.into_iter().map(|i| Backup { id: i.backup_id, time: i.timestamp, bytes: i.size }).collect())
}

/// Restores a backup (the newest, if no id is given) to a directory that is not
/// there yet or empty. Gives the id.
pub fn restore(from: &Path, id: Option<u32>, to: &Path) -> Result<u32, Error> {
    let backups = list(from)?;
    let id = match id {
        Some(id) if backups.iter().any(|b| b.id == id) => id,
        Some(id) => return Err(Error::invalid(format!("{} holds no backup {id}", from.display()))),
        None => backups.last().map(|b| b.id).ok_or_else(|| Error::invalid("there is no backup to restore"))?,
    };
    let fail = |e: std::io::Error| Error::invalid(format!("{} cannot be written: {e}", to.display()));
    make_dir(to).map_err(fail)?;
    if fs::read_dir(to).map_err(fail)?.next().is_some() {
        return Err(Error::invalid(format!("{} is not empty; restore to a new directory", to.display())));
    }
    let place = from.join(id.to_string());
    if !place.join("checkpoint").exists() {
        return Err(Error::corrupt(format!("backup {id} has no checkpoint: it was broken off; restore another")));
    }
    let log = to.join("log");
    make_dir(&log).map_err(fail)?;
    engine(from)?.restore_from_backup(&log, &log, &RestoreOptions::default(), id)?;
    for name in KEYS {
        if let Ok(secret) = fs::read(place.join(name)) {
            write_secret(&to.join(name), &secret)?;
        }
    }
    // What was signed after this backup is not in it: whoever serves it must know.
    fs::write(to.join(RESTORED), format!("backup {id}\n")).map_err(fail)?;
    // FORMAT last: without it the directory is no data directory.
    for name in FILES.iter().rev() {
        copy(&place.join(name), &to.join(name))?;
    }
    Ok(id)
}
