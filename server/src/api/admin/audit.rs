//! `/admin/v1/audit`: who changed what, and whether the log is whole.

use std::{fmt::Write, sync::Arc};

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use weir_runtime::store::AuditRow;

use super::{
    super::{
        edit::{Page, Wanted},
        query::Query,
    },
    Admin, respond,
};
use crate::error::{ApiError, ErrorBody};

/// One row of the log.
#[derive(Debug, Serialize, ToSchema)]
#[allow(missing_docs, reason = "named as the columns are")]
pub(crate) struct AuditBody {
    seq: i64,
    object: &'static str,
    at_us: i64,
    event: String,
    actor_kind: String,
    actor: String,
    credential: Option<String>,
    tenant: Option<String>,
    method: Option<String>,
    issuer: Option<String>,
    source: Option<String>,
    proxies: Option<String>,
    agent: Option<String>,
    request: Option<String>,
    trace: Option<String>,
    action: String,
    target_kind: String,
    target: String,
    #[schema(value_type = Object)]
    before: Value,
    #[schema(value_type = Object)]
    after: Value,
    result: String,
    reason: Option<String>,
    approval: Option<String>,
    node: String,
    build: String,
    config: String,
    prev: String,
    hash: String,
}

impl From<AuditRow> for AuditBody {
    fn from(row: AuditRow) -> Self {
        // What was written as JSON is shown as such; the hash is over the text.
        let parsed =
            |text: Option<String>| text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap_or(text.into()));
        AuditBody {
            seq: row.seq,
            object: "audit.event",
            at_us: row.at_us,
            event: row.event,
            actor_kind: row.actor_kind,
            actor: row.actor,
            credential: row.credential,
            tenant: row.tenant,
            method: row.method,
            issuer: row.issuer,
            source: row.source,
            proxies: row.proxies,
            agent: row.agent,
            request: row.request,
            trace: row.trace,
            action: row.action,
            target_kind: row.target_kind,
            target: row.target,
            before: parsed(row.before),
            after: parsed(row.after),
            result: row.result,
            reason: row.reason,
            approval: row.approval,
            node: row.node,
            build: row.build,
            config: row.config,
            prev: hex(&row.prev),
            hash: hex(&row.hash),
        }
    }
}

/// Lists the log, oldest first; of one tenant with `tenant`.
#[utoipa::path(
    get, path = "/admin/v1/audit", tag = "Audit",
    params(("after" = Option<i64>, Query, description = "`next` of the page before, or any row's `seq`"),
           ("limit" = Option<u32>, Query, description = "Rows of a page"),
           ("tenant" = Option<String>, Query, description = "A tenant's id")),
    responses((status = 200, description = "A page", body = Page<AuditBody>),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn list(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    let query = Query::of(request.uri(), &["after", "limit", "tenant"])?;
    let wanted = Wanted::of(&query)?;
    let after = match wanted.after.as_str() {
        "" => 0,
        seq => seq.parse().map_err(|_| ApiError::param("after", "invalid_value", "Invalid 'after': not a number."))?,
    };
    let rows = admin.app.kept()?.audit(query.get("tenant"), after, wanted.rows()).await?;
    Ok(respond::json(&wanted.page(rows, |row| row.seq.to_string(), AuditBody::from)))
}

/// What verifying the log has shown.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditProofBody {
    object: &'static str,
    /// Whether every row is as it was written.
    valid: bool,
    /// Rows that were read.
    rows: Option<u64>,
    /// The last row's hash. Kept elsewhere, it proves later that nothing before it has changed.
    head: Option<String>,
    /// The first row that is not as it was written.
    bad_seq: Option<i64>,
    /// What is wrong with it.
    fault: Option<&'static str>,
}

/// Recomputes every hash of the log.
#[utoipa::path(
    get, path = "/admin/v1/audit/verify", tag = "Audit",
    responses((status = 200, description = "What was found", body = AuditProofBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn verify(State(admin): State<Arc<Admin>>) -> Result<Response, ApiError> {
    let object = "audit.proof";
    let body = match admin.app.kept()?.audit_verify().await? {
        Ok(proof) => AuditProofBody {
            object,
            valid: true,
            rows: Some(proof.rows),
            head: Some(hex(&proof.head)),
            bad_seq: None,
            fault: None,
        },
        Err(fault) => AuditProofBody {
            object,
            valid: false,
            rows: None,
            head: None,
            bad_seq: Some(fault.seq),
            fault: Some(fault.what),
        },
    };
    Ok(respond::json(&body))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
