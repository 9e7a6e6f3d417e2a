//! What must be true after every event and at the end, found out without the scheduler's own books wherever that can be.

use alloc::vec::Vec;

use super::client::Client;
use super::lag::TENANTS_MAX;
use super::outcome::Outcome;
use super::world::World;
use crate::ids::{DeviceId, Nanos, RequestId, TenantId};

impl World<'_> {
    /// After every event.
    pub(super) fn check_event(&mut self) {
        self.check_books();
        self.check_grants();
        self.check_blocks();
        self.check_idleness();
        self.note_backlogs();
        if self.outcome.events.is_multiple_of(self.scenario.recount_every.max(1)) {
            self.scheduler.check_invariants();
            let here = self.scheduler.requests.iter().filter(|(slot, _)| {
                let id = self.scheduler.requests.id(*slot);
                self.scheduler.requests.find(id).is_some()
            });
            assert_eq!(here.count(), self.clients.len(), "the scheduler has the requests that have not ended");
            self.check_bills();
        }
    }

    /// Wall time is accounted for to the nanosecond, nothing booked is taken back, idle time is what was seen to be idle, and nobody is
    /// charged for more than devices reported.
    fn check_books(&mut self) {
        let mut charged = Nanos::ZERO;
        for (d, machine) in self.machines.iter_mut().enumerate() {
            let books = self.scheduler.accounts(self.now, DeviceId(d as u16));
            assert_eq!(books.wall, self.now);
            assert_eq!(books.tenants + books.operator + books.idle + books.in_flight, books.wall);
            assert_eq!(books.idle, machine.idle, "idle time of device {d}");
            assert!(books.tenants <= machine.busy, "device {d} charges more than it worked");
            let before = machine.books;
            assert!(books.tenants >= before.tenants && books.operator >= before.operator);
            charged += books.tenants;
            machine.books = books;
        }
        if self.plans.len() > TENANTS_MAX && !self.outcome.events.is_multiple_of(self.scenario.recount_every.max(1)) {
            return;
        }
        let tenants = self.outcome.tenants.iter().map(|part| part.tenant).filter(|id| *id != TenantId::OPERATOR);
        let billed: Nanos = tenants.map(|tenant| self.scheduler.tenant_charge(tenant)).sum();
        assert_eq!(billed, charged, "what tenants pay is what devices worked for them");
    }

    /// What the events say of who was charged on which device, with what those that run were charged, is what each device worked for
    /// tenants.
    fn check_bills(&self) {
        let mut by_device: Vec<Nanos> = self.machines.iter().map(|machine| machine.billed).collect();
        for client in self.clients.iter() {
            let (device, charge) = self.scheduler.charge_of(client.id).expect("a live request");
            by_device[usize::from(device.0)] += charge - client.booked;
        }
        for (machine, billed) in self.machines.iter().zip(by_device) {
            // The operator's own requests are billed, too, and nobody's to pay.
            assert_eq!(machine.books.tenants + machine.books.own, billed, "bills by device");
        }
    }

    /// Every block is free, in use or cached, and is counted for one tenant only.
    fn check_blocks(&self) {
        for device in self.scheduler.devices.iter().filter(|device| device.up) {
            for model in &device.models {
                let (used, cached) = model.pool.counts();
                assert_eq!(used + cached + model.pool.free_len(), model.limits.blocks, "blocks are conserved");
            }
        }
    }

    /// A device that stands idle has nothing that it could run, of its own or of others.
    fn check_idleness(&mut self) {
        let waiting = self.scheduler.tenants.waiting > 0;
        for d in 0..self.machines.len() {
            let machine = &mut self.machines[d];
            let idle = machine.is_idle();
            if !idle || !waiting || machine.closed {
                machine.idle_since = None;
            } else {
                let since = *machine.idle_since.get_or_insert(self.now);
                let stood = self.now.saturating_sub(since);
                self.outcome.idle_waiting_max = self.outcome.idle_waiting_max.max(stood);
            }
            if !idle {
                continue;
            }
            assert!(
                self.machines[d].closed || !waiting || !self.scheduler.could_pull(d),
                "device {d} stands idle beside work that it could take"
            );
            if self.scheduler.device_live(DeviceId(d as u16)) > 0 {
                self.check_bound_to_idle(d);
            }
        }
    }

    /// With no step in flight all blocks can be had, so whoever is bound to an idle device is held back by its tenant's limits.
    fn check_bound_to_idle(&self, d: usize) {
        let device = DeviceId(d as u16);
        for client in self.clients.iter().filter(|client| self.scheduler.device_of(client.id) == Some(device)) {
            assert!(!client.runs || self.is_dry(client), "{:?} runs on device {d}, which stands idle", client.id);
            assert!(self.is_held_back(client.id), "{:?} could start on device {d}, which stands idle", client.id);
        }
    }

    /// Whether the request waits for a grant. Then it may have blocks and no rows.
    fn is_dry(&self, client: &Client) -> bool {
        let place = self.places[&self.scenario.sources[client.source].tenant];
        self.scheduler.tenants.get(self.slots[place]).is_dry()
    }

    /// Whether the tenant's own limits let the request not start.
    fn is_held_back(&self, id: RequestId) -> bool {
        let client = self.clients.get(id).expect("a live request");
        let place = self.places[&self.scenario.sources[client.source].tenant];
        let running = self.scheduler.tenants.get(self.slots[place]).running;
        running >= self.plans[place].running_max.max(1) || self.is_dry(client)
    }

    pub(super) fn finish(mut self) -> Outcome {
        let left = self.clients.len() + self.returning.len();
        assert_eq!(left, 0, "{left} requests stand still");
        self.scheduler.check_invariants();
        self.check_bills();
        let stats = self.scheduler.stats();
        assert_eq!((stats.waiting, stats.running, stats.demand), (0, 0, Nanos::ZERO));
        assert_eq!(stats.preemptions, self.outcome.preemptions);
        for model in &stats.models {
            assert_eq!(model.blocks_used, 0, "blocks of ended requests are free");
        }
        for part in &mut self.outcome.tenants {
            part.waits.sort();
            assert_eq!(part.accepted, part.ends.iter().sum::<u64>(), "each request has one end");
            assert_eq!(part.charge, self.scheduler.tenant_charge(part.tenant), "bills add up");
        }
        self.outcome.devices = self.machines.iter().map(|machine| machine.books).collect();
        self.outcome.end = self.now;
        self.outcome
    }
}
