//! What each request of a history saw: when it came, drew its first id, and ended. For reports; nothing is decided by it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::client::Client;
use super::world::World;
use crate::event::End;
use crate::ids::{Nanos, TenantId};
use crate::plan::StepPlan;

/// One request, or one choice of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub tenant: TenantId,
    /// Its place among the given requests; the choices of one share it. For drawn requests the order in which they came.
    pub number: usize,
    /// When it came.
    pub at: Nanos,
    /// When its first id was drawn.
    pub first: Option<Nanos>,
    /// When its last id was drawn.
    pub last: Option<Nanos>,
    /// When and how it ended; nothing if it was refused.
    pub end: Option<(Nanos, End)>,
    /// The bill.
    pub charge: Nanos,
    /// Prompt tokens of a text, and those of them found in the cache; none of a list.
    pub prompt_len: u32,
    /// See `prompt_len`.
    pub cached: u32,
    /// Ids drawn.
    pub drawn: u32,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceDiary {
    /// Steps that ended.
    pub steps: u64,
    /// Rows in them.
    pub rows: u64,
    /// New tokens in them.
    pub tokens: u64,
    /// Device time of them.
    pub busy: Nanos,
}

/// Everything that was noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diary {
    /// Requests in the order in which they came.
    pub entries: Vec<Entry>,
    /// Devices in the order of their ids.
    pub devices: Vec<DeviceDiary>,
    /// By tenant: gaps between two ids of a text.
    pub gaps: BTreeMap<TenantId, Gaps>,
}

/// Lengths of time, counted in buckets that are within 1/128 of each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    buckets: Vec<u64>,
    count: u64,
}

/// Bits of a length that a bucket keeps, after its highest.
const GAP_BITS: u32 = 7;

impl Gaps {
    fn bucket(nanos: u64) -> usize {
        let shift = nanos.max(1).ilog2().saturating_sub(GAP_BITS);
        ((shift as usize) << GAP_BITS) + (nanos >> shift) as usize
    }

    /// The longest length that falls into a bucket.
    fn longest(bucket: usize) -> u64 {
        let shift = (bucket >> GAP_BITS).saturating_sub(1) as u32;
        let kept = bucket as u64 - (u64::from(shift) << GAP_BITS);
        (((u128::from(kept) + 1) << shift) - 1) as u64
    }

    /// Counts a length.
    pub fn add(&mut self, gap: Nanos) {
        let bucket = Gaps::bucket(gap.0);
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What `per_mille` of them stay under; nothing if there was none.
    pub fn under(&self, per_mille: u64) -> Option<Nanos> {
        let mut left = (self.count * per_mille).div_ceil(1_000).max(1);
        for (bucket, count) in self.buckets.iter().enumerate() {
            if left <= *count {
                return Some(Nanos(Gaps::longest(bucket)));
            }
            left -= count;
        }
        None
    }
}

impl Diary {
    pub(super) fn new(devices: u16, tenants: Vec<TenantId>) -> Diary {
        Diary {
            entries: Vec::new(),
            devices: alloc::vec![DeviceDiary::default(); devices as usize],
            gaps: tenants.into_iter().map(|tenant| (tenant, Gaps::default())).collect(),
        }
    }

    /// A request comes. Clients are numbered from 1 in the order in which they come.
    pub(super) fn came(&mut self, now: Nanos, client: &Client, tenant: TenantId, number: usize) {
        self.entries.push(Entry {
            tenant,
            number,
            at: now,
            first: None,
            last: None,
            end: None,
            charge: Nanos::ZERO,
            prompt_len: if client.is_list() { 0 } else { client.prompt_len },
            cached: 0,
            drawn: 0,
        });
        debug_assert_eq!(self.entries.len() as u64, client.number);
    }

    fn entry(&mut self, client: u64) -> &mut Entry {
        &mut self.entries[client as usize - 1]
    }

    pub(super) fn drew(&mut self, now: Nanos, client: u64) {
        let entry = self.entry(client);
        entry.first.get_or_insert(now);
        entry.drawn += 1;
        let (before, tenant) = (entry.last.replace(now), entry.tenant);
        if let (Some(before), Some(gaps)) = (before, self.gaps.get_mut(&tenant)) {
            gaps.add(now - before);
        }
    }

    pub(super) fn charged(&mut self, client: u64, charge: Nanos, cached: u32) {
        let entry = self.entry(client);
        entry.charge += charge;
        entry.cached = entry.cached.max(cached);
    }

    pub(super) fn ended(&mut self, now: Nanos, client: u64, end: End) {
        self.entry(client).end = Some((now, end));
    }

    pub(super) fn stepped(&mut self, device: usize, plan: &StepPlan, time: Nanos) {
        let device = &mut self.devices[device];
        device.steps += 1;
        device.rows += plan.rows.len() as u64;
        device.tokens += plan.tokens();
        device.busy += time;
    }
}

impl World<'_> {
    /// Notes something, if notes are taken.
    pub(super) fn diary(&mut self, note: impl FnOnce(&mut Diary, Nanos)) {
        if let Some(diary) = &mut self.diary {
            note(diary, self.now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_told_within_a_hundredth() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.under(500), None);
        (1..=1_000u64).for_each(|n| gaps.add(Nanos(n * 1_000_003)));
        for per_mille in [1, 10, 500, 990, 999, 1_000] {
            let (said, exact) = (gaps.under(per_mille).map_or(0, |gap| gap.0), per_mille * 1_000_003);
            assert!(said >= exact && said - exact <= exact / 100, "{per_mille}: {said} for {exact}");
        }
        for nanos in [0, 1, 127, 128, 129, 255, 256, 1 << 40, u64::MAX] {
            let longest = Gaps::longest(Gaps::bucket(nanos));
            assert!(longest >= nanos && longest - nanos <= nanos / 128, "{nanos}: {longest}");
        }
    }
}
