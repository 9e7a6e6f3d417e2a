//! What a tenant is owed on devices that its requests do not wait for.
//!
//! Requests wait where they are expected to end soonest, and leave for another device only if that is sooner (see [`crate::place`]).
//! That is right for each of them, and need not be right for their tenant: while all of them wait for the quick device, a tenant
//! that asks for little of it has the slow one to itself, step after step, and gets ahead of them without end.
//!
//! So a tenant that waits elsewhere, and is more than [`crate::Config::locality_quantum`] behind those who are served here, has a claim:
//! before a step is planned, requests of it move here, the oldest first, as many as make up for what it is behind. They compete
//! here with the least virtual time, so they start at once, as far as there are blocks. How far a tenant is behind is measured against the
//! least of those that are short of this device, or, if nobody is, against the one ahead of all others here.
//!
//! *Who is asked.* Of each other device the tenant with the least time in each of its files, and those it has at hand if any of them can be so far
//! behind. A tenant hidden behind a needier one has its turn when that one has caught up, for that one is then short here, and what is owed is
//! measured against it. Not so behind one that cannot move, because its plan keeps it there or it is too large: until that one has had its
//! turn there, those behind it are owed and not asked.
//!
//! *Who has just come* to a device is calm there until that plans a step, and nobody asks the calm ones. A device that is late may plan no more,
//! so whoever waits there is noted as short of it, level with those who were short there before, and is asked from then on.
//!
//! Cost: a look at each model of each other device, while nobody there is far behind; O(at hand) and what is moved, otherwise.

use crate::ids::Nanos;
use crate::scheduler::Scheduler;
use crate::share::{Virtual, virtual_time, whole};
use crate::standing::least;

impl Scheduler {
    /// Moves requests here whose tenants are owed service of this device. After [`crate::device::Device::lift`].
    pub(crate) fn claim(&mut self, d: usize) {
        let device = &self.devices[d];
        if self.devices.len() == 1 || self.tenants.waiting == 0 || device.closed || device.alone.is_some() {
            return;
        }
        let until = self.owed_below(d);
        for e in 0..self.devices.len() {
            if e == d || !self.devices[e].up {
                continue;
            }
            if self.devices[e].is_late(self.requests.now) {
                self.devices[e].note_kept(&mut self.tenants);
            }
            let there = &self.devices[e];
            // Whoever is short there had at least so much when its last step was planned, and virtual times hardly fall.
            if there.least.is_none_or(|least| least >= until) {
                continue;
            }
            for theirs in 0..self.devices[e].models.len() {
                let Some(m) = self.devices[d].model_index(self.devices[e].models[theirs].id) else { continue };
                let model = &mut self.devices[e].models[theirs];
                for file in [
                    least(&mut model.short_running, &mut self.tenants),
                    least(&mut model.short_waiting, &mut self.tenants),
                ] {
                    if let Some((_, tenant)) = file.filter(|(time, _)| *time < until) {
                        self.claim_for(tenant, (e, theirs), (d, m), until);
                    }
                }
                let mut at = 0;
                while let Some(tenant) = self.devices[e].at_hand.get(at) {
                    self.claim_for(tenant, (e, theirs), (d, m), until);
                    // Who has no work left there is at hand no more.
                    at += usize::from(self.devices[e].at_hand.get(at) == Some(tenant));
                }
                self.devices[d].touched += 2 + self.devices[e].at_hand.len() as u64;
            }
        }
    }

    /// The virtual time below which a tenant is owed service of the device.
    fn owed_below(&self, d: usize) -> Virtual {
        self.devices[d].level.saturating_sub(virtual_time(self.config.locality_quantum, 1))
    }

    /// Moves as much of the tenant's waiting work as it is owed here, less what waits here already.
    fn claim_for(&mut self, tenant: u32, (e, theirs): (usize, usize), (d, m): (usize, usize), until: Virtual) {
        let account = self.tenants.get(tenant);
        let time = account.service.virtual_time();
        if time >= until || !account.may_start() || account.is_dry() {
            return;
        }
        let owed = Nanos(whole(until - time).saturating_mul(u64::from(account.weight())));
        let mut rows = self.devices[d].models[m].limits.rows_max;
        while rows > 0 && self.devices[d].shares[tenant as usize].demand <= owed {
            let Some(slot) = self.first_to_move(tenant, e, theirs) else { return };
            if self.fits(tenant, &self.devices[d], m, &self.requests.get(slot).work).is_err() {
                return;
            }
            self.move_to(slot, d, m);
            let device = &mut self.devices[d];
            device.least = device.least.map(|least| least.min(time));
            device.touched += 1;
            rows -= 1;
        }
    }
}
