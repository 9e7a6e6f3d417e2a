//! What is told of windows: that a soft limit is passed, that nothing is left, and, in shadow mode, what would have been refused.
//!
//! Each is told once for a window, by this replica; two replicas may tell the same, so a notice names its window. Who listens too slowly
//! misses the oldest.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
};

use tokio::sync::broadcast;

use super::{
    calendar::Period,
    grants::Ask,
    limit::{Answer, Filled, Limits, Unit},
};

/// Notices that wait for each listener.
const NOTICES_LEN_MAX: usize = 1024;

/// What has happened to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Passed {
    /// So many hundredths of it are used: its soft limit.
    Soft(u32),
    /// Nothing is left: requests are refused.
    Spent,
    /// Nothing is left, and requests go on, for the quota is in shadow mode.
    Shadow,
}

/// Something to be known about a tenant's quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaNotice {
    /// Whose: the tenant's id in the store.
    pub tenant: String,
    /// Of what.
    pub unit: Unit,
    /// The window's length.
    pub period: Period,
    /// When it began, in microseconds since 1970.
    pub begins_us: i64,
    /// When it ends.
    pub until_us: i64,
    /// What has happened.
    pub passed: Passed,
    /// When that was.
    pub at_us: i64,
}

/// A window of a tenant's that is past its soft limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaWarning {
    /// Of what.
    pub unit: Unit,
    /// The window's length.
    pub period: Period,
    /// The soft limit, in hundredths of what is allowed.
    pub percent: u32,
    /// How much of it all replicas had together when this one last asked: what is held and not yet used counts.
    pub granted: i64,
    /// What is allowed, with burst and carry-over.
    pub allowed: i64,
    /// When the window ends, in microseconds since 1970.
    pub until_us: i64,
}

/// Tells notices, and keeps what was told.
#[derive(Debug)]
pub struct Notices {
    told: broadcast::Sender<QuotaNotice>,
    /// By tenant.
    tenants: RwLock<BTreeMap<String, ToldOf>>,
}

/// One entry for each unit and period that has had any.
type ToldOf = BTreeMap<(Unit, Period), Told>;

#[derive(Debug, Default)]
struct Told {
    counts: BTreeMap<&'static str, u64>,
    begins_us: i64,
    until_us: i64,
    soft: Option<Warned>,
    spent: bool,
    shadow: bool,
}

/// A soft limit that is passed, and how full the window was when it was last looked at.
#[derive(Debug, Clone, Copy)]
struct Warned {
    percent: u32,
    granted: i64,
    allowed: i64,
}

/// How many windows of a tenant have come to something, since this process began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedCount {
    /// Whose.
    pub tenant: String,
    /// Of what.
    pub unit: Unit,
    /// Their length.
    pub period: Period,
    /// `soft`, `spent` or `shadow`.
    pub passed: &'static str,
    /// So many.
    pub windows: u64,
}

impl Passed {
    /// As metrics have it.
    pub fn word(self) -> &'static str {
        match self {
            Passed::Soft(_) => "soft",
            Passed::Spent => "spent",
            Passed::Shadow => "shadow",
        }
    }
}

impl Default for Notices {
    fn default() -> Notices {
        Notices { told: broadcast::Sender::new(NOTICES_LEN_MAX), tenants: RwLock::default() }
    }
}

impl Notices {
    /// What is told from now on.
    pub fn listen(&self) -> broadcast::Receiver<QuotaNotice> {
        self.told.subscribe()
    }

    /// The windows of a tenant that are past their soft limits.
    pub fn warnings(&self, tenant: &str, at_us: i64) -> Vec<QuotaWarning> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let of = tenants.get(tenant).into_iter().flatten();
        let soft = of.filter(|(_, told)| (told.begins_us..told.until_us).contains(&at_us));
        soft.filter_map(|(&(unit, period), told)| {
            let Warned { percent, granted, allowed } = told.soft?;
            Some(QuotaWarning { unit, period, percent, granted, allowed, until_us: told.until_us })
        })
        .collect()
    }

    /// How many windows have come to what: a window that passes its soft limit and is then spent counts in both.
    pub fn passed(&self) -> Vec<PassedCount> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let mut counts = Vec::new();
        for (tenant, windows) in &*tenants {
            for (&(unit, period), told) in windows {
                let one = |(&passed, &windows)| PassedCount { tenant: tenant.clone(), unit, period, passed, windows };
                counts.extend(told.counts.iter().map(one));
            }
        }
        counts
    }

    /// Hears what came of an ask.
    pub(super) fn hear(&self, ask: &Ask, limits: &Limits, answer: &Answer) {
        match answer {
            Answer::Granted { soft, beyond, over, .. } if beyond.is_empty() && over.is_empty() => {
                debug_assert!(soft.is_empty());
            }
            Answer::Granted { beyond, over, .. } => {
                let percent = limits.soft_percent;
                for Filled { period, granted, allowed } in beyond {
                    self.tell(ask, *period, Passed::Soft(percent));
                    self.warn(ask, *period, Warned { percent, granted: *granted, allowed: *allowed });
                }
                over.iter().for_each(|period| self.tell(ask, *period, Passed::Shadow));
            }
            Answer::Spent { period, .. } => self.tell(ask, *period, Passed::Spent),
        }
    }

    /// Keeps how full a window is that was told of.
    fn warn(&self, ask: &Ask, period: Period, warned: Warned) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = tenants.get_mut(&ask.tenant).and_then(|told| told.get_mut(&(ask.unit, period))) {
            told.soft = Some(warned);
        }
    }

    fn tell(&self, ask: &Ask, period: Period, passed: Passed) {
        let begins_us = period.begin(ask.at_us);
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        if !tenants.contains_key(&ask.tenant) {
            tenants.insert(ask.tenant.clone(), BTreeMap::new());
        }
        let Some(told) = tenants.get_mut(&ask.tenant) else { return };
        let told = told.entry((ask.unit, period)).or_default();
        if (told.begins_us, told.until_us) != (begins_us, period.end(begins_us)) {
            let counts = std::mem::take(&mut told.counts);
            *told = Told { begins_us, until_us: period.end(begins_us), counts, ..Told::default() };
        }
        let known = match passed {
            // A plan may have moved it.
            Passed::Soft(percent) => told.soft.is_some_and(|warned| warned.percent == percent),
            Passed::Spent => std::mem::replace(&mut told.spent, true),
            Passed::Shadow => std::mem::replace(&mut told.shadow, true),
        };
        if !known {
            *told.counts.entry(passed.word()).or_default() += 1;
            let (tenant, unit, until_us) = (ask.tenant.clone(), ask.unit, told.until_us);
            let notice = QuotaNotice { tenant, unit, period, begins_us, until_us, passed, at_us: ask.at_us };
            // Nobody listens: then nobody wants to know.
            let _ = self.told.send(notice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::{Grants, Taken, Want};

    #[test]
    fn each_window_is_told_of_once_and_warned_of_until_it_ends() {
        let (notices, mut grants) = (Notices::default(), Grants::new(0));
        let mut heard = notices.listen();
        let mut limits = Limits { amounts: [Some(10), None, None], soft_percent: 80, ..Limits::default() };
        let mut take = |id, amount, at_us, limits: &Limits| {
            let (tenant, replica) = ("acme".to_owned(), "one".to_owned());
            let (unit, epoch, expires_us) = (Unit::Requests, 1, i64::MAX);
            let ask = Ask { id, tenant, unit, replica, epoch, want: Want::of(amount), at_us, expires_us };
            let Taken::Answer(answer) = grants.take(&ask, limits) else { panic!("a new id") };
            notices.hear(&ask, limits, &answer);
        };
        let mut passed = || heard.try_recv().ok().map(|notice| (notice.period, notice.begins_us, notice.passed));
        take(1, 7, 5, &limits);
        assert_eq!((passed(), notices.warnings("acme", 5)), (None, vec![]));
        take(2, 1, 6, &limits);
        take(3, 1, 7, &limits);
        assert_eq!((passed(), passed()), (Some((Period::Hour, 0, Passed::Soft(80))), None));
        let hour = Period::Hour.end(0);
        let (unit, period) = (Unit::Requests, Period::Hour);
        let warning = QuotaWarning { unit, period, percent: 80, granted: 9, allowed: 10, until_us: hour };
        assert_eq!((notices.warnings("acme", 8), notices.warnings("beta", 8)), (vec![warning], vec![]));
        take(4, 1, 8, &limits);
        take(5, 1, 9, &limits);
        take(6, 1, 10, &limits);
        assert_eq!((passed(), passed()), (Some((Period::Hour, 0, Passed::Spent)), None));
        limits.shadow = true;
        take(7, 1, 11, &limits);
        assert_eq!((passed(), passed()), (Some((Period::Hour, 0, Passed::Shadow)), None));
        assert_eq!(notices.warnings("acme", hour), vec![], "that window is over");
        take(8, 9, hour, &limits);
        assert_eq!(passed(), Some((Period::Hour, hour, Passed::Soft(80))));
        let counts: Vec<_> = notices.passed().into_iter().map(|count| (count.passed, count.windows)).collect();
        assert_eq!(counts, [("shadow", 1), ("soft", 2), ("spent", 1)]);
    }
}
