//! A server without a socket: the real router over an engine whose models are fake and cost nothing.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderName, HeaderValue, Request, StatusCode, Uri},
};
use serde_json::Value;
use tower::ServiceExt;
use weir_runtime::{DeviceConfig, Engine, EngineConfig, ExecutorMode, LOCALITY_QUANTUM, TenantId, TenantSpec};
use weir_server::{
    api::{App, Limits, router},
    identity::{Account, CidrList, Identity, Issuers, Pepper, PlainKey, Role, Snapshot, Standing, TenantRow},
    keys::KeyHash,
};

use crate::mutator::Mutant;

const KEY: &str = "weir-key-of-a";
/// The server's default.
const BODY_BYTES_MAX: usize = 4 << 20;
/// More than any answer here: 1,024 choices with log-probabilities.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Queues are longer than one request can fill, so that a 503 is a defect.
pub(crate) async fn start() -> Router {
    let tenant = TenantSpec { queue_len_max: 10_000, running_max: 10_000, ..TenantSpec::named("a") };
    let model = |name: &str| format!("{name}=fake:step=0us,token=0us").parse().expect("a model");
    let config = EngineConfig {
        models: vec![model("m"), model("org/other")],
        tenants: vec![tenant],
        devices: vec![DeviceConfig::cpu(0, ExecutorMode::Thread)],
        inspector: ExecutorMode::Thread,
        queue_len_max: 10_000,
        locality_quantum: LOCALITY_QUANTUM,
        canary_interval: Duration::from_secs(3600),
        seed: 1,
        record: None,
        accounts: None,
    };
    let tenant = TenantRow {
        id: "a".into(),
        number: TenantId(1),
        standing: Standing::Active,
        models: None,
        ip_allow: Vec::new(),
        domain: None,
        account: Account::default(),
    };
    let hash = KeyHash::of(KEY.as_bytes());
    let key = PlainKey { hash, tenant: TenantId(1), name: "k".into(), role: Role::Member };
    let pepper = Pepper::random().expect("a pepper");
    let snapshot = Snapshot::build(pepper, vec![tenant], Vec::new(), vec![key], None).expect("a snapshot");
    let app = App::new(
        Arc::new(Identity::new(snapshot, Issuers::default(), CidrList::default())),
        Limits {
            body_bytes_max: BODY_BYTES_MAX,
            request_timeout: Duration::from_secs(600),
            revoked_time: Duration::ZERO,
            connections_max: 64,
        },
    );
    app.set_engine(Engine::start(config).await.expect("an engine"));
    router(app)
}

/// Sends a mutant. `None` where it is no HTTP request that hyper would pass on; else its status, or what is wrong with the
/// answer.
pub(crate) async fn send(router: &Router, mutant: &Mutant) -> Option<Result<u16, String>> {
    let mut request = Request::new(Body::from(mutant.body.clone()));
    *request.method_mut() = mutant.method.parse().ok()?;
    *request.uri_mut() = mutant.path.parse::<Uri>().ok()?;
    if mutant.known_key {
        request.headers_mut().insert("authorization", HeaderValue::from_static("Bearer weir-key-of-a"));
    }
    for (name, value) in &mutant.headers {
        let name: HeaderName = name.parse().ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(value).ok()?);
    }
    let response = router.clone().oneshot(request).await.expect("infallible");
    let (parts, body) = response.into_parts();
    let body = match to_bytes(body, ANSWER_BYTES_MAX).await {
        Ok(body) => body,
        Err(error) => return Some(Err(format!("the body broke off: {error}"))),
    };
    let event_stream =
        parts.headers.get("content-type").is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"));
    // An answer to HEAD has no body.
    let checked = match mutant.method.as_str() {
        "HEAD" => Ok(()),
        _ => check(parts.status, event_stream, &body),
    };
    Some(checked.map(|()| parts.status.as_u16()).map_err(|why| format!("{}: {why}", parts.status)))
}

/// An answer is JSON, or events that end as they should; a refusal is OpenAI's error object.
fn check(status: StatusCode, event_stream: bool, body: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(body).map_err(|e| e.to_string())?;
    if status.is_server_error() {
        return Err(format!("{text:.500}"));
    }
    if event_stream {
        let ended = text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\":");
        return if ended { Ok(()) } else { Err(format!("events that do not end well: {text:.500}")) };
    }
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON ({e}): {text:.500}"))?;
    if status == StatusCode::OK {
        return if value.is_object() { Ok(()) } else { Err(format!("no object: {text:.500}")) };
    }
    let detail =
        value.get("error").and_then(Value::as_object).ok_or_else(|| format!("no error object: {text:.500}"))?;
    let text_at = |key: &str| detail.get(key).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    let shaped = detail.len() == 4
        && ["message", "type", "code"].into_iter().all(text_at)
        && detail.get("param").is_some_and(|p| p.is_null() || p.is_string());
    match shaped && status.is_client_error() {
        true => Ok(()),
        false => Err(format!("not OpenAI's error: {text:.500}")),
    }
}
