//! Rotation of the log's keys: a record in the log names the new keys, signed by
//! the former ones, so that whoever trusts the former can go on to the new.
//!
//! Order of the steps, each durable before the next: the new keys' file, the record,
//! the renaming of the file. A crash between the last two is finished by opening.

use std::fs;
use std::path::Path;

use rocksdb::WriteBatch;

use crate::checkpoint::sync_dir;
use crate::format::{cf, meta};
use crate::keys::{KeySource, SigningKeys, write_secret};
use crate::ledger::{Shared, write_vkeys};
use crate::note::{Line, VerifierKey};
use crate::system::{Attribute, SystemRecord, event};
use crate::writer::{Writer, vkeys};
use crate::{Error, Reader};

const NEXT: &str = "keys/log.key.next";
const CURRENT: &str = "keys/log.key";

/// What the keys sign of an erasure, so that nobody without them can make one.
pub(crate) fn erasure_statement(origin: &str, seq: u64, seqs: &str) -> String {
    format!("custody erasure v1\n{origin}\nby {seq}\nseqs {seqs}\n")
}

/// Whether every one of these keys signed a statement, as raw signature lines.
pub(crate) fn is_signed(text: &str, lines: &[String], keys: &[VerifierKey]) -> bool {
    let Ok(lines) = lines.iter().map(|line| Line::parse(line)).collect::<Result<Vec<_>, _>>() else { return false };
    let signed = |key: &VerifierKey| {
        let line = lines.iter().find(|line| line.name == key.name() && line.id == key.id());
        line.is_some_and(|line| key.verifies(text.as_bytes(), &line.signature))
    };
    !keys.is_empty() && keys.iter().all(signed)
}

/// Signs a statement with every key.
pub(crate) fn sign_statement(keys: &SigningKeys, text: &str) -> Result<Attribute, Error> {
    let sign = |key: &crate::keys::SigningKey| {
        let (name, id) = (key.verifier().name().to_owned(), key.verifier().id());
        Ok(Line { name, id, signature: key.sign_raw(text.as_bytes())? }.to_string())
    };
    keys.all().iter().map(sign).collect::<Result<_, Error>>().map(Attribute::Texts)
}

/// What the former keys sign: a text that is no checkpoint.
fn statement(origin: &str, seq: u64, keys: &[String]) -> String {
    let keys: String = keys.iter().map(|key| format!("{key}\n")).collect();
    format!("custody keys v1\n{origin}\nfrom {seq}\n{keys}")
}

impl Writer {
    /// Signs with new keys from now on: those of `source`, or (for the data directory's
    /// own) new ones. Gives the seq of the record about it. The next checkpoint is
    /// signed by the former keys too.
    pub fn rotate(&mut self, source: &KeySource, reason: &str, actor: &str) -> Result<u64, Error> {
        let dir = self.shared.dir.clone();
        let next = match source {
            KeySource::Directory => {
                let (next, text) = SigningKeys::generate(&self.shared.origin)?;
                let _ = fs::remove_file(dir.join(NEXT));
                write_secret(&dir.join(NEXT), text.as_bytes())?;
                next
            }
            other => SigningKeys::open(other, &dir, &self.shared.origin, false)?,
        };
        if next.name() != self.shared.origin {
            return Err(Error::invalid(format!(
                "the new keys are of {}, but the log's origin is {}",
                next.name(),
                self.shared.origin
            )));
        }
        if next.all().len() < self.keys.all().len() {
            return Err(Error::invalid("the new keys lack a kind of key that the former have (ML-DSA-44)"));
        }
        // What is not signed yet is signed by the keys under which it came.
        self.checkpoint()?;
        let seq = self.head_size();
        let names: Vec<String> = next.verifiers().iter().map(ToString::to_string).collect();
        let text = statement(&self.shared.origin, seq, &names);
        let signatures = sign_statement(&self.keys, &text)?;
        let record = SystemRecord::new(event::KEYS)
            .with("custody.keys.vkeys", Attribute::Texts(names))
            .with("custody.keys.former", vkeys(&self.keys.verifiers()))
            .with("custody.keys.statement", text)
            .with("custody.keys.signatures", signatures)
            .with("custody.keys.reason", reason)
            .with("custody.keys.actor", actor);
        self.former = Some(std::mem::replace(&mut self.keys, next));
        let (shared, text) = (std::sync::Arc::clone(&self.shared), self.keys_text());
        let more = |write: &mut WriteBatch| {
            write.put_cf(shared.cf(cf::META), meta::KEYS, &text);
            Ok(())
        };
        let appended = self.append_with(&record, more)?;
        assert_eq!(appended, seq, "the record of a rotation stands where its statement says");
        // A crash here: the log names keys that are in the file beside; `finish` renames it.
        finish(&self.shared)?;
        self.shared.publish_keys(self.keys.verifiers());
        write_vkeys(&dir, &text)?;
        self.checkpoint()?;
        Ok(appended)
    }
}

/// Finishes a rotation that a crash broke off: takes the new key file if the log
/// names its keys, removes it if not.
pub(crate) fn finish(shared: &Shared) -> Result<(), Error> {
    let next = shared.dir.join(NEXT);
    let Ok(text) = fs::read_to_string(&next) else { return Ok(()) };
    let fail = |e: std::io::Error| Error::fatal(format!("{} cannot be renamed: {e}", next.display()));
    let named = shared.db.get_cf(shared.cf(cf::META), meta::KEYS)?.unwrap_or_default();
    let keys = SigningKeys::parse(&text, &next.display().to_string());
    let is_named = keys.is_ok_and(|keys| {
        let text: String = keys.verifiers().iter().map(|key| format!("{key}\n")).collect();
        text.as_bytes() == named
    });
    if is_named {
        fs::rename(&next, shared.dir.join(CURRENT)).map_err(fail)?;
    } else {
        fs::remove_file(&next).map_err(fail)?;
    }
    sync_dir(&shared.dir.join("keys")).map_err(fail)
}

/// Whether the new keys' file of a rotation is still beside the former one.
pub(crate) fn is_broken_off(dir: &Path) -> bool {
    dir.join(NEXT).exists()
}

/// The keys that sign a tree of this size: those of the genesis record, or of the
/// last rotation before. Every rotation must be signed by the keys before it.
pub(crate) fn keys_at(reader: &Reader, size: u64) -> Result<Vec<VerifierKey>, Error> {
    let mut keys = Vec::new();
    for (seq, record) in reader.system_records(&[event::GENESIS, event::KEYS])? {
        if seq < size.max(1) {
            keys = follow(&keys, reader.origin(), seq, &record)?;
        }
    }
    if keys.is_empty() { Err(Error::corrupt("the log names no keys in its first record")) } else { Ok(keys) }
}

/// All keys that ever signed.
pub(crate) fn all_keys(reader: &Reader) -> Result<Vec<VerifierKey>, Error> {
    let (mut keys, mut all) = (Vec::new(), Vec::new());
    for (seq, record) in reader.system_records(&[event::GENESIS, event::KEYS])? {
        keys = follow(&keys, reader.origin(), seq, &record)?;
        all.extend(keys.iter().cloned());
    }
    Ok(all)
}

/// The keys after one record about them.
pub(crate) fn follow(
    before: &[VerifierKey],
    origin: &str,
    seq: u64,
    record: &SystemRecord,
) -> Result<Vec<VerifierKey>, Error> {
    let damaged = |what: &str| Error::corrupt(format!("the record about keys at seq {seq} {what}"));
    if record.event == event::GENESIS {
        if seq != 0 || !before.is_empty() || record.text("custody.log.origin") != Some(origin) {
            return Err(damaged("is a genesis record that is not the first, or is of another log"));
        }
        let named = record.texts("custody.log.vkeys").ok_or_else(|| damaged("names none"))?;
        return named.iter().map(|key| VerifierKey::parse(key)).collect();
    }
    let named = record.texts("custody.keys.vkeys").ok_or_else(|| damaged("names none"))?;
    let text = statement(origin, seq, named);
    if record.text("custody.keys.statement") != Some(&text) {
        return Err(damaged("states other keys than it names"));
    }
    if !is_signed(&text, record.texts("custody.keys.signatures").unwrap_or_default(), before) {
        return Err(damaged("is not signed by the keys before it"));
    }
    let named: Vec<VerifierKey> = named.iter().map(|key| VerifierKey::parse(key)).collect::<Result<_, _>>()?;
    // No rotation takes a kind of signature away, or goes to another name.
    let kept = |key: &VerifierKey| named.iter().any(|new| new.algorithm() == key.algorithm());
    if !before.iter().all(kept) || named.iter().any(|key| key.name() != origin) {
        return Err(damaged("leaves a kind of key out, or names one of another log"));
    }
    Ok(named)
}
