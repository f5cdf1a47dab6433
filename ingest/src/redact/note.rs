//! What the log says of redaction: from which record on which rules are in force.

use custody_store::system::{Attribute, SystemRecord, event};
use custody_store::{Error, Writer};

use super::{Action, Redactor};

impl Redactor {
    /// The record that says that these rules are in force.
    fn says(&self) -> SystemRecord {
        let rules = self.rules.iter().map(|rule| rule.name.clone()).collect();
        let record = SystemRecord::new(event::REDACTION)
            .with("custody.redaction.state", "on")
            .with("custody.redaction.sets", Attribute::Texts(self.sets.clone()))
            .with("custody.redaction.rules", Attribute::Texts(rules));
        if self.rules.iter().all(|rule| rule.action != Action::Hash) {
            return record;
        }
        // Hashes under another secret are not to be compared with these.
        let key = blake3::keyed_hash(&self.secret, b"custody redaction key id v1");
        record.with("custody.redaction.key_id", const_hex::encode(&key.as_bytes()[..8]))
    }

    /// Says in the log what rules are in force from here on (`None`: none), if that is
    /// not what its last record of it says. To be called before any request comes.
    pub fn note(redactor: Option<&Self>, writer: &mut Writer) -> Result<(), Error> {
        let last = writer.reader().system_records(&[event::REDACTION])?.pop().map(|(_, record)| record);
        let now = redactor.map(Self::says);
        let off = SystemRecord::new(event::REDACTION).with("custody.redaction.state", "off");
        let (now, before) = (now.unwrap_or_else(|| off.clone()), last.unwrap_or(off));
        if now == before {
            return Ok(());
        }
        writer.append_system(&now)?;
        writer.checkpoint()
    }
}
