//! Grants: what replicas hold of windows, as a state machine without a store.
//!
//! A grant is taken out of every window of its tenant when it is made, and not when it is used. From then on it
//! belongs to one replica until it is closed, by giving it back or by its expiry, and what it had not reported as
//! spent returns to the windows that it came from. So at every moment, for every window,
//!
//! ```text
//! spent <= granted <= allowed,   granted = amounts of open grants + spent of closed ones
//! ```
//!
//! # Clocks
//!
//! Instants are the asker's: it says when it sent the message, by its own clock, and the grant expires
//! [`Ask::expires_us`] by that clock. The replica stops using it a skew before that, on its monotonic clock and
//! counted from when it sent the message that was answered last. Anybody closes a grant when *his* clock is past the
//! expiry and a skew. If no two clocks differ by more than the skew, nobody spends what was returned to a window; a
//! clock that is off by more can only make a grant's end early, and what its replica reports after that is the
//! operator's and never charged to the tenant.
//!
//! # Messages
//!
//! May be lost, late or doubled, and their answers, too. The asker makes the id, so a doubled ask is one grant;
//! reports are totals, so a doubled or late one changes nothing; closing twice is closing once.
//!
//! The rows of a store go through the same functions: [`Limits::take`], [`Grant::report`] and [`Grant::close`].

use std::collections::BTreeMap;

use super::{
    calendar::Period,
    limit::{Answer, Limits, Unit, Want, Window, Windows},
};

/// Asks for a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Unique, and made by the asker: so an ask that is repeated is one grant.
    pub id: i64,
    /// For whom.
    pub tenant: String,
    /// Of what.
    pub unit: Unit,
    /// Who will hold it.
    pub replica: String,
    /// In which of its lives.
    pub epoch: i64,
    /// How much.
    pub want: Want,
    /// The asker's clock.
    pub at_us: i64,
    /// When the grant ends if nobody extends it.
    pub expires_us: i64,
}

/// A grant's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// For whom.
    pub tenant: String,
    /// Of what.
    pub unit: Unit,
    /// Who holds it.
    pub replica: String,
    /// In which of its lives.
    pub epoch: i64,
    /// How much it is.
    pub amount: i64,
    /// How much of it was reported as spent.
    pub spent: i64,
    /// When the windows began that it was taken from, by [`Period::ALL`].
    pub windows: [i64; 3],
    /// When it ends if nobody extends it.
    pub expires_us: i64,
    /// It has ended.
    pub closed: bool,
}

/// What a report changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// To be added to what its windows have spent.
    pub added: i64,
    /// Not the tenant's but the operator's: above the grant, or reported after its end.
    pub late: i64,
}

impl Grant {
    /// So much of it was spent in all.
    pub fn report(&mut self, spent: i64) -> Report {
        let counted = if self.closed { self.spent } else { spent.clamp(self.spent, self.amount.max(self.spent)) };
        let report = Report { added: counted - self.spent, late: (spent - counted).max(0) };
        self.spent = counted;
        report
    }

    /// Ends it; what is returned was not spent and goes back to its windows.
    pub fn close(&mut self) -> i64 {
        match std::mem::replace(&mut self.closed, true) {
            true => 0,
            false => self.amount - self.spent,
        }
    }

    /// The answer to an ask of its id: the same one again, if it is the same ask.
    pub(super) fn told_again(&self, ask: &Ask) -> Taken {
        let same =
            (&self.tenant, self.unit, &self.replica, self.epoch) == (&ask.tenant, ask.unit, &ask.replica, ask.epoch);
        match (same, self.closed) {
            (false, _) => Taken::Foreign,
            (true, true) => Taken::Closed,
            (true, false) => Taken::Answer(Answer::again(self.amount)),
        }
    }

    /// Whether somebody whose clock says this is to close it.
    pub fn is_over(&self, at_us: i64, skew_us: i64) -> bool {
        !self.closed && at_us > self.expires_us.saturating_add(skew_us)
    }
}

/// What comes of an ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// The windows' answer; for an ask that was answered before, the same amount without events.
    Answer(Answer),
    /// The grant of this id has ended meanwhile.
    Closed,
    /// The id is that of somebody else's grant: nothing was taken.
    Foreign,
}

/// What a report finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// The grant may still be used. One that nobody knows may not.
    pub open: bool,
    /// What of the report is the operator's.
    pub late: i64,
}

/// A window's key: tenant, unit, period, and when it began.
pub type WindowKey = (String, Unit, Period, i64);

/// All windows and grants.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    windows: BTreeMap<WindowKey, Window>,
    grants: BTreeMap<i64, Grant>,
    skew_us: i64,
}

impl Grants {
    /// None, under clocks that differ by at most so much.
    pub fn new(skew_us: i64) -> Grants {
        Grants { skew_us, ..Grants::default() }
    }

    /// Windows, by their keys.
    pub fn windows(&self) -> &BTreeMap<WindowKey, Window> {
        &self.windows
    }

    /// Grants, by their ids.
    pub fn grants(&self) -> &BTreeMap<i64, Grant> {
        &self.grants
    }

    /// Takes a grant under these limits, after closing what is over of the same unit.
    pub fn take(&mut self, ask: &Ask, limits: &Limits) -> Taken {
        self.expire_of(&ask.tenant, |unit| unit == ask.unit, ask.at_us);
        if let Some(grant) = self.grants.get(&ask.id) {
            return grant.told_again(ask);
        }
        let mut windows: Windows =
            Period::ALL.map(|period| self.window(&ask.tenant, ask.unit, period, ask.at_us, limits));
        let answer = limits.take(&mut windows, ask.want);
        for (period, window) in Period::ALL.into_iter().zip(windows) {
            self.windows.insert((ask.tenant.clone(), ask.unit, period, window.begins_us), window);
        }
        if let Answer::Granted { amount, .. } = answer {
            let grant = Grant {
                tenant: ask.tenant.clone(),
                unit: ask.unit,
                replica: ask.replica.clone(),
                epoch: ask.epoch,
                amount,
                spent: 0,
                windows: windows.map(|window| window.begins_us),
                expires_us: ask.expires_us,
                closed: false,
            };
            self.grants.insert(ask.id, grant);
        }
        Taken::Answer(answer)
    }

    /// So much of a grant was spent in all; it goes on until `expires_us`, if it was not to go on longer already.
    pub fn extend(&mut self, id: i64, spent: i64, expires_us: i64) -> Reported {
        let reported = self.report(id, spent);
        if let Some(grant) = self.grants.get_mut(&id).filter(|grant| !grant.closed) {
            grant.expires_us = grant.expires_us.max(expires_us);
        }
        reported
    }

    /// So much of a grant was spent in all, and no more will be.
    pub fn give_back(&mut self, id: i64, spent: i64) -> Reported {
        let reported = self.report(id, spent);
        self.close(id);
        Reported { open: false, ..reported }
    }

    /// Closes a tenant's grants that are over by somebody's clock.
    pub fn expire(&mut self, tenant: &str, at_us: i64) {
        self.expire_of(tenant, |_| true, at_us);
    }

    fn expire_of(&mut self, tenant: &str, of: impl Fn(Unit) -> bool, at_us: i64) {
        let is_its = |grant: &Grant| grant.tenant == tenant && of(grant.unit);
        let over = |(_, grant): &(&i64, &Grant)| is_its(grant) && grant.is_over(at_us, self.skew_us);
        let over: Vec<i64> = self.grants.iter().filter(over).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.close(id));
    }

    /// Forgets closed grants that expired before an instant, and windows that nothing is carried over from any more.
    pub fn forget(&mut self, before_us: i64, now_us: i64) {
        self.grants.retain(|_, grant| !grant.closed || grant.expires_us >= before_us);
        self.windows.retain(|(_, _, period, begins_us), _| period.end(period.end(*begins_us)) > now_us);
    }

    fn report(&mut self, id: i64, spent: i64) -> Reported {
        // A store forgets grants some time after they have ended.
        let Some(grant) = self.grants.get_mut(&id) else { return Reported { open: false, late: spent } };
        let report = grant.report(spent);
        let (open, keys) = (!grant.closed, keys(grant));
        for key in keys {
            if let Some(window) = self.windows.get_mut(&key) {
                window.spent += report.added;
            }
        }
        Reported { open, late: report.late }
    }

    fn close(&mut self, id: i64) {
        let Some(grant) = self.grants.get_mut(&id) else { return };
        let (unused, keys) = (grant.close(), keys(grant));
        for key in keys {
            if let Some(window) = self.windows.get_mut(&key) {
                window.granted -= unused;
            }
        }
    }

    /// The row of a window, or a new one.
    fn window(&self, tenant: &str, unit: Unit, period: Period, at_us: i64, limits: &Limits) -> Window {
        let begins_us = period.begin(at_us);
        let row = |begins_us| self.windows.get(&(tenant.to_owned(), unit, period, begins_us));
        row(begins_us).copied().unwrap_or_else(|| {
            let brought = limits.brought(period, row(period.before(begins_us)));
            Window { begins_us, brought, granted: 0, spent: 0 }
        })
    }
}

fn keys(grant: &Grant) -> Vec<WindowKey> {
    let begun = Period::ALL.into_iter().zip(grant.windows);
    begun.map(|(period, at)| (grant.tenant.clone(), grant.unit, period, at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(id: i64, wanted: i64, at_us: i64) -> Ask {
        Ask {
            id,
            tenant: "acme".into(),
            unit: Unit::Requests,
            replica: "one".into(),
            epoch: 1,
            want: Want::of(wanted),
            at_us,
            expires_us: at_us + 5_000_000,
        }
    }

    fn granted(taken: Taken) -> i64 {
        match taken {
            Taken::Answer(Answer::Granted { amount, .. }) => amount,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_that_was_lost_is_given_again_and_taken_once() {
        let limits = Limits { amounts: [Some(10), None, None], ..Limits::default() };
        let mut grants = Grants::new(1_000_000);
        assert_eq!(granted(grants.take(&ask(1, 4, 0), &limits)), 4);
        assert_eq!(granted(grants.take(&ask(1, 4, 0), &limits)), 4);
        assert!(grants.windows().values().all(|window| window.granted == 4));
        for other in [
            Ask { tenant: "beta".into(), ..ask(1, 4, 0) },
            Ask { unit: Unit::DeviceNs, ..ask(1, 4, 0) },
            Ask { replica: "two".into(), ..ask(1, 4, 0) },
            Ask { epoch: 2, ..ask(1, 4, 0) },
        ] {
            assert_eq!(grants.take(&other, &limits), Taken::Foreign, "{other:?}");
        }
        grants.give_back(1, 3);
        assert_eq!(grants.take(&ask(1, 4, 0), &limits), Taken::Closed);
        grants.forget(5_000_000, 0);
        assert_eq!(grants.grants().len(), 1, "it expired then, and not before");
        grants.forget(5_000_001, 0);
        assert!(grants.grants().is_empty() && !grants.windows().is_empty());
    }

    #[test]
    fn what_is_reported_after_the_end_is_the_operators() {
        let limits = Limits { amounts: [Some(10), None, None], ..Limits::default() };
        let mut grants = Grants::new(1_000_000);
        grants.take(&ask(1, 10, 0), &limits);
        assert_eq!(grants.extend(1, 4, 5_000_000), Reported { open: true, late: 0 });
        grants.expire("acme", 6_000_000);
        assert_eq!(grants.extend(1, 5, 9_000_000), Reported { open: true, late: 0 }, "not yet over by a skew");
        grants.expire("acme", 10_000_001);
        assert_eq!(grants.extend(1, 9, 20_000_000), Reported { open: false, late: 4 });
        assert_eq!(grants.extend(1, 3, 20_000_000), Reported { open: false, late: 0 }, "a report that was late");
        assert_eq!(granted(grants.take(&ask(2, 10, 11_000_000), &limits)), 5, "the rest is there again");
        assert_eq!(grants.extend(2, 7, 0), Reported { open: true, late: 2 }, "above the grant");
        assert_eq!(grants.extend(9, 7, 0), Reported { open: false, late: 7 }, "nobody knows it");
    }
}
