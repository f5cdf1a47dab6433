//! Stored events that the ledger does not give in the range and under the filter that are checked: what becomes of
//! them.

use std::collections::HashMap;
use std::ops::Range;

use custody_query::mapping::KINDS;
use serde_json::{Map, Value, json};

use super::check::Findings;
use super::stored::Stored;
use super::tally::Tally;
use crate::Failure;
use crate::source::Source;

/// Events that are asked for at a time.
const ASKED_MAX: usize = 200;

/// Says of each whether the ledger has it at all.
pub(super) fn strangers(
    source: &Source,
    stored: &HashMap<String, Stored>,
    range: &Range<u64>,
    findings: &mut Findings,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut unknown: Vec<(&String, &Stored)> = stored.iter().filter(|(_, event)| !event.known).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    unknown.sort_unstable_by_key(|(uid, _)| *uid);
    let note = source.get("/checkpoint")?.body;
    let origin = String::from_utf8_lossy(&note).lines().next().unwrap_or_default().to_owned();
    for some in unknown.chunks(ASKED_MAX) {
        let seqs: Vec<String> = some.iter().map(|(_, event)| event.seq.to_string()).collect();
        let sql = format!(
            "SELECT l.seq, l.record_hash, e.kind, payload(l.seq) IS NULL AS erased \
             FROM ledger l LEFT JOIN events e ON e.seq = l.seq WHERE l.seq IN ({})",
            seqs.join(",")
        );
        let (_, batches, _) = source.sql(&json!({"sql": sql, "max_rows": 100_000}))?;
        let rows = custody_query::format::rows(&batches).map_err(Failure::unable)?;
        for (uid, event) in some {
            let of_record: Vec<_> = rows.iter().filter(|row| row["seq"] == event.seq).collect();
            let judged = judged(uid, event, &origin, &of_record, tally);
            if event.is_varied && matches!(judged, Judged::Erased | Judged::Unmade) {
                findings.add("altered", format!("{uid} is there in two versions"));
            }
            match judged {
                Judged::Made if range.contains(&event.seq) => {
                    findings.add("outside", format!("{uid} does not match the filter"));
                }
                Judged::Made => tally.outside += 1,
                Judged::Unknown => findings.add("unknown", format!("{uid} is no event of this ledger")),
                Judged::Altered => {
                    findings.add("altered", format!("{uid}: record_hash is not that of the ledger's record"));
                }
                Judged::Erased => tally.of_erased += 1,
                Judged::Unmade => tally.unmade(event.mapping),
            }
        }
    }
    Ok(())
}

/// What a stranger is.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// The ledger gives it, but not here.
    Made,
    /// The ledger has no such record, or the record gives no such event.
    Unknown,
    /// It is of another record than it says.
    Altered,
    /// The record's content is erased: what it gave nobody can say.
    Erased,
    /// Another version of the mapping made it.
    Unmade,
}

fn judged(uid: &str, event: &Stored, origin: &str, rows: &[&Map<String, Value>], tally: &Tally) -> Judged {
    let (Some((kind, nth)), Some(record)) = (kind_of(uid, origin, event.seq), rows.first()) else {
        return Judged::Unknown;
    };
    if rows.iter().filter(|row| row["kind"] == kind).count() >= nth {
        return Judged::Made;
    }
    let is_erased = record["erased"] == true;
    if !KINDS.contains(&kind) || !(is_erased || tally.is_other(event.mapping)) {
        return Judged::Unknown;
    }
    match event.record_hash.as_deref() == record["record_hash"].as_str() {
        false => Judged::Altered,
        true if is_erased => Judged::Erased,
        true => Judged::Unmade,
    }
}

/// The kind in an id, and which event of it: of several of one kind the later ones have a number behind it.
fn kind_of<'a>(uid: &'a str, origin: &str, seq: u64) -> Option<(&'a str, usize)> {
    let rest = uid.strip_prefix(origin)?.strip_prefix(&format!(":{seq}:"))?;
    match rest.split_once(':') {
        None => Some((rest, 1)),
        Some((kind, nth)) => Some((kind, nth.parse::<usize>().ok().filter(|nth| *nth > 1)?)),
    }
}

/// How many records of a range are erased; `None` if that cannot be asked.
pub(super) fn erased(source: &Source, range: &Range<u64>) -> Option<u64> {
    if range.is_empty() {
        return Some(0);
    }
    let sql = format!(
        "SELECT count(*) AS n FROM ledger WHERE record_bytes IS NULL AND seq >= {} AND seq < {}",
        range.start, range.end
    );
    let (_, batches, _) = source.sql(&json!({"sql": sql})).ok()?;
    custody_query::format::rows(&batches).ok()?.first()?.get("n")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::super::beside::Beside;
    use super::*;

    #[test]
    fn an_id_names_a_kind_and_which_of_them() {
        let kind = |uid| kind_of(uid, "log/x", 7);
        assert_eq!(kind("log/x:7:tool_call"), Some(("tool_call", 1)));
        assert_eq!(kind("log/x:7:tool_call:2"), Some(("tool_call", 2)));
        for bad in ["log/x:7:tool_call:1", "log/x:7:tool_call:x", "log/x:8:tool_call", "log/y:7:tool_call", "log/x:7"] {
            assert_eq!(kind(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_the_ledger_does_not_give_is_judged_by_its_record() {
        let row = |kind: Value, erased: bool| {
            let row = json!({"seq": 7, "record_hash": "ab", "kind": kind, "erased": erased});
            row.as_object().unwrap().clone()
        };
        let stored =
            |hash: &str, version: u64| Stored::of(&json!({"record_hash": hash, "mapping_version": version}), 7);
        let mut tally = Tally::default();
        tally.ours.insert(7);
        let says = |uid: &str, event: &Stored, row: &Map<String, Value>| judged(uid, event, "log", &[row], &tally);
        let (live, gone, none) = (row(json!("alert"), false), row(Value::Null, true), row(Value::Null, false));
        assert_eq!(says("log:7:alert", &stored("ab", 7), &live), Judged::Made);
        assert_eq!(says("log:7:alert:2", &stored("ab", 7), &live), Judged::Unknown);
        assert_eq!(says("log:7:request", &stored("ab", 7), &none), Judged::Unknown);
        assert_eq!(says("log:7:request", &stored("ab", 6), &none), Judged::Unmade);
        assert_eq!(says("log:7:request", &stored("cd", 6), &none), Judged::Altered);
        assert_eq!(says("log:7:request", &stored("ab", 7), &gone), Judged::Erased);
        assert_eq!(says("log:7:request", &stored("cd", 7), &gone), Judged::Altered);
        assert_eq!(says("log:7:anything", &stored("ab", 7), &gone), Judged::Unknown, "there is no such kind");
        assert_eq!(judged("log:7:alert", &stored("ab", 7), "log", &[], &tally), Judged::Unknown);
        tally.take(Beside::default(), None);
        assert!(!tally.is_plain(), "nobody asked what is erased");
    }
}
