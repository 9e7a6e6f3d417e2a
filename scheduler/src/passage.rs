//! A request's way through its device: into the queue, parked, running, out again. Each move keeps the counts of tenant, share,
//! model and pool in step; nothing else changes them.

use crate::BLOCK_LEN;
use crate::device::Device;
use crate::ids::{Nanos, RequestId};
use crate::kin::level_of;
use crate::lane::Lane;
use crate::request::{NONE, Requests, State};
use crate::tenant::Tenants;
use crate::why::Cause;

impl Device {
    /// Puts a request into its lane's queue, and its expected cost into the demand.
    pub(crate) fn enqueue(&mut self, requests: &mut Requests, tenants: &mut Tenants, slot: u32) {
        let request = requests.get_mut(slot);
        let (tenant, model) = (request.tenant, &mut self.models[request.model as usize]);
        request.state = State::Waiting;
        request.queued_at = self.last_step;
        request.need = model.need_of_waiting(request);
        request.estimate = model.attributed(&request.need);
        model.pool.want(request);
        model.waiting_prompts += request.need.prompt;
        model.waiting_draws += u64::from(request.need.draws);
        model.waiting_texts += u32::from(request.need.draws > 0);
        let share = &mut self.shares[tenant as usize];
        share.demand += request.estimate;
        share.waiting += 1;
        self.demand += request.estimate;
        self.waiting += 1;
        tenants.get_mut(tenant).waiting += 1;
        tenants.waiting += 1;
        let m = request.model as usize;
        let lane = &mut model.lanes[tenant as usize];
        lane.reserve(share.live);
        lane.push_waiting(requests, slot);
        model.kin.wait(requests, slot);
        self.refile(tenants, m, tenant);
        let account = tenants.get(tenant);
        requests.queued(slot, self.alone, account.may_start(), account.is_dry());
    }

    /// The opposite, also for a parked request. Its state is for the caller to set.
    pub(crate) fn dequeue(&mut self, requests: &mut Requests, tenants: &mut Tenants, slot: u32) {
        let request = requests.get(slot);
        let (tenant, model) = (request.tenant, &mut self.models[request.model as usize]);
        model.pool.unwant(request);
        model.waiting_prompts = model.waiting_prompts - request.need.prompt;
        model.waiting_draws -= u64::from(request.need.draws);
        model.waiting_texts -= u32::from(request.need.draws > 0);
        let share = &mut self.shares[tenant as usize];
        share.demand = share.demand - request.estimate;
        share.waiting -= 1;
        self.demand = self.demand - request.estimate;
        self.waiting -= 1;
        tenants.get_mut(tenant).waiting -= 1;
        tenants.waiting -= 1;
        let m = request.model as usize;
        match request.state {
            State::Parked => model.pool.unpark(requests, slot),
            _ => {
                model.lanes[tenant as usize].remove_waiting(requests, slot);
                model.kin.go(requests, slot);
            }
        }
        self.refile(tenants, m, tenant);
    }

    /// Takes a waiting request out of its queue until the block `at` is ready or given up. It still counts as waiting.
    pub(crate) fn park(&mut self, requests: &mut Requests, tenants: &mut Tenants, slot: u32, at: u32) {
        let request = requests.get_mut(slot);
        let (tenant, m) = (request.tenant, request.model as usize);
        let model = &mut self.models[m];
        request.state = State::Parked;
        model.lanes[tenant as usize].remove_waiting(requests, slot);
        model.kin.go(requests, slot);
        model.pool.park(requests, slot, at);
        self.refile(tenants, m, tenant);
        requests.wait(slot, Cause::Placement);
    }

    /// Puts the requests whose block became ready, or was given up, back into their queues.
    #[inline]
    pub(crate) fn wake(&mut self, requests: &mut Requests, tenants: &mut Tenants, m: usize) {
        let pool = &self.models[m].pool;
        if !(pool.gone.is_empty() && pool.woken.is_empty()) {
            self.wake_all(requests, tenants, m);
        }
    }

    fn wake_all(&mut self, requests: &mut Requests, tenants: &mut Tenants, m: usize) {
        let model = &mut self.models[m];
        while let Some((tenant, level, hash)) = model.pool.gone.pop() {
            // It may have come again meanwhile.
            let warm = model.pool.is_ready(tenant, &hash);
            model.kin.set_warm(tenant, level, &hash, warm);
        }
        while let Some(mut slot) = self.models[m].pool.woken.pop() {
            while slot != NONE {
                let request = requests.get_mut(slot);
                request.state = State::Waiting;
                request.parked_on = NONE;
                let tenant = request.tenant;
                let next = core::mem::replace(&mut request.parked_next, NONE);
                self.models[m].lanes[tenant as usize].push_waiting(requests, slot);
                self.models[m].kin.wait(requests, slot);
                self.refile(tenants, m, tenant);
                slot = next;
            }
        }
    }

    /// From now on the device, whose slot is `d`, runs this request alone, or all of them again.
    pub(crate) fn set_alone(&mut self, requests: &mut Requests, d: u32, alone: Option<RequestId>) {
        self.alone = alone;
        requests.alone(d, alone);
        self.models.iter_mut().flat_map(|model| &mut model.lanes).for_each(Lane::forget_told);
    }

    /// Moves a waiting request among the running ones; its blocks and counters are for the caller to set.
    pub(crate) fn start(&mut self, requests: &mut Requests, tenants: &mut Tenants, slot: u32) {
        self.dequeue(requests, tenants, slot);
        let request = requests.get_mut(slot);
        request.state = State::Running;
        let (tenant, model) = (request.tenant, &mut self.models[request.model as usize]);
        let m = request.model as usize;
        model.lanes[tenant as usize].insert_running(requests, slot);
        if requests.get(slot).draws_max() > 0 {
            model.targets.enter(tenants.get(tenant).plan.itl_target);
        }
        model.running += 1;
        tenants.get_mut(tenant).running += 1;
        self.refile(tenants, m, tenant);
    }

    /// Takes a running request out of its lane, so that no more rows are planned for it; others are left alone. Its state is for
    /// the caller to set.
    pub(crate) fn leave_lane(&mut self, requests: &mut Requests, tenants: &mut Tenants, slot: u32) {
        let request = requests.get(slot);
        if request.state != State::Running {
            return;
        }
        let (tenant, model) = (request.tenant, &mut self.models[request.model as usize]);
        let m = request.model as usize;
        model.lanes[tenant as usize].remove_running(requests, slot);
        if requests.get(slot).draws_max() > 0 {
            model.targets.leave(tenants.get(tenant).plan.itl_target);
        }
        model.running -= 1;
        tenants.get_mut(tenant).running -= 1;
        let request = requests.get_mut(slot);
        request.held = tenants.change_held(request.tenant, request.held, Nanos::ZERO);
        self.refile(tenants, m, tenant);
    }

    /// Sends a preempted request, whose rows have all ended, back to its queue.
    pub(crate) fn restart(&mut self, requests: &mut Requests, tenants: &mut Tenants, slot: u32) {
        self.release_blocks(requests, tenants, slot);
        let request = requests.get_mut(slot);
        debug_assert_eq!((request.in_flight, request.drawing), (0, 0));
        // Rows that were in flight when it lost its blocks have been paid for since.
        request.redo_until = request.redo_until.max(request.computed);
        request.computed = 0;
        request.planned = 0;
        requests.preempted(slot);
        self.enqueue(requests, tenants, slot);
    }

    /// Counts the blocks that will come free when the request's rows in flight have ended. Those that others hold, too, are not among them.
    pub(crate) fn yield_blocks(&mut self, requests: &mut Requests, slot: u32) {
        let request = requests.get_mut(slot);
        let model = &mut self.models[request.model as usize];
        let pool = &model.pool;
        let own = request.blocks.iter().filter(|block| pool.blocks[block.0 as usize].refs == 1).count() as u32;
        model.yielding = model.yielding - request.yields + own;
        request.yields = own;
    }

    /// Lets go of all blocks of a request, the last ones first, so that the start of a prefix outlives its end in the cache.
    pub(crate) fn release_blocks(&mut self, requests: &mut Requests, tenants: &mut Tenants, slot: u32) {
        let request = requests.get_mut(slot);
        let m = request.model as usize;
        request.published = 0;
        self.models[m].yielding -= core::mem::take(&mut request.yields);
        self.models[m].pool.fetch_blocks(&request.blocks);
        while let Some(block) = request.blocks.pop() {
            self.models[m].pool.release(block);
        }
        self.models[m].take_back(request);
        self.wake(requests, tenants, m);
    }

    /// Publishes the request's blocks that are computed and whose hashes are known.
    pub(crate) fn publish(&mut self, requests: &mut Requests, tenants: &mut Tenants, slot: u32) {
        let request = requests.get_mut(slot);
        if !request.holds_blocks() {
            return;
        }
        let m = request.model as usize;
        // Most rows complete no block, and need not look at the hashes.
        let full = request.computed / BLOCK_LEN;
        if request.published >= full {
            return;
        }
        let full = full.min(request.hashes.len() as u32);
        while request.published < full {
            let at = request.published as usize;
            let (level, hash) = (level_of(at), request.hashes[at]);
            let model = &mut self.models[m];
            model.pool.publish(request.blocks[at], hash, level);
            if let Some(level) = level
                && model.pool.is_ready(request.tenant, &hash)
            {
                model.kin.set_warm(request.tenant, level, &hash, true);
            }
            request.published += 1;
        }
        self.wake(requests, tenants, m);
    }

    /// Takes the request's blocks out of the prefix index: what they hold is not to be trusted.
    pub(crate) fn withdraw(&mut self, requests: &mut Requests, tenants: &mut Tenants, slot: u32) {
        let request = requests.get(slot);
        let m = request.model as usize;
        for block in &request.blocks {
            self.models[m].pool.withdraw(*block);
        }
        self.wake(requests, tenants, m);
    }

    /// Brings what is held for a running request up to what it is known to need.
    #[inline]
    pub(crate) fn hold(&mut self, requests: &mut Requests, tenants: &mut Tenants, slot: u32) {
        let request = requests.get_mut(slot);
        let time = self.models[request.model as usize].estimate_known(request);
        request.held = tenants.change_held(request.tenant, request.held, time);
    }
}
