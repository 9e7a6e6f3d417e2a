//! What identity and quota cost before a request is read: a key among ten thousand is found, its tenant and route are looked at, and one
//! request is taken out of a grant of the store's.
//!
//! `cargo run --release --example door [N]` lets N requests in (200,000 when absent), one after the other, as fast as that goes, and
//! prints the median and the 99th percentile in microseconds, and how often the store was asked meanwhile: for grants, ahead
//! of need and beside the requests.

use std::{net::IpAddr, time::Instant};

use axum::http::{HeaderMap, HeaderValue, header};
use weir_runtime::{
    TenantId, ledger,
    quota::{Limits, RequestCounts, Source},
    store::{Actor, ActorKind, NewTenant, Store, StoreOptions, TenantSettings},
};
use weir_server::identity::{
    Account, ApiKey, CidrList, Door, Identity, Issuers, KeyRow, Now, Pepper, Role, Snapshot, Standing, TenantRow,
    routes::{Access, access},
};

type Failed = Box<dyn std::error::Error>;

const TENANTS: u32 = 1000;
const KEYS_EACH: u32 = 10;

fn tenant(number: u32) -> TenantRow {
    TenantRow {
        id: format!("tenant-{number}"),
        number: TenantId(number),
        standing: Standing::Active,
        models: None,
        ip_allow: Vec::new(),
        domain: None,
        account: Account::default(),
    }
}

fn key(key: &ApiKey, pepper: &Pepper, number: u32) -> KeyRow {
    KeyRow {
        id: key.id(),
        tenant: TenantId(number),
        name: "door".into(),
        hash: key.hash(pepper),
        role: Role::Member,
        scopes: Role::Member.scopes(),
        models: None,
        expires_us: None,
        created_us: 0,
        created_by: "door".into(),
        revoked_us: None,
        last_used_us: None,
        replaces: None,
    }
}

/// Everybody, and a key of the first tenant.
fn everybody() -> Result<(Identity, ApiKey), Failed> {
    let pepper = Pepper::random()?;
    let keys: Vec<ApiKey> = (0..TENANTS * KEYS_EACH).map(|_| ApiKey::random()).collect::<Result<_, _>>()?;
    let rows = (0..).zip(&keys).map(|(at, text)| key(text, &pepper, 1 + at / KEYS_EACH)).collect();
    let snapshot = Snapshot::build(pepper, (1..=TENANTS).map(tenant).collect(), rows, Vec::new(), None)?;
    let first = keys.into_iter().next().ok_or("no keys")?;
    Ok((Identity::new(snapshot, Issuers::default(), CidrList::default()), first))
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let requests = std::env::args().nth(1).map_or(Ok(200_000), |number| number.parse::<usize>())?;
    let (identity, key) = everybody()?;
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {}", key.reveal()))?);
    let peer = Some(IpAddr::from([127, 0, 0, 1]));

    let folder = tempfile::tempdir()?;
    let url = format!("sqlite:{}", folder.path().join("weir.db").display());
    let store = Store::open(&url, &StoreOptions::default()).await?;
    let mut change = store.change(&Actor::new(ActorKind::System, "door"), 1).await?;
    let settings = TenantSettings::named("tenant-1", "starter");
    change.create_tenant(&NewTenant { id: "tenant-1".into(), settings }).await?;
    change.commit().await?;
    let (chain, _) = ledger::begin(&store, "door", 1).await?;
    let counts = RequestCounts::new(Source::store(store.clone(), "door", chain.epoch));
    counts.put(1, "tenant-1", Limits { amounts: [None, None, Some(i64::MAX / 4)], ..Limits::default() });

    let asked = store.transactions();
    let mut times = Vec::with_capacity(requests);
    for _ in 0..requests {
        let begun = Instant::now();
        let caller =
            identity.identify(&headers, peer, Door::Api, Now::read()).await.map_err(|denied| format!("{denied:?}"))?;
        if access(Door::Api, &caller, "POST", "/v1/chat/completions") != Access::Allowed {
            return Err("the key may not ask".into());
        }
        let ticket = counts.take(caller.tenant.0).await.map_err(|refusal| format!("{refusal:?}"))?;
        times.push(begun.elapsed());
        ticket.ok_or("its requests are counted")?.used();
    }
    let asked = store.transactions() - asked;
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e6;
    println!("figure=5.door_us value={:.2} p99={:.2} unit=us", at(50), at(99));
    println!("figure=5.door_store_transactions value={asked} requests={requests}");
    counts.end().await;
    Ok(())
}
