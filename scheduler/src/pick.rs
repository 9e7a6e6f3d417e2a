//! A tenant's next row in a step: of a running request of its or, by rank, of one that starts.

use crate::BLOCK_LEN;
use crate::admit::Work;
use crate::fill::Fill;
use crate::ids::Nanos;
use crate::model::Model;
use crate::request::{Rank, State};
use crate::why::Cause;

/// What a tenant gave when it was asked for a row.
pub(crate) enum Pick {
    /// A row of this marginal cost.
    Row(Nanos),
    /// Nothing, now.
    Nothing,
}

/// What became of a waiting request at the head of its lane.
pub(crate) enum Start {
    Row(Nanos),
    /// Another request computes the block it needs next.
    Parked,
    /// Too few tokens or too little time are left in this step.
    NoBudget,
    /// Too few blocks.
    NoRoom,
    /// The tenant's ceiling.
    Capped,
    /// Too little of the tenant's grant.
    NoGrant,
}

impl Fill<'_> {
    /// Whether it could have another row.
    #[inline]
    pub(crate) fn has_more(&mut self, tenant: u32) -> bool {
        self.next_running(tenant).is_some() || self.next_waiting(tenant).is_some()
    }

    /// The row that nearly all rows are, in one go: the next token of a running text that has a block for it, of a tenant that needs no
    /// grant, in a step whose rows are neither cut to a target nor one request's alone. With whether the tenant could have another. Where
    /// there is more to think about it is nothing, and [`Fill::pick`] and [`Fill::has_more`] think; they would give this row, too.
    #[inline(always)]
    pub(crate) fn decode(&mut self, tenant: u32) -> Option<(Nanos, bool)> {
        let (open, id) = (self.starts_open(), self.id);
        let Fill { device, requests, tenants, .. } = self;
        let (model, account) = (&mut device.models[self.m], tenants.get(tenant));
        let lane = &mut model.lanes[tenant as usize];
        let (slot, is_last) = lane.at_plain_cursor()?;
        let request = requests.get(slot);
        let is_usual = request.is_decode() && request.last_step != id && !account.is_metered();
        if !is_usual || self.strict || device.alone.is_some() || device.alone_waits {
            return None;
        }
        let asks = !lane.capped && !lane.waiting.is_empty() && (open || !lane.short);
        let waits = asks && lane.first_may_start(requests, account.may_start(), self.no_room, open);
        if let (true, Some((rank, _))) = (waits, lane.waiting.head())
            && model.starts_before(tenant, rank, requests.get(slot).rank)
        {
            return None;
        }
        let lane = &mut model.lanes[tenant as usize];
        lane.cursor += 1;
        lane.reached = id;
        device.touched += 2;
        self.held_back = false;
        self.reserve = self.reserve.saturating_sub(1);
        let marginal = self.push_stretch(slot, 1);
        if !is_last && self.next_running(tenant).is_some() {
            return Some((marginal, true));
        }
        self.device.touched += 1;
        Some((marginal, waits))
    }

    /// One row of the tenant's, by rank.
    pub(crate) fn pick(&mut self, tenant: u32) -> Pick {
        loop {
            let running = self.next_running(tenant);
            let waiting = self.next_waiting(tenant);
            let start = match (running, waiting) {
                (None, None) => return Pick::Nothing,
                (Some(running), Some((rank, _))) => {
                    let running = self.requests.get(running).rank;
                    self.device.models[self.m].starts_before(tenant, rank, running)
                }
                (running, _) => running.is_none(),
            };
            if let (false, Some(slot)) = (start, running) {
                if let Some(cost) = self.go_on(slot) {
                    if !self.requests.get(slot).is_list {
                        // A sequence has one row of a step; blocks it took may have moved it.
                        self.lane(tenant).cursor += 1;
                        self.device.touched += 1;
                    }
                    return Pick::Row(cost);
                }
                let short = !core::mem::take(&mut self.held_back);
                let lane = self.lane(tenant);
                lane.short |= short;
                lane.cursor += 1;
            } else if let Some((rank, slot)) = waiting {
                let by_rank = self.requests.get(slot).queue_pos == 0;
                match self.start(slot) {
                    Start::Row(cost) => {
                        self.device.models[self.m].kin.started(self.requests, slot, by_rank);
                        return Pick::Row(cost);
                    }
                    Start::Parked => {}
                    Start::Capped => {
                        self.requests.wait(slot, Cause::Queue);
                        let lane = self.lane(tenant);
                        lane.forget_told();
                        lane.capped = true;
                    }
                    Start::NoGrant => self.lane(tenant).capped = true,
                    Start::NoBudget => {
                        self.starts_left = self.starts_left.saturating_sub(1);
                        // Under the rank with which it competed, which is that of the head of the queue.
                        self.pass_over(tenant, slot, rank);
                        let lane = self.lane(tenant);
                        (lane.capped, lane.short) = (true, true);
                    }
                    Start::NoRoom => {
                        self.no_room = true;
                        let lane = &mut self.device.models[self.m].lanes[tenant as usize];
                        lane.short = true;
                        if by_rank {
                            lane.tell_first(self.requests, Cause::Memory);
                        }
                    }
                }
            }
        }
    }

    /// The tenant's next running request that can have a row in this step.
    #[inline(always)]
    fn next_running(&mut self, tenant: u32) -> Option<u32> {
        let Model { lanes, turns, .. } = &mut self.device.models[self.m];
        let (lane, turns) = (&mut lanes[tenant as usize], &turns[tenant as usize]);
        while let Some(slot) = lane.at_cursor(self.requests, turns) {
            let request = self.requests.get(slot);
            let barred = self.device.alone.is_some_and(|alone| self.requests.id(slot) != alone)
                || self.device.alone_waits && request.pinned;
            if !barred && request.ready_len() > 0 && (request.is_list || request.last_step != self.id) {
                self.requests.wait(slot, Cause::Share);
                return Some(slot);
            }
            if barred {
                self.requests.wait(slot, Cause::Placement);
            }
            lane.cursor += 1;
            self.device.touched += 1;
        }
        None
    }

    /// The tenant's next waiting request, if it may start.
    #[inline(always)]
    fn next_waiting(&mut self, tenant: u32) -> Option<(Rank, u32)> {
        self.device.touched += 1;
        let lane = &self.device.models[self.m].lanes[tenant as usize];
        // If nobody starts any more and it was told why, its line of memory is best left alone.
        if lane.capped || lane.waiting.is_empty() || lane.short && !self.starts_open() {
            return None;
        }
        if self.device.alone.is_some() {
            return self.next_alone(tenant);
        }
        match self.first_may_start(tenant) {
            true => self.first_waiting(tenant),
            false => None,
        }
    }

    /// Whether the first of a lane's waiting requests may start; tells it what it waits for otherwise.
    #[inline]
    fn first_may_start(&mut self, tenant: u32) -> bool {
        let (open, may_start) = (self.starts_open(), self.tenants.get(tenant).may_start());
        let lane = &mut self.device.models[self.m].lanes[tenant as usize];
        let pinned = |slot: u32| self.requests.get(slot).pinned;
        if may_start && self.device.alone_waits && lane.waiting.head().is_some_and(|(_, slot)| pinned(slot)) {
            lane.tell_first(self.requests, Cause::Placement);
            return false;
        }
        lane.first_may_start(self.requests, may_start, self.no_room, open)
    }

    fn first_waiting(&self, tenant: u32) -> Option<(Rank, u32)> {
        let model = &self.device.models[self.m];
        let (rank, slot) = model.lanes[tenant as usize].waiting.head()?;
        // Its kin go in its place.
        let kin = model.kin.next(tenant).filter(|_| !self.device.alone_waits);
        Some((rank, kin.unwrap_or(slot)))
    }

    /// The same while the device runs one request alone: that one starts wherever it stands in its line.
    fn next_alone(&mut self, tenant: u32) -> Option<(Rank, u32)> {
        let closed = !self.starts_open();
        let lane = &mut self.device.models[self.m].lanes[tenant as usize];
        let (rank, first) = lane.waiting.head()?;
        let lone = self.device.alone.and_then(|alone| self.requests.find(alone)).filter(|slot| {
            let request = self.requests.get(*slot);
            (request.state, request.tenant, request.model as usize) == (State::Waiting, tenant, self.m)
        });
        let may_start = self.tenants.get(tenant).may_start();
        if let Some(slot) = lone.filter(|slot| *slot != first && may_start && !closed) {
            return Some((self.requests.get(slot).rank, slot));
        }
        let barred = self.device.alone.is_some_and(|alone| self.requests.id(first) != alone);
        let cause = match may_start {
            false => Cause::Queue,
            true if barred => Cause::Placement,
            true if self.no_room => Cause::Memory,
            true => Cause::Share,
        };
        lane.tell_first(self.requests, cause);
        if matches!(cause, Cause::Queue | Cause::Placement) {
            return None;
        }
        if closed {
            lane.short = true;
            return None;
        }
        Some((rank, first))
    }

    /// A row for a running request, unless tokens, time or blocks are short.
    #[inline(always)]
    pub(crate) fn go_on(&mut self, slot: u32) -> Option<Nanos> {
        self.held_back = false;
        self.reserve = self.reserve.saturating_sub(1);
        let request = self.requests.get(slot);
        if let (true, Work::Embed { lens }) = (request.is_list, &request.work) {
            let len = lens[request.planned as usize];
            let fits = self.fits_item(len) && self.afford(slot, 0, len, true).is_some();
            return fits.then(|| self.push_item(slot, len));
        }
        let (from, tenant, rank) = (request.planned, request.tenant, request.rank);
        let Some(len) = self.chunk(from, request.ready_len()) else {
            self.pass_over(tenant, slot, rank);
            return None;
        };
        let len = self.afford(slot, from, len, false)?;
        if self.grow(slot, (from + len).div_ceil(BLOCK_LEN)).is_none() {
            self.requests.wait(slot, if self.held_back { Cause::Queue } else { Cause::Memory });
            return None;
        }
        Some(self.push_stretch(slot, len))
    }

    /// Starts a waiting request and gives it its first row.
    pub(crate) fn start(&mut self, slot: u32) -> Start {
        let request = self.requests.get(slot);
        match &request.work {
            Work::Embed { lens } => {
                let len = lens[request.planned as usize];
                if !self.fits_item(len) {
                    return Start::NoBudget;
                }
                if self.afford(slot, 0, len, true).is_none() {
                    return Start::NoGrant;
                }
                self.enter(slot, 0);
                Start::Row(self.push_item(slot, len))
            }
            Work::Generate { .. } => self.start_sequence(slot),
        }
    }
}
