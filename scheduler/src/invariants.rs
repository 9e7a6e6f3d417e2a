//! A recount of everything that is kept in step on the way, for tests and the simulator.

use alloc::vec;
use alloc::vec::Vec;

use crate::BLOCK_LEN;
use crate::ids::Nanos;
use crate::request::{NONE, Request, State};
use crate::scheduler::Scheduler;
use crate::share::Share;
use crate::why::Cause;

impl Scheduler {
    /// Recomputes every count, sum and list from the requests themselves, and panics where one disagrees. Takes time in proportion
    /// to everything there is.
    pub fn check_invariants(&self) {
        for d in 0..self.devices.len() {
            if !self.devices[d].gone {
                self.check_device(d);
            }
        }
        let counted = |states: &[State], tenant: Option<usize>| {
            let matches = |state, of: u32| states.contains(&state) && tenant.is_none_or(|tenant| tenant == of as usize);
            self.requests.iter().filter(|(_, r)| matches(r.state, r.tenant)).count() as u32
        };
        self.check_grants();
        let waiting = [State::Waiting, State::Parked];
        assert_eq!(self.tenants.waiting, counted(&waiting, None), "waiting");
        for (slot, account) in self.tenants.iter().enumerate() {
            assert_eq!(account.waiting, counted(&waiting, Some(slot)), "waiting of {:?}", account.id);
            let running = counted(&[State::Running], Some(slot));
            assert_eq!(account.running, running, "running of {:?}", account.id);
            let live = self.requests.iter().filter(|(_, r)| r.tenant as usize == slot);
            let held: u128 = live.filter(|(_, r)| r.state != State::Free).map(|(_, r)| r.held).sum();
            assert_eq!(account.service.held(), held, "virtual time held for {:?}", account.id);
            let short = self.devices.iter().filter(|device| !device.gone && device.shares[slot].short).count();
            assert_eq!(account.service.short_on() as usize, short, "devices that {:?} is short of", account.id);
        }
        for (slot, request) in self.requests.iter() {
            if request.state == State::Free {
                assert!(request.blocks.is_empty() && request.in_flight == 0, "free slot {slot}");
                continue;
            }
            let in_flight = self.devices[request.device as usize]
                .in_flight
                .iter()
                .flat_map(|step| &step.rows)
                .filter(|row| row.slot == slot);
            let drawing = in_flight.clone().filter(|row| row.samples).count() as u32;
            assert_eq!(request.in_flight, in_flight.count() as u32, "rows in flight of {slot}");
            assert_eq!(request.drawing, drawing, "ids being drawn by {slot}");
            let cause = request.watch.cause();
            assert_eq!(cause == Cause::Steps, request.in_flight > 0, "what {slot} does");
            if request.queue_pos != NONE && request.queue_pos > 0 {
                assert!(matches!(cause, Cause::Queue | Cause::Preemption), "{slot} is behind others: {cause:?}");
            }
            let queued = request.queue_pos != NONE;
            assert_eq!(queued, request.state == State::Waiting, "queue place of {slot}");
            assert_eq!(request.parked_on != NONE, request.state == State::Parked, "parking of {slot}");
            if matches!(request.state, State::Waiting | State::Parked) {
                assert!(request.blocks.is_empty() && request.in_flight == 0 && request.held == 0);
            }
            if matches!(request.state, State::Ending | State::Draining | State::Ghost) {
                assert!(request.in_flight > 0, "{slot} waits for rows that are not there");
            }
            if request.holds_blocks() {
                assert!(request.computed <= request.planned && request.planned <= request.target());
            }
            if request.holds_blocks() && request.draws_max() > 0 {
                assert!(request.blocks.len() as u32 * BLOCK_LEN >= request.planned, "blocks of {slot}");
            }
        }
    }

    fn check_device(&self, d: usize) {
        let device = &self.devices[d];
        let books = device.accounts(Nanos(device.booked.0 + 1));
        let sum = books.tenants + books.operator + books.idle + books.in_flight;
        assert_eq!(books.wall, sum, "books of {:?}", device.id);
        let known = books.own + books.redo + books.overrun + books.failed + books.gap + books.absent;
        assert!(known <= books.operator, "the operator's books of {:?}", device.id);

        let mut live = vec![0u32; device.shares.len()];
        let mut waiting = vec![0u32; device.shares.len()];
        let mut demand = vec![Nanos::ZERO; device.shares.len()];
        let here = |device: u32| device as usize == d;
        for (_, request) in self.requests.iter().filter(|(_, request)| here(request.device)) {
            let tenant = request.tenant as usize;
            if matches!(request.state, State::Free | State::Ghost) {
                continue;
            }
            live[tenant] += 1;
            if matches!(request.state, State::Waiting | State::Parked) {
                waiting[tenant] += 1;
                demand[tenant] += request.estimate;
            }
        }
        for (tenant, share) in device.shares.iter().enumerate() {
            assert_eq!(share.live, live[tenant], "live requests of slot {tenant}");
            assert_eq!(share.waiting, waiting[tenant], "waiting requests of slot {tenant}");
            assert_eq!(share.demand, demand[tenant], "demand of slot {tenant}");
            let slot = tenant as u32;
            assert_eq!(device.calm.has(slot), share.live > 0 && !share.short, "slot {tenant} is calm");
            let filed = device.models.iter().any(|model| model.is_filed(slot));
            let at_hand = device.at_hand.has(slot);
            assert_eq!((filed || at_hand, filed && at_hand), (share.short, false), "slot {tenant} is filed or at hand");
            assert_eq!(share.weight, self.tenants.get(slot).weight());
        }
        let live_of = |share: &&Share| share.live > 0;
        let weights: u64 = device.shares.iter().filter(live_of).map(|share| u64::from(share.weight)).sum();
        assert_eq!(device.weights, weights, "weights");
        assert_eq!((device.live, device.waiting), (live.iter().sum(), waiting.iter().sum()), "live and waiting");
        assert_eq!(device.demand, demand.iter().copied().sum(), "demand");
        for m in 0..device.models.len() {
            self.check_model(d, m);
        }
    }

    fn check_model(&self, d: usize, m: usize) {
        let model = &self.devices[d].models[m];
        let mut refs = vec![0u32; model.pool.len() as usize];
        let (mut running, mut yielding, mut queued, mut enlisted) = (0, 0, 0, 0);
        let (mut prompts, mut draws, mut texts) = (Nanos::ZERO, 0, 0);
        for (slot, request) in self.requests.iter() {
            if (request.device as usize, request.model as usize) != (d, m) || request.state == State::Free {
                continue;
            }
            for (n, block) in request.blocks.iter().enumerate() {
                refs[block.0 as usize] += 1;
                let owner = model.pool.blocks[block.0 as usize].owner;
                assert_eq!(owner, request.tenant, "block {n} of {slot} is another tenant's");
            }
            if matches!(request.state, State::Waiting | State::Parked) {
                prompts += request.need.prompt;
                draws += u64::from(request.need.draws);
                texts += u32::from(request.need.draws > 0);
            }
            let lane = &model.lanes[request.tenant as usize];
            match request.state {
                State::Running => {
                    running += 1;
                    assert!(lane.running.contains(&slot), "{slot} is in its lane");
                }
                State::Draining | State::Ending | State::Ghost => yielding += request.yields,
                State::Waiting => {
                    queued += 1;
                    assert!(lane.waiting.slots().any(|other| other == slot), "{slot} is queued");
                }
                State::Parked | State::Free => {}
            }
        }
        for (tenant, lane) in (0u32..).zip(&model.lanes) {
            enlisted += lane.running.len();
            queued -= lane.waiting.len();
            lane.check(&self.requests);
            let (runs, waits) = (!lane.running.is_empty(), !lane.waiting.is_empty());
            assert_eq!((model.running_tenants.has(tenant), model.waiting_tenants.has(tenant)), (runs, waits));
            let device = &self.devices[d];
            let short = device.shares[tenant as usize].short && !device.at_hand.has(tenant);
            let filed = (model.short_running.key(tenant), model.short_waiting.key(tenant));
            assert_eq!(filed.0.is_some(), short && runs, "slot {tenant} is short with running requests");
            assert_eq!(filed.1.is_some(), short && !runs && waits, "slot {tenant} is short with waiting requests only");
            let service = &self.tenants.get(tenant).service;
            let above = filed.0.max(filed.1).is_some_and(|filed| filed > service.virtual_time());
            assert!(!above || service.lowered, "slot {tenant} is filed above its time");
        }
        assert_eq!((model.running, enlisted as u32), (running, running), "running");
        assert_eq!(queued, 0, "queued");
        let sums = (model.waiting_prompts, model.waiting_draws, model.waiting_texts);
        assert_eq!(sums, (prompts, draws, texts), "what waits");
        assert_eq!(model.yielding, yielding, "blocks about to come free");
        self.check_targets(d, m);
        model.pool.check(&refs);
        let live = |request: &Request| !matches!(request.state, State::Free | State::Ghost);
        let here = |request: &Request| (request.device as usize, request.model as usize) == (d, m);
        let live: Vec<u32> =
            self.requests.iter().filter(|(_, request)| live(request) && here(request)).map(|(slot, _)| slot).collect();
        model.kin.check(&self.requests, &model.pool, &live);
    }
}
