//! What the writer says of the log itself: its checkpoints, its genesis, durability, restores and clocks.

use std::sync::Arc;

use rocksdb::WriteBatch;

use super::{Writer, stopped};
use crate::Error;
use crate::checkpoint::{Checkpoint, replace_file};
use crate::format::{FORMAT_VERSION, cf, meta};
use crate::ledger::Durability;
use crate::note::VerifierKey;
use crate::system::{Attribute, SystemRecord, event};

/// A clock that is off by more than this from what passed is said to have jumped, in ns.
const CLOCK_JUMP_NS: u64 = 5_000_000_000;

impl Writer {
    /// Signs and publishes a checkpoint, if there are records that the last one
    /// does not cover. What it covers is durable. While a signer elsewhere does not
    /// answer, the error is `Unavailable` and the writer goes on.
    pub fn checkpoint(&mut self) -> Result<(), Error> {
        if self.dead {
            return Err(stopped());
        }
        if self.head.size <= self.signed_size && self.former.is_none() {
            return Ok(());
        }
        let size = self.head.size;
        let checkpoint = Checkpoint { origin: self.shared.origin.clone(), size, root: self.frontier.root() };
        let time = self.clock.now() / 1_000_000_000;
        let mut note = self.keys.sign_checkpoint(&checkpoint, time)?;
        if let Some(former) = &self.former {
            note.merge(former.sign_checkpoint(&checkpoint, time)?.lines);
        }
        let note = note.to_string();
        self.alive(|writer| {
            if writer.durability == Durability::Os {
                // What was acknowledged is in the operating system's hands; what is signed must be on disk.
                let synced = writer.shared.db.flush_wal(true);
                synced.map_err(|e| Error::fatal(format!("the log cannot be synced: {e}")))?;
            }
            // A crash here forgets a signature that nobody has seen; the same tree is signed again.
            replace_file(&writer.shared.dir.join("checkpoint"), note.as_bytes())
        })?;
        self.former = None;
        self.signed_size = size;
        self.shared.publish_checkpoint(&note);
        Ok(())
    }

    /// Appends the log's first record, which names its origin, format, keys and durability.
    pub(crate) fn append_genesis(&mut self) -> Result<(), Error> {
        let record = SystemRecord::new(event::GENESIS)
            .with("custody.log.origin", self.shared.origin.as_str())
            .with("custody.log.format", u64::from(FORMAT_VERSION))
            .with("custody.log.vkeys", vkeys(&self.keys.verifiers()))
            .with("custody.log.durability", self.durability.name());
        let (keys, level) = (self.keys_text(), self.durability.name());
        let shared = Arc::clone(&self.shared);
        let more = |write: &mut WriteBatch| {
            write.put_cf(shared.cf(cf::META), meta::KEYS, keys);
            write.put_cf(shared.cf(cf::META), meta::DURABILITY, level);
            Ok(())
        };
        self.append_with(&record, more).map(drop)
    }

    /// Says in the log that another durability level is in force from here on.
    pub(crate) fn note_durability(&mut self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let level = self.durability.name();
        let known = shared.db.get_cf(shared.cf(cf::META), meta::DURABILITY)?;
        if known.as_deref() == Some(level.as_bytes()) {
            return Ok(());
        }
        let record = SystemRecord::new(event::DURABILITY).with("custody.log.durability", level);
        let more = |write: &mut WriteBatch| {
            write.put_cf(shared.cf(cf::META), meta::DURABILITY, level);
            Ok(())
        };
        self.append_with(&record, more).map(drop)
    }

    /// Says in the log that it was restored from a backup.
    pub(crate) fn note_restore(&mut self, backup: &str) -> Result<(), Error> {
        let record = SystemRecord::new(event::RESTORE)
            .with("custody.restore.from", backup)
            .with("custody.restore.size", self.head.size);
        self.append_system(&record).map(drop)
    }

    /// What to say if the clock does not show what passed since the last append.
    pub(super) fn clock_jump(&mut self) -> Option<SystemRecord> {
        let (wall, monotonic) = (self.clock.now(), self.clock.monotonic());
        let expected = match self.clock_mark {
            Some((wall_before, before)) => wall_before.saturating_add(monotonic.saturating_sub(before)),
            // The first append since the start: all that is known is that time does not run backwards.
            None => wall.max(self.last_time),
        };
        self.clock_mark = Some((wall, monotonic));
        (wall.abs_diff(expected) > CLOCK_JUMP_NS).then(|| {
            SystemRecord::new(event::CLOCK)
                .with("custody.clock.expected", expected)
                .with("custody.clock.found", wall)
                .with("custody.clock.ingest_time", wall.max(self.last_time))
        })
    }
}

/// A list of public keys as an attribute.
pub(crate) fn vkeys(keys: &[VerifierKey]) -> Attribute {
    Attribute::Texts(keys.iter().map(ToString::to_string).collect())
}
