//! Whether the process lives, whether it can answer, what it is, and what operators measure.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::runtime::Handle;
use utoipa::ToSchema;
use weir_runtime::{
    Engine,
    ledger::{self, LedgerLine},
    quota::PassedCount,
};

use super::{App, respond};
use crate::{
    error::{ApiError, ErrorBody},
    identity::Now,
};

/// A good answer to a probe.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Status {
    /// `ok` or `ready`.
    status: &'static str,
}

/// What is running.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Version {
    /// Of this build.
    version: &'static str,
}

/// The process lives. Says nothing about models, so that a busy or loading server is not killed for it.
#[utoipa::path(get, path = "/health", tag = "Probes", security(()),
    responses((status = 200, description = "It lives", body = Status)))]
pub(crate) async fn health() -> Response {
    respond::json(&Status { status: "ok" })
}

/// A step completed lately, and nothing is going down.
#[utoipa::path(get, path = "/ready", tag = "Probes", security(()),
    responses(
        (status = 200, description = "Requests will be answered", body = Status),
        (status = 503, description = "They would not be", body = ErrorBody)
    ))]
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let not_ready = |message: String| ApiError::Overloaded { message, retry_after: Duration::from_secs(1) };
    if app.draining.load(Ordering::Relaxed) {
        return Err(not_ready("Not ready: the server is draining.".into()));
    }
    app.engine()?.ready().map_err(|why| not_ready(format!("Not ready: {why}.")))?;
    Ok(respond::json(&Status { status: "ready" }))
}

/// The version.
#[utoipa::path(get, path = "/version", tag = "Probes",
    responses(
        (status = 200, description = "The version", body = Version),
        (status = "default", description = "Any error", body = ErrorBody)
    ))]
pub(crate) async fn version() -> Response {
    respond::json(&Version { version: env!("CARGO_PKG_VERSION") })
}

/// Prometheus text; OpenMetrics where it says of itself that it ends.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut text = front_gauges(&app);
    // Before the engine is there, what the front has counted is all; a scraper would take an error for an outage.
    if let Some(engine) = app.engine.get() {
        text.push_str(&engine.metrics_text().await);
    }
    let kind = match text.trim_end().ends_with("# EOF") {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => "text/plain; version=0.0.4; charset=utf-8",
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// What is counted in front of the engine.
fn front_gauges(app: &App) -> String {
    let tasks = Handle::current().metrics().num_alive_tasks();
    let gauges = [
        ("connections", "Connections to the API that are open", app.connections.open()),
        ("connections_limit", "Connections to the API that may be open", app.connections.max()),
        ("tasks", "Tasks of the HTTP side, connections included", tasks),
        ("draining", "1 once the server was told to end", usize::from(app.draining.load(Ordering::Relaxed))),
    ];
    let one =
        |(name, help, value)| format!("# HELP weir_{name} {help}.\n# TYPE weir_{name} gauge\nweir_{name} {value}\n");
    let webhooks = app.webhooks().map(|webhooks| webhooks.metrics());
    let ledger = app.engine.get().and_then(Engine::ledger_line).map(|line| ledger_gauges(&line, Now::read().unix_us));
    let limits = app.engine.get().map(|engine| {
        app.limiter.metrics(|tenant| engine.tenant_name(tenant)) + &windows_passed(&engine.quota_windows_passed())
    });
    gauges.into_iter().map(one).chain([app.identity.metrics()]).chain(webhooks).chain(ledger).chain(limits).collect()
}

/// How far the ledger's writer is behind.
fn ledger_gauges(line: &LedgerLine, now_us: i64) -> String {
    let age_us = line.oldest_us.map_or(0, |at_us| now_us.saturating_sub(at_us).max(0));
    let gauge = |name: &str, help: &str, value: String| {
        format!("# HELP weir_ledger_{name} {help}.\n# TYPE weir_ledger_{name} gauge\nweir_ledger_{name} {value}\n")
    };
    [
        gauge("records_waiting", "Records that wait for the ledger's writer", line.waiting.to_string()),
        gauge("records_waiting_limit", "Records that may wait for it", ledger::RECORDS_WAITING_MAX.to_string()),
        gauge(
            "oldest_waiting_seconds",
            "Age of the oldest record that is not on the disk yet; 0 where there is none",
            format!("{}.{:06}", age_us / 1_000_000, age_us % 1_000_000),
        ),
        gauge(
            "stopped",
            "1 once the ledger cannot be written: nothing is acknowledged any more",
            u8::from(line.stopped).to_string(),
        ),
    ]
    .concat()
}

/// How many windows of whom have come to what.
fn windows_passed(counts: &[PassedCount]) -> String {
    let name = "weir_quota_windows_passed_total";
    let help = "Windows that passed their soft limit, were spent, or, in shadow mode, would have been";
    let mut text = format!("# HELP {name} {help}.\n# TYPE {name} counter\n");
    for PassedCount { tenant, unit, period, passed, windows } in counts {
        let (unit, period) = (unit.name(), period.name());
        let labels = format!("tenant=\"{tenant}\",unit=\"{unit}\",period=\"{period}\",passed=\"{passed}\"");
        let _ = writeln!(text, "{name}{{{labels}}} {windows}");
    }
    text
}
