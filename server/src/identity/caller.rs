//! Who is calling, once that is known; and what may be handed on.

use std::{collections::BTreeSet, sync::Arc};

use weir_runtime::TenantId;

use super::{Account, Role, Scope, Scopes};

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who pays.
    pub tenant: TenantId,
    /// The tenant's name, which is its id in the store.
    pub name: Arc<str>,
    /// What the tenant has bought, as it holds for this request.
    pub account: Arc<Account>,
    /// The models it may know of; `None` is all.
    pub models: Option<Arc<BTreeSet<String>>>,
    /// What it is.
    pub role: Role,
    /// What it may do; never beyond its role.
    pub scopes: Scopes,
    /// The credential: a key's visible id, or a token's issuer and subject.
    pub credential: Arc<str>,
    /// How it showed who it is.
    pub method: AuthMethod,
    /// When the credential ends, in microseconds since 1970.
    pub expires_us: Option<i64>,
    /// Of an operator or an auditor: the one tenant it asked to be confined to.
    pub only: Option<TenantId>,
}

/// How a caller showed who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthMethod {
    /// An API key.
    ApiKey,
    /// A signed token.
    Jwt,
}

impl AuthMethod {
    /// For records.
    pub const fn word(self) -> &'static str {
        match self {
            AuthMethod::ApiKey => "api_key",
            AuthMethod::Jwt => "jwt",
        }
    }
}

impl Caller {
    /// A tenant's member by a key that can do whatever members can.
    pub fn member(tenant: TenantId, name: &str) -> Self {
        Caller::with_role(tenant, name, Role::Member)
    }

    /// A caller by a key with all that a role allows.
    pub fn with_role(tenant: TenantId, name: &str, role: Role) -> Self {
        Caller {
            tenant,
            name: name.into(),
            account: Arc::default(),
            models: None,
            role,
            scopes: role.scopes(),
            credential: name.into(),
            method: AuthMethod::ApiKey,
            expires_us: None,
            only: None,
        }
    }

    /// Whether the caller may use (and know of) a model.
    pub fn may_use(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.contains(model))
    }

    /// Whether the caller may do what a scope names.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(scope)
    }

    /// Refuses to hand on more than the caller has. Called before any key is made or changed, rotation included.
    pub fn hand_on(&self, wanted: &Wanted) -> Result<(), Wider> {
        if !self.may(Scope::KeysWrite) || !self.role.may_make(wanted.role) {
            return Err(Wider::Role);
        }
        let everywhere = self.role == Role::Operator && self.only.is_none();
        if !everywhere && wanted.tenant != self.only.unwrap_or(self.tenant) {
            return Err(Wider::Tenant);
        }
        if !wanted.scopes.within(self.scopes) || !wanted.scopes.within(wanted.role.scopes()) {
            return Err(Wider::Scopes);
        }
        let models_fit = match (&self.models, &wanted.models) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(wanted)) => wanted.is_subset(own),
        };
        if !models_fit {
            return Err(Wider::Models);
        }
        match (self.expires_us, wanted.expires_us) {
            (None, _) => Ok(()),
            (Some(own), Some(wanted)) if wanted <= own => Ok(()),
            _ => Err(Wider::Expiry),
        }
    }
}

/// What a key is to be made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// For whom.
    pub tenant: TenantId,
    /// Its role.
    pub role: Role,
    /// Its scopes.
    pub scopes: Scopes,
    /// The models it may know of; `None` is all.
    pub models: Option<BTreeSet<String>>,
    /// When it ends.
    pub expires_us: Option<i64>,
}

/// In what a wanted key is wider than its maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wider {
    /// The maker may not make keys, or none of this role.
    #[error("you may not make a key of this role")]
    Role,
    /// The key is another tenant's.
    #[error("you may make keys of your own tenant only")]
    Tenant,
    /// It could do more.
    #[error("a key cannot have scopes that its maker or its role does not have")]
    Scopes,
    /// It could use more models.
    #[error("a key cannot use models that its maker may not use")]
    Models,
    /// It would outlive its maker.
    #[error("a key cannot outlive the credential that makes it")]
    Expiry,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(names: &[&str]) -> Option<BTreeSet<String>> {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn wanted() -> Wanted {
        Wanted {
            tenant: TenantId(1),
            role: Role::Member,
            scopes: Scopes::of(&[Scope::Inference]),
            models: models(&["m"]),
            expires_us: Some(10),
        }
    }

    #[test]
    fn a_list_of_models_hides_all_others() {
        let all = Caller::member(TenantId(1), "a");
        assert!(all.may_use("anything"));
        let some = Caller { models: models(&["m"]).map(Arc::new), ..all };
        assert!(some.may_use("m") && !some.may_use("M") && !some.may_use(""));
    }

    #[test]
    fn nothing_wider_is_handed_on() {
        let admin = Caller {
            models: models(&["m", "n"]).map(Arc::new),
            expires_us: Some(10),
            scopes: Scopes::of(&[Scope::KeysWrite, Scope::Inference, Scope::UsageRead]),
            ..Caller::with_role(TenantId(1), "a", Role::TenantAdmin)
        };
        assert_eq!(admin.hand_on(&wanted()), Ok(()));
        let cases = [
            (Wanted { role: Role::Operator, ..wanted() }, Wider::Role),
            (Wanted { role: Role::Auditor, ..wanted() }, Wider::Role),
            (Wanted { tenant: TenantId(2), ..wanted() }, Wider::Tenant),
            (Wanted { tenant: TenantId::OPERATOR, ..wanted() }, Wider::Tenant),
            (Wanted { scopes: Scopes::of(&[Scope::ModelsRead]), ..wanted() }, Wider::Scopes),
            (Wanted { scopes: Scopes::ALL, ..wanted() }, Wider::Scopes),
            // The maker has it, but a member cannot.
            (Wanted { scopes: Scopes::of(&[Scope::KeysWrite]), ..wanted() }, Wider::Scopes),
            (Wanted { models: None, ..wanted() }, Wider::Models),
            (Wanted { models: models(&["m", "x"]), ..wanted() }, Wider::Models),
            (Wanted { expires_us: None, ..wanted() }, Wider::Expiry),
            (Wanted { expires_us: Some(11), ..wanted() }, Wider::Expiry),
        ];
        for (wanted, wider) in cases {
            assert_eq!(admin.hand_on(&wanted), Err(wider), "{wanted:?}");
        }
    }

    #[test]
    fn who_makes_no_keys_makes_none() {
        for role in [Role::Member, Role::Auditor] {
            assert_eq!(Caller::with_role(TenantId(1), "a", role).hand_on(&wanted()), Err(Wider::Role), "{role}");
        }
        let without = Caller {
            scopes: Scopes::of(&[Scope::Inference]),
            ..Caller::with_role(TenantId(1), "a", Role::TenantAdmin)
        };
        assert_eq!(without.hand_on(&wanted()), Err(Wider::Role));
    }

    #[test]
    fn an_operator_makes_keys_of_all_tenants_unless_confined_to_one() {
        let operator = Caller::with_role(TenantId::OPERATOR, "operator", Role::Operator);
        assert_eq!(operator.hand_on(&wanted()), Ok(()));
        assert_eq!(operator.hand_on(&Wanted { tenant: TenantId(9), ..wanted() }), Ok(()));
        let confined = Caller { only: Some(TenantId(1)), ..operator };
        assert_eq!(confined.hand_on(&wanted()), Ok(()));
        assert_eq!(confined.hand_on(&Wanted { tenant: TenantId(9), ..wanted() }), Err(Wider::Tenant));
    }
}
