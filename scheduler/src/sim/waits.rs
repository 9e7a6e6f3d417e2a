//! No starvation: how long a request may wait for its start, worked out while it waits, and how long it did.
//!
//! While requests of tenant `i` wait and nothing but the shares holds them back, whoever else runs is served at most the service gap `G`
//! more than `i`, by weight (see [`super::lag`]). So in a wait of length `T`, with `D` devices, `W` the sum of all weights, `A / w` what `i`
//! itself was served by weight, and `L` the device time that was no tenant's (idle, lost, redone),
//!
//! ```text
//! D * T <= W * (A / w + G) + L
//! ```
//!
//! What is left is that `A` is bounded: that `i`'s own requests do not overtake each other for ever. They start by rank, so one of class
//! `p` lets pass who is more urgent and comes up to `p * priority_spacing` later. Besides, another device may start a later one
//! first, and a request parked on a block lets others pass; how many that are is counted.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::client::Client;
use super::world::World;
use crate::ids::{Nanos, RequestId};

/// How things stood at some moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    pub(super) at: Nanos,
    /// What the tenant had been served.
    served: Nanos,
    /// Device time that had been no tenant's.
    lost: Nanos,
    /// Plans changed until then.
    changes: u64,
}

/// A request's place in its tenant's order: its model, when it counts as having come, its number.
type Key = (u16, Nanos, u64);

/// What a request may let pass of its tenant's for the model that should come later: quanta of device time on each device for itself and for each that
/// stood before it when it came, four for what is cached there (see [`crate::kin`]) and as many for those that started elsewhere while its device
/// stood still or had no blocks; or so many requests, for after a slow step some are expected to take long. Neither grows with the history.
const OVERTAKEN_QUANTA: u64 = 8;
const OVERTAKEN_EACH: u64 = 50;
const OVERTAKEN: u64 = 400;

/// What a request that never started has seen.
#[derive(Clone, Copy, Debug)]
struct Passed {
    /// How many stood before it when it came.
    older: u64,
    /// How many that should come later have started before it, and the device time that they were expected to take.
    by: u64,
    time: Nanos,
}

#[derive(Debug)]
pub(super) struct Waits {
    /// By place: those that never started.
    waiting: Vec<BTreeMap<Key, Passed>>,
    changes: u64,
}

impl Waits {
    pub(super) fn new(tenants: usize) -> Waits {
        Waits { waiting: alloc::vec![BTreeMap::new(); tenants], changes: 0 }
    }

    pub(super) fn plan_changed(&mut self) {
        self.changes += 1;
    }
}

impl World<'_> {
    pub(super) fn mark(&self, place: usize) -> Mark {
        let served = self.scheduler.tenant_service(self.outcome.tenants[place].tenant);
        let wall = self.now.0 * self.machines.len() as u64;
        let charged: Nanos = self.scheduler.devices.iter().map(|device| device.tenants).sum();
        Mark { at: self.now, served, lost: Nanos(wall) - charged, changes: self.waits.changes }
    }

    fn key(&self, client: &Client) -> (usize, Key) {
        let source = &self.scenario.sources[client.source];
        let put_off = self.scenario.config.priority_spacing.0 * u64::from(source.priority);
        (self.places[&source.tenant], (source.model.0, client.came_at + Nanos(put_off), client.number))
    }

    pub(super) fn note_wait(&mut self, client: &Client) {
        let (place, key) = self.key(client);
        let first = (key.0, Nanos::ZERO, 0);
        let older = self.waits.waiting[place].range(first..key).count() as u64;
        self.waits.waiting[place].insert(key, Passed { older, by: 0, time: Nanos::ZERO });
    }

    /// It ended, or it started.
    pub(super) fn note_gone(&mut self, client: &Client) -> bool {
        let (place, key) = self.key(client);
        self.waits.waiting[place].remove(&key).is_some()
    }

    pub(super) fn note_start(&mut self, id: RequestId) {
        let client = self.clients.get(id).expect("only live requests start");
        let (place, key) = self.key(client);
        let mark = client.mark;
        let Some(passed) = self.waits.waiting[place].remove(&key) else {
            return; // It started before, on a device that was lost.
        };
        let Passed { older, by, time } = passed;
        let config = &self.scenario.config;
        let quanta = OVERTAKEN_QUANTA * self.machines.len() as u64 * (older + 1);
        let longest = config.locality_quantum.max(config.step_latency_max).0 * quanta;
        let part = (time.0 * 1_000 / longest).min(by * 1_000 / (OVERTAKEN + OVERTAKEN_EACH * older));
        assert!(part <= 1_000, "a request behind {older} was overtaken by {by} that came later, for {time:?}");
        self.outcome.overtaken_max = self.outcome.overtaken_max.max(by);
        self.outcome.overtaken_per_mille = self.outcome.overtaken_per_mille.max(part);
        let requests = &self.scheduler.requests;
        let estimate = requests.find(id).map_or(Nanos::ZERO, |slot| requests.get(slot).estimate);
        let first = (key.0, Nanos::ZERO, 0);
        for (_, passed) in self.waits.waiting[place].range_mut(first..key) {
            passed.by += 1;
            passed.time += estimate;
        }
        self.check_wait(place, mark);
    }

    /// Holds the wait that ends now to its bound: since the request came, or since its tenant last had nothing waiting.
    fn check_wait(&mut self, place: usize, came: Mark) {
        let Some(since) = self.lag.since(place).filter(|_| self.lag.all_measured() && self.scenario.gap_checked) else {
            return;
        };
        let mark = if came.at < since.at { since } else { came };
        let now = self.mark(place);
        if mark.changes != now.changes {
            return;
        }
        let weights: u64 = self.plans.iter().map(|plan| u64::from(plan.weight.max(1))).sum();
        let each = (now.served - mark.served).saturating_add(self.lag.bound());
        let most = (weights * each.0 + now.lost.saturating_sub(mark.lost).0) / self.machines.len() as u64;
        let wait = now.at - mark.at;
        assert!(wait.0 <= most, "a request has waited for {wait:?}, and {most} ns is the most that it can");
        self.outcome.wait_per_mille = self.outcome.wait_per_mille.max(wait.0 * 1_000 / most.max(1));
    }
}
