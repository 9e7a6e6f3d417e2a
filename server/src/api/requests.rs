//! `GET /v1/requests/{id}`: why a request waited, or waits.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;
use weir_runtime::{Cause, Explanation};

use super::{App, respond};
use crate::{
    error::{ApiError, ErrorBody},
    identity::Caller,
};

/// Where a request's time went. Of several choices or prompts, state, place and times are the slowest one's; charge, preemptions
/// and cached tokens are added up.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RequestReport {
    /// The id that was asked for.
    id: String,
    /// `request`.
    object: &'static str,
    /// The model's name.
    model: String,
    /// When it came, in Unix seconds.
    created: u64,
    /// `waiting`, `running`, `finished`, `cancelled` or `failed`.
    state: &'static str,
    /// What its time goes into at present: `steps`, or a key of `wait_us`. Null once it has ended.
    cause: Option<&'static str>,
    /// Its place in its tenant's line, from 1, while it waits there.
    position: Option<u32>,
    /// Time until it is expected to start, while it waits in line.
    expected_start_ms: Option<u64>,
    /// Why it had no step, in microseconds.
    wait_us: WaitReport,
    /// Time with a step of it on the device.
    steps_us: u64,
    /// All of its time in the scheduler: steps and waits, to the microsecond.
    total_us: u64,
    /// Device time charged so far, to the nearest microsecond.
    device_time_us: u64,
    /// How often it lost its memory to another request.
    preemptions: u32,
    /// Tokens of its prompt that were found in the cache.
    cached_tokens: u32,
    /// Choices, and prompts or lists of inputs, that it is made of.
    parts: u32,
}

/// Microseconds of waiting by cause.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WaitReport {
    /// Behind requests of its own tenant.
    queue: u64,
    /// First in its tenant's line, while steps went to others.
    share: u64,
    /// Its tenant's quota had no time left to give.
    quota: u64,
    /// There was no memory for it.
    memory: u64,
    /// It had no device, or another request computed what it needs.
    placement: u64,
    /// It had lost its memory to another request.
    preemption: u64,
}

impl RequestReport {
    pub(super) fn new(id: String, why: &Explanation) -> Self {
        let micros = why.times.micros();
        let of = |cause: Cause| micros[cause as usize];
        RequestReport {
            id,
            object: "request",
            model: why.model.clone(),
            created: why.created,
            state: why.state.name(),
            cause: why.cause.map(Cause::name),
            position: why.place.map(|place| place.position),
            expected_start_ms: why.place.map(|place| place.expected_start.as_micros().div_ceil(1_000) as u64),
            wait_us: WaitReport {
                queue: of(Cause::Queue),
                share: of(Cause::Share),
                quota: of(Cause::Quota),
                memory: of(Cause::Memory),
                placement: of(Cause::Placement),
                preemption: of(Cause::Preemption),
            },
            steps_us: of(Cause::Steps),
            total_us: micros.iter().sum(),
            device_time_us: why.device_nanos.saturating_add(500) / 1_000,
            preemptions: why.preemptions,
            cached_tokens: why.cached_tokens,
            parts: why.parts,
        }
    }
}

/// The id in a path.
pub(super) fn id_of(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    // axum's own answer would not be in our shape.
    let Path(id) = path.map_err(|_| ApiError::param("id", "invalid_value", "Invalid 'id': the path is not UTF-8."))?;
    Ok(id)
}

/// Says why a request waited, or waits.
#[utoipa::path(
    get, path = "/v1/requests/{id}", tag = "Weir",
    params(("id" = String, Path, description = "The id of the answer, or the request's `x-request-id`")),
    responses(
        (status = 200, description = "Where its time went", body = RequestReport),
        (status = "default", description = "Any error", body = ErrorBody)
    )
)]
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let id = id_of(path)?;
    let found = app.engine()?.why(Some(caller.tenant), &id).await;
    // A key that may not know of the model may not know of its requests.
    match found.filter(|why| caller.may_use(&why.model)) {
        Some(why) => Ok(respond::json(&RequestReport::new(id, &why))),
        None => Err(ApiError::UnknownRequest(id)),
    }
}
