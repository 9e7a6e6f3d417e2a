//! What a tenant is owed on devices that its requests do not wait for.

use crate::rig::*;
use weir_scheduler::sim::{Arrivals, Ask, Outcome, Scenario, SimModel, Source, StepCost, Uneven, run};
use weir_scheduler::*;

const OTHER: DeviceId = DeviceId(1);

fn source(tenant: u32, model: ModelId, backlog: u32, ask: Ask) -> Source {
    Source {
        tenant: TenantId(tenant),
        plan: Tenant::default(),
        model,
        priority: 0,
        from: Nanos::ZERO,
        arrivals: Arrivals::Backlog(backlog),
        ask,
    }
}

/// Three tenants that chat and one that embeds, on a quick device and one that takes four times as long.
fn uneven(requests_max: u64) -> Outcome {
    let limits = ModelLimits { blocks: 1024, rows_max: 16, tokens_max: 512, context_len_max: 2048 };
    let cost = StepCost {
        step: Nanos::from_millis(4),
        token: Nanos::from_micros(20),
        kilocontext: Nanos::ZERO,
        kiloread: Nanos::from_micros(5),
        overhead: Nanos::from_micros(30),
    };
    let chat = Ask::Generate { prompt_len: (64, 656), drawn: (4, 64), shared_blocks: 0, beginnings: 0 };
    let lists = Ask::Embed { items: (1, 60), len: (5, 300) };
    let mut sources: Vec<Source> = (1..=3).map(|tenant| source(tenant, CHAT, 40, chat)).collect();
    sources.push(source(4, VECTORS, 40, lists));
    run(&Scenario {
        seed: 3,
        devices: 2,
        uneven: vec![Uneven { device: OTHER, time_percent: 400, without: Vec::new() }],
        models: vec![
            SimModel { id: CHAT, limits, cost },
            SimModel { id: VECTORS, limits: ModelLimits { blocks: 0, context_len_max: 512, ..limits }, cost },
        ],
        sources,
        requests_max,
        recount_every: 1_000,
        ..Scenario::default()
    })
}

#[test]
fn who_waits_for_a_quick_device_is_served_by_a_slow_one_as_far_as_it_is_owed() {
    let (short, long) = (uneven(2_000), uneven(20_000));
    println!("gap {:?} in {:?}, {:?} in {:?}", short.gap_max, short.end, long.gap_max, long.end);
    assert!(long.end > Nanos(8 * short.end.0));
    // The quantum, and what is in flight.
    let most = Config::default().locality_quantum + Nanos::from_millis(500);
    assert!(short.gap_max < most && long.gap_max < most, "it grows with time");
}
