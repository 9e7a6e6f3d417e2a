//! The ledger: who was charged what, in rows that can be checked by anybody, and that add up.
//!
//! One chain of [`Row`]s per *epoch*, a life of an engine. A request leaves one row when it ends ([`Settle`]), each
//! device one a second ([`Checkpoint`]). At every checkpoint
//!
//! ```text
//! wall time of the device = idle + operator + bills before it in the chain + what running requests were charged
//! ```
//!
//! to the nanosecond, and [`Verifier`] checks that, the chain and the order in one pass. After a crash the next start
//! closes the epoch ([`recover`]); a month is closed by a signed statement ([`Month`], [`close_month`]), after which its rows
//! can be archived ([`Archive`]). Heads are noted once a day ([`note_heads`]).
//!
//! **Never** reads a clock or knows the scheduler; See `docs/ledger.md`.

mod anchor;
mod archive;
mod body;
mod book;
mod close;
mod epoch;
mod error;
mod month;
mod operator;
mod read;
mod record;
mod recover;
mod row;
mod signing;
mod sql;
mod statement;
#[cfg(test)]
mod tests;
mod usage;
mod verify;
mod whole;
mod writer;

pub use anchor::{Anchor, first_bad_anchor, note_heads};
pub use archive::{
    ARCHIVED_AFTER, Archive, ArchiveFault, ArchiveHead, Checked, Signed, archive_month, check_archive, remove_archived,
};
pub use book::{Account, Book, Stage, Unsettled};
pub use close::{CLOSED_AFTER, close_month, close_months, is_over};
pub use epoch::{START_ROWS_MAX, begin, close, end};
pub use error::{LedgerError, NotNow};
pub use month::{Accounts, ChainEnd, Closing, Month, MonthFault, Usage, UsageSums};
pub use operator::{OperatorKind, OperatorTimes};
pub use record::{Checkpoint, Kind, Lost, Open, Record, Running, Settle, Share, Text};
pub use recover::{STOPPED_BY_CRASH, recover};
pub use row::{Chain, Hash, ROW_VERSION, Row};
pub use signing::{PublicKey, SigningKey};
pub use statement::{Statement, last_month, month_of, statements};
pub use verify::{BadRow, Fault, Head, Start, Verified, Verifier, verify};
pub use whole::verify_store;
pub use writer::{Done, Entry, GROUP_LEN_MAX, LedgerLine, LineWatch, RECORDS_WAITING_MAX, Writer, WriterOptions};
