//! How long a tenant's blocks were there: what it occupies, beside what it computes.
//!
//! The count of blocks in use and of blocks only cached is integrated over the caller's clock, at each change and exactly: a tenant with three
//! blocks for a second has three block-seconds, in whatever steps it happened. Pools have no clock; the scheduler tells
//! them the time at each way in that can move a block.

use alloc::vec::Vec;

use crate::device::Device;
use crate::ids::{ModelId, Nanos, TenantId};
use crate::scheduler::Scheduler;

/// Blocks times nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockTime {
    /// Of blocks that requests hold.
    pub used: u128,
    /// Of blocks that only the prefix cache holds.
    pub cached: u128,
}

impl BlockTime {
    pub(crate) fn add(&mut self, other: BlockTime) {
        self.used += other.used;
        self.cached += other.cached;
    }
}

/// A tenant's block time with a model, over all devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantBlocks {
    /// Whose.
    pub tenant: TenantId,
    /// Of which model; a model's blocks are of one size.
    pub model: ModelId,
    /// How long.
    pub time: BlockTime,
}

/// An integral that is kept up to a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meter {
    time: BlockTime,
    until: Nanos,
}

impl Meter {
    /// Counts the blocks for the time since the last change.
    #[inline]
    pub(crate) fn run(&mut self, now: Nanos, used: u32, cached: u32) {
        if now <= self.until {
            return;
        }
        let time = u128::from(now.saturating_sub(self.until).0);
        self.time.used += time * u128::from(used);
        self.time.cached += time * u128::from(cached);
        self.until = now;
    }

    /// What it would say at `now`.
    pub(crate) fn read(mut self, now: Nanos, used: u32, cached: u32) -> BlockTime {
        self.run(now, used, cached);
        self.time
    }
}

impl Device {
    /// Tells the pools the time.
    pub(crate) fn tell_time(&mut self, now: Nanos) {
        for model in &mut self.models {
            model.pool.tell_time(now);
        }
    }
}

impl Scheduler {
    /// How long whose blocks were there, up to `now`, by tenant in the order they were added; only those that ever had any. None of them ever
    /// shrinks, also when a device is lost.
    pub fn block_times(&self, now: Nanos) -> Vec<TenantBlocks> {
        let mut all = Vec::new();
        for (slot, account) in self.tenants.iter().enumerate() {
            let mut times = account.block_times.clone();
            for model in self.devices.iter().flat_map(|device| &device.models) {
                add(&mut times, model.id, model.pool.held(slot as u32).block_time(now));
            }
            times.sort_unstable_by_key(|(model, _)| *model);
            let times = times.into_iter().filter(|(_, time)| *time != BlockTime::default());
            all.extend(times.map(|(model, time)| TenantBlocks { tenant: account.id, model, time }));
        }
        all
    }

    /// Keeps what the device's pools have measured; they are about to go.
    pub(crate) fn keep_block_times(&mut self, now: Nanos, d: usize) {
        for model in &self.devices[d].models {
            for slot in 0..self.tenants.len() as u32 {
                let time = model.pool.held(slot).block_time(now);
                if time != BlockTime::default() {
                    add(&mut self.tenants.get_mut(slot).block_times, model.id, time);
                }
            }
        }
    }
}

fn add(times: &mut Vec<(ModelId, BlockTime)>, model: ModelId, time: BlockTime) {
    match times.iter_mut().find(|(id, _)| *id == model) {
        Some((_, sum)) => sum.add(time),
        None => times.push((model, time)),
    }
}
