//! Whose a grant is. Records of two tenants do not meet: who may speak for one can neither give, nor pass on, nor take
//! back what is another's. A record that names no tenant (an authority or a proxy that serves all of them)
//! meets those of every tenant; where a tenant has a grant of its own under an id, that one counts.

use std::collections::HashMap;

use super::{GrantRow, Grants};
use crate::rows::Time;

/// What a grant goes by: the tenant that its record names, and its id.
pub(super) type Key = (Option<String>, String);

/// Whether records of these tenants can be about one grant.
pub(crate) fn meet(one: Option<&str>, other: Option<&str>) -> bool {
    one.is_none() || other.is_none() || one == other
}

/// A place where records are looked for, so that those that meet are found, each once, and none that do not. A record
/// that names a tenant lies with that tenant and with those of somebody, and looks with its tenant and with those of nobody; one
/// that names none lies with those of nobody, and looks there and with those of somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope<'a> {
    Of(&'a str),
    Somebody,
    Nobody,
}

impl<'a> Scope<'a> {
    /// Where a record of a tenant lies.
    pub(crate) fn lies_in(tenant: Option<&'a str>) -> impl Iterator<Item = Self> {
        let [first, second] = match tenant {
            Some(tenant) => [Some(Self::Of(tenant)), Some(Self::Somebody)],
            None => [Some(Self::Nobody), None],
        };
        [first, second].into_iter().flatten()
    }

    /// Where a record of a tenant finds those that it meets: first where those are that name the same.
    pub(crate) fn looks_in(tenant: Option<&'a str>) -> [Self; 2] {
        match tenant {
            Some(tenant) => [Self::Of(tenant), Self::Nobody],
            None => [Self::Nobody, Self::Somebody],
        }
    }
}

/// When each grant was revoked, at the earliest, and the record that did so: by id, and by the tenant that it names.
#[derive(Debug, Default)]
pub(crate) struct Revoked(HashMap<String, HashMap<Option<String>, (Time, u64)>>);

impl Revoked {
    /// Takes in a revocation.
    pub(super) fn take(&mut self, tenant: Option<&str>, id: &str, ended: (Time, u64)) {
        let of_id = self.0.entry(id.to_owned()).or_default();
        of_id.entry(tenant.map(str::to_owned)).and_modify(|known| *known = ended.min(*known)).or_insert(ended);
    }

    /// When a grant ended by this, if it did.
    pub(super) fn of(&self, grant: &GrantRow) -> Option<(Time, u64)> {
        let of_id = self.0.get(&grant.grant_id)?;
        match &grant.tenant {
            None => of_id.values().copied().min(),
            own => [own, &None].into_iter().filter_map(|tenant| of_id.get(tenant)).copied().min(),
        }
    }
}

impl Grants {
    /// The grant that a record of a tenant means by an id: the tenant's own, or that of a record which names none. A
    /// record that names none means that, or the only one there is.
    pub(super) fn meant(&self, tenant: Option<&str>, id: &str) -> Option<usize> {
        let of = |tenant: Option<&str>| self.by_key.get(&(tenant.map(str::to_owned), id.to_owned())).copied();
        let only = || match self.of_id(id) {
            [at] if tenant.is_none() => Some(*at),
            _ => None,
        };
        of(tenant).or_else(|| of(None)).or_else(only)
    }

    /// The grant that a record of a tenant means by an id.
    pub fn get(&self, tenant: Option<&str>, id: &str) -> Option<&GrantRow> {
        self.meant(tenant, id).map(|at| &self.rows[at])
    }

    /// The grants that have an id, one of each tenant that uses it.
    pub(super) fn of_id(&self, id: &str) -> &[usize] {
        self.by_id.get(id).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_find_each_other_once_if_they_meet() {
        let all = [None, Some("acme"), Some("globex"), Some("")];
        for (one, other) in all.iter().flat_map(|one| all.iter().map(move |other| (*one, *other))) {
            let found = Scope::lies_in(one).filter(|scope| Scope::looks_in(other).contains(scope)).count();
            assert_eq!(found, usize::from(meet(one, other)), "{one:?} and {other:?}");
        }
    }
}
