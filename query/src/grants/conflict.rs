//! Two records that give one id: whose word counts.
//!
//! Whoever may send for a tenant may send a record under an id that another sends, too, and may be the first to do so.
//! Neither may disarm the other: the difference is told (`conflicting_grant`), and calls are judged by the narrower.

use super::GrantRow;
use crate::authority::{Verdict, narrowing};

/// Takes in another record that gives the id of a grant that was given already.
pub(super) fn meet(known: &mut GrantRow, other: GrantRow) {
    if known.issued_seq == other.issued_seq || is_same(known, &other) {
        return;
    }
    let told = match known.conflicting_seqs.is_empty() {
        true => vec![known.issued_seq, other.issued_seq],
        false => std::mem::take(&mut known.conflicting_seqs),
    };
    if is_narrower(known, &other) {
        *known = other;
    }
    known.conflicting_seqs = told;
}

/// Whether two records give the same, to the same agent, by the same issuer: one of them is a repetition.
fn is_same(one: &GrantRow, other: &GrantRow) -> bool {
    let alike = (&one.issuer, &one.initiator_id) == (&other.issuer, &other.initiator_id);
    alike && is_of_one_kind(one, other) && narrowing(one, other).iter().all(|(_, verdict)| *verdict == Verdict::Equal)
}

/// Whether the other lies inside the one. Nobody narrows a grant by giving it to another agent, or by hanging it below
/// another parent: then the first stays.
fn is_narrower(one: &GrantRow, other: &GrantRow) -> bool {
    let verdicts = narrowing(one, other);
    let inside = verdicts.iter().any(|(_, verdict)| *verdict == Verdict::Inside);
    inside
        && is_of_one_kind(one, other)
        && verdicts.iter().all(|(_, verdict)| matches!(verdict, Verdict::Equal | Verdict::Inside))
}

fn is_of_one_kind(one: &GrantRow, other: &GrantRow) -> bool {
    (&one.subject, &one.parent_grant_id) == (&other.subject, &other.parent_grant_id)
}
