//! What a plan allows in a window, as plain decisions.
//!
//! *Burst.* In an hour or a day a tenant may have so many per cent more than its limit. What it has above the limit
//! is a debt to the next window of that length, which has that much less to burst with, and so on until windows that
//! stay under the limit have repaid it. So it never owes more than one burst, each window allows at least the limit,
//! and any number of windows in a row allow their limits and one burst together. The longer windows hold all the
//! same.
//!
//! *Carry-over.* Of what a month did not use of its own limit, so many per cent go on to the next month, once: what
//! was brought is used first and is not brought again. Only a month with a row carries, so not one in which nothing
//! at all was asked for.
//!
//! Both are worked out when a window's row is made, from the row before, and stay as they are: what is allowed in a
//! window that has begun changes only with the plan.

use super::calendar::Period;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// Nanoseconds of device time.
    DeviceNs,
    /// Requests begun.
    Requests,
}

impl Unit {
    /// All of them.
    pub const ALL: [Unit; 2] = [Unit::DeviceNs, Unit::Requests];

    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Unit::DeviceNs => "device_ns",
            Unit::Requests => "requests",
        }
    }

    /// By its name.
    pub fn from_name(name: &str) -> Option<Unit> {
        Unit::ALL.into_iter().find(|unit| unit.name() == name)
    }
}

/// The greatest burst: ten limits on top of one.
pub const BURST_PERCENT_MAX: u32 = 1_000;

/// A plan's limits of one unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// By [`Period::ALL`]; nothing is no limit: then what is used is counted all the same.
    pub amounts: [Option<i64>; 3],
    /// Of the limit of hours and days, on top of it; at most [`BURST_PERCENT_MAX`].
    pub burst_percent: u32,
    /// Of what a month left unused; at most 100.
    pub carry_percent: u32,
    /// Of what is allowed: granting past it is an event. Zero for none, at most 100.
    pub soft_percent: u32,
    /// Everything is granted, and what would have been refused is an event.
    pub shadow: bool,
}

/// A window's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// When it began.
    pub begins_us: i64,
    /// Carried over, or below zero what is owed for earlier bursts.
    pub brought: i64,
    /// Given to replicas and not given back.
    pub granted: i64,
    /// Of that, what is known to be spent.
    pub spent: i64,
}

/// The windows of one moment, by [`Period::ALL`].
pub type Windows = [Window; 3];

/// How much is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Would be welcome.
    pub wanted: i64,
    /// Is needed.
    pub least: i64,
    /// With less than this left, nothing is taken; it counts as spent.
    pub floor: i64,
}

impl Want {
    /// So much, or what there is.
    pub fn of(amount: i64) -> Want {
        Want { wanted: amount, least: amount, floor: 1 }
    }
}

impl Answer {
    /// As a grant is told once more: what was noteworthy was told the first time.
    pub(super) fn again(amount: i64) -> Answer {
        Answer::Granted { amount, soft: vec![], beyond: vec![], over: vec![] }
    }
}

/// What comes of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// So much may be spent now.
    Granted {
        /// How much, never zero.
        amount: i64,
        /// Windows whose soft limit this passes.
        soft: Vec<Period>,
        /// Windows that are past their soft limit, these among them, and how full they are now.
        beyond: Vec<Filled>,
        /// Windows that would not have allowed it: only in shadow mode.
        over: Vec<Period>,
    },
    /// There is nothing left.
    Spent {
        /// The window that opens last.
        period: Period,
        /// When it ends.
        until_us: i64,
    },
}

/// How full a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Its length.
    pub period: Period,
    /// Given to replicas and not given back.
    pub granted: i64,
    /// What may be.
    pub allowed: i64,
}

/// So many hundredths of an amount, rounded down.
pub fn percent(amount: i64, percent: u32) -> i64 {
    i64::try_from(i128::from(amount) * i128::from(percent) / 100).unwrap_or(i64::MAX)
}

impl Limits {
    /// Whether there is nothing to count.
    pub fn is_empty(&self) -> bool {
        self.amounts.iter().all(Option::is_none)
    }

    fn amount(&self, period: Period) -> Option<i64> {
        self.amounts[period as usize].map(|amount| amount.max(0))
    }

    fn burst(&self, amount: i64) -> i64 {
        percent(amount, self.burst_percent.min(BURST_PERCENT_MAX))
    }

    /// What a window may have granted at most.
    pub fn allowed(&self, period: Period, brought: i64) -> i64 {
        let Some(amount) = self.amount(period) else { return i64::MAX };
        let burst = match period {
            Period::Month => 0,
            _ => self.burst(amount),
        };
        amount.saturating_add(burst).saturating_add(brought).max(0)
    }

    /// What a new window brings from the one before; nothing if that has no row.
    pub fn brought(&self, period: Period, before: Option<&Window>) -> i64 {
        let (Some(amount), Some(before)) = (self.amount(period), before) else { return 0 };
        match period {
            Period::Month => {
                let own = before.granted.saturating_sub(before.brought.max(0)).max(0);
                percent(amount.saturating_sub(own).max(0), self.carry_percent.min(100))
            }
            _ => {
                let owed = before.granted.saturating_sub(amount).saturating_sub(before.brought);
                // The plan may have been another then.
                -owed.clamp(0, self.burst(amount))
            }
        }
    }

    /// Takes up to `wanted` out of every window: less where little is left, but `least` if there is as much, and nothing where
    /// there is less than `floor`.
    pub fn take(&self, windows: &mut Windows, Want { wanted, least, floor }: Want) -> Answer {
        let (wanted, least, floor) = (wanted.max(1), least.max(1), floor.max(1));
        let left_in = |period: Period, window: &Window| {
            self.allowed(period, window.brought).saturating_sub(window.granted).max(0)
        };
        let here = || Period::ALL.into_iter().zip(windows.iter()).filter(|(p, _)| self.amount(*p).is_some());
        let left = here().map(|(period, window)| left_in(period, window)).min().unwrap_or(i64::MAX);
        let amount = match self.shadow {
            true => wanted,
            false => wanted.min(least.max(left / 4)).min(left),
        };
        if left < floor && !self.shadow {
            let spent = here().filter(|(period, window)| left_in(*period, window) < floor);
            let last = spent.map(|(period, window)| (period.end(window.begins_us), period)).max();
            let (until_us, period) = last.unwrap_or((i64::MAX, Period::Month));
            return Answer::Spent { period, until_us };
        }
        let over = here().filter(|(p, window)| left_in(*p, window) < amount).map(|(p, _)| p).collect();
        let passes = |period: Period, window: &Window| {
            let soft = percent(self.allowed(period, window.brought), self.soft_percent.min(100));
            (self.soft_percent > 0 && window.granted.saturating_add(amount) >= soft).then_some(window.granted < soft)
        };
        let filled = |(period, window): (Period, &Window)| {
            let (granted, allowed) = (window.granted.saturating_add(amount), self.allowed(period, window.brought));
            passes(period, window).map(|_| Filled { period, granted, allowed })
        };
        let beyond = here().filter_map(filled).collect();
        let soft = here().filter(|(p, window)| passes(*p, window) == Some(true)).map(|(p, _)| p).collect();
        for window in windows.iter_mut() {
            window.granted += amount;
        }
        Answer::Granted { amount, soft, beyond, over }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(brought: i64, granted: i64) -> Window {
        Window { begins_us: 0, brought, granted, spent: 0 }
    }

    #[test]
    fn a_burst_is_repaid_by_the_windows_that_follow() {
        let limits = Limits { amounts: [Some(100), None, None], burst_percent: 30, ..Limits::default() };
        let hour = |brought, granted| limits.brought(Period::Hour, Some(&window(brought, granted)));
        assert_eq!(limits.allowed(Period::Hour, 0), 130);
        assert_eq!(hour(0, 130), -30);
        assert_eq!(limits.allowed(Period::Hour, -30), 100, "the whole burst is owed");
        assert_eq!(hour(-30, 100), -30, "and is still owed after an hour at the limit");
        assert_eq!(hour(-30, 80), -10, "an hour under the limit repays what it left");
        assert_eq!(hour(-10, 40), 0);
        assert_eq!(limits.brought(Period::Hour, None), 0, "and one without a row all");
    }

    #[test]
    fn a_share_of_an_unused_month_goes_on_once() {
        let limits = Limits { amounts: [None, None, Some(1000)], carry_percent: 50, ..Limits::default() };
        let month = |brought, granted| limits.brought(Period::Month, Some(&window(brought, granted)));
        assert_eq!(month(0, 600), 200);
        assert_eq!(limits.allowed(Period::Month, 200), 1200);
        assert_eq!(month(200, 0), 500, "not what was brought before");
        assert_eq!(month(200, 200), 500, "which is used first");
        assert_eq!(month(200, 1200), 0);
    }

    #[test]
    fn events_are_told_once_and_shadow_mode_refuses_nothing() {
        let mut limits = Limits { amounts: [Some(10), None, Some(100)], soft_percent: 80, ..Limits::default() };
        let mut windows = [window(0, 0), window(0, 0), window(0, 70)];
        let both = vec![Period::Hour, Period::Month];
        let filled = |hour, month| {
            let hour = Filled { period: Period::Hour, granted: hour, allowed: 10 };
            vec![hour, Filled { period: Period::Month, granted: month, allowed: 100 }]
        };
        let hour_and_month = Answer::Granted { amount: 10, soft: both, beyond: filled(10, 80), over: vec![] };
        assert_eq!(limits.take(&mut windows, Want::of(20)), hour_and_month);
        let spent = Answer::Spent { period: Period::Hour, until_us: Period::Hour.end(0) };
        assert_eq!(limits.take(&mut windows, Want::of(1)), spent);
        limits.shadow = true;
        let over = Answer::Granted { amount: 1, soft: vec![], beyond: filled(11, 81), over: vec![Period::Hour] };
        assert_eq!(limits.take(&mut windows, Want::of(1)), over);
    }

    #[test]
    fn a_burst_of_several_limits_is_one() {
        let limits = Limits { amounts: [Some(100), None, None], burst_percent: 1_000, ..Limits::default() };
        assert_eq!(limits.allowed(Period::Hour, 0), 1_100);
        assert_eq!(limits.brought(Period::Hour, Some(&window(0, 1_100))), -1_000, "all of it is owed");
    }

    #[test]
    fn less_than_the_floor_stays_where_it_is() {
        let limits = Limits { amounts: [Some(10), None, Some(5)], ..Limits::default() };
        let mut windows = [window(0, 0), window(0, 0), window(0, 2)];
        let want = Want { wanted: 9, least: 1, floor: 4 };
        let spent = Answer::Spent { period: Period::Month, until_us: Period::Month.end(0) };
        assert_eq!(limits.take(&mut windows, want), spent);
        assert_eq!(limits.take(&mut windows, Want { floor: 3, ..want }), Answer::again(1));
    }

    proptest! {
        #[test]
        fn windows_in_a_row_allow_their_limits_and_one_burst(
            amount in 0i64..1_000, burst in 0u32..=BURST_PERCENT_MAX, takes in proptest::collection::vec(0i64..3_000, 1..40),
        ) {
            let limits = Limits { amounts: [Some(amount), None, None], burst_percent: burst, ..Limits::default() };
            let (mut before, mut run) = (None, 0i64);
            for take in takes {
                let brought = limits.brought(Period::Hour, before.as_ref());
                let allowed = limits.allowed(Period::Hour, brought);
                prop_assert!(allowed >= amount);
                let granted = take.min(allowed);
                // The most that any run of windows which ends here is above its limits.
                run = (run + granted - amount).max(0);
                prop_assert!(run <= amount * i64::from(burst) / 100, "{} over", run);
                before = Some(Window { begins_us: 0, brought, granted, spent: 0 });
            }
        }

        #[test]
        fn no_window_grants_more_than_it_allows(
            hour in proptest::option::of(0i64..1_000), day in proptest::option::of(0i64..1_000),
            month in proptest::option::of(0i64..1_000),
            asks in proptest::collection::vec((1i64..400, 1i64..100), 1..60),
        ) {
            let limits = Limits { amounts: [hour, day, month], ..Limits::default() };
            let mut windows = [window(0, 0); 3];
            let mut total = 0;
            for (wanted, least) in asks {
                match limits.take(&mut windows, Want { wanted, least, floor: 1 }) {
                    Answer::Granted { amount, soft, over, .. } => {
                        prop_assert!(amount > 0 && amount <= wanted && soft.is_empty() && over.is_empty());
                        total += amount;
                    }
                    Answer::Spent { .. } => {
                        prop_assert_eq!(limits.amounts.iter().flatten().min(), Some(&total), "all of it was given");
                    }
                }
                for (limit, window) in limits.amounts.iter().zip(&windows) {
                    prop_assert!(window.granted == total && limit.is_none_or(|limit| total <= limit));
                }
            }
        }
    }
}
