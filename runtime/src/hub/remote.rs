//! The hub over HTTP: three questions (listing, what is this file, its bytes from here on) and who hears the token.

use std::io::Read;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use super::HubError;
use super::wanted::{Wanted, is_commit, is_hex, is_relative};

/// The longest listing read: some 100,000 files.
const LISTING_BYTES_MAX: u64 = 32 << 20;
/// The hub needs one or two.
const REDIRECTS_MAX: usize = 8;
const CONNECT_SECONDS_MAX: u64 = 15;
/// The longest silence on an open connection before it counts as cut.
const SILENCE_SECONDS_MAX: u64 = 60;

/// A hub.
pub(super) struct Remote {
    agent: Agent,
    /// Without a slash at its end; a mirror's may have a path.
    endpoint: String,
    origin: Origin,
    token: Option<String>,
}

/// A revision's commit and its files.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What the hub says of a file before it is downloaded.
pub(super) struct Facts {
    /// Names the blob.
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

impl Facts {
    /// The file's SHA-256, where the ETag is one. A git SHA-1 has 40 digits.
    pub(super) fn sha256(&self) -> Option<&str> {
        is_hex(&self.etag, 64).then_some(self.etag.as_str())
    }
}

/// The bytes of a file from `start` on.
pub(super) struct Bytes {
    pub(super) start: u64,
    pub(super) total: Option<u64>,
    pub(super) reader: Box<dyn Read>,
}

impl Remote {
    pub(super) fn new(endpoint: &str, token: Option<&str>) -> Result<Self, HubError> {
        let endpoint = endpoint.trim_end_matches('/');
        let uri: Option<Uri> = endpoint.parse().ok();
        let Some(origin) = uri.filter(|u| u.query().is_none()).and_then(|u| Origin::of(&u)) else {
            let reason = "expected http://host or https://host";
            return Err(HubError::BadName { what: "HF_ENDPOINT", value: endpoint.to_owned(), reason });
        };
        if token.is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            let reason = "expected printable ASCII without spaces";
            return Err(HubError::BadName { what: "HF_TOKEN", value: "***".to_owned(), reason });
        }
        // Redirects are followed here, where it is known what each host may hear.
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(CONNECT_SECONDS_MAX)))
            .timeout_recv_response(Some(Duration::from_secs(SILENCE_SECONDS_MAX)))
            .timeout_per_read(Some(Duration::from_secs(SILENCE_SECONDS_MAX)))
            .build()
            .into();
        Ok(Remote { agent, endpoint: endpoint.to_owned(), origin, token: token.map(str::to_owned) })
    }

    /// The commit and files of a revision.
    pub(super) fn listing(&self, wanted: &Wanted) -> Result<Listing, HubError> {
        let url = format!("{}/api/{}", self.endpoint, wanted.repo().api_url());
        let answer = self.ask(Verb::Get, &url, None)?;
        self.accept(&answer, &wanted.to_string())?;
        let bad = |reason: String| HubError::BadAnswer { address: bare(&url), reason };
        let body = answer.response.into_body().into_with_config().limit(LISTING_BYTES_MAX).read_to_vec();
        let body = body.map_err(|e| unreachable(&url, &e))?;
        let info: RepoInfo = serde_json::from_slice(&body).map_err(|e| bad(format!("no listing of files: {e}")))?;
        if !is_commit(&info.sha) {
            return Err(bad(format!("`{}` is no commit", info.sha)));
        }
        let files = info.siblings.into_iter().map(|s| s.rfilename).filter(|name| is_relative(name)).collect();
        Ok(Listing { commit: info.sha, files })
    }

    /// What the hub says of a file. Stops at a redirect to another host: the hub's own answer carries the facts.
    pub(super) fn facts(&self, wanted: &Wanted, commit: &str, name: &str) -> Result<Facts, HubError> {
        let url = self.file_url(wanted, commit, name);
        let answer = self.ask(Verb::Head, &url, None)?;
        self.accept(&answer, &format!("{name} of {wanted}"))?;
        let Some(etag) = answer.etag.filter(|e| is_blob_name(e)) else {
            return Err(HubError::BadAnswer { address: bare(&url), reason: "no usable ETag".into() });
        };
        let own_size =
            || answer.response.status().is_success().then(|| number(answer.response.headers(), "content-length"));
        Ok(Facts { etag, size: answer.linked_size.or_else(|| own_size().flatten()) })
    }

    /// The bytes of a file from `start` on, or from 0 if the server does not do ranges. `None`: it has none from there.
    pub(super) fn bytes(
        &self,
        wanted: &Wanted,
        commit: &str,
        name: &str,
        start: u64,
    ) -> Result<Option<Bytes>, HubError> {
        let url = self.file_url(wanted, commit, name);
        let answer = self.ask(Verb::Get, &url, Some(start).filter(|s| *s > 0))?;
        if start > 0 && answer.response.status().as_u16() == 416 {
            return Ok(None);
        }
        self.accept(&answer, &format!("{name} of {wanted}"))?;
        let headers = answer.response.headers();
        let (start, total) = if answer.response.status().as_u16() == 206 {
            content_range(headers).ok_or_else(|| HubError::BadAnswer {
                address: bare(&answer.url),
                reason: "206 without a usable Content-Range".into(),
            })?
        } else {
            (0, number(headers, "content-length"))
        };
        Ok(Some(Bytes { start, total, reader: Box::new(answer.response.into_body().into_reader()) }))
    }

    fn file_url(&self, wanted: &Wanted, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, wanted.id(), percent_encoded(name))
    }

    /// Sends a request and follows its redirects, a `HEAD` only as far as they stay at the endpoint.
    fn ask(&self, verb: Verb, url: &str, range_start: Option<u64>) -> Result<Answer, HubError> {
        let mut url = url.to_owned();
        let (mut etag, mut linked_etag, mut linked_size) = (None, None, None);
        for _ in 0..=REDIRECTS_MAX {
            let bad = |reason: String| HubError::BadAnswer { address: bare(&url), reason };
            let uri: Uri = url.parse().map_err(|_| bad("it is no address".into()))?;
            let origin = Origin::of(&uri).ok_or_else(|| bad("it is no http address".into()))?;
            if self.origin.secure && !origin.secure {
                return Err(bad("a redirect from https to http".into()));
            }
            let own = origin == self.origin;
            let response = self.send(verb, &url, &origin, own, range_start)?;
            let headers = response.headers();
            if own {
                etag = header(headers, "etag").map(plain_etag).or(etag);
                linked_etag = linked_etag.or_else(|| header(headers, "x-linked-etag").map(plain_etag));
                linked_size = linked_size.or_else(|| number(headers, "x-linked-size"));
            }
            let next = match header(headers, "location") {
                Some(location) if response.status().is_redirection() => resolved(&uri, location),
                _ => None,
            };
            match next {
                Some(next) if verb == Verb::Get || self.is_own(&next) => url = next,
                _ => {
                    let etag = linked_etag.or(etag);
                    return Ok(Answer { verb, url, own, etag, linked_size, response });
                }
            }
        }
        Err(HubError::BadAnswer { address: bare(&url), reason: format!("more than {REDIRECTS_MAX} redirects") })
    }

    fn send(
        &self,
        verb: Verb,
        url: &str,
        origin: &Origin,
        own: bool,
        range_start: Option<u64>,
    ) -> Result<Response<Body>, HubError> {
        let request = match verb {
            Verb::Get => self.agent.get(url),
            Verb::Head => self.agent.head(url),
        };
        // A compressed body has another length, and no range of it can be continued.
        let mut request = request.header("accept-encoding", "identity");
        if let Some(start) = range_start {
            request = request.header("range", format!("bytes={start}-"));
        }
        if let (true, Some(token)) = (own, &self.token) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        // HTTP_PROXY and its kin name the way out of this machine; to itself there is a shorter one.
        if origin.is_loopback() {
            request = request.config().proxy(None).build();
        }
        request.call().map_err(|e| unreachable(url, &e))
    }

    fn is_own(&self, url: &str) -> bool {
        url.parse().ok().and_then(|uri| Origin::of(&uri)).is_some_and(|o| o == self.origin)
    }

    /// Turns a status into the error it means. A `HEAD` that ends at a redirect has told its facts.
    fn accept(&self, answer: &Answer, what: &str) -> Result<(), HubError> {
        let (endpoint, what) = (self.endpoint.clone(), what.to_owned());
        match answer.response.status().as_u16() {
            200..=299 => Ok(()),
            300..=399 if answer.verb == Verb::Head && answer.etag.is_some() => Ok(()),
            404 if answer.own => Err(HubError::NotFound { endpoint, what }),
            status @ (401 | 403) if answer.own => {
                Err(HubError::Refused { endpoint, what, status, token_sent: self.token.is_some() })
            }
            status => Err(HubError::Status { address: bare(&answer.url), status }),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    Head,
}

/// The last response and what the endpoint's own hops said on the way to it.
struct Answer {
    verb: Verb,
    url: String,
    own: bool,
    etag: Option<String>,
    linked_size: Option<u64>,
    response: Response<Body>,
}

/// Who an address belongs to: its scheme, host and port.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host().filter(|h| !h.is_empty())?.to_ascii_lowercase();
        Some(Origin { secure, host, port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }) })
    }

    fn is_loopback(&self) -> bool {
        matches!(self.host.as_str(), "localhost" | "[::1]") || self.host.starts_with("127.")
    }
}

/// A redirect's target as a whole address.
fn resolved(from: &Uri, location: &str) -> Option<String> {
    let scheme = from.scheme_str()?;
    if location.contains("://") {
        Some(location.to_owned())
    } else if location.starts_with("//") {
        Some(format!("{scheme}:{location}"))
    } else if location.starts_with('/') {
        Some(format!("{scheme}://{}{location}", from.authority()?))
    } else {
        let (folder, _) = from.path().rsplit_once('/')?;
        Some(format!("{scheme}://{}{folder}/{location}", from.authority()?))
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    header(headers, name)?.trim().parse().ok()
}

/// `bytes 10-19/20` is `(10, Some(20))`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) = header(headers, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()))
}

/// An ETag without its quotes and its mark of weakness, as it names a blob.
fn plain_etag(etag: &str) -> String {
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_owned()
}

/// Whether an ETag can be a file's name: that is what it becomes.
fn is_blob_name(etag: &str) -> bool {
    (1..=128).contains(&etag.len()) && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// A name as part of an address (RFC 3986): what is not unreserved is escaped, slashes stay.
fn percent_encoded(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// An address as people may see it: a signature in the query is as good as a key.
fn bare(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

fn unreachable(url: &str, error: &ureq::Error) -> HubError {
    let reason = match error {
        ureq::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    };
    HubError::Unreachable { address: bare(url), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |url: &str| Origin::of(&url.parse().expect("address"));
        assert_eq!(origin("https://Hub.example/a"), origin("https://hub.example:443/b?c"));
        for other in ["http://hub.example", "https://hub.example:8443", "https://cdn.hub.example"] {
            assert_ne!(origin("https://hub.example"), origin(other), "{other}");
        }
        assert_eq!(origin("ftp://hub.example"), None);
    }

    #[test]
    fn redirects_are_resolved_against_where_they_came_from() {
        let from: Uri = "https://hub.example:8443/a/b?c".parse().expect("address");
        let to = |location: &str| resolved(&from, location).expect("resolves");
        assert_eq!(to("http://x/y?z"), "http://x/y?z");
        assert_eq!(to("//x/y"), "https://x/y");
        assert_eq!(to("/y?z"), "https://hub.example:8443/y?z");
        assert_eq!(to("y"), "https://hub.example:8443/a/y");
    }

    #[test]
    fn etags_that_are_paths_name_no_blob() {
        assert_eq!(plain_etag("W/\"0a-1\""), "0a-1");
        assert!(is_blob_name(&"0".repeat(64)));
        for etag in ["", "..", "../x", "a/b", "a.incomplete", &"0".repeat(200)] {
            assert!(!is_blob_name(etag), "{etag}");
        }
    }

    #[test]
    fn names_are_escaped_and_signatures_hidden() {
        assert_eq!(percent_encoded("a b/ü#.gguf"), "a%20b/%C3%BC%23.gguf");
        assert_eq!(bare("https://cdn/x?sig=secret"), "https://cdn/x");
    }
}
