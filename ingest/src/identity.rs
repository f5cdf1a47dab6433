//! Who sent a request. Until a client authenticates itself, the peer's address.

use std::net::SocketAddr;

/// The identity of a peer that is known only by its address: `peer:127.0.0.1`.
pub(crate) fn of_peer(peer: SocketAddr) -> String {
    format!("peer:{}", crate::door::ip(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_same_peer() {
        assert_eq!(of_peer("127.0.0.1:9".parse().unwrap()), "peer:127.0.0.1");
        assert_eq!(of_peer("[::ffff:127.0.0.1]:9".parse().unwrap()), "peer:127.0.0.1");
        assert_eq!(of_peer("[::1]:9".parse().unwrap()), "peer:::1");
    }
}
