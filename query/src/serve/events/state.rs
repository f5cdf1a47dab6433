//! Where consumers stand, on disk: one small JSON file that is replaced in one step.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Position;
use crate::error::{Error, ErrorKind};

/// A batch that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// Where the batch ends.
    pub(super) seq: u64,
    pub(super) horizon: u64,
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
    pub(super) horizon: u64,
    pub(super) lease: Option<Lease>,
    pub(super) committed_events: u64,
    pub(super) redelivered: u64,
}

impl Consumer {
    pub(super) fn position(&self) -> Position {
        Position { seq: self.seq, horizon: self.horizon }
    }

    /// What was given out is received.
    pub(super) fn commit(&mut self) {
        if let Some(lease) = self.lease.take() {
            (self.seq, self.horizon) = (lease.seq, lease.horizon);
            self.committed_events += lease.events as u64;
        }
    }
}

/// All consumers of a log, by identity and name.
#[derive(Debug, Default)]
pub(super) struct States {
    path: PathBuf,
    pub(super) all: BTreeMap<(String, String), Consumer>,
}

#[derive(Deserialize)]
struct File {
    version: u32,
    consumers: Vec<Consumer>,
}

impl States {
    /// Reads the file; none is no consumers.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let fail = |e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Unavailable, format!("{} cannot be read: {e}", path.display()))
        };
        let all = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(fail(&e)),
            Ok(bytes) => {
                let file: File = serde_json::from_slice(&bytes).map_err(|e| fail(&e))?;
                if file.version != 1 {
                    return Err(fail(&format!("it is of version {}", file.version)));
                }
                file.consumers.into_iter().map(|c| ((c.identity.clone(), c.name.clone()), c)).collect()
            }
        };
        Ok(Self { path: path.to_owned(), all })
    }

    /// Makes them durable. A crash within leaves the old file or the new one.
    pub(super) fn save(&self) -> Result<(), Error> {
        let consumers: Vec<&Consumer> = self.all.values().collect();
        let text = serde_json::json!({"version": 1, "consumers": consumers}).to_string();
        let new = self.path.with_extension("new");
        let write = || {
            let mut file = std::fs::File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &self.path)?;
            self.path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
        };
        let fail = |e| Error::new(ErrorKind::Unavailable, format!("{} cannot be written: {e}", self.path.display()));
        write().map_err(fail)
    }
}
