//! The data directory: made, known by its FORMAT file, and locked for one writer.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use crate::Error;
use crate::checkpoint::{replace, sync_dir};
use crate::format::FORMAT_VERSION;

/// The lock on a data directory. Let go by name: a child process that is just being
/// started has the file as well, until it runs its own program.
pub(crate) struct Lock(fs::File);

impl Drop for Lock {
    fn drop(&mut self) {
        // What fails here the end of the process does.
        let _ = self.0.unlock();
    }
}

/// Makes the directory a data directory, or checks that it is one, and locks it.
pub(super) fn claim(dir: &Path) -> Result<Lock, Error> {
    let fail = |e: io::Error| {
        Error::invalid(format!(
            "the data directory {} cannot be written: {e}; choose another with --data-dir",
            dir.display()
        ))
    };
    make_dir(dir).map_err(fail)?;
    let lock = fs::File::open(dir).map_err(fail)?;
    lock.try_lock().map_err(|e| match e {
        fs::TryLockError::WouldBlock => in_use(dir),
        fs::TryLockError::Error(e) => fail(e),
    })?;
    let lock = Lock(lock);
    if dir.join("FORMAT").exists() {
        check_format(dir)?;
        let probe = dir.join("FORMAT");
        fs::OpenOptions::new().append(true).open(probe).map_err(fail)?;
        return Ok(lock);
    }
    // A crash while FORMAT is written leaves only FORMAT.new: the directory is still to be made.
    let mut entries = fs::read_dir(dir).map_err(fail)?;
    if entries.any(|entry| !entry.is_ok_and(|e| e.file_name() == "FORMAT.new")) {
        return Err(Error::invalid(format!(
            "{} is not empty and is not a Custody data directory; choose another with --data-dir",
            dir.display()
        )));
    }
    let text = format!("custody log format {FORMAT_VERSION}\n");
    replace(&dir.join("FORMAT"), text.as_bytes(), 0o666).map_err(fail)?;
    Ok(lock)
}

pub(super) fn in_use(dir: &Path) -> Error {
    Error::unavailable(format!(
        "the data directory {} is in use by another process; stop that one, or choose another with --data-dir",
        dir.display()
    ))
}

/// Makes a directory and those above it, for its owner alone: who reads the files is asked by
/// nobody but the system. A directory that is there keeps its mode. What is made is durable: else a
/// power cut could take the directory, with acknowledged records in it.
///
/// # Errors
///
/// If one of them cannot be made.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = dir.parent().unwrap_or(Path::new(""));
    if !above.as_os_str().is_empty() {
        make_dir(above)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        made => made.and_then(|()| sync_dir(above)),
    }
}

pub(super) fn check_format(dir: &Path) -> Result<(), Error> {
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
