//! Tenants: where their clients come from, whether they are served, and who may say which tenant is meant.

use weir_runtime::TenantId;

use super::{mint::*, *};

/// Tenants `a` to `d`, of which one is confined to addresses, one suspended and one pending; and the operator.
fn rig() -> (Identity, [ApiKey; 5]) {
    let pepper = Pepper::random().expect("pepper");
    let rows: Vec<(ApiKey, KeyRow)> =
        (0..5).map(|tenant| key(&pepper, tenant, if tenant == 0 { Role::Operator } else { Role::Member })).collect();
    let tenants = vec![
        TenantRow { domain: Some("a.example".into()), ..tenant(1, "a") },
        TenantRow {
            ip_allow: ["198.51.100.0/24", "2001:db8:1::/48"].map(|range| range.parse().expect("a range")).into(),
            domain: Some("b.example".into()),
            ..tenant(2, "b")
        },
        TenantRow { standing: Standing::Suspended(None), ..tenant(3, "c") },
        TenantRow { standing: Standing::Pending("The contract is not signed.".into()), ..tenant(4, "d") },
    ];
    let (keys, rows): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let snapshot = Snapshot::build(pepper, tenants, rows, vec![], None).expect("built");
    let proxies = "10.0.0.0/8".parse().expect("ranges");
    (Identity::new(snapshot, Issuers::default(), proxies), keys.try_into().expect("five"))
}

async fn with(
    identity: &Identity,
    key: &ApiKey,
    peer: &str,
    lines: &[(&'static str, &str)],
    door: Door,
) -> Result<Caller, Denied> {
    let authorization = format!("Bearer {}", key.reveal());
    let mut all = vec![("authorization", authorization.as_str())];
    all.extend_from_slice(lines);
    ask_with(identity, &all, peer, door).await
}

#[tokio::test]
async fn an_allow_list_is_of_true_addresses() {
    let (identity, [_, _, b, ..]) = rig();
    const FOR: &str = "x-forwarded-for";
    for (peer, lines, allowed) in [
        ("198.51.100.7", vec![], true),
        ("::ffff:198.51.100.7", vec![], true),
        ("2001:db8:1::5", vec![], true),
        ("192.0.2.1", vec![], false),
        ("2001:db8:2::5", vec![], false),
        // Whoever is no proxy may claim what it likes.
        ("192.0.2.1", vec![(FOR, "198.51.100.7")], false),
        ("192.0.2.1", vec![("forwarded", "for=198.51.100.7")], false),
        ("192.0.2.1", vec![("x-real-ip", "198.51.100.7")], false),
        ("198.51.100.7", vec![(FOR, "192.0.2.1")], true),
        // A proxy's word counts, its client's does not.
        ("10.0.0.1", vec![(FOR, "198.51.100.7")], true),
        ("10.0.0.1", vec![(FOR, "198.51.100.7, 192.0.2.1")], false),
        ("10.0.0.1", vec![(FOR, "192.0.2.1, 198.51.100.7, 10.0.0.2")], true),
        ("10.0.0.1", vec![(FOR, "unknown")], false),
        ("10.0.0.1", vec![(FOR, "198.51.100.7"), ("forwarded", "for=192.0.2.1")], false),
        ("10.0.0.1", vec![("forwarded", "for=\"[2001:db8:1::5]\"")], true),
        ("10.0.0.1", vec![], false),
    ] {
        let outcome = with(&identity, &b, peer, &lines, Door::Api).await.map(|caller| caller.tenant.0);
        assert_eq!(outcome, if allowed { Ok(2) } else { Err(Denied::Address) }, "{peer} {lines:?}");
    }
}

#[tokio::test]
async fn who_is_not_served_is_told_so() {
    let (identity, [_, a, _, c, d]) = rig();
    assert_eq!(ask(&identity, c.reveal()).await.map(|_| ()), Err(Denied::Suspended(None)));
    let why = Denied::Pending("The contract is not signed.".into());
    assert_eq!(ask(&identity, d.reveal()).await.map(|_| ()), Err(why));
    assert!(identity.snapshot().take_uses().is_empty(), "what is refused is no use");
    assert!(ask(&identity, a.reveal()).await.is_ok());
    assert_eq!(identity.snapshot().take_uses(), vec![(a.id().into(), NOW * 1_000_000)]);
}

#[tokio::test]
async fn naming_a_tenant_narrows_and_never_widens() {
    let (identity, [operator, a, ..]) = rig();
    const TENANT: &str = "x-weir-tenant";
    const HOST: &str = "x-forwarded-host";
    for (peer, lines, outcome) in [
        ("10.0.0.1", vec![(TENANT, "a")], Ok(1)),
        ("10.0.0.1", vec![(HOST, "A.example:443")], Ok(1)),
        ("10.0.0.1", vec![(TENANT, "a"), (HOST, "a.example")], Ok(1)),
        ("10.0.0.1", vec![(HOST, "elsewhere.example")], Ok(1)),
        // Another's, one that is not there, and none that can be read: all the same.
        ("10.0.0.1", vec![(TENANT, "b")], Err(Denied::Confined)),
        ("10.0.0.1", vec![(TENANT, "nobody")], Err(Denied::Confined)),
        ("10.0.0.1", vec![(TENANT, "operator")], Err(Denied::Confined)),
        ("10.0.0.1", vec![(TENANT, "")], Err(Denied::Confined)),
        ("10.0.0.1", vec![(TENANT, "a"), (TENANT, "a")], Err(Denied::Confined)),
        ("10.0.0.1", vec![(HOST, "b.example")], Err(Denied::Confined)),
        ("10.0.0.1", vec![(HOST, "a.example.")], Ok(1)),
        ("10.0.0.1", vec![(HOST, "b.example.:443")], Err(Denied::Confined)),
        ("10.0.0.1", vec![(HOST, "a.example"), (HOST, "b.example")], Err(Denied::Confined)),
        ("10.0.0.1", vec![(HOST, "a.example, b.example")], Err(Denied::Confined)),
        ("10.0.0.1", vec![(HOST, "")], Err(Denied::Confined)),
        ("192.0.2.1", vec![(HOST, "")], Ok(1)),
        ("10.0.0.1", vec![(TENANT, "a"), (HOST, "b.example")], Err(Denied::Confined)),
        // From anyone else it is as if nothing was said.
        ("192.0.2.1", vec![(TENANT, "b")], Ok(1)),
        ("192.0.2.1", vec![(HOST, "b.example"), ("host", "b.example")], Ok(1)),
        ("10.0.0.1", vec![("host", "b.example")], Ok(1)),
    ] {
        let found = with(&identity, &a, peer, &lines, Door::Api).await.map(|caller| caller.tenant.0);
        assert_eq!(found, outcome, "{peer} {lines:?}");
    }
    for (peer, lines, outcome) in [
        ("10.0.0.1", vec![], Ok(None)),
        ("10.0.0.1", vec![(TENANT, "b")], Ok(Some(TenantId(2)))),
        ("10.0.0.1", vec![(HOST, "b.example")], Ok(Some(TenantId(2)))),
        ("10.0.0.1", vec![(HOST, "b.example.")], Ok(Some(TenantId(2)))),
        ("10.0.0.1", vec![(HOST, "b/example")], Err(Denied::Confined)),
        ("10.0.0.1", vec![(TENANT, "nobody")], Err(Denied::Confined)),
        ("192.0.2.1", vec![(TENANT, "b")], Ok(None)),
    ] {
        let found = with(&identity, &operator, peer, &lines, Door::Admin).await;
        assert_eq!(
            found.map(|caller| (caller.tenant, caller.only)),
            outcome.map(|only| (TenantId::OPERATOR, only)),
            "{lines:?}"
        );
    }
}
