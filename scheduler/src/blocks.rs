//! A model's KV blocks on a device: who holds them, which can be shared, and which is given up first.
//!
//! A block is *free*; or *private* (held, not indexed); or *coming* (held and indexed, but not computed yet: a request that would
//! want it waits for it); or *ready* (computed and indexed). Only ready blocks outlive their last holder: they stay cached, on their
//! owner's LRU list, until somebody needs the room. A block belongs to the tenant that computed it and is never found for another.
//!
//! Room is found in this order: a tenant at its ceiling gives up its own oldest cached block; a free block; the oldest cached
//! block of whoever is furthest above its floor by weight, those that no waiting request begins with before others (see
//! [`crate::wanted`]). Blocks that a tenant holds up to its floor are not taken from it, nor are
//! cached ones up to the floor of its cache. A tenant whose cache is at its ceiling gives up its own oldest block for a newer one.

use alloc::vec::Vec;
use core::hint::black_box;

use crate::block::{Block, BlockState};
use crate::blocktime::{BlockTime, Meter};
use crate::ids::{BlockHash, BlockId, Nanos};
use crate::prefix::{Left, Prefix};
use crate::request::{NONE, Requests};
use crate::tenant::{Account, OPERATOR_SLOT};
use crate::tournament::Tournament;
use crate::wanted::Line;

/// What one tenant has in the pool.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Blocks with holders.
    pub(crate) used: u32,
    /// Ready blocks without.
    pub(crate) cached: u32,
    /// Those that nobody waits for, and those that somebody waits for.
    pub(crate) lines: [Line; 2],
    floor: u32,
    cache_floor: u32,
    /// Blocks that stay cached at most.
    cached_max: u32,
    weight: u32,
    /// It is in the list of those whose place among the fattest is out of date.
    stale: bool,
    /// How long they were there.
    meter: Meter,
}

impl Held {
    pub(crate) fn block_time(&self, now: Nanos) -> BlockTime {
        self.meter.read(now, self.used, self.cached)
    }

    /// Cached blocks that others may take.
    fn spare(&self) -> u32 {
        self.cached.saturating_sub(self.cache_floor).min(self.total().saturating_sub(self.floor))
    }

    /// How far it is above its floor by weight, if it has blocks that others may take; the less, the further.
    fn fatness(&self) -> Option<u64> {
        let above = u64::from(self.total().saturating_sub(self.floor));
        (self.spare() > 0).then(|| !((above << 32) / u64::from(self.weight)))
    }

    pub(crate) fn total(&self) -> u32 {
        self.used + self.cached
    }

    /// What its floors keep from others at most: blocks in use above the first can be taken, and are cached then.
    fn kept(&self) -> u32 {
        self.floor.max(self.cache_floor)
    }
}

/// Whether floors and ceilings bind. They give way only when a device would otherwise stand still with work waiting, which happens
/// when they were changed under running requests, or when floors promise more than there is: a request that could never start beside
/// the floors of others is refused, see [`Pool::reach`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limits {
    Bind,
    GiveWay,
}

#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) blocks: Vec<Block>,
    free: Vec<u32>,
    pub(crate) held: Vec<Held>,
    index: Prefix,
    /// Requests whose block was published or given up: they go back to their queues.
    pub(crate) woken: Vec<u32>,
    /// Blocks with a level that were indexed and are no more.
    pub(crate) gone: Vec<(u32, u8, BlockHash)>,
    pub(crate) evictions: u64,
    /// Cached blocks over all tenants, and those of them that lie above their owners' floors.
    cached: u32,
    spare: u32,
    /// What all floors keep from those who have none.
    floors: u64,
    /// Tenants with blocks above their floors, the fattest first; brought up to date when somebody asks.
    fattest: Tournament<u64>,
    stale: Vec<u32>,
    /// What the scheduler last told the time to be.
    now: Nanos,
    /// Some cache may be over its ceiling, which was lowered.
    overfull: bool,
}

impl Pool {
    pub(crate) fn new(len: u32, tenants: usize) -> Pool {
        let mut pool = Pool {
            blocks: alloc::vec![Block::vacant(); len as usize],
            free: (0..len).rev().collect(),
            held: Vec::new(),
            index: Prefix::new(len),
            woken: Vec::new(),
            gone: Vec::with_capacity(8),
            evictions: 0,
            cached: 0,
            spare: 0,
            floors: 0,
            fattest: Tournament::default(),
            stale: Vec::new(),
            now: Nanos::ZERO,
            overfull: false,
        };
        pool.grow(tenants);
        pool
    }

    /// Makes room in the tables for tenants added since.
    pub(crate) fn grow(&mut self, tenants: usize) {
        let none = Held {
            used: 0,
            cached: 0,
            lines: [Line::default(); 2],
            floor: 0,
            cache_floor: 0,
            cached_max: u32::MAX,
            weight: 1,
            stale: false,
            meter: Meter::default(),
        };
        self.held.resize(tenants, none);
        self.fattest.grow(tenants);
        // Each is in the list at most once, so that noting one never allocates.
        self.stale.reserve(tenants - self.stale.len());
    }

    /// Takes over what the tenant bought: floors only where the device serves it. Its cache shrinks at the next [`Pool::tell_time`].
    pub(crate) fn set_plan(&mut self, tenant: u32, account: &Account, serves: bool) {
        let plan = &account.plan;
        let cached_max = plan.cache_blocks_ceiling.unwrap_or(u32::MAX);
        let before = u64::from(self.held(tenant).kept());
        self.change(tenant, |held| {
            (held.floor, held.cache_floor) =
                if serves { (plan.kv_blocks_floor, plan.cache_blocks_floor) } else { (0, 0) };
            (held.weight, held.cached_max) = (account.weight(), cached_max);
        });
        self.overfull |= self.held(tenant).cached > cached_max;
        self.floors = self.floors - before + u64::from(self.held(tenant).kept());
    }

    /// The most blocks that the tenant can come to have at once, whatever the others do: all but what their floors keep, or what its own
    /// floor keeps for it.
    pub(crate) fn reach(&self, tenant: u32) -> u32 {
        // The operator's own are small, and must not fail because floors promise more than there is.
        if tenant == OPERATOR_SLOT {
            return self.len();
        }
        let own = self.held(tenant).kept();
        let others = self.floors - u64::from(own);
        let rest = u64::from(self.len()).saturating_sub(others) as u32;
        rest.max(own.min(self.len()))
    }

    /// What happens next, happens now. Caches whose ceiling was lowered shrink.
    pub(crate) fn tell_time(&mut self, now: Nanos) {
        self.now = self.now.max(now);
        if core::mem::take(&mut self.overfull) {
            for tenant in 0..self.held.len() as u32 {
                self.trim(tenant);
            }
        }
    }

    fn trim(&mut self, tenant: u32) {
        if self.held(tenant).cached <= self.held(tenant).cached_max {
            return;
        }
        let mut left = Left::none();
        while self.held(tenant).cached > self.held(tenant).cached_max {
            self.evict(tenant, &mut left);
        }
        self.index.remove_left(&mut left);
    }

    /// Changes what a tenant has, and the sums with it.
    #[inline]
    fn change(&mut self, tenant: u32, change: impl FnOnce(&mut Held)) {
        let held = &mut self.held[tenant as usize];
        held.meter.run(self.now, held.used, held.cached);
        let (cached, spare) = (held.cached, held.spare());
        change(held);
        self.cached = self.cached - cached + held.cached;
        self.spare = self.spare - spare + held.spare();
        // Whoever had nothing to give and has nothing to give is in no order.
        if !held.stale && (held.cached > 0 || cached > 0) {
            held.stale = true;
            self.stale.push(tenant);
        }
    }

    pub(crate) fn played(&self) -> u64 {
        self.fattest.played
    }

    pub(crate) fn len(&self) -> u32 {
        self.blocks.len() as u32
    }

    pub(crate) fn free_len(&self) -> u32 {
        self.free.len() as u32
    }

    /// Blocks in use, and blocks only cached.
    pub(crate) fn counts(&self) -> (u32, u32) {
        self.held.iter().fold((0, 0), |(used, cached), held| (used + held.used, cached + held.cached))
    }

    pub(crate) fn held(&self, tenant: u32) -> &Held {
        &self.held[tenant as usize]
    }

    pub(crate) fn find(&self, tenant: u32, hash: &BlockHash) -> Option<u32> {
        self.index.find(&self.blocks, tenant, hash)
    }

    /// See [`Prefix::fetch`].
    pub(crate) fn fetch(&self, tenant: u32, hashes: &[BlockHash]) {
        self.index.fetch(tenant, hashes);
    }

    /// The same for blocks that will be released.
    pub(crate) fn fetch_blocks(&self, blocks: &[BlockId]) {
        black_box(blocks.iter().fold(0, |sum, block| sum ^ self.blocks[block.0 as usize].refs));
    }

    /// How many blocks could be given to the tenant now, if it may use so many.
    pub(crate) fn room(&self, tenant: u32, ceiling: u32, limits: Limits) -> u32 {
        let own = self.held(tenant);
        let others = match limits {
            Limits::Bind => self.spare - own.spare(),
            Limits::GiveWay => self.cached - own.cached,
        };
        let room = self.free_len() + own.cached + others;
        room.min(ceiling.saturating_sub(own.used))
    }

    /// A private block for the tenant, with one reference.
    pub(crate) fn take(&mut self, tenant: u32, ceiling: u32, limits: Limits) -> Option<BlockId> {
        let mut left = Left::none();
        let block = self.take_one(tenant, ceiling, limits, &mut left);
        self.index.remove_left(&mut left);
        block
    }

    /// As many of them as `blocks` has room for up to `len`. False if there are not enough.
    pub(crate) fn take_all(
        &mut self,
        tenant: u32,
        ceiling: u32,
        limits: Limits,
        blocks: &mut Vec<BlockId>,
        len: usize,
    ) -> bool {
        let mut left = Left::none();
        while blocks.len() < len {
            let Some(block) = self.take_one(tenant, ceiling, limits, &mut left) else { break };
            blocks.push(block);
        }
        self.index.remove_left(&mut left);
        blocks.len() >= len
    }

    fn take_one(&mut self, tenant: u32, ceiling: u32, limits: Limits, left: &mut Left) -> Option<BlockId> {
        let own = self.held(tenant);
        if own.used >= ceiling {
            return None;
        }
        if own.total() >= ceiling {
            self.evict(tenant, left);
        } else if self.free.is_empty() {
            let victim = self.fattest(tenant, limits)?;
            self.evict(victim, left);
        }
        let at = self.free.pop()?;
        let block = &mut self.blocks[at as usize];
        debug_assert_eq!((block.state, block.refs, block.parked), (BlockState::Free, 0, NONE));
        block.state = BlockState::Private;
        block.refs = 1;
        block.owner = tenant;
        self.change(tenant, |held| held.used += 1);
        Some(BlockId(at))
    }

    /// The tenant with cached blocks that is furthest above its floor by weight; the asking tenant's own may always go.
    fn fattest(&mut self, tenant: u32, limits: Limits) -> Option<u32> {
        // The asking tenant's place changes with every block that it gets: while it takes many, it is kept out of the tree.
        let mut own = None;
        while let Some(stale) = self.stale.pop() {
            if stale == tenant {
                own = Some(self.held(tenant).fatness().unwrap_or(u64::MAX));
                continue;
            }
            let held = &mut self.held[stale as usize];
            held.stale = false;
            self.fattest.set(stale, held.fatness().unwrap_or(u64::MAX));
        }
        if own.is_some() {
            self.stale.push(tenant);
            self.fattest.remove(tenant);
        }
        let own = own.filter(|fatness| *fatness != u64::MAX).map(|fatness| (fatness, tenant));
        if let Some((_, fattest)) = self.fattest.least().into_iter().chain(own).min() {
            return Some(fattest);
        }
        let any = || (0u32..).zip(&self.held).find(|(_, held)| held.cached > 0).map(|(slot, _)| slot);
        match limits {
            _ if self.held(tenant).cached > 0 => Some(tenant),
            Limits::Bind => None,
            // Seldom, and with nothing in flight: a walk through all tenants will do.
            Limits::GiveWay => any(),
        }
    }

    /// One more holder for a ready block.
    pub(crate) fn share(&mut self, at: u32) {
        debug_assert_eq!(self.blocks[at as usize].state, BlockState::Ready);
        if self.blocks[at as usize].refs == 0 {
            self.unlink(at);
            let owner = self.blocks[at as usize].owner;
            self.change(owner, |held| (held.cached, held.used) = (held.cached - 1, held.used + 1));
        }
        self.blocks[at as usize].refs += 1;
    }

    /// One holder less. The last one leaves a ready block cached and any other free.
    pub(crate) fn release(&mut self, at: BlockId) {
        let at = at.0;
        self.blocks[at as usize].refs -= 1;
        let Block { refs, state, owner, .. } = self.blocks[at as usize];
        if refs > 0 {
            return;
        }
        let cached = u32::from(state == BlockState::Ready);
        self.change(owner, |held| (held.cached, held.used) = (held.cached + cached, held.used - 1));
        match state {
            BlockState::Ready => {
                self.link_newest(at);
                self.trim(owner);
            }
            BlockState::Coming => {
                self.index.remove(&self.blocks, at);
                self.liberate(at);
            }
            BlockState::Private => self.liberate(at),
            BlockState::Free => unreachable!("a held block is not free"),
        }
    }

    /// Announces under its hash a private block that is about to be computed, unless the hash is known already.
    pub(crate) fn announce(&mut self, at: BlockId, hash: BlockHash) {
        self.enter(at, hash, BlockState::Coming);
    }

    /// Whether the tenant's later requests would find the block.
    pub(crate) fn is_ready(&self, tenant: u32, hash: &BlockHash) -> bool {
        self.find(tenant, hash).is_some_and(|at| self.blocks[at as usize].state == BlockState::Ready)
    }

    /// Makes a computed block available to the tenant's later requests, unless the hash is known already.
    pub(crate) fn publish(&mut self, at: BlockId, hash: BlockHash, level: Option<u8>) {
        self.blocks[at.0 as usize].level = level;
        match self.blocks[at.0 as usize].state {
            BlockState::Private => self.enter(at, hash, BlockState::Ready),
            BlockState::Coming => {
                self.blocks[at.0 as usize].state = BlockState::Ready;
                self.wake(at.0);
            }
            BlockState::Ready | BlockState::Free => {}
        }
    }

    fn enter(&mut self, at: BlockId, hash: BlockHash, state: BlockState) {
        let owner = self.blocks[at.0 as usize].owner;
        if self.find(owner, &hash).is_some() {
            return;
        }
        let block = &mut self.blocks[at.0 as usize];
        debug_assert_eq!(block.state, BlockState::Private);
        block.hash = hash;
        block.state = state;
        self.index.insert(&self.blocks, at.0);
    }

    /// Takes a held block out of the index for good: what it holds is not to be trusted.
    pub(crate) fn withdraw(&mut self, at: BlockId) {
        let state = self.blocks[at.0 as usize].state;
        if matches!(state, BlockState::Coming | BlockState::Ready) {
            self.note_gone(at.0);
            self.index.remove(&self.blocks, at.0);
            self.blocks[at.0 as usize].state = BlockState::Private;
            self.wake(at.0);
        }
    }

    /// Frees the tenant's cached block that goes first. Its entry is left in the index.
    fn evict(&mut self, tenant: u32, left: &mut Left) {
        let at = self.oldest(tenant);
        self.unlink(at);
        self.change(tenant, |held| held.cached -= 1);
        self.note_gone(at);
        self.index.leave(left, &self.blocks, at);
        self.evictions += 1;
        self.liberate(at);
    }

    fn note_gone(&mut self, at: u32) {
        let Block { state, owner, hash, level, .. } = self.blocks[at as usize];
        if let (BlockState::Ready, Some(level)) = (state, level) {
            self.gone.push((owner, level, hash));
        }
    }

    fn liberate(&mut self, at: u32) {
        self.wake(at);
        (self.blocks[at as usize].state, self.blocks[at as usize].wanted) = (BlockState::Free, 0);
        self.free.push(at);
    }

    fn wake(&mut self, at: u32) {
        let parked = core::mem::replace(&mut self.blocks[at as usize].parked, NONE);
        if parked != NONE {
            self.woken.push(parked);
        }
    }

    /// Parks a request until the coming block is ready or given up.
    pub(crate) fn park(&mut self, requests: &mut Requests, slot: u32, at: u32) {
        let block = &mut self.blocks[at as usize];
        debug_assert_eq!(block.state, BlockState::Coming);
        let request = requests.get_mut(slot);
        request.parked_on = at;
        request.parked_next = core::mem::replace(&mut block.parked, slot);
    }

    /// Takes a request off the list it is parked on.
    pub(crate) fn unpark(&mut self, requests: &mut Requests, slot: u32) {
        let request = requests.get_mut(slot);
        let at = core::mem::replace(&mut request.parked_on, NONE) as usize;
        let after = core::mem::replace(&mut request.parked_next, NONE);
        if self.blocks[at].parked == slot {
            self.blocks[at].parked = after;
            return;
        }
        let mut before = self.blocks[at].parked;
        while requests.get(before).parked_next != slot {
            before = requests.get(before).parked_next;
        }
        requests.get_mut(before).parked_next = after;
    }

    /// Recounts everything; panics where the books do not agree. `refs[b]` is the number of tables that name block `b`.
    pub(crate) fn check(&self, refs: &[u32]) {
        let mut held = alloc::vec![(0u32, 0u32); self.held.len()];
        let (mut free, mut indexed) = (0, 0);
        for (at, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.refs, refs[at], "references of block {at}");
            match block.state {
                BlockState::Free => free += 1,
                _ if block.refs > 0 => held[block.owner as usize].0 += 1,
                BlockState::Ready => held[block.owner as usize].1 += 1,
                _ => panic!("block {at} is lost"),
            }
            if matches!(block.state, BlockState::Coming | BlockState::Ready) {
                indexed += 1;
                assert_eq!(self.find(block.owner, &block.hash), Some(at as u32));
            }
            assert!(block.parked == NONE || block.state == BlockState::Coming);
        }
        assert_eq!(free, self.free.len(), "free blocks");
        assert_eq!(indexed, self.index.entries(), "indexed blocks");
        assert!(self.woken.is_empty(), "woken requests were put back");
        assert_eq!(self.cached, self.held.iter().map(|held| held.cached).sum::<u32>(), "cached blocks");
        assert_eq!(self.spare, self.held.iter().map(Held::spare).sum::<u32>(), "blocks above their floors");
        assert_eq!(self.floors, self.held.iter().map(|held| u64::from(held.kept())).sum::<u64>(), "what floors keep");
        for (slot, held_now) in self.held.iter().enumerate() {
            let placed = self.fattest.key(slot as u32);
            assert!(held_now.stale || placed == held_now.fatness(), "place of slot {slot} among the fattest");
            assert_eq!(held_now.stale, self.stale.contains(&(slot as u32)));
            assert_eq!((held_now.used, held_now.cached), held[slot], "blocks of tenant slot {slot}");
            let cached = self.check_lines(slot as u32);
            assert_eq!(cached, held_now.cached, "LRU lists of tenant slot {slot}");
            assert!(self.overfull || cached <= held_now.cached_max, "cache of tenant slot {slot}");
        }
    }
}

/// The most blocks that the tenant may use.
pub(crate) fn ceiling(account: &Account, limits: Limits) -> u32 {
    match limits {
        Limits::Bind => account.plan.kv_blocks_ceiling.unwrap_or(u32::MAX),
        Limits::GiveWay => u32::MAX,
    }
}
