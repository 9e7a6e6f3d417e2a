//! When a source's next request comes.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::rng::{Rng, mix};
use super::scenario::{Arrivals, Scenario, Source};
use super::world::{Happening, World};
use crate::ids::{Nanos, TenantId};

/// Requests on a schedule that does not wait for answers, for a while, with pauses if wished. Several sources of one tenant, one
/// after the other, make a load that shifts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phases {
    /// The mean gap between two requests.
    pub gap: Nanos,
    /// All gaps are alike; otherwise they are a Poisson process's.
    pub even: bool,
    /// From the source's start on, requests come for this long,
    pub on: Nanos,
    /// and then stay away for this long, over and over; zero for no pauses.
    pub off: Nanos,
    /// No request comes from here on.
    pub until: Nanos,
}

impl Phases {
    /// The request after one that came, or would have come, at `last`; those that fall into a pause are left out.
    fn next(&self, rng: &mut Rng, from: Nanos, last: Nanos) -> Option<Nanos> {
        let mut at = last;
        loop {
            let gap = if self.even { self.gap.0 } else { rng.exponential(self.gap.0) };
            at = at.saturating_add(Nanos(gap.max(1)));
            if at >= self.until {
                return None;
            }
            let cycle = self.on.0.saturating_add(self.off.0).max(1);
            if self.off == Nanos::ZERO || (at - from).0 % cycle < self.on.0 {
                return Some(at);
            }
        }
    }

    /// The first request: somewhere in the first gap, so that sources alike do not march in step.
    fn first(&self, rng: &mut Rng, from: Nanos) -> Option<Nanos> {
        let start = match self.even {
            true => Nanos(((u128::from(self.gap.0) * u128::from(rng.bits() >> 1)) >> 63) as u64),
            false => Nanos(rng.exponential(self.gap.0)),
        };
        let at = from.saturating_add(start);
        (at < self.until).then_some(at)
    }
}

/// A generator for each source, by its tenant and its place among the tenant's sources: a source draws the same whoever is beside it.
pub(super) fn draws(scenario: &Scenario) -> Vec<Rng> {
    let mut before: BTreeMap<TenantId, u64> = BTreeMap::new();
    let draws = scenario.sources.iter().map(|source| {
        let nth = before.entry(source.tenant).or_default();
        *nth += 1;
        Rng::new(mix(scenario.seed ^ mix(u64::from(source.tenant.0) << 32 | *nth)))
    });
    draws.collect()
}

impl World<'_> {
    /// Changes to a source's own generator, or back again, if its requests come on a schedule: what steps do, and in which order
    /// they end, must not change what is asked for when.
    pub(super) fn swap_draws(&mut self, n: usize) {
        if let Arrivals::Phases(_) = self.scenario.sources[n].arrivals {
            core::mem::swap(&mut self.rng, &mut self.draws[n]);
        }
    }

    /// Plans a source's first requests.
    pub(super) fn plan_first(&mut self, n: usize, source: &Source) {
        self.swap_draws(n);
        let count = match source.arrivals {
            Arrivals::Poisson(_) => 1,
            Arrivals::Backlog(count) => count,
            Arrivals::Given => 0,
            Arrivals::Phases(phases) => {
                if let Some(at) = phases.first(&mut self.rng, source.from) {
                    self.plan(at, Happening::Arrival(n));
                }
                0
            }
        };
        self.swap_draws(n);
        for _ in 0..count {
            self.plan(source.from, Happening::Arrival(n));
        }
    }

    /// Plans the request after one that comes now, if that does not depend on answers.
    pub(super) fn plan_next(&mut self, n: usize, source: &Source) {
        let at = match source.arrivals {
            Arrivals::Poisson(mean) => Some(self.now + Nanos(self.rng.exponential(mean.0))),
            Arrivals::Phases(phases) => phases.next(&mut self.rng, source.from, self.now),
            Arrivals::Backlog(_) | Arrivals::Given => None,
        };
        if let Some(at) = at {
            self.plan(at, Happening::Arrival(n));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_on_schedule_with_pauses_and_an_end() {
        let (on, off) = (Nanos::from_secs(10), Nanos::from_secs(20));
        let phases = Phases { gap: Nanos::from_secs(1), even: true, on, off, until: Nanos::from_secs(100) };
        let (mut rng, from) = (Rng::new(1), Nanos::from_secs(5));
        let mut at = phases.first(&mut rng, from);
        assert!(at.is_some_and(|at| from <= at && at < from + phases.gap));
        let mut seconds = std::vec::Vec::new();
        while let Some(now) = at {
            seconds.push(now.0 / 1_000_000_000);
            at = phases.next(&mut rng, from, now);
        }
        // On from 5 to 15, 35 to 45, 65 to 75 and 95 to the end.
        let on_air = |second: u64| (second - 5) % 30 < 10;
        assert!(seconds.iter().all(|second| on_air(*second)), "{seconds:?}");
        assert_eq!(seconds.len(), 35);
    }
}
