//! What the scheduler is told about itself and about a model on a device.

use crate::ids::Nanos;

/// Settings of the whole scheduler. `Default` suits one node with a few devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Requests that may wait at once, over all tenants and devices. Beyond it, [`crate::RejectReason::QueueFull`].
    pub queue_len_max: u32,
    /// Steps planned and not yet finished, per device. With two, step n+1 is planned while n runs.
    pub steps_in_flight_max: u32,
    /// How often a request may lose its blocks before it is protected: it then restarts with every block it can need.
    pub preemptions_max: u32,
    /// How much more weighted device time a tenant must be owed than another, beyond the redo it causes, before its waiting request
    /// may take the blocks of the other's running one. Smaller is fairer, larger redoes less. Leads below it do not decide whose
    /// blocks are taken; the number of blocks held does.
    pub start_preempts_at: Nanos,
    /// How long before the expected end of the step that runs the next one is planned at least: what it takes to plan it and to send it to
    /// the device, with some to spare. See `ahead`. `Nanos(u64::MAX)` plans at once.
    pub lead_min: Nanos,
    /// The step latency that prompt chunks and embedding items are sized for. Decode rows are bounded by `rows_max` only, and
    /// one prompt row per step always gets [`crate::BLOCK_LEN`] tokens, so a slow device still makes progress.
    pub step_latency_max: Nanos,
    /// The most of a tenant's running work that counts as used before it was measured, over all devices. Without it a burst of long prompts
    /// would start at the price of short ones; without a bound to it, a tenant with a very long prompt would stand back until others
    /// had as much, and the service gap would grow with the longest prompt.
    pub hold_max: Nanos,
    /// Device time for which requests whose beginning is cached may go before others, so that it is computed once; see
    /// `docs/fairness.md`. It is the most by which a tenant may be ahead of another for that; inside a tenant, younger requests may go
    /// before the oldest for four times as long. With 0, the prefix cache decides nothing.
    pub locality_quantum: Nanos,
    /// How much later a request of priority `p` counts as having arrived, times `p`. This is also the ageing: a request of
    /// class `p` is overtaken by class 0 for at most `p * priority_spacing`.
    pub priority_spacing: Nanos,
    /// How long the requests of a metered tenant wait for a grant before they end with [`crate::End::Quota`].
    pub quota_wait_max: Nanos,
    /// The cost of a new token assumed before the first step of a model was measured.
    pub token_cost_prior: Nanos,
    /// The constant cost of a step assumed before the first step of a model was measured.
    pub step_cost_prior: Nanos,
    /// Who goes next; the others than the default are there to be compared with it.
    #[cfg(feature = "sim")]
    pub order: Order,
}

/// By what rule the next row of a step is chosen.
#[cfg(feature = "sim")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Weir's: the tenant that had the least device time by weight.
    #[default]
    DeviceTime,
    /// Who came first, whoever it is.
    Fcfs,
    /// Tenants take turns, a request each.
    RoundRobin,
    /// VTC: the tenant that had the fewest tokens by weight.
    Tokens,
    /// Whose prompt is cached furthest, whoever it is; then who came first.
    Prefix,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            queue_len_max: 4096,
            steps_in_flight_max: 2,
            preemptions_max: 4,
            start_preempts_at: Nanos::from_secs(1),
            lead_min: Nanos::from_millis(2),
            step_latency_max: Nanos::from_millis(250),
            hold_max: Nanos::from_millis(250),
            locality_quantum: Nanos::from_millis(250),
            priority_spacing: Nanos::from_secs(2),
            quota_wait_max: Nanos::from_secs(10),
            token_cost_prior: Nanos::from_micros(20),
            step_cost_prior: Nanos::from_millis(1),
            #[cfg(feature = "sim")]
            order: Order::DeviceTime,
        }
    }
}

/// What a model on a device can hold and do in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelLimits {
    /// KV blocks in the pool; 0 for encoders, which hold none.
    pub blocks: u32,
    /// Rows in one step.
    pub rows_max: u32,
    /// New tokens in one step; should be at least `rows_max` + [`crate::BLOCK_LEN`], so that prompts move beside a full batch.
    pub tokens_max: u32,
    /// Positions of one sequence, prompt and new tokens together; for encoders the length of one item.
    pub context_len_max: u32,
}
