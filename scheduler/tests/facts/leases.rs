//! Quotas over time: tenants that become metered and unmetered under way, and long histories in which no grant is overspent.

use std::collections::BTreeMap;

use crate::grants::{LATER, MS, metered, rig};
use crate::rig::*;
use weir_scheduler::sim::{Arrivals, Ask, Faults, Leases, Rng, Scenario, SimModel, Source, StepCost, run};
use weir_scheduler::*;

#[test]
fn a_tenant_may_become_metered_and_unmetered_under_way() {
    let mut rig = rig();
    rig.tenant(1, Tenant::default());
    let id = rig.ask(1, 10, 6);
    let plan = rig.plan().unwrap();
    rig.tenant(1, metered());
    assert!(rig.plan().is_none());
    rig.finish(&plan);
    assert_eq!((rig.charge(1), rig.grants(1).spent), (STEP, Nanos::ZERO), "it began without a meter");
    rig.grant(1, 1, 100, LATER);
    let plan = rig.plan().unwrap();
    rig.tenant(1, Tenant::default());
    rig.finish(&plan);
    assert_eq!((rig.charge(1), rig.grants(1).spent), (STEP + STEP, STEP));
    rig.run_dry();
    assert_eq!((rig.settled(id).unwrap().0, rig.grants(1).spent), (End::Finished, STEP));
}

#[test]
fn a_tenant_that_is_metered_no_more_waits_for_nothing_and_ends_for_nothing() {
    let mut rig = rig();
    let id = rig.ask(1, 10, 200);
    assert!(rig.step().is_none(), "it has no grant");
    rig.tenant(1, Tenant::default());
    rig.scheduler.window_spent(rig.now, TenantId(1), LATER);
    let later = rig.ask(1, 10, 200);
    for _ in 0..100 {
        rig.step();
        rig.now += Nanos::from_millis(200);
        rig.scheduler.tick(rig.now);
    }
    rig.hear();
    let ends = [rig.settled(id), rig.settled(later)].map(|end| end.map(|end| end.0));
    assert!(ends.iter().all(|end| end.is_none() || *end == Some(End::Finished)), "{ends:?}");
    assert_eq!(rig.settled(later), None, "and is at work");
}

#[test]
fn a_suspect_that_waits_for_a_grant_neither_runs_in_company_nor_is_let_go() {
    let limits = ModelLimits { blocks: 256, rows_max: 16, tokens_max: 256, context_len_max: 1024 };
    let none = Nanos::ZERO;
    let cost =
        StepCost { step: Nanos(4 * MS), token: Nanos(20_000), kilocontext: none, kiloread: none, overhead: none };
    let source = |tenant: u32, metered, backlog| Source {
        tenant: TenantId(tenant),
        plan: Tenant { metered, ..Tenant::default() },
        model: CHAT,
        priority: 0,
        from: Nanos::ZERO,
        arrivals: Arrivals::Backlog(backlog),
        ask: Ask::Generate { prompt_len: (10, 200), drawn: (5, 60), shared_blocks: 0, beginnings: 0 },
    };
    let leases = Leases {
        amount: Nanos(50 * MS),
        life: Nanos(200 * MS),
        delay: Nanos(40 * MS),
        window: Nanos(4_000 * MS),
        limit: Nanos(1_500 * MS),
        ..Leases::default()
    };
    for (seed, free) in [(1, 6), (2, 6), (3, 0), (4, 0)] {
        let sources = vec![source(1, true, 6), source(2, true, 3), source(3, free == 0, free.max(1))];
        let outcome = run(&Scenario {
            seed,
            devices: 1 + (seed % 2) as u16,
            models: vec![SimModel { id: CHAT, limits, cost }],
            sources,
            faults: Faults { loss_gap: Nanos(700 * MS), outage: Nanos(50 * MS), ..Faults::default() },
            leases,
            requests_max: 2_000,
            recount_every: 100,
            ..Scenario::default()
        });
        assert!(outcome.incidents.losses > 20 && outcome.incidents.resumed > 100, "{:?}", outcome.incidents);
        assert_eq!(outcome.incidents.passed_over, 0);
    }
}

/// A lease holder and the clients of four tenants, all of whom do as they please, over two devices.
struct Chaos {
    rig: Rig,
    rng: Rng,
    flying: [Vec<StepPlan>; 2],
    live: Vec<RequestId>,
    granted: BTreeMap<(TenantId, u64), u64>,
    returned: BTreeMap<(TenantId, u64), u64>,
    epochs: [u64; 5],
    quota_ends: u64,
}

impl Chaos {
    fn new(seed: u64) -> Chaos {
        let mut rig = Rig::new(40);
        let other = DeviceId(1);
        rig.scheduler.add_device(rig.now, other);
        let limits = ModelLimits { blocks: 24, rows_max: 4, tokens_max: 128, context_len_max: 1024 };
        assert!(rig.scheduler.add_model(other, CHAT, limits));
        for tenant in 1..=3 {
            rig.tenant(tenant, metered());
        }
        Chaos {
            rig,
            rng: Rng::new(seed),
            flying: [Vec::new(), Vec::new()],
            live: Vec::new(),
            granted: BTreeMap::new(),
            returned: BTreeMap::new(),
            epochs: [1; 5],
            quota_ends: 0,
        }
    }

    fn act(&mut self) {
        let tenant = TenantId(self.rng.between(1, 4));
        let now = self.rig.now;
        let rig = &mut self.rig;
        match self.rng.between(0, 99) {
            0..20 => {
                let (prompt_len, draws) = (self.rng.between(1, 300), self.rng.between(1, 60));
                let work = Work::Generate { prompt_len, new_tokens_max: draws, hashes: Vec::new() };
                self.live.extend(rig.admit(tenant.0, CHAT, 0, work).ok());
            }
            20..24 => {
                let work = Work::Embed { lens: vec![self.rng.between(1, 200); self.rng.between(1, 20) as usize] };
                self.live.extend(rig.admit(tenant.0, VECTORS, 0, work).ok());
            }
            24..32 => {
                let epoch = &mut self.epochs[tenant.0 as usize];
                *epoch = epoch.saturating_add_signed(i64::from(self.rng.between(0, 4) == 0)).max(1);
                let epoch = *epoch - u64::from(self.rng.between(0, 9) == 0);
                let amount = u64::from(self.rng.between(0, 200)) * MS / 2;
                let expires = Nanos((now.0 + u64::from(self.rng.between(0, 900)) * MS).saturating_sub(50 * MS));
                rig.scheduler.grant(now, tenant, Grant { epoch, amount: Nanos(amount), expires });
                *self.granted.entry((tenant, epoch)).or_default() += amount;
            }
            32..34 => rig.scheduler.revoke_grant(tenant),
            34..36 => {
                let until = now + Nanos(u64::from(self.rng.between(1, 300)) * MS);
                rig.scheduler.window_spent(now, tenant, until);
            }
            36..38 if !self.live.is_empty() => {
                let at = self.rng.between(0, self.live.len() as u32 - 1) as usize;
                rig.scheduler.cancel(now, self.live[at]);
            }
            38 if self.rng.between(0, 9) == 0 => {
                let d = self.rng.between(0, 1) as u16;
                rig.scheduler.device_lost(now, DeviceId(d));
                self.flying[d as usize].clear();
                rig.scheduler.add_device(now, DeviceId(d));
                let blocks = [40, 24][d as usize];
                let limits = ModelLimits { blocks, rows_max: 4, tokens_max: 128, context_len_max: 1024 };
                assert!(rig.scheduler.add_model(DeviceId(d), CHAT, limits));
                if d == 0 {
                    assert!(rig.scheduler.add_model(DEVICE, VECTORS, ModelLimits { blocks: 0, ..limits }));
                }
            }
            39..65 => self.plan(),
            65..95 => self.finish_one(),
            _ => rig.now += Nanos(u64::from(self.rng.between(0, 400)) * MS),
        }
    }

    fn plan(&mut self) {
        for d in 0..2 {
            let mut plan = StepPlan::new();
            if self.rig.scheduler.next_step(self.rig.now, DeviceId(d), &mut plan) {
                self.flying[d as usize].push(plan);
            }
        }
    }

    fn finish_one(&mut self) {
        let d = self.rng.between(0, 1) as usize;
        if self.flying[d].is_empty() {
            return;
        }
        let plan = self.flying[d].remove(0);
        // From much less to much more than expected.
        let time = Nanos((2_000_000 + 30_000 * plan.tokens()) * u64::from(self.rng.between(1, 40)) / 10);
        self.rig.now += time + Nanos(u64::from(self.rng.between(0, 1_000_000)));
        let rng = &mut self.rng;
        let outcome = |_: &PlanRow| match rng.between(0, 60) {
            0 => RowOutcome::Failed,
            1 => RowOutcome::Finished,
            _ => RowOutcome::Advanced,
        };
        let rows: Vec<RowOutcome> = plan.rows.iter().map(outcome).collect();
        let report = StepReport { step: plan.step, device_time: time, rows: &rows };
        assert!(self.rig.scheduler.finish_step(self.rig.now, DeviceId(d as u16), &report, &mut self.rig.events));
    }

    fn check(&mut self) {
        self.rig.hear();
        for event in self.rig.events.drain(..) {
            match event {
                Event::GrantReturned { tenant, epoch, amount } => {
                    *self.returned.entry((tenant, epoch)).or_default() += amount.0;
                }
                Event::Settled { request, tenant, end, charge, .. } => {
                    self.live.retain(|id| *id != request);
                    self.quota_ends += u64::from(end == End::Quota);
                    assert!(charge <= self.rig.scheduler.tenant_charge(tenant));
                }
                _ => {}
            }
        }
        for tenant in (1..=3).map(TenantId) {
            let books = self.rig.scheduler.grant_books(tenant);
            let of = |sums: &BTreeMap<(TenantId, u64), u64>| -> u64 {
                sums.iter().filter(|((of, _), _)| *of == tenant).map(|(_, sum)| sum).sum()
            };
            assert_eq!((books.granted.0, books.returned.0), (of(&self.granted), of(&self.returned)));
            assert!(books.spent + books.reserved <= books.granted - books.returned);
            assert_eq!(books.spent, self.rig.scheduler.tenant_charge(tenant), "nothing is billed without a grant");
        }
        for d in 0..2 {
            let books = self.rig.scheduler.accounts(self.rig.now, DeviceId(d));
            assert_eq!(books.wall, books.tenants + books.operator + books.idle + books.in_flight);
            assert!(books.overrun <= books.operator);
        }
    }

    /// Everything in flight ends, every grant expires, every wait is over.
    fn end(&mut self) {
        while self.flying.iter().any(|steps| !steps.is_empty()) {
            self.finish_one();
            self.check();
        }
        self.rig.tenant(4, metered());
        for _ in 0..3 {
            self.plan();
            while self.flying.iter().any(|steps| !steps.is_empty()) {
                self.finish_one();
            }
            self.check();
            self.rig.now += Nanos::from_secs(11);
            self.rig.scheduler.tick(self.rig.now);
            self.check();
        }
        assert_eq!(self.live, [], "everybody was told");
        for (key, granted) in &self.granted {
            let returned = self.returned.get(key).copied().unwrap_or(0);
            assert!(returned <= *granted, "no lease gets more back than it gave: {key:?}");
        }
        for tenant in (1..=3).map(TenantId) {
            let books = self.rig.scheduler.grant_books(tenant);
            assert_eq!(books.granted, books.returned + books.spent, "all of it is spent or back");
        }
        assert_eq!(self.rig.scheduler.next_deadline(), None);
    }
}

#[test]
fn whatever_happens_no_grant_is_overspent_and_what_is_not_spent_comes_back() {
    let (mut spent, mut overrun, mut returned, mut quota_ends) = (0, 0, 0, 0);
    for seed in 0..300 {
        println!("seed {seed}");
        let mut chaos = Chaos::new(seed);
        for _ in 0..600 {
            chaos.act();
            chaos.check();
        }
        chaos.end();
        quota_ends += chaos.quota_ends;
        returned += chaos.returned.values().sum::<u64>();
        for tenant in 1..=3 {
            spent += chaos.rig.grants(tenant).spent.0;
        }
        for d in 0..2 {
            overrun += chaos.rig.scheduler.accounts(chaos.rig.now, DeviceId(d)).overrun.0;
        }
    }
    println!("spent {spent}, overrun {overrun}, returned {returned} ns; {quota_ends} ended by quota");
    assert!(spent > 1_000_000 * MS / 10 && overrun > 1_000 * MS && returned > 10_000 * MS && quota_ends > 1_000);
}
