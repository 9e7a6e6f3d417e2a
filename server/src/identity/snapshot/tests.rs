use super::*;
use crate::identity::{Scope, Scopes};

pub(crate) fn tenant(number: u32, id: &str) -> TenantRow {
    TenantRow {
        id: id.into(),
        number: TenantId(number),
        standing: Standing::Active,
        models: None,
        ip_allow: Vec::new(),
        domain: None,
        account: Account::default(),
    }
}

pub(crate) fn key(pepper: &Pepper, tenant: u32, role: Role) -> (ApiKey, KeyRow) {
    let key = ApiKey::random().expect("key");
    let row = KeyRow {
        id: key.id(),
        tenant: TenantId(tenant),
        name: "k".into(),
        hash: key.hash(pepper),
        role,
        scopes: role.scopes(),
        models: None,
        expires_us: None,
        created_us: 0,
        created_by: "x".into(),
        revoked_us: None,
        last_used_us: None,
        replaces: None,
    };
    (key, row)
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn tenant_of(snapshot: &Snapshot, key: &ApiKey, now_us: i64) -> Option<u32> {
    snapshot.key(key.reveal().as_bytes(), now_us).map(|entry| entry.caller.tenant.0)
}

#[test]
fn keys_name_their_tenants_until_they_end() {
    let pepper = Pepper::random().expect("pepper");
    let (a, row_a) = key(&pepper, 1, Role::Member);
    let (b, row_b) = key(&pepper, 2, Role::TenantAdmin);
    let (ends, row) = key(&pepper, 1, Role::Member);
    let row_ends = KeyRow { expires_us: Some(100), ..row };
    let (gone, row) = key(&pepper, 1, Role::Member);
    let row_gone = KeyRow { revoked_us: Some(i64::MAX), ..row };
    let (stranger, _) = key(&pepper, 1, Role::Member);
    let tenants = vec![tenant(1, "a"), tenant(2, "b")];
    let snapshot =
        Snapshot::build(pepper, tenants, vec![row_a, row_b, row_ends, row_gone], Vec::new(), None).expect("built");
    assert_eq!((tenant_of(&snapshot, &a, 0), tenant_of(&snapshot, &b, 0)), (Some(1), Some(2)));
    assert_eq!((tenant_of(&snapshot, &ends, 99), tenant_of(&snapshot, &ends, 100)), (Some(1), None));
    assert_eq!((tenant_of(&snapshot, &gone, 0), tenant_of(&snapshot, &stranger, 0)), (None, None));
    // One key's id with another's secret.
    let mixed = format!("{}{}", &a.reveal()[..22], &b.reveal()[22..]);
    assert!(snapshot.key(mixed.as_bytes(), 0).is_none());
}

#[test]
fn a_store_moved_under_another_pepper_opens_to_nobody() {
    let (one, other) = (Pepper::random().expect("pepper"), Pepper::random().expect("pepper"));
    let (a, row) = key(&one, 1, Role::Member);
    let snapshot = Snapshot::build(other, vec![tenant(1, "a")], vec![row], Vec::new(), None).expect("built");
    assert_eq!(tenant_of(&snapshot, &a, 0), None);
}

#[test]
fn a_key_is_never_wider_than_its_tenant_or_its_role() {
    let pepper = Pepper::random().expect("pepper");
    let (a, row) = key(&pepper, 1, Role::Member);
    let row = KeyRow { models: Some(names(&["m", "x"])), scopes: Scopes::ALL, ..row };
    let of = TenantRow { models: Some(names(&["m", "n"])), ..tenant(1, "a") };
    let snapshot = Snapshot::build(pepper, vec![of], vec![row], Vec::new(), None).expect("built");
    let caller = &snapshot.key(a.reveal().as_bytes(), 0).expect("known").caller;
    assert_eq!(caller.models.as_deref(), Some(&names(&["m"])));
    assert_eq!(caller.scopes, Role::Member.scopes());
    assert!(!caller.may(Scope::KeysWrite));
}

#[test]
fn plain_keys_work_as_they_did() {
    let pepper = Pepper::random().expect("pepper");
    let plain = |text: &str, tenant, role| PlainKey {
        hash: KeyHash::of(text.as_bytes()),
        tenant: TenantId(tenant),
        name: text.into(),
        role,
    };
    // In the file, and of the form that keys in the store have.
    let formed = ApiKey::random().expect("key");
    let rows = vec![
        plain("weir-old", 1, Role::Member),
        plain("any text", 0, Role::Operator),
        plain(formed.reveal(), 1, Role::TenantAdmin),
    ];
    let snapshot = Snapshot::build(pepper, vec![tenant(1, "a")], Vec::new(), rows, None).expect("built");
    let of = |text: &[u8]| snapshot.key(text, 0).map(|entry| (entry.caller.tenant.0, entry.caller.role));
    assert_eq!(of(b"weir-old"), Some((1, Role::Member)));
    assert_eq!(of(b"any text"), Some((0, Role::Operator)));
    assert_eq!(of(formed.reveal().as_bytes()), Some((1, Role::TenantAdmin)));
    for text in [&b""[..], b"weir-ol", b"weir-old ", &[b'x'; KEY_BYTES_MAX + 1]] {
        assert_eq!(of(text), None, "{text:?}");
    }
    let hash = KeyHash::of(b"weir-old").hex();
    assert_eq!(of(hash.as_bytes()), None, "the hash that is in the file is not the key");
}

#[test]
fn rows_that_contradict_each_other_are_refused() {
    let pepper = Pepper::random().expect("pepper");
    let (_, a) = key(&pepper, 1, Role::Member);
    let tenants = || vec![tenant(1, "a"), tenant(2, "b")];
    let build = |tenants, keys, plain| {
        Snapshot::build(pepper.clone(), tenants, keys, plain, None).map(|_| ()).expect_err("refused")
    };
    assert_eq!(build(tenants(), vec![a.clone(), a.clone()], Vec::new()), SnapshotError::Twice(a.id.clone()));
    let lost = KeyRow { tenant: TenantId(3), ..a.clone() };
    assert_eq!(build(tenants(), vec![lost], Vec::new()), SnapshotError::NoTenant(a.id.clone()));
    let odd = KeyRow { id: "wk_odd".into(), ..a.clone() };
    assert_eq!(build(tenants(), vec![odd], Vec::new()), SnapshotError::BadId("wk_odd".into()));
    for (number, role) in [(1, Role::Operator), (1, Role::Auditor), (0, Role::Member), (0, Role::TenantAdmin)] {
        let wrong = KeyRow { tenant: TenantId(number), role, ..a.clone() };
        assert_eq!(build(tenants(), vec![wrong], Vec::new()), SnapshotError::RoleOfOthers(a.id.clone()), "{role}");
    }
    let plain = PlainKey { hash: KeyHash::of(b"p"), tenant: TenantId(1), name: "p".into(), role: Role::Member };
    let twice = vec![plain.clone(), PlainKey { tenant: TenantId(2), ..plain }];
    assert_eq!(build(tenants(), Vec::new(), twice), SnapshotError::Twice("p".into()));
    for (number, id, domain) in [(1, "c", None), (3, "a", None), (0, "c", None), (3, "c", Some("A.example"))] {
        let mut all = tenants();
        all[0].domain = Some("a.example".into());
        all.push(TenantRow { domain: domain.map(str::to_owned), ..tenant(number, id) });
        assert_eq!(build(all, Vec::new(), Vec::new()), SnapshotError::TenantTwice(id.into()));
    }
}

#[test]
fn last_uses_come_in_batches_and_survive_a_reload() {
    let pepper = Pepper::random().expect("pepper");
    let (a, row_a) = key(&pepper, 1, Role::Member);
    let (b, row_b) = key(&pepper, 1, Role::Member);
    let row_b = KeyRow { last_used_us: Some(50), ..row_b };
    let build = |previous: Option<&Snapshot>| {
        let rows = vec![row_a.clone(), row_b.clone()];
        Snapshot::build(pepper.clone(), vec![tenant(1, "a")], rows, Vec::new(), previous).expect("built")
    };
    let first = build(None);
    assert!(first.take_uses().is_empty());
    let entry = |key: &ApiKey| first.key(key.reveal().as_bytes(), 0).expect("known");
    assert!(first.take_uses().is_empty(), "to be known is no use yet");
    for now in [60, 70, 65] {
        entry(&a).used(now);
    }
    entry(&b).used(40);
    let second = build(Some(&first));
    assert_eq!(second.take_uses(), vec![(a.id().into(), 70)], "once each, the latest, and no step back");
    assert!(first.take_uses().is_empty() && second.take_uses().is_empty());
    let wrong = format!("{}{}", &a.reveal()[..22], &b.reveal()[22..]);
    assert!(second.key(wrong.as_bytes(), 90).is_none());
    assert!(second.take_uses().is_empty(), "a wrong secret is no use");
}
