#![allow(clippy::unwrap_used)]
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use axum::http::HeaderMap;
use weir_runtime::store::{Actor, ActorKind, Limits, NewKey, NewTenant, Role as StoreRole, Status, TenantSettings};

use super::*;
use crate::{
    config::TenantTable,
    identity::{ApiKey, Caller, Denied, Door, Now, Role},
};

/// Writes a key as its owner's alone.
fn put(path: &Path, key: &str) {
    fs::write(path, key).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn table(text: &str) -> TenantTable {
    toml::from_str(text).unwrap()
}

/// A server's everybody: the store in a folder, tenants `a` and `b` of the configuration, each with a key in a file, and the
/// operators' key.
async fn rig(folder: &Path) -> Arc<Everybody> {
    let tables = ["a", "b"].map(|name| {
        put(&folder.join(name), &format!("key-{name}"));
        table(&format!("name = {name:?}\nweight = 3\n[[keys]]\nkey_file = {:?}\n", folder.join(name)))
    });
    put(&folder.join("admin"), "key-admin");
    open(folder, &tables).await
}

async fn open(folder: &Path, tables: &[TenantTable]) -> Arc<Everybody> {
    let url = format!("sqlite:{}", folder.join("weir.db").display());
    let store = Store::open(&url, &Default::default()).await.unwrap();
    import(&store, tables, 1).await.unwrap();
    let files = FileKeys::new(tables, Some(folder.join("admin")));
    let pepper = Pepper::open(&folder.join("pepper")).unwrap();
    let pools = BTreeSet::new();
    Everybody::open(store, pepper, files, Issuers::default(), CidrList::default(), pools).await.unwrap()
}

async fn ask(everybody: &Everybody, key: &str, door: Door) -> Result<Caller, Denied> {
    let mut headers = HeaderMap::new();
    headers.append("authorization", format!("Bearer {key}").parse().unwrap());
    everybody.identity().identify(&headers, None, door, Now::read()).await
}

/// Who of these is known: `admin` is asked of the operators' listener.
async fn known(everybody: &Everybody, keys: &[&str]) -> Vec<String> {
    let mut known = Vec::new();
    for key in keys {
        let door = if key.contains("admin") { Door::Admin } else { Door::Api };
        if ask(everybody, key, door).await.is_ok() {
            known.push((*key).to_owned());
        }
    }
    known
}

const ALL: &[&str] = &["key-a", "key-b", "key-admin", "new-a", "new-b", "new-admin"];

#[tokio::test]
async fn a_bad_file_is_nobodys_key_and_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let everybody = rig(folder.path()).await;
    assert_eq!(known(&everybody, ALL).await, ["key-a", "key-b", "key-admin"]);
    put(&folder.path().join("a"), "two words");
    put(&folder.path().join("b"), "new-b");
    everybody.look_at_files().await.unwrap();
    assert_eq!(known(&everybody, ALL).await, ["key-admin", "new-b"]);
    assert_eq!(everybody.known.lock().await.files.faults.len(), 1);
    put(&folder.path().join("a"), "new-a");
    everybody.look_at_files().await.unwrap();
    assert_eq!(known(&everybody, ALL).await, ["key-admin", "new-a", "new-b"]);
    assert!(everybody.known.lock().await.files.faults.is_empty());
}

#[tokio::test]
async fn a_file_that_is_gone_revokes_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let everybody = rig(folder.path()).await;
    for name in ["a", "admin"] {
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    everybody.look_at_files().await.unwrap();
    assert_eq!(known(&everybody, ALL).await, ["key-b"]);
    put(&folder.path().join("admin"), "new-admin");
    everybody.look_at_files().await.unwrap();
    assert_eq!(known(&everybody, ALL).await, ["key-b", "new-admin"]);
}

#[tokio::test]
async fn what_failed_is_tried_again_without_a_change_of_content() {
    let folder = tempfile::tempdir().unwrap();
    let everybody = rig(folder.path()).await;
    let path = folder.path().join("a");
    fs::write(&path, "new-a").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    everybody.look_at_files().await.unwrap();
    assert_eq!(known(&everybody, ALL).await, ["key-b", "key-admin"], "others can read it");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    everybody.look_at_files().await.unwrap();
    assert_eq!(known(&everybody, ALL).await, ["key-b", "key-admin", "new-a"]);
}

#[tokio::test]
async fn a_key_that_two_have_is_neithers() {
    let folder = tempfile::tempdir().unwrap();
    let everybody = rig(folder.path()).await;
    put(&folder.path().join("a"), "key-admin");
    everybody.look_at_files().await.unwrap();
    assert_eq!(known(&everybody, ALL).await, ["key-b"]);
    assert_eq!(everybody.known.lock().await.files.faults.len(), 2);
}

#[tokio::test]
async fn tenants_of_the_file_are_put_into_the_store_once_and_then_the_store_rules() {
    let folder = tempfile::tempdir().unwrap();
    let everybody = rig(folder.path()).await;
    let store = everybody.store().clone();
    let made: Vec<(String, u32)> =
        store.tenants("", 10).await.unwrap().into_iter().map(|tenant| (tenant.id, tenant.number)).collect();
    assert_eq!(made, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    let weights =
        |specs: Vec<TenantSpec>| specs.iter().map(|spec| (spec.name.clone(), spec.weight)).collect::<Vec<_>>();
    assert_eq!(weights(everybody.specs().await), [("a".to_owned(), 3), ("b".to_owned(), 3)]);
    let head = store.changes_head().await.unwrap();
    drop(everybody);
    store.close().await;
    // The file says something else now, in another order, and has a tenant more.
    let tables = [table("name = \"c\""), table("name = \"b\"\nweight = 9"), table("name = \"a\"\nweight = 3")];
    let again = open(folder.path(), &tables).await;
    let expected = [("a".to_owned(), 3), ("b".to_owned(), 3), ("c".to_owned(), 1)];
    assert_eq!(weights(again.specs().await), expected);
    assert_eq!(again.store().changes_head().await.unwrap(), head + 1, "one tenant was made and nothing was changed");
}

/// A stored key of a tenant; what its bearer sends.
async fn stored_key(everybody: &Everybody, tenant: &str) -> ApiKey {
    let key = ApiKey::random().unwrap();
    let new = NewKey {
        id: key.id(),
        tenant: Some(tenant.into()),
        name: "k".into(),
        hash: key.hash(everybody.pepper()).to_bytes(),
        role: StoreRole::Member,
        scopes: ["inference".to_owned(), "of-a-later-version".to_owned()].into(),
        models: None,
        expires_us: None,
    };
    let mut change = everybody.store().change(&Actor::new(ActorKind::Operator, "o"), 5).await.unwrap();
    change.create_key(&new).await.unwrap();
    change.commit().await.unwrap();
    key
}

#[tokio::test]
async fn what_is_committed_holds_after_the_next_look() {
    let folder = tempfile::tempdir().unwrap();
    let everybody = rig(folder.path()).await;
    let key = stored_key(&everybody, "a").await;
    assert_eq!(ask(&everybody, key.reveal(), Door::Api).await.unwrap_err(), Denied::Unknown);
    everybody.catch_up().await.unwrap();
    let caller = ask(&everybody, key.reveal(), Door::Api).await.unwrap();
    assert_eq!((&*caller.name, caller.role, caller.scopes.to_string()), ("a", Role::Member, "inference".to_owned()));
    assert_eq!((caller.account.plan.as_str(), caller.account.limits.weight), ("own", Some(3)));
    let change = async |status, reason: &str| {
        let mut change = everybody.store().change(&Actor::system(), 6).await.unwrap();
        let version = change.tx().tenant("a").await.unwrap().version;
        change.set_status("a", version, status, Some(reason)).await.unwrap();
        change.commit().await.unwrap();
        everybody.catch_up().await.unwrap();
        (ask(&everybody, key.reveal(), Door::Api).await.map(drop), ask(&everybody, "key-a", Door::Api).await.map(drop))
    };
    let both = |denied: Denied| (Err(denied.clone()), Err(denied));
    assert_eq!(change(Status::Suspended, "unpaid").await, both(Denied::Suspended(Some("unpaid".into()))));
    assert_eq!(change(Status::Pending, "no contract").await, both(Denied::Pending("no contract".into())));
    assert_eq!(change(Status::Trial, "").await, (Ok(()), Ok(())));
    let mut revoking = everybody.store().change(&Actor::system(), 7).await.unwrap();
    revoking.revoke_key(None, &key.id(), None).await.unwrap();
    revoking.commit().await.unwrap();
    everybody.catch_up().await.unwrap();
    assert_eq!(ask(&everybody, key.reveal(), Door::Api).await.unwrap_err(), Denied::Unknown);
}

#[tokio::test]
async fn a_plans_change_reaches_its_tenants() {
    let folder = tempfile::tempdir().unwrap();
    let everybody = rig(folder.path()).await;
    let mut change = everybody.store().change(&Actor::system(), 6).await.unwrap();
    let limits = Limits { requests_per_minute: Some(7), ..Limits::default() };
    change.update_plan("own", 1, &limits).await.unwrap();
    change.commit().await.unwrap();
    everybody.catch_up().await.unwrap();
    let caller = ask(&everybody, "key-a", Door::Api).await.unwrap();
    assert_eq!((caller.account.limits.requests_per_minute, caller.account.limits.weight), (Some(7), Some(3)));
}

#[tokio::test]
async fn uses_are_written_down_and_another_pepper_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let everybody = rig(folder.path()).await;
    let key = stored_key(&everybody, "a").await;
    everybody.catch_up().await.unwrap();
    ask(&everybody, key.reveal(), Door::Api).await.unwrap();
    everybody.note_uses().await.unwrap();
    let used = everybody.store().key(Some("a"), &key.id()).await.unwrap().last_used_us;
    assert!(used.is_some_and(|at| at > 1_700_000_000_000_000), "{used:?}");
    let other = Pepper::random().unwrap();
    let store = everybody.store().clone();
    let opened =
        Everybody::open(store, other, FileKeys::default(), Issuers::default(), CidrList::default(), BTreeSet::new());
    assert!(opened.await.unwrap_err().to_string().contains("pepper"));
}

#[tokio::test]
async fn a_list_of_addresses_that_cannot_be_read_opens_to_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let everybody = rig(folder.path()).await;
    let known = everybody.known.lock().await;
    let (mut tenant, plan) = (known.tenants["a"].clone(), &known.plans["own"]);
    tenant.settings.ip_allow = vec!["10.0.0.0/8".into(), "10.0.0.1/8".into()];
    let mut faults = Vec::new();
    let row = tenant_row(&tenant, plan, &mut faults);
    assert_eq!((row.standing, faults.len()), (crate::identity::Standing::Suspended(None), 1));
}

#[test]
fn every_limit_of_a_table_is_a_limit_of_the_store() {
    let table = table(
        "name = \"x\"\nweight = 2\nqueue_len_max = 3\nrunning_max = 4\nkv_blocks_floor = 5\nkv_blocks_ceiling = 6\n\
         device_seconds_per_hour = 7.5\ndevice_seconds_per_day = 8.0\ndevice_seconds_per_month = 9.0\n\
         cache_blocks_floor = 10\ncache_blocks_ceiling = 11\nttft_target = \"12ms\"\nitl_target = \"13ms\"\n\
         priority_ceiling = 1\npool = \"p\"\npool_only = true\n",
    );
    let imported = NewTenant { id: "x".into(), settings: import::settings(&table) };
    assert_eq!(TenantSpec::of_limits("x", "", &imported.settings.overrides), table.spec());
    let tenant = weir_runtime::store::Tenant {
        id: "x".into(),
        number: 1,
        settings: imported.settings.clone(),
        version: 1,
        created_us: 0,
        updated_us: 0,
    };
    let plan = Plan { id: "own".into(), limits: Limits::default(), version: 1, created_us: 0, updated_us: 0 };
    let with = rows::spec(&tenant, &plan, &BTreeSet::from(["p".to_owned()]));
    assert_eq!(with, TenantSpec { plan: "own".into(), ..table.spec() });
    let without = rows::spec(&tenant, &plan, &BTreeSet::new());
    assert_eq!((without.pool, without.pool_only), (None, false));
    assert_eq!(TenantSettings { overrides: Limits::default(), ..imported.settings }, TenantSettings::named("x", "own"));
}
