//! Plans, devices, grants and clients that change under way, all at random: every count stays right, every request's time is
//! accounted for, and in the end nothing stands still.
//!
//! `WEIR_PROOFS=full` plays more seeds, `WEIR_PROOFS_SEED=N` that seed alone, `WEIR_PROOFS_FROM=N` seeds from that one on.

use std::collections::BTreeMap;
use std::panic::catch_unwind;

use crate::proofs::{is_full, number};
use crate::rig::*;
use weir_scheduler::sim::Rng;
use weir_scheduler::*;

const DEVICES: [DeviceId; 2] = [DeviceId(0), DeviceId(1)];
const CHANGES: usize = 1_500;
const ENDS: usize = 6;

struct Changes {
    scheduler: Scheduler,
    chat: ModelLimits,
    now: Nanos,
    rng: Rng,
    flying: [Vec<StepPlan>; 2],
    /// What was asked, and when first.
    live: BTreeMap<RequestId, (Admission, Nanos)>,
    lost: Vec<Resumption>,
    metered: bool,
    targets: bool,
    epoch: u64,
    ends: [u64; ENDS],
}

impl Changes {
    /// Every other setting in half of the seeds.
    fn new(seed: u64) -> Changes {
        let mut rng = Rng::new(seed);
        let chat = ModelLimits {
            blocks: if rng.per_mille(500) { 30 } else { rng.between(6, 60) },
            rows_max: if rng.per_mille(500) { 6 } else { rng.between(1, 12) },
            tokens_max: 256,
            context_len_max: 1024,
        };
        let config = Config {
            start_preempts_at: Nanos::from_millis(5),
            preemptions_max: rng.between(0, 3),
            steps_in_flight_max: if rng.per_mille(500) { 2 } else { rng.between(1, 3) },
            lead_min: if rng.per_mille(500) { Config::default().lead_min } else { Nanos(u64::MAX) },
            locality_quantum: if rng.per_mille(500) { Config::default().locality_quantum } else { Nanos(0) },
            queue_len_max: if rng.per_mille(500) { 1_000 } else { rng.between(1, 30) },
            quota_wait_max: Nanos::from_millis(u64::from(rng.between(1, 500))),
            ..Config::default()
        };
        let (metered, targets) = (rng.per_mille(500), rng.per_mille(500));
        let mut scheduler = Scheduler::new(config);
        (1..=4).for_each(|tenant| scheduler.add_tenant(TenantId(tenant), Tenant::default()));
        let (live, lost, flying) = (BTreeMap::new(), Vec::new(), [vec![], vec![]]);
        let (now, epoch, ends) = (Nanos(0), 0, [0; ENDS]);
        let mut changes = Changes { scheduler, chat, now, rng, flying, live, lost, metered, targets, epoch, ends };
        DEVICES.into_iter().for_each(|device| changes.bring_up(device));
        changes
    }

    fn bring_up(&mut self, device: DeviceId) {
        self.scheduler.add_device(self.now, device);
        self.scheduler.resume_device(device);
        self.scheduler.add_model(device, CHAT, self.chat);
        self.scheduler.add_model(device, VECTORS, ModelLimits { blocks: 0, ..self.chat });
    }

    fn act(&mut self) {
        self.now += Nanos::from_micros(100);
        let tenant = TenantId(self.rng.between(1, 4));
        let d = self.rng.between(0, 1) as usize;
        match self.rng.between(0, 39) {
            0..=6 => self.ask(tenant, None),
            7 | 8 => {
                let at = self.rng.between(0, 1 + self.live.len() as u32) as usize;
                if let Some(id) = self.live.keys().nth(at).copied() {
                    self.scheduler.cancel(self.now, id);
                }
            }
            9 | 10 => {
                let plan = self.plan();
                self.scheduler.set_tenant(tenant, plan);
            }
            11 if self.rng.per_mille(200) => self.scheduler.drain_device(DEVICES[d]),
            12 if self.rng.per_mille(300) => self.scheduler.resume_device(DEVICES[d]),
            13 if self.rng.per_mille(200) => {
                match self.rng.per_mille(200) {
                    true => self.scheduler.remove_device(self.now, DEVICES[d]),
                    false => self.scheduler.device_lost(self.now, DEVICES[d]),
                }
                self.flying[d].clear();
            }
            14 if self.rng.per_mille(500) => self.bring_up(DEVICES[d]),
            15 if self.rng.per_mille(100) => {
                let pool = self.rng.per_mille(500).then_some(PoolId(1));
                self.scheduler.set_pool(DEVICES[d], pool);
            }
            16 if self.rng.per_mille(300) => {
                let here = |id: &RequestId| self.scheduler.device_of(*id) == Some(DEVICES[d]);
                let here: Vec<_> = self.live.keys().copied().filter(here).collect();
                let one = here.get(self.rng.between(0, here.len() as u32) as usize);
                self.scheduler.run_alone(DEVICES[d], one.copied());
            }
            17 if self.rng.per_mille(200) => self.ask(tenant, Some(DEVICES[d])),
            18 => {
                if let Some(lost) = self.lost.pop() {
                    let to = self.rng.per_mille(500).then_some(DEVICES[d]);
                    let asked = (lost.admission.clone(), lost.since);
                    if let Ok(id) = self.scheduler.admit_again(self.now, to, lost) {
                        self.live.insert(id, asked);
                    }
                }
            }
            19 if self.metered => self.grant(tenant),
            20 if self.metered && self.rng.per_mille(200) => match self.rng.between(0, 2) {
                0 => self.scheduler.revoke_grant(tenant),
                1 => self.scheduler.window_reopened(tenant),
                _ => self.scheduler.window_spent(self.now, tenant, self.now + Nanos::from_millis(20)),
            },
            _ => {
                self.step(d);
            }
        }
        self.hear();
    }

    fn plan(&mut self) -> Tenant {
        let rng = &mut self.rng;
        let mut plan = Tenant { weight: rng.between(1, 5), ..Tenant::default() };
        match rng.between(0, 5) {
            0 => plan.kv_blocks_floor = rng.between(0, 12),
            1 => plan.kv_blocks_ceiling = Some(rng.between(1, 20)),
            2 => plan.cache_blocks_floor = rng.between(0, 8),
            3 => plan.cache_blocks_ceiling = Some(rng.between(0, 8)),
            4 => plan.running_max = rng.between(1, 3),
            _ => (plan.pool, plan.pool_only) = (Some(PoolId(1)), rng.per_mille(500)),
        }
        plan.metered = self.metered && rng.per_mille(500);
        if self.targets {
            plan.itl_target = rng.per_mille(500).then_some(Nanos::from_millis(u64::from(rng.between(1, 20))));
            plan.ttft_target = rng.per_mille(300).then_some(Nanos::from_millis(u64::from(rng.between(1, 500))));
        }
        plan
    }

    fn grant(&mut self, tenant: TenantId) {
        self.epoch += u64::from(self.rng.per_mille(300));
        let amount = Nanos::from_micros(u64::from(self.rng.between(1, 50_000)));
        let expires = self.now + Nanos::from_micros(u64::from(self.rng.between(1, 50_000)));
        self.scheduler.grant(self.now, tenant, Grant { epoch: self.epoch, amount, expires });
    }

    fn ask(&mut self, tenant: TenantId, to: Option<DeviceId>) {
        let rng = &mut self.rng;
        let (model, work) = match rng.per_mille(200) {
            true => {
                let lens = (0..rng.between(1, 12)).map(|_| rng.between(1, 300)).collect();
                (VECTORS, Work::Embed { lens })
            }
            false => {
                let (text, prompt_len) = (rng.between(0, 3) as u8, rng.between(1, 400));
                let hashes = (0..prompt_len / BLOCK_LEN).map(|n| hash(text, n)).collect();
                (CHAT, Work::Generate { prompt_len, new_tokens_max: rng.between(0, 80), hashes })
            }
        };
        let admission = Admission { tenant, model, priority: rng.between(0, 2) as u8, work };
        let count = if rng.per_mille(300) { rng.between(2, 5) as usize } else { 1 };
        let asked = (admission.clone(), self.now);
        let ids = match to {
            Some(device) => self.scheduler.admit_to(self.now, device, admission).map(|id| vec![id]),
            None => self.scheduler.admit_group(self.now, vec![admission; count]),
        };
        self.live.extend(ids.unwrap_or_default().into_iter().map(|id| (id, asked.clone())));
    }

    /// Plans a step of the device, or finishes one. True if there was one.
    fn step(&mut self, d: usize) -> bool {
        let mut plan = StepPlan::new();
        let planned = self.scheduler.next_step(self.now, DEVICES[d], &mut plan);
        self.hear();
        if planned {
            self.flying[d].push(plan);
            return true;
        }
        if self.flying[d].is_empty() {
            return false;
        }
        let plan = self.flying[d].remove(0);
        let time = Nanos(1_000_000 + 20_000 * plan.tokens());
        self.now += time;
        let outcome = |rng: &mut Rng| match rng.between(0, 999) {
            0..=2 => RowOutcome::Failed,
            3..=12 => RowOutcome::Finished,
            _ => RowOutcome::Advanced,
        };
        let rows: Vec<_> = plan.rows.iter().map(|_| outcome(&mut self.rng)).collect();
        let report = StepReport { step: plan.step, device_time: time, rows: &rows };
        let mut events = Vec::new();
        assert!(self.scheduler.finish_step(self.now, DEVICES[d], &report, &mut events));
        self.take(events);
        for row in &plan.rows {
            self.scheduler.block_hashed(row.request, hash(9, self.rng.between(0, u32::MAX / 0x1_0000)));
        }
        true
    }

    fn hear(&mut self) {
        let mut events = Vec::new();
        self.scheduler.take_events(&mut events);
        self.take(events);
        self.scheduler.check_invariants();
    }

    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Settled { request, end, times, .. } => {
                    let (admission, since) = self.live.remove(&request).expect("it ends once");
                    self.ends[end as usize] += 1;
                    assert_eq!(times.total(), self.now - since, "{request:?} accounts for its time");
                    if end == End::Lost && self.rng.per_mille(500) {
                        self.lost.push(Resumption { admission, redo: self.rng.between(0, 20), since, times });
                    }
                }
                Event::GrantLow { tenant, .. } if self.rng.per_mille(500) => self.grant(tenant),
                _ => {}
            }
        }
    }

    /// Everybody's plan and all devices are as at first, and what is left runs to its end.
    fn end(&mut self) {
        for device in DEVICES {
            self.scheduler.set_pool(device, None);
            self.scheduler.run_alone(device, None);
            self.bring_up(device);
        }
        (1..=4).for_each(|tenant| self.scheduler.set_tenant(TenantId(tenant), Tenant::default()));
        let mut idle = 0;
        while idle < 10 {
            self.now += Nanos::from_millis(1);
            let any = [0, 1].map(|d| self.step(d));
            self.hear();
            idle = if any.contains(&true) { 0 } else { idle + 1 };
        }
        assert!(self.live.is_empty(), "{} stand still", self.live.len());
        let stats = self.scheduler.stats();
        assert!(stats.models.iter().all(|model| model.blocks_used == 0));
    }

    fn play(seed: u64) -> [u64; ENDS] {
        let mut changes = Changes::new(seed);
        (0..CHANGES).for_each(|_| changes.act());
        changes.end();
        changes.ends
    }
}

#[test]
fn whatever_changes_under_way_nothing_is_lost_and_nothing_stands_still() {
    let from = number("WEIR_PROOFS_FROM").unwrap_or(0);
    let seeds = match number("WEIR_PROOFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => from..from + if is_full() { 5_000 } else { 100 },
    };
    let (mut ends, mut failed, count) = ([0; ENDS], Vec::new(), seeds.end - seeds.start);
    for seed in seeds {
        match catch_unwind(|| Changes::play(seed)) {
            Ok(of) => (0..ENDS).for_each(|end| ends[end] += of[end]),
            Err(_) => {
                println!("seed {seed}");
                failed.push(seed);
            }
        }
    }
    println!("ends {ends:?}");
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
    assert!(count == 1 || ends.iter().all(|end| *end > 50), "{ends:?}");
}

#[test]
fn a_lowered_ceiling_lets_what_has_run_have_what_one_request_needs_and_no_more() {
    let mut rig = Rig::new(64);
    let ceiling = |blocks| Tenant { kv_blocks_ceiling: Some(blocks), ..Tenant::default() };
    rig.tenant(1, ceiling(40));
    // Seven blocks each to start with, eleven at the end.
    let ids = [rig.ask(1, 220, 110), rig.ask(1, 220, 110), rig.ask(1, 220, 110)];
    while ids.iter().any(|id| rig.cached_tokens(*id).is_none()) {
        rig.step();
    }
    let held = |rig: &Rig| rig.scheduler.stats().models[0].blocks_used;
    assert_eq!(held(&rig), 21);
    rig.tenant(1, ceiling(5));
    let mut most = 0;
    while ids.iter().any(|id| rig.settled(*id).is_none()) {
        assert!(rig.step().is_some(), "the device is never idle");
        most = most.max(held(&rig));
    }
    // A request that was preempted for another starts again when it fits beside what runs.
    assert!(most <= 21, "{most}");
    assert!(ids.iter().all(|id| matches!(rig.settled(*id), Some((End::Finished, _)))));
}
