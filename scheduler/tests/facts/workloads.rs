//! Named loads under Weir's order and under others: small sizes of what `bench/RESULTS.md` shows. Times are the simulated devices'.

use weir_scheduler::sim::{Outcome, STEP_CAP, SimModel, TenantOutcome, WORKLOADS, Watch, Workload, run_watched};
use weir_scheduler::{ModelId, Nanos, Order};

fn named(name: &str) -> &'static Workload {
    WORKLOADS.iter().find(|workload| workload.name == name).unwrap()
}

/// Plays a load for so many seconds under an order.
fn play(name: &str, seconds: u64, order: Order) -> (Outcome, Watch) {
    let mut scenario = named(name).scenario(1, 1, SimModel::h200_llama8b(ModelId(0)), seconds);
    scenario.config.order = order;
    let mut watch = Watch::new(Nanos::from_secs(10));
    let outcome = run_watched(&scenario, Some(&mut watch));
    (outcome, watch)
}

/// How many windows had two tenants or more with work waiting all through them, and the least of Jain's indices over the device time
/// that these had in one, in thousandths.
fn jain(watch: &Watch) -> (usize, u128) {
    let indices: Vec<u128> = watch
        .windows
        .iter()
        .filter_map(|window| {
            let parts = window.parts.iter().zip(&watch.tenants).filter(|(part, _)| part.backlogged);
            let shares: Vec<u128> =
                parts.map(|(part, (_, weight))| u128::from(part.charge.0 / u64::from(*weight))).collect();
            let (sum, squares) = (shares.iter().sum::<u128>(), shares.iter().map(|share| share * share).sum::<u128>());
            (shares.len() > 1).then(|| 1_000 * sum * sum / (shares.len() as u128 * squares).max(1))
        })
        .collect();
    (indices.len(), indices.into_iter().min().unwrap_or(1_000))
}

#[test]
fn every_window_is_shared_evenly_and_nothing_is_lost_by_it() {
    for (name, seconds) in [
        ("overload", 30),
        ("on-off-overload", 60),
        ("poisson-short-long", 30),
        ("shift", 90),
        ("zipf-1000", 30),
        ("mixed-embeddings", 40),
    ] {
        let (weir, watch) = play(name, seconds, Order::DeviceTime);
        let (fcfs, _) = play(name, seconds, Order::Fcfs);
        let (windows, least) = jain(&watch);
        println!(
            "{name}: {windows} windows, Jain's index at least {least} / 1000, {:?} against {:?}",
            weir.end, fcfs.end
        );
        assert!(windows > 0 && least >= 990, "{name}");
        // All do the same work, so the end says how fast.
        assert_eq!(weir.accepted(), fcfs.accepted());
        assert!(weir.end.0 / 1_000 * 990 <= fcfs.end.0, "{name} takes longer: {:?}, {:?}", weir.end, fcfs.end);
    }
}

#[test]
fn what_is_cached_is_used_and_every_window_is_shared_evenly_all_the_same() {
    for (name, seconds) in [("prefix-system", 60), ("prefix-documents", 60), ("prefix-turns", 0)] {
        let (weir, watch) = play(name, seconds, Order::DeviceTime);
        let (locality, _) = play(name, seconds, Order::Prefix);
        let hits = |outcome: &Outcome| {
            let sum = |of: fn(&TenantOutcome) -> u64| outcome.tenants.iter().map(of).sum::<u64>();
            1_000 * sum(|tenant| tenant.cached_tokens) / sum(|tenant| tenant.prompt_tokens)
        };
        let (windows, least) = jain(&watch);
        let (ours, most) = (hits(&weir), hits(&locality));
        println!(
            "{name}: {ours} / 1000 of prompts cached, {most} by locality alone; Jain's index at least {least} in {windows}"
        );
        assert!(windows > 0 && least >= 990, "{name}");
        assert!(10 * ours >= 9 * most, "{name}");
    }
}

#[test]
fn a_polite_tenant_waits_two_steps_longer_than_alone_and_not_for_its_neighbour() {
    for name in ["noisy-neighbour", "mixed-embeddings"] {
        polite(named(name));
    }
}

fn polite(workload: &Workload) {
    let polite = workload.polite.unwrap();
    let wait = |outcome: &Outcome| outcome.tenants.iter().find(|part| part.tenant == polite).unwrap().wait(990);
    let scenario = workload.scenario(1, 1, SimModel::h200_llama8b(ModelId(0)), 60);
    let solo = wait(&run_watched(&Workload::solo(&scenario, polite), None));
    let beside = wait(&play(workload.name, 60, Order::DeviceTime).0);
    let fcfs = wait(&play(workload.name, 60, Order::Fcfs).0);
    println!("p99 to the first id: {solo:?} alone, {beside:?} beside, {fcfs:?} first come first served");
    // It waits for what is left of the step that runs, and its own is longer beside others.
    assert!(beside <= solo + Nanos(2 * STEP_CAP.0), "{}", workload.name);
    assert!(fcfs.0 > 10 * solo.0);
}

#[test]
fn orders_do_what_they_are_called_for() {
    // Two tenants ask for the same texts, the second twice as often.
    let shares = |order| {
        let (_, watch) = play("overload", 30, order);
        let parts = &watch.windows[1].parts;
        100 * parts[1].charge.0 / parts[0].charge.0
    };
    assert!((190..=210).contains(&shares(Order::Fcfs)), "in the order of arrival");
    for order in [Order::RoundRobin, Order::Tokens, Order::DeviceTime] {
        assert!((80..=125).contains(&shares(order)), "{order:?}: by turns");
    }
    // Short texts and long ones: turns favour whoever asks for long ones, by as much as they are longer.
    let (_, watch) = play("poisson-short-long", 30, Order::RoundRobin);
    let parts = &watch.windows[1].parts;
    assert!(parts[1].charge.0 > 3 * parts[0].charge.0);
}
