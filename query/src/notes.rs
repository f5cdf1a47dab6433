//! What is said beside an answer, in its statistics: the answer stands as it is, and is perhaps not what was meant. A
//! replay of an id that nobody knows has no steps, which is so, and does not tell that the id was mistyped.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion::prelude::SessionConfig;

use crate::projection::{AsOf, Snapshot};

/// The most that is said of one answer.
const NOTES_MAX: usize = 16;

/// What is said of one answer; the configuration of its session has it.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<Vec<String>>);

impl Notes {
    /// Those of a session.
    pub(crate) fn of(config: &SessionConfig) -> Arc<Self> {
        config.get_extension().unwrap_or_default()
    }

    /// Says something, once.
    pub(crate) fn say(&self, note: String) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < NOTES_MAX && !notes.contains(&note) {
            notes.push(note);
        }
    }

    /// All that was said.
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// That nothing is known by an id.
pub(crate) fn unknown(snapshot: &Snapshot, id: &str, as_of: AsOf, takes: &str) -> String {
    let what = if snapshot.visible().is_open() { "nothing" } else { "nothing that you may see" };
    let is = match as_of {
        AsOf::Now => "is known".to_owned(),
        AsOf::Seq(seq) => format!("was known as of seq {seq}"),
        AsOf::Time(_) => "was known at that time".to_owned(),
    };
    let id: String = id.chars().take(100).collect();
    format!("{what} {is} by the id '{id}'; {takes}")
}
