//! `Idempotency-Key`: a request that is repeated is done once.
//!
//! A key is its tenant's own, stands for one body at one address, and is kept for 24 hours. It is in the store before the
//! request runs, so that a crash cannot make room for a second run.
//!
//! | A repeat comes | and gets |
//! |---|---|
//! | while the first runs on this replica, to be answered in one body | the first's answer, when it is there |
//! | while it streams, or runs on another replica | 409 `idempotency_in_progress` and `Retry-After` |
//! | when it has ended | 409 `idempotency_key_used` with its status and usage, and its body where the tenant keeps bodies |
//! | when the server was ended while it ran | the same, without a status: usage is what the ledger has charged |
//! | with another body | 400 `idempotency_key_reused` |
//!
//! A request with a key that is not streamed runs to its end when its client hangs up: whoever sends a key wants the
//! answer, and comes back for it. What was refused before it began gives its key back.

mod flights;
mod record;

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use weir_runtime::store::{Begun, Idempotent, Outcome, Store, StoreError};

pub(crate) use self::flights::Flights;
use self::{
    flights::{Boarded, Lead, Told, Whole},
    record::{Ending, Recorded},
};
use super::{App, body, limits::Meter, respond::Deadline};
use crate::{
    error::{ApiError, BodyUnread},
    identity::{Caller, Now},
    keys::random_id,
};

static KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is another request's.
static REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Bytes of a key.
const KEY_BYTES_MAX: usize = 255;
/// How long a key is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// When a repeat of what still runs may ask again.
const IN_PROGRESS_RETRY: Duration = Duration::from_secs(1);

/// What a keyed request is known by.
#[derive(Debug, Clone)]
pub(super) struct Keyed {
    store: Store,
    tenant: Arc<str>,
    key: String,
    /// Under which the ledger has it.
    bill: Arc<str>,
    retains: bool,
}

/// Around whatever costs device time: lets a request with a key run once.
pub(super) async fn once(app: Arc<App>, caller: Caller, meter: Meter, request: Request, next: Next) -> Response {
    let key = match key(request.headers()) {
        Ok(Some(key)) => key,
        Ok(None) => return next.run(request).await,
        Err(error) => {
            let mut response = error.into_response();
            response.extensions_mut().insert(BodyUnread);
            return response;
        }
    };
    // Without a store nothing outlives anything, as in tests of other things.
    let Some(store) = app.store().cloned() else { return next.run(request).await };
    let deadline = Deadline::of(&app, &caller);
    let (parts, content) = request.into_parts();
    let bytes = match body::read(&parts.headers, content, app.limits.body_bytes_max).await {
        Ok(bytes) => bytes,
        Err(error) => return error.into_response(),
    };
    let fingerprint = fingerprint(parts.uri.path(), &bytes);
    match app.flights.board(caller.tenant, &key, fingerprint) {
        Boarded::Lead(lead) => {
            let bill: Arc<str> = format!("ik-{}", random_id()).into();
            meter.bill_as(bill.clone());
            let keyed = Keyed { store, tenant: caller.name.clone(), key, bill, retains: retains(&caller) };
            let request = Request::from_parts(parts, Body::from(bytes));
            // On a task of its own, which goes on when the client hangs up.
            let work = tokio::spawn(run(app.clone(), keyed, fingerprint, meter, lead, request, next));
            work.await.unwrap_or_else(|error| ApiError::Internal(error.to_string()).into_response())
        }
        Boarded::Another => reused(),
        Boarded::Wait(told) => match super::respond::within(&deadline, told.heard()).await {
            Err(error) => error.into_response(),
            Ok(Told::Whole(whole)) => replayed(&whole),
            Ok(Told::Streams) => in_progress(),
            Ok(Told::Lost) => ApiError::Internal("The request came to no end.".into()).into_response(),
        },
    }
}

/// The first request with a key, from taking the key to writing down how it ended.
async fn run(
    app: Arc<App>,
    keyed: Keyed,
    fingerprint: [u8; 32],
    meter: Meter,
    lead: Lead,
    request: Request,
    next: Next,
) -> Response {
    let now_us = Now::read().unix_us;
    let new = Idempotent {
        fingerprint,
        request: keyed.bill.to_string(),
        epoch: app.epoch(),
        outcome: None,
        created_us: now_us,
        expires_us: now_us.saturating_add(i64::try_from(KEPT.as_micros()).unwrap_or(i64::MAX)),
    };
    let response = match keyed.store.idempotency_begin(&keyed.tenant, &keyed.key, &new).await {
        Err(error) => unavailable(&error),
        Ok(Begun::Known(known)) if known.fingerprint != fingerprint => reused(),
        Ok(Begun::Known(known)) => match known_end(&app, &keyed, known).await {
            Ok(response) => response,
            Err(error) => unavailable(&error),
        },
        Ok(Begun::New) => {
            let response = next.run(request).await;
            let ending = Ending::new(keyed, meter, response.status().as_u16());
            if is_stream(&response) {
                lead.tell(Told::Streams);
                return response.map(|body| Body::new(Recorded::new(body, ending, lead)));
            }
            let (parts, content) = response.into_parts();
            // Whole already: nothing is waited for, and it is as large as the handler made it.
            let bytes = axum::body::to_bytes(content, usize::MAX).await.unwrap_or_default();
            ending.write(Some(&bytes)).await;
            Response::from_parts(parts, Body::from(bytes))
        }
    };
    let (parts, content) = response.into_parts();
    let bytes = axum::body::to_bytes(content, usize::MAX).await.unwrap_or_default();
    lead.tell(Told::Whole(Arc::new(Whole {
        status: parts.status,
        headers: parts.headers.clone(),
        body: bytes.clone(),
    })));
    Response::from_parts(parts, Body::from(bytes))
}

/// What is said of a request that had the key before, on another connection, replica or life.
async fn known_end(app: &App, keyed: &Keyed, known: Idempotent) -> Result<Response, StoreError> {
    if let Some(outcome) = known.outcome {
        return Ok(ended(&outcome, keyed.retains));
    }
    // What this life of this replica runs is in the air, and would have been waited for.
    let over = known.epoch == app.epoch() || keyed.store.epoch_is_over(known.epoch).await?;
    if !over {
        return Ok(in_progress());
    }
    let bills = keyed.store.bills_of(&keyed.tenant, &known.request).await?;
    let usage = bills.map(|bill| {
        usage_text(&weir_runtime::Usage {
            prompt_tokens: u32::try_from(bill.prompt_tokens).unwrap_or(u32::MAX),
            completion_tokens: u32::try_from(bill.completion_tokens).unwrap_or(u32::MAX),
            device_nanos: bill.device_ns.max(0).unsigned_abs(),
            ..weir_runtime::Usage::default()
        })
    });
    let outcome = Outcome { status: NEVER_TOLD, usage, body: None };
    keyed.store.idempotency_end(&keyed.tenant, &keyed.key, &known.request, &outcome).await?;
    Ok(ended(&outcome, false))
}

/// In the place of a status: no answer was finished.
const NEVER_TOLD: u32 = 0;

/// What a repeat learns of a request that has ended, beside the error.
#[derive(Debug, Serialize)]
struct Ended {
    /// Of its answer; null where the server was ended before there was one.
    status: Option<u32>,
    /// What was charged; null where nothing was.
    usage: Value,
    /// Its answer, where the tenant keeps bodies: JSON, or the text of a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
}

fn ended(outcome: &Outcome, retains: bool) -> Response {
    let told = outcome.status != NEVER_TOLD;
    let message = match told {
        true => "A request with this Idempotency-Key has ended; it is not done again.",
        false => "The server was ended while the request with this Idempotency-Key ran; it is not done again.",
    };
    let error = ApiError::Conflict { message: message.into(), code: "idempotency_key_used" };
    let usage = outcome.usage.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let body = outcome.body.as_deref().filter(|_| retains).map(|bytes| {
        serde_json::from_slice(bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
    });
    let ended = Ended { status: told.then_some(outcome.status), usage: usage.unwrap_or(Value::Null), body };
    let mut value: Value = serde_json::from_str(&error.body()).unwrap_or_default();
    value["idempotency"] = json!(ended);
    let mut response = error.into_response();
    // openai-python repeats a 409 unless told otherwise, which would be for nothing.
    response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
    *response.body_mut() = Body::from(value.to_string());
    response
}

fn in_progress() -> Response {
    let message = "A request with this Idempotency-Key is still running.".to_owned();
    let mut response = ApiError::Conflict { message, code: "idempotency_in_progress" }.into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(IN_PROGRESS_RETRY.as_secs()));
    response
}

fn reused() -> Response {
    let message = "This Idempotency-Key stands for another request: use a new key for a new body.".to_owned();
    let param = Some("Idempotency-Key".to_owned());
    ApiError::Invalid { message, param, code: "idempotency_key_reused" }.into_response()
}

fn replayed(whole: &Whole) -> Response {
    let mut response = Response::new(Body::from(whole.body.clone()));
    *response.status_mut() = whole.status;
    *response.headers_mut() = whole.headers.clone();
    response.headers_mut().insert(REPLAYED.clone(), HeaderValue::from_static("true"));
    response
}

fn unavailable(error: &StoreError) -> Response {
    tracing::warn!(%error, "an idempotency key could not be looked up");
    let message = "The server cannot look up the Idempotency-Key at present, so the request was not begun.".to_owned();
    ApiError::Overloaded { message, retry_after: Duration::from_secs(1) }.into_response()
}

fn is_stream(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.starts_with(b"text/event-stream")
}

/// The key, if there is one.
fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(&KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| {
        (1..=KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
    });
    match (text, values.next()) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => Err(ApiError::Invalid {
            message: format!("Idempotency-Key must be one value of 1 to {KEY_BYTES_MAX} visible ASCII characters."),
            param: Some("Idempotency-Key".into()),
            code: "invalid_value",
        }),
    }
}

/// What a key stands for: the address and the body, byte for byte.
pub(super) fn fingerprint(path: &str, body: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update((path.len() as u64).to_le_bytes());
    digest.update(path);
    digest.update(body);
    digest.finalize().into()
}

fn usage_text(usage: &weir_runtime::Usage) -> String {
    serde_json::to_string(&crate::openai::reply::Usage::from(*usage)).unwrap_or_default()
}

fn retains(caller: &Caller) -> bool {
    caller.account.retain_bodies
}
