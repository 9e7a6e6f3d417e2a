//! What can go wrong with a ledger in a store.

use super::{month::MonthFault, verify::BadRow};
use crate::store::StoreError;

/// Why the ledger did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store's answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row is wrong.
    #[error("the ledger was changed: {0}")]
    BadRow(#[from] BadRow),
    /// A month's statement is wrong.
    #[error("a month's statement does not count: {0}")]
    Month(#[from] MonthFault),
    /// Another start of this replica has closed the epoch: this one must not write any more.
    #[error("epoch {epoch} has been ended by another start of this replica")]
    Ended {
        /// Which.
        epoch: i64,
    },
}
