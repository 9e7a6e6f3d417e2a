//! Quotas as windows, in memory: for each tenant and each hour, day and month in UTC that it has a limit for, what was taken out of it.
//!
//! A window is a row that begins with nothing taken, and not a counter that somebody has to reset at the right moment. Rows of windows that are
//! over stay until the leases taken from them are forgotten. **What was spent is forgotten when the process ends.**

use std::{collections::BTreeMap, time::Duration};

use weir_scheduler::{Nanos, TenantId};

use crate::config::DeviceQuota;

/// Leases of a tenant that are remembered, the present one included. What an older one gives back is lost to the tenant: rows would have
/// to be in flight for as long as several leases last.
const LEASES_MAX: usize = 4;

/// Where balances are kept. All times are since 1970, in UTC.
pub(super) trait Quotas {
    /// Takes up to `wanted` out of every window of the tenant's: less where little is left, but `least` if there is as much.
    fn take(&mut self, tenant: TenantId, at: Duration, wanted: Nanos, least: Nanos) -> Answer;
    /// Whether a lease is of the windows of this moment, and so may go on.
    fn extends(&mut self, tenant: TenantId, at: Duration, epoch: u64) -> bool;
    /// Puts back what a lease did not use.
    fn give_back(&mut self, tenant: TenantId, epoch: u64, amount: Nanos);
    /// What could be taken.
    fn balance(&self, tenant: TenantId, at: Duration) -> Nanos;
}

/// What comes of asking for time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// So much is the lease's now.
    Taken {
        /// Which lease: it grows when the windows change.
        epoch: u64,
        /// How much.
        amount: Nanos,
    },
    /// There is nothing left.
    Spent {
        /// When there will be.
        until: Duration,
    },
}

/// The length of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Period {
    Hour,
    Day,
    Month,
}

/// A window: which, and when it began, in seconds since 1970.
type Window = (Period, u64);

/// Balances in memory.
#[derive(Debug, Default)]
pub(super) struct Windows {
    tenants: BTreeMap<TenantId, Balance>,
}

#[derive(Debug, Default)]
struct Balance {
    limits: Vec<(Period, Nanos)>,
    /// What was taken and not given back.
    taken: BTreeMap<Window, Nanos>,
    /// The last leases by epoch, with the windows that they were taken from.
    leases: BTreeMap<u64, Vec<Window>>,
}

impl Windows {
    pub(super) fn new(quotas: &[(TenantId, DeviceQuota)]) -> Windows {
        let balance = |quota: &DeviceQuota| {
            let limits = [(Period::Hour, quota.hour), (Period::Day, quota.day), (Period::Month, quota.month)];
            let nanos = |time: Duration| Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            let limits = limits.into_iter().filter_map(|(period, limit)| Some((period, nanos(limit?))));
            Balance { limits: limits.collect(), ..Balance::default() }
        };
        Windows { tenants: quotas.iter().map(|(tenant, quota)| (*tenant, balance(quota))).collect() }
    }
}

impl Balance {
    fn windows(&self, at: Duration) -> Vec<Window> {
        self.limits.iter().map(|(period, _)| (*period, period.begin(at.as_secs()))).collect()
    }

    /// What is left of a window.
    fn left(&self, limit: Nanos, window: Window) -> Nanos {
        limit.saturating_sub(self.taken.get(&window).copied().unwrap_or(Nanos(0)))
    }

    fn balance(&self, windows: &[Window]) -> Nanos {
        let left = self.limits.iter().zip(windows).map(|((_, limit), window)| self.left(*limit, *window));
        left.min().unwrap_or(Nanos(0))
    }

    /// The lease of these windows, which is the last one or a new one.
    fn lease(&mut self, windows: Vec<Window>) -> u64 {
        let last = self.leases.last_key_value();
        if let Some((epoch, _)) = last.filter(|(_, of)| **of == windows) {
            return *epoch;
        }
        let epoch = last.map_or(1, |(epoch, _)| epoch + 1);
        self.leases.insert(epoch, windows);
        while self.leases.len() > LEASES_MAX {
            self.leases.pop_first();
        }
        let leases = &self.leases;
        self.taken.retain(|window, _| leases.values().any(|of| of.contains(window)));
        epoch
    }
}

impl Quotas for Windows {
    fn take(&mut self, tenant: TenantId, at: Duration, wanted: Nanos, least: Nanos) -> Answer {
        // Who has no limit is not metered, and does not ask.
        let Some(balance) = self.tenants.get_mut(&tenant) else { return Answer::Spent { until: at } };
        let windows = balance.windows(at);
        let left = balance.balance(&windows);
        if left == Nanos(0) {
            let spent = balance.limits.iter().zip(&windows).filter(|((_, limit), w)| balance.left(*limit, **w).0 == 0);
            let until = spent.map(|(_, (period, begin))| period.end(*begin)).max().unwrap_or(0);
            return Answer::Spent { until: Duration::from_secs(until) };
        }
        let amount = wanted.min(Nanos(left.0 / 4).max(least)).min(left);
        for window in &windows {
            *balance.taken.entry(*window).or_default() += amount;
        }
        Answer::Taken { epoch: balance.lease(windows), amount }
    }

    fn extends(&mut self, tenant: TenantId, at: Duration, epoch: u64) -> bool {
        let Some(balance) = self.tenants.get(&tenant) else { return false };
        balance.leases.get(&epoch).is_some_and(|windows| *windows == balance.windows(at))
    }

    fn give_back(&mut self, tenant: TenantId, epoch: u64, amount: Nanos) {
        let Some(balance) = self.tenants.get_mut(&tenant) else { return };
        for window in balance.leases.get(&epoch).into_iter().flatten() {
            if let Some(taken) = balance.taken.get_mut(window) {
                *taken = taken.saturating_sub(amount);
            }
        }
    }

    fn balance(&self, tenant: TenantId, at: Duration) -> Nanos {
        self.tenants.get(&tenant).map_or(Nanos(0), |balance| balance.balance(&balance.windows(at)))
    }
}

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

impl Period {
    /// The second in which the window of this moment began.
    fn begin(self, at: u64) -> u64 {
        match self {
            Period::Hour => at / HOUR * HOUR,
            Period::Day => at / DAY * DAY,
            Period::Month => (at / DAY - u64::from(day_of_month(at / DAY))) * DAY,
        }
    }

    /// The first second after the window that began then.
    fn end(self, begin: u64) -> u64 {
        match self {
            Period::Hour => begin + HOUR,
            Period::Day => begin + DAY,
            // Every month is over 31 days after it began, and the next one is not.
            Period::Month => self.begin(begin + 31 * DAY),
        }
    }
}

/// Days since the first of the month, of a day since 1970, in the Gregorian calendar. Years are counted from March, so that the leap day is
/// the last; then 153 days are five months, of which each begins `(153 m + 2) / 5` days after the first.
fn day_of_month(day: u64) -> u32 {
    // Since 1 March of the year 0, in cycles of 400 years.
    let of_cycle = (day + 719_468) % 146_097;
    let year = (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    (of_year - (153 * month + 2) / 5) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TenantId = TenantId(1);

    fn windows(hour: Option<u64>, day: Option<u64>, month: Option<u64>) -> Windows {
        let [hour, day, month] = [hour, day, month].map(|limit| limit.map(Duration::from_secs));
        Windows::new(&[(A, DeviceQuota { hour, day, month })])
    }

    #[test]
    fn months_begin_and_end_on_the_first_in_every_year() {
        // Walks the calendar by its rule, from 1970 to 2120.
        let (mut day, mut begin) = (0, 0);
        for year in 1970..2120 {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            for len in [31, 28 + u64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
                for of_month in 0..len {
                    assert_eq!(u64::from(day_of_month(day)), of_month, "day {day}");
                    assert_eq!(Period::Month.begin(day * DAY + 86_399), begin);
                    day += 1;
                }
                assert_eq!(Period::Month.end(begin), day * DAY);
                begin = day * DAY;
            }
        }
    }

    #[test]
    fn every_window_has_to_have_it_and_the_last_to_open_says_when() {
        let mut windows = windows(Some(10), Some(15), None);
        let at = Duration::from_secs(1_800_000_000);
        let all = |windows: &mut Windows, at| windows.take(A, at, Nanos::from_secs(100), Nanos::from_secs(100));
        assert_eq!(all(&mut windows, at), Answer::Taken { epoch: 1, amount: Nanos::from_secs(10) });
        let hour = Duration::from_secs(1_800_000_000 / HOUR * HOUR + HOUR);
        assert_eq!(all(&mut windows, at), Answer::Spent { until: hour });
        assert_eq!(all(&mut windows, hour), Answer::Taken { epoch: 2, amount: Nanos::from_secs(5) });
        let day = Duration::from_secs(1_800_000_000 / DAY * DAY + DAY);
        assert_eq!(all(&mut windows, hour), Answer::Spent { until: day });
        assert_eq!(all(&mut windows, day), Answer::Taken { epoch: 3, amount: Nanos::from_secs(10) });
    }

    #[test]
    fn what_comes_back_goes_where_it_was_taken_from() {
        let mut windows = windows(Some(10), None, Some(100));
        let (at, later) = (Duration::from_secs(1_800_000_000), Duration::from_secs(1_800_000_000 + HOUR));
        windows.take(A, at, Nanos::from_secs(4), Nanos::from_secs(4));
        windows.take(A, later, Nanos::from_secs(3), Nanos::from_secs(3));
        windows.give_back(A, 1, Nanos::from_secs(1));
        assert_eq!(windows.balance(A, later), Nanos::from_secs(7));
        assert_eq!(windows.tenants[&A].taken[&(Period::Month, Period::Month.begin(at.as_secs()))], Nanos::from_secs(6));
        assert!(windows.extends(A, later, 2) && !windows.extends(A, later, 1));
        windows.give_back(A, 77, Nanos::from_secs(1));
        assert_eq!(windows.balance(A, later), Nanos::from_secs(7), "nobody knows that lease");
    }

    #[test]
    fn rows_of_windows_that_are_over_do_not_gather() {
        let mut windows = windows(Some(10), Some(1_000), None);
        for hour in 0..5_000 {
            windows.take(A, Duration::from_secs(1_800_000_000 + hour * HOUR), Nanos(5), Nanos(5));
        }
        assert!(windows.tenants[&A].taken.len() <= 2 * LEASES_MAX && windows.tenants[&A].leases.len() <= LEASES_MAX);
    }
}
