//! What can go wrong with a ledger in a store.

use super::{
    month::MonthFault,
    verify::{BadRow, Fault},
};
use crate::store::StoreError;

/// Why a month is not closed or archived, though nothing is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// It goes on, or its last rows may still come.
    #[error("{month} can be closed ten minutes after its end")]
    Open {
        /// Which.
        month: String,
    },
    /// Months are closed one after the other.
    #[error("the next month to be closed is {next}, and not {month}")]
    NotNext {
        /// Which was asked for.
        month: String,
        /// Which is next.
        next: String,
    },
    /// There is nothing to close.
    #[error("there is no row in the ledger, and so no month to be closed")]
    Empty,
    /// It is not closed.
    #[error("{month} is not closed")]
    NotClosed {
        /// Which.
        month: String,
    },
    /// Its rows are gone.
    #[error("{month} is archived: its rows are in the file that was made then")]
    Archived {
        /// Which.
        month: String,
    },
    /// Requests of its last days may be repeated.
    #[error("rows of {month} stay until two days after its end: a request of that time may be repeated by its key")]
    Fresh {
        /// Which.
        month: String,
    },
    /// Months are archived one after the other.
    #[error("{first} has to be archived before {month}")]
    NotFirst {
        /// Which was asked for.
        month: String,
        /// The oldest that is not archived.
        first: String,
    },
    /// What was exported is not what is there.
    #[error("what was exported is not the statement of {month} with its {rows} rows: export it again")]
    OtherExport {
        /// Which.
        month: String,
        /// How many rows it has.
        rows: i64,
    },
}

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
    #[error("the statement of {month} does not count: {fault}")]
    Month {
        /// Such as `2026-11`.
        month: String,
        /// Why not.
        fault: MonthFault,
    },
    /// Noted heads were changed, or are missing.
    #[error("anchor {number} is not the one that was noted")]
    Anchor {
        /// Its place.
        number: i64,
    },
    /// A month cannot be closed or archived now.
    #[error("{0}")]
    NotNow(#[from] NotNow),
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
