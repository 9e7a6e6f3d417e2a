//! Roles, and the door each of them uses.

use std::fmt;

use super::{Scope, Scopes};

/// What a credential is for, broadly: a ceiling over its scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Uses models in a tenant's name.
    Member,
    /// Looks after one tenant: its keys, its webhooks, its use.
    TenantAdmin,
    /// Runs the server, for all tenants.
    Operator,
    /// Reads what operators read, and changes nothing.
    Auditor,
}

/// A listener that takes credentials. A credential that belongs to the other one is not known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    /// The API: tenants.
    Api,
    /// The operators' listener.
    Admin,
}

impl Role {
    /// All there are.
    pub const ALL: [Role; 4] = [Role::Member, Role::TenantAdmin, Role::Operator, Role::Auditor];

    /// As it is written in files, claims and answers.
    pub const fn word(self) -> &'static str {
        match self {
            Role::Member => "member",
            Role::TenantAdmin => "tenant_admin",
            Role::Operator => "operator",
            Role::Auditor => "auditor",
        }
    }

    /// Reads a word.
    pub fn parse(word: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.word() == word)
    }

    /// The widest scopes a credential of this role can have; what is named beyond them does not count.
    pub const fn scopes(self) -> Scopes {
        match self {
            Role::Member => Scopes::of(&[Scope::Inference, Scope::ModelsRead, Scope::RequestsRead, Scope::UsageRead]),
            Role::TenantAdmin => Scopes::of(&[
                Scope::Inference,
                Scope::ModelsRead,
                Scope::RequestsRead,
                Scope::UsageRead,
                Scope::KeysRead,
                Scope::KeysWrite,
                Scope::WebhooksRead,
                Scope::WebhooksWrite,
            ]),
            // Inference too, though no operator's credential opens the API: who makes a tenant's first key must not
            // make one that is wider than its own.
            Role::Operator => Scopes::ALL,
            Role::Auditor => Scopes::of(&[
                Scope::ModelsRead,
                Scope::RequestsRead,
                Scope::UsageRead,
                Scope::KeysRead,
                Scope::WebhooksRead,
                Scope::TenantsRead,
                Scope::PlansRead,
                Scope::DevicesRead,
                Scope::LedgerRead,
                Scope::AuditRead,
            ]),
        }
    }

    /// Where credentials of this role are known.
    pub const fn door(self) -> Door {
        match self {
            Role::Member | Role::TenantAdmin => Door::Api,
            Role::Operator | Role::Auditor => Door::Admin,
        }
    }

    /// Whether a credential of this role may make one of another.
    pub const fn may_make(self, other: Role) -> bool {
        match self {
            Role::Operator => true,
            Role::TenantAdmin => matches!(other, Role::Member | Role::TenantAdmin),
            Role::Member | Role::Auditor => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back() {
        for role in Role::ALL {
            assert_eq!(Role::parse(role.word()), Some(role));
        }
        assert_eq!((Role::parse("admin"), Role::parse("Operator"), Role::parse("")), (None, None, None));
    }

    #[test]
    fn whoever_makes_a_role_holds_its_scopes() {
        for maker in Role::ALL {
            for made in Role::ALL.into_iter().filter(|made| maker.may_make(*made)) {
                assert!(made.scopes().within(maker.scopes()), "{maker} makes {made}");
                assert!(maker.scopes().contains(Scope::KeysWrite), "{maker}");
            }
        }
    }

    #[test]
    fn an_auditor_writes_nothing_and_runs_nothing() {
        for scope in Role::Auditor.scopes().iter() {
            assert!(scope.word().ends_with(":read"), "{}", scope.word());
        }
    }
}
