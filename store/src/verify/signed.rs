//! What was signed against what was read: checkpoints, keys, and the ends of the log.

use custody_proto::Hash;

use super::{Finding, Reading, Step, Stop, damage, found};
use crate::checkpoint::Checkpoint;
use crate::format::Head;
use crate::rotate;

/// A root that was signed, and where.
pub(super) struct Signed {
    pub(super) checkpoint: Checkpoint,
    pub(super) note: String,
    pub(super) what: &'static str,
}

impl Reading<'_> {
    /// The checkpoints: their form now, their roots when the chain gets there, their
    /// signatures when the keys are known.
    pub(super) fn checkpoints(&mut self, note: Option<String>) -> Step {
        let Some(note) = note else {
            if self.reader.head().size == 0 && self.reader.last_commitments().is_ok_and(|last| last.is_none()) {
                return found(0, "the log is empty: it has no checkpoint and not even its genesis record");
            }
            return found(0, "the checkpoint is missing, so no record is proved");
        };
        let newest = self.expect(note.clone(), "the checkpoint")?;
        if newest.origin != self.reader.origin() {
            return found(0, format!("the checkpoint is of {}, not of {}", newest.origin, self.reader.origin()));
        }
        if let Ok(keys) = rotate::keys_at(self.reader, newest.size) {
            Checkpoint::verify(&note, &keys).map_err(|e| damage(0, e))?;
        }
        self.newest = Some(newest);
        self.checkpoint_note = note;
        if let Some(trusted) = &self.options.trusted {
            let trusted = self.expect(trusted.clone(), "the trusted checkpoint")?;
            if trusted.origin != self.reader.origin() {
                return found(
                    0,
                    format!("the trusted checkpoint is of {}, not of {}", trusted.origin, self.reader.origin()),
                );
            }
        }
        for kept in self.reader.witnessed(0, u64::MAX).map_err(|e| damage(0, e))? {
            self.expect(kept.note, "a kept checkpoint")?;
        }
        Ok(())
    }

    fn expect(&mut self, note: String, what: &'static str) -> Step<Checkpoint> {
        let checkpoint = Checkpoint::parse_unverified(&note).map_err(|e| damage(0, e))?;
        let size = checkpoint.size;
        let signed = Signed { checkpoint: checkpoint.clone(), note, what };
        if size > self.state.head.size || size == 0 {
            self.signed.entry(size).or_default().push(signed);
        } else {
            // Behind where an earlier verification stopped: the nodes there were verified then.
            let root = self.reader.root_at(size).map_err(|e| damage(0, e))?;
            self.reached(root, signed)?;
        }
        Ok(checkpoint)
    }

    /// The log had this root at the size that a checkpoint was signed for.
    pub(super) fn reached(&mut self, root: Hash, signed: Signed) -> Step {
        let Signed { checkpoint, note, what } = signed;
        if root != checkpoint.root {
            let reason = format!(
                "the log is consistent in itself but is not the one that was signed: the root at size {} differs from \
                 that of {what}, so it was written anew",
                checkpoint.size
            );
            // If an entry of the last block does not end in the head, that says more.
            self.rewritten.get_or_insert(Finding { seq: 0, reason });
            return Ok(());
        }
        let keys = self.state.keys_at(checkpoint.size);
        Checkpoint::verify(&note, keys).map_err(|e| damage(0, e))?;
        self.state.checkpoints += 1;
        Ok(())
    }

    /// Head, keys and checkpoints against what was read.
    pub(super) fn ends(&mut self) -> Step {
        let size = self.state.head.size;
        let head = self.reader.head();
        if head.size > size {
            return found(size, format!("the log ends at size {size}, but its head says {}", head.size));
        }
        if head != self.state.head {
            return self.wrong_head(head);
        }
        if let Some(finding) = self.rewritten.take() {
            return Err(Stop::Found(finding));
        }
        if let Some((beyond, signed)) = self.signed.first_key_value() {
            let what = signed.first().map_or("a checkpoint", |s| s.what);
            return found(
                size,
                format!("{what} covers {beyond} records, the log holds {size}: the rest was removed or rolled back"),
            );
        }
        if self.state.keys_at(size).is_empty() {
            return found(0, "the log's first record is not its genesis record");
        }
        if !self.options.keys.is_empty() && !self.trusts() {
            return found(0, "none of the log's signed records names the keys that you trust");
        }
        if self.reader.keys() != self.state.keys_at(size) {
            return found(0, "log.vkey does not hold the keys that the log's records name");
        }
        Ok(())
    }

    /// Whether a checkpoint verified that lies behind a record that names the trusted keys:
    /// anybody could name them in a record that nobody signed.
    fn trusts(&self) -> bool {
        let signed = self.newest.as_ref().map_or(0, |newest| newest.size);
        self.state.keys.iter().any(|(seq, keys)| *seq < signed && *keys == self.options.keys)
    }

    /// Head and last entry differ. Which of them was changed? If the signed root
    /// bears out the entries, the head.
    fn wrong_head(&self, head: Head) -> Step {
        let size = self.state.head.size;
        if head.size < size {
            return found(head.size, "records were inserted behind the log's head");
        }
        let root = self.state.frontier.root();
        let borne_out = self.newest.as_ref().is_some_and(|c| c.size == size && c.root == root);
        if borne_out {
            return found(size, "the log's head is not the chain hash of its last entry: the head was changed");
        }
        let first = self.previous_block.unwrap_or(0);
        found(first, format!("an entry of the last block (seq {first} to {}) was changed", size.saturating_sub(1)))
    }
}
