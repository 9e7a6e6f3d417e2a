//! Kin: requests of a tenant that begin alike, so that those that wait can go one after the other while their beginning is in the cache.
//!
//! By rank alone, requests with many different beginnings push each other's blocks out of a small cache. DLPM (arXiv 2501.14312) lets
//! locality choose inside a fair order, for a quantum at a time; here as follows.
//!
//! *Inside a tenant.* When a request starts by rank, those whose beginning is in the cache may go before older ones that are cold, the
//! longest beginnings first, then those used last, until [`QUANTA`] times [`crate::Config::locality_quantum`] of device time, as it was
//! estimated, has gone to them; then the oldest starts by rank. So an old request with a cold prompt is overtaken for at
//! most that for itself and each request that is older than it, however many come for the beginnings that are cached. More than one
//! quantum, since it is no other tenant's time, and each cold start pushes out what warm ones wait for, until these
//! are cold when their turn comes, and all wait longer for it.
//!
//! *Between tenants.* Requests that hit the cache go before all others, those of the tenant that started one last first, then by virtual
//! time, if their tenant is less than a quantum ahead of the least among the tenants that are short. Otherwise another's cold prompt
//! would take the room of what is cached for a request that waits already. What a tenant starts is held against it at
//! once, as far as [`crate::Config::hold_max`] lets it count: its lead grows by at most the quantum and one request until then, and beyond that by what
//! is measured of steps in flight before the next start is weighed. See [`crate::fill`].
//!
//! *How.* Live requests of a lane are in one group for each of the depths in [`DEPTHS`] that their prompt has: the hash of a block stands for
//! everything before it, so one hash is the key of all. A group keeps those of its members that wait in a heap by rank, from
//! its second member on; most prompts are the only ones of their kind, and cost a look in a table. A group is *warm* while the
//! pool has its block ready; the pool tells when such a block comes and goes. Warm groups in which somebody waits are in a list per
//! tenant and depth, and tenants that have any are filed by virtual time, as in [`crate::standing`]. Cost: O(log waiting) for each depth when a request is queued and when it starts, a look otherwise.
//! Groups grow when requests are admitted, and not while a step is planned.

use alloc::vec::Vec;

use crate::blocks::Pool;
use crate::ids::{BlockHash, Nanos};
use crate::request::{NONE, Rank, Requests};
use crate::share::Virtual;
use crate::tournament::Tournament;

/// Blocks from the beginning that are alike in a group.
pub(crate) const DEPTHS: [usize; 4] = [1, 4, 16, 64];

/// Quanta for which those that hit the cache may go before their own tenant's oldest.
const QUANTA: u64 = 4;

/// A request's place among its kin, by depth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ties {
    groups: [u32; DEPTHS.len()],
    places: [u32; DEPTHS.len()],
}

impl Default for Ties {
    fn default() -> Ties {
        Ties { groups: [NONE; DEPTHS.len()], places: [NONE; DEPTHS.len()] }
    }
}

#[derive(Clone, Debug)]
struct Group {
    tenant: u32,
    level: u8,
    key: BlockHash,
    /// Next in its bucket.
    next: u32,
    /// Live requests in it.
    members: u32,
    /// The member, while there is one.
    only: u32,
    /// Members that wait.
    waiting: u32,
    /// The pool has its block.
    warm: bool,
    /// Neighbours in the list of its tenant's warm groups in which somebody waits: `before` was used later.
    before: u32,
    after: u32,
    /// It had a second member: those that wait are in the heap.
    open: bool,
    heap: Vec<(Rank, u32)>,
}

/// A tenant's warm groups in which somebody waits.
#[derive(Clone, Copy, Debug)]
struct Warmth {
    /// By depth, the one used last.
    firsts: [u32; DEPTHS.len()],
    /// Device time for which those in them may go before older requests yet.
    left: Nanos,
}

/// The kin of a model's requests on a device.
#[derive(Clone, Debug)]
pub(crate) struct Kin {
    /// Device time for which a tenant's requests may go before its oldest.
    quantum: Nanos,
    groups: Vec<Group>,
    free: Vec<u32>,
    buckets: Vec<u32>,
    /// By tenant.
    warmths: Vec<Warmth>,
    /// The tenant that started a request last.
    pub(crate) last: Option<u32>,
    /// Tenants with a request that may go before older ones, by a virtual time that is not above theirs.
    pub(crate) ahead: Tournament<Virtual>,
}

impl Kin {
    pub(crate) fn new(quantum: Nanos) -> Kin {
        let buckets = alloc::vec![NONE; 64];
        Kin {
            quantum: Nanos(quantum.0.saturating_mul(QUANTA)),
            groups: Vec::new(),
            free: Vec::new(),
            buckets,
            warmths: Vec::new(),
            last: None,
            ahead: Tournament::default(),
        }
    }

    pub(crate) fn grow(&mut self, tenants: usize) {
        self.warmths.resize(tenants, Warmth { firsts: [NONE; DEPTHS.len()], left: Nanos::ZERO });
        self.ahead.grow(tenants);
    }

    /// Files the tenant if a request of its may go before older ones. Its time is brought up to date when somebody asks.
    pub(crate) fn file(&mut self, tenant: u32) {
        match (self.next(tenant).is_some(), self.ahead.has(tenant)) {
            (true, false) => self.ahead.set(tenant, 0),
            (false, true) => self.ahead.remove(tenant),
            _ => {}
        }
    }

    /// A request was bound to the model. It does not wait yet.
    pub(crate) fn join(&mut self, requests: &mut Requests, pool: &Pool, slot: u32) {
        let (tenant, mut ties) = (requests.get(slot).tenant, Ties::default());
        for (level, depth) in DEPTHS.iter().enumerate() {
            let hashes = &requests.get(slot).hashes;
            let Some(key) = hashes.get(depth - 1).copied().filter(|_| self.quantum > Nanos::ZERO) else { break };
            let level_id = level as u8;
            let id = self
                .find(tenant, level_id, &key)
                .unwrap_or_else(|| self.add(tenant, level_id, key, pool.is_ready(tenant, &key)));
            ties.groups[level] = id;
            let group = &mut self.groups[id as usize];
            group.members += 1;
            if group.members == 1 {
                group.only = slot;
                continue;
            }
            let len = group.heap.len();
            group.heap.reserve((group.members as usize).saturating_sub(len));
            if !core::mem::replace(&mut group.open, true) {
                let first = group.only;
                if requests.get(first).queue_pos != NONE {
                    push(&mut group.heap, requests, first, level);
                }
            }
        }
        requests.get_mut(slot).ties = ties;
    }

    /// The request has ended, or goes to another device. It does not wait.
    pub(crate) fn leave(&mut self, requests: &mut Requests, slot: u32) {
        let ties = core::mem::take(&mut requests.get_mut(slot).ties);
        for id in ties.groups.into_iter().filter(|id| *id != NONE) {
            let group = &mut self.groups[id as usize];
            group.members -= 1;
            if group.members == 0 {
                self.drop_group(id);
            }
        }
    }

    /// The request waits from now on.
    pub(crate) fn wait(&mut self, requests: &mut Requests, slot: u32) {
        for level in 0..DEPTHS.len() {
            let id = requests.get(slot).ties.groups[level];
            if id == NONE {
                return;
            }
            let group = &mut self.groups[id as usize];
            group.waiting += 1;
            if group.open {
                push(&mut group.heap, requests, slot, level);
            }
            if group.waiting == 1 && group.warm {
                self.link(id);
            }
        }
    }

    /// The request waits no more.
    pub(crate) fn go(&mut self, requests: &mut Requests, slot: u32) {
        for level in 0..DEPTHS.len() {
            let Ties { groups, places } = requests.get(slot).ties;
            let id = groups[level];
            if id == NONE {
                return;
            }
            let group = &mut self.groups[id as usize];
            if places[level] != NONE {
                remove(&mut group.heap, requests, slot, level);
            }
            group.waiting -= 1;
            if group.waiting == 0 && group.warm {
                self.unlink(id);
            }
        }
    }

    /// The pool has got a block, or has it no more, that is as deep in its text as [`DEPTHS`] says at `level`.
    pub(crate) fn set_warm(&mut self, tenant: u32, level: u8, hash: &BlockHash, warm: bool) {
        let Some(id) = self.find(tenant, level, hash) else { return };
        let group = &mut self.groups[id as usize];
        let changed = core::mem::replace(&mut group.warm, warm) != warm;
        match changed && group.waiting > 0 {
            true if warm => self.link(id),
            true => self.unlink(id),
            false => {}
        }
    }

    /// The tenant's waiting request that goes before older ones, if any may: the oldest of the warm group used last, of the deepest.
    pub(crate) fn next(&self, tenant: u32) -> Option<u32> {
        let warmth = &self.warmths[tenant as usize];
        if warmth.left == Nanos::ZERO {
            return None;
        }
        let id = warmth.firsts.iter().rev().copied().find(|id| *id != NONE)?;
        let group = &self.groups[id as usize];
        Some(group.heap.first().map_or(group.only, |(_, slot)| *slot))
    }

    /// A request started, by its rank or before its rank.
    pub(crate) fn started(&mut self, requests: &Requests, slot: u32, by_rank: bool) {
        let request = requests.get(slot);
        self.last = Some(request.tenant);
        let left = &mut self.warmths[request.tenant as usize].left;
        *left = if by_rank { self.quantum } else { left.saturating_sub(request.estimate) };
        for id in request.ties.groups.into_iter().filter(|id| *id != NONE) {
            if self.groups[id as usize].warm && self.groups[id as usize].waiting > 0 {
                self.unlink(id);
                self.link(id);
            }
        }
        self.file(request.tenant);
    }

    /// Puts a group first in its tenant's list.
    fn link(&mut self, id: u32) {
        let Group { tenant, level, .. } = self.groups[id as usize];
        let first = &mut self.warmths[tenant as usize].firsts[level as usize];
        let after = core::mem::replace(first, id);
        (self.groups[id as usize].before, self.groups[id as usize].after) = (NONE, after);
        if after != NONE {
            self.groups[after as usize].before = id;
        }
        self.file(tenant);
    }

    fn unlink(&mut self, id: u32) {
        let Group { tenant, level, before, after, .. } = self.groups[id as usize];
        match before {
            NONE => self.warmths[tenant as usize].firsts[level as usize] = after,
            _ => self.groups[before as usize].after = after,
        }
        if after != NONE {
            self.groups[after as usize].before = before;
        }
        self.file(tenant);
    }

    fn drop_group(&mut self, id: u32) {
        let Group { tenant, key, next, .. } = self.groups[id as usize];
        let bucket = self.bucket(tenant, &key);
        let mut at = self.buckets[bucket];
        if at == id {
            self.buckets[bucket] = next;
        } else {
            while self.groups[at as usize].next != id {
                at = self.groups[at as usize].next;
            }
            self.groups[at as usize].next = next;
        }
        self.free.push(id);
    }

    fn bucket(&self, tenant: u32, key: &BlockHash) -> usize {
        let mut first = [0; 8];
        first.copy_from_slice(&key.0[..8]);
        let mixed = u64::from_le_bytes(first) ^ u64::from(tenant).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed as usize & (self.buckets.len() - 1)
    }

    fn find(&self, tenant: u32, level: u8, key: &BlockHash) -> Option<u32> {
        let mut at = self.buckets[self.bucket(tenant, key)];
        while at != NONE {
            let group = &self.groups[at as usize];
            if group.tenant == tenant && group.level == level && group.key == *key {
                return Some(at);
            }
            at = group.next;
        }
        None
    }

    fn add(&mut self, tenant: u32, level: u8, key: BlockHash, warm: bool) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.groups.push(Group {
                tenant,
                level,
                key,
                next: NONE,
                members: 0,
                only: NONE,
                waiting: 0,
                warm,
                before: NONE,
                after: NONE,
                open: false,
                heap: Vec::new(),
            });
            // Dropping a group allocates nothing.
            self.free.reserve(self.groups.len());
            self.groups.len() as u32 - 1
        });
        let group = &mut self.groups[id as usize];
        (group.tenant, group.level, group.key, group.warm, group.open) = (tenant, level, key, warm, false);
        if self.groups.len() > self.buckets.len() {
            self.rehash();
        }
        let bucket = self.bucket(tenant, &key);
        self.groups[id as usize].next = core::mem::replace(&mut self.buckets[bucket], id);
        id
    }

    /// Twice the buckets, with every group that is in use.
    fn rehash(&mut self) {
        let old = core::mem::take(&mut self.buckets);
        self.buckets = alloc::vec![NONE; 2 * old.len()];
        for mut at in old {
            while at != NONE {
                let Group { tenant, key, next, .. } = self.groups[at as usize];
                let bucket = self.bucket(tenant, &key);
                self.groups[at as usize].next = core::mem::replace(&mut self.buckets[bucket], at);
                at = next;
            }
        }
    }

    /// Recounts everything; `live` are the slots of the model's requests that are not settled.
    pub(crate) fn check(&self, requests: &Requests, pool: &Pool, live: &[u32]) {
        let mut members = alloc::vec![0u32; self.groups.len()];
        let mut waiting = alloc::vec![0u32; self.groups.len()];
        for &slot in live {
            let request = requests.get(slot);
            for (level, depth) in DEPTHS.iter().enumerate() {
                let (id, place) = (request.ties.groups[level], request.ties.places[level]);
                if id == NONE {
                    assert_eq!(place, NONE);
                    continue;
                }
                let group = &self.groups[id as usize];
                members[id as usize] += 1;
                waiting[id as usize] += u32::from(request.queue_pos != NONE);
                assert_eq!((group.tenant, Some(&group.key)), (request.tenant, request.hashes.get(depth - 1)));
                assert_eq!(self.find(group.tenant, level as u8, &group.key), Some(id), "one group for a beginning");
                assert!(group.open || group.only == slot, "{slot} is the only one");
                assert_eq!(place != NONE, group.open && request.queue_pos != NONE, "{slot} waits among its kin");
                assert!(place == NONE || group.heap[place as usize] == (request.rank, slot));
            }
        }
        let mut listed = alloc::vec![false; self.groups.len()];
        for (tenant, warmth) in self.warmths.iter().enumerate() {
            assert_eq!(self.ahead.has(tenant as u32), self.next(tenant as u32).is_some(), "{tenant} is filed");
            for (level, first) in warmth.firsts.iter().enumerate() {
                let (mut before, mut at) = (NONE, *first);
                while at != NONE {
                    let group = &self.groups[at as usize];
                    assert_eq!((group.tenant as usize, group.level as usize, group.before), (tenant, level, before));
                    listed[at as usize] = true;
                    (before, at) = (at, group.after);
                }
            }
        }
        for (id, group) in self.groups.iter().enumerate() {
            assert_eq!((group.members, group.members == 0), (members[id], self.free.contains(&(id as u32))), "{id}");
            if group.members == 0 {
                assert!(!listed[id]);
                continue;
            }
            assert_eq!(group.waiting, waiting[id], "waiting members of group {id}");
            assert_eq!(group.heap.len() as u32, if group.open { group.waiting } else { 0 });
            let untold = pool.gone.contains(&(group.tenant, group.level, group.key));
            assert!(untold || group.warm == pool.is_ready(group.tenant, &group.key), "group {id} is warm");
            assert_eq!(listed[id], group.warm && group.waiting > 0, "group {id} is listed");
            assert!(group.heap.iter().enumerate().all(|(at, entry)| at == 0 || group.heap[(at - 1) / 2] <= *entry));
        }
    }
}

/// The level of a text's `n`th block, if groups are formed there.
pub(crate) fn level_of(n: usize) -> Option<u8> {
    DEPTHS.iter().position(|depth| *depth == n + 1).map(|level| level as u8)
}

fn push(heap: &mut Vec<(Rank, u32)>, requests: &mut Requests, slot: u32, level: usize) {
    heap.push((requests.get(slot).rank, slot));
    let at = heap.len() - 1;
    rise(heap, requests, at, level);
}

fn remove(heap: &mut Vec<(Rank, u32)>, requests: &mut Requests, slot: u32, level: usize) {
    let place = core::mem::replace(&mut requests.get_mut(slot).ties.places[level], NONE) as usize;
    debug_assert_eq!(heap[place].1, slot);
    let last = heap.pop().expect("a waiting request is in the heap");
    if place == heap.len() {
        return;
    }
    heap[place] = last;
    let mut at = place;
    loop {
        let mut child = 2 * at + 1;
        if child >= heap.len() {
            break;
        }
        if child + 1 < heap.len() && heap[child + 1] < heap[child] {
            child += 1;
        }
        if last <= heap[child] {
            break;
        }
        let lesser = heap[child];
        set(heap, requests, at, lesser, level);
        at = child;
    }
    set(heap, requests, at, last, level);
    rise(heap, requests, at, level);
}

fn rise(heap: &mut [(Rank, u32)], requests: &mut Requests, mut at: usize, level: usize) {
    let entry = heap[at];
    while at > 0 && heap[(at - 1) / 2] > entry {
        let parent = heap[(at - 1) / 2];
        set(heap, requests, at, parent, level);
        at = (at - 1) / 2;
    }
    set(heap, requests, at, entry, level);
}

fn set(heap: &mut [(Rank, u32)], requests: &mut Requests, at: usize, entry: (Rank, u32), level: usize) {
    heap[at] = entry;
    requests.get_mut(entry.1).ties.places[level] = at as u32;
}
