//! Whom these tests' servers know.

use weir_runtime::TenantId;

use super::*;
use crate::{
    identity::{Account, Issuers, Pepper, PlainKey, Role, Snapshot, Standing, TenantRow},
    keys::KeyHash,
};

/// Whose word on tenants and hosts counts.
const PROXIES: &str = "10.0.0.0/8";

/// Two tenants, of which `b` may know of one model only, and a key of each role.
pub(super) fn app(limits: Limits) -> Arc<App> {
    let tenant = |number, id: &str, models| TenantRow {
        id: id.into(),
        number: TenantId(number),
        standing: Standing::Active,
        models,
        ip_allow: Vec::new(),
        domain: Some(format!("{id}.example")),
        account: Account::default(),
    };
    let key = |text: &str, number, role| PlainKey {
        hash: KeyHash::of(text.as_bytes()),
        tenant: TenantId(number),
        name: text.into(),
        role,
    };
    let tenants = vec![tenant(1, "a", None), tenant(2, "b", Some(BTreeSet::from(["m".into()])))];
    let keys = vec![
        key(KEY, 1, Role::Member),
        key(OTHER_KEY, 2, Role::Member),
        key(TENANT_ADMIN, 1, Role::TenantAdmin),
        key(OPERATOR, 0, Role::Operator),
        key(AUDITOR, 0, Role::Auditor),
    ];
    let pepper = Pepper::random().expect("a pepper");
    let snapshot = Snapshot::build(pepper, tenants, Vec::new(), keys, None).expect("a snapshot");
    App::new(Arc::new(Identity::new(snapshot, Issuers::default(), PROXIES.parse().expect("ranges"))), limits)
}
