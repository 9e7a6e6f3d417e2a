use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use axum::http::HeaderMap;

use super::*;
use crate::identity::{CidrList, Door, Now};

/// Writes a key as its owner's alone.
fn put(path: &Path, key: &str) {
    fs::write(path, key).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("set");
}

/// Tenants `a` and `b`, each with a key in a file, and the operators' key.
fn rig(folder: &Path) -> (Reading, Identity) {
    let tenants = ["a", "b"].map(|name| {
        put(&folder.join(name), &format!("key-{name}"));
        let text = format!("name = {name:?}\n[[keys]]\nkey_file = {:?}\n", folder.join(name));
        toml::from_str::<TenantTable>(&text).expect("a table")
    });
    put(&folder.join("admin"), "key-admin");
    let pepper = Pepper::random().expect("a pepper");
    let everybody = Everybody { pepper, tenants: tenants.into(), admin_key_file: Some(folder.join("admin")) };
    let (snapshot, faults) = everybody.read(None).expect("read");
    assert!(faults.is_empty(), "{faults:?}");
    let mut reading = Reading::of(everybody);
    let identity = Identity::new(snapshot, Issuers::default(), CidrList::default());
    reading.again(&identity);
    (reading, identity)
}

/// Who of these is known: `admin` is asked of the operators' listener.
async fn known(identity: &Identity, keys: &[&str]) -> Vec<String> {
    let mut known = Vec::new();
    for key in keys {
        let mut headers = HeaderMap::new();
        headers.append("authorization", format!("Bearer {key}").parse().expect("a header"));
        let door = if key.contains("admin") { Door::Admin } else { Door::Api };
        if identity.identify(&headers, None, door, Now::read()).await.is_ok() {
            known.push((*key).to_owned());
        }
    }
    known
}

const ALL: &[&str] = &["key-a", "key-b", "key-admin", "new-a", "new-b", "new-admin"];

#[tokio::test]
async fn a_bad_file_is_nobodys_key_and_holds_up_no_other() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut reading, identity) = rig(folder.path());
    assert_eq!(known(&identity, ALL).await, ["key-a", "key-b", "key-admin"]);
    put(&folder.path().join("a"), "two words");
    put(&folder.path().join("b"), "new-b");
    reading.again(&identity);
    assert_eq!(known(&identity, ALL).await, ["key-admin", "new-b"]);
    assert_eq!(reading.faults.len(), 1, "{:?}", reading.faults);
    put(&folder.path().join("a"), "new-a");
    reading.again(&identity);
    assert_eq!(known(&identity, ALL).await, ["key-admin", "new-a", "new-b"]);
    assert!(reading.faults.is_empty() && !reading.due);
}

#[tokio::test]
async fn a_file_that_is_gone_revokes_its_key() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut reading, identity) = rig(folder.path());
    for name in ["a", "admin"] {
        fs::remove_file(folder.path().join(name)).expect("removed");
    }
    reading.again(&identity);
    assert_eq!(known(&identity, ALL).await, ["key-b"]);
    put(&folder.path().join("admin"), "new-admin");
    reading.again(&identity);
    assert_eq!(known(&identity, ALL).await, ["key-b", "new-admin"]);
}

#[tokio::test]
async fn what_failed_is_tried_again_without_a_change_of_content() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut reading, identity) = rig(folder.path());
    let path = folder.path().join("a");
    fs::write(&path, "new-a").expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
    reading.again(&identity);
    assert_eq!(known(&identity, ALL).await, ["key-b", "key-admin"], "others can read it");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
    reading.again(&identity);
    assert_eq!(known(&identity, ALL).await, ["key-b", "key-admin", "new-a"]);
}

#[tokio::test]
async fn a_change_between_the_start_and_the_first_look_is_seen() {
    let folder = tempfile::tempdir().expect("folder");
    let (reading, identity) = rig(folder.path());
    put(&folder.path().join("a"), "new-a");
    Reading::of(reading.everybody).again(&identity);
    assert_eq!(known(&identity, ALL).await, ["key-b", "key-admin", "new-a"]);
}

#[tokio::test]
async fn a_key_that_two_have_is_neithers() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut reading, identity) = rig(folder.path());
    put(&folder.path().join("a"), "key-admin");
    reading.again(&identity);
    assert_eq!(known(&identity, ALL).await, ["key-b"]);
    assert_eq!(reading.faults.len(), 2, "{:?}", reading.faults);
}
