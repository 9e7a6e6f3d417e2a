//! Quotas: windows of the calendar, what plans allow in them, and grants out of them.
//!
//! A quota is so much of a [`Unit`] in each hour, day or month. Work runs against [`Grants`], which were taken out of
//! every window in the transaction that looked at them: a [`Source`]'s, which is the store's or this process's memory.
//! [`RequestCounts`] takes requests out of grants; device time is leased in the engine thread. Only these two read a
//! clock. See `docs/quotas.md`.

pub mod calendar;
mod grants;
mod limit;
mod notice;
mod requests;
mod source;
mod store;
#[cfg(test)]
mod tests;

pub use calendar::{Date, Period, date, month_begins_us};
pub use grants::{Ask, Grant, Grants, Report, Reported, Taken, WindowKey};
pub use limit::{Answer, BURST_PERCENT_MAX, Filled, Limits, Unit, Want, Window, Windows, percent};
pub use notice::{Notices, Passed, PassedCount, QuotaNotice, QuotaWarning};
pub use requests::{Refusal, RequestCounts, Ticket};
pub use source::Source;
pub(crate) use source::{LIFE, SKEW, micros, now_us};
pub(crate) use store::report_in;
pub use store::{ReportOf, report, take, windows};
