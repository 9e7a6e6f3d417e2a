//! Devices: looked at, drained, resumed.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Path, Request, State},
    response::Response,
};
use serde::{Deserialize, Serialize};
use weir_runtime::devices::{DeviceError, DeviceStatus};

use super::{Admin, BODY_BYTES_MAX, body, respond};
use crate::error::ApiError;

/// A device as operators see it.
#[derive(Debug, Serialize)]
struct Device {
    name: String,
    kind: &'static str,
    /// `loading`, `ready`, `draining`, `drained` or `down`.
    state: &'static str,
    /// Why the last executor was lost, until the next is ready.
    reason: Option<String>,
    models: Vec<String>,
    requests_running: u32,
    requests_waiting: u32,
    kv_blocks: u32,
    kv_blocks_used: u32,
    epoch: u64,
    restarts: u64,
    steps: u64,
    busy_seconds: f64,
    pid: Option<u32>,
}

impl From<DeviceStatus> for Device {
    fn from(status: DeviceStatus) -> Self {
        Device {
            name: status.name,
            kind: status.kind.word(),
            state: status.phase.word(),
            reason: status.reason,
            models: status.models,
            requests_running: status.requests_running,
            requests_waiting: status.requests_waiting,
            kv_blocks: status.kv_blocks,
            kv_blocks_used: status.kv_blocks_used,
            epoch: status.epoch,
            restarts: status.restarts,
            steps: status.steps,
            busy_seconds: status.busy.as_secs_f64(),
            pid: status.pid,
        }
    }
}

#[derive(Debug, Serialize)]
struct DeviceList {
    object: &'static str,
    data: Vec<Device>,
}

/// How to drain.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainRequest {
    /// Seconds after which what still runs goes on elsewhere; absent, it is waited for.
    deadline_s: Option<f64>,
    /// Also if nobody else takes requests.
    #[serde(default)]
    force: bool,
}

/// Longest deadline; what is to take longer needs none.
const DEADLINE_S_MAX: f64 = 86_400.0;

/// All devices.
pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Result<Response, ApiError> {
    let devices = admin.app.engine()?.devices().await.map_err(refusal)?;
    Ok(respond::json(&DeviceList { object: "list", data: devices.into_iter().map(Device::from).collect() }))
}

/// Begins to take a device out.
pub(super) async fn drain(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, content) = request.into_parts();
    let bytes = body::read(&parts.headers, content, BODY_BYTES_MAX).await?;
    let wanted = match bytes.is_empty() {
        true => DrainRequest::default(),
        false => serde_json::from_slice(&bytes).map_err(|error| ApiError::Invalid {
            message: format!("The request body is not valid: {error}."),
            param: None,
            code: "invalid_json",
        })?,
    };
    if wanted.deadline_s.is_some_and(|seconds| !(0.0..=DEADLINE_S_MAX).contains(&seconds)) {
        let message = format!("deadline_s must be between 0 and {DEADLINE_S_MAX}.");
        return Err(ApiError::param("deadline_s", "invalid_value", message));
    }
    let time = wanted.deadline_s.map(Duration::from_secs_f64);
    let status = admin.app.engine()?.drain_device(&name, time, wanted.force).await.map_err(refusal)?;
    tracing::info!(device = name, state = status.phase.word(), "an operator drained a device");
    Ok(respond::json(&Device::from(status)))
}

/// Takes a device back.
pub(super) async fn resume(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let status = admin.app.engine()?.resume_device(&name).await.map_err(refusal)?;
    tracing::info!(device = name, state = status.phase.word(), "an operator resumed a device");
    Ok(respond::json(&Device::from(status)))
}

fn refusal(error: DeviceError) -> ApiError {
    match error {
        DeviceError::Unknown(name) => ApiError::UnknownDevice(name),
        DeviceError::Last(_) => ApiError::Conflict {
            message: format!("{error}: new requests would be refused. Say `\"force\": true` to drain it all the same."),
            code: "last_device",
        },
        DeviceError::Ended => {
            ApiError::Overloaded { message: "The server is shutting down.".into(), retry_after: Duration::from_secs(1) }
        }
    }
}
