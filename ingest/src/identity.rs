//! Who is at the other end of a connection, and who decides what he may send.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use http::HeaderMap;

use crate::Refusal;
use crate::tls::Session;

/// The other end of a connection.
#[derive(Clone)]
pub struct Peer {
    address: SocketAddr,
    session: Arc<Session>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)
    }
}

impl Peer {
    /// One whose session is still to come.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, session: Arc::default() }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its identity while it is known only by its address: `peer:127.0.0.1`.
    pub fn identity(&self) -> String {
        format!("peer:{}", crate::door::ip(self.address))
    }

    /// Whether nobody between can read or change what it sends.
    pub fn is_encrypted(&self) -> bool {
        self.session.is_encrypted()
    }

    /// Who it is by its certificate: `spiffe://...` or `cert:...`. `None` if it showed none.
    ///
    /// # Errors
    ///
    /// If it showed one that is not good any more: it ended, was revoked, or its authority was
    /// taken away.
    pub fn certificate(&self) -> Result<Option<&str>, String> {
        self.session.identity()
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }
}

/// Whether a request is taken, and under which identity its records are.
pub type Admitting<'a> = Pin<Box<dyn Future<Output = Result<Arc<str>, Refusal>> + Send + 'a>>;

/// Decides who may send. Without one, everybody may who reaches the port, as `peer:<address>`.
pub trait Guard: fmt::Debug + Send + Sync {
    /// Looks at a request's head, before any of its body is read.
    fn admit<'a>(&'a self, peer: &'a Peer, headers: &'a HeaderMap) -> Admitting<'a>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_same_peer() {
        let of = |address: &str| Peer::new(address.parse().unwrap()).identity();
        assert_eq!(of("127.0.0.1:9"), "peer:127.0.0.1");
        assert_eq!(of("[::ffff:127.0.0.1]:9"), "peer:127.0.0.1");
        assert_eq!(of("[::1]:9"), "peer:::1");
    }
}
