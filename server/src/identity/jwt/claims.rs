//! What a verified token's claims mean. A claim of the wrong type is never the same as one that is absent: it refuses
//! the token (CVE-2026-25537 was that mistake).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{IssuerSettings, compact::Claims};
use crate::identity::{Role, Scope, Scopes};

/// Longest subject.
const SUBJECT_BYTES_MAX: usize = 256;
/// Words in a claim.
const WORDS_LEN_MAX: usize = 256;
/// 2^53: beyond it a JSON number is not the one that was written.
const SECONDS_MAX: f64 = 9_007_199_254_740_992.0;
/// What the tenant claim says of operators and auditors.
const OPERATOR: &str = "operator";

/// Who a token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::identity) struct Bearer {
    /// Its subject, under its issuer.
    pub(in crate::identity) subject: String,
    /// The tenants it is for, one as a rule. Empty for operators and auditors, who have none.
    pub(in crate::identity) tenants: BTreeSet<String>,
    pub(in crate::identity) role: Role,
    pub(in crate::identity) scopes: Scopes,
    /// The models it may use, if fewer than its tenant's.
    pub(in crate::identity) models: Option<BTreeSet<String>>,
    pub(in crate::identity) expires_us: i64,
}

/// Why a token that is signed well does not count here; for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::identity) enum Unfit {
    #[error("`{0}` is missing")]
    Missing(&'static str),
    #[error("`{0}` has the wrong type")]
    Type(&'static str),
    #[error("it is another issuer's")]
    Issuer,
    #[error("it is for another audience")]
    Audience,
    #[error("it is for a tenant that its issuer may not speak for")]
    Tenant,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    Early,
    #[error("it lives too long")]
    Lifetime,
}

impl Bearer {
    /// Checks the claims of a token whose signature is known to be good. `now_us` is in microseconds since 1970.
    pub(super) fn of(claims: &Claims, settings: &IssuerSettings, now_us: i64) -> Result<Self, Unfit> {
        if text(claims, "iss")? != settings.issuer {
            return Err(Unfit::Issuer);
        }
        if !words(claims.get("aud").ok_or(Unfit::Missing("aud"))?, "aud", false)?
            .iter()
            .any(|audience| settings.audiences.contains(*audience))
        {
            return Err(Unfit::Audience);
        }
        let expires = times(claims, settings, now_us.div_euclid(1_000_000))?;
        let subject = text(claims, "sub")?;
        if subject.is_empty() || subject.len() > SUBJECT_BYTES_MAX {
            return Err(Unfit::Type("sub"));
        }
        let role = role(claims, settings)?;
        let tenants = claims.get(&settings.tenant_claim).ok_or(Unfit::Missing("tenant claim"))?;
        let tenants: BTreeSet<String> = words(tenants, "tenant claim", false)?.into_iter().map(str::to_owned).collect();
        if tenants.is_empty() || tenants.contains("") {
            return Err(Unfit::Type("tenant claim"));
        }
        // One name too many refuses the token: which of the others it means is not for us to guess.
        if settings.tenants.as_ref().is_some_and(|own| !tenants.is_subset(own)) {
            return Err(Unfit::Tenant);
        }
        let tenants = match role {
            Role::Member | Role::TenantAdmin => tenants,
            // Said twice, by the role and here: a mistake in one mapping makes nobody an operator.
            Role::Operator | Role::Auditor if tenants.len() == 1 && tenants.contains(OPERATOR) => BTreeSet::new(),
            Role::Operator | Role::Auditor => return Err(Unfit::Type("tenant claim")),
        };
        let models = match settings.models_claim.as_deref().and_then(|name| claims.get(name)) {
            Some(value) => Some(words(value, "models claim", true)?.into_iter().map(str::to_owned).collect()),
            None => None,
        };
        Ok(Bearer {
            subject: format!("{}#{subject}", settings.issuer),
            tenants,
            role,
            scopes: scopes(claims, settings)?.and(role.scopes()),
            models,
            expires_us: expires.saturating_mul(1_000_000),
        })
    }
}

/// Checks `exp`, `nbf` and `iat`; returns when the token ends, without leeway.
fn times(claims: &Claims, settings: &IssuerSettings, now: i64) -> Result<i64, Unfit> {
    let leeway = settings.leeway_seconds;
    let expires = seconds(claims, "exp")?.ok_or(Unfit::Missing("exp"))?;
    if now >= expires + leeway {
        return Err(Unfit::Expired);
    }
    if expires > now + settings.lifetime_seconds_max + leeway {
        return Err(Unfit::Lifetime);
    }
    match seconds(claims, "nbf")? {
        None if settings.require_nbf => return Err(Unfit::Missing("nbf")),
        Some(begins) if now + leeway < begins => return Err(Unfit::Early),
        _ => {}
    }
    match seconds(claims, "iat")? {
        Some(issued) if now + leeway < issued => Err(Unfit::Early),
        _ => Ok(expires),
    }
}

/// A NumericDate: a JSON number, whole or not, of seconds since 1970.
fn seconds(claims: &Claims, name: &'static str) -> Result<Option<i64>, Unfit> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    match value.as_f64() {
        Some(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(Some(seconds as i64)),
        _ => Err(Unfit::Type(name)),
    }
}

fn text<'a>(claims: &'a Claims, name: &'static str) -> Result<&'a str, Unfit> {
    claims.get(name).ok_or(Unfit::Missing(name))?.as_str().ok_or(Unfit::Type(name))
}

/// A text, or a list of texts and nothing else. `spaced`: a text is words with blanks between them.
fn words<'a>(value: &'a Value, name: &'static str, spaced: bool) -> Result<Vec<&'a str>, Unfit> {
    let words: Option<Vec<&str>> = match value {
        Value::String(text) if spaced => Some(text.split_ascii_whitespace().collect()),
        Value::String(text) => Some(vec![text.as_str()]),
        Value::Array(list) => list.iter().map(Value::as_str).collect(),
        _ => None,
    };
    words.filter(|words| words.len() <= WORDS_LEN_MAX).ok_or(Unfit::Type(name))
}

/// The widest role that the operator's own table gives to one of the words; nobody is more than a member by default.
fn role(claims: &Claims, settings: &IssuerSettings) -> Result<Role, Unfit> {
    let Some(value) = settings.role_claim.as_deref().and_then(|name| claims.get(name)) else {
        return Ok(Role::Member);
    };
    let words = words(value, "role claim", true)?;
    let given: Vec<Role> = words.iter().filter_map(|word| settings.roles.get(*word).copied()).collect();
    let widest = [Role::Operator, Role::Auditor, Role::TenantAdmin];
    Ok(widest.into_iter().find(|role| given.contains(role)).unwrap_or(Role::Member))
}

/// Words that mean nothing here are passed over: `openid` and its like stand beside.
fn scopes(claims: &Claims, settings: &IssuerSettings) -> Result<Scopes, Unfit> {
    let Some(name) = settings.scopes_claim.as_deref() else { return Ok(Scopes::ALL) };
    let Some(value) = claims.get(name) else { return Ok(Scopes::NONE) };
    let mut all: Vec<Scope> = Vec::new();
    for word in words(value, "scopes claim", true)? {
        match settings.scopes.get(word) {
            Some(scopes) => all.extend(scopes.iter()),
            None => all.extend(Scope::parse(word)),
        }
    }
    Ok(Scopes::of(&all))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::identity::jwt::JwtTable;

    const NOW: i64 = 1_800_000_000;

    fn settings(more: &str) -> IssuerSettings {
        let text =
            format!("issuer = \"https://id.example\"\naudiences = [\"weir\", \"weir2\"]\njwks_file = \"k\"\n{more}");
        toml::from_str::<JwtTable>(&text).expect("a table").checked().expect("settings")
    }

    fn claims() -> Value {
        json!({
            "iss": "https://id.example", "aud": "weir", "sub": "u", "tenant": "a", "exp": NOW + 60, "nbf": NOW
        })
    }

    fn with(name: &str, value: Value) -> Value {
        let mut all = claims();
        all[name] = value;
        all
    }

    fn without(name: &str) -> Value {
        let mut all = claims();
        all.as_object_mut().expect("an object").remove(name);
        all
    }

    fn bearer(claims: &Value, more: &str) -> Result<Bearer, Unfit> {
        let claims = serde_json::from_value(claims.clone()).expect("an object");
        Bearer::of(&claims, &settings(more), NOW * 1_000_000)
    }

    #[test]
    fn plain_claims_make_a_member() {
        let plain = bearer(&claims(), "").expect("fit");
        assert_eq!((plain.subject.as_str(), plain.role), ("https://id.example#u", Role::Member));
        assert_eq!((plain.scopes, plain.models), (Role::Member.scopes(), None));
        assert_eq!((plain.tenants, plain.expires_us), (BTreeSet::from(["a".into()]), (NOW + 60) * 1_000_000));
        assert!(bearer(&with("aud", json!(["x", "weir2"])), "").is_ok());
        assert!(bearer(&with("exp", json!(NOW as f64 + 0.5)), "").is_ok());
    }

    #[test]
    fn what_is_missing_or_of_another_type_refuses_the_token() {
        for name in ["iss", "aud", "sub", "tenant", "exp", "nbf"] {
            assert!(matches!(bearer(&without(name), ""), Err(Unfit::Missing(_))), "{name}");
            for odd in [json!(null), json!({}), json!(true), json!([1]), json!([["weir"]])] {
                assert!(bearer(&with(name, odd.clone()), "").is_err(), "{name} {odd}");
            }
        }
        assert!(bearer(&without("nbf"), "require_nbf = false").is_ok());
        for name in ["exp", "nbf", "iat"] {
            for odd in [json!((NOW + 60).to_string()), json!(-1), json!(1e300), json!([NOW]), json!(null)] {
                assert_eq!(bearer(&with(name, odd.clone()), "require_nbf = false"), Err(Unfit::Type(name)), "{odd}");
            }
        }
        for (name, odd) in [("sub", json!("")), ("tenant", json!("")), ("tenant", json!([]))] {
            assert!(bearer(&with(name, odd), "").is_err(), "{name}");
        }
        assert!(bearer(&with("sub", json!("x".repeat(SUBJECT_BYTES_MAX + 1))), "").is_err());
    }

    #[test]
    fn times_hold_with_a_leeway_of_half_a_minute() {
        for (name, value, outcome) in [
            ("exp", NOW - 29, Ok(())),
            ("exp", NOW - 30, Err(Unfit::Expired)),
            ("exp", 0, Err(Unfit::Expired)),
            ("exp", NOW + 86_400 + 31, Err(Unfit::Lifetime)),
            ("nbf", NOW + 30, Ok(())),
            ("nbf", NOW + 31, Err(Unfit::Early)),
            ("iat", NOW + 31, Err(Unfit::Early)),
            ("iat", NOW - 1_000_000, Ok(())),
        ] {
            assert_eq!(bearer(&with(name, json!(value)), "").map(|_| ()), outcome, "{name} {value}");
        }
        assert_eq!(bearer(&with("exp", json!(NOW)), "leeway_seconds = 0").map(|_| ()), Err(Unfit::Expired));
    }

    #[test]
    fn other_issuers_and_audiences_do_not_count() {
        for issuer in ["https://id.example/", "https://ID.example", "", "https://id.example.evil"] {
            assert_eq!(bearer(&with("iss", json!(issuer)), ""), Err(Unfit::Issuer), "{issuer}");
        }
        for audience in [json!("other"), json!(["other"]), json!([]), json!("weir weir2"), json!("")] {
            assert_eq!(bearer(&with("aud", audience.clone()), ""), Err(Unfit::Audience), "{audience}");
        }
    }

    #[test]
    fn roles_are_what_the_file_says_they_are() {
        const ROLES: &str =
            "role_claim = \"r\"\nroles = { boss = \"tenant_admin\", root = \"operator\", ear = \"auditor\" }";
        let role = |claims: &Value| bearer(claims, ROLES).map(|bearer| bearer.role);
        for (value, expected) in [
            (json!("boss"), Role::TenantAdmin),
            (json!("x boss"), Role::TenantAdmin),
            (json!(["x", "boss"]), Role::TenantAdmin),
            (json!("operator"), Role::Member),
            (json!("tenant_admin"), Role::Member),
            (json!("BOSS"), Role::Member),
            (json!([]), Role::Member),
        ] {
            assert_eq!(role(&with("r", value.clone())), Ok(expected), "{value}");
        }
        assert!(role(&with("r", json!(7))).is_err());
        // An operator's token says so twice.
        assert!(role(&with("r", json!("root"))).is_err());
        let mut operator = with("r", json!(["root", "boss"]));
        operator["tenant"] = json!("operator");
        assert_eq!(bearer(&operator, ROLES).map(|b| (b.role, b.tenants)), Ok((Role::Operator, BTreeSet::new())));
        operator["tenant"] = json!(["operator", "a"]);
        assert!(role(&operator).is_err());
        // Without a table nobody is more than a member, whatever the token says.
        assert_eq!(bearer(&with("role", json!("operator")), "").map(|b| b.role), Ok(Role::Member));
    }

    #[test]
    fn scopes_and_models_are_never_wider_than_the_role() {
        const CLAIMS: &str =
            "scopes_claim = \"scope\"\nmodels_claim = \"models\"\nscopes = { run = [\"inference\", \"keys:write\"] }";
        let scopes = |value: Value| bearer(&with("scope", value), CLAIMS).map(|bearer| bearer.scopes);
        assert_eq!(scopes(json!("openid inference")), Ok(Scopes::of(&[Scope::Inference])));
        assert_eq!(scopes(json!(["run"])), Ok(Scopes::of(&[Scope::Inference])), "no keys for members");
        assert_eq!(scopes(json!("keys:write tenants:write *")), Ok(Scopes::NONE));
        assert_eq!(bearer(&claims(), CLAIMS).map(|bearer| bearer.scopes), Ok(Scopes::NONE));
        assert!(scopes(json!(7)).is_err());
        let models = |value: Value| bearer(&with("models", value), CLAIMS).map(|bearer| bearer.models);
        assert_eq!(models(json!(["m"])), Ok(Some(BTreeSet::from(["m".into()]))));
        assert_eq!(models(json!([])), Ok(Some(BTreeSet::new())), "an empty list is none, not all");
        assert!(models(json!({})).is_err() && models(json!(null)).is_err());
    }
}
