//! One lease: grants of the same windows, as the scheduler uses them up one after the other.
//!
//! The scheduler adds up what it is granted under one epoch. What of it is spent is what was granted, less what came
//! back, is reserved, or is left; the oldest grant is the first to be spent, so the totals of each are known. The lease
//! may be used until the first of its grants that has something left may not.

use weir_scheduler::{GrantBooks, Nanos};

use crate::quota::ReportOf;

/// A grant of the store's within a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) id: i64,
    pub(super) amount: u64,
    /// Until when it may be used, on the engine's clock.
    pub(super) usable: Nanos,
    /// What the store knows to be spent of it.
    pub(super) told: u64,
}

/// What is to be reported of a lease, and whether that extends it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// When its grants end, in microseconds since 1970, if they are extended.
    pub(super) expires_us: Option<i64>,
    /// No row of the lease is in flight any more, and none will be.
    pub(super) closes: bool,
}

/// Time of one set of windows.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// When its windows began.
    pub(super) windows: [i64; 3],
    pub(super) granted: Nanos,
    pub(super) returned: Nanos,
    /// What the machine's clock said more than the engine's when it began, in microseconds.
    pub(super) ahead_us: i64,
    /// As the scheduler was told.
    pub(super) expires: Nanos,
    /// Nothing more is started against it.
    pub(super) ended: bool,
    /// Spent when it was last looked at.
    pub(super) looked: Nanos,
    /// The amounts of grants that were spent whole, or are not to be heard of again.
    pub(super) before: u64,
    pub(super) parts: Vec<Part>,
}

impl Lease {
    /// What of it is spent: exactly, for the scheduler's present lease; of an earlier one at least so much, and exactly
    /// once nothing of it is in flight.
    pub(super) fn spent(&self, books: &GrantBooks, is_last: bool) -> Nanos {
        let mut open = books.reserved_before;
        if is_last {
            open = books.left + (books.reserved - books.reserved_before);
        }
        self.granted.saturating_sub(self.returned).saturating_sub(open)
    }

    /// Whether no row of it is in flight.
    pub(super) fn is_settled(&self, books: &GrantBooks, is_last: bool) -> bool {
        match is_last {
            true => books.reserved == books.reserved_before,
            false => books.reserved_before == Nanos::ZERO,
        }
    }

    /// What of each grant is spent, the oldest first.
    fn shares(&self, spent: Nanos) -> impl Iterator<Item = (&Part, u64)> {
        let mut rest = spent.0.saturating_sub(self.before);
        self.parts.iter().map(move |part| {
            let share = rest.min(part.amount);
            rest -= share;
            (part, share)
        })
    }

    /// What the store does not know yet, and what it is to know again so that the grants live on.
    pub(super) fn reports(&self, spent: Nanos, terms: Terms) -> impl Iterator<Item = ReportOf> {
        self.shares(spent).filter_map(move |(part, share)| {
            let closes = terms.closes || share == part.amount;
            let news = closes || share != part.told || terms.expires_us.is_some();
            let report =
                ReportOf { id: part.id, spent: signed(share), expires_us: terms.expires_us.unwrap_or(0), closes };
            news.then_some(report)
        })
    }

    /// Until when something of it may be used.
    pub(super) fn usable(&self, spent: Nanos) -> Option<Nanos> {
        self.shares(spent).filter(|(part, share)| share < &part.amount).map(|(part, _)| part.usable).min()
    }

    /// A grant has been closed: what of it was spent stays spent.
    pub(super) fn forget(&mut self, id: i64, spent: i64) -> bool {
        let Some(at) = self.parts.iter().position(|part| part.id == id) else { return false };
        self.parts.remove(at);
        self.before += u64::try_from(spent).unwrap_or(0);
        true
    }
}

fn signed(nanos: u64) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(id: i64, amount: u64, usable: u64) -> Part {
        Part { id, amount, usable: Nanos(usable), told: 0 }
    }

    fn lease() -> Lease {
        let parts = vec![part(1, 100, 10), part(2, 50, 30), part(3, 50, 20)];
        Lease { granted: Nanos(200), parts, ..Lease::default() }
    }

    fn of(reports: impl Iterator<Item = ReportOf>) -> Vec<(i64, i64, bool)> {
        reports.map(|report| (report.id, report.spent, report.closes)).collect()
    }

    #[test]
    fn the_oldest_grant_is_spent_first_and_the_first_to_end_with_anything_left_ends_it() {
        let (lease, terms) = (lease(), Terms { expires_us: None, closes: false });
        assert_eq!(of(lease.reports(Nanos(0), terms)), []);
        assert_eq!(of(lease.reports(Nanos(130), terms)), [(1, 100, true), (2, 30, false)]);
        let extended = Terms { expires_us: Some(9), closes: false };
        assert_eq!(of(lease.reports(Nanos(30), extended)), [(1, 30, false), (2, 0, false), (3, 0, false)]);
        let last = Terms { expires_us: None, closes: true };
        assert_eq!(of(lease.reports(Nanos(120), last)), [(1, 100, true), (2, 20, true), (3, 0, true)]);
        assert_eq!(
            [0, 99, 100, 150, 200].map(|spent| lease.usable(Nanos(spent)).map(|at| at.0)),
            [Some(10), Some(10), Some(20), Some(20), None]
        );
    }

    #[test]
    fn what_was_spent_of_a_closed_grant_is_nobody_elses() {
        let mut lease = lease();
        assert!(lease.forget(1, 100) && !lease.forget(1, 100));
        let terms = Terms { expires_us: None, closes: false };
        assert_eq!(of(lease.reports(Nanos(130), terms)), [(2, 30, false)]);
    }

    #[test]
    fn what_is_left_and_what_is_in_flight_is_not_spent() {
        let books =
            GrantBooks { left: Nanos(40), reserved: Nanos(25), reserved_before: Nanos(10), ..GrantBooks::default() };
        let mut lease = lease();
        assert_eq!(lease.spent(&books, true), Nanos(145));
        lease.returned = Nanos(60);
        assert_eq!(lease.spent(&books, false), Nanos(130));
        assert!(!lease.is_settled(&books, true) && !lease.is_settled(&books, false));
        let books = GrantBooks { reserved: Nanos(10), ..books };
        assert!(lease.is_settled(&books, true) && !lease.is_settled(&books, false));
    }
}
