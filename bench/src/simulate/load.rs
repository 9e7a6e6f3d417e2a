//! A load ready to be played: drawn by name, or recorded.

use std::collections::BTreeMap;

use weir_scheduler::sim::{self, Arrivals, Given, Scenario, WORKLOADS, Watch};
use weir_scheduler::{Nanos, Order, TenantId};

use super::{
    answer::{Answer, Measured},
    costs::Costs,
    replay,
    trace::Trace,
};

/// Windows of a chart, about.
const WINDOWS: u64 = 60;

/// How a load differs from what its name or its trace says.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Of all draws.
    pub seed: u64,
    /// Requests after which no more come.
    pub requests: Option<u64>,
    /// Tenants whose requests come so many times as often.
    pub scale: Vec<(String, f64)>,
    /// Tenants whose weight is another.
    pub weight: Vec<(String, u32)>,
    /// By what rule the next row is chosen.
    pub order: Order,
}

/// What is played: the same on any number of devices.
#[derive(Clone, Debug)]
pub struct Load {
    pub(super) name: String,
    pub(super) cost: String,
    /// Devices on which it was recorded, or for which it was made.
    pub(super) devices: u16,
    pub(super) scenario: Scenario,
    pub(super) given: Vec<Given>,
    pub(super) names: BTreeMap<TenantId, String>,
    pub(super) window: Nanos,
    /// What a trace says of itself; not of a load that differs from it.
    pub(super) measured: Option<Measured>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl Load {
    /// A workload by name, made to fit so many devices.
    ///
    /// # Errors
    /// When there is none of that name, or a tenant is not in it.
    pub fn named(name: &str, devices: u16, costs: &Costs, options: &LoadOptions) -> Result<Load, String> {
        let Some(workload) = WORKLOADS.iter().find(|workload| workload.name == name) else {
            let known: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
            return Err(format!("no workload is named `{name}`; there are {}", known.join(", ")));
        };
        let mut scenario = workload.scenario(options.seed, devices, costs.first(), workload.seconds);
        let names: BTreeMap<TenantId, String> =
            scenario.sources.iter().map(|source| (source.tenant, source.tenant.0.to_string())).collect();
        let tenant = |name: &str| {
            let found = names.iter().find(|(_, other)| *other == name);
            found.map(|(id, _)| *id).ok_or_else(|| unknown(name, names.values()))
        };
        for (name, factor) in &options.scale {
            let id = tenant(name)?;
            for source in scenario.sources.iter_mut().filter(|source| source.tenant == id) {
                source.arrivals = scaled(source.arrivals, *factor);
            }
        }
        for (name, weight) in &options.weight {
            let id = tenant(name)?;
            scenario.sources.iter_mut().filter(|source| source.tenant == id).for_each(|s| s.plan.weight = *weight);
        }
        if let Some(requests) = options.requests {
            scenario.requests_max = scenario.requests_max.min(requests);
        }
        scenario.config.order = options.order;
        Ok(Load {
            name: name.to_owned(),
            cost: costs.name.clone(),
            devices,
            scenario,
            given: Vec::new(),
            names,
            window: Nanos(workload.seconds.max(WINDOWS) * 1_000_000_000 / WINDOWS),
            measured: None,
            notes: Vec::new(),
        })
    }

    /// A recorded load.
    ///
    /// # Errors
    /// When a model has no cost, a tenant is not in it, or there is nothing in it.
    pub fn recorded(name: &str, trace: &Trace, costs: &Costs, options: &LoadOptions) -> Result<Load, String> {
        for (name, _) in &options.scale {
            known(trace, name)?;
        }
        for (name, _) in &options.weight {
            known(trace, name)?;
        }
        if trace.requests.is_empty() {
            return Err("it holds no request".into());
        }
        let requests = usize::try_from(options.requests.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let requests = &trace.requests[..requests.min(trace.requests.len())];
        let scenario = replay::scenario(trace, costs, options)?;
        let given = replay::given(trace, requests, &scenario, options);
        let names = (1..).map(TenantId).zip(trace.tenants.iter().map(|tenant| tenant.name.clone())).collect();
        let span = given.last().map_or(0, |given| given.at.0);
        let changed = !options.scale.is_empty() || !options.weight.is_empty();
        Ok(Load {
            name: name.to_owned(),
            cost: costs.name.clone(),
            devices: trace.devices.len().max(1) as u16,
            scenario,
            given,
            names,
            window: Nanos((span / WINDOWS).max(10_000_000)),
            measured: (!changed).then(|| Measured::of(trace, requests)),
            notes: trace.notes.clone(),
        })
    }

    /// Devices on which the load was recorded, or for which it was made.
    pub fn devices(&self) -> u16 {
        self.devices
    }

    /// Plays it on so many devices.
    pub fn play(&self, devices: u16) -> Answer {
        let scenario = Scenario { devices, ..self.scenario.clone() };
        let mut watch = Watch::new(self.window);
        let (outcome, diary) = sim::replay(&scenario, &self.given, &mut watch);
        Answer::new(self, &scenario, &outcome, diary, watch)
    }
}

/// The same arrivals, so many times as often.
fn scaled(arrivals: Arrivals, factor: f64) -> Arrivals {
    let gap = |gap: Nanos| Nanos(((gap.0 as f64 / factor).round() as u64).max(1));
    match arrivals {
        Arrivals::Poisson(mean) => Arrivals::Poisson(gap(mean)),
        Arrivals::Phases(phases) => Arrivals::Phases(sim::Phases { gap: gap(phases.gap), ..phases }),
        Arrivals::Backlog(count) => Arrivals::Backlog((f64::from(count) * factor).round() as u32),
        Arrivals::Given => Arrivals::Given,
    }
}

fn known(trace: &Trace, name: &str) -> Result<(), String> {
    match trace.tenants.iter().any(|tenant| tenant.name == name) {
        true => Ok(()),
        false => Err(unknown(name, trace.tenants.iter().map(|tenant| &tenant.name))),
    }
}

/// Names shown of those there are.
const NAMES_SHOWN_MAX: usize = 16;

fn unknown<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> String {
    let mut names: Vec<&str> = names.map(String::as_str).collect();
    let more = if names.len() > NAMES_SHOWN_MAX { ", ..." } else { "" };
    names.truncate(NAMES_SHOWN_MAX);
    format!("no tenant is named `{name}`; there are {}{more}", names.join(", "))
}
