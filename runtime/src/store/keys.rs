//! API keys: who may speak for a tenant or for the operator. The store has the keyed hash of a key's secret and never the secret.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    Store, Tx,
    audit::Event,
    change::Change,
    error::StoreError,
    page,
    settings::{check_id, check_name, from_json, json},
    value::{Row, args},
};

/// What a key's bearer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Uses models for a tenant.
    Member,
    /// Also looks after the tenant's keys and sees its use.
    TenantAdmin,
    /// Runs the server; of no tenant.
    Operator,
    /// Reads what an operator reads, and changes nothing; of no tenant.
    Auditor,
}

impl Role {
    /// As it is stored.
    pub fn word(self) -> &'static str {
        match self {
            Role::Member => "member",
            Role::TenantAdmin => "tenant_admin",
            Role::Operator => "operator",
            Role::Auditor => "auditor",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Role::Member, Role::TenantAdmin, Role::Operator, Role::Auditor].into_iter().find(|role| role.word() == word)
    }

    /// Whether its keys belong to a tenant.
    pub fn is_of_tenant(self) -> bool {
        matches!(self, Role::Member | Role::TenantAdmin)
    }
}

/// A key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The part that may be seen: `wk_...`.
    pub id: String,
    /// Whose; none of the operator's.
    pub tenant: Option<String>,
    /// For people.
    pub name: String,
    /// The keyed hash of the secret.
    pub hash: [u8; 32],
    /// What its bearer is.
    pub role: Role,
    /// What its bearer may do.
    pub scopes: BTreeSet<String>,
    /// The models it may use, of those that its tenant may; absent is all of them.
    pub models: Option<BTreeSet<String>>,
    /// From when on it is good for nothing.
    pub expires_us: Option<i64>,
    /// When it was made.
    pub created_us: i64,
    /// By whom.
    pub created_by: String,
    /// When it was revoked.
    pub revoked_us: Option<i64>,
    /// When it was last shown, as far as that has been written down.
    pub last_used_us: Option<i64>,
    /// The key that it takes the place of.
    pub replaces: Option<String>,
}

/// A key to be made.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "as in Key")]
pub struct NewKey {
    pub id: String,
    pub tenant: Option<String>,
    pub name: String,
    pub hash: [u8; 32],
    pub role: Role,
    pub scopes: BTreeSet<String>,
    pub models: Option<BTreeSet<String>>,
    pub expires_us: Option<i64>,
}

/// What the log says of a key: everything but the hash.
#[derive(Serialize)]
struct Told<'a> {
    name: &'a str,
    role: Role,
    scopes: &'a BTreeSet<String>,
    models: &'a Option<BTreeSet<String>>,
    expires_us: Option<i64>,
    replaces: Option<&'a str>,
}

fn key(row: &Row) -> Result<Key, StoreError> {
    let mut at = row.fields();
    let (id, tenant, name, hash, role) = (at.text()?, at.text_or_none()?, at.text()?, at.hash("keys")?, at.text()?);
    let role = Role::parse(&role).ok_or_else(|| StoreError::corrupt("keys", &id, "its role is unknown"))?;
    let scopes = from_json("keys", &id, &at.text()?)?;
    let models = at.text_or_none()?.map(|text| from_json("keys", &id, &text)).transpose()?;
    Ok(Key {
        id,
        tenant,
        name,
        hash,
        role,
        scopes,
        models,
        expires_us: at.int_or_none()?,
        created_us: at.int()?,
        created_by: at.text()?,
        revoked_us: at.int_or_none()?,
        last_used_us: at.int_or_none()?,
        replaces: at.text_or_none()?,
    })
}

impl Tx {
    /// A key by its visible part, revoked and expired ones among them. With a tenant, another's key is as one that does not exist.
    pub async fn key(&mut self, tenant: Option<&str>, id: &str) -> Result<Key, StoreError> {
        let sql = "SELECT id, tenant, name, hash, role, scopes, models, expires_us, created_us, created_by, revoked_us, \
                   last_used_us, replaces FROM keys WHERE id = $1";
        let found = self.row(sql, args![id]).await?.as_ref().map(key).transpose()?;
        let own = found.filter(|key| tenant.is_none() || key.tenant.as_deref() == tenant);
        own.ok_or_else(|| StoreError::missing("key", id))
    }

    /// Keys in the order of their ids, those after `after`: a tenant's, or everybody's.
    pub async fn keys(&mut self, tenant: Option<&str>, after: &str, limit: u32) -> Result<Vec<Key>, StoreError> {
        let all = "SELECT id, tenant, name, hash, role, scopes, models, expires_us, created_us, created_by, revoked_us, \
                   last_used_us, replaces FROM keys WHERE id > $1 ORDER BY id LIMIT $2";
        let own = "SELECT id, tenant, name, hash, role, scopes, models, expires_us, created_us, created_by, revoked_us, \
                   last_used_us, replaces FROM keys WHERE id > $1 AND tenant = $3 ORDER BY id LIMIT $2";
        let rows = match tenant {
            None => self.rows(all, args![after, page(limit)]).await?,
            Some(tenant) => self.rows(own, args![after, page(limit), tenant]).await?,
        };
        rows.iter().map(key).collect()
    }

    /// Keys of those who run the server, which are no tenant's, in the order of their ids, those after `after`.
    pub async fn operators_keys(&mut self, after: &str, limit: u32) -> Result<Vec<Key>, StoreError> {
        let sql = "SELECT id, tenant, name, hash, role, scopes, models, expires_us, created_us, created_by, revoked_us, \
                   last_used_us, replaces FROM keys WHERE id > $1 AND tenant IS NULL ORDER BY id LIMIT $2";
        self.rows(sql, args![after, page(limit)]).await?.iter().map(key).collect()
    }
}

impl Store {
    /// See [`Tx::key`].
    pub async fn key(&self, tenant: Option<&str>, id: &str) -> Result<Key, StoreError> {
        self.read().await?.key(tenant, id).await
    }

    /// See [`Tx::keys`]; `after` is empty for the first page.
    pub async fn keys(&self, tenant: Option<&str>, after: &str, limit: u32) -> Result<Vec<Key>, StoreError> {
        self.read().await?.keys(tenant, after, limit).await
    }

    /// Writes down when keys were last shown, many at a time. Times never go back, and keys that are gone are passed over.
    pub async fn keys_used(&self, used: &[(&str, i64)]) -> Result<(), StoreError> {
        let mut used = used.to_vec();
        // In one order everywhere, so that two replicas cannot wait for each other.
        used.sort_unstable();
        let mut tx = self.write().await?;
        let sql = "UPDATE keys SET last_used_us = $2 WHERE id = $1 AND COALESCE(last_used_us, 0) < $2";
        for (id, at_us) in used {
            tx.execute(sql, args![id, at_us]).await?;
        }
        tx.commit().await
    }
}

impl Change {
    /// Makes a key.
    pub async fn create_key(&mut self, new: &NewKey) -> Result<Key, StoreError> {
        self.insert_key(new, None).await
    }

    /// Makes a key that takes the place of another, which goes on for a while: until `old_until_us`, or its own end if that is
    /// sooner.
    pub async fn rotate_key(&mut self, old: &str, old_until_us: i64, new: &NewKey) -> Result<Key, StoreError> {
        let before = self.tx().key(new.tenant.as_deref(), old).await?;
        if before.tenant != new.tenant {
            return Err(StoreError::missing("key", old));
        }
        if before.revoked_us.is_some() || before.expires_us.is_some_and(|end| end <= self.at_us()) {
            return Err(StoreError::invalid("key", "a key that has ended has no successor"));
        }
        let until = before.expires_us.map_or(old_until_us, |end| end.min(old_until_us));
        self.tx().execute("UPDATE keys SET expires_us = $2 WHERE id = $1", args![old, until]).await?;
        let (was, is) = (ends(before.expires_us)?, ends(Some(until))?);
        let tenant = before.tenant.as_deref();
        self.record(Event::of("key.expire", "key", old).tenant(tenant).before(&was).after(&is)).await?;
        self.insert_key(new, Some(old)).await
    }

    async fn insert_key(&mut self, new: &NewKey, replaces: Option<&str>) -> Result<Key, StoreError> {
        check_id("id", &new.id)?;
        check_name("name", &new.name)?;
        if new.role.is_of_tenant() != new.tenant.is_some() {
            let message =
                format!("{} is {}of a tenant", new.role.word(), if new.tenant.is_some() { "not " } else { "" });
            return Err(StoreError::invalid("role", message));
        }
        let told = Told {
            name: &new.name,
            role: new.role,
            scopes: &new.scopes,
            models: &new.models,
            expires_us: new.expires_us,
            replaces,
        };
        let told = json("key", &told)?;
        let scopes = json("scopes", &new.scopes)?;
        let models = new.models.as_ref().map(|models| json("models", models)).transpose()?;
        let (at_us, by) = (self.at_us(), self.actor().id.clone());
        let sql = "INSERT INTO keys (id, tenant, name, hash, role, scopes, models, expires_us, created_us, created_by, \
                   revoked_us, last_used_us, replaces) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, NULL, NULL, $11)";
        let values = args![
            &new.id,
            &new.tenant,
            &new.name,
            &new.hash,
            new.role.word(),
            &scopes,
            &models,
            new.expires_us,
            at_us,
            &by,
            replaces,
        ];
        let tenant = new.tenant.as_deref();
        let made = self.tx().execute(sql, values).await;
        made.map_err(|e| e.or_exists("key", &new.id).or_missing("tenant", tenant.unwrap_or_default()))?;
        let action = if replaces.is_some() { "key.rotate" } else { "key.create" };
        self.record(Event::of(action, "key", &new.id).tenant(tenant).after(&told)).await?;
        Ok(Key {
            id: new.id.clone(),
            tenant: new.tenant.clone(),
            name: new.name.clone(),
            hash: new.hash,
            role: new.role,
            scopes: new.scopes.clone(),
            models: new.models.clone(),
            expires_us: new.expires_us,
            created_us: at_us,
            created_by: by,
            revoked_us: None,
            last_used_us: None,
            replaces: replaces.map(str::to_owned),
        })
    }

    /// Revokes a key for ever; once is as good as twice. With a tenant, another's key is as one that does not exist.
    pub async fn revoke_key(
        &mut self,
        tenant: Option<&str>,
        id: &str,
        reason: Option<&str>,
    ) -> Result<Key, StoreError> {
        let before = self.tx().key(tenant, id).await?;
        if before.revoked_us.is_some() {
            return Ok(before);
        }
        let at_us = self.at_us();
        self.tx().execute("UPDATE keys SET revoked_us = $2 WHERE id = $1", args![id, at_us]).await?;
        let event = Event::of("key.revoke", "key", id).tenant(before.tenant.as_deref()).reason(reason);
        self.record(event).await?;
        Ok(Key { revoked_us: Some(at_us), ..before })
    }
}

/// What the log says of a key's end.
fn ends(expires_us: Option<i64>) -> Result<String, StoreError> {
    json("expires_us", &serde_json::json!({ "expires_us": expires_us }))
}
