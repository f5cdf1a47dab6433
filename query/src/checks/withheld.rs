//! What of a hit may be said to whom. A rule looks at the whole log, so its words may be those of records of other
//! tenants and workspaces. Such a hit is told by two records: one for whoever sees the record that it is about,
//! without what the others say, and behind it one with everything.
//!
//! Invariant: who sees the second record sees every record that the hit cites, and the first. A rule cites every
//! record whose values it tells (docs/rules.md).

use std::collections::{BTreeSet, HashMap};

use super::hit::HitRow;
use super::run::EVIDENCE_MAX;
use crate::Error;
use crate::event::EventRow;
use crate::projection::Snapshot;
use crate::recorder::Said;
use crate::rows::Cell as _;
use crate::segments::{Table, Wanted};
use crate::tenancy::Tenancy;

/// Stands behind the description of the check, in place of what it found.
const REMARK: &str = "(details are withheld: they lie in records of other tenants or workspaces)";

/// What some hits cite.
pub(super) struct Cited {
    /// Whose the cited records are that the snapshot shows.
    whose: HashMap<u64, Tenancy>,
    /// The events of the records that the hits are about.
    about: HashMap<u64, Vec<EventRow>>,
}

impl Cited {
    /// What these hits cite, as far as a snapshot shows it.
    pub(super) fn of<'a>(snapshot: &Snapshot, hits: impl Iterator<Item = &'a HitRow>) -> Result<Self, Error> {
        let (mut seqs, mut cited) = (BTreeSet::new(), BTreeSet::new());
        for hit in hits.filter(|hit| cites_more(hit)) {
            seqs.insert(hit.seq);
            cited.extend(hit.evidence.iter().copied());
        }
        let mut about: HashMap<u64, Vec<EventRow>> = HashMap::new();
        if !seqs.is_empty() {
            for event in snapshot.events_at(&seqs)? {
                about.entry(event.seq).or_default().push(event);
            }
        }
        Ok(Self { whose: whose(snapshot, cited)?, about })
    }

    /// The records that tell a hit; the last one tells all of it. `about` is what its check fires on.
    pub(super) fn said(&self, hit: &HitRow, about: &str, supersedes: Option<&str>) -> Vec<Said> {
        let shared = self.shared(hit);
        if shared.tenant == hit.tenant && shared.workspace == hit.workspace {
            return vec![hit.say(supersedes)];
        }
        // To whoever sees the one record.
        let is_seen = |of: &Tenancy| {
            let covers = |own: &Option<String>, of: &Option<String>| own.is_none() || own == of;
            covers(&hit.tenant, &of.tenant) && covers(&hit.workspace, &of.workspace)
        };
        let first = self.without_details(hit, about, |seq| self.whose.get(&seq).is_some_and(is_seen));
        vec![first.say_less(supersedes), hit.say_details(shared)]
    }

    /// A hit that no record tells yet, for a caller who sees no more than the snapshot shows.
    pub(super) fn shown(&self, hit: HitRow, about: &str) -> HitRow {
        let own = hit.seq;
        let sees = |seq: u64| seq == own || self.whose.contains_key(&seq);
        if hit.evidence.len() < EVIDENCE_MAX && hit.evidence.iter().all(|seq| sees(*seq)) {
            return hit;
        }
        self.without_details(&hit, about, sees)
    }

    /// The tenant and the workspace that all cited records have in common with the one that it is about: who may see
    /// those may see every one of them.
    fn shared(&self, hit: &HitRow) -> Tenancy {
        // Of so many, some are not named.
        if hit.evidence.len() >= EVIDENCE_MAX {
            return Tenancy::default();
        }
        let mut shared = Tenancy { tenant: hit.tenant.clone(), workspace: hit.workspace.clone() };
        if !cites_more(hit) {
            return shared;
        }
        let nobodys = Tenancy::default();
        for seq in hit.evidence.iter().filter(|seq| **seq != hit.seq) {
            let of = self.whose.get(seq).unwrap_or(&nobodys);
            if shared.tenant != of.tenant {
                shared.tenant = None;
            }
            if shared.workspace != of.workspace {
                shared.workspace = None;
            }
        }
        shared
    }

    /// With the check's description for what it found, and only what the record itself names.
    fn without_details(&self, hit: &HitRow, about: &str, sees: impl Fn(u64) -> bool) -> HitRow {
        let own = self.about.get(&hit.seq).map(Vec::as_slice).unwrap_or_default();
        let (grant, agent) = (hit.grant_id.as_ref(), hit.agent_id.as_ref());
        HitRow {
            detail: format!("{about} {REMARK}"),
            grant_id: grant.filter(|id| own.iter().any(|event| event.grant_id.as_ref() == Some(*id))).cloned(),
            agent_id: agent.filter(|id| own.iter().any(|event| event.agent_id.as_ref() == Some(*id))).cloned(),
            evidence: hit.evidence.iter().copied().filter(|seq| *seq == hit.seq || sees(*seq)).collect(),
            ..hit.clone()
        }
    }
}

/// Whether a hit that some limited callers see cites more than the record that they see.
fn cites_more(hit: &HitRow) -> bool {
    (hit.tenant.is_some() || hit.workspace.is_some()) && hit.evidence.iter().any(|seq| *seq != hit.seq)
}

/// Whose some records are. One that has no row is nobody's: its content is erased.
fn whose(snapshot: &Snapshot, mut seqs: BTreeSet<u64>) -> Result<HashMap<u64, Tenancy>, Error> {
    const COLUMNS: [&str; 3] = ["seq", "tenant", "workspace"];
    let mut out = HashMap::new();
    for table in [Table::Events, Table::Spans, Table::Logs, Table::Metrics] {
        if seqs.is_empty() {
            break;
        }
        snapshot.read(&Wanted::all(table).at(&seqs).columns(&COLUMNS), |batch| {
            let [seq, tenant, workspace] = batch.columns() else { return Ok(true) };
            for i in 0..batch.num_rows() {
                let (tenant, workspace) = (<Option<String>>::read(tenant, i), <Option<String>>::read(workspace, i));
                out.insert(u64::read(seq, i), Tenancy { tenant, workspace });
            }
            Ok(true)
        })?;
        seqs.retain(|seq| !out.contains_key(seq));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_records_have_in_common_says_who_is_told() {
        let some = |text: &str| Some(text.to_owned());
        let of = |seq, tenant, workspace| EventRow { seq, tenant, workspace, ..EventRow::default() };
        let rows = [
            of(0, some("acme"), None),
            of(1, some("acme"), some("red")),
            of(2, some("globex"), some("red")),
            of(3, None, None),
        ];
        let snapshot = Snapshot::of_events(vec![EventRow::batch(&rows)], 4);
        // How many records tell it, whose the last one is, and what the first one cites.
        let told = |own: usize, evidence: Vec<u64>| {
            let (tenant, workspace) = (rows[own].tenant.clone(), rows[own].workspace.clone());
            let hit = HitRow { seq: own as u64, tenant, workspace, evidence, ..HitRow::default() };
            let said = Cited::of(&snapshot, [&hit].into_iter()).unwrap().said(&hit, "About.", None);
            let last =
                ["tenant.id", "authz.workspace"].map(|name| said[said.len() - 1].record.text(name).map(str::to_owned));
            (said.len(), last, said[0].record.texts("security.alert.evidence").unwrap_or_default().join(","))
        };
        assert_eq!(told(1, vec![1]), (1, [some("acme"), some("red")], "1".into()));
        assert_eq!(told(0, vec![0, 1]), (1, [some("acme"), None], "0,1".into()), "who sees 0 sees 1");
        assert_eq!(told(1, vec![0, 1]), (2, [some("acme"), None], "1".into()));
        assert_eq!(told(1, vec![1, 2]), (2, [None, some("red")], "1".into()));
        assert_eq!(told(1, vec![1, 9]), (2, [None, None], "1".into()), "9 is erased");
        assert_eq!(told(3, vec![0, 3]), (1, [None, None], "0,3".into()), "limited callers do not see 3");
        let (records, last, _) = told(0, (0..EVIDENCE_MAX as u64).collect());
        assert_eq!((records, last), (2, [None, None]), "some may be left out");
    }
}
