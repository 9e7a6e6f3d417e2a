//! Closed months of the ledger: listed, closed, exported, and archived.

use std::{collections::BTreeSet, io, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderValue, header},
    response::Response,
};
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;
use utoipa::ToSchema;
use weir_runtime::{
    billing::{self, Unequal},
    ledger::{self, Archive, Hash, LedgerError, NotNow, Signed, Statement},
    quota::calendar,
    store::Store,
};

use super::{Admin, ledger::Pages, respond};
use crate::{
    api::edit::Edit,
    error::{ApiError, ErrorBody},
};

/// Pages that wait to be written.
const PAGES_MAX: usize = 2;

/// A closed month.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MonthBody {
    /// `ledger.month`.
    object: &'static str,
    /// Such as `2026-11`.
    month: String,
    /// When it was closed, in microseconds since 1970.
    closed_us: i64,
    /// When its rows were given up; absent while they are there.
    archived_us: Option<i64>,
    /// BLAKE3 of the statement's text.
    hash: String,
    /// The public key that it is signed with.
    signer: String,
    /// Tenants that used something.
    tenants: usize,
    /// Requests that were billed.
    requests: i64,
    /// Tokens of their prompts.
    prompt_tokens: i64,
    /// Tokens that were drawn.
    completion_tokens: i64,
    /// Device time that was charged.
    device_ns: i64,
    /// Tenants whose invoice was made before the month was closed, and is not what the statement says.
    unequal_invoices: Vec<String>,
}

impl MonthBody {
    fn new(of: &Statement, unequal: &[Unequal]) -> Self {
        let mut sums = [0i64; 4];
        for usage in &of.month.usage {
            sums.iter_mut().zip(usage.sums()).for_each(|(sum, part)| *sum = sum.saturating_add(part));
        }
        let [requests, device_ns, prompt_tokens, completion_tokens] = sums;
        let unequal = unequal.iter().filter(|invoice| invoice.month == of.month.month);
        MonthBody {
            object: "ledger.month",
            month: of.month.month.clone(),
            closed_us: of.closed_us,
            archived_us: of.archived_us,
            hash: of.hash.to_string(),
            signer: of.signer.to_string(),
            tenants: of.month.usage.iter().map(|usage| &usage.tenant).collect::<BTreeSet<_>>().len(),
            requests,
            prompt_tokens,
            completion_tokens,
            device_ns,
            unequal_invoices: unequal.map(|invoice| invoice.tenant.clone()).collect(),
        }
    }
}

/// All closed months.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MonthList {
    object: &'static str,
    data: Vec<MonthBody>,
    /// The public key that this server signs with; absent if it closes no months.
    key: Option<String>,
}

/// A ledger's refusal as operators read it.
pub(super) fn refusal(error: LedgerError) -> ApiError {
    let conflict = |message: String, code| ApiError::Conflict { message, code };
    match error {
        LedgerError::Store(error) => error.into(),
        LedgerError::NotNow(NotNow::NotClosed { month }) => ApiError::Missing { kind: "closed month", id: month },
        LedgerError::NotNow(why) => {
            let code = match why {
                NotNow::Open { .. } => "month_not_over",
                NotNow::NotNext { .. } => "month_not_next",
                NotNow::Empty => "ledger_empty",
                NotNow::NotClosed { .. } => "month_not_closed",
                NotNow::Archived { .. } => "month_archived",
                NotNow::Fresh { .. } => "month_too_fresh",
                NotNow::NotFirst { .. } => "month_not_first",
                NotNow::OtherExport { .. } => "export_differs",
            };
            conflict(format!("Not now: {why}."), code)
        }
        error => {
            tracing::error!(%error, "the ledger is not whole");
            conflict(format!("The ledger is not whole: {error}."), "ledger_not_whole")
        }
    }
}

fn begins_us(month: &str) -> Result<i64, ApiError> {
    let invalid = || ApiError::param("month", "invalid_value", "Invalid 'month': write it as 2026-11.");
    calendar::month_begins_us(month).ok_or_else(invalid)
}

async fn statement(store: &Store, month: &str) -> Result<Statement, ApiError> {
    let mut tx = store.read().await?;
    let found = ledger::month_of(&mut tx, begins_us(month)?).await.map_err(refusal)?;
    found.ok_or_else(|| ApiError::Missing { kind: "closed month", id: month.to_owned() })
}

/// Lists closed months with their sums.
#[utoipa::path(
    get, path = "/admin/v1/ledger/months", tag = "Ledger",
    responses((status = 200, description = "All of them, the oldest first", body = MonthList),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn list(State(admin): State<Arc<Admin>>) -> Result<Response, ApiError> {
    let store = admin.app.kept()?;
    let statements = ledger::statements(store).await.map_err(refusal)?;
    let unequal = billing::unequal_invoices(store, &statements).await?;
    let data = statements.iter().map(|statement| MonthBody::new(statement, &unequal)).collect();
    let key = admin.app.ledger_key().map(|key| key.public().to_string());
    Ok(respond::json(&MonthList { object: "list", data, key }))
}

/// A closed month's statement, as it was signed, to be kept elsewhere.
#[utoipa::path(
    get, path = "/admin/v1/ledger/months/{month}", tag = "Ledger",
    params(("month" = String, Path, description = "Such as 2026-11")),
    responses((status = 200, description = "`statement` is the text that `signature` is of", body = Object),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn one(State(admin): State<Arc<Admin>>, Path(month): Path<String>) -> Result<Response, ApiError> {
    let of = statement(admin.app.kept()?, &month).await?;
    let Signed { statement, signer, signature } = Signed::from(&of);
    let hash = of.hash.to_string();
    let body = json!({"object": "ledger.statement", "month": month, "hash": hash, "signer": signer,
                      "signature": signature, "statement": statement});
    Ok(respond::json(&body))
}

/// Closes a month now, which the server does by itself ten minutes after its end. One that is closed is left as it is.
#[utoipa::path(
    post, path = "/admin/v1/ledger/months/{month}/close", tag = "Ledger",
    params(("month" = String, Path, description = "Such as 2026-11")),
    responses((status = 200, description = "The closed month", body = MonthBody),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn close(
    State(admin): State<Arc<Admin>>,
    Path(month): Path<String>,
    edit: Edit,
) -> Result<Response, ApiError> {
    edit.nothing_else()?;
    let Some(key) = admin.app.ledger_key() else {
        let message = "This server has no key to sign months with: see ledger_key_file.".into();
        return Err(ApiError::Conflict { message, code: "no_ledger_key" });
    };
    let store = admin.app.kept()?;
    let closed = ledger::close_month(store, key, &edit.actor, begins_us(&month)?, edit.at_us).await.map_err(refusal)?;
    let unequal = billing::unequal_invoices(store, std::slice::from_ref(&closed)).await?;
    Ok(respond::json(&MonthBody::new(&closed, &unequal)))
}

/// The rows of a closed month, to be checked and kept elsewhere before they are archived: first a line with the statement and the
/// one before it, last a line that counts the rows.
#[utoipa::path(
    get, path = "/admin/v1/ledger/months/{month}/rows", tag = "Ledger",
    params(("month" = String, Path, description = "Such as 2026-11")),
    responses((status = 200, description = "NDJSON; without its last line it is not whole"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn rows(State(admin): State<Arc<Admin>>, Path(month): Path<String>) -> Result<Response, ApiError> {
    let store = admin.app.kept()?.clone();
    let archive = Archive::open(&store, begins_us(&month)?).await.map_err(refusal)?;
    let (sender, pages) = mpsc::channel(PAGES_MAX);
    tokio::spawn(write(store, archive, sender));
    let mut response = Response::new(Body::new(Pages(pages)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// Gives up the rows of a closed month, and removes them. The body says which export is kept of them: the statement's `hash`
/// and how many `rows`. What a crash left of an earlier call is removed.
#[utoipa::path(
    post, path = "/admin/v1/ledger/months/{month}/archive", tag = "Ledger",
    params(("month" = String, Path, description = "Such as 2026-11")),
    responses((status = 200, description = "How many rows were removed by this call", body = Object),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn archive(
    State(admin): State<Arc<Admin>>,
    Path(month): Path<String>,
    mut edit: Edit,
) -> Result<Response, ApiError> {
    let missing = |field: &str, what: &str| {
        ApiError::param(field, "invalid_value", format!("Invalid '{field}': must be {what}."))
    };
    let hash = edit.take_text("hash")?.as_deref().and_then(Hash::from_hex);
    let hash = hash.ok_or_else(|| missing("hash", "the statement's hash"))?;
    let rows = edit.body.remove("rows").and_then(|rows| rows.as_i64());
    let rows = rows.ok_or_else(|| missing("rows", "how many rows were exported"))?;
    edit.nothing_else()?;
    let store = admin.app.kept()?;
    let removed = ledger::archive_month(store, &edit.actor, begins_us(&month)?, (hash, rows), edit.at_us).await;
    let removed = removed.map_err(refusal)?;
    Ok(respond::json(&json!({"object": "ledger.archive", "month": month, "removed": removed})))
}

/// Writes an archive until there are no more rows, or nobody takes them.
async fn write(store: Store, archive: Archive, pages: mpsc::Sender<io::Result<Bytes>>) {
    let mut lines = serde_json::to_vec(&archive.head).unwrap_or_default();
    lines.push(b'\n');
    let (mut after, mut count) = ((i64::MIN, 0), 0);
    loop {
        let rows = match archive.page(&store, after).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, "the export of a month broke off");
                let _ = pages.send(Err(io::Error::other("the store failed"))).await;
                return;
            }
        };
        for row in &rows {
            // Whole numbers and text always serialise, into memory.
            let _ = serde_json::to_writer(&mut lines, row);
            lines.push(b'\n');
        }
        count += rows.len();
        let last = rows.last().map(|row| (row.epoch, row.seq));
        if last.is_none() {
            lines.extend_from_slice(format!("{{\"object\":\"end\",\"rows\":{count}}}\n").as_bytes());
        }
        if pages.send(Ok(std::mem::take(&mut lines).into())).await.is_err() {
            return;
        }
        match last {
            Some(place) => after = place,
            None => return,
        }
    }
}
