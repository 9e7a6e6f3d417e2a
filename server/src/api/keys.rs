//! Keys: made, listed, rotated, revoked. A tenant's administrator looks after its own at `/v1/keys`, operators after everybody's at
//! `/admin/v1/tenants/{id}/keys`, where the tenant `operator` stands for those who run the server.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{Path, Request, State},
    http::request::Parts,
    response::Response,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use weir_runtime::{
    TenantId,
    store::{Change, Key as StoredKey, NewKey, OPERATOR_NAME, Role as StoredRole, StoreError, Tx},
};

use super::{
    App,
    edit::{Edit, Page, Wanted, caller, patched},
    respond,
};
use crate::{
    error::{ApiError, ErrorBody},
    everybody::key_row,
    identity::{self, ApiKey, OVERLAP_MAX, Role, RotateError, Scope, Scopes},
};

/// How long a rotated key works beside its successor when nobody says: long enough to roll out the new one.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);

/// A key as it may be shown.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Key {
    /// The part that may be seen: `wk_...`.
    id: String,
    /// `key`.
    object: &'static str,
    /// Whose; null of the operators'.
    tenant: Option<String>,
    /// For people.
    name: String,
    /// `member`, `tenant_admin`, `operator` or `auditor`.
    role: &'static str,
    /// What it may do.
    scopes: BTreeSet<String>,
    /// The models it may use, of those its tenant may; null is all of them.
    models: Option<BTreeSet<String>>,
    /// From when on it is good for nothing, in microseconds since 1970.
    expires_us: Option<i64>,
    /// When it was made.
    created_us: i64,
    /// By which credential.
    created_by: String,
    /// When it was revoked.
    revoked_us: Option<i64>,
    /// When it was last used, to within seconds.
    last_used_us: Option<i64>,
    /// The key that it takes the place of.
    replaces: Option<String>,
    /// The key itself, in the answer that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl From<StoredKey> for Key {
    fn from(key: StoredKey) -> Self {
        Key {
            id: key.id,
            object: "key",
            tenant: key.tenant,
            name: key.name,
            role: key.role.word(),
            scopes: key.scopes,
            models: key.models,
            expires_us: key.expires_us,
            created_us: key.created_us,
            created_by: key.created_by,
            revoked_us: key.revoked_us,
            last_used_us: key.last_used_us,
            replaces: key.replaces,
            key: None,
        }
    }
}

/// Whose keys are meant.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    /// None of those who run the server.
    pub(super) tenant: Option<String>,
    pub(super) number: TenantId,
}

impl Owner {
    /// By the id in an operators' path.
    pub(super) async fn named(tx: &mut Tx, id: &str) -> Result<Self, ApiError> {
        if id == OPERATOR_NAME {
            return Ok(Owner { tenant: None, number: TenantId::OPERATOR });
        }
        let tenant = tx.tenant(id).await?;
        Ok(Owner { tenant: Some(tenant.id), number: TenantId(tenant.number) })
    }

    /// The caller's own tenant.
    fn own(caller: &identity::Caller) -> Self {
        Owner { tenant: Some(caller.name.to_string()), number: caller.tenant }
    }

    /// A key of this owner; another's is as one that does not exist.
    async fn key(&self, tx: &mut Tx, id: &str) -> Result<StoredKey, ApiError> {
        let key = tx.key(self.tenant.as_deref(), id).await?;
        match key.tenant == self.tenant {
            true => Ok(key),
            false => Err(StoreError::Missing { kind: "key", id: id.to_owned() }.into()),
        }
    }
}

/// What is asked of a new key.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct KeyRequest {
    /// For people.
    name: Option<String>,
    /// `member` if nothing is said, of those who run the server `auditor`.
    role: Option<String>,
    /// All that the role allows, and its maker has, if nothing is said.
    scopes: Option<BTreeSet<String>>,
    /// Models; all of its tenant's if nothing is said.
    models: Option<BTreeSet<String>>,
    /// When it ends.
    expires_us: Option<i64>,
}

/// Makes a key for an owner, in a change under way.
pub(super) async fn make(
    edit: &Edit,
    change: &mut Change,
    owner: &Owner,
    asked: Map<String, Value>,
) -> Result<Key, ApiError> {
    let asked = patched(&KeyRequest::default(), asked)?;
    let wrong = |field: &str, message: String| ApiError::param(field, "invalid_value", message);
    let role = match asked.role.as_deref() {
        None if owner.tenant.is_some() => Role::Member,
        None => Role::Auditor,
        Some(word) => Role::parse(word).ok_or_else(|| {
            wrong("role", "Invalid 'role': must be member or tenant_admin, or operator or auditor.".into())
        })?,
    };
    let scopes = match &asked.scopes {
        Some(words) => Scopes::parse(words.iter().map(String::as_str))
            .map_err(|error| wrong("scopes", format!("Invalid 'scopes': {error}.")))?,
        None => role.scopes().and(edit.caller.scopes),
    };
    if asked.expires_us.is_some_and(|end| end <= edit.at_us) {
        return Err(wrong("expires_us", "Invalid 'expires_us': it has passed.".into()));
    }
    let wanted = identity::Wanted {
        tenant: owner.number,
        role,
        scopes,
        models: asked.models.clone(),
        expires_us: asked.expires_us,
    };
    edit.caller.hand_on(&wanted)?;
    let key = ApiKey::random().map_err(|error| ApiError::Internal(format!("No randomness: {error}.")))?;
    let new = NewKey {
        id: key.id(),
        tenant: owner.tenant.clone(),
        name: asked.name.unwrap_or_else(|| "key".into()),
        hash: key.hash(edit.everybody().pepper()).to_bytes(),
        role: stored(role),
        scopes: scopes.iter().map(|scope| scope.word().to_owned()).collect(),
        models: asked.models,
        expires_us: asked.expires_us,
    };
    let made = change.create_key(&new).await?;
    Ok(Key { key: Some(key.reveal().to_owned()), ..made.into() })
}

fn stored(role: Role) -> StoredRole {
    match role {
        Role::Member => StoredRole::Member,
        Role::TenantAdmin => StoredRole::TenantAdmin,
        Role::Operator => StoredRole::Operator,
        Role::Auditor => StoredRole::Auditor,
    }
}

pub(super) async fn page(app: &App, parts: &Parts, owner: &str) -> Result<Response, ApiError> {
    let wanted = Wanted::read(&parts.uri)?;
    let mut tx = app.kept()?.read().await?;
    let owner = Owner::named(&mut tx, owner).await?;
    let rows = match &owner.tenant {
        Some(tenant) => tx.keys(Some(tenant), &wanted.after, wanted.rows()).await?,
        None => tx.operators_keys(&wanted.after, wanted.rows()).await?,
    };
    Ok(respond::json(&wanted.page(rows, |key| key.id.clone(), Key::from)))
}

pub(super) async fn create(mut edit: Edit, owner: Option<&str>) -> Result<Response, ApiError> {
    let mut change = edit.begin().await?;
    let owner = edit.owner(&mut change, owner).await?;
    let asked = std::mem::take(&mut edit.body);
    let key = make(&edit, &mut change, &owner, asked).await?;
    edit.commit(change).await?;
    Ok(respond::json(&key))
}

pub(super) async fn rotate(mut edit: Edit, owner: Option<&str>, id: &str) -> Result<Response, ApiError> {
    let overlap = match edit.body.remove("overlap_s") {
        None | Some(Value::Null) => OVERLAP,
        Some(value) => {
            let overlap = value.as_u64().map(Duration::from_secs).filter(|overlap| *overlap <= OVERLAP_MAX);
            overlap.ok_or_else(|| {
                let most = OVERLAP_MAX.as_secs();
                ApiError::param("overlap_s", "invalid_value", format!("Invalid 'overlap_s': must be 0 to {most}."))
            })?
        }
    };
    let name = edit.take_text("name")?;
    edit.nothing_else()?;
    let mut change = edit.begin().await?;
    let owner = edit.owner(&mut change, owner).await?;
    let old = owner.key(change.tx(), id).await?;
    let numbers = owner.tenant.iter().map(|tenant| (tenant.clone(), owner.number)).collect::<BTreeMap<_, _>>();
    let ended = |error: RotateError| ApiError::Conflict { message: format!("Key '{id}': {error}."), code: "key_ended" };
    let row = key_row(&old, &numbers).ok_or_else(|| ended(RotateError::Ended))?;
    edit.caller.hand_on(&identity::Wanted {
        tenant: row.tenant,
        role: row.role,
        scopes: row.scopes,
        models: row.models.clone(),
        expires_us: row.expires_us,
    })?;
    let pepper = edit.everybody().pepper();
    let (key, row, until) = row.rotate(pepper, edit.at_us, overlap, &edit.actor.id).map_err(ended)?;
    let new = NewKey {
        id: row.id,
        tenant: old.tenant.clone(),
        name: name.unwrap_or(old.name),
        hash: row.hash.to_bytes(),
        role: old.role,
        scopes: old.scopes,
        models: row.models,
        expires_us: row.expires_us,
    };
    let made = change.rotate_key(id, until, &new).await?;
    edit.commit(change).await?;
    Ok(respond::json(&Key { key: Some(key.reveal().to_owned()), ..made.into() }))
}

pub(super) async fn revoke(mut edit: Edit, owner: Option<&str>, id: &str) -> Result<Response, ApiError> {
    let reason = edit.take_text("reason")?;
    edit.nothing_else()?;
    let mut change = edit.begin().await?;
    let owner = edit.owner(&mut change, owner).await?;
    if !edit.caller.may(Scope::KeysWrite) {
        return Err(ApiError::Forbidden("Your key does not allow this.".into()));
    }
    owner.key(change.tx(), id).await?;
    let key = change.revoke_key(owner.tenant.as_deref(), id, reason.as_deref()).await?;
    edit.commit(change).await?;
    Ok(respond::json(&Key::from(key)))
}

impl Edit {
    /// Whose keys are meant: those of the tenant in the path, or of the caller's own.
    async fn owner(&self, change: &mut Change, named: Option<&str>) -> Result<Owner, ApiError> {
        match named {
            Some(id) => Owner::named(change.tx(), id).await,
            None => Ok(Owner::own(&self.caller)),
        }
    }
}

/// Lists the keys of the caller's tenant.
#[utoipa::path(
    get, path = "/v1/keys", tag = "Keys",
    params(("after" = Option<String>, Query, description = "`next` of the page before"),
           ("limit" = Option<u32>, Query, description = "Rows of a page")),
    responses((status = 200, description = "A page", body = Page<Key>),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn list_own(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let parts = request.into_parts().0;
    let own = caller(&parts)?.name;
    page(&app, &parts, &own).await
}

/// Makes a key of the caller's tenant, no wider than the caller's own.
#[utoipa::path(
    post, path = "/v1/keys", tag = "Keys", request_body = KeyRequest,
    responses((status = 200, description = "The key, in the clear: this once", body = Key),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn create_own(edit: Edit) -> Result<Response, ApiError> {
    create(edit, None).await
}

/// Makes a key that takes the place of another, which works on for `overlap_s` seconds: a day, if nothing is said.
#[utoipa::path(
    post, path = "/v1/keys/{id}/rotate", tag = "Keys", params(("id" = String, Path, description = "The old key's id")),
    responses((status = 200, description = "The new key, in the clear: this once", body = Key),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn rotate_own(Path(id): Path<String>, edit: Edit) -> Result<Response, ApiError> {
    rotate(edit, None, &id).await
}

/// Revokes a key for ever.
#[utoipa::path(
    post, path = "/v1/keys/{id}/revoke", tag = "Keys", params(("id" = String, Path, description = "The key's id")),
    responses((status = 200, description = "The key", body = Key),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn revoke_own(Path(id): Path<String>, edit: Edit) -> Result<Response, ApiError> {
    revoke(edit, None, &id).await
}
