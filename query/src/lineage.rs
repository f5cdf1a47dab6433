//! The grants around some ids: those above them, found by the index one by one, so that a
//! chain costs as many lookups as it is long, however many grants there are.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::Error;
use crate::grants::{Grants, KINDS, REVOKED, Revoked};
use crate::ids::{Finder, Kind, Posting, Role};
use crate::lookup::RECORDS_MAX;
use crate::projection::{AsOf, Snapshot};
use crate::rows::Time;

impl Grants {
    /// These grants and all above them, as the ledger knew them `as_of`. For a grant that is
    /// found the row is the same as in [`Grants::of`].
    pub fn near<S: Into<String>>(
        snapshot: &Snapshot,
        ids: impl IntoIterator<Item = S>,
        as_of: AsOf,
        now: Time,
    ) -> Result<Self, Error> {
        Self::found(&Finder::new(snapshot, as_of)?, snapshot, ids.into_iter().map(Into::into).collect(), now)
    }

    /// As [`Self::near`], with a finder that is there already.
    pub(crate) fn found(
        finder: &Finder<'_>,
        snapshot: &Snapshot,
        mut wanted: Vec<String>,
        now: Time,
    ) -> Result<Self, Error> {
        let (mut grants, mut revoked, mut blocks) = (Self::default(), Revoked::default(), snapshot.blocks());
        let mut uses: HashMap<String, u64> = HashMap::new();
        while !wanted.is_empty() {
            let mut seqs = BTreeSet::new();
            for id in wanted.drain(..).collect::<HashSet<_>>() {
                let found = finder.find(Kind::Grant, &id)?;
                uses.insert(id, found.iter().filter(|posting| posting.role() == Role::Use).count() as u64);
                let told = found.into_iter().filter(|posting| matches!(posting.role(), Role::Given | Role::Revoked));
                seqs.extend(told.map(Posting::seq));
            }
            let seqs: Vec<u64> = seqs.into_iter().collect();
            for some in seqs.chunks(RECORDS_MAX) {
                for event in snapshot.few_events(some, blocks.as_mut())? {
                    // Two ids may have one key; only this one was asked for.
                    let known = event.grant_id.as_ref().is_some_and(|id| uses.contains_key(id));
                    if known && KINDS.contains(&event.kind.as_str()) {
                        grants.take(&event, &mut revoked);
                        let gives = event.kind != REVOKED;
                        wanted.extend(event.parent_grant_id.filter(|parent| gives && !uses.contains_key(parent)));
                    }
                }
            }
        }
        grants.finish(&revoked, now);
        for row in grants.rows_mut() {
            row.uses = uses.get(&row.grant_id).copied().unwrap_or(0);
        }
        Ok(grants)
    }
}

/// A grant and all that were derived from it, or from one of those.
pub(crate) fn below(finder: &Finder<'_>, snapshot: &Snapshot, id: &str) -> Result<HashSet<String>, Error> {
    let (mut found, mut blocks) = (HashSet::from([id.to_owned()]), snapshot.blocks());
    let mut wanted = vec![id.to_owned()];
    while !wanted.is_empty() {
        let mut seqs = BTreeSet::new();
        for id in wanted.drain(..) {
            seqs.extend(finder.seqs(Kind::Grant, &id, &[Role::Child])?);
        }
        let seqs: Vec<u64> = seqs.into_iter().collect();
        for some in seqs.chunks(RECORDS_MAX) {
            for event in snapshot.few_events(some, blocks.as_mut())? {
                let is_child = event.parent_grant_id.as_ref().is_some_and(|parent| found.contains(parent));
                if let Some(child) = event.grant_id.filter(|child| is_child && !found.contains(child)) {
                    found.insert(child.clone());
                    wanted.push(child);
                }
            }
        }
    }
    Ok(found)
}
