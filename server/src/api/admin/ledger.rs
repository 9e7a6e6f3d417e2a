//! The ledger's rows as NDJSON, page by page as the reader takes them, and whether they are as they were written.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderValue, header},
    response::Response,
};
use hyper::body::{Body as HttpBody, Frame};
use serde::Serialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;
use weir_runtime::{
    billing::{self, LedgerRange, Unequal},
    ledger::{self, LedgerError, PublicKey, Verified},
    quota::calendar,
    store::{Store, StoreError},
};

use super::{Admin, respond};
use crate::{
    api::{query::Query, usage::day_of},
    error::{ApiError, ErrorBody},
};

/// Pages that wait to be written.
const PAGES_MAX: usize = 2;

/// All rows that were written from the beginning of the day `from` to the end of the day `to` (UTC), of everybody or of one
/// `tenant`, in the order of the chains. The last line counts them: without it the export is not whole.
#[utoipa::path(
    get, path = "/admin/v1/ledger", tag = "Ledger",
    params(("from" = Option<String>, Query, description = "The first day (UTC)"),
           ("to" = Option<String>, Query, description = "The last day"),
           ("tenant" = Option<String>, Query, description = "Of this tenant only")),
    responses((status = 200, description = "NDJSON; the last line counts the others"),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn export(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    let query = Query::of(request.uri(), &["from", "to", "tenant"])?;
    let begin = |name: &str, days: i64, default: i64| match query.get(name) {
        None => Ok(default),
        Some(text) => day_of(text).map(|day| calendar::day_begins_us(day + days)).ok_or_else(|| {
            ApiError::param(name, "invalid_value", format!("Invalid '{name}': write a day as 2026-11-21 (UTC)."))
        }),
    };
    let range = LedgerRange {
        from_us: begin("from", 0, i64::MIN)?,
        to_us: begin("to", 1, i64::MAX)?,
        tenant: query.get("tenant").map(str::to_owned),
    };
    let store = admin.app.kept()?.clone();
    let (sender, pages) = mpsc::channel(PAGES_MAX);
    tokio::spawn(read(store, range, sender));
    let mut response = Response::new(Body::new(Pages(pages)));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// What verifying the ledger has shown.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LedgerProof {
    object: &'static str,
    /// Whether every row is as it was written, and all sums hold.
    valid: bool,
    /// Rows that were read.
    rows: Option<u64>,
    /// Lives of engines that they tell of.
    epochs: Option<u64>,
    /// Requests that were billed.
    requests: Option<u64>,
    /// Months that are closed.
    months: Option<u64>,
    /// The first row that is wrong: its epoch, its place in it, and what is wrong.
    fault: Option<String>,
}

/// Recomputes all chains and sums of the ledger, and checks the statements of closed months, the anchors and the invoices
/// that were made of statements.
#[utoipa::path(
    get, path = "/admin/v1/ledger/verify", tag = "Ledger",
    params(("key" = Option<String>, Query, description = "Public keys, with commas between: every statement must be signed by one of them")),
    responses((status = 200, description = "What was found", body = LedgerProof),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn verify(State(admin): State<Arc<Admin>>, request: Request) -> Result<Response, ApiError> {
    let query = Query::of(request.uri(), &["key"])?;
    let key = |text: &str| {
        let invalid =
            || ApiError::param("key", "invalid_value", "Invalid 'key': a public key is 64 hexadecimal digits.");
        PublicKey::from_hex(text).ok_or_else(invalid)
    };
    let keys = query.get("key").map(|keys| keys.split(',').map(key).collect::<Result<Vec<_>, _>>()).transpose()?;
    let store = admin.app.kept()?;
    let broken = |error: LedgerError| match error {
        LedgerError::Store(error @ StoreError::Corrupt { .. }) => Ok(error.to_string()),
        LedgerError::Store(error) => Err(ApiError::from(error)),
        error => Ok(error.to_string()),
    };
    let object = "ledger.proof";
    let body = match whole(store, keys.as_deref()).await {
        Ok(found) => LedgerProof {
            object,
            valid: true,
            rows: Some(found.rows),
            epochs: Some(found.epochs),
            requests: Some(found.requests),
            months: Some(found.months),
            fault: None,
        },
        Err(error) => {
            let fault = Some(broken(error)?);
            LedgerProof { object, valid: false, rows: None, epochs: None, requests: None, months: None, fault }
        }
    };
    Ok(respond::json(&body))
}

/// The ledger, and what was made of its statements.
async fn whole(store: &Store, keys: Option<&[PublicKey]>) -> Result<Verified, LedgerError> {
    let verified = ledger::verify_store(store, keys).await?;
    let unequal = billing::unequal_invoices(store, &ledger::statements(store).await?).await?;
    match unequal.into_iter().find(|invoice| invoice.changed) {
        Some(Unequal { tenant, month, .. }) => {
            let message = format!("the invoice of {month} is not what the month's statement says");
            Err(StoreError::Corrupt { table: "invoices", id: tenant, message }.into())
        }
        None => Ok(verified),
    }
}

/// Reads pages until there are no more, or nobody takes them.
async fn read(store: Store, range: LedgerRange, pages: mpsc::Sender<io::Result<Bytes>>) {
    let (mut after, mut count) = ((i64::MIN, 0), 0u64);
    loop {
        let rows = match range.page(&store, after).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, "an export of the ledger broke off");
                let _ = pages.send(Err(io::Error::other("the store failed"))).await;
                return;
            }
        };
        let mut lines = Vec::new();
        for row in &rows {
            // Whole numbers and text always serialise, into memory.
            let _ = serde_json::to_writer(&mut lines, row);
            lines.push(b'\n');
        }
        count += rows.len() as u64;
        let last = rows.last().map(|row| (row.epoch, row.seq));
        if last.is_none() {
            lines.extend_from_slice(format!("{{\"object\":\"end\",\"rows\":{count}}}\n").as_bytes());
        }
        if pages.send(Ok(lines.into())).await.is_err() {
            return;
        }
        match last {
            Some(place) => after = place,
            None => return,
        }
    }
}

/// The body.
pub(super) struct Pages(pub(super) mpsc::Receiver<io::Result<Bytes>>);

impl HttpBody for Pages {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(ready!(self.0.poll_recv(context)).map(|page| page.map(Frame::data)))
    }
}
