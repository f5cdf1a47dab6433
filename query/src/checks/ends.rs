//! Grants that have ended, and whether anything was done under them: the table `ended_grants`. A grant has
//! ended when its grace time after the end is over, so that late uses are in.

use super::uses::whose;
use crate::Error;
use crate::grants::{GrantRow, meet};
use crate::ids::{Finder, Kind, Posting, Role};
use crate::projection::{AsOf, Snapshot};
use crate::rows::{Time, table};

table! {
    /// A grant that has ended, and the grace time with it.
    EndedRow, EndedBuilder {
        /// The grant.
        grant_id: String,
        /// The record that issued it.
        seq: u64,
        /// When it expired, or it or a grant above it was revoked.
        ended_time: Time,
        /// What was done under it, as far as one looks: tool calls, grants derived from it, and other steps
        /// that name it as their authority.
        uses: u64,
    }
}

/// Kinds of events beside tool calls that are done under a grant.
const DONE_UNDER: [&str; 7] = [
    "grant_used",
    "executor_decision",
    "context_retrieval",
    "skill_invocation",
    "agent_invocation",
    "output",
    "system_update",
];

/// Other events of a grant that are looked at.
const LOOKED_AT_MAX: usize = 64;

/// Those of some grants that have ended by `clock`, less the grace time in ns.
pub(super) fn of<'a>(
    snapshot: &Snapshot,
    grants: impl Iterator<Item = &'a GrantRow>,
    clock: Time,
    grace: i64,
) -> Result<Vec<EndedRow>, Error> {
    let mut finder = None;
    let mut out = Vec::new();
    for grant in grants.filter(|grant| matches!(grant.state.as_str(), "expired" | "revoked")) {
        let ends = [grant.expires_at, grant.revoked_time].into_iter().flatten();
        let Some(ended_time) = ends.min().filter(|end| end.0.saturating_add(grace) <= clock.0) else { continue };
        let finder = match &mut finder {
            Some(finder) => finder,
            none => none.insert(Finder::new(snapshot, AsOf::Now)?),
        };
        let uses = uses(snapshot, finder, grant)?;
        out.push(EndedRow { grant_id: grant.grant_id.clone(), seq: grant.issued_seq, ended_time, uses });
    }
    Ok(out)
}

/// How often a grant was used, or derived from; without either, how many other steps were done under it. What another
/// tenant does under this id is done under another grant.
fn uses(snapshot: &Snapshot, finder: &Finder<'_>, grant: &GrantRow) -> Result<u64, Error> {
    let (id, tenant) = (&grant.grant_id, grant.tenant.as_deref());
    let postings = finder.find(Kind::Grant, id)?;
    let direct = postings.iter().filter(|posting| matches!(posting.role(), Role::Use | Role::Child));
    let direct: Vec<u64> = direct.map(|posting| posting.seq()).collect();
    if tenant.is_none() && !direct.is_empty() {
        return Ok(direct.len() as u64);
    }
    // The index does not say whose they are.
    for some in direct.chunks(LOOKED_AT_MAX) {
        let own = whose(snapshot, some)?.into_iter().filter(|(_, of)| meet(of.as_deref(), tenant)).count();
        if own > 0 {
            return Ok(own as u64);
        }
    }
    let others = postings.into_iter().filter(|posting| posting.role() == Role::Other).map(Posting::seq);
    let mut others: Vec<u64> = others.collect();
    others.dedup();
    let is_use = |event: &&crate::event::EventRow| {
        let refused = event.decision.as_deref() == Some("deny");
        let is_own = event.grant_id.as_ref() == Some(id) && meet(event.tenant.as_deref(), tenant);
        is_own && DONE_UNDER.contains(&event.kind.as_str()) && !refused
    };
    let most = if tenant.is_none() { LOOKED_AT_MAX } else { others.len() };
    for some in others[..most.min(others.len())].chunks(LOOKED_AT_MAX) {
        let own = snapshot.few_events(some, None)?.iter().filter(is_use).count();
        if own > 0 {
            return Ok(own as u64);
        }
    }
    Ok(0)
}
