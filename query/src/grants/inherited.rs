//! What a grant has from those above it: how deep the chain may go, and whose approval is waited for. It is
//! settled once for each grant, parents first, so that a check reads it in the grant's own row, however long the chain.

use super::GrantRow;
use super::fields::Fields;
use crate::event::EventRow;

/// Grants that wait for an approval that one row names, at most.
const AWAITED_MAX: usize = 16;

/// The grant itself, if it needs a person's approval.
pub(super) fn own_awaits(event: &EventRow, fields: &Fields) -> Vec<String> {
    let is_given = event.kind != "grant_denied";
    event.grant_id.iter().filter(|_| is_given && needs_approval(fields)).cloned().collect()
}

/// What a grant says of its approval. A word that nobody knows must not read as "not required", and nobody's
/// approval is none.
fn needs_approval(fields: &Fields) -> bool {
    let Some(state) = fields.written("authz.grant.approval.state") else { return false };
    match state.trim().to_ascii_lowercase().as_str() {
        "" | "not_required" => false,
        "approved" => fields.text("authz.grant.approval.by").is_none_or(|by| by.trim().is_empty()),
        _ => true,
    }
}

/// A grant cannot do without what the one above it waits for, nor go deeper than any above allows.
pub(super) fn pass_down(parent: &GrantRow, row: &mut GrantRow) {
    let own = parent.max_depth.map(|more| (parent.depth.saturating_add(more), &parent.grant_id));
    let above = parent.deepest.zip(parent.deepest_by.as_ref());
    // Of two that say the same, the one further up.
    let least = above.into_iter().chain(own).min_by_key(|(deepest, _)| *deepest);
    row.deepest = least.map(|(deepest, _)| deepest);
    row.deepest_by = least.map(|(_, by)| by.clone());
    let own = std::mem::replace(&mut row.awaits, parent.awaits.clone());
    // The last of a long list makes room: of a chain that waits everywhere the first and the own are named.
    if !own.is_empty() {
        row.awaits.truncate(AWAITED_MAX - own.len());
        row.awaits.extend(own);
    }
}
