//! Where a request really comes from. A proxy says so in headers, which any client can send, too: they count only where
//! the connection is from an address in `trusted_proxies`, and only as far back as the chain of such addresses goes.
//!
//! `X-Forwarded-For: CLIENT, PROXY1, PROXY2` grows to the right, so it is read from there: each entry was written by
//! the address after it. The first that is no trusted proxy is the client; what stands left of it is the client's own
//! invention. RFC 7239's `Forwarded` is read the same way. A proxy appends to the one it knows and passes the other on
//! as it came, so where both are there and disagree, one of them is invented: then the client is unknown, which no
//! allow-list contains.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, header};

use super::CidrList;

static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static TENANT: HeaderName = HeaderName::from_static("x-weir-tenant");
/// Entries that are looked at: more proxies than anyone has in a row.
const HOPS_MAX: usize = 32;

/// What is known of where a request comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The client; `None` where it cannot be told.
    pub client: Option<IpAddr>,
    /// The other end of the connection; `None` where there is none, in tests.
    pub peer: Option<IpAddr>,
    /// The host that the client asked a trusted proxy for, without its port.
    pub host: Option<HostName>,
    /// The tenant that a trusted proxy named.
    pub tenant: Option<TenantName>,
}

/// What `x-weir-tenant` said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantName {
    /// One name.
    One(String),
    /// More than one, or none that can be read: nobody's name.
    Unclear,
}

/// What `X-Forwarded-Host` said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostName {
    /// One name, in lower case and without the dot that may end it.
    One(String),
    /// More than one, or none that can be read: nobody's host.
    Unclear,
}

/// Works out where a request comes from.
pub fn origin(proxies: &CidrList, peer: Option<IpAddr>, headers: &HeaderMap) -> Origin {
    let peer = peer.map(|peer| peer.to_canonical());
    let Some(proxy) = peer.filter(|peer| proxies.contains(*peer)) else {
        return Origin { client: peer, peer, host: None, tenant: None };
    };
    let by_custom = headers.contains_key(&FORWARDED_FOR).then(|| client(proxies, proxy, &custom(headers)));
    let by_rfc = headers.contains_key(header::FORWARDED).then(|| client(proxies, proxy, &standard(headers)));
    let client = match (by_custom, by_rfc) {
        (Some(one), Some(other)) if one != other => None,
        (Some(client), _) | (None, Some(client)) => client,
        // The proxy itself asks: a health check.
        (None, None) => Some(proxy),
    };
    Origin { client, peer, host: host(headers), tenant: tenant(headers) }
}

/// The last entry that is no trusted proxy; `None` where one cannot be read before that. When all are proxies, the
/// first.
fn client(proxies: &CidrList, proxy: IpAddr, entries: &[Option<IpAddr>]) -> Option<IpAddr> {
    let mut last = proxy;
    for (seen, entry) in entries.iter().rev().enumerate() {
        last = (*entry)?;
        if !proxies.contains(last) {
            return Some(last);
        }
        if seen + 1 == HOPS_MAX {
            return None;
        }
    }
    Some(last)
}

/// The entries of all `X-Forwarded-For` lines, in order.
fn custom(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let lines = headers.get_all(&FORWARDED_FOR).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',').map(node)).collect()
}

/// The `for` of each element of all `Forwarded` lines, in order.
fn standard(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let lines = headers.get_all(header::FORWARDED).iter();
    lines.flat_map(|line| split(line.as_bytes(), b',')).map(node_of).collect()
}

fn node_of(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in split(element, b';') {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        if !name.eq_ignore_ascii_case(b"for") {
            continue;
        }
        let value = match value.strip_prefix(b"\"") {
            Some(quoted) => quoted.strip_suffix(b"\"")?,
            None => value,
        };
        if found.replace(node(value)).is_some() {
            return None;
        }
    }
    found.flatten()
}

/// Splits where no quotation is open. No address has a backslash in it, so an escaped quote need not be understood:
/// such an element is unreadable either way.
fn split(text: &[u8], mark: u8) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    text.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == mark && !quoted
    })
}

/// An address as proxies write it: alone, with a port, in brackets.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bracketed {
        Some(six) => IpAddr::V6(six.parse().ok()?),
        None => text.parse().or_else(|_| text.parse::<SocketAddr>().map(|with_port| with_port.ip())).ok()?,
    };
    Some(address.to_canonical())
}

/// What `X-Forwarded-Host` names. A second value, or one that is no host, may hide the one that counts.
fn host(headers: &HeaderMap) -> Option<HostName> {
    let mut values = headers.get_all(&FORWARDED_HOST).iter();
    let first = values.next()?;
    let name = match (first.to_str(), values.next()) {
        (Ok(text), None) => host_name(text.trim()),
        _ => None,
    };
    Some(name.map_or(HostName::Unclear, HostName::One))
}

/// A name or an address, without its port. `a.example.` is the same host as `a.example`.
fn host_name(text: &str) -> Option<String> {
    let bracket = text.find(']').map_or(0, |at| at + 1);
    let end = text[bracket..].find(':').map_or(text.len(), |at| bracket + at);
    let (name, port) = text.split_at(end);
    if !port.bytes().skip(1).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if let Some(six) = name.strip_prefix('[') {
        return six.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(|address| address.to_string());
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    // With the underscore of names inside a network, which are no tenant's but can be read.
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    name.split('.').all(label).then(|| name.to_ascii_lowercase())
}

fn tenant(headers: &HeaderMap) -> Option<TenantName> {
    let mut values = headers.get_all(&TENANT).iter();
    let first = values.next()?;
    Some(match (first.to_str(), values.next()) {
        (Ok(name), None) => TenantName::One(name.trim().to_owned()),
        _ => TenantName::Unclear,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXIES: &str = "10.0.0.0/8,2001:db8:ffff::/48";

    fn of(peer: &str, lines: &[(&'static str, &str)]) -> Origin {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("header"));
        }
        origin(&PROXIES.parse().expect("ranges"), Some(peer.parse().expect("address")), &headers)
    }

    fn client_of(peer: &str, lines: &[(&'static str, &str)]) -> String {
        of(peer, lines).client.map_or("unknown".into(), |address| address.to_string())
    }

    const FOR: &str = "x-forwarded-for";

    #[test]
    fn headers_from_anyone_else_say_nothing() {
        let lines = [
            (FOR, "192.0.2.1"),
            ("forwarded", "for=192.0.2.1"),
            ("x-weir-tenant", "a"),
            ("x-forwarded-host", "a.example"),
        ];
        let seen = of("198.51.100.9", &lines);
        let peer = "198.51.100.9".parse().ok();
        assert_eq!(seen, Origin { client: peer, peer, host: None, tenant: None });
        // A dual-stack socket says it in IPv6.
        assert_eq!(client_of("::ffff:198.51.100.9", &lines), "198.51.100.9");
    }

    #[test]
    fn the_chain_is_read_from_its_trusted_end() {
        for (lines, client) in [
            (vec![], "10.0.0.1"),
            (vec![(FOR, "192.0.2.1")], "192.0.2.1"),
            (vec![(FOR, "192.0.2.1:4711")], "192.0.2.1"),
            (vec![(FOR, "::ffff:192.0.2.1")], "192.0.2.1"),
            (vec![(FOR, "[2001:db8::1]:4711")], "2001:db8::1"),
            (vec![(FOR, "[2001:db8::1]")], "2001:db8::1"),
            // Left of the client is what it made up.
            (vec![(FOR, "127.0.0.1, 192.0.2.1")], "192.0.2.1"),
            (vec![(FOR, "10.9.9.9, 192.0.2.1, 10.0.0.2")], "192.0.2.1"),
            (vec![(FOR, "nonsense, 192.0.2.1, 2001:db8:ffff::2")], "192.0.2.1"),
            // Lines are one list, in order.
            (vec![(FOR, "127.0.0.1"), (FOR, "192.0.2.1")], "192.0.2.1"),
            (vec![(FOR, "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
            // What a trusted proxy wrote cannot be read: nobody, and not the last one that could be read.
            (vec![(FOR, "192.0.2.1, unknown")], "unknown"),
            (vec![(FOR, "192.0.2.1, , 10.0.0.2")], "unknown"),
            (vec![(FOR, "")], "unknown"),
            (vec![(FOR, "0300.0.2.1")], "unknown"),
            (vec![("forwarded", "for=192.0.2.1")], "192.0.2.1"),
            (vec![("forwarded", "For=\"192.0.2.1:99\";proto=https, for=10.0.0.2;by=_x")], "192.0.2.1"),
            (vec![("forwarded", "for=\"[2001:db8::1]:99\"")], "2001:db8::1"),
            (vec![("forwarded", "for=1.2.3.4;host=\"a,for=127.0.0.1\"")], "1.2.3.4"),
            (vec![("forwarded", "for=192.0.2.1, for=_hidden")], "unknown"),
            (vec![("forwarded", "for=192.0.2.1, proto=https")], "unknown"),
            (vec![("forwarded", "for=192.0.2.1;for=192.0.2.2")], "unknown"),
            (vec![("forwarded", "for=\"192.0.2.1")], "unknown"),
        ] {
            assert_eq!(client_of("10.0.0.1", &lines), client, "{lines:?}");
            assert_eq!(client_of("::ffff:10.0.0.1", &lines), client, "{lines:?}");
        }
    }

    #[test]
    fn two_headers_that_disagree_name_nobody() {
        let both = |one, other| client_of("10.0.0.1", &[(FOR, one), ("forwarded", other)]);
        assert_eq!(both("192.0.2.1", "for=192.0.2.1"), "192.0.2.1");
        assert_eq!(both("192.0.2.1", "for=192.0.2.2"), "unknown");
        assert_eq!(both("192.0.2.1", "for=_hidden"), "unknown");
    }

    #[test]
    fn chains_are_bounded() {
        let chain = |proxies: usize| format!("192.0.2.1{}", ", 10.0.0.2".repeat(proxies));
        assert_eq!(client_of("10.0.0.1", &[(FOR, &chain(HOPS_MAX - 1))]), "192.0.2.1");
        assert_eq!(client_of("10.0.0.1", &[(FOR, &chain(HOPS_MAX))]), "unknown");
    }

    #[test]
    fn hosts_and_tenants_are_named_once() {
        let host = |values: &[&str]| {
            of("10.0.0.1", &values.iter().map(|value| ("x-forwarded-host", *value)).collect::<Vec<_>>()).host
        };
        assert_eq!(host(&[]), None);
        for (one, name) in [
            ("A.example:8443", "a.example"),
            ("a.example.", "a.example"),
            ("a.example.:443", "a.example"),
            ("a_b", "a_b"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("[::1]:1", "::1"),
        ] {
            assert_eq!(host(&[one]), Some(HostName::One(name.into())), "{one}");
        }
        for unclear in [
            &[""][..],
            &["a", "b"],
            &["a", "a"],
            &["a, b"],
            &["a/b"],
            &["user@a"],
            &["a:b:1"],
            &["a:x"],
            &["a.."],
            &["."],
            &[".a"],
            &["\u{e9}"],
            &["[::1"],
            &["[a]"],
            &["[::1]a"],
        ] {
            assert_eq!(host(unclear), Some(HostName::Unclear), "{unclear:?}");
        }
        let tenant = |values: &[&str]| {
            of("10.0.0.1", &values.iter().map(|value| ("x-weir-tenant", *value)).collect::<Vec<_>>()).tenant
        };
        assert_eq!((tenant(&[]), tenant(&["a"])), (None, Some(TenantName::One("a".into()))));
        assert_eq!((tenant(&["a", "a"]), tenant(&["\u{e9}"])), (Some(TenantName::Unclear), Some(TenantName::Unclear)));
    }
}
