//! What a caller may do, decided in one place: roles by interface, rows by tenant and workspace.
//!
//! Deny by default: what no line here allows, only `admin` may ask for. Which rows a caller may
//! see is not asked of handlers at all: they get a [`Snapshot`] that holds no others.

use std::sync::Arc;

use axum::http::Method;

use crate::caller::{Caller, Role, RowFilter};
use crate::error::{Error, ErrorKind};
use crate::ids::Ids;
use crate::lookup::Log;
use crate::projection::Snapshot;

impl Caller {
    /// Refuses who has none of these roles; the refusal names what was asked for and the role.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Forbidden`].
    pub fn require(&self, any_of: &[Role], what: &str) -> Result<(), Error> {
        if any_of.iter().any(|role| self.may(*role)) {
            return Ok(());
        }
        let roles: Vec<&str> = any_of.iter().map(|role| role.name()).collect();
        Err(Error::new(
            ErrorKind::Forbidden,
            format!("{what} needs the role {}, which {} does not have", roles.join(" or "), self.identity),
        ))
    }
}

impl RowFilter {
    /// Whether a record of this tenant and workspace may be seen. What names no tenant is of no
    /// tenant: a caller who is limited to some does not see it.
    pub fn sees(&self, tenant: Option<&str>, workspace: Option<&str>) -> bool {
        let within = |allowed: &Option<Arc<[String]>>, value: Option<&str>| match (allowed, value) {
            (None, _) => true,
            (Some(allowed), Some(value)) => allowed.iter().any(|one| one == value),
            (Some(_), None) => false,
        };
        within(&self.tenants, tenant) && within(&self.workspaces, workspace)
    }
}

impl Snapshot {
    /// The same state of the log with the rows that a filter lets through, and none other:
    /// whatever is made of it, tables, chains, replays or pages of events, knows of no others.
    pub fn seen_by(self: &Arc<Self>, rows: &RowFilter) -> Arc<Self> {
        if rows.is_open() {
            return Arc::clone(self);
        }
        // The index and the log know of all rows: what is made for this caller is read off those that he may see.
        // They only say where to look.
        let beneath = Some(Arc::clone(self));
        Arc::new(Self { visible: rows.clone(), ids: Ids::default(), log: Log::default(), beneath, ..Self::clone(self) })
    }

    /// Which of its rows are shown.
    pub(crate) fn visible(&self) -> &RowFilter {
        &self.visible
    }
}

/// What a request for a path needs; `None` is anybody's.
pub(crate) fn needed(method: &Method, path: &str) -> Option<(&'static [Role], &'static str)> {
    let is_get = matches!(*method, Method::GET | Method::HEAD);
    let under = |prefix: &str| path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    Some(match path {
        // The page and the description hold no data; health is for whoever routes requests.
        "/" | "/openapi.json" | "/healthz" | "/readyz" => return None,
        // A sender needs to know nothing of others.
        "/metrics" => (&Role::READERS, "reading the metrics"),
        _ if under("/checkpoint") || under("/tile") => (&[Role::Witness, Role::Read], "the transparency log"),
        _ if under("/api/v1/sql") || under("/api/v1/replay") || under("/api/v1/queries") => (&[Role::Read], "asking"),
        // The query API of Jaeger.
        _ if ["/api/services", "/api/operations", "/api/traces", "/api/dependencies", "/api/v3"]
            .into_iter()
            .any(under) =>
        {
            (&[Role::Read], "asking")
        }
        _ if under("/api/v1/events") || under("/api/v1/consumers") || under("/custody.v1.Events") => {
            (&[Role::Stream], "following the events")
        }
        _ if under("/api/v1/evidence") => (&[Role::Export], "exporting"),
        _ if under("/api/v1/alerts") && is_get => (&[Role::Read], "reading alerts"),
        _ if under("/api/v1/alerts") => (&[Role::Investigate], "answering alerts"),
        _ => (&[Role::Admin], "this"),
    })
}

/// Whether a caller may ask for a path.
pub(crate) fn allow(caller: &Caller, method: &Method, path: &str) -> Result<(), Error> {
    let Some((roles, what)) = needed(method, path) else { return Ok(()) };
    caller.require(roles, what)?;
    if path == "/metrics" && !caller.rows.is_open() {
        let message = format!("the metrics count all rows, and {} may see only some", caller.identity);
        return Err(Error::new(ErrorKind::Forbidden, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(roles: &[Role]) -> Caller {
        Caller { roles: roles.iter().copied().collect(), ..Caller::local(None) }
    }

    #[test]
    fn each_interface_needs_its_role_and_no_other_will_do() {
        let asked = [
            ("POST", "/api/v1/sql", &[Role::Read][..]),
            ("GET", "/api/services/a/operations", &[Role::Read]),
            ("GET", "/api/traces/1f", &[Role::Read]),
            ("GET", "/api/v3/trace-summaries", &[Role::Read]),
            ("GET", "/api/v3", &[Role::Read]),
            ("GET", "/api/tracesx", &[Role::Admin]),
            ("GET", "/api/v1/events", &[Role::Stream]),
            ("POST", "/api/v1/consumers/siem/next", &[Role::Stream]),
            ("POST", "/api/v1/evidence", &[Role::Export]),
            ("GET", "/api/v1/alerts", &[Role::Read]),
            ("POST", "/api/v1/alerts/a1/acknowledge", &[Role::Investigate]),
            ("GET", "/checkpoint", &[Role::Witness, Role::Read]),
            ("GET", "/tile/0/000", &[Role::Witness, Role::Read]),
            ("GET", "/metrics", &Role::READERS),
            ("POST", "/api/v1/policy", &[Role::Admin]),
            ("GET", "/api/v1/sqlite", &[Role::Admin]),
        ];
        for (method, path, roles) in asked {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            for role in Role::ALL {
                let allowed = allow(&caller(&[role]), &method, path);
                assert_eq!(allowed.is_ok(), roles.contains(&role), "{path} {}", role.name());
                if let Err(error) = allowed {
                    assert_eq!(error.kind, ErrorKind::Forbidden);
                    assert!(roles.iter().all(|role| error.message.contains(role.name())), "{error}");
                }
            }
        }
        assert!(allow(&caller(&[]), &Method::GET, "/healthz").is_ok());
        assert!(allow(&caller(&[]), &Method::GET, "/metrics").is_err());
        let rows = RowFilter { tenants: Some(["a".to_owned()].into()), workspaces: None };
        assert!(allow(&Caller { rows, ..caller(&Role::ALL) }, &Method::GET, "/metrics").is_err());
    }

    #[test]
    fn what_names_no_tenant_is_hidden_from_who_is_limited_to_some() {
        let of = |list: &[&str]| Some(list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>().into());
        let both = RowFilter { tenants: of(&["a", "b"]), workspaces: of(&["w"]) };
        assert!(both.sees(Some("b"), Some("w")));
        assert!(!both.sees(Some("b"), None) && !both.sees(None, Some("w")) && !both.sees(Some("c"), Some("w")));
        assert!(RowFilter::default().sees(None, None));
        assert!(!RowFilter { tenants: of(&[]), workspaces: None }.sees(Some("a"), None));
    }
}
