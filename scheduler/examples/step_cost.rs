//! What planning and finishing a step costs the scheduler's thread: `cargo run --release -p weir-scheduler --example step_cost`.
//! Decode rows only, one row per running request, two steps in flight, a tenant for every four requests.

use std::time::Instant;

use weir_scheduler::*;

fn main() {
    println!("{:>6} {:>8} {:>12} {:>12}", "rows", "tenants", "p50 us/step", "p99 us/step");
    for rows in [1, 8, 32, 128, 256] {
        measure(rows, 5_000);
    }
}

fn measure(rows: u32, steps: usize) {
    let tenants = rows.div_ceil(4);
    let (device, model) = (DeviceId(0), ModelId(0));
    let mut scheduler = Scheduler::new(Config::default());
    scheduler.add_device(Nanos(0), device);
    let new_tokens_max = steps as u32 + 100;
    let limits = ModelLimits {
        blocks: rows * (new_tokens_max / BLOCK_LEN + 8) * 2,
        rows_max: rows,
        tokens_max: 2048,
        context_len_max: new_tokens_max + 64,
    };
    scheduler.add_model(device, model, limits);
    for n in 0..rows {
        let tenant = TenantId(1 + n % tenants);
        scheduler.add_tenant(tenant, Tenant { weight: 1 + n % 3, ..Tenant::default() });
        let work = Work::Generate { prompt_len: 32, new_tokens_max, hashes: Vec::new() };
        let admission = Admission { tenant, model, priority: 0, work };
        scheduler.admit(Nanos(0), admission).expect("it fits");
    }
    let mut now = Nanos(0);
    let mut plans = [StepPlan::new(), StepPlan::new()];
    let (mut outcomes, mut events) = (Vec::new(), Vec::new());
    assert!(scheduler.next_step(now, device, &mut plans[0]));
    let mut times = Vec::new();
    for n in 0..steps {
        let [running, ahead] = &mut plans;
        let (running, ahead) = if n % 2 == 0 { (running, ahead) } else { (ahead, running) };
        outcomes.clear();
        outcomes.resize(running.rows.len(), RowOutcome::Advanced);
        now += Nanos::from_millis(5);
        let start = Instant::now();
        let planned = scheduler.next_step(now, device, ahead);
        let report = StepReport { step: running.step, device_time: Nanos(4_900_000), rows: &outcomes };
        let known = scheduler.finish_step(now, device, &report, &mut events);
        let time = start.elapsed();
        assert!(known);
        if !planned {
            assert!(scheduler.next_step(now, device, ahead));
        } else if ahead.rows.len() as u32 == rows {
            times.push(time);
        }
        events.clear();
    }
    times.sort();
    let at = |part: usize| times[times.len() * part / 100].as_nanos() as f64 / 1e3;
    println!("{rows:>6} {tenants:>8} {:>12.2} {:>12.2}", at(50), at(99));
}
