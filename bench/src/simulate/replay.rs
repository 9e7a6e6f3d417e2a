//! From a trace to a scenario and its given requests.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use weir_scheduler::sim::{Arrivals, Ask, Given, GivenWork, Rng, Scenario, SimModel, Source};
use weir_scheduler::{Config, DeviceId, ModelId, Nanos, PoolId, Tenant, TenantId};

use super::{
    costs::Costs,
    load::LoadOptions,
    recorded::{RecordedEnd, RecordedRequest},
    trace::{NUMBER_MAX, Trace},
};

/// Blocks of a copy that nobody shares get numbers from here on, a range for each copy.
const COPY_BLOCKS: u64 = NUMBER_MAX + 1;

/// Whose a request is, and of which kind: one source of the scenario.
type Kind = (usize, u16, u8);

fn kind(request: &RecordedRequest) -> Kind {
    (request.tenant, request.model, request.priority)
}

/// The devices' models, and a source for each kind of request.
pub(super) fn scenario(trace: &Trace, costs: &Costs, options: &LoadOptions) -> Result<Scenario, String> {
    let mut models = Vec::new();
    for (id, model) in (0..).zip(&trace.models) {
        // A model that nobody asked needs no cost.
        let asked = trace.requests.iter().any(|request| request.model == id);
        if let Some(model) = model.as_ref().filter(|_| asked) {
            models.push(SimModel { id: ModelId(id), ..costs.of(&model.name)? });
        }
    }
    let mut kinds: Vec<Kind> = trace.requests.iter().map(kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let sources = kinds.into_iter().map(|(tenant, model, priority)| {
        let plan = &trace.tenants[tenant];
        let other = options.weight.iter().find(|(name, _)| *name == plan.name);
        Source {
            tenant: TenantId(tenant as u32 + 1),
            plan: Tenant {
                weight: other.map_or(plan.weight, |(_, weight)| *weight),
                queue_len_max: plan.queue_len_max,
                running_max: plan.running_max,
                kv_blocks_floor: plan.kv_blocks_floor,
                kv_blocks_ceiling: plan.kv_blocks_ceiling,
                // Quotas end with the windows of a calendar, which a trace that is played has none of.
                metered: false,
                cache_blocks_floor: plan.cache_blocks_floor,
                cache_blocks_ceiling: plan.cache_blocks_ceiling,
                ttft_target: plan.ttft_target.map(Nanos),
                itl_target: plan.itl_target.map(Nanos),
                priority_ceiling: plan.priority_ceiling,
                pool: plan.pool.as_ref().and_then(|pool| trace.pool(pool)).map(PoolId),
                pool_only: plan.pool_only,
            },
            model: ModelId(model),
            priority,
            from: Nanos::ZERO,
            arrivals: Arrivals::Given,
            ask: Ask::Embed { items: (1, 1), len: (1, 1) },
        }
    });
    let default = Config::default();
    let config = Config {
        queue_len_max: trace.queue_len_max,
        locality_quantum: trace.locality_quantum.map_or(default.locality_quantum, Nanos),
        step_latency_max: Nanos(trace.devices.first().map_or(250_000_000, |device| device.step_latency_max)),
        order: options.order,
        ..default
    };
    // Of pools, a world of fewer devices has what is left of them, and devices that one of more has besides are everybody's.
    let pools = (0..).map(DeviceId).zip(&trace.devices).filter_map(|(id, device)| {
        let pool = trace.pool(device.pool.as_ref()?)?;
        Some((id, PoolId(pool)))
    });
    Ok(Scenario {
        seed: options.seed,
        config,
        devices: trace.devices.len().max(1) as u16,
        pools: pools.collect(),
        models,
        sources: sources.collect(),
        requests_max: u64::MAX,
        recount_every: u64::MAX,
        ..Scenario::default()
    })
}

/// The requests as they came, those of scaled tenants so many times as often.
///
/// A copy comes at a random time within the tenant's mean gap after its original, and shares with others what its original shares: what
/// is the original's alone is the copy's alone, too, or a copy would find all of itself in the cache.
pub(super) fn given(
    trace: &Trace,
    requests: &[RecordedRequest],
    scenario: &Scenario,
    options: &LoadOptions,
) -> Vec<Given> {
    let place = |request: &RecordedRequest| {
        let is = |source: &Source| (source.tenant.0 as usize - 1, source.model.0, source.priority) == kind(request);
        scenario.sources.iter().position(is).expect("each kind of request has a source")
    };
    let shared = shared_blocks(requests);
    let lengths = mean_drawn(trace.tenants.len(), requests);
    let first = requests.first().map_or(0, |request| request.at);
    let span = requests.last().map_or(0, |request| request.at) - first;
    let mut counts = vec![0u64; trace.tenants.len()];
    requests.iter().for_each(|request| counts[request.tenant] += 1);
    let (mut rng, mut copies, mut given) = (Rng::new(options.seed), 0, Vec::new());
    for request in requests {
        let name = &trace.tenants[request.tenant].name;
        let factor = options.scale.iter().find(|(scaled, _)| scaled == name).map_or(1.0, |(_, factor)| *factor);
        let part = ((factor - factor.floor()) * 1_000.0).round() as u32;
        let times = factor.floor() as u64 + u64::from(part > 0 && rng.per_mille(part));
        for time in 0..times {
            let (mut late, mut blocks) = (0, request.blocks.clone());
            if time > 0 {
                copies += 1;
                late = rng.bits() % (span / counts[request.tenant]).max(1);
                blocks = copied(&request.blocks, &shared, copies);
            }
            given.push(Given {
                at: Nanos(request.at - first + late),
                source: place(request),
                work: work(request, blocks, lengths[request.tenant]),
                patience: (request.end == RecordedEnd::Cancelled).then_some(Nanos(request.took)),
            });
        }
    }
    given.sort_by_key(|given| given.at);
    given
}

fn work(request: &RecordedRequest, blocks: Vec<(u64, u32)>, mean_drawn: u32) -> GivenWork {
    if !request.lens.is_empty() {
        return GivenWork::Embed { lens: request.lens.clone() };
    }
    let most = request.new_tokens_max;
    let drawn = |drawn: &u32| match request.end {
        RecordedEnd::Finished | RecordedEnd::Failed => *drawn,
        // Its client did not wait for the end, which is not known.
        RecordedEnd::Cancelled => most,
        RecordedEnd::Refused => mean_drawn.min(most),
    };
    GivenWork::Generate {
        prompt_len: request.prompt_len,
        new_tokens_max: most,
        drawn: request.drawn.iter().map(drawn).collect(),
        blocks: Arc::from(blocks),
    }
}

/// The mean of what each tenant's finished texts drew, for those that were refused; of all texts, for a tenant that has none.
fn mean_drawn(tenants: usize, requests: &[RecordedRequest]) -> Vec<u32> {
    let mut sums = vec![(0u64, 0u64); tenants + 1];
    for request in requests.iter().filter(|request| request.end == RecordedEnd::Finished) {
        for drawn in &request.drawn {
            for at in [request.tenant, tenants] {
                sums[at] = (sums[at].0 + u64::from(*drawn), sums[at].1 + 1);
            }
        }
    }
    let mean = |(sum, count): (u64, u64)| sum.checked_div(count).map(|mean| mean as u32);
    let of_all = mean(sums[tenants]).unwrap_or(1);
    sums[..tenants].iter().map(|sum| mean(*sum).unwrap_or(of_all)).collect()
}

/// The numbers of blocks that more than one request has.
fn shared_blocks(requests: &[RecordedRequest]) -> HashSet<u64> {
    let mut seen: HashMap<u64, bool> = HashMap::new();
    for (first, len) in requests.iter().flat_map(|request| &request.blocks) {
        for number in *first..*first + u64::from(*len) {
            seen.entry(number).and_modify(|again| *again = true).or_insert(false);
        }
    }
    seen.into_iter().filter(|(_, again)| *again).map(|(number, _)| number).collect()
}

fn copied(runs: &[(u64, u32)], shared: &HashSet<u64>, copy: u64) -> Vec<(u64, u32)> {
    let mut out: Vec<(u64, u32)> = Vec::new();
    for number in runs.iter().flat_map(|(first, len)| *first..*first + u64::from(*len)) {
        let number = if shared.contains(&number) { number } else { number + copy * COPY_BLOCKS };
        match out.last_mut() {
            Some((first, len)) if *first + u64::from(*len) == number => *len += 1,
            _ => out.push((number, 1)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{
        costs::tests::costs,
        trace::tests::{HEAD, request, trace},
    };
    use super::*;

    fn given_of(lines: &str, options: &LoadOptions) -> Vec<Given> {
        let trace = trace(lines);
        let scenario = scenario(&trace, &costs(4_000, 20), options).unwrap();
        given(&trace, &trace.requests, &scenario, options)
    }

    fn drawn(given: &Given) -> Vec<u32> {
        match &given.work {
            GivenWork::Generate { drawn, .. } => drawn.clone(),
            GivenWork::Embed { .. } => Vec::new(),
        }
    }

    #[test]
    fn requests_come_as_they_came_from_the_first_on() {
        let lines = request(7_000, 1, 30, 5) + &request(5_000, 0, 70, 4);
        let given = given_of(&lines, &LoadOptions::default());
        let seen: Vec<_> = given.iter().map(|g| (g.at.0, g.source, drawn(g), g.patience)).collect();
        assert_eq!(seen, [(0, 0, vec![4], None), (2_000, 1, vec![5], None)]);
    }

    #[test]
    fn endings_that_are_not_known_are_filled_in() {
        let cancelled = request(3, 0, 10, 2).replace("finished", "cancelled");
        let refused = request(4, 0, 10, 0).replace("finished", "refused");
        let stranger = request(5, 1, 10, 0).replace("finished", "refused");
        let lines = request(1, 0, 10, 10) + &request(2, 0, 10, 20) + &cancelled + &refused + &stranger;
        let given = given_of(&lines, &LoadOptions::default());
        let seen: Vec<_> = given.iter().map(|g| (drawn(g)[0], g.patience)).collect();
        assert_eq!(seen[2..], [(64, Some(Nanos(9))), (15, None), (15, None)]);
    }

    #[test]
    fn a_tenant_that_doubles_has_twice_the_requests_and_the_others_theirs() {
        let lines: String = (0..100).map(|n| request(n * 1_000, n as usize % 2, 30, 5)).collect();
        let scale = |factor| LoadOptions { scale: vec![("a".into(), factor)], seed: 3, ..LoadOptions::default() };
        let count = |factor| {
            let given = given_of(&lines, &scale(factor));
            assert!(given.is_sorted_by_key(|given| given.at));
            (given.iter().filter(|g| g.source == 0).count(), given.iter().filter(|g| g.source == 1).count())
        };
        assert_eq!((count(1.0), count(2.0), count(3.0), count(0.0)), ((50, 50), (100, 50), (150, 50), (0, 50)));
        let (half, others) = count(0.5);
        assert!((15..35).contains(&half) && others == 50, "{half}");
        assert_eq!(given_of(&lines, &scale(2.5)), given_of(&lines, &scale(2.5)));
    }

    #[test]
    fn a_copy_shares_what_its_original_shares_and_nothing_else() {
        let runs = vec![(10, 4), (90, 2)];
        let shared = HashSet::from([10, 11, 91]);
        assert_eq!(copied(&runs, &shared, 2), [(10, 2), (12 + 2 * COPY_BLOCKS, 2), (90 + 2 * COPY_BLOCKS, 1), (91, 1)]);
        let line =
            |at, blocks: &str| request(at, 0, 100, 5).replace("\"drawn\"", &format!("\"blocks\":{blocks},\"drawn\""));
        let trace = trace(&(line(1, "[[0,3]]") + &line(2, "[[0,2],[7,1]]")));
        assert_eq!(shared_blocks(&trace.requests), HashSet::from([0, 1]));
    }

    #[test]
    fn plans_are_played_as_they_were_bought() {
        let head = HEAD
            .replacen("\"step_latency_max\":200000000}", "\"step_latency_max\":200000000},{\"name\":\"cpu:1\",\"step_latency_max\":200000000,\"pool\":\"gold\"}", 1)
            .replacen("\"weight\":1", "\"ttft_target\":9,\"itl_target\":8,\"cache_blocks_floor\":7,\"cache_blocks_ceiling\":70,\"priority_ceiling\":3,\"pool\":\"gold\",\"pool_only\":true,\"weight\":1", 1)
            .replacen("\"queue_len_max\":1024", "\"queue_len_max\":1024,\"locality_quantum\":5", 1);
        let lines = format!("{head}{}{}", request(1, 0, 30, 5), request(2, 1, 30, 5));
        let trace = Trace::parse(lines.as_bytes()).unwrap();
        let scenario = scenario(&trace, &costs(4_000, 20), &LoadOptions::default()).unwrap();
        assert_eq!((scenario.devices, &scenario.pools[..]), (2, &[(DeviceId(1), PoolId(1))][..]));
        assert_eq!(scenario.config.locality_quantum, Nanos(5));
        let bought = Tenant {
            queue_len_max: 256,
            running_max: 64,
            cache_blocks_floor: 7,
            cache_blocks_ceiling: Some(70),
            ttft_target: Some(Nanos(9)),
            itl_target: Some(Nanos(8)),
            priority_ceiling: 3,
            pool: Some(PoolId(1)),
            pool_only: true,
            ..Tenant::default()
        };
        assert_eq!(scenario.sources[0].plan, bought);
        assert_eq!((scenario.sources[1].plan.pool, scenario.sources[1].plan.ttft_target), (None, None));
    }

    #[test]
    fn a_model_without_a_cost_is_an_error_only_if_somebody_asked_it() {
        let other = r#"{"kind":"model","at":1,"device":0,"model":1,"name":"other","blocks":0,"rows_max":1,"tokens_max":1,"context_len_max":1}"#;
        let lines = format!("{other}\n{}", request(1, 0, 10, 10));
        assert!(scenario(&trace(&lines), &costs(1, 1), &LoadOptions::default()).is_ok());
        let asked = lines.replace("\"tenant\":0,\"model\":0", "\"tenant\":0,\"model\":1");
        let error = scenario(&trace(&asked), &costs(1, 1), &LoadOptions::default()).unwrap_err();
        assert!(error.contains("no cost for model `other`"), "{error}");
    }
}
