//! Whether keys would cross a network in the clear.

use std::net::{IpAddr, SocketAddr};

use super::CidrList;

/// A listener that others can reach, without anything that keeps its keys to itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} would listen on {address}, where others can reach it and read its keys on the way. Set up TLS ([server.tls], or \
     --tls-certificate and --tls-key), or say which proxy ends TLS in front of it (--trusted-proxies 10.0.0.0/8), or, where \
     the network itself is private, pass --insecure-public"
)]
pub struct Exposed {
    /// Which listener.
    pub what: &'static str,
    /// Where.
    pub address: SocketAddr,
}

/// What keeps keys to themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cover {
    /// The listener speaks TLS.
    pub tls: bool,
    /// Somebody said which proxies are in front of it.
    pub proxied: bool,
    /// Somebody said that it is all right.
    pub insecure: bool,
}

impl Cover {
    /// Refuses a listener that others can reach without any of these.
    pub fn check(self, what: &'static str, address: SocketAddr) -> Result<(), Exposed> {
        let covered = self.tls || self.proxied || self.insecure;
        match covered || address.ip().to_canonical().is_loopback() {
            true => Ok(()),
            false => Err(Exposed { what, address }),
        }
    }
}

/// Whose connections a listener takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    /// Everybody's.
    All,
    /// Those of this machine and of the proxies that end TLS in front of it. Where nothing else keeps keys to
    /// themselves, whoever else connects would send one in the clear.
    Proxies(CidrList),
}

impl Peers {
    /// Whether connections from an address are taken.
    pub fn include(&self, peer: IpAddr) -> bool {
        match self {
            Peers::All => true,
            Peers::Proxies(proxies) => peer.to_canonical().is_loopback() || proxies.contains(peer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_that_are_the_only_cover_are_the_only_peers() {
        let proxies = Peers::Proxies("10.0.0.0/8".parse().expect("ranges"));
        for (peer, taken) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
        ] {
            let peer = peer.parse().expect("address");
            assert_eq!(proxies.include(peer), taken, "{peer}");
            assert!(Peers::All.include(peer), "{peer}");
        }
    }

    #[test]
    fn only_this_machine_is_served_without_cover() {
        let check = |cover: Cover, address: &str| cover.check("the API", address.parse().expect("address")).is_ok();
        for near in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(check(Cover::default(), near), "{near}");
        }
        for far in ["0.0.0.0:1", "[::]:1", "192.168.0.2:1", "10.0.0.1:1", "[fe80::1]:1", "[::ffff:10.0.0.1]:1"] {
            assert!(!check(Cover::default(), far), "{far}");
            assert!(check(Cover { tls: true, ..Cover::default() }, far), "{far}");
            assert!(check(Cover { proxied: true, ..Cover::default() }, far), "{far}");
            assert!(check(Cover { insecure: true, ..Cover::default() }, far), "{far}");
        }
    }
}
