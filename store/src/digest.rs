//! Signing digests of exported events: a C2SP note whose text can be nothing else that this log signs.

use crate::{Error, Writer};

/// The first line of the text of every digest.
pub const HEADER: &str = "custody events digest v1";

impl Writer {
    /// Signs the text of a digest of exported events; gives the note. The text begins with
    /// [`HEADER`], which no origin of a checkpoint can be, as it has spaces.
    pub fn sign_events_digest(&mut self, text: &str) -> Result<String, Error> {
        if !text.strip_prefix(HEADER).is_some_and(|rest| rest.starts_with('\n')) || !text.ends_with('\n') {
            return Err(Error::invalid(format!("only digests that begin with {HEADER:?} are signed as such")));
        }
        Ok(self.keys.sign_text(text.to_owned())?.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::Note;

    #[test]
    fn digests_are_signed_by_the_logs_key_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader) = crate::open(dir.path(), crate::Options::default()).unwrap();
        let note = writer.sign_events_digest(&format!("{HEADER}\nobject 1\n")).unwrap();
        let parsed = Note::parse(&note).unwrap();
        assert_eq!(parsed.text, format!("{HEADER}\nobject 1\n"));
        assert!(!parsed.signed_by(&reader.keys()[..1]).is_empty());
        for wrong in ["", "example.com/log\n1\nroot\n", "custody events digest v1", "custody events digest v11\n"] {
            assert!(writer.sign_events_digest(wrong).is_err(), "{wrong:?}");
        }
    }
}
