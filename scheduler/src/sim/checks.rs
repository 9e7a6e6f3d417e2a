//! What must be true on the way and at the end, found out without the scheduler's own books.

use super::outcome::Outcome;
use super::rng::mix;
use super::scenario::{Arrivals, Source};
use super::world::World;
use crate::BLOCK_LEN;
use crate::ids::{DeviceId, Nanos};
use crate::plan::{PlanRow, RowKind, RowOutcome, StepPlan};

impl World<'_> {
    /// Rows follow on each other and draw exactly when they catch up.
    pub(super) fn check_plan(&mut self, plan: &StepPlan) {
        let model = self.scenario.models.iter().find(|model| model.id == plan.model);
        let limits = model.expect("a known model").limits;
        assert!(plan.rows.len() as u32 <= limits.rows_max);
        assert!(plan.tokens() <= u64::from(limits.tokens_max) || plan.rows.len() == 1);
        let in_flight_max = self.scenario.config.steps_in_flight_max;
        for row in &plan.rows {
            self.outcome.digest = mix(self.outcome.digest ^ row.request.0 ^ u64::from(row.len()) << 40);
            let client = self.clients.get_mut(&row.request).expect("rows are of live requests");
            match row.kind {
                RowKind::Embed { item, .. } => {
                    assert_eq!(item, client.planned, "items come in order");
                    client.planned += 1;
                }
                RowKind::Generate { from, len, samples, blocks } => {
                    // A start, after a preemption say, may begin anywhere that the cache covers.
                    assert!(from == client.planned || from % BLOCK_LEN == 0, "rows follow on each other");
                    let next = client.prompt_len + client.drawn;
                    assert!(from + len < next + in_flight_max, "each step in flight draws one token at most");
                    assert!(!samples || from + len >= next, "ids are drawn at the end");
                    assert!(blocks.len * BLOCK_LEN >= from + len);
                    client.planned = from + len;
                }
            }
        }
    }

    /// What the row does to memory and text.
    pub(super) fn run_row(&mut self, d: usize, plan: &StepPlan, row: &PlanRow) -> RowOutcome {
        let fails = self.rng.per_mille(self.scenario.faults.fail_per_mille);
        let model = self.scenario.models.iter().position(|model| model.id == plan.model);
        let memory = &mut self.machines[d].memories[model.expect("a known model")];
        let Some(client) = self.clients.get_mut(&row.request) else {
            // It settled while the step was in flight.
            if let RowKind::Generate { from, len, blocks, .. } = row.kind {
                memory.scribble(plan.blocks_of(blocks), from, len);
            }
            return RowOutcome::Advanced;
        };
        let mut outcome = RowOutcome::Advanced;
        match row.kind {
            RowKind::Embed { .. } => {
                client.run += 1;
                outcome = if client.run == client.items { RowOutcome::Finished } else { outcome };
            }
            RowKind::Generate { from, len, samples, blocks } => {
                memory.run(&client.text, plan.blocks_of(blocks), from, len);
                client.run = from + len;
                if samples && !client.over {
                    client.drawn += 1;
                    if client.drawn == client.stop {
                        outcome = RowOutcome::Finished;
                    }
                }
            }
        }
        let advanced = matches!(row.kind, RowKind::Embed { .. } | RowKind::Generate { samples: true, .. });
        if advanced && !client.waited {
            client.waited = true;
            let place = self.places[&self.scenario.sources[client.source].tenant];
            let wait = self.now.saturating_sub(client.admitted_at);
            self.outcome.tenants[place].waits.push(wait);
        }
        if fails {
            outcome = RowOutcome::Failed;
        }
        client.over |= fails || outcome == RowOutcome::Finished && client.items == 0;
        outcome
    }

    /// Wall time is accounted for, to the nanosecond, whatever just happened.
    pub(super) fn check_books(&self) {
        for d in 0..self.scenario.devices {
            let books = self.scheduler.accounts(self.now, DeviceId(d));
            assert_eq!(books.wall, self.now);
            assert_eq!(books.tenants + books.operator + books.idle + books.in_flight, books.wall);
        }
    }

    /// A device that stands idle has nothing to take from others.
    pub(super) fn check_idleness(&mut self) {
        let waiting = self.scheduler.tenants.waiting > 0;
        for (d, machine) in self.machines.iter_mut().enumerate() {
            let idle = machine.up && !machine.closed && machine.queue.is_empty();
            assert!(!idle || !self.scheduler.could_pull(d), "device {d} stands idle beside work it could take");
            match machine.idle_since.filter(|_| idle && waiting) {
                Some(since) => {
                    let stood = self.now.saturating_sub(since);
                    self.outcome.idle_waiting_max = self.outcome.idle_waiting_max.max(stood);
                }
                None => machine.idle_since = (idle && waiting).then_some(self.now),
            }
        }
    }

    /// How far one backlogged tenant's weighted charge is ahead of another's, over all devices and until requests stop coming.
    pub(super) fn measure_gap(&mut self) {
        if self.asked == self.scenario.requests_max {
            return;
        }
        let backlogged =
            |source: &&Source| matches!(source.arrivals, Arrivals::Backlog(_)) && source.from == Nanos::ZERO;
        let (mut least, mut most) = (u64::MAX, 0);
        for source in self.scenario.sources.iter().filter(backlogged) {
            let charge = self.scheduler.tenant_charge(source.tenant).0 / u64::from(source.plan.weight);
            (least, most) = (least.min(charge), most.max(charge));
        }
        self.outcome.gap_max = self.outcome.gap_max.max(Nanos(most.saturating_sub(least)));
    }

    pub(super) fn finish(mut self) -> Outcome {
        assert!(self.clients.is_empty(), "{} requests stand still", self.clients.len());
        self.scheduler.check_invariants();
        let stats = self.scheduler.stats();
        assert_eq!((stats.waiting, stats.running, stats.demand), (0, 0, Nanos::ZERO));
        assert_eq!(stats.preemptions, self.outcome.preemptions);
        let mut billed = Nanos::ZERO;
        for model in &stats.models {
            assert_eq!(model.blocks_used, 0, "blocks of ended requests are free");
        }
        for part in &mut self.outcome.tenants {
            part.waits.sort();
            assert_eq!(part.accepted, part.ends.iter().sum::<u64>(), "each request has one end");
            assert_eq!(part.charge, self.scheduler.tenant_charge(part.tenant), "bills add up");
            billed += part.charge;
        }
        for d in 0..self.scenario.devices {
            self.outcome.devices.push(self.scheduler.accounts(self.now, DeviceId(d)));
        }
        let charged: Nanos = self.outcome.devices.iter().map(|books| books.tenants).sum();
        assert_eq!(billed, charged, "what tenants pay is what devices worked for them");
        self.outcome.end = self.now;
        self.outcome
    }
}
