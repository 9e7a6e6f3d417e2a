//! The routes: each handler reads a body, hands the engine a submission, and writes what comes back.
//!
//! Every request passes a layer on the root router, so that a route added later cannot forget it: an id in and
//! out, and a caller from its key for every path that is not in [`PUBLIC`]. There is one more around what costs device time. Each of
//! axum's layers copies all that is within it for every request, so two things that always go together are one layer.

pub(crate) mod admin;
mod body;
mod books;
pub(crate) mod chat;
mod choices;
pub(crate) mod completion;
mod edit;
pub(crate) mod embedding;
mod id;
mod idempotency;
pub(crate) mod keys;
mod limits;
pub(crate) mod models;
pub(crate) mod probes;
mod query;
pub(crate) mod quotas;
pub(crate) mod requests;
mod respond;
pub(crate) mod usage;
pub(crate) mod webhooks;

use std::{
    fmt::Write as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use weir_runtime::{Engine, ModelCard, SubmitError, ledger::SigningKey, store::Store};

use crate::{
    error::{ApiError, BodyUnread, excerpt},
    everybody::Everybody,
    http::{Connections, Peer},
    identity::{
        Caller, Door, Identity, Now,
        routes::{Access, access, methods},
    },
    keys::hex,
    openapi,
    webhooks::Webhooks,
};
pub use admin::{ModelsRoot, admin_router};
pub use id::RequestId;
pub use limits::Seat;

/// What anyone may ask, key or not: probes come from machines that have none.
pub const PUBLIC: [&str; 2] = ["/health", "/ready"];

/// What all handlers share.
pub struct App {
    engine: OnceLock<Engine>,
    identity: Arc<Identity>,
    everybody: Option<Arc<Everybody>>,
    limits: Limits,
    connections: Arc<Connections>,
    draining: AtomicBool,
    limiter: limits::Limiter,
    flights: idempotency::Flights,
    webhooks: OnceLock<Arc<Webhooks>>,
    ledger_key: OnceLock<Arc<SigningKey>>,
}

/// Bounds on one request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest body.
    pub body_bytes_max: usize,
    /// Longest a request may take, streaming included.
    pub request_timeout: Duration,
    /// How long what runs may go on once its key was revoked or its tenant suspended.
    pub revoked_time: Duration,
    /// Connections to the API at once.
    pub connections_max: usize,
}

impl App {
    /// An application without a store, for tests; its engine is still loading.
    pub fn new(identity: Arc<Identity>, limits: Limits) -> Arc<Self> {
        App::with(identity, None, limits)
    }

    /// An application for everybody there is, whose engine is still loading.
    pub fn of(everybody: Arc<Everybody>, limits: Limits) -> Arc<Self> {
        App::with(everybody.identity().clone(), Some(everybody), limits)
    }

    fn with(identity: Arc<Identity>, everybody: Option<Arc<Everybody>>, limits: Limits) -> Arc<Self> {
        let connections = Connections::new(limits.connections_max);
        let engine = OnceLock::new();
        let (limiter, flights) = (limits::Limiter::default(), idempotency::Flights::default());
        Arc::new(App {
            engine,
            identity,
            everybody,
            limits,
            connections,
            draining: AtomicBool::new(false),
            limiter,
            flights,
            webhooks: OnceLock::new(),
            ledger_key: OnceLock::new(),
        })
    }

    /// Where tenants, keys, the ledger and the rest are kept; none in tests of what needs none.
    pub fn store(&self) -> Option<&Store> {
        self.everybody.as_deref().map(Everybody::store)
    }

    /// The API's connections.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// The engine is there. Later calls change nothing.
    pub fn set_engine(&self, engine: Engine) {
        self.tell_of_quotas(&engine);
        let _ = self.engine.set(engine);
    }

    /// The server is going down: probes say so from now on.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// What sends webhooks.
    fn webhooks(&self) -> Option<&Webhooks> {
        self.webhooks.get().map(|webhooks| &**webhooks)
    }

    /// What months of the ledger are signed with, where they are closed.
    fn ledger_key(&self) -> Option<&SigningKey> {
        self.ledger_key.get().map(|key| &**key)
    }

    /// The store, for whoever cannot do without.
    fn kept(&self) -> Result<&Store, ApiError> {
        self.store().ok_or_else(|| ApiError::Overloaded {
            message: "The server has no store open.".into(),
            retry_after: Duration::from_secs(1),
        })
    }

    /// The life of the engine here, by which the store knows what it runs.
    fn epoch(&self) -> i64 {
        self.engine.get().and_then(Engine::epoch).unwrap_or(0)
    }

    fn engine(&self) -> Result<&Engine, ApiError> {
        self.engine.get().ok_or_else(|| ApiError::Overloaded {
            message: "The server is loading its models.".into(),
            retry_after: Duration::from_secs(1),
        })
    }

    /// A model the caller may know of; one it may not reads exactly like one that does not exist.
    fn model(&self, caller: &Caller, name: &str) -> Result<Arc<ModelCard>, ApiError> {
        let unknown = || ApiError::UnknownModel(name.to_owned());
        let engine = self.engine()?;
        if !caller.may_use(name) {
            return Err(unknown());
        }
        engine.model(name).ok_or_else(unknown)
    }

    /// The same for a request that may name none: then it is the default of the caller's tenant for what is asked for. One that
    /// the caller may not use is none.
    fn model_for(&self, caller: &Caller, asked: Asked, name: Option<&str>) -> Result<Arc<ModelCard>, ApiError> {
        let defaults = &caller.account.default_models;
        let default = || asked.kinds().iter().find_map(|kind| defaults.get(*kind)).filter(|name| caller.may_use(name));
        match name.or_else(|| default().map(String::as_str)) {
            Some(name) => self.model(caller, name),
            None => {
                let kind = asked.kinds()[0];
                let message =
                    format!("Missing required parameter: 'model'. Your tenant has no default model for {kind}.");
                Err(ApiError::param("model", "missing_required_parameter", message))
            }
        }
    }
}

/// What a request asks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Chat,
    Completion,
    Embedding,
}

impl Asked {
    /// The kinds of default models that will do, the closest first. A model that chats completes text, too.
    const fn kinds(self) -> &'static [&'static str] {
        match self {
            Asked::Chat => &["chat"],
            Asked::Completion => &["completions", "chat"],
            Asked::Embedding => &["embeddings"],
        }
    }
}

/// The API.
pub fn router(app: Arc<App>) -> Router {
    let costly = Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completion::handle))
        .route("/v1/embeddings", post(embedding::handle))
        .route_layer(from_fn_with_state(app.clone(), meter));
    Router::new()
        .merge(costly)
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/requests/{*id}", get(requests::one))
        .route("/v1/keys", get(keys::list_own).post(keys::create_own))
        .route("/v1/keys/{id}/rotate", post(keys::rotate_own))
        .route("/v1/keys/{id}/revoke", post(keys::revoke_own))
        .route("/v1/usage", get(usage::own))
        .route("/v1/quotas", get(quotas::own))
        .route("/v1/webhooks", get(webhooks::list_own).post(webhooks::create_own))
        .route("/v1/webhooks/{webhook}", get(webhooks::one_own).patch(webhooks::edit_own).delete(webhooks::remove_own))
        .route("/v1/webhooks/{webhook}/test", post(webhooks::test_own))
        .route("/v1/webhooks/{webhook}/deliveries", get(webhooks::deliveries_own))
        .route("/v1/webhooks/{webhook}/deliveries/{delivery}/retry", post(webhooks::retry_own))
        .route("/health", get(probes::health))
        .route("/ready", get(probes::ready))
        .route("/version", get(probes::version))
        .route("/openapi.json", get(openapi::serve))
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(app.clone(), enter))
        .with_state(app)
}

/// The operators' listener: one route, no key, and on an address of its own.
pub fn metrics_router(app: Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(probes::metrics))
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

/// Around every route.
async fn enter(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    id::tagged(request, |request| guard(app, request, next)).await
}

/// Around whatever costs device time.
async fn meter(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let (limiting, limited) = (app.clone(), caller.clone());
    let work = |request, meter| idempotency::once(app, caller, meter, request, next);
    limits::limit(&limiting, &limited, request, work).await
}

/// Turns the key into a [`Caller`], and asks whether it may, before anything of the body is read.
async fn guard(app: Arc<App>, mut request: Request, next: Next) -> Response {
    if PUBLIC.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let outcome = app.identify(Door::Api, &mut request).await;
    match outcome.and_then(|caller| permitted(Door::Api, &caller, &request).map(|()| caller)) {
        // Before anything of the body is read: whoever balances the load has to try elsewhere anyway.
        Ok(_) if app.draining.load(Ordering::Relaxed) => ApiError::from(SubmitError::Draining).into_response(),
        Ok(caller) => {
            request.extensions_mut().insert(caller.clone());
            let mut response = next.run(request).await;
            // For the log, which sees the response only.
            response.extensions_mut().insert(caller);
            response
        }
        Err(error) => refused(Door::Api, error, &request),
    }
}

impl App {
    /// Who asks. The request is borrowed as if to change it, because a body cannot be shared between threads.
    async fn identify(&self, door: Door, request: &mut Request) -> Result<Caller, ApiError> {
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
        Ok(self.identity.identify(request.headers(), peer, door, Now::read()).await?)
    }
}

/// Whether the route is the caller's to use. A path that is no route is let through: its answer is that there is none.
fn permitted(door: Door, caller: &Caller, request: &Request) -> Result<(), ApiError> {
    let Some(path) = request.extensions().get::<MatchedPath>() else { return Ok(()) };
    match access(door, caller, request.method().as_str(), path.as_str()) {
        Access::Allowed => Ok(()),
        Access::Forbidden => Err(ApiError::Forbidden("Your key does not allow this.".into())),
        Access::NoSuchMethod => Err(ApiError::MethodNotAllowed(what_was_asked(request))),
    }
}

/// A refusal that leaves the body unread.
fn refused(door: Door, error: ApiError, request: &Request) -> Response {
    let allowed = match (&error, request.extensions().get::<MatchedPath>()) {
        (ApiError::MethodNotAllowed(_), Some(path)) => HeaderValue::from_str(&methods(door, path.as_str())).ok(),
        _ => None,
    };
    let mut response = error.into_response();
    response.extensions_mut().insert(BodyUnread);
    if let Some(allowed) = allowed {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

async fn unknown_route(request: Request) -> ApiError {
    ApiError::UnknownRoute(what_was_asked(&request))
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed(what_was_asked(&request))
}

fn what_was_asked(request: &Request) -> String {
    format!("{} {}", excerpt(request.method().as_str()), excerpt(request.uri().path()))
}

/// Changes whenever the same seed may draw differently: another build, other weights, another type of weights.
fn fingerprint(card: &ModelCard) -> String {
    let mut identity = [env!("CARGO_PKG_VERSION"), &card.name, &card.architecture, &card.quantization].join("\n");
    let _ = write!(identity, "\n{}", card.parameters);
    format!("fp_{}", hex(&blake3::hash(identity.as_bytes()).as_bytes()[..5]))
}

/// Seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

#[cfg(test)]
mod tests;
