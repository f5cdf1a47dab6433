//! Who asks, what he may do, and which rows he may see.
//!
//! A `Caller` is made where a request comes in, from what authenticated it, and goes with it as an
//! extension of the request. A request without one is refused: whoever builds a server must say who
//! comes in, and if everybody may, must say that ([`Caller::local`], [`everybody`]).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::Extensions;
use axum::http::request::Parts;

use crate::error::{Error, ErrorKind};

/// What a caller may do. Nothing is allowed that no role allows.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Role {
    /// Send OTLP.
    Write,
    /// Ask: SQL, replay, proofs of single records.
    Read,
    /// Acknowledge, investigate, note and close alerts, and record containment decisions.
    Investigate,
    /// Take evidence bundles and bulk exports.
    Export,
    /// Follow the events: cursors, streams, consumers.
    Stream,
    /// Read checkpoints and tiles of the transparency log, and submit cosignatures.
    Witness,
    /// Erase, change keys, rules and policy.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Write, Self::Read, Self::Investigate, Self::Export, Self::Stream, Self::Witness, Self::Admin];

    /// Those that learn something from the server: all but who only sends.
    pub const READERS: [Self; 6] =
        [Self::Read, Self::Investigate, Self::Export, Self::Stream, Self::Witness, Self::Admin];

    /// Its name in policy files and tokens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Investigate => "investigate",
            Self::Export => "export",
            Self::Stream => "stream",
            Self::Witness => "witness",
            Self::Admin => "admin",
        }
    }

    /// The role of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// A set of roles.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Roles(u8);

impl Roles {
    /// Every role.
    pub fn all() -> Self {
        Role::ALL.into_iter().collect()
    }

    /// Whether this role is among them.
    pub const fn has(self, role: Role) -> bool {
        self.0 & 1 << role as u8 != 0
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().fold(0, |set, role| set | 1 << role as u8))
    }
}

/// What kind of actor a caller is. Only a human may acknowledge, close or decide.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ActorType {
    /// A person, authenticated as one.
    Human,
    /// An agent.
    Agent,
    /// A service or a proxy.
    Workload,
    /// A script or a pipeline.
    Automation,
    /// Whoever reaches this address: nobody was authenticated.
    Unknown,
}

impl ActorType {
    /// Its name in records, policy files and tokens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Agent => "agent",
            Self::Workload => "workload",
            Self::Automation => "automation",
            Self::Unknown => "unknown",
        }
    }
}

/// Which rows a caller may see, in every interface: `None` is no restriction, an empty list nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RowFilter {
    /// Only records of these tenants.
    pub tenants: Option<Arc<[String]>>,
    /// Only records of these workspaces.
    pub workspaces: Option<Arc<[String]>>,
}

impl RowFilter {
    /// Whether it hides nothing.
    pub const fn is_open(&self) -> bool {
        self.tenants.is_none() && self.workspaces.is_none()
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `jwt:<issuer>#<subject>`, `spiffe://...`, `cert:<subject>`, `os:<user>`, or `peer:<address>`
    /// when nobody was authenticated.
    pub identity: Arc<str>,
    /// What kind of actor.
    pub actor: ActorType,
    /// What he may do.
    pub roles: Roles,
    /// What he may see.
    pub rows: RowFilter,
}

impl Caller {
    /// Whoever connects over loopback while no identities are configured: he may do everything but
    /// what needs a person's authenticated identity.
    pub fn local(peer: Option<SocketAddr>) -> Self {
        let identity = match peer {
            Some(peer) => format!("peer:{}", peer.ip().to_canonical()),
            None => "peer:unknown".into(),
        };
        Self { identity: identity.into(), actor: ActorType::Unknown, roles: Roles::all(), rows: RowFilter::default() }
    }

    /// Whether he has this role.
    pub const fn may(&self, role: Role) -> bool {
        self.roles.has(role)
    }
}

impl Caller {
    /// Who came with a request.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Forbidden`] if nobody said who that is: then nobody may do anything.
    fn of(extensions: &Extensions) -> Result<Self, Error> {
        let unknown = || Error::new(ErrorKind::Forbidden, "nothing in front of this server says who is asking");
        extensions.get::<Self>().cloned().ok_or_else(unknown)
    }
}

/// A handler that takes a `Caller` gets the one that came with the request.
impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        Self::of(&parts.extensions)
    }
}

/// A router for a process that serves itself alone: whoever reaches it may do everything.
pub fn everybody(router: Router) -> Router {
    router.layer(axum::Extension(Caller::local(None)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_nobody_vouches_for_may_do_nothing() {
        let mut extensions = Extensions::new();
        assert_eq!(Caller::of(&extensions).unwrap_err().kind, ErrorKind::Forbidden);
        extensions.insert(Caller::local(None));
        assert!(Caller::of(&extensions).unwrap().may(Role::Read));
    }

    #[test]
    fn roles_are_kept_apart() {
        for role in Role::ALL {
            assert_eq!(Role::of_name(role.name()), Some(role));
            let one: Roles = [role].into_iter().collect();
            assert!(Role::ALL.into_iter().all(|other| one.has(other) == (other == role)));
        }
        assert_eq!(Role::of_name("root"), None);
        assert!(!Roles::default().has(Role::Read));
    }
}
