//! Everybody this server knows: tenants, plans and keys of the store, and the keys that stand in files beside it.
//!
//! The store rules. All of it is read once at the start, and then what has changed: at once after a change of this
//! server's own, and otherwise by asking the store's log of changes every second, so that replicas see each other's. From what is
//! known an [`Identity`]'s snapshot is made, which requests are judged by without any store, and the engine is told
//! of tenants before their keys are.
//!
//! Keys of the configuration (`sha256`, `key_file`, the operators' key) are never in the store. They belong to the store's
//! tenant of that name, and files are read again when they change.

mod file_keys;
mod import;
mod rows;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::sync::Mutex;
use weir_runtime::{
    Engine, TenantId, TenantSpec,
    store::{Changed, Key, PAGE_LEN_MAX, Plan, Store, StoreError, Tenant, Tx},
};

pub(crate) use self::rows::key_row;
pub use self::{file_keys::FileKeys, import::import};
use self::{
    file_keys::{FileKey, Reading},
    rows::{spec, tenant_row},
};
use crate::identity::{CidrList, EVERY, Identity, Issuers, Pepper, PlainKey, Snapshot};

/// How often the store is asked what has changed. A revocation holds everywhere within this and the time of a read.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often it is written down when keys were last used.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// Where the store keeps the mark of the pepper that its keys were hashed with.
const PEPPER_MARK: &str = "pepper";

/// Everybody, and how to stay up to date with them.
pub struct Everybody {
    store: Store,
    pepper: Pepper,
    identity: Arc<Identity>,
    /// The pools there are: a plan that names another one gets none.
    pools: BTreeSet<String>,
    engine: OnceLock<Engine>,
    known: Mutex<Known>,
}

/// What has been read.
#[derive(Debug)]
struct Known {
    /// The last change that is in here.
    seq: i64,
    plans: BTreeMap<String, Plan>,
    tenants: BTreeMap<String, Tenant>,
    keys: BTreeMap<String, Key>,
    files: Reading,
    /// What the engine knows of tenants, in the order of their numbers.
    told: Vec<TenantSpec>,
    /// What was wrong the last time, which is said once.
    faults: Vec<String>,
}

impl fmt::Debug for Everybody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Everybody").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Everybody {
    /// Reads everybody. A key file that cannot be used is an error: at the start, somebody is there to put it right.
    pub async fn open(
        store: Store,
        pepper: Pepper,
        files: FileKeys,
        issuers: Issuers,
        proxies: CidrList,
        pools: BTreeSet<String>,
    ) -> anyhow::Result<Arc<Self>> {
        check_pepper(&store, &pepper).await?;
        let (files, faults) = Reading::first(files);
        if let Some(fault) = faults.into_iter().next() {
            bail!(fault);
        }
        let mut known = Known::read(&store, files).await?;
        known.told = known.specs(&pools)?;
        let (snapshot, faults) = known.snapshot(&pepper, None)?;
        known.say(faults);
        let identity = Arc::new(Identity::new(snapshot, issuers, proxies));
        Ok(Arc::new(Everybody { store, pepper, identity, pools, engine: OnceLock::new(), known: Mutex::new(known) }))
    }

    /// Where everybody is kept.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The secret of key hashes.
    pub fn pepper(&self) -> &Pepper {
        &self.pepper
    }

    /// Who is calling.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// All tenants in the order of their numbers, to start an engine with.
    pub async fn specs(&self) -> Vec<TenantSpec> {
        self.known.lock().await.told.clone()
    }

    /// The engine that was started with [`Everybody::specs`]: it hears of what has changed since then, and of all that does.
    pub async fn set_engine(&self, engine: Engine) {
        let _ = self.engine.set(engine);
        let mut known = self.known.lock().await;
        if let Err(error) = self.publish(&mut known).await {
            tracing::warn!("everybody stays as they were: {error:#}");
        }
    }

    /// Learns what has changed in the store. When it returns without an error, this server acts by all that was committed
    /// before it was called.
    pub async fn catch_up(&self) -> anyhow::Result<()> {
        let mut known = self.known.lock().await;
        let mut fresh = false;
        loop {
            let changes = self.store.changes(known.seq).await?;
            let Some(last) = changes.last().map(|change| change.seq) else { break };
            // After an error half-way the same changes are read again.
            let mut tx = self.store.read().await?;
            for change in &changes {
                known.learn(&mut tx, change).await?;
            }
            (known.seq, fresh) = (last, true);
            if changes.len() < PAGE_LEN_MAX as usize {
                break;
            }
        }
        match fresh {
            true => self.publish(&mut known).await,
            false => Ok(()),
        }
    }

    /// Acts by what is known: the engine first, which must know whose requests it gets.
    async fn publish(&self, known: &mut Known) -> anyhow::Result<()> {
        if let Some(engine) = self.engine.get() {
            let specs = known.specs(&self.pools)?;
            for (number, spec) in (1..).map(TenantId).zip(specs) {
                let at = number.0 as usize - 1;
                if known.told.get(at) == Some(&spec) {
                    continue;
                }
                engine.put_tenant(number, spec.clone()).await?;
                match known.told.get_mut(at) {
                    Some(told) => *told = spec,
                    None => known.told.push(spec),
                }
            }
        }
        let (snapshot, faults) = known.snapshot(&self.pepper, Some(&self.identity.snapshot()))?;
        self.identity.replace(snapshot);
        known.say(faults);
        Ok(())
    }

    /// Reads the files with keys again if they have changed: who holds the old key of a file is nobody from then on. A file that
    /// cannot be used, or is gone, is nobody's key until it can, and holds up no other.
    async fn look_at_files(&self) -> anyhow::Result<()> {
        let mut known = self.known.lock().await;
        match known.files.again() {
            true => self.publish(&mut known).await,
            false => Ok(()),
        }
    }

    /// Writes down when keys were last used.
    pub async fn note_uses(&self) -> Result<(), StoreError> {
        let uses = self.identity.snapshot().take_uses();
        let uses: Vec<(&str, i64)> = uses.iter().map(|(id, at)| (&**id, *at)).collect();
        if uses.is_empty() { Ok(()) } else { self.store.keys_used(&uses).await }
    }

    /// Keeps all of this going until the server ends.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut trouble = Trouble::default();
        let (mut looked, mut noted) = (Instant::now(), Instant::now());
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            trouble.of(self.catch_up().await, "the store cannot be read: everybody stays as they were");
            if looked.elapsed() >= EVERY {
                looked = Instant::now();
                if let Err(error) = self.look_at_files().await {
                    tracing::warn!("the keys stay as they were: {error:#}");
                }
            }
            if noted.elapsed() >= NOTE_EVERY {
                noted = Instant::now();
                if let Err(error) = self.note_uses().await {
                    tracing::warn!(%error, "when keys were last used is not written down");
                }
            }
        }
    }
}

/// Something that fails again and again is said once, and so is its end.
#[derive(Debug, Default)]
struct Trouble(bool);

impl Trouble {
    fn of(&mut self, outcome: anyhow::Result<()>, what: &str) {
        match (outcome, self.0) {
            (Err(error), false) => tracing::warn!("{what}: {error:#}; trying again"),
            (Ok(()), true) => tracing::info!("the store answers again"),
            (Err(_), true) | (Ok(()), false) => return,
        }
        self.0 = !self.0;
    }
}

/// Refuses a pepper that the store's keys were not hashed with: not one of them would be known.
async fn check_pepper(store: &Store, pepper: &Pepper) -> anyhow::Result<()> {
    let mark = pepper.mark();
    let mut tx = store.write().await?;
    match tx.meta(PEPPER_MARK).await? {
        Some(known) if known == mark => Ok(()),
        Some(known) => bail!(
            "the pepper file is not the one that the store's keys were made with (its mark is {mark}, and {known} is needed): \
             put the old file back (see docs/identity.md)"
        ),
        None => {
            tx.set_meta(PEPPER_MARK, &mark).await?;
            Ok(tx.commit().await?)
        }
    }
}

impl Known {
    async fn read(store: &Store, files: Reading) -> anyhow::Result<Self> {
        // Before the rest: what changes meanwhile is read twice, and nothing is missed.
        let seq = store.changes_head().await?;
        let mut tx = store.read().await?;
        let (mut plans, mut tenants, mut keys) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        while let page = tx.plans(last(&plans), PAGE_LEN_MAX).await?
            && !page.is_empty()
        {
            plans.extend(page.into_iter().map(|plan| (plan.id.clone(), plan)));
        }
        while let page = tx.tenants(last(&tenants), PAGE_LEN_MAX).await?
            && !page.is_empty()
        {
            tenants.extend(page.into_iter().map(|tenant| (tenant.id.clone(), tenant)));
        }
        while let page = tx.keys(None, last(&keys), PAGE_LEN_MAX).await?
            && !page.is_empty()
        {
            keys.extend(page.into_iter().map(|key| (key.id.clone(), key)));
        }
        Ok(Known { seq, plans, tenants, keys, files, told: Vec::new(), faults: Vec::new() })
    }

    /// Reads again what a change was about.
    async fn learn(&mut self, tx: &mut Tx, change: &Changed) -> Result<(), StoreError> {
        let id = change.id.as_str();
        match change.kind.as_str() {
            "plan" => renew(&mut self.plans, id, tx.plan(id).await),
            "tenant" => renew(&mut self.tenants, id, tx.tenant(id).await),
            "key" => renew(&mut self.keys, id, tx.key(None, id).await),
            _ => Ok(()),
        }
    }

    fn by_number(&self) -> Vec<&Tenant> {
        let mut tenants: Vec<&Tenant> = self.tenants.values().collect();
        tenants.sort_unstable_by_key(|tenant| tenant.number);
        tenants
    }

    /// All tenants as the engine wants them.
    fn specs(&self, pools: &BTreeSet<String>) -> anyhow::Result<Vec<TenantSpec>> {
        let of = |(number, tenant): (u32, &Tenant)| {
            if tenant.number != number {
                bail!("the store's tenants are not numbered one after the other: {number} is missing");
            }
            let plan = self.plans.get(&tenant.settings.plan).context("a tenant's plan is missing")?;
            Ok(spec(tenant, plan, pools))
        };
        (1..).zip(self.by_number()).map(of).collect()
    }

    /// Everybody as identity wants them, without whom the engine does not know, and what is wrong with some.
    fn snapshot(&self, pepper: &Pepper, previous: Option<&Snapshot>) -> anyhow::Result<(Snapshot, Vec<String>)> {
        let mut faults = Vec::new();
        let mut rows = Vec::new();
        for tenant in self.by_number().into_iter().take(self.told.len()) {
            let Some(plan) = self.plans.get(&tenant.settings.plan) else {
                faults.push(format!("tenant `{}` has a plan that is not there", tenant.id));
                continue;
            };
            rows.push(tenant_row(tenant, plan, &mut faults));
        }
        let numbers: BTreeMap<String, _> = rows.iter().map(|row| (row.id.clone(), row.number)).collect();
        let keys = self.keys.values().filter_map(|key| key_row(key, &numbers)).collect();
        let plain = |key: &FileKey| {
            let tenant = match &key.tenant {
                Some(tenant) => *numbers.get(tenant)?,
                None => TenantId::OPERATOR,
            };
            Some(PlainKey { hash: key.hash, tenant, name: key.name.clone(), role: key.role })
        };
        let plain = self.files.keys().iter().filter_map(plain).collect();
        Ok((Snapshot::build(pepper.clone(), rows, keys, plain, previous)?, faults))
    }

    fn say(&mut self, faults: Vec<String>) {
        for fault in faults.iter().filter(|fault| !self.faults.contains(fault)) {
            tracing::warn!("{fault}");
        }
        self.faults = faults;
    }
}

/// The greatest id, from which the next page goes on.
fn last<T>(rows: &BTreeMap<String, T>) -> &str {
    rows.last_key_value().map_or("", |(id, _)| id)
}

/// Puts a row in its place, or takes it away where there is none any more.
fn renew<T>(rows: &mut BTreeMap<String, T>, id: &str, row: Result<T, StoreError>) -> Result<(), StoreError> {
    match row {
        Ok(row) => drop(rows.insert(id.to_owned(), row)),
        Err(StoreError::Missing { .. }) => drop(rows.remove(id)),
        Err(error) => return Err(error),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
