//! Keys that stand in the configuration, or in files that it names.

use std::{collections::HashMap, path::PathBuf};

use crate::{
    config::{KeySource, KeyTable, TenantTable},
    identity::{Role, Watched},
    keys::{KeyHash, read_key_file},
};

/// Where they are.
#[derive(Debug, Clone, Default)]
pub struct FileKeys {
    /// Names of tenants, each with its keys.
    tenants: Vec<(String, Vec<KeyTable>)>,
    /// The operators' key, unless there are none.
    admin_key_file: Option<PathBuf>,
}

/// One of them, known by its hash.
#[derive(Debug, Clone)]
pub(super) struct FileKey {
    pub(super) hash: KeyHash,
    /// Whose; none of the operators'.
    pub(super) tenant: Option<String>,
    pub(super) name: String,
    pub(super) role: Role,
}

impl FileKeys {
    /// The keys of these tenants, and of the operators.
    pub fn new(tenants: &[TenantTable], admin_key_file: Option<PathBuf>) -> Self {
        let tenants = tenants.iter().map(|tenant| (tenant.name.clone(), tenant.keys.clone())).collect();
        FileKeys { tenants, admin_key_file }
    }

    /// The keys as the files have them now. A key that cannot be had is nobody's, and one that two have is neither's; what
    /// is wrong is said beside. All others are there whatever is wrong with those.
    fn read(&self) -> (Vec<FileKey>, Vec<String>) {
        let (mut keys, mut faults) = (Vec::new(), Vec::new());
        for (tenant, tables) in &self.tenants {
            for table in tables {
                match read_one(table) {
                    Ok((hash, role)) => {
                        let name = format!("{tenant}/{}", table.name.as_deref().unwrap_or("without a name"));
                        keys.push(FileKey { hash, tenant: Some(tenant.clone()), name, role });
                    }
                    Err(error) => faults.push(format!("tenant `{tenant}`: {error}")),
                }
            }
        }
        match self.admin_key_file.as_deref().map(read_key_file) {
            None => {}
            Some(Err(error)) => faults.push(error.to_string()),
            Some(Ok(key)) => {
                keys.push(FileKey { hash: key.hash(), tenant: None, name: "operator".into(), role: Role::Operator });
            }
        }
        let mut owners: HashMap<String, usize> = HashMap::new();
        for key in &keys {
            *owners.entry(key.hash.hex()).or_default() += 1;
        }
        keys.retain(|key| {
            let alone = owners.get(&key.hash.hex()) == Some(&1);
            if !alone {
                faults.push(format!("key `{}` is another one, too: make another with `weir key new`", key.name));
            }
            alone
        });
        (keys, faults)
    }

    fn files(&self) -> Vec<PathBuf> {
        let keys = self.tenants.iter().flat_map(|(_, keys)| keys).filter_map(|key| key.key_file.clone());
        keys.chain(self.admin_key_file.clone()).collect()
    }
}

fn read_one(table: &KeyTable) -> Result<(KeyHash, Role), String> {
    let role = table.role()?;
    match table.source()? {
        KeySource::Hash(hash) => Ok((hash, role)),
        KeySource::File(path) => read_key_file(&path).map(|key| (key.hash(), role)).map_err(|e| e.to_string()),
    }
}

/// The files with keys, looked at again and again.
#[derive(Debug)]
pub(super) struct Reading {
    from: FileKeys,
    keys: Vec<FileKey>,
    watched: Watched,
    /// What was wrong the last time, which is said once. While anything is, files are read even if no content changes:
    /// whatever was wrong may pass without one.
    pub(super) faults: Vec<String>,
}

impl Reading {
    /// Reads them for the first time, and says what is wrong.
    pub(super) fn first(from: FileKeys) -> (Self, Vec<String>) {
        // Before they are read: a change in between is seen as one.
        let watched = Watched::new(from.files());
        let (keys, faults) = from.read();
        (Reading { from, keys, watched, faults: faults.clone() }, faults)
    }

    pub(super) fn keys(&self) -> &[FileKey] {
        &self.keys
    }

    /// Reads them again if they have changed, or if something was wrong; whether they were read.
    pub(super) fn again(&mut self) -> bool {
        let changed = self.watched.changed();
        if !changed && self.faults.is_empty() {
            return false;
        }
        let (keys, faults) = self.from.read();
        if changed {
            tracing::info!("read the files with keys again");
        }
        for fault in faults.iter().filter(|fault| !self.faults.contains(fault)) {
            tracing::warn!("{fault}; trying again");
        }
        if faults.is_empty() && !self.faults.is_empty() {
            tracing::info!("all keys are there again");
        }
        (self.keys, self.faults) = (keys, faults);
        true
    }
}
