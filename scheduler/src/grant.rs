//! Quotas in the step loop: rows of a metered tenant run only against device time granted to it.
//!
//! *The interface.* A tenant with [`Tenant::metered`](crate::Tenant::metered) starts with nothing. Whoever holds its leases
//!
//! * hears [`Event::GrantLow`], once each time that what is left falls to half of the last grant or is too little for a row, and answers
//!   with [`Scheduler::grant`], or with [`Scheduler::window_spent`] when nothing more comes before a certain time;
//! * hears [`Event::GrantReturned`] for every nanosecond that a lease did not use: when it expires, when a lease with a higher epoch takes
//!   its place, after [`Scheduler::revoke_grant`], and for what rows in flight at that moment turn out not to need;
//! * reads [`Scheduler::grant_books`], and calls [`Scheduler::tick`] at [`Scheduler::next_deadline`] at the latest.
//!
//! *Reserve, then pay.* While a step is filled, each row reserves its estimate: its fitted cost and a quarter, and the first row of
//! the tenant in the step the whole constant of the step besides, which covers the parts of it that all its rows can come to
//! pay. No reserve, no row: the request keeps its blocks and its place. A chunk of a prompt shrinks to what is left. The bill of a
//! row is at most its reserve and what is left of the grant; measured time above that is the operator's
//! ([`DeviceAccounts::overrun`](crate::DeviceAccounts::overrun)), but advances the tenant's virtual time all the same. So
//! `spent <= granted` holds at every moment, with any number of devices and steps in flight (see `purse`).
//!
//! *Rates.* Grants are in the time of a device whose rate is one; a device of another rate
//! ([`Scheduler::set_device_rate`]) reserves and pays so much more, or less. Bills are in its own time all the same.
//!
//! *Dry.* A tenant none of whose rows could reserve is passed over until a grant comes or a reserve comes back. It counts as one that asks
//! for nothing: it is not short of the device, so it is lifted like an idle one, and its wait earns no claim. Its KV blocks are the first to
//! be taken. After [`Config::quota_wait_max`](crate::Config::quota_wait_max) without a grant its requests end with [`End::Quota`]; when the
//! window is spent, at once, but not before the rows in flight have ended, which might yet give something back.
//!
//! Cost: a multiplication or two per row of a metered tenant, nothing for others. Time is looked at only when a deadline has come.

use alloc::vec::Vec;

use crate::BLOCK_LEN;
use crate::cost::{Cost, Load};
use crate::device::{Device, Row};
use crate::event::{End, Event};
use crate::fill::Fill;
use crate::ids::{Nanos, RequestId, TenantId};
use crate::purse::{Grant, GrantBooks, Reserve};
use crate::request::State;
use crate::scheduler::Scheduler;
use crate::tenant::{Account, OPERATOR_SLOT, Tenants};
use crate::why::Cause;

impl Scheduler {
    /// A metered tenant may spend so much more. Comes back whole if it has expired, is of an older epoch, or there is no such tenant.
    pub fn grant(&mut self, now: Nanos, id: TenantId, grant: Grant) {
        let Some(slot) = self.tenants.slot(id) else {
            return give_back(&mut self.events, id, grant.epoch, grant.amount);
        };
        let purse = &mut self.tenants.get_mut(slot).purse;
        let before = purse.epoch();
        if grant.epoch > before && grant.expires > now {
            let left = purse.close();
            give_back(&mut self.events, id, before, left);
        }
        if !purse.put(now, &grant) {
            give_back(&mut self.events, id, grant.epoch, grant.amount);
        }
        self.tenants.note_deadline(slot);
    }

    /// Takes back what a tenant has left, which is neither spent nor reserved. The reserves of its rows in flight stay, for they were made
    /// in time.
    pub fn revoke_grant(&mut self, id: TenantId) {
        if let Some(slot) = self.tenants.slot(id) {
            self.close_grant(slot);
        }
    }

    /// A tenant's window is spent: no grant will come before `until`. New requests of it are refused till then, and those that are here end
    /// with [`End::Quota`] as soon as what is left is too little for them. A grant after all makes it void.
    pub fn window_spent(&mut self, now: Nanos, id: TenantId, until: Nanos) {
        if let Some(slot) = self.tenants.slot(id) {
            self.tenants.get_mut(slot).purse.set_spent(until);
            self.tenants.note_deadline(slot);
            self.tenants.note_broke(slot);
            self.end_broke(now);
        }
    }

    /// Something came back to a window that was spent: requests are accepted again, and grants asked for.
    pub fn window_reopened(&mut self, id: TenantId) {
        if let Some(slot) = self.tenants.slot(id) {
            self.tenants.get_mut(slot).purse.reopen();
        }
    }

    /// Lets time pass: grants expire, waits for a grant end. [`Scheduler::next_step`] does so, too.
    pub fn tick(&mut self, now: Nanos) {
        if self.tenants.deadline.is_none_or(|at| now < at) {
            return;
        }
        self.tenants.deadline = None;
        for slot in 0..self.tenants.len() as u32 {
            let account = self.tenants.get_mut(slot);
            let works = account.is_metered() && account.waiting + account.running > 0;
            let renewed = account.purse.forget_spent(now);
            let expired = account.purse.has_expired(now);
            if expired {
                self.close_grant(slot);
            }
            if works && (expired || renewed) {
                self.tenants.ask(slot, Nanos::ZERO, &mut self.events);
            }
            let account = self.tenants.get_mut(slot);
            if let Some(since) = account.purse.overdue(now).filter(|_| account.is_metered()) {
                self.end_waits(now, slot, since);
            }
            self.tenants.note_deadline(slot);
        }
    }

    /// When time alone will next change something: a grant expires, a wait for one ends, or a device's next step is due to be planned. Then
    /// [`Scheduler::next_step`] should be called for every device.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let up = || self.devices.iter().filter(|device| device.up);
        // Who waits for a device that is late may start elsewhere.
        let waits = up().filter(|device| device.waiting > 0 && self.devices.len() > 1);
        let late = waits.filter_map(Device::late_at).filter(|at| *at > self.requests.now);
        up().filter_map(|device| device.put_off).chain(late).chain(self.tenants.deadline).min()
    }

    /// What became of a tenant's grants. All zero for one that never had any.
    pub fn grant_books(&self, id: TenantId) -> GrantBooks {
        self.tenants.slot(id).map_or(GrantBooks::default(), |slot| self.tenants.get(slot).purse.books())
    }

    fn close_grant(&mut self, slot: u32) {
        let account = self.tenants.get_mut(slot);
        let (id, epoch, left) = (account.id, account.purse.epoch(), account.purse.close());
        give_back(&mut self.events, id, epoch, left);
    }

    /// Ends the requests of a dry tenant that have waited for a grant for long enough.
    fn end_waits(&mut self, now: Nanos, tenant: u32, dry_since: Nanos) {
        let mut next = None;
        for slot in self.live_of(tenant) {
            let since = self.requests.get(slot).admitted_at.max(dry_since);
            let due = since.saturating_add(self.config.quota_wait_max);
            if due <= now {
                self.end_early(now, slot, End::Quota);
            } else {
                next = Some(next.map_or(due, |next: Nanos| next.min(due)));
            }
        }
        // With nobody left, the next request begins a wait of its own.
        let purse = &mut self.tenants.get_mut(tenant).purse;
        match next {
            Some(at) => purse.set_wait_end(at),
            None => purse.end_wait(),
        }
    }

    /// Ends the requests of tenants that turned out to have nothing more to spend.
    pub(crate) fn end_broke(&mut self, now: Nanos) {
        while let Some(tenant) = self.tenants.broke.pop() {
            let account = self.tenants.get(tenant);
            if !account.is_metered() || !account.purse.is_broke() {
                continue;
            }
            for slot in self.live_of(tenant) {
                self.end_early(now, slot, End::Quota);
            }
            self.tenants.get_mut(tenant).purse.end_wait();
            self.close_grant(tenant);
        }
    }

    fn live_of(&self, tenant: u32) -> Vec<u32> {
        let live = |state| !matches!(state, State::Free | State::Ghost | State::Ending);
        let of = |(slot, request): (u32, &crate::request::Request)| {
            (request.tenant == tenant && live(request.state)).then_some(slot)
        };
        self.requests.iter().filter_map(of).collect()
    }

    /// Gives the reserves of a lost device's rows back.
    pub(crate) fn unreserve(&mut self, d: usize) {
        for s in 0..self.devices[d].in_flight.len() {
            for r in 0..self.devices[d].in_flight[s].rows.len() {
                let row = self.devices[d].in_flight[s].rows[r];
                self.tenants.pay(&row, self.requests.get(row.slot).tenant, Nanos::ZERO, &mut self.events);
            }
        }
    }

    /// Whether all that a request waits for is a grant: its tenant has too little left for a row of any of its requests.
    pub fn is_dry(&self, id: RequestId) -> bool {
        self.requests.find(id).is_some_and(|slot| self.tenants.get(self.requests.get(slot).tenant).is_dry())
    }

    /// Whether the device's lone request waits for a grant, and others may run meanwhile.
    pub(crate) fn lone_is_dry(&self, d: usize) -> bool {
        self.devices[d].alone.is_some_and(|id| self.is_dry(id))
    }

    /// Recounts what is reserved.
    pub(crate) fn check_grants(&self) {
        let mut deadline: Option<Nanos> = None;
        for (slot, account) in self.tenants.iter().enumerate() {
            let books = account.purse.books();
            let sum = books.returned + books.spent + books.reserved + books.left;
            assert_eq!(books.granted, sum, "grants of {:?}", account.id);
            if self.devices.iter().all(|device| device.rate.is_at_most_one()) {
                assert!(books.spent <= account.charge, "{:?} spent what it was not billed", account.id);
            }
            let steps = self.devices.iter().filter(|device| !device.gone).flat_map(|device| &device.in_flight);
            let rows = steps.flat_map(|step| &step.rows);
            let own = rows.filter(|row| self.requests.get(row.slot).tenant as usize == slot);
            let reserved: Nanos = own.filter_map(|row| row.reserve).map(|reserve| reserve.amount).sum();
            assert_eq!(books.reserved, reserved, "reserved by {:?}", account.id);
            let own = account.purse.deadline();
            deadline = deadline.into_iter().chain(own).min();
        }
        let noted = self.tenants.deadline;
        assert!(deadline.is_none_or(|at| noted.is_some_and(|noted| noted <= at)), "deadlines are not missed");
        assert!(self.tenants.broke.is_empty());
    }
}

fn give_back(events: &mut Vec<Event>, tenant: TenantId, epoch: u64, amount: Nanos) {
    if amount > Nanos::ZERO {
        events.push(Event::GrantReturned { tenant, epoch, amount });
    }
}

impl Account {
    /// Whether all it waits for is a grant.
    #[inline]
    pub(crate) fn is_dry(&self) -> bool {
        self.is_metered() && self.purse.is_dry()
    }

    /// Until when new requests are refused because the window is spent.
    pub(crate) fn spent_until(&self, now: Nanos) -> Option<Nanos> {
        self.purse.spent_until().filter(|until| self.is_metered() && now < *until)
    }
}

impl Tenants {
    /// Pays a row's bill from its tenant's grant, and returns the part that it covers.
    #[inline]
    pub(crate) fn pay(&mut self, row: &Row, tenant: u32, bill: Nanos, events: &mut Vec<Event>) -> Nanos {
        match row.reserve {
            None => bill,
            Some(reserve) => self.pay_from(reserve, tenant, bill, events),
        }
    }

    fn pay_from(&mut self, reserve: Reserve, tenant: u32, bill: Nanos, events: &mut Vec<Event>) -> Nanos {
        let account = self.get_mut(tenant);
        let cost = reserve.rate.cost(bill);
        let (paid, back) = account.purse.pay(reserve, cost);
        give_back(events, account.id, reserve.epoch, back);
        self.note_broke(tenant);
        if paid == cost { bill } else { reserve.rate.time(paid).min(bill) }
    }

    /// Asks for the next grant, unless that was done or is of no use.
    fn ask(&mut self, slot: u32, wanted: Nanos, events: &mut Vec<Event>) {
        let account = self.get_mut(slot);
        if account.purse.asks() {
            events.push(Event::GrantLow { tenant: account.id, left: account.purse.left(), wanted });
        }
    }

    /// A request came that is expected to take so long.
    pub(crate) fn ask_at_door(&mut self, slot: u32, wanted: Nanos, events: &mut Vec<Event>) {
        let account = self.get(slot);
        if account.is_metered() && account.purse.is_low() {
            self.ask(slot, wanted, events);
        }
    }

    fn note_deadline(&mut self, slot: u32) {
        let own = self.get(slot).purse.deadline();
        self.deadline = self.deadline.into_iter().chain(own).min();
    }

    fn note_broke(&mut self, slot: u32) {
        if slot != OPERATOR_SLOT && self.get(slot).purse.is_broke() && !self.broke.contains(&slot) {
            self.broke.push(slot);
        }
    }
}

/// What a row reserves: its cost and a quarter, for estimates err; never nothing.
fn estimate(cost: &Cost, load: Load, constant: bool) -> Nanos {
    let constant = if constant { cost.step() } else { Nanos::ZERO };
    let time = cost.marginal(load).saturating_add(constant);
    Nanos(time.0.saturating_add(time.0 / 4).max(1))
}

impl Fill<'_> {
    /// How many of `len` tokens from position `from` the tenant's grant covers: all, or for a sequence's stretch at least a block's worth of
    /// them; nothing, if that is too much.
    #[inline(always)]
    pub(crate) fn afford(&mut self, slot: u32, from: u32, len: u32, is_item: bool) -> Option<u32> {
        let tenant = self.requests.get(slot).tenant;
        match self.tenants.get(tenant).is_metered() {
            false => Some(len),
            true => self.afford_from_grant(tenant, from, len, is_item),
        }
    }

    fn afford_from_grant(&mut self, tenant: u32, from: u32, len: u32, is_item: bool) -> Option<u32> {
        let account = self.tenants.get(tenant);
        let cost = &self.device.models[self.m].cost;
        let (left, constant) = (account.purse.left(), account.purse.reserves_constant(self.id));
        let rate = self.device.rate;
        let whole = rate.cost(estimate(cost, Load::new(from, len), constant));
        if whole <= left {
            return Some(len);
        }
        let least = if is_item { len } else { len.min(BLOCK_LEN) };
        let wanted = rate.cost(estimate(cost, Load::new(from, least), constant));
        if wanted <= left {
            // What is left, without the quarter and the constant; a sixteenth less, for the inverse is not exact.
            let spare =
                rate.time(Nanos(left.0 / 5 * 4)).saturating_sub(if constant { cost.step() } else { Nanos::ZERO });
            let some = cost.tokens_within(from, spare).min(u64::from(len)) as u32;
            let some = (some - some / 16).max(least);
            let fits = rate.cost(estimate(cost, Load::new(from, some), constant)) <= left;
            return Some(if fits { some } else { least });
        }
        self.held_back = true;
        // Its blocks are the first to be taken from now on.
        self.in_vain = None;
        self.tenants.get_mut(tenant).purse.refuse(self.now, self.id, wanted, self.quota_wait_max);
        self.tenants.ask(tenant, whole, self.events);
        self.tenants.note_deadline(tenant);
        self.tenants.note_broke(tenant);
        self.wait_for_grant(tenant);
        None
    }

    /// Nothing of a dry tenant is looked at until a grant comes: what it has in this lane waits for that.
    fn wait_for_grant(&mut self, tenant: u32) {
        let lane = &mut self.device.models[self.m].lanes[tenant as usize];
        for &slot in &lane.running {
            self.requests.wait(slot, Cause::Quota);
        }
        lane.tell_first(self.requests, Cause::Quota);
    }

    /// Reserves a row's estimate; that it can be afforded was found out before.
    #[inline(always)]
    pub(crate) fn reserve_for(&mut self, tenant: u32, load: Load) -> Option<Reserve> {
        self.tenants.get(tenant).is_metered().then(|| self.reserve_of_grant(tenant, load))
    }

    fn reserve_of_grant(&mut self, tenant: u32, load: Load) -> Reserve {
        let account = self.tenants.get_mut(tenant);
        let cost = &self.device.models[self.m].cost;
        let rate = self.device.rate;
        let amount = rate.cost(estimate(cost, load, account.purse.reserves_constant(self.id)));
        let reserve = account.purse.reserve(self.id, amount, rate);
        if account.purse.is_low() {
            self.tenants.ask(tenant, amount, self.events);
        }
        reserve
    }
}
