//! What can go wrong with a ledger in a store.

use super::{
    month::MonthFault,
    verify::{BadRow, Fault},
};
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
    /// A record does not fit the rows before it, and was not written.
    #[error("the accounts do not add up, so nothing more is written: row {seq} of epoch {epoch}: {fault}")]
    Unsound {
        /// Whose chain.
        epoch: i64,
        /// The place that it was to have.
        seq: i64,
        /// Why not.
        fault: Box<Fault>,
    },
    /// Two bills of one request that do not agree; the second was not written.
    #[error("request {request:?} of {tenant:?} has a bill already, and another was to be written")]
    SettledTwice {
        /// Whose.
        tenant: String,
        /// Which.
        request: String,
    },
    /// The sums of a day's use are not those of its bills.
    #[error("usage of day {day} of {tenant:?}: the table says {stored} and the bills {billed}")]
    Usage {
        /// Days since 1970.
        day: i64,
        /// Whose; of all its models, keys, plans and classes the first that is wrong.
        tenant: String,
        /// What the table says.
        stored: String,
        /// What the rows add up to.
        billed: String,
    },
    /// Another start of this replica has closed the epoch: this one must not write any more.
    #[error("epoch {epoch} has been ended by another start of this replica")]
    Ended {
        /// Which.
        epoch: i64,
    },
}
