//! Quotas: windows of the calendar, what plans allow in them, and grants out of them.
//!
//! A quota is so much of a [`Unit`] in each hour, day or month. Work runs against [`Grants`], which were taken out of
//! every window in the transaction that looked at them. **Never** reads a clock: instants are arguments. See
//! `docs/quotas.md`.

pub mod calendar;
mod grants;
mod limit;
mod store;
#[cfg(test)]
mod tests;

pub use calendar::Period;
pub use grants::{Ask, Grant, Grants, Report, Reported, Taken, WindowKey};
pub use limit::{Answer, Limits, Unit, Window, Windows};
pub(crate) use store::report_in;
pub use store::{ReportOf, report, take};
