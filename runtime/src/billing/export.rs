//! Rows of the ledger for other programs, page by page.

use serde::{Deserialize, Serialize};

use crate::store::{Store, StoreError, args};

/// Rows of one page.
const PAGE_LEN: i64 = 1000;

/// Which rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerRange {
    /// Written then or later.
    pub from_us: i64,
    /// Written before.
    pub to_us: i64,
    /// Of this tenant only: its bills, and nothing of the operator's.
    pub tenant: Option<String>,
}

/// A row as it is exported: all columns, so that whoever has them can recompute the hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedRow {
    /// Which life of which engine.
    pub epoch: i64,
    /// Its place in the epoch's chain.
    pub seq: i64,
    /// When it was written.
    pub at_us: i64,
    /// What kind.
    pub kind: String,
    /// Who pays.
    pub tenant: Option<String>,
    /// Which request.
    pub request: Option<String>,
    /// What it asked for.
    pub model: Option<String>,
    /// By which credential.
    pub key: Option<String>,
    /// Device time charged.
    pub device_ns: i64,
    /// Tokens of the prompt.
    pub prompt_tokens: i64,
    /// Tokens drawn.
    pub completion_tokens: i64,
    /// The rest, as it was hashed.
    pub body: String,
    /// In hexadecimal digits.
    pub hash: String,
}

impl LedgerRange {
    /// The rows after the place (epoch, seq), in the order of the chains; none when there are no more.
    pub async fn page(&self, store: &Store, after: (i64, i64)) -> Result<Vec<ExportedRow>, StoreError> {
        let all = "SELECT epoch, seq, at_us, kind, tenant, request, model, key, device_ns, prompt_tokens, completion_tokens, \
                   body, hash FROM ledger WHERE (epoch, seq) > ($1, $2) AND at_us >= $3 AND at_us < $4 \
                   ORDER BY epoch, seq LIMIT $5";
        let own = "SELECT epoch, seq, at_us, kind, tenant, request, model, key, device_ns, prompt_tokens, completion_tokens, \
                   body, hash FROM ledger WHERE (epoch, seq) > ($1, $2) AND at_us >= $3 AND at_us < $4 AND tenant = $6 \
                   ORDER BY epoch, seq LIMIT $5";
        let mut tx = store.read().await?;
        let rows = match &self.tenant {
            None => tx.rows(all, args![after.0, after.1, self.from_us, self.to_us, PAGE_LEN]).await?,
            Some(tenant) => tx.rows(own, args![after.0, after.1, self.from_us, self.to_us, PAGE_LEN, tenant]).await?,
        };
        rows.iter().map(ExportedRow::read).collect()
    }
}

impl ExportedRow {
    /// All columns, in the order of the fields here.
    pub(crate) fn read(row: &crate::store::Row) -> Result<ExportedRow, StoreError> {
        let mut at = row.fields();
        Ok(ExportedRow {
            epoch: at.int()?,
            seq: at.int()?,
            at_us: at.int()?,
            kind: at.text()?,
            tenant: at.text_or_none()?,
            request: at.text_or_none()?,
            model: at.text_or_none()?,
            key: at.text_or_none()?,
            device_ns: at.int()?,
            prompt_tokens: at.int()?,
            completion_tokens: at.int()?,
            body: at.text()?,
            hash: at.bytes()?.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}
