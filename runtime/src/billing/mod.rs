//! What tenants used, and what it costs: out of `usage_days`, which each settle of the ledger adds to in its own
//! transaction, and the prices.
//!
//! * [`Cost`] is exact. **The one rounding:** the amount of a line of a bill, and of a group of a usage answer, is rounded
//!   down to a millionth of the currency, after everything in it was added up; a total is the sum of its lines.
//! * A price counts for whole days (UTC), from the one on which it begins.
//! * [`Usage`] groups rows; [`Invoice`] is a tenant's bill of a month, which [`invoice`] keeps for good once the month is
//!   over.
//!
//! Nothing here reads a clock. See `docs/billing.md`.

mod cost;
mod export;
mod feed;
mod invoice;
mod rates;
mod sql;
mod statement;
#[cfg(test)]
mod tests;
mod usage;

pub use cost::Cost;
pub use export::{ExportedRow, LedgerRange};
pub use feed::{Place, Settled, SettledPage, settled};
pub use invoice::{Invoice, InvoiceLine, Sums};
pub use rates::Rates;
pub use sql::{invoice, keep_invoices, usage};
pub use statement::{Unequal, unequal_invoices};
pub use usage::{Dimension, GROUPS_LEN_MAX, GroupKey, TooManyGroups, Usage, UsageGroup, UsageRow};
