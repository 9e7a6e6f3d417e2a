//! Tenants: what each bought, and what it has at work.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::mem::offset_of;

use crate::blocktime::BlockTime;
use crate::ids::{ModelId, Nanos, PoolId, RequestId, TenantId};
use crate::purse::Purse;
use crate::share::{Service, Virtual, virtual_time};

/// What a tenant bought, as far as the scheduler acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Share of each device relative to the other tenants with work there; 0 counts as 1.
    pub weight: u32,
    /// Requests that may wait at once. Beyond it, [`crate::RejectReason::TenantQueueFull`].
    pub queue_len_max: u32,
    /// Requests that may run at once, over all devices; 0 counts as 1.
    pub running_max: u32,
    /// KV blocks in each pool that no other tenant can take away, be they cached or in use.
    pub kv_blocks_floor: u32,
    /// KV blocks in each pool that it can hold at most, cached and in use together.
    pub kv_blocks_ceiling: Option<u32>,
    /// Its rows run only against device time granted with [`crate::Scheduler::grant`].
    pub metered: bool,
    /// Cached KV blocks in each pool that no other tenant can take away.
    pub cache_blocks_floor: u32,
    /// KV blocks in each pool that stay cached at most when nobody holds them; the oldest go first.
    pub cache_blocks_ceiling: Option<u32>,
    /// From arrival to the first token. A request that is not expected to have it by then is refused, with
    /// [`crate::RejectReason::TargetUnmet`].
    pub ttft_target: Option<Nanos>,
    /// From a sequence's token to its next. Steps beside its sequences are cut to it; see [`crate::Scheduler::target_problems`].
    pub itl_target: Option<Nanos>,
    /// The most urgent class its requests can have: a smaller [`crate::Admission::priority`] counts as this one.
    pub priority_ceiling: u8,
    /// The reserved devices it may use beside the common ones.
    pub pool: Option<PoolId>,
    /// It uses the devices of its pool and no others.
    pub pool_only: bool,
}

impl Default for Tenant {
    fn default() -> Tenant {
        Tenant {
            weight: 1,
            queue_len_max: 1024,
            running_max: u32::MAX,
            kv_blocks_floor: 0,
            kv_blocks_ceiling: None,
            metered: false,
            cache_blocks_floor: 0,
            cache_blocks_ceiling: None,
            ttft_target: None,
            itl_target: None,
            priority_ceiling: 0,
            pool: None,
            pool_only: false,
        }
    }
}

/// A tenant with its counters.
///
/// The first cache line is all that planning looks at: what rows ask of the plan, and what the tenant has had of all devices, which
/// begins with what order compares. The second is written when a step is charged.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Account {
    weight: u32,
    running_max: u32,
    pub(crate) running: u32,
    metered: bool,
    pub(crate) service: Service,
    /// The bill so far.
    pub(crate) charge: Nanos,
    pub(crate) waiting: u32,
    pub(crate) plan: Tenant,
    pub(crate) id: TenantId,
    /// What it may spend, if it is metered.
    pub(crate) purse: Purse,
    /// How long its blocks were there, in pools that are gone.
    pub(crate) block_times: Vec<(ModelId, BlockTime)>,
}

const _: () = assert!(offset_of!(Account, service) + Service::COMPARED == 64);
const _: () = assert!(offset_of!(Account, waiting) < 128);

impl Account {
    pub(crate) fn weight(&self) -> u32 {
        self.weight
    }

    #[inline]
    pub(crate) fn may_start(&self) -> bool {
        self.running < self.running_max
    }

    /// Whether its rows run only against grants.
    pub(crate) fn is_metered(&self) -> bool {
        self.metered
    }

    fn set_plan(&mut self, plan: Tenant) {
        self.plan = plan;
        (self.weight, self.running_max) = (plan.weight.max(1), plan.running_max.max(1));
        self.metered = plan.metered && self.id != TenantId::OPERATOR;
    }
}

/// All tenants, in dense slots: the step path indexes, only admission searches. Tenants are never removed.
#[derive(Clone, Debug)]
pub(crate) struct Tenants {
    slots: BTreeMap<TenantId, u32>,
    accounts: Vec<Account>,
    /// Waiting requests over all tenants and devices, parked ones included.
    pub(crate) waiting: u32,
    /// Those whose virtual time has fallen below what they are filed under.
    lowered: Vec<u32>,
    /// When a grant expires or a wait for one ends, at the earliest.
    pub(crate) deadline: Option<Nanos>,
    /// Tenants whose requests end because nothing more can be spent; see [`crate::grant`].
    pub(crate) broke: Vec<u32>,
    /// Requests that wait and can never start; see `room`.
    pub(crate) outgrown: Vec<RequestId>,
}

/// The operator's slot.
pub(crate) const OPERATOR_SLOT: u32 = 0;

impl Tenants {
    pub(crate) fn new(hold_max: Nanos) -> Tenants {
        let mut tenants = Tenants {
            slots: BTreeMap::new(),
            accounts: Vec::new(),
            waiting: 0,
            lowered: Vec::new(),
            deadline: None,
            broke: Vec::new(),
            outgrown: Vec::new(),
        };
        tenants.set(TenantId::OPERATOR, Tenant::default(), hold_max);
        tenants
    }

    /// Adds a tenant or changes what it bought; returns its slot.
    pub(crate) fn set(&mut self, id: TenantId, plan: Tenant, hold_max: Nanos) -> u32 {
        let held_max = virtual_time(hold_max, plan.weight);
        if let Some(&slot) = self.slots.get(&id) {
            let account = &mut self.accounts[slot as usize];
            account.set_plan(plan);
            account.service.set_held_max(held_max);
            if !account.is_metered() {
                // Nothing waits for a grant any more, and no window is spent for it.
                account.purse.end_wait();
                account.purse.reopen();
            }
            self.note_lowered(slot);
            return slot;
        }
        let slot = self.accounts.len() as u32;
        self.slots.insert(id, slot);
        let mut service = Service::default();
        service.set_held_max(held_max);
        let purse = Purse::default();
        let mut account = Account {
            id,
            plan,
            charge: Nanos::ZERO,
            waiting: 0,
            running: 0,
            weight: 1,
            running_max: 1,
            metered: false,
            service,
            purse,
            block_times: Vec::new(),
        };
        account.set_plan(plan);
        self.accounts.push(account);
        // Each is in the list at most once, so that noting one never allocates.
        self.lowered.reserve(self.accounts.len() - self.lowered.len());
        slot
    }

    /// Files a tenant under its present virtual time, which is returned.
    pub(crate) fn file(&mut self, slot: u32) -> Virtual {
        self.accounts[slot as usize].service.file()
    }

    /// What is held for one of the tenant's requests changes to this time, whose virtual time is returned.
    #[inline]
    pub(crate) fn change_held(&mut self, slot: u32, before: Virtual, time: Nanos) -> Virtual {
        let account = &mut self.accounts[slot as usize];
        let held = virtual_time(time, account.weight);
        account.service.change_held(before, held);
        if account.service.is_filed_above() {
            self.note_lowered(slot);
        }
        held
    }

    /// A tenant that lies below where it is filed is filed anew before anybody is chosen.
    fn note_lowered(&mut self, slot: u32) {
        let service = &mut self.accounts[slot as usize].service;
        if service.is_filed_above() && !service.lowered {
            service.lowered = true;
            self.lowered.push(slot);
        }
    }

    /// The next tenant that is to be filed anew everywhere.
    pub(crate) fn next_lowered(&mut self) -> Option<u32> {
        let slot = self.lowered.pop()?;
        self.accounts[slot as usize].service.file_anew();
        Some(slot)
    }

    pub(crate) fn slot(&self, id: TenantId) -> Option<u32> {
        self.slots.get(&id).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.accounts.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Account> {
        self.accounts.iter()
    }

    #[inline]
    pub(crate) fn get(&self, slot: u32) -> &Account {
        &self.accounts[slot as usize]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> &mut Account {
        &mut self.accounts[slot as usize]
    }
}
