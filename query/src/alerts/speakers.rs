//! Whose word counts for people: from which submitters a record that says "a person did this" is
//! taken as a person's act.
//!
//! The log itself says it, so that a table made from a copy of the log says the same as the server,
//! and `AS OF` judges each record by what was in force when it was taken:
//!
//! * `security.speakers` (mode `open` or `named`): without identities, everybody is taken at his
//!   word (`open`, also before the first such record); else only those who are named.
//! * `security.speaker` (an identity, `named` or `withdrawn`): a person who was authenticated with the
//!   role `investigate`, or a SOC tool that the policy lets speak for its people.
//!
//! Only records of [`AUDIT_IDENTITY`] count here: no sender can have it.

use std::collections::HashMap;

use custody_store::system::{AUDIT_IDENTITY, SystemRecord};
use serde_json::Value as Json;

use crate::caller::RowFilter;
use crate::projection::{AsOf, Snapshot};
use crate::recorder::Said;
use crate::{ActorType, Error};

/// Who is asked from here on: everybody, or those who are named.
pub const SPEAKERS: &str = "security.speakers";
/// Somebody is named, or is not any more.
pub const SPEAKER: &str = "security.speaker";

const MODE: &str = "security.speakers.mode";
const IDENTITY: &str = "security.speaker.identity";
const STATE: &str = "security.speaker.state";

/// Whose word counted when.
#[derive(Clone, Debug, Default)]
pub struct Speakers {
    /// From which seq on only those count who are named.
    modes: Vec<(u64, bool)>,
    /// From which seq on an identity is named, or is not.
    named: HashMap<String, Vec<(u64, bool)>>,
}

impl Speakers {
    /// What the log says of it up to `as_of`.
    pub fn of(snapshot: &Snapshot, as_of: AsOf) -> Result<Self, Error> {
        // Whoever may not see these rows is still answered by their rule.
        let whole = Snapshot { visible: RowFilter::default(), ..snapshot.clone() };
        let mut out = Self::default();
        for event in whole.events_of(&["authority_change"], as_of)? {
            if event.submitter != AUDIT_IDENTITY {
                continue;
            }
            let fields: Json = serde_json::from_str(&event.attributes).unwrap_or_default();
            let text = |name: &str| fields.get(name).and_then(Json::as_str);
            match event.action.as_deref() {
                Some(SPEAKERS) => out.modes.push((event.seq, text(MODE) == Some("named"))),
                Some(SPEAKER) => {
                    let Some(identity) = text(IDENTITY) else { continue };
                    let turns = out.named.entry(identity.to_owned()).or_default();
                    turns.push((event.seq, text(STATE) == Some("named")));
                }
                _ => {}
            }
        }
        Ok(out)
    }

    /// Whether a record of a submitter, at a place in the log, is taken at its word about people.
    pub fn hear(&self, submitter: &str, seq: u64) -> bool {
        match at(self.named.get(submitter).map_or(&[][..], Vec::as_slice), seq) {
            Some(is_named) => is_named,
            // The server's own parts are not people and speak for none.
            None => !submitter.starts_with("system:") && !at(&self.modes, seq).unwrap_or(false),
        }
    }

    /// Whether only those count who are named.
    pub fn are_named(&self) -> bool {
        at(&self.modes, u64::MAX).unwrap_or(false)
    }

    /// Whether this identity is named.
    pub fn names(&self, identity: &str) -> bool {
        at(self.named.get(identity).map_or(&[][..], Vec::as_slice), u64::MAX).unwrap_or(false)
    }

    /// All who are named, in the order of their names.
    pub fn all_named(&self) -> Vec<&str> {
        let mut out: Vec<&str> =
            self.named.keys().map(String::as_str).filter(|identity| self.names(identity)).collect();
        out.sort_unstable();
        out
    }

    /// Whether it was said of this identity that its word does not count any more.
    pub fn withdrew(&self, identity: &str) -> bool {
        at(self.named.get(identity).map_or(&[][..], Vec::as_slice), u64::MAX) == Some(false)
    }

    /// What must be said so that from now on only named identities count (or everybody), and these
    /// are named; empty if it is so already.
    pub fn changes(&self, named_only: bool, identities: &[String]) -> Vec<Said> {
        let mut out = Vec::new();
        if self.are_named() != named_only {
            let mode = if named_only { "named" } else { "open" };
            out.push(said(SystemRecord::new(SPEAKERS).with(MODE, mode)));
        }
        let new = identities.iter().filter(|identity| !self.names(identity));
        out.extend(new.map(|identity| name(identity, true, None)));
        out
    }
}

/// What held at a place in the log: the last turn before it.
fn at(turns: &[(u64, bool)], seq: u64) -> Option<bool> {
    let after = turns.partition_point(|turn| turn.0 < seq);
    after.checked_sub(1).map(|i| turns[i].1)
}

/// The record that names an identity, or withdraws it.
pub fn name(identity: &str, named: bool, actor: Option<ActorType>) -> Said {
    let state = if named { "named" } else { "withdrawn" };
    let record = SystemRecord::new(SPEAKER).with(IDENTITY, identity).with(STATE, state);
    said(match actor {
        Some(actor) => record.with("security.actor.type", actor.name()),
        None => record,
    })
}

fn said(record: SystemRecord) -> Said {
    Said { identity: AUDIT_IDENTITY.into(), record }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventRow;

    fn turn(seq: u64, submitter: &str, action: &str, attributes: &str) -> EventRow {
        EventRow {
            seq,
            submitter: submitter.into(),
            kind: "authority_change".into(),
            action: Some(action.into()),
            attributes: attributes.into(),
            ..EventRow::default()
        }
    }

    #[test]
    fn the_log_says_whose_word_counts_and_since_when() {
        let soc = |state: &str| format!(r#"{{"{IDENTITY}":"cert:soc","{STATE}":"{state}"}}"#);
        let rows = [
            turn(10, AUDIT_IDENTITY, SPEAKERS, &format!(r#"{{"{MODE}":"named"}}"#)),
            turn(20, AUDIT_IDENTITY, SPEAKER, &soc("named")),
            turn(25, "cert:agent", SPEAKER, &soc("withdrawn")),
            turn(26, "cert:agent", SPEAKERS, &format!(r#"{{"{MODE}":"open"}}"#)),
            turn(30, AUDIT_IDENTITY, SPEAKER, &soc("withdrawn")),
        ];
        let snapshot = Snapshot::of_events(vec![EventRow::batch(&rows)], 40);
        let speakers = Speakers::of(&snapshot, AsOf::Now).unwrap();
        let heard = |who: &str| [5, 15, 22, 27, 35].map(|seq| speakers.hear(who, seq));
        assert_eq!(heard("cert:soc"), [true, false, true, true, false]);
        assert_eq!(heard("peer:127.0.0.1"), [true, false, false, false, false]);
        assert_eq!(heard("system:checks"), [false; 5]);
        assert!(speakers.are_named() && !speakers.names("cert:soc"));
        let then = Speakers::of(&snapshot, AsOf::Seq(20)).unwrap();
        assert!(then.names("cert:soc") && then.changes(true, &["cert:soc".into()]).is_empty());
        assert_eq!(then.changes(false, &["cert:ada".into()]).len(), 2);
    }
}
