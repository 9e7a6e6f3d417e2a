//! One load under several policies, in the scheduler's simulator: who got how much, and who waited for how long.
//!
//! Every policy runs the same requests to their end, so *throughput* is the tokens of all requests, prompts and answers, over the time
//! until the last one has ended: a policy that favours cheap requests gains nothing by it. *Fairness* is Jain's index of the device
//! time charged in a window of [`WINDOW`], divided by weight, over the tenants that had a request waiting at every moment of
//! it: 1 is equal, 1/n is all for one. *TTFT* is from admission to the first drawn id, or the first embedded item.

use weir_scheduler::sim::{Outcome, Scenario, SimModel, Watch, Window, Workload, run_watched};
use weir_scheduler::{Nanos, Order, TenantId};

/// Over which fairness is judged.
pub const WINDOW: Nanos = Nanos::from_secs(10);

/// The policies in the order of the tables, with the names that figures have.
pub const POLICIES: [(Order, &str); 4] =
    [(Order::DeviceTime, "weir"), (Order::Fcfs, "fcfs"), (Order::RoundRobin, "round_robin"), (Order::Tokens, "vtc")];

/// And one that follows nothing but cached prefixes, for loads that share them: what it finds in the cache is what there is to find.
pub const LOCALITY: (Order, &str) = (Order::Prefix, "locality");

/// What one policy made of a load.
#[derive(Clone, Debug)]
pub struct PolicyRun {
    /// Its name.
    pub policy: &'static str,
    /// Tokens of prompts and answers per second, until all is done.
    pub tokens_per_s: f64,
    /// Requests per second, until all is done.
    pub requests_per_s: f64,
    /// Jain's index by window: when it began, the index, over how many tenants. Windows with fewer than two to compare are left out.
    pub jain: Vec<(f64, f64, usize)>,
    /// Percentiles 50 and 99 of the polite tenant's TTFT in seconds, if there is one.
    pub polite: Option<(f64, f64)>,
    /// Percentiles 50 and 99 of everybody's TTFT in seconds.
    pub all: (f64, f64),
    /// Prompt tokens found in the cache, of all.
    pub hit_rate: f64,
    /// The share of the devices' time, until all is done, in which a step ran.
    pub utilisation: f64,
    /// Requests that lost their blocks.
    pub preemptions: u64,
    /// What was seen on the way.
    pub windows: Vec<Window>,
    /// Whose shares the windows hold.
    pub tenants: Vec<(TenantId, u32)>,
}

/// One load under every policy.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Which load.
    pub workload: Workload,
    /// In the order of [`POLICIES`], then [`LOCALITY`] where prefixes are shared.
    pub runs: Vec<PolicyRun>,
    /// Percentiles 50 and 99 of the polite tenant's TTFT when it is alone, in seconds.
    pub solo: Option<(f64, f64)>,
    /// The cap on a step, in seconds.
    pub step_cap: f64,
}

/// Runs the load under every policy, and its polite tenant alone.
pub fn compare(workload: &Workload, seed: u64, devices: u16, cost: SimModel, seconds: u64) -> Comparison {
    let scenario = workload.scenario(seed, devices, cost, seconds);
    let locality = workload.shares_prefixes.then_some(LOCALITY);
    let policies = POLICIES.into_iter().chain(locality);
    let runs = policies.map(|(order, name)| run(workload, &scenario, order, name)).collect();
    let solo = workload.polite.map(|tenant| {
        let outcome = run_watched(&Workload::solo(&scenario, tenant), None);
        percentiles(&outcome, |other| other == tenant)
    });
    Comparison { workload: *workload, runs, solo, step_cap: seconds_of(scenario.config.step_latency_max) }
}

fn run(workload: &Workload, scenario: &Scenario, order: Order, policy: &'static str) -> PolicyRun {
    let mut scenario = scenario.clone();
    scenario.config.order = order;
    let mut watch = Watch::new(WINDOW);
    let outcome = run_watched(&scenario, Some(&mut watch));
    let end = seconds_of(outcome.end).max(f64::MIN_POSITIVE);
    let sum = |of: fn(&weir_scheduler::sim::TenantOutcome) -> u64| outcome.tenants.iter().map(of).sum::<u64>() as f64;
    let prompts = sum(|tenant| tenant.prompt_tokens);
    let wall: Nanos = outcome.devices.iter().map(|books| books.wall).sum();
    let idle: Nanos = outcome.devices.iter().map(|books| books.idle).sum();
    PolicyRun {
        policy,
        tokens_per_s: (prompts + sum(|tenant| tenant.drawn_tokens)) / end,
        requests_per_s: outcome.accepted() as f64 / end,
        jain: watch.windows.iter().filter_map(|window| jain(window, &watch.tenants)).collect(),
        polite: workload.polite.map(|tenant| percentiles(&outcome, |other| other == tenant)),
        all: percentiles(&outcome, |_| true),
        hit_rate: sum(|tenant| tenant.cached_tokens) / prompts.max(1.0),
        utilisation: 1.0 - seconds_of(idle) / seconds_of(wall).max(f64::MIN_POSITIVE),
        preemptions: outcome.preemptions,
        windows: watch.windows,
        tenants: watch.tenants,
    }
}

fn seconds_of(time: Nanos) -> f64 {
    time.0 as f64 / 1e9
}

fn jain(window: &Window, tenants: &[(TenantId, u32)]) -> Option<(f64, f64, usize)> {
    let backlogged = window.parts.iter().zip(tenants).filter(|(part, _)| part.backlogged);
    let shares: Vec<f64> = backlogged.map(|(part, (_, weight))| part.charge.0 as f64 / f64::from(*weight)).collect();
    (shares.len() > 1).then(|| (seconds_of(window.from), jain_index(&shares), shares.len()))
}

/// Jain, Chiu and Hawe (1984): the square of the sum over n times the sum of squares.
fn jain_index(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    if squares == 0.0 { 1.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

fn percentiles(outcome: &Outcome, whose: impl Fn(TenantId) -> bool) -> (f64, f64) {
    let tenants = outcome.tenants.iter().filter(|tenant| whose(tenant.tenant));
    let mut waits: Vec<Nanos> = tenants.flat_map(|tenant| tenant.waits.iter().copied()).collect();
    waits.sort_unstable();
    let at = |share: f64| {
        let rank = (waits.len() as f64 * share).ceil() as usize;
        waits.get(rank.saturating_sub(1)).map_or(0.0, |wait| seconds_of(*wait))
    };
    (at(0.5), at(0.99))
}

impl PolicyRun {
    /// The least of Jain's indices; none where no window had anything to compare.
    pub fn jain_min(&self) -> Option<f64> {
        self.jain.iter().map(|(_, index, _)| *index).min_by(f64::total_cmp)
    }
}

impl Comparison {
    fn of(&self, policy: &str) -> &PolicyRun {
        self.runs.iter().find(|run| run.policy == policy).expect("every policy was run")
    }

    /// Everything countable, as names and values.
    pub fn figures(&self) -> Vec<(String, f64)> {
        let mut figures = Vec::new();
        let mut put = |name: String, value: f64| figures.push((format!("{}.{name}", self.workload.name), value));
        let fcfs = self.of("fcfs").tokens_per_s;
        for run in &self.runs {
            let name = run.policy;
            put(format!("{name}.tokens_per_s"), run.tokens_per_s);
            put(format!("{name}.throughput_to_fcfs"), run.tokens_per_s / fcfs);
            put(format!("{name}.requests_per_s"), run.requests_per_s);
            put(format!("{name}.utilisation"), run.utilisation);
            if let Some(least) = run.jain_min() {
                put(format!("{name}.jain_min"), least);
            }
            put(format!("{name}.jain_windows"), run.jain.len() as f64);
            put(format!("{name}.ttft_p50_s"), run.all.0);
            put(format!("{name}.ttft_p99_s"), run.all.1);
            put(format!("{name}.preemptions"), run.preemptions as f64);
            if let (Some((p50, p99)), Some(solo)) = (run.polite, self.solo) {
                put(format!("{name}.polite_ttft_p50_s"), p50);
                put(format!("{name}.polite_ttft_p99_s"), p99);
                put(format!("{name}.polite_ttft_to_solo"), p99 / solo.1);
                put(format!("{name}.polite_caps_over_solo"), (p99 - solo.1) / self.step_cap);
            }
            if self.workload.shares_prefixes {
                put(format!("{name}.hit_rate"), run.hit_rate);
                put(format!("{name}.hit_rate_to_locality"), run.hit_rate / self.of("locality").hit_rate);
            }
        }
        if let Some((p50, p99)) = self.solo {
            put("solo.polite_ttft_p50_s".into(), p50);
            put("solo.polite_ttft_p99_s".into(), p99);
        }
        figures
    }
}
