//! Checkpoints: C2SP tlog-checkpoints, signed as C2SP signed notes.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_proto::Hash;

use crate::Error;
use crate::note::{Note, VerifierKey};

/// What a checkpoint says: this log had this many records and this root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The name of the log, and of the keys that sign for it.
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

    /// Reads the signed text. Extension lines, which this log never writes, are refused.
    pub fn parse_text(text: &str) -> Result<Self, Error> {
        let bad = |what: &str| Error::corrupt(format!("the checkpoint {what}"));
        let lines: Vec<&str> = text.strip_suffix('\n').ok_or_else(|| bad("has no end"))?.split('\n').collect();
        let [origin, size, root] = lines[..] else {
            return Err(bad("does not have three lines: origin, size, root (extension lines are not taken)"));
        };
        if origin.is_empty() {
            return Err(bad("has an empty origin"));
        }
        let number = size.parse().ok().filter(|n: &u64| n.to_string() == size);
        let size = number.ok_or_else(|| bad("has a size that is not a number"))?;
        let decoded = STANDARD.decode(root).ok().and_then(|r| r.try_into().ok());
        let root = decoded.ok_or_else(|| bad("has a root that is not 32 bytes of base64"))?;
        Ok(Self { origin: origin.to_owned(), size, root })
    }

    /// Reads a note without looking at its signatures.
    pub fn parse_unverified(note: &str) -> Result<Self, Error> {
        Self::parse_text(&Note::parse(note)?.text)
    }

    /// Reads a note and checks that every one of these keys signed it, and that
    /// they are keys of its origin.
    pub fn verify(note: &str, keys: &[VerifierKey]) -> Result<Self, Error> {
        let bad = |what: String| Error::corrupt(format!("the checkpoint's signature does not verify: {what}"));
        let note = Note::parse(note).map_err(|e| bad(e.to_string()))?;
        let checkpoint = Self::parse_text(&note.text)?;
        if keys.is_empty() {
            return Err(bad("no key to verify it with".into()));
        }
        for key in keys {
            if key.name() != checkpoint.origin {
                return Err(bad(format!("the key is of {}, the checkpoint of {}", key.name(), checkpoint.origin)));
            }
            if key.find(&note).map_err(|e| bad(e.to_string()))?.is_none() {
                return Err(bad(format!("it is not signed by the log's {} key", key.algorithm())));
            }
        }
        Ok(checkpoint)
    }
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
    use crate::keys::SigningKeys;
    use proptest::prelude::*;

    fn signed() -> (Checkpoint, String, Vec<VerifierKey>) {
        let (keys, _) = SigningKeys::generate("example.com/log").unwrap();
        let checkpoint = Checkpoint { origin: "example.com/log".into(), size: 9, root: [3; 32] };
        let note = keys.sign_checkpoint(&checkpoint, 1_700_000_000).unwrap();
        (checkpoint, note.to_string(), keys.verifiers())
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let (checkpoint, note, keys) = signed();
        assert_eq!(Checkpoint::verify(&note, &keys).unwrap(), checkpoint);
        for at in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            assert!(Checkpoint::verify(&changed, &keys).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_signature_that_was_taken_off_is_missed() {
        let (_, note, keys) = signed();
        let mut note = Note::parse(&note).unwrap();
        note.lines.pop();
        let error = Checkpoint::verify(&note.to_string(), &keys).unwrap_err();
        assert!(error.to_string().contains("not signed by the log's ML-DSA-44 key"), "{error}");
        assert!(Checkpoint::verify(&note.to_string(), &keys[..1]).is_ok());
    }

    proptest! {
        #[test]
        fn texts_survive_the_round_trip(origin in "[a-z.]{1,20}(/[a-z0-9]{1,9})?", size: u64, root: [u8; 32]) {
            let checkpoint = Checkpoint { origin, size, root };
            prop_assert_eq!(Checkpoint::parse_text(&checkpoint.body()).unwrap(), checkpoint);
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,80}\n?[0-9]{0,5}\n?[A-Za-z0-9+/=]{0,50}\n?") {
            let _ = Checkpoint::parse_text(&text);
            let _ = Checkpoint::parse_unverified(&text);
        }
    }
}
