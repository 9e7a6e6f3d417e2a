//! The server's address.

use crate::error::BenchError;

/// Where the requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Host as dialled: a name, an IPv4 address, or an IPv6 address without its brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path before `/v1/...`, without a trailing slash.
    pub(crate) base: String,
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Target, BenchError> {
        let refuse = |reason: &str| BenchError::Config { field: "url", reason: format!("`{url}` {reason}") };
        if url.starts_with("https://") {
            return Err(refuse("is https: the load generator speaks plain HTTP, to the server itself"));
        }
        let rest = url.strip_prefix("http://").ok_or_else(|| refuse("does not begin with http://"))?;
        if rest.bytes().any(|b| !b.is_ascii_graphic() || matches!(b, b'?' | b'#' | b'@')) {
            return Err(refuse("holds a character that has no place here"));
        }
        let (authority, base) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']').ok_or_else(|| refuse("has a `[` without its `]`"))?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':').unwrap_or("")) })
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return Err(refuse("has no host"));
        }
        let port = match port {
            None => 80,
            Some(text) => match text.parse::<u16>() {
                Ok(port) if port > 0 => port,
                _ => return Err(refuse("has a port that is not 1 to 65535")),
            },
        };
        Ok(Target { host: host.to_string(), port, base: base.trim_end_matches('/').to_string() })
    }

    /// `host:port`, as the `Host` header and error texts show it.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether the server is on this machine, so that its processes can be looked at.
    pub(crate) fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target, String> {
        Target::parse(url).map_err(|e| e.to_string())
    }

    #[test]
    fn addresses_are_parsed() {
        let t = |host: &str, port, base: &str| Ok(Target { host: host.into(), port, base: base.into() });
        assert_eq!(target("http://127.0.0.1:8000"), t("127.0.0.1", 8000, ""));
        assert_eq!(target("http://127.0.0.1:8000/"), t("127.0.0.1", 8000, ""));
        assert_eq!(target("http://box/api/"), t("box", 80, "/api"));
        assert_eq!(target("http://[::1]:9000"), t("::1", 9000, ""));
        assert_eq!(target("http://[::1]"), t("::1", 80, ""));
        assert_eq!(Target::parse("http://[::1]:9000").unwrap().authority(), "[::1]:9000");
    }

    #[test]
    fn bad_addresses_are_refused() {
        for url in [
            "",
            "127.0.0.1:8000",
            "https://x",
            "http://",
            "http://:80",
            "http://x:0",
            "http://x:65536",
            "http://x:",
            "http://[::1",
            "http://[::1]80",
            "http://x y",
            "http://x\r\nEvil: 1",
            "http://user@x",
            "http://x/?q",
        ] {
            assert!(target(url).is_err(), "{url:?} was taken");
        }
    }

    #[test]
    fn loopback_is_local() {
        for (url, local) in [
            ("http://127.0.0.1", true),
            ("http://localhost:1", true),
            ("http://[::1]", true),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(Target::parse(url).unwrap().is_local(), local, "{url}");
        }
    }
}
