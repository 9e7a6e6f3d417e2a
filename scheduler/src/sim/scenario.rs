//! What is simulated: devices, models and their costs, tenants and their habits, faults.

use alloc::vec::Vec;

use super::arrivals::Phases;
use super::leases::Leases;
use crate::config::{Config, ModelLimits};
use crate::ids::{DeviceId, ModelId, Nanos, PoolId, TenantId};
use crate::tenant::Tenant;

/// What a step costs on the simulated device.
#[derive(Clone, Copy, Debug)]
pub struct StepCost {
    /// Per step.
    pub step: Nanos,
    /// Per new token.
    pub token: Nanos,
    /// Per 1,000 positions of context that rows read: a row of `n` tokens from position `p` reads `p + n`. Memory traffic.
    pub kilocontext: Nanos,
    /// Per 1,000 (new token, earlier position) pairs. Arithmetic.
    pub kiloread: Nanos,
    /// Wall time per step in which the device does not compute.
    pub overhead: Nanos,
}

/// A model, loaded on every device unless [`Uneven`] says otherwise.
#[derive(Clone, Copy, Debug)]
pub struct SimModel {
    /// Which.
    pub id: ModelId,
    /// Its limits on each device.
    pub limits: ModelLimits,
    /// What its steps cost.
    pub cost: StepCost,
}

/// When a source's requests come.
#[derive(Clone, Copy, Debug)]
pub enum Arrivals {
    /// A Poisson process with this mean gap.
    Poisson(Nanos),
    /// This many requests are always at hand: a new one comes when one ends.
    Backlog(u32),
    /// On a schedule with a beginning and an end, whatever becomes of the requests.
    Phases(Phases),
    /// Its requests are given, see [`super::replay`]; what it asks for says nothing.
    Given,
}

/// Lowest and highest of a uniform draw.
pub type Range = (u32, u32);

/// What a source asks for.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// Text.
    Generate {
        /// Prompt tokens.
        prompt_len: Range,
        /// Ids drawn until the text ends.
        drawn: Range,
        /// Blocks that the prompt shares with others of the tenant, if it is long enough.
        shared_blocks: u32,
        /// How many different shared beginnings there are; 0 keeps the source out of the prefix cache.
        beginnings: u32,
    },
    /// The next turn of a conversation: the prompt is all that was said so far and something new. A source talks with one voice if
    /// it has one request at a time.
    Turns {
        /// Prompt tokens of the first turn.
        first: u32,
        /// By how much the prompt grows with a turn; what was drawn is a part of it.
        more: u32,
        /// Ids drawn in a turn.
        drawn: Range,
        /// Turns of a conversation; the next one begins from nothing.
        turns: u32,
    },
    /// Vectors.
    Embed {
        /// Items per request.
        items: Range,
        /// Tokens per item.
        len: Range,
    },
}

/// One kind of traffic of one tenant.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Who.
    pub tenant: TenantId,
    /// What it bought.
    pub plan: Tenant,
    /// Which model it asks.
    pub model: ModelId,
    /// Its requests' priority class.
    pub priority: u8,
    /// From when on.
    pub from: Nanos,
    /// How often.
    pub arrivals: Arrivals,
    /// What for.
    pub ask: Ask,
}

/// A device that differs from the others.
#[derive(Clone, Debug)]
pub struct Uneven {
    /// Which.
    pub device: DeviceId,
    /// Its steps take so many per cent of what the model's cost says.
    pub time_percent: u32,
    /// Models that it does not have.
    pub without: Vec<ModelId>,
}

/// What goes wrong. Whatever is not asked for does not happen; mean gaps of zero mean never.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Requests that are cancelled at some time, per mille.
    pub cancel_per_mille: u32,
    /// Rows that fail, per mille.
    pub fail_per_mille: u32,
    /// Steps that take `slow_factor` times as long, per mille.
    pub slow_per_mille: u32,
    /// See `slow_per_mille`.
    pub slow_factor: u32,
    /// Devices that are lost, when, and for how long.
    pub lost: Vec<(Nanos, DeviceId, Nanos)>,
    /// Devices that are drained, when, and for how long.
    pub drained: Vec<(Nanos, DeviceId, Nanos)>,
    /// Steps whose report never comes, per million. After `silence` the caller gives the device up, and it is lost for `outage`.
    pub mute_per_million: u32,
    /// How long the caller waits for a report.
    pub silence: Nanos,
    /// How long a device is away that was lost by chance; it is drained for as long.
    pub outage: Nanos,
    /// The mean gap between two losses of some device.
    pub loss_gap: Nanos,
    /// The mean gap between two drains of some device.
    pub drain_gap: Nanos,
    /// The mean gap between two changes of some tenant's plan: its weight, how many of its requests run, its floor and its ceiling.
    pub plan_gap: Nanos,
}

/// A history to be played.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Of all randomness.
    pub seed: u64,
    /// The scheduler's settings.
    pub config: Config,
    /// How many devices.
    pub devices: u16,
    /// Those that differ from the rest.
    pub uneven: Vec<Uneven>,
    /// Devices that belong to pools.
    pub pools: Vec<(DeviceId, PoolId)>,
    /// The models, on every device that is not without.
    pub models: Vec<SimModel>,
    /// The traffic.
    pub sources: Vec<Source>,
    /// What goes wrong.
    pub faults: Faults,
    /// What metered tenants live on.
    pub leases: Leases,
    /// Panic where the service gap exceeds its bound. For worlds within what the bound is promised for.
    pub gap_checked: bool,
    /// No more requests come after this many were accepted.
    pub requests_max: u64,
    /// A full recount after every so many events; the cheap checks run always.
    pub recount_every: u64,
}

impl Default for Scenario {
    /// One device, and nothing to do.
    fn default() -> Scenario {
        Scenario {
            seed: 0,
            config: Config::default(),
            devices: 1,
            uneven: Vec::new(),
            pools: Vec::new(),
            models: Vec::new(),
            sources: Vec::new(),
            faults: Faults::default(),
            leases: Leases::default(),
            gap_checked: false,
            requests_max: 0,
            recount_every: 1_000,
        }
    }
}
