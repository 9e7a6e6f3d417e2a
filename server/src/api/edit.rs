//! What the routes that look at and change the store share: pages, patches, versions, and who did it.

use std::sync::Arc;

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, Uri, header, request::Parts},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use weir_runtime::store::{Actor, ActorKind, Change, PAGE_LEN_MAX, StoreError};

use super::{App, RequestId, body, query::Query};
use crate::{
    error::ApiError,
    everybody::Everybody,
    http::Peer,
    identity::{AuthMethod, Caller, Now, Role},
    openai::json::parse_object,
};

/// Largest body: a tenant's settings, each of whose lists and maps may have 16 KiB.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Rows of a page when nobody says.
const PAGE_LEN: u32 = 100;

impl App {
    pub(super) fn everybody(&self) -> Result<&Arc<Everybody>, ApiError> {
        self.everybody.as_ref().ok_or_else(|| ApiError::Internal("This server has no store.".into()))
    }
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    object: &'static str,
    data: Vec<T>,
    /// Whether there are more.
    has_more: bool,
    /// What `after` has to be for the next page.
    next: Option<String>,
}

/// Which page is wanted.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The cursor: empty is the beginning.
    pub(super) after: String,
    /// How many.
    limit: u32,
}

impl Wanted {
    /// Names of the query.
    pub(super) const KNOWN: [&'static str; 2] = ["after", "limit"];

    /// Reads `after` and `limit`; the query may have other words that are known, too.
    pub(super) fn of(query: &Query) -> Result<Self, ApiError> {
        let limit = match query.get("limit") {
            None => PAGE_LEN,
            Some(text) => {
                let limit = text.parse().ok().filter(|limit| (1..=PAGE_LEN_MAX).contains(limit));
                let message = || format!("Invalid 'limit': must be 1 to {PAGE_LEN_MAX}.");
                limit.ok_or_else(|| ApiError::param("limit", "invalid_value", message()))?
            }
        };
        Ok(Wanted { after: query.get("after").unwrap_or_default().to_owned(), limit })
    }

    /// The same, where no other word is known.
    pub(super) fn read(uri: &Uri) -> Result<Self, ApiError> {
        Wanted::of(&Query::of(uri, &Wanted::KNOWN)?)
    }

    /// One more than the page holds, to see whether there is another.
    pub(super) fn rows(&self) -> u32 {
        (self.limit + 1).min(PAGE_LEN_MAX)
    }

    /// Makes a page of [`Wanted::rows`].
    pub(super) fn page<R, T>(&self, mut rows: Vec<R>, cursor: impl Fn(&R) -> String, show: impl Fn(R) -> T) -> Page<T> {
        // A full page of the store's longest may be the last one; the next is empty then.
        let most = self.limit.min(PAGE_LEN_MAX - 1) as usize;
        let has_more = rows.len() > most;
        rows.truncate(most);
        let next = rows.last().filter(|_| has_more).map(cursor);
        Page { object: "list", data: rows.into_iter().map(show).collect(), has_more, next }
    }
}

/// A request that changes something.
pub(crate) struct Edit {
    everybody: Arc<Everybody>,
    /// Who asks.
    pub(super) caller: Caller,
    /// The same for the log.
    pub(super) actor: Actor,
    /// What it says.
    pub(super) body: Map<String, Value>,
    /// The version that the client has read, by `If-Match` or `version`.
    version: Option<i64>,
    pub(super) at_us: i64,
}

/// What handlers of either listener share.
pub(super) trait Shared: Send + Sync {
    fn app(&self) -> &App;
}

impl Shared for Arc<App> {
    fn app(&self) -> &App {
        self
    }
}

/// Reads a request of a caller that was let in; its body is one JSON object or nothing.
impl<S: Shared> FromRequest<S> for Edit {
    type Rejection = ApiError;

    async fn from_request(request: Request, shared: &S) -> Result<Self, ApiError> {
        let app = shared.app();
        let everybody = app.everybody()?.clone();
        let (parts, content) = request.into_parts();
        let caller = caller(&parts)?;
        let bytes = body::read(&parts.headers, content, BODY_BYTES_MAX).await?;
        let mut body = if bytes.is_empty() { Map::new() } else { parse_object(&bytes)? };
        let said = body.remove("version").map(|version| version.as_i64().ok_or("version")).transpose();
        let matched = if_match(&parts.headers);
        let version = match (said, matched) {
            (Err(field), _) => {
                return Err(ApiError::param(field, "invalid_value", "Invalid 'version': not a whole number."));
            }
            (_, Err(())) => {
                return Err(ApiError::param("If-Match", "invalid_value", "If-Match must be a version, such as \"3\"."));
            }
            (Ok(Some(said)), Ok(Some(matched))) if said != matched => {
                return Err(ApiError::param("version", "invalid_value", "'version' and If-Match disagree."));
            }
            (Ok(said), Ok(matched)) => said.or(matched),
        };
        let actor = actor(app, &caller, &parts);
        Ok(Edit { everybody, caller, actor, body, version, at_us: Now::read().unix_us })
    }
}

impl Edit {
    pub(super) fn everybody(&self) -> &Everybody {
        &self.everybody
    }

    /// The version that the client has read.
    pub(super) fn version(&self) -> Result<i64, ApiError> {
        self.version.ok_or_else(|| {
            let message = "Say which version you have read, as `version` or in If-Match: nobody's change is lost then.";
            ApiError::param("version", "missing_required_parameter", message)
        })
    }

    /// The same, or the one that is there.
    pub(super) fn version_or(&self, found: i64) -> i64 {
        self.version.unwrap_or(found)
    }

    /// Takes a text out of the body.
    pub(super) fn take_text(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.body.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ApiError::param(field, "invalid_value", format!("Invalid '{field}': must be a text."))),
        }
    }

    /// Nothing else may be in the body.
    pub(super) fn nothing_else(&self) -> Result<(), ApiError> {
        match self.body.keys().next() {
            Some(field) => {
                Err(ApiError::param(field.clone(), "unknown_parameter", format!("Unknown parameter: '{field}'.")))
            }
            None => Ok(()),
        }
    }

    /// Begins the change; what it does is on record as the caller's.
    pub(super) async fn begin(&self) -> Result<Change, ApiError> {
        Ok(self.everybody.store().change(&self.actor, self.at_us).await?)
    }

    /// Makes it last. This server acts by it when this returns, the others within seconds.
    pub(super) async fn commit(&self, change: Change) -> Result<(), ApiError> {
        change.commit().await?;
        if let Err(error) = self.everybody.catch_up().await {
            // It is done all the same, and whoever keeps everybody fresh tries again within a second.
            tracing::warn!("a change was made, and this server does not know it yet: {error:#}");
        }
        Ok(())
    }
}

/// The caller that the guard has put there.
pub(super) fn caller(parts: &Parts) -> Result<Caller, ApiError> {
    parts.extensions.get().cloned().ok_or_else(|| ApiError::Internal("Nobody asks.".into()))
}

/// `Some` of a version in quotes or without; `Err` of anything else.
fn if_match(headers: &HeaderMap) -> Result<Option<i64>, ()> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().map_err(|_| ())?.trim();
    text.trim_matches('"').parse().map(Some).map_err(|_| ())
}

/// Who asks, and from where.
fn actor(app: &App, caller: &Caller, parts: &Parts) -> Actor {
    let kind = match caller.role {
        Role::Operator => ActorKind::Operator,
        Role::Auditor => ActorKind::Auditor,
        Role::Member | Role::TenantAdmin => ActorKind::Tenant,
    };
    let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
    let origin = app.identity.origin(&parts.headers, peer);
    let proxy = origin.peer.filter(|peer| origin.client != Some(*peer));
    let agent = parts.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    Actor {
        credential: Some(caller.credential.to_string()),
        method: Some(caller.method.word().to_owned()),
        issuer: (caller.method == AuthMethod::Jwt)
            .then(|| caller.credential.split_whitespace().next().unwrap_or_default().to_owned()),
        source: origin.client.map(|client| client.to_string()),
        proxies: proxy.map(|proxy| proxy.to_string()),
        agent: agent.map(str::to_owned),
        request: parts.extensions.get::<RequestId>().map(|id| id.0.to_string()),
        ..Actor::new(kind, &caller.credential)
    }
}

/// `base` with what a patch says in its place (RFC 7396): null takes a field away, an object goes into the one that is there. One
/// field after the other, so that the one that is wrong is named.
pub(super) fn patched<T: Serialize + DeserializeOwned>(base: &T, patch: Map<String, Value>) -> Result<T, ApiError> {
    let unwritable = |error: serde_json::Error| ApiError::Internal(error.to_string());
    let mut whole = serde_json::to_value(base).map_err(unwritable)?;
    let mut leaves = Vec::new();
    flatten(&whole, patch, &mut Vec::new(), &mut leaves);
    for (path, value) in leaves {
        put(&mut whole, &path, value);
        if let Err(error) = T::deserialize(&whole) {
            let field = path.join(".");
            return Err(ApiError::param(field.clone(), "invalid_value", format!("Invalid '{field}': {error}.")));
        }
    }
    T::deserialize(&whole).map_err(unwritable)
}

/// Each field that a patch sets, with its way there.
fn flatten(base: &Value, patch: Map<String, Value>, path: &mut Vec<String>, leaves: &mut Vec<(Vec<String>, Value)>) {
    for (name, value) in patch {
        path.push(name);
        let here = path.last().and_then(|name| base.get(name));
        match (value, here) {
            (Value::Object(inner), Some(here @ Value::Object(_))) => flatten(here, inner, path, leaves),
            (value, _) => leaves.push((path.clone(), value)),
        }
        path.pop();
    }
}

fn put(whole: &mut Value, path: &[String], value: Value) {
    let Some((name, way)) = path.split_last() else { return };
    let Some(object) = way.iter().try_fold(whole, |at, name| at.get_mut(name)).and_then(Value::as_object_mut) else {
        return;
    };
    match value {
        Value::Null => drop(object.remove(name)),
        value => drop(object.insert(name.clone(), value)),
    }
}

/// A store's refusal as clients read it.
impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing { kind, id } => ApiError::Missing { kind, id },
            StoreError::Exists { .. } => ApiError::Conflict { message: sentence(&error), code: "already_exists" },
            StoreError::Conflict { .. } => ApiError::Conflict { message: sentence(&error), code: "version_conflict" },
            StoreError::Needed { .. } => ApiError::Conflict { message: sentence(&error), code: "in_use" },
            StoreError::Invalid { field, message } => {
                let text = format!("Invalid '{field}': {message}.");
                ApiError::param(field, "invalid_value", text)
            }
            StoreError::Unavailable(_) | StoreError::Retry(_) => {
                tracing::warn!(%error, "the store did not answer");
                ApiError::Overloaded {
                    message: "The store does not answer.".into(),
                    retry_after: std::time::Duration::from_secs(1),
                }
            }
            StoreError::CommitUnknown(_) => {
                tracing::error!(%error, "a change may or may not have been made");
                ApiError::Internal("Nobody knows whether the change was made: look before you try again.".into())
            }
            error => {
                tracing::error!(%error, "the store failed");
                ApiError::Internal("The store failed.".into())
            }
        }
    }
}

fn sentence(error: &StoreError) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    letters.next().map(|first| format!("{}{}.", first.to_uppercase(), letters.as_str())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;
    use weir_runtime::store::TenantSettings;

    use super::*;

    fn patch(patch: Value) -> Result<TenantSettings, ApiError> {
        let mut base = TenantSettings::named("Acme", "starter");
        base.overrides.weight = Some(3);
        base.metadata.insert("a".into(), json!({"b": 1, "c": 2}));
        patched(&base, patch.as_object().unwrap().clone())
    }

    #[test]
    fn a_patch_changes_what_it_names_and_nothing_else() {
        let settings = patch(json!({
            "name": "A", "overrides": {"running_max": 4}, "models": ["m"], "metadata": {"a": {"b": null}, "d": {}}
        }))
        .unwrap();
        assert_eq!((settings.name.as_str(), settings.plan.as_str()), ("A", "starter"));
        assert_eq!((settings.overrides.weight, settings.overrides.running_max), (Some(3), Some(4)));
        assert_eq!(Value::Object(settings.metadata), json!({"a": {"c": 2}, "d": {}}));
        assert_eq!(settings.models, Some(["m".to_owned()].into()));
        let less = patch(json!({"overrides": {"weight": null}, "models": null})).unwrap();
        assert_eq!((less.overrides.weight, less.models), (None, None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, field) in [
            (json!({"nmae": "x"}), "nmae"),
            (json!({"name": 1}), "name"),
            (json!({"name": null}), "name"),
            (json!({"overrides": {"wieght": 1}}), "overrides.wieght"),
            (json!({"overrides": {"running_max": 1, "weight": "2"}}), "overrides.weight"),
            (json!({"overrides": 3}), "overrides"),
            (json!({"status": "gone"}), "status"),
            (json!({"flags": {"x": 1}}), "flags.x"),
        ] {
            let ApiError::Invalid { param, .. } = patch(body.clone()).unwrap_err() else { panic!("{body}") };
            // A map that is empty so far is put in its place as a whole.
            let param = param.unwrap();
            assert!(param == field || field.starts_with(&format!("{param}.")), "{body}: {param}");
        }
    }

    #[test]
    fn pages_end_where_the_rows_do() {
        let wanted = Wanted { after: String::new(), limit: 2 };
        assert_eq!(wanted.rows(), 3);
        let page = |rows: Vec<u32>| {
            let page = wanted.page(rows, u32::to_string, |row| row);
            (page.data, page.has_more, page.next)
        };
        assert_eq!(page(vec![1, 2, 3]), (vec![1, 2], true, Some("2".into())));
        assert_eq!(page(vec![1, 2]), (vec![1, 2], false, None));
        assert_eq!(page(vec![]), (vec![], false, None));
    }
}
