//! What was billed, in the order in which one replica wrote it: for programs that follow along.

use crate::store::{Row, Store, StoreError, args};

/// Rows that are looked at for one page.
const PAGE_LEN: i64 = 1000;

/// A place in a replica's chains, one after the other: an epoch, and a row in it.
pub type Place = (i64, i64);

/// A request that was billed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Where it stands.
    pub place: Place,
    /// When it was written, in microseconds since 1970.
    pub at_us: i64,
    /// Who pays.
    pub tenant: String,
    /// The bill's id, unique for its tenant.
    pub request: String,
    /// What it asked for.
    pub model: String,
    /// By which credential.
    pub key: String,
    /// Device time charged.
    pub device_ns: i64,
    /// Tokens of the prompt.
    pub prompt_tokens: i64,
    /// Tokens drawn.
    pub completion_tokens: i64,
}

/// A page of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettledPage {
    /// The bills among the rows that were looked at.
    pub bills: Vec<Settled>,
    /// After which place the next page goes on; nothing where there are no more rows.
    pub next: Option<Place>,
    /// There are more rows at once.
    pub more: bool,
}

/// The bills among a replica's rows after a place. An epoch's rows are written in order, and those of the one before are all
/// there when it begins, so nothing is ever written before a place that was read.
pub async fn settled(store: &Store, replica: &str, after: Place) -> Result<SettledPage, StoreError> {
    let sql = "SELECT epoch, seq, kind, at_us, tenant, request, model, key, device_ns, prompt_tokens, completion_tokens \
               FROM ledger WHERE epoch IN (SELECT epoch FROM epochs WHERE replica = $1 AND epoch >= $2) \
               AND (epoch, seq) > ($2, $3) ORDER BY epoch, seq LIMIT $4";
    let rows = store.read().await?.rows(sql, args![replica, after.0, after.1, PAGE_LEN]).await?;
    let mut page = SettledPage { more: rows.len() == PAGE_LEN as usize, ..SettledPage::default() };
    for row in &rows {
        let (place, bill) = read(row)?;
        page.next = Some(place);
        page.bills.extend(bill);
    }
    Ok(page)
}

fn read(row: &Row) -> Result<(Place, Option<Settled>), StoreError> {
    let mut at = row.fields();
    let (place, kind) = ((at.int()?, at.int()?), at.text()?);
    if kind != "settle" && kind != "recovered" {
        return Ok((place, None));
    }
    let bill = Settled {
        place,
        at_us: at.int()?,
        tenant: at.text_or_none()?.unwrap_or_default(),
        request: at.text_or_none()?.unwrap_or_default(),
        model: at.text_or_none()?.unwrap_or_default(),
        key: at.text_or_none()?.unwrap_or_default(),
        device_ns: at.int()?,
        prompt_tokens: at.int()?,
        completion_tokens: at.int()?,
    };
    Ok((place, Some(bill)))
}
