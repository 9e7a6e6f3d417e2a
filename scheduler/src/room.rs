//! Blocks for a step being filled: for a request that starts, for one that grows, and whose are taken when there are none.
//!
//! A request starts when all its known tokens have blocks, plus some headroom for the growth of those that run. When the
//! pool is empty, a row takes the blocks of the request of lowest rank of the tenant furthest over its share. A request that
//! does not start for want of blocks stops all later starts of the step: passing it over would starve long prompts. It takes
//! blocks from a running one only if its tenant is owed a good deal: giving up running work for small debts redoes
//! more than fairness gains.
//!
//! *Why this cannot lock up.* The tenants are in a total order of how far they are over their shares, a tenant's requests in the order of
//! their ranks. The first in both can take blocks from any unprotected request; a protected one, preempted often enough, restarts
//! only with every block it can ever need, so it ends. Parked requests wait only for running ones. What remains is floors and
//! ceilings changed under way: they give way when nothing else could run and nothing is in flight.
//!
//! *Cost.* Who gives way is found by a look at each tenant that runs something: once for each request that is preempted, which none is more
//! than a few times; once in a step for a request that could not start; and once for a row that misses a block in vain. The next row
//! with no better claim does not look again until blocks are taken or given up.
//!
//! *Plans that change.* On a device that never stands still nothing gives way. So a request that waits and has become too large for its
//! tenant's ceiling, or for what the floors of others leave, ends when its turn comes ([`crate::End::NeverFits`]), unless another device
//! can do it. One that ran already keeps to the ceiling that it was accepted under, to its end: what is at work stays at work. But if it
//! lost its blocks and floors keep them by now, it ends, too.

use crate::BLOCK_LEN;
use crate::block::BlockState;
use crate::blocks::{Limits, ceiling};
use crate::cost::Load;
use crate::event::Event;
use crate::fill::Fill;
use crate::ids::{BlockHash, BlockId};
use crate::pick::Start;
use crate::request::{Rank, State};
use crate::share::{virtual_time, whole};

/// How far a tenant is over its share; see [`Fill::excess`].
type Excess = (bool, u64, u64, u32);

/// A row with this claim found nobody to take a block from, when so many had been taken and given up in the step.
pub(crate) struct InVain {
    excess: Excess,
    taken: u32,
    preemptions: u64,
}

impl Fill<'_> {
    pub(crate) fn start_sequence(&mut self, slot: u32) -> Start {
        if self.has_outgrown(slot) {
            self.tenants.outgrown.push(self.requests.id(slot));
            return Start::Capped;
        }
        self.device.models[self.m].give_table(self.requests.get_mut(slot));
        let start = self.start_with_table(slot);
        if !matches!(start, Start::Row(_)) {
            self.device.models[self.m].take_back(self.requests.get_mut(slot));
        }
        start
    }

    fn start_with_table(&mut self, slot: u32) -> Start {
        let request = self.requests.get_mut(slot);
        let pool = &self.device.models[self.m].pool;
        let (tenant, known) = (request.tenant, request.known);
        let usable = ((known - 1) / BLOCK_LEN).min(request.hashes.len() as u32);
        // The blocks found are noted at once, and held once it is sure that the request starts.
        for hash in &request.hashes[..usable as usize] {
            let Some(at) = pool.find(tenant, hash) else {
                break;
            };
            if pool.blocks[at as usize].state == BlockState::Coming {
                self.device.park(self.requests, self.tenants, slot, at);
                return Start::Parked;
            }
            request.blocks.push(BlockId(at));
        }
        let cached = request.blocks.len() as u32;
        let from = cached * BLOCK_LEN;
        // A protected request takes all it can ever need, and so will never have to ask again.
        let protected = request.preemptions >= self.preemptions_max;
        let positions = if protected { request.limit() } else { known };
        let ready = request.ready_len() - from;
        let Some(len) = self.chunk(from, ready) else {
            return Start::NoBudget;
        };
        let Some(len) = self.afford(slot, from, len, false) else {
            return Start::NoGrant;
        };
        let wanted = positions.div_ceil(BLOCK_LEN) - cached;
        let before = *self.preemptions;
        if let Err(why) = self.room_to_start(slot, wanted) {
            return why;
        }
        if *self.preemptions != before && !self.finds_its_blocks(slot) {
            self.requests.get_mut(slot).blocks.clear();
            return self.start_with_table(slot);
        }
        for block in &self.requests.get(slot).blocks {
            self.device.models[self.m].pool.share(block.0);
        }
        let limits = self.limits;
        let (bought, may) = (ceiling(self.tenants.get(tenant), limits), self.ceiling_for(slot, limits));
        let blocks = &mut self.requests.get_mut(slot).blocks;
        let full = blocks.len() + wanted as usize;
        let pool = &mut self.device.models[self.m].pool;
        // First inside what its tenant has bought.
        let taken = pool.take_all(tenant, bought, limits, blocks, full)
            || may > bought && pool.take_all(tenant, may, limits, blocks, full);
        assert!(taken, "the room was counted");
        self.device.wake(self.requests, self.tenants, self.m);
        let request = self.requests.get(slot);
        let pool = &mut self.device.models[self.m].pool;
        pool.fetch(tenant, &request.hashes[cached as usize..]);
        for n in cached as usize..request.hashes.len() {
            pool.announce(request.blocks[n], request.hashes[n]);
        }
        self.enter(slot, cached);
        Start::Row(self.push_stretch(slot, len))
    }

    /// Whether the blocks noted for a request that starts are still there. One that starts alone may take those of its own tenant, and what
    /// these leave in the cache may be more than the tenant may keep there.
    fn finds_its_blocks(&self, slot: u32) -> bool {
        let request = self.requests.get(slot);
        let pool = &self.device.models[self.m].pool;
        let found = |(block, hash): (&BlockId, &BlockHash)| pool.find(request.tenant, hash) == Some(block.0);
        request.blocks.iter().zip(&request.hashes).all(found)
    }

    /// Whether a waiting request can never start, by limits that have changed since it was accepted.
    fn has_outgrown(&self, slot: u32) -> bool {
        let request = self.requests.get(slot);
        let reach = self.device.models[self.m].pool.reach(request.tenant);
        let blocks = request.limit().div_ceil(BLOCK_LEN);
        blocks > reach.min(self.ceiling_for(slot, Limits::Bind))
    }

    /// How many blocks its tenant may use for the sake of this request: as many as it has bought, but one that has run may go on, with as
    /// many as it needs by itself.
    fn ceiling_for(&self, slot: u32, limits: Limits) -> u32 {
        let request = self.requests.get(slot);
        let bought = ceiling(self.tenants.get(request.tenant), limits);
        if request.started_at.is_some() { bought.max(request.limit().div_ceil(BLOCK_LEN)) } else { bought }
    }

    /// A block for a request, first inside what its tenant has bought.
    fn take(&mut self, slot: u32) -> Option<BlockId> {
        let (limits, tenant) = (self.limits, self.requests.get(slot).tenant);
        let (bought, may) = (ceiling(self.tenants.get(tenant), limits), self.ceiling_for(slot, limits));
        let pool = &mut self.device.models[self.m].pool;
        let mut block = pool.take(tenant, bought, limits);
        if block.is_none() && may > bought {
            block = pool.take(tenant, may, limits);
        }
        self.device.wake(self.requests, self.tenants, self.m);
        self.taken += u32::from(block.is_some());
        block
    }

    /// Whether `wanted` blocks can be had for a request that wants to start, besides those of its blocks that are only cached so far; if
    /// need be from a tenant further over its share.
    fn room_to_start(&mut self, slot: u32, wanted: u32) -> Result<(), Start> {
        let tenant = self.requests.get(slot).tenant;
        loop {
            let model = &self.device.models[self.m];
            let idle = |block: &&BlockId| model.pool.blocks[block.0 as usize].refs == 0;
            let idle = self.requests.get(slot).blocks.iter().filter(idle).count() as u32;
            let ceiling = self.ceiling_for(slot, self.limits);
            let used = model.pool.held(tenant).used + idle;
            if used.saturating_add(wanted) > ceiling {
                return Err(Start::Capped);
            }
            let headroom = model.running.min(model.pool.len() / 8);
            // Its own cached blocks count as room, but those it is about to hold are not.
            let room = model.pool.room(tenant, ceiling, self.limits).saturating_sub(idle);
            let needed = if self.limits == Limits::Bind { wanted + headroom } else { wanted };
            // The tenant's ceiling bounds the room too, but needs no headroom.
            if room >= needed.min(ceiling - used).max(wanted) {
                return Ok(());
            }
            if !self.make_room(tenant, ceiling, None, needed - room.min(needed)) {
                return Err(Start::NoRoom);
            }
        }
    }

    /// Gives a running request blocks until it has `wanted`, if need be from a request behind it.
    #[inline(always)]
    pub(crate) fn grow(&mut self, slot: u32, wanted: u32) -> Option<()> {
        match self.requests.get(slot).blocks.len() as u32 >= wanted {
            true => Some(()),
            false => self.grow_by_blocks(slot, wanted),
        }
    }

    fn grow_by_blocks(&mut self, slot: u32, wanted: u32) -> Option<()> {
        loop {
            let request = self.requests.get(slot);
            let (tenant, n) = (request.tenant, request.blocks.len() as u32);
            if n >= wanted {
                return Some(());
            }
            match self.take(slot) {
                Some(block) => {
                    let request = self.requests.get_mut(slot);
                    request.blocks.push(block);
                    if let Some(hash) = request.hashes.get(n as usize) {
                        self.device.models[self.m].pool.announce(block, *hash);
                    }
                }
                None => {
                    let (rank, ceiling) = (self.requests.get(slot).rank, self.ceiling_for(slot, self.limits));
                    if !self.make_room(tenant, ceiling, Some(rank), wanted - n) {
                        self.held_back = self.device.models[self.m].pool.held(tenant).used >= ceiling;
                        return None;
                    }
                }
            }
        }
    }

    /// Preempts one request for the tenant's sake, which misses so many blocks and may use `ceiling` of them; `rank` is that of its running request, or nothing for
    /// one that wants to start. False if nothing is to be had, or what is missing comes free anyway when steps in flight have
    /// ended. So all blocks that a long prompt needs are taken at once, and not two steps apart; see `docs/fairness.md`.
    fn make_room(&mut self, tenant: u32, ceiling: u32, rank: Option<Rank>, missing: u32) -> bool {
        if self.model().yielding >= missing {
            return false;
        }
        let (victim, looks) = self.victim(tenant, ceiling, rank, missing);
        self.device.touched += u64::from(looks);
        let Some(slot) = victim else {
            if rank.is_some() && !self.takes_its_own(tenant, ceiling) {
                let excess = self.claim(tenant, missing);
                self.in_vain = Some(InVain { excess, taken: self.taken, preemptions: *self.preemptions });
            }
            return false;
        };
        self.preempt(slot);
        true
    }

    /// The request of lowest rank of the tenant furthest over its share: the one that is most whole [`Fill::start_preempts_at`] of
    /// virtual time ahead, then the one with the most blocks by weight. Small leads in time are noise, and do not choose. With how many were looked at.
    fn victim(&self, tenant: u32, ceiling: u32, rank: Option<Rank>, missing: u32) -> (Option<u32>, u32) {
        #[cfg(feature = "sim")]
        if self.order.is_foreign() {
            return (self.last_to_come(rank), 0);
        }
        let model = &self.device.models[self.m];
        let floor = |tenant: u32| self.floor(tenant);
        let inside_floor = self.takes_first(tenant, missing);
        let only_own = self.takes_its_own(tenant, ceiling);
        let mine = self.excess(tenant);
        // Nobody else runs until the one that runs alone has: whoever is in its way goes.
        let alone = self.device.alone.is_some();
        if rank.is_some() && !only_own && !alone && self.is_in_vain(self.claim(tenant, missing)) {
            return (self.last_of(tenant, rank), 1);
        }
        let mut best = None;
        for other in model.running_tenants.iter() {
            let own = other == tenant;
            if own && rank.is_none() && !alone || !own && only_own {
                continue;
            }
            // Of those that run, few are so far ahead that one that wants to start takes their blocks.
            if rank.is_none() && !inside_floor && !alone && !own && !self.may_be_owed(tenant, other) {
                continue;
            }
            if !own && model.pool.held(other).total() <= floor(other) {
                continue;
            }
            let excess = self.excess(other);
            // Before its requests are looked at, which mostly nobody has looked at lately.
            if best.is_some_and(|(most, _)| excess <= most) {
                continue;
            }
            let Some(slot) = self.last_of(other, rank.filter(|_| own)) else {
                continue;
            };
            let over = match rank {
                _ if own || inside_floor || alone => true,
                Some(_) => excess > mine,
                None => excess.0 || self.is_owed(tenant, other, slot),
            };
            if over {
                best = Some((excess, slot));
            }
        }
        (best.map(|(_, slot)| slot), model.running_tenants.len() as u32)
    }

    fn floor(&self, tenant: u32) -> u32 {
        match self.limits {
            Limits::Bind => self.tenants.get(tenant).plan.kv_blocks_floor,
            Limits::GiveWay => 0,
        }
    }

    /// Whether the missing blocks are inside the tenant's floor. What it has bought is its own; what is beyond that it takes as everybody
    /// does.
    fn takes_first(&self, tenant: u32, missing: u32) -> bool {
        self.device.models[self.m].pool.held(tenant).total().saturating_add(missing) <= self.floor(tenant)
    }

    /// Whoever is over its share by more than this may be taken from for a running row of the tenant; for one inside its floor, everybody
    /// who has more than a floor.
    fn claim(&self, tenant: u32, missing: u32) -> Excess {
        if self.takes_first(tenant, missing) { Excess::default() } else { self.excess(tenant) }
    }

    /// At its own ceiling only the tenant's own blocks help.
    fn takes_its_own(&self, tenant: u32, ceiling: u32) -> bool {
        self.device.models[self.m].pool.held(tenant).used >= ceiling
    }

    /// Whether a row with no weaker claim than this looked for blocks of others in vain, and nothing has changed since.
    fn is_in_vain(&self, excess: Excess) -> bool {
        let same = |before: &InVain| (before.taken, before.preemptions) == (self.taken, *self.preemptions);
        self.in_vain.as_ref().filter(|before| same(before)).is_some_and(|before| excess >= before.excess)
    }

    /// How far a tenant is over its share, for comparison with others: a total order. Furthest is who could not use its blocks now
    /// anyway, for want of a grant.
    fn excess(&self, tenant: u32) -> Excess {
        let account = self.tenants.get(tenant);
        let lead = account.service.virtual_time().saturating_sub(self.device.clock);
        let lead = whole(lead) / self.start_preempts_at.0.max(1);
        let used = u64::from(self.device.models[self.m].pool.held(tenant).used);
        (account.is_dry(), lead, (used << 32) / u64::from(account.weight()), tenant)
    }

    /// Whether [`Fill::is_owed`] can hold, or need not: without a look at requests, and without a division.
    fn may_be_owed(&self, tenant: u32, other: u32) -> bool {
        let time = self.tenants.get(tenant).service.virtual_time();
        let other = self.tenants.get(other);
        let lead = other.service.virtual_time().saturating_sub(time);
        other.is_dry() || lead.saturating_mul(other.weight().into()) > virtual_time(self.start_preempts_at, 1)
    }

    /// Whether the tenant is owed so much more than another that its waiting request may take the blocks of the other's `slot`: more
    /// than the redo this causes, and a good deal besides.
    fn is_owed(&self, tenant: u32, other: u32, slot: u32) -> bool {
        let time = |tenant: u32| self.tenants.get(tenant).service.virtual_time();
        let redo = Load::new(0, self.requests.get(slot).computed);
        let cost = &self.device.models[self.m].cost;
        let owed = self.start_preempts_at.saturating_add(cost.attributed(redo, 1));
        time(other) > time(tenant) + virtual_time(owed, self.tenants.get(other).weight())
    }

    /// The tenant's preemptible request of lowest rank, and behind `rank` if that is given.
    fn last_of(&self, tenant: u32, rank: Option<Rank>) -> Option<u32> {
        let lane = &self.device.models[self.m].lanes[tenant as usize];
        let dry = self.tenants.get(tenant).is_dry();
        lane.running.iter().rev().copied().find(|&slot| {
            let request = self.requests.get(slot);
            (request.preemptions < self.preemptions_max || dry)
                && !request.blocks.is_empty()
                && rank.is_none_or(|rank| request.rank > rank)
        })
    }

    /// Takes a running request's blocks, now or as soon as its rows in flight have ended, and sends it back to its queue.
    fn preempt(&mut self, slot: u32) {
        self.events.push(Event::Preempted { request: self.requests.id(slot) });
        *self.preemptions += 1;
        self.device.leave_lane(self.requests, self.tenants, slot);
        let request = self.requests.get_mut(slot);
        let held = self.device.models[self.m].pool.held(request.tenant).total();
        // One that waits for a grant loses its blocks for that, however often it lost them before.
        let dry = self.tenants.get(request.tenant).is_dry();
        request.preemptions += u32::from(!dry || request.preemptions < self.preemptions_max);
        request.redo_until = request.redo_until.max(request.computed);
        request.redo_free = held <= self.tenants.get(request.tenant).plan.kv_blocks_floor;
        if request.in_flight == 0 {
            self.device.restart(self.requests, self.tenants, slot);
        } else {
            request.state = State::Draining;
            self.device.yield_blocks(self.requests, slot);
        }
    }
}
