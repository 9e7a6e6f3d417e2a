//! Why a request waited: where each nanosecond of its time in the scheduler went.
//!
//! At every moment a live request is in exactly one [`Cause`]. Each carries the cause that holds and since when it does
//! ([`Watch`]); what changes it books the time that has passed to the old cause and sets the new one. So the times add up to the
//! time from admission to settlement by construction, at O(1) a change and at no cost for requests that nothing happens to.
//!
//! *Who says so.* Planning a row makes it [`Cause::Steps`], the report of its last row in flight [`Cause::Share`]: from then on
//! the device has turned to others. The queue tells a request when it becomes the first of its lane (*share*) and when it no longer
//! is (*queue*). Whoever looks at a request and does not give it a row says why; that holds until it is looked at again. The first
//! of a lane is looked at in every step that has a row left for its tenant, the others never, for what keeps them is the first. A request that
//! lost its blocks is [`Cause::Preemption`] until its next row is planned, whatever else stands in its way by then.
//!
//! *Outside:* a request that was lost with its device has settled; taken back with [`Scheduler::admit_again`], it goes on with the
//! times it had, and the time between is [`Cause::Placement`].
//!
//! [`Scheduler::drain_device`] and [`Scheduler::run_alone`] are not told the time: what they change is booked as of the last call that was.

use core::ops::AddAssign;

use crate::device::Device;
use crate::ids::{DeviceId, ModelId, Nanos, RequestId, TenantId};
use crate::request::{Requests, State};
use crate::scheduler::Scheduler;

/// What a request's time goes into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// No wait: a row of it is in flight.
    Steps,
    /// It is behind earlier or more urgent requests of its own tenant, or its tenant runs as many, or holds as many blocks, as it may.
    #[default]
    Queue,
    /// It is first in its tenant's line, or runs, and the rows, tokens or time of the steps went to others.
    Share,
    /// Its tenant has no grant for another step.
    Quota,
    /// There are no KV blocks for it.
    Memory,
    /// It has nowhere to run: its device was lost or runs another request alone, or another request computes a block it needs.
    Placement,
    /// It lost its blocks to another request and waits for its next row.
    Preemption,
}

impl Cause {
    /// All of them, in the order in which they are reported.
    pub const ALL: [Cause; 7] =
        [Cause::Steps, Cause::Queue, Cause::Share, Cause::Quota, Cause::Memory, Cause::Placement, Cause::Preemption];

    /// Its name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Cause::Steps => "steps",
            Cause::Queue => "queue",
            Cause::Share => "share",
            Cause::Quota => "quota",
            Cause::Memory => "memory",
            Cause::Placement => "placement",
            Cause::Preemption => "preemption",
        }
    }
}

/// Where a request's time went, by [`Cause`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times([Nanos; Cause::ALL.len()]);

impl Times {
    /// The time that went into one cause.
    pub fn of(&self, cause: Cause) -> Nanos {
        self.0[cause as usize]
    }

    /// Books so much time to a cause.
    pub fn add(&mut self, cause: Cause, time: Nanos) {
        self.0[cause as usize] += time;
    }

    /// All of it.
    pub fn total(&self) -> Nanos {
        self.0.iter().copied().sum()
    }

    /// The times in whole microseconds, in the order of [`Cause::ALL`]. They add up to the total in microseconds, rounded down:
    /// each is what the running sum in microseconds grows by, so its rounding is carried to the next and none is off by a
    /// whole microsecond. Example: 1.6, 1.6 and 1.6 us give 1, 2, 1, and their sum 4.8 us gives 4.
    pub fn micros(&self) -> [u64; Cause::ALL.len()] {
        let (mut sum, mut told) = (0, 0);
        self.0.map(|time| {
            sum += time.0;
            let micros = sum / 1_000 - told;
            told += micros;
            micros
        })
    }
}

impl AddAssign for Times {
    fn add_assign(&mut self, other: Times) {
        for cause in Cause::ALL {
            self.add(cause, other.of(cause));
        }
    }
}

/// A request's times so far, the cause that holds, and since when.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Watch {
    /// First, for it is mostly asked for and seldom changes; see [`crate::request::Request`].
    cause: Cause,
    since: Nanos,
    times: Times,
}

impl Watch {
    /// Of a request that is admitted now.
    pub(crate) fn begin(now: Nanos) -> Watch {
        Watch { since: now, ..Watch::default() }
    }

    /// Of one that came at `since` and is admitted again now: what `times` does not cover was spent without a device.
    pub(crate) fn resume(&mut self, since: Nanos, times: Times) {
        self.times = times;
        let gap = self.since.saturating_sub(since).saturating_sub(times.total());
        self.times.add(Cause::Placement, gap);
    }

    pub(crate) fn cause(&self) -> Cause {
        self.cause
    }

    /// A row of it is in flight.
    #[inline]
    pub(crate) fn run(&mut self, now: Nanos) {
        self.turn(now, Cause::Steps);
    }

    /// The last of its rows in flight was reported. `dry` says that its tenant has no grant, `barred` that another runs alone there.
    pub(crate) fn rest(&mut self, now: Nanos, dry: bool, barred: bool) {
        let cause = match dry {
            true => Cause::Quota,
            false if barred => Cause::Placement,
            false => Cause::Share,
        };
        self.turn(now, cause);
    }

    #[inline]
    fn turn(&mut self, now: Nanos, cause: Cause) {
        if cause != self.cause {
            self.change(now, cause);
        }
    }

    fn change(&mut self, now: Nanos, cause: Cause) {
        self.times.add(self.cause, now.saturating_sub(self.since));
        (self.cause, self.since) = (cause, self.since.max(now));
    }

    /// The times if the request were to settle now.
    pub(crate) fn until(&self, now: Nanos) -> Times {
        let mut times = self.times;
        times.add(self.cause, now.saturating_sub(self.since));
        times
    }
}

/// The hooks: one call where something changes for a request.
impl Requests {
    /// The time of the call that the scheduler is in. It does not go back.
    pub(crate) fn tick(&mut self, now: Nanos) {
        self.now = self.now.max(now);
    }

    /// The request gets no row now, for this cause. With rows in flight it does not wait; and who lost its blocks waits for that.
    #[inline]
    pub(crate) fn wait(&mut self, slot: u32, cause: Cause) {
        let now = self.now;
        let watch = &mut self.get_mut(slot).watch;
        if !matches!(watch.cause, Cause::Steps | Cause::Preemption) {
            watch.turn(now, cause);
        }
    }

    /// It has joined a queue.
    pub(crate) fn queued(&mut self, slot: u32, alone: Option<RequestId>, may_start: bool, dry: bool) {
        if !may_start {
            self.wait(slot, Cause::Queue);
        } else if self.get(slot).queue_pos == 0 && dry {
            self.wait(slot, Cause::Quota);
        } else if self.get(slot).queue_pos == 0 && self.is_barred(slot, alone) {
            self.wait(slot, Cause::Placement);
        }
    }

    /// A device runs this request alone from now on, or all of them again. Whoever is not first in line waits for the first as ever.
    pub(crate) fn alone(&mut self, device: u32, alone: Option<RequestId>) {
        for slot in 0..self.len() {
            let request = self.get(slot);
            if request.device == device && (request.state == State::Running || request.queue_pos == 0) {
                let cause = if self.is_barred(slot, alone) { Cause::Placement } else { Cause::Share };
                self.wait(slot, cause);
            }
        }
    }

    fn is_barred(&self, slot: u32, alone: Option<RequestId>) -> bool {
        alone.is_some_and(|alone| self.id(slot) != alone)
    }

    /// It has no blocks any more, and no rows in flight.
    pub(crate) fn preempted(&mut self, slot: u32) {
        let now = self.now;
        self.get_mut(slot).watch.turn(now, Cause::Preemption);
    }
}

/// Where a live request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    /// Who pays.
    pub tenant: TenantId,
    /// What it asked for.
    pub model: ModelId,
    /// The device it is bound to; while it waits, it may yet go to another.
    pub device: DeviceId,
    /// What its time goes into at present.
    pub cause: Cause,
    /// Its time since admission.
    pub times: Times,
    /// While it waits in a queue, parked or not: where.
    pub queued: Option<Queued>,
    /// The bill so far.
    pub charge: Nanos,
    /// How often it lost its blocks.
    pub preemptions: u32,
    /// Prompt tokens taken from the prefix cache at its first start.
    pub cached_tokens: u32,
}

/// A waiting request's place in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// In its tenant's line for the model on its device; the first is 1.
    pub position: u32,
    /// Tenants with work on the device whose turn comes before its tenant's, by virtual time.
    pub tenants_ahead: u32,
    /// Length of time until it is expected to start: the expected device time of those before it in line and of a place for itself,
    /// at its tenant's share of the device, but at least as many measured intervals between two starts.
    pub expected_start: Nanos,
}

impl Scheduler {
    /// Where a request stands and where its time went so far; nothing for a stale id, for its times were told when it settled.
    /// Takes time in proportion to its tenant's queue and the number of tenants.
    pub fn why(&self, now: Nanos, id: RequestId) -> Option<Why> {
        let slot = self.requests.find(id)?;
        let request = self.requests.get(slot);
        let device = &self.devices[request.device as usize];
        let waiting = matches!(request.state, State::Waiting | State::Parked);
        Some(Why {
            tenant: self.tenants.get(request.tenant).id,
            model: device.models[request.model as usize].id,
            device: device.id,
            cause: request.watch.cause(),
            times: request.watch.until(now),
            queued: waiting.then(|| self.queued(device, slot)),
            charge: request.charge,
            preemptions: request.preemptions,
            cached_tokens: request.cached_tokens,
        })
    }

    fn queued(&self, device: &Device, slot: u32) -> Queued {
        let request = self.requests.get(slot);
        let lane = &device.models[request.model as usize].lanes[request.tenant as usize];
        let (mut ahead, mut work) = (0u32, Nanos::ZERO);
        for other in lane.waiting.slots().map(|slot| self.requests.get(slot)) {
            if other.rank < request.rank {
                ahead += 1;
                work = work.saturating_add(other.estimate);
            }
        }
        let position = ahead + 1;
        let time = |tenant: u32| (self.tenants.get(tenant).service.virtual_time(), tenant);
        let before = |tenant: &u32| device.shares[*tenant as usize].live > 0 && time(*tenant) < time(request.tenant);
        let tenants_ahead = (0..device.shares.len() as u32).filter(before).count() as u32;
        // A place is free when as much work is done as one request of the line takes.
        let share = &device.shares[request.tenant as usize];
        let place = Nanos(share.demand.0 / u64::from(share.waiting.max(1)));
        let drained = self.at_share(device, request.tenant, work.saturating_add(place));
        let starts = Nanos(device.start_interval().0.saturating_mul(u64::from(position)));
        Queued { position, tenants_ahead, expected_start: drained.max(starts) }
    }

    /// How long the device takes for so much work of a tenant's at the tenant's share of it.
    pub(crate) fn at_share(&self, device: &Device, tenant: u32, work: Nanos) -> Nanos {
        let weight = u128::from(device.shares[tenant as usize].weight.max(1));
        let time = u128::from(work.0) * u128::from(device.weights.max(1)) / weight;
        Nanos(u64::try_from(time).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(requests: &mut Requests, slot: u32) {
        let now = requests.now;
        requests.get_mut(slot).watch.run(now);
    }

    #[test]
    fn a_wait_without_a_grant_is_the_quotas_until_the_next_row() {
        let mut requests = Requests::default();
        let slot = requests.claim();
        requests.get_mut(slot).watch = Watch::begin(Nanos(5));
        for (now, hook) in [(Nanos(10), Cause::Quota), (Nanos(30), Cause::Quota)] {
            requests.tick(now);
            requests.wait(slot, hook);
        }
        requests.tick(Nanos(47));
        run(&mut requests, slot);
        let times = requests.get(slot).watch.until(Nanos(50));
        assert_eq!(
            (times.of(Cause::Queue), times.of(Cause::Quota), times.of(Cause::Steps)),
            (Nanos(5), Nanos(37), Nanos(3))
        );
        assert_eq!(times.total(), Nanos(45));
    }

    #[test]
    fn who_lost_its_blocks_waits_for_that_and_nothing_else() {
        let mut requests = Requests::default();
        let slot = requests.claim();
        requests.preempted(slot);
        for (now, cause) in [(1, Cause::Queue), (2, Cause::Memory), (3, Cause::Share)] {
            requests.tick(Nanos(now));
            requests.wait(slot, cause);
        }
        // A clock that goes back takes nothing away.
        requests.tick(Nanos(2));
        run(&mut requests, slot);
        let times = requests.get(slot).watch.until(Nanos(4));
        assert_eq!(
            (times.of(Cause::Preemption), times.of(Cause::Steps), times.total()),
            (Nanos(3), Nanos(1), Nanos(4))
        );
    }

    proptest! {
        #[test]
        fn microseconds_add_up_and_are_within_one(nanos in proptest::array::uniform7(0u64..1 << 50)) {
            let mut times = Times::default();
            for (cause, nanos) in Cause::ALL.into_iter().zip(nanos) {
                times.add(cause, Nanos(nanos));
            }
            let micros = times.micros();
            prop_assert_eq!(micros.iter().sum::<u64>(), times.total().0 / 1_000);
            for (cause, micros) in Cause::ALL.into_iter().zip(micros) {
                prop_assert!((micros * 1_000).abs_diff(times.of(cause).0) < 1_000);
            }
        }
    }
}
