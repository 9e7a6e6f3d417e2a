//! API keys.

use weir_runtime::TenantId;

use super::{mint::*, *};
use crate::keys::{Key, KeyHash};

/// Every credential that is nobody's, whatever the reason, ends in the same value: one body is made of it.
#[tokio::test]
async fn all_that_is_nobodys_reads_alike() {
    let pepper = Pepper::random().expect("pepper");
    let (good, row) = key(&pepper, 1, Role::Member);
    let (expired, expired_row) = key(&pepper, 1, Role::Member);
    let (revoked, revoked_row) = key(&pepper, 1, Role::Member);
    let (rotated, rotated_row) = key(&pepper, 1, Role::Member);
    let (operator, operator_row) = key(&pepper, 0, Role::Operator);
    let (stranger, _) = key(&pepper, 1, Role::Member);
    let now_us = NOW * 1_000_000;
    let ended = rotated_row.rotate(&pepper, now_us - 10, Duration::from_micros(10), "x").expect("rotated");
    let rows = vec![
        row,
        KeyRow { expires_us: Some(now_us), ..expired_row },
        KeyRow { revoked_us: Some(now_us + 1), ..revoked_row },
        KeyRow { expires_us: Some(ended.2), ..rotated_row },
        ended.1.clone(),
        operator_row,
    ];
    let old = Key::random().expect("key");
    let plain = PlainKey { hash: old.hash(), tenant: TenantId(1), name: "old".into(), role: Role::Member };
    let snapshot = Snapshot::build(pepper, vec![tenant(1, "a")], rows, vec![plain], None).expect("built");
    let identity = Identity::new(snapshot, Issuers::default(), CidrList::default());

    let text = good.reveal();
    let mixed = format!("{}{}", &text[..22], &stranger.reveal()[22..]);
    let nobody: Vec<(&str, String)> = vec![
        ("unknown", stranger.reveal().into()),
        ("wrong secret", mixed),
        ("expired", expired.reveal().into()),
        ("revoked", revoked.reveal().into()),
        ("rotated away", rotated.reveal().into()),
        ("the operator's", operator.reveal().into()),
        ("the visible part", text[..21].into()),
        ("the id", good.id()),
        ("the secret alone", text[22..].into()),
        ("a prefix", text[..text.len() - 1].into()),
        ("one more", format!("{text}a")),
        ("in capitals", text.to_uppercase()),
        ("twice", format!("{text}{text}")),
        ("the old form, unknown", Key::random().expect("key").reveal().into()),
        ("the old form's hash", old.hash().hex()),
        ("the old form, cut", old.reveal()[..68].into()),
        ("a token, where there are no issuers", "e30.e30.AA".into()),
        ("SQL", "'OR'1'='1".into()),
        ("long", "x".repeat(8 << 10)),
        ("too long", "x".repeat((8 << 10) + 1)),
    ];
    for (what, credential) in nobody {
        assert_eq!(ask(&identity, &credential).await.map(|_| ()), Err(Denied::Unknown), "{what}");
    }
    for (what, credential) in
        [("good", text), ("the one it was rotated to", ended.0.reveal()), ("the old form", old.reveal())]
    {
        assert_eq!(ask(&identity, credential).await.map(|caller| caller.tenant), Ok(TenantId(1)), "{what}");
        assert_eq!(ask_at(&identity, credential, Door::Admin).await.map(|_| ()), Err(Denied::Unknown), "{what}");
    }
    let operator = ask_at(&identity, operator.reveal(), Door::Admin).await.expect("the operator");
    assert_eq!((operator.tenant, operator.role), (TenantId::OPERATOR, Role::Operator));
}

#[tokio::test]
async fn the_header_is_read_strictly() {
    let pepper = Pepper::random().expect("pepper");
    let plain = |text: &str, tenant| PlainKey {
        hash: KeyHash::of(text.as_bytes()),
        tenant: TenantId(tenant),
        name: text.into(),
        role: Role::Member,
    };
    let tenants = vec![tenant(1, "a"), tenant(2, "b")];
    let rows = vec![plain("key-a", 1), plain("key-b", 2)];
    let snapshot = Snapshot::build(pepper, tenants, vec![], rows, None).expect("built");
    let identity = Identity::new(snapshot, Issuers::default(), CidrList::default());
    let cases: [(&[&str], Result<u32, Denied>); 15] = [
        (&["Bearer key-a"], Ok(1)),
        (&["bearer  key-b "], Ok(2)),
        (&["BEARER key-b"], Ok(2)),
        (&[], Err(Denied::Missing)),
        (&[""], Err(Denied::Malformed)),
        (&["Bearer"], Err(Denied::Malformed)),
        (&["Bearer "], Err(Denied::Malformed)),
        (&["key-a"], Err(Denied::Malformed)),
        (&["Basic key-a"], Err(Denied::Malformed)),
        (&["Bearer\tkey-a"], Err(Denied::Malformed)),
        (&["Bearer key-a key-b"], Err(Denied::Malformed)),
        (&["Bearer key-a,key-b"], Err(Denied::Unknown)),
        (&["Bearer key-\u{e9}"], Err(Denied::Malformed)),
        (&["Bearer key-a", "Bearer key-a"], Err(Denied::Repeated)),
        (&["Bearer key-a", "Bearer key-b"], Err(Denied::Repeated)),
    ];
    for (values, outcome) in cases {
        let lines: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
        let found = ask_with(&identity, &lines, "192.0.2.9", Door::Api).await.map(|caller| caller.tenant.0);
        assert_eq!(found, outcome, "{values:?}");
    }
    // Nor is a key looked for anywhere else.
    for elsewhere in ["x-api-key", "api-key", "cookie", "proxy-authorization", "x-forwarded-authorization"] {
        let found = ask_with(&identity, &[(elsewhere, "Bearer key-a")], "192.0.2.9", Door::Api).await;
        assert_eq!(found.map(|_| ()), Err(Denied::Missing), "{elsewhere}");
    }
}

#[tokio::test]
async fn a_new_snapshot_counts_from_the_next_request_on() {
    let pepper = Pepper::random().expect("pepper");
    let (good, row) = key(&pepper, 1, Role::Member);
    let build = |row: &KeyRow| {
        Snapshot::build(pepper.clone(), vec![tenant(1, "a")], vec![row.clone()], vec![], None).expect("built")
    };
    let identity = Identity::new(build(&row), Issuers::default(), CidrList::default());
    assert!(ask(&identity, good.reveal()).await.is_ok());
    identity.replace(build(&KeyRow { revoked_us: Some(0), ..row.clone() }));
    assert_eq!(ask(&identity, good.reveal()).await.map(|_| ()), Err(Denied::Unknown));
    identity.replace(Snapshot::empty(pepper.clone()));
    assert_eq!(ask(&identity, good.reveal()).await.map(|_| ()), Err(Denied::Unknown));
    identity.replace(build(&row));
    assert!(ask(&identity, good.reveal()).await.is_ok());
}
