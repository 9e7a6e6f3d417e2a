//! What a credential may be used for: a closed set, so that a scope nobody knows is an error and never a wish.

use std::fmt;

macro_rules! scopes {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// One permission.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Scope {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Scope {
            /// All there are.
            pub const ALL: &[Scope] = &[$(Scope::$name,)+];

            /// As it is written in files, claims and answers.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Scope::$name => $word,)+
                }
            }
        }
    };
}

scopes! {
    /// Chats, completions, embeddings: whatever costs device time.
    Inference = "inference",
    /// The models that are served.
    ModelsRead = "models:read",
    /// Adding and removing models.
    ModelsWrite = "models:write",
    /// Where a request's time went.
    RequestsRead = "requests:read",
    /// Tokens, requests, device time and cost.
    UsageRead = "usage:read",
    /// Keys, without their secrets.
    KeysRead = "keys:read",
    /// Making, rotating and revoking keys.
    KeysWrite = "keys:write",
    /// Webhooks and their deliveries.
    WebhooksRead = "webhooks:read",
    /// Changing webhooks.
    WebhooksWrite = "webhooks:write",
    /// Tenants and their limits.
    TenantsRead = "tenants:read",
    /// Creating, changing and suspending tenants.
    TenantsWrite = "tenants:write",
    /// Plans and prices.
    PlansRead = "plans:read",
    /// Changing plans and prices.
    PlansWrite = "plans:write",
    /// Devices and what they do.
    DevicesRead = "devices:read",
    /// Draining devices and taking them back.
    DevicesWrite = "devices:write",
    /// The ledger and invoices.
    LedgerRead = "ledger:read",
    /// Closing months.
    LedgerWrite = "ledger:write",
    /// Who changed what.
    AuditRead = "audit:read",
}

impl Scope {
    /// Reads a word.
    pub fn parse(word: &str) -> Option<Scope> {
        Scope::ALL.iter().copied().find(|scope| scope.word() == word)
    }

    const fn bit(self) -> u32 {
        1 << self as u8
    }
}

/// A set of them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Scopes(u32);

impl Scopes {
    /// Nothing.
    pub const NONE: Scopes = Scopes(0);
    /// Everything.
    pub const ALL: Scopes = Scopes::of(Scope::ALL);

    /// These.
    pub const fn of(list: &[Scope]) -> Scopes {
        let (mut bits, mut at) = (0, 0);
        while at < list.len() {
            bits |= list[at].bit();
            at += 1;
        }
        Scopes(bits)
    }

    /// Reads words, refusing the first that is none.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Scopes, UnknownScope> {
        words.into_iter().try_fold(Scopes::NONE, |all, word| match Scope::parse(word) {
            Some(scope) => Ok(Scopes(all.0 | scope.bit())),
            None => Err(UnknownScope(word.chars().take(64).collect())),
        })
    }

    /// Whether one is among them.
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Whether all of these are among others.
    pub const fn within(self, others: Scopes) -> bool {
        self.0 & !others.0 == 0
    }

    /// Those that are in both.
    pub const fn and(self, others: Scopes) -> Scopes {
        Scopes(self.0 & others.0)
    }

    /// Those that are in either.
    pub const fn or(self, others: Scopes) -> Scopes {
        Scopes(self.0 | others.0)
    }

    /// One by one.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.iter().copied().filter(move |scope| self.contains(*scope))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.iter().map(Scope::word).collect();
        f.write_str(&words.join(" "))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scopes({self})")
    }
}

/// A word that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no scope `{}`", .0.escape_debug())]
pub struct UnknownScope(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_and_nothing_else_does() {
        for scope in Scope::ALL {
            assert_eq!(Scope::parse(scope.word()), Some(*scope));
        }
        for word in ["", "*", "admin", "Inference", "inference ", "keys:", "keys:write2"] {
            assert_eq!(Scope::parse(word), None, "{word}");
            assert!(Scopes::parse(["inference", word]).is_err(), "{word}");
        }
        let written = Scopes::ALL.to_string();
        assert_eq!(Scopes::parse(written.split(' ')), Ok(Scopes::ALL));
    }

    #[test]
    fn sets_are_sets() {
        let some = Scopes::of(&[Scope::KeysRead, Scope::UsageRead]);
        assert!(some.within(Scopes::ALL) && !Scopes::ALL.within(some) && Scopes::NONE.within(some));
        assert!(some.contains(Scope::KeysRead) && !some.contains(Scope::KeysWrite));
        assert_eq!(some.and(Scopes::of(&[Scope::KeysRead, Scope::AuditRead])), Scopes::of(&[Scope::KeysRead]));
        assert_eq!(some.to_string(), "usage:read keys:read");
    }
}
