//! What was found at a check that is no fault, and leaves something untold: it keeps the verdict from being a plain
//! "complete".

use std::collections::{BTreeMap, BTreeSet};

use custody_query::format::plain;
use serde_json::{Value, json};

use super::beside::Beside;
use crate::counted;

/// Names that are shown.
const NAMES_MAX: usize = 20;

/// How many stored events are how.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Members that the SIEM added, and to how many events.
    added: BTreeMap<String, u64>,
    /// Another version of the mapping made them: those versions.
    mapped_otherwise: u64,
    theirs: BTreeSet<u64>,
    /// The versions that the ledger's events are of.
    pub(super) ours: BTreeSet<u64>,
    /// The same, and the ledger's mapping makes them no more.
    no_longer_made: u64,
    /// The signature of the token was judged by other keys.
    judged_otherwise: u64,
    /// Their records are erased.
    pub(super) of_erased: u64,
    /// They lie before or behind what was to be checked.
    pub(super) outside: u64,
    /// Records of the range that are erased; `None` if that could not be asked.
    pub(super) erased_records: Option<u64>,
    /// The first record of which an event is missing.
    pub(super) first_missing: Option<u64>,
}

impl Tally {
    /// Counts an event that is not altered.
    pub(super) fn take(&mut self, beside: Beside, version: Option<u64>) {
        for name in beside.added {
            *self.added.entry(name).or_default() += 1;
        }
        if beside.is_mapped_otherwise {
            self.mapped_otherwise += 1;
            self.theirs.extend(version);
        }
        self.judged_otherwise += u64::from(beside.is_judged_otherwise);
    }

    /// Whether none of the ledger's events is of this version of the mapping.
    pub(super) fn is_other(&self, version: Option<u64>) -> bool {
        version.is_some_and(|version| !self.ours.is_empty() && !self.ours.contains(&version))
    }

    /// Counts an event that the ledger's mapping makes no more.
    pub(super) fn unmade(&mut self, version: Option<u64>) {
        self.no_longer_made += 1;
        self.theirs.extend(version);
    }

    /// Whether every event was compared as a whole, and nothing could be missing without being seen.
    pub(super) fn is_plain(&self) -> bool {
        let partly = [self.mapped_otherwise, self.no_longer_made, self.judged_otherwise, self.of_erased, self.outside];
        partly == [0; 5] && self.erased_records == Some(0)
    }

    /// As members of the result.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "mapped_otherwise": self.mapped_otherwise, "no_longer_made": self.no_longer_made,
            "mapping_versions": {"stored": self.theirs, "ledger": self.ours},
            "judged_otherwise": self.judged_otherwise, "of_erased_records": self.of_erased,
            "erased_records": self.erased_records, "outside_range": self.outside, "added": self.added,
        })
    }

    /// For people, a line for each that there is.
    pub(super) fn lines(&self) -> Vec<String> {
        let list = |versions: &BTreeSet<u64>| versions.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let (theirs, ours) = (list(&self.theirs), list(&self.ours));
        let events = |n: u64| counted(n, "stored event");
        let mut out = Vec::new();
        let mut add = |n: u64, line: String| {
            if n > 0 {
                out.push(line);
            }
        };
        add(
            self.mapped_otherwise,
            format!(
                "mapped otherwise: {} by mapping {theirs}, the ledger has {ours}; only identity, seq, record_hash and \
                 what else is the record's own were compared",
                events(self.mapped_otherwise)
            ),
        );
        add(
            self.no_longer_made,
            format!(
                "no longer made: {} by mapping {theirs}, of records of which mapping {ours} makes others; only seq and \
                 record_hash were compared",
                events(self.no_longer_made)
            ),
        );
        add(
            self.judged_otherwise,
            format!(
                "token judged otherwise: {}; the ledger's rows were made with other issuer keys; all else was compared",
                events(self.judged_otherwise)
            ),
        );
        add(
            self.of_erased,
            format!(
                "of erased records: {}; only identity and record_hash were compared; missing ones cannot be told",
                events(self.of_erased)
            ),
        );
        add(self.outside, format!("outside of the range: {}; not compared", events(self.outside)));
        match self.erased_records {
            Some(n) => add(
                n,
                format!(
                    "erased: {} of the range; which of their events are missing cannot be told",
                    counted(n, "record")
                ),
            ),
            None => {
                add(1, "erased: whether records of the range are could not be asked; that takes the role read".into())
            }
        }
        if let Some(seq) = self.first_missing.filter(|_| self.mapped_otherwise + self.no_longer_made > 0) {
            let hint = "the ledger's mapping makes events of these records that the one before did not; they stand below \
                        the cursors that were given out: pull them with custody events --from-seq";
            add(1, format!("missing: {hint} {seq}"));
        }
        if !self.added.is_empty() {
            let names = self.added.iter().take(NAMES_MAX).map(|(name, n)| format!("{} ({n})", plain(name)));
            let more = if self.added.len() > NAMES_MAX { ", and more" } else { "" };
            let names = names.collect::<Vec<_>>().join(", ");
            add(1, format!("added by the SIEM, and not compared: {names}{more}"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_compared_is_said() {
        let mut tally = Tally { erased_records: Some(0), ..Tally::default() };
        tally.take(Beside { added: vec!["_index".into(), "a\u{1b}b".into()], ..Beside::default() }, Some(7));
        assert!(tally.is_plain(), "what a SIEM adds is no doubt");
        let lines = tally.lines();
        assert!(lines.len() == 1 && lines[0].contains("_index (1)") && !lines[0].contains('\u{1b}'), "{lines:?}");
        assert!(!tally.is_other(Some(6)), "nothing says what the ledger's is");
        tally.ours.insert(7);
        assert!(tally.is_other(Some(6)) && !tally.is_other(Some(7)) && !tally.is_other(None));
        tally.take(Beside { is_mapped_otherwise: true, ..Beside::default() }, Some(6));
        tally.first_missing = Some(5);
        assert!(!tally.is_plain());
        let lines = tally.lines().join("\n");
        assert!(lines.contains("1 stored event by mapping 6, the ledger has 7; only identity"), "{lines}");
        assert!(lines.contains("--from-seq 5"), "{lines}");
        assert_eq!(tally.to_json()["mapping_versions"], json!({"stored": [6], "ledger": [7]}));
        let unasked = Tally::default();
        assert!(!unasked.is_plain() && unasked.to_json()["erased_records"].is_null());
    }
}
