//! The authentication matrix: every way of forging, replaying, confusing or mis-scoping a credential that RFC 8725, the
//! advisories of others and our own design name. Each is one line of a table.

mod keys;
mod mint;
mod tenants;
mod tokens;

use super::*;
use mint::NOW;

/// Asks as a client at an address outside this machine.
async fn ask(identity: &Identity, credential: &str) -> Result<Caller, Denied> {
    ask_at(identity, credential, Door::Api).await
}

async fn ask_at(identity: &Identity, credential: &str, door: Door) -> Result<Caller, Denied> {
    ask_with(identity, &[("authorization", &format!("Bearer {credential}"))], "192.0.2.9", door).await
}

async fn ask_with(
    identity: &Identity,
    lines: &[(&'static str, &str)],
    peer: &str,
    door: Door,
) -> Result<Caller, Denied> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, axum::http::HeaderValue::from_bytes(value.as_bytes()).expect("a header"));
    }
    identity.identify(&headers, Some(peer.parse().expect("address")), door, moment()).await
}

fn moment() -> Now {
    Now { unix_us: NOW * 1_000_000, at: Instant::now() }
}
