//! Where exported objects are kept: a place that never gives up what it has. The place here is a
//! directory; the server brings others.

use std::fmt;
use std::io::{ErrorKind as IoError, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};

/// What became of an object that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there, durably; perhaps it was before.
    There,
    /// Something else is under its name, and stays.
    Other,
}

/// Keeps objects by names such as `events/20261121/09/20261121T090000Z-...ndjson.gz`. Its calls block.
pub trait Shelf: Send + Sync + fmt::Debug {
    /// The names that begin with this folder (`digests/`), in order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`], here and below: try again.
    fn names(&self, folder: &str) -> Result<Vec<String>, Error>;

    /// What is under a name; `None` if nothing is.
    ///
    /// # Errors
    ///
    /// As above.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Puts an object there, whole and durably, unless there is another one.
    ///
    /// # Errors
    ///
    /// As above. It may be there all the same.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<Put, Error>;
}

/// A directory.
#[derive(Clone, Debug)]
pub struct Directory(pub PathBuf);

/// What is being written ends so, and is no object.
const UNFINISHED: &str = "new";

impl Shelf for Directory {
    fn names(&self, folder: &str) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        let mut folders = vec![self.0.join(folder)];
        while let Some(folder) = folders.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Err(e) if e.kind() == IoError::NotFound => continue,
                entries => entries.map_err(|e| failed(&folder, e))?,
            };
            for entry in entries {
                let entry = entry.map_err(|e| failed(&folder, e))?;
                let path = entry.path();
                let relative = path.strip_prefix(&self.0).ok().and_then(Path::to_str).map(str::to_owned);
                match entry.file_type().map_err(|e| failed(&path, e))?.is_dir() {
                    true => folders.push(path),
                    false => found.extend(relative.filter(|name| !name.ends_with(&format!(".{UNFINISHED}")))),
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.0.join(name);
        match std::fs::read(&path) {
            Err(e) if e.kind() == IoError::NotFound => Ok(None),
            read => read.map(Some).map_err(|e| failed(&path, e)),
        }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<Put, Error> {
        if let Some(there) = self.compared(name, bytes)? {
            return Ok(there);
        }
        let path = self.0.join(name);
        let folder = path.parent().unwrap_or(&self.0);
        let new = path.with_extension(UNFINISHED);
        let write = || {
            std::fs::create_dir_all(folder)?;
            let mut file = std::fs::File::create(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            // A link, which unlike a rename replaces nothing; where there are no links, a rename.
            match std::fs::hard_link(&new, &path) {
                Ok(()) => std::fs::remove_file(&new)?,
                Err(e) if e.kind() == IoError::AlreadyExists => return Ok(false),
                Err(_) => std::fs::rename(&new, &path)?,
            }
            std::fs::File::open(folder)?.sync_all().map(|()| true)
        };
        match write().map_err(|e| failed(&path, e))? {
            true => Ok(Put::There),
            false => Ok(self.compared(name, bytes)?.unwrap_or(Put::Other)),
        }
    }
}

impl Directory {
    /// Whether what is under a name is this.
    fn compared(&self, name: &str, bytes: &[u8]) -> Result<Option<Put>, Error> {
        let there = self.read(name)?;
        Ok(there.map(|there| if there == bytes { Put::There } else { Put::Other }))
    }
}

fn failed(what: &Path, error: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{} cannot be written or read: {error}", what.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Directory(dir.path().to_owned());
        assert_eq!(shelf.names("digests/").unwrap(), Vec::<String>::new());
        assert_eq!(shelf.read("digests/a.digest").unwrap(), None);
        for (bytes, put) in [(b"one", Put::There), (b"one", Put::There), (b"two", Put::Other)] {
            assert_eq!(shelf.put("digests/a.digest", bytes).unwrap(), put);
        }
        assert_eq!(shelf.put("digests/b/c.digest", b"").unwrap(), Put::There);
        // What a crash left.
        std::fs::write(dir.path().join("digests/d.new"), "torn").unwrap();
        assert_eq!(shelf.names("digests/").unwrap(), ["digests/a.digest", "digests/b/c.digest"]);
        assert_eq!(shelf.read("digests/a.digest").unwrap().unwrap(), b"one");
        std::fs::create_dir(dir.path().join("digests/e.digest")).unwrap();
        assert_eq!(shelf.put("digests/e.digest", b"x").unwrap_err().kind, ErrorKind::Unavailable);
    }
}
