//! Where a tenant's webhook may send to: addresses of the public internet, and none that only this server's network has.
//!
//! The address is looked at after the name was resolved, by the resolver of the connection itself, so that a name that
//! resolves to something else the next time leads nowhere, either.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de};
use ureq::{
    http::Uri,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::NextTimeout,
    },
};

/// Whether tenants make webhooks, and how far these reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reach {
    /// There are none.
    Off,
    /// By https, to public addresses.
    #[default]
    Public,
    /// To any address, as operators' do.
    Any,
}

impl Reach {
    /// As it is written in settings.
    pub const fn word(self) -> &'static str {
        match self {
            Reach::Off => "off",
            Reach::Public => "public",
            Reach::Any => "any",
        }
    }
}

impl FromStr for Reach {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Reach::Off, Reach::Public, Reach::Any].into_iter().find(|reach| reach.word() == text);
        known.ok_or_else(|| format!("`{text}` is none of off, public and any"))
    }
}

impl<'de> Deserialize<'de> for Reach {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?.parse().map_err(de::Error::custom)
    }
}

/// Resolves names as usual, and finds public addresses only.
#[derive(Debug, Default)]
pub(super) struct PublicOnly(DefaultResolver);

impl Resolver for PublicOnly {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.0.resolve(uri, config, timeout)?;
        let mut public = self.empty();
        found.iter().filter(|address| is_public(address.ip())).for_each(|address: &SocketAddr| public.push(*address));
        // Which addresses there are is nothing that a tenant is told.
        if public.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(public) }
    }
}

/// Whether an address is one that anybody on the internet has the same idea of (IANA's registries of special addresses).
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(four) => is_public_v4(four),
        IpAddr::V6(six) => is_public_v6(six),
    }
}

fn is_public_v4(four: Ipv4Addr) -> bool {
    let [a, b, c, _] = four.octets();
    let special = four.is_private()
        || four.is_loopback()
        || four.is_link_local()
        || four.is_documentation()
        || four.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && b & 0xfe == 18);
    !special
}

/// Of 2000::/3, which is all that is given out, without what stands for something else: Teredo and its like (2001::/23), 6to4
/// (2002::/16), examples.
fn is_public_v6(six: Ipv6Addr) -> bool {
    let [a, b, ..] = six.segments();
    let special = (a == 0x2001 && (b < 0x200 || b == 0xdb8)) || a == 0x2002 || (a == 0x3fff && b < 0x1000);
    a & 0xe000 == 0x2000 && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_everybodys_is_public() {
        for address in
            ["1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1", "2a00::1", "::ffff:1.1.1.1"]
        {
            assert!(is_public(address.parse().expect("an address")), "{address}");
        }
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::",
            "fec0::1",
        ] {
            assert!(!is_public(address.parse().expect("an address")), "{address}");
        }
    }

    #[test]
    fn words_read_back() {
        for reach in [Reach::Off, Reach::Public, Reach::Any] {
            assert_eq!(reach.word().parse(), Ok(reach));
        }
        assert!("private".parse::<Reach>().is_err());
    }

    #[test]
    fn a_name_of_this_machine_is_as_one_that_is_not_there() {
        let agent = ureq::Agent::with_parts(
            ureq::Agent::config_builder().proxy(None).build(),
            ureq::unversioned::transport::DefaultConnector::default(),
            PublicOnly::default(),
        );
        for address in ["http://127.0.0.1:9/", "http://[::1]:9/", "http://localhost:9/"] {
            let error = agent.post(address).send("x").expect_err(address);
            assert!(matches!(error, ureq::Error::HostNotFound), "{address}: {error}");
        }
    }
}
