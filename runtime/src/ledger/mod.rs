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
//! closes the epoch ([`recover`]); a month is closed by a signed statement ([`Month`]), after which its rows can be
//! archived.
//!
//! **Never** reads a clock or knows the scheduler; See `docs/ledger.md`.

mod anchor;
mod body;
mod book;
mod epoch;
mod error;
mod month;
mod operator;
mod read;
mod record;
mod recover;
mod row;
mod sql;
#[cfg(test)]
mod tests;
mod usage;
mod verify;
mod writer;

pub use anchor::{Anchor, first_bad_anchor};
pub use book::{Account, Book, Stage, Unsettled};
pub use epoch::{START_ROWS_MAX, begin, close, end};
pub use error::LedgerError;
pub use month::{Accounts, ChainEnd, Closing, Month, MonthFault, PublicKey, SigningKey, Usage};
pub use operator::{OperatorKind, OperatorTimes};
pub use read::{last_month, verify_store};
pub use record::{Checkpoint, Kind, Lost, Open, Record, Running, Settle, Share, Text};
pub use recover::{STOPPED_BY_CRASH, recover};
pub use row::{Chain, Hash, ROW_VERSION, Row};
pub use verify::{BadRow, Fault, Head, Start, Verified, Verifier, verify};
pub use writer::{Done, Entry, GROUP_LEN_MAX, RECORDS_WAITING_MAX, Writer, WriterOptions};
