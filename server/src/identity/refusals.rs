//! How many credentials were refused, and why: for operators, who see in it what clients are never told.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Denied, Door, jwt::Refused};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// Why.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            const WORDS: &[&str] = &[$($word,)+];
        }
    };
}

reasons! {
    /// No credential.
    Missing = "missing",
    /// Two `Authorization` headers.
    Repeated = "repeated",
    /// Not `Bearer KEY`.
    Malformed = "malformed",
    /// A key that is nobody's at this listener: unknown, wrong, revoked, expired.
    Key = "key",
    /// What looks like a token and is none.
    TokenMalformed = "token_malformed",
    /// A token of an issuer that is not in the configuration.
    TokenIssuer = "token_issuer",
    /// By a key that its issuer does not have.
    TokenKey = "token_key",
    /// With a signature that is not its key's.
    TokenSignature = "token_signature",
    /// Signed well, and with claims that do not count here: its times, its audience, its tenant.
    TokenClaims = "token_claims",
    /// A token of the other listener.
    TokenListener = "token_listener",
    /// Too many of these came from its address.
    TooMany = "too_many",
    /// A good one, from an address that is not on its tenant's list.
    Address = "address",
    /// A good one, of a tenant that is suspended.
    Suspended = "suspended",
    /// A good one, of a tenant that is pending.
    Pending = "pending",
    /// A good one, where another tenant was named.
    Confined = "confined",
}

impl Reason {
    /// Of a refusal; `token` is what is known of a token that was nobody's.
    pub(super) fn of(denied: &Denied, token: Option<Reason>) -> Self {
        match denied {
            Denied::Missing => Reason::Missing,
            Denied::Repeated => Reason::Repeated,
            Denied::Malformed => Reason::Malformed,
            Denied::Unknown => token.unwrap_or(Reason::Key),
            Denied::TooMany(_) => Reason::TooMany,
            Denied::Address => Reason::Address,
            Denied::Suspended(_) => Reason::Suspended,
            Denied::Pending(_) => Reason::Pending,
            Denied::Confined => Reason::Confined,
        }
    }
}

impl From<Refused> for Reason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Malformed(_) => Reason::TokenMalformed,
            Refused::UnknownIssuer => Reason::TokenIssuer,
            Refused::UnknownKey => Reason::TokenKey,
            Refused::Signature => Reason::TokenSignature,
            Refused::Unfit(_) => Reason::TokenClaims,
        }
    }
}

/// The counts of both listeners.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    api: [AtomicU64; Reason::WORDS.len()],
    admin: [AtomicU64; Reason::WORDS.len()],
}

impl Refusals {
    pub(super) fn count(&self, door: Door, reason: Reason) {
        let counts = match door {
            Door::Api => &self.api,
            Door::Admin => &self.admin,
        };
        counts[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// As Prometheus text.
    pub(super) fn metrics(&self) -> String {
        let name = "weir_sign_ins_refused_total";
        let mut text = format!(
            "# HELP {name} Requests whose credential was refused, by listener and reason.\n# TYPE {name} counter\n"
        );
        for (listener, counts) in [("api", &self.api), ("admin", &self.admin)] {
            for (word, count) in Reason::WORDS.iter().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                let _ = writeln!(text, "{name}{{listener=\"{listener}\",reason=\"{word}\"}} {count}");
            }
        }
        text
    }
}
