//! The arrows of the house: which crate may depend on which. ARCHITECTURE.md draws them; this reads the manifests.

use std::{collections::BTreeSet, fs, path::Path};

const EDGES: [(&str, &[&str]); 6] = [
    ("scheduler", &[]),
    ("kernels", &[]),
    ("models", &["kernels"]),
    ("runtime", &["kernels", "models", "scheduler"]),
    ("bench", &["scheduler"]),
    ("server", &["bench", "runtime"]),
];

fn manifest(folder: &str) -> toml::Table {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let text = fs::read_to_string(root.join(folder).join("Cargo.toml")).expect("a manifest");
    text.parse().expect("TOML")
}

/// Names of a table's keys: the dependencies of all targets and of the build.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut tables = vec![manifest];
    tables.extend(
        manifest
            .get("target")
            .and_then(|t| t.as_table())
            .into_iter()
            .flat_map(|t| t.values())
            .filter_map(|t| t.as_table()),
    );
    for table in tables {
        for section in ["dependencies", "build-dependencies"] {
            names.extend(table.get(section).and_then(|t| t.as_table()).into_iter().flat_map(|t| t.keys().cloned()));
        }
    }
    names
}

#[test]
fn crates_depend_on_each_other_as_drawn_and_in_no_other_way() {
    for (folder, allowed) in EDGES {
        let found: BTreeSet<String> = dependencies(&manifest(folder))
            .iter()
            .filter_map(|name| name.strip_prefix("weir-").map(String::from))
            .collect();
        let allowed: BTreeSet<String> = allowed.iter().map(|name| name.to_string()).collect();
        assert_eq!(found, allowed, "{folder}");
    }
}

#[test]
fn every_crate_is_one_of_the_six() {
    let root = manifest(".");
    let members = root["workspace"]["members"].as_array().expect("members");
    let members: BTreeSet<&str> = members.iter().filter_map(|m| m.as_str()).collect();
    assert_eq!(members, EDGES.iter().map(|(folder, _)| *folder).collect());
}

#[test]
fn cudarc_is_named_by_kernels_only() {
    for (folder, _) in EDGES.iter().filter(|(folder, _)| *folder != "kernels") {
        assert!(!dependencies(&manifest(folder)).contains("cudarc"), "{folder}");
    }
}

#[test]
fn the_scheduler_depends_on_nothing() {
    assert_eq!(dependencies(&manifest("scheduler")), BTreeSet::new());
}
