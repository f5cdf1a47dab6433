//! Checkpoints: C2SP tlog-checkpoints, signed as C2SP signed notes.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_proto::Hash;
use sha2::{Digest as _, Sha256};
use signed_note::{Note, StandardVerifier, VerifierList};

use crate::Error;
use crate::keys::SigningKey;

/// What a checkpoint says: this log had this many records and this root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The name of the log, and of the key that signs for it.
    pub origin: String,
    /// The number of records.
    pub size: u64,
    /// The root of the RFC 6962 tree over their entries.
    pub root: Hash,
}

impl Checkpoint {
    /// The signed text: three lines, no extensions.
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// The signed note.
    pub(crate) fn sign(&self, key: &SigningKey) -> String {
        let body = self.body();
        let signature = [&key.id().to_be_bytes()[..], &key.sign(body.as_bytes())].concat();
        format!("{body}\n\u{2014} {} {}\n", key.name(), STANDARD.encode(signature))
    }

    /// Reads a note without looking at its signatures.
    pub fn parse_unverified(note: &str) -> Result<Self, Error> {
        let (body, _) = note.split_once("\n\n").ok_or_else(|| Error::corrupt("the checkpoint is not a signed note"))?;
        let mut lines = body.split('\n');
        let mut line =
            |what| lines.next().ok_or_else(|| Error::corrupt(format!("the checkpoint has no line for its {what}")));
        let origin = line("origin")?.to_owned();
        let size = line("size")?;
        let root = line("root")?;
        let number = size.parse().ok().filter(|n: &u64| n.to_string() == size);
        let size = number.ok_or_else(|| Error::corrupt("the checkpoint's size is not a number"))?;
        let root = STANDARD.decode(root).ok().and_then(|r| r.try_into().ok());
        let root = root.ok_or_else(|| Error::corrupt("the checkpoint's root is not a hash"))?;
        if lines.next().is_some() {
            return Err(Error::corrupt("the checkpoint has extension lines, which this log never writes"));
        }
        Ok(Self { origin, size, root })
    }

    /// Reads a note and checks that the key of `vkey` signed it.
    pub fn verify(note: &str, vkey: &str) -> Result<Self, Error> {
        let bad = |what: String| Error::corrupt(format!("the checkpoint's signature does not verify: {what}"));
        let verifier = StandardVerifier::new(vkey).map_err(|e| bad(format!("the public key is unusable: {e}")))?;
        let parsed = Note::from_bytes(note.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let (signed, _) =
            parsed.verify(&VerifierList::new(vec![Box::new(verifier)])).map_err(|e| bad(e.to_string()))?;
        if signed.is_empty() {
            return Err(bad("it is not signed by the log's key".into()));
        }
        Self::parse_unverified(note)
    }
}

/// The key id of a note key (C2SP signed-note): the first four bytes of
/// `SHA-256(name ‖ 0x0A ‖ algorithm ‖ public key)`.
pub(crate) fn key_id(name: &str, key: &[u8]) -> u32 {
    let hash = Sha256::new().chain_update(name).chain_update(b"\n").chain_update(key).finalize();
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

/// Replaces a small file so that after a crash either the old or the new one is
/// there, whole.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace(path, bytes, 0o666).map_err(|e| Error::fatal(format!("{} cannot be written: {e}", path.display())))
}

/// [`replace_file`], with the rights that the file is made with.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.write_all(bytes)?;
    // A crash before this leaves the old file and a partial new one, which is overwritten next time.
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    // The directory above a relative path of one word.
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> (Checkpoint, String, String) {
        let key = SigningKey::from_seed("example.com/log", &[7; 32]).unwrap();
        let checkpoint = Checkpoint { origin: "example.com/log".into(), size: 9, root: [3; 32] };
        let note = checkpoint.sign(&key);
        (checkpoint, note, key.vkey())
    }

    #[test]
    fn an_outside_implementation_accepts_the_signature() {
        let (checkpoint, note, vkey) = signed();
        assert_eq!(Checkpoint::verify(&note, &vkey).unwrap(), checkpoint);
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let (_, note, vkey) = signed();
        for at in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            assert!(Checkpoint::verify(&changed, &vkey).is_err(), "byte {at}");
        }
    }
}
