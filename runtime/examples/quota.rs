//! What a counted request costs before it is submitted: the tenant's limits looked up, and one taken out of a grant of the store's.
//!
//! `cargo run --release -p weir-runtime --example quota [N]` takes N requests (200,000 when absent) one after the other from a SQLite
//! file, as fast as they are given, and prints the median and the 99th percentile in microseconds.

use std::time::Instant;

use weir_runtime::{
    ledger,
    quota::{Limits, RequestCounts, Source},
    store::{Actor, ActorKind, NewTenant, Store, StoreOptions, TenantSettings},
};

type Failed = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let requests = std::env::args().nth(1).map_or(Ok(200_000), |number| number.parse::<usize>())?;
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite:{}", folder.path().join("weir.db").display());
    let store = Store::open(&url, &StoreOptions::default()).await?;
    let mut change = store.change(&Actor::new(ActorKind::System, "example"), 1).await?;
    change.create_tenant(&NewTenant { id: "acme".into(), settings: TenantSettings::named("acme", "starter") }).await?;
    change.commit().await?;
    let (chain, _) = ledger::begin(&store, "example", 1).await?;
    let counts = RequestCounts::new(Source::store(store, "example", chain.epoch));
    counts.put(1, "acme", Limits { amounts: [None, None, Some(i64::MAX / 4)], ..Limits::default() });

    let mut times = Vec::with_capacity(requests);
    for _ in 0..requests {
        let begun = Instant::now();
        let ticket = counts.take(1).await.map_err(|refusal| format!("{refusal:?}"))?;
        times.push(begun.elapsed());
        ticket.ok_or("its requests are counted")?.used();
    }
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e6;
    println!("figure=5.quota_us value={:.2}", at(50));
    println!("figure=5.quota_p99_us value={:.2}", at(99));
    counts.end().await;
    Ok(())
}
