//! What follows a step: the time is charged, the cost model learns, the requests advance.
//!
//! *Whose time.* The measured time is split over the rows by their fitted cost. A row's part is the tenant's, except that the operator
//! pays for a request that had settled before (its row was planned on the guess that it would go on), for a row that
//! failed, and for positions that were computed before a preemption. The last two advance the tenant's virtual time all the same, so that
//! neither failing nor thrashing earns anything. The same goes for what the grant of a metered tenant does not cover; see
//! [`crate::grant`].

use alloc::vec::Vec;

use crate::BLOCK_LEN;
use crate::charge::Split;
use crate::device::Row;
use crate::event::{End, Event};
use crate::ids::{DeviceId, Nanos, RequestId};
use crate::plan::{RowOutcome, StepReport};
use crate::request::State;
use crate::scheduler::Scheduler;
use crate::share::virtual_time;
use crate::tenant::OPERATOR_SLOT;
use crate::why::Cause;

impl Scheduler {
    /// Takes the report of a device's oldest step in flight and appends everything that happened to `events`.
    ///
    /// Device time beyond the wall time in which the step can have run is cut off: two clocks disagree, and the wall's is the one
    /// the books are kept in. False, and nothing happens, if the report is not of that step or has another number of rows: the
    /// executor and the scheduler have lost each other, and [`Scheduler::device_lost`] is the way out. The report of a step that
    /// was in flight when its device was lost is such a one, and may be dropped.
    pub fn finish_step(&mut self, now: Nanos, id: DeviceId, report: &StepReport<'_>, events: &mut Vec<Event>) -> bool {
        let Some(d) = self.device(id) else {
            return false;
        };
        let device = &mut self.devices[d];
        let expected = device.in_flight.front();
        if expected.is_none_or(|step| step.id != report.step || step.rows.len() != report.rows.len()) {
            return false;
        }
        let mut step = device.in_flight.pop_front().expect("the step was just seen");
        device.put_off = None;
        let m = step.model as usize;
        events.append(&mut self.events);
        self.requests.tick(now);

        device.tell_time(now);
        device.learn_margin(now, &step);
        let time = device.book_step(now, report.device_time);
        let cost = &device.models[m].cost;
        // The model learns from the step only after its split, so the weights add up to `total`.
        let mut total = 0;
        for row in &mut step.rows {
            row.weight = cost.weight(row.load());
            total += row.weight;
        }
        let mut split = Split::new(time, total);
        for (row, outcome) in step.rows.iter().zip(report.rows) {
            let part = split.part(row.weight);
            self.charge(d, row, *outcome, part);
            self.advance(now, d, row, *outcome);
        }

        let device = &mut self.devices[d];
        device.models[m].cost.observe(step.load, time);
        step.rows.clear();
        device.spare.push(step);
        self.end_broke(now);
        events.append(&mut self.events);
        true
    }

    /// Books a row's part of the step.
    #[inline]
    fn charge(&mut self, d: usize, row: &Row, outcome: RowOutcome, part: Nanos) {
        let Scheduler { devices, requests, tenants, events, .. } = self;
        let (device, request) = (&mut devices[d], requests.get_mut(row.slot));
        let tenant = request.tenant;
        if request.state == State::Ghost {
            device.operator += part;
            tenants.pay(row, tenant, Nanos::ZERO, events);
            return;
        }
        let redo = match outcome {
            RowOutcome::Failed => part,
            _ if request.redo_until <= row.from => Nanos::ZERO,
            // An item is computed whole.
            _ if row.is_item => part,
            _ => {
                let redo_len = (request.redo_until - row.from).min(row.len);
                Nanos((u128::from(part.0) * u128::from(redo_len) / u128::from(row.len)) as u64)
            }
        };
        let due = part - redo;
        let bill = tenants.pay(row, tenant, due, events);
        // Mostly the tenant pays for all of it.
        if bill < part {
            device.operator += redo + (due - bill);
            device.overrun += due - bill;
            match outcome {
                RowOutcome::Failed => device.failed += redo,
                _ => device.redo += redo,
            }
        }
        match tenant {
            OPERATOR_SLOT => {
                device.operator += bill;
                device.own += bill;
            }
            _ => device.tenants += bill,
        }
        request.charge += bill;
        let account = tenants.get_mut(tenant);
        account.charge += bill;
        let counted = if request.redo_free && outcome != RowOutcome::Failed { due } else { part };
        let counted = virtual_time(counted, account.weight());
        account.service.add_measured(counted);
    }

    /// Moves a row's request on.
    #[inline]
    fn advance(&mut self, now: Nanos, d: usize, row: &Row, outcome: RowOutcome) {
        let Scheduler { devices, requests, tenants, .. } = self;
        let device = &mut devices[d];
        let slot = row.slot;
        let (now_told, request) = (requests.now, requests.get_mut(slot));
        request.in_flight -= 1;
        if request.in_flight == 0 {
            let barred = device.alone.is_some_and(|alone| RequestId::new(slot, request.generation) != alone);
            request.watch.rest(now_told, tenants.get(request.tenant).is_dry(), barred);
        }
        request.drawing -= u32::from(row.samples);
        let (state, in_flight, ending) = (request.state, request.in_flight, request.ending);
        match state {
            State::Ghost | State::Ending => {
                if outcome == RowOutcome::Failed {
                    device.withdraw(requests, tenants, slot);
                }
                if in_flight == 0 {
                    match state {
                        State::Ghost => self.discard(slot),
                        _ => self.settle(now, slot, ending),
                    }
                }
                return;
            }
            State::Running | State::Draining => {}
            State::Free | State::Waiting | State::Parked => unreachable!("it has rows in flight"),
        }
        if outcome == RowOutcome::Failed {
            device.withdraw(requests, tenants, slot);
            device.leave_lane(requests, tenants, slot);
            self.settle(now, slot, End::Failed);
            return;
        }
        let m = request.model as usize;
        // Embedding rows end in the order of their items, so the count of items is enough.
        request.computed = match row.is_item {
            true => request.computed + 1,
            false => row.from + row.len,
        };
        if row.samples {
            request.known += 1;
            request.drawn += 1;
            if request.drawn == 1
                && let Some(first) = request.first.take()
            {
                // A wait for a grant, or for a device, was none of this device's, and says nothing of others' waits.
                let times = request.watch.until(now);
                let elsewhere = times.of(Cause::Quota) + times.of(Cause::Placement);
                device.waits.observe_first(&first, now.saturating_sub(request.admitted_at).saturating_sub(elsewhere));
            }
        }
        let drawn_all = request.draws_max() > 0 && request.drawn == request.draws_max();
        let computed_all = request.draws_max() == 0 && request.computed == request.limit();
        let done = outcome == RowOutcome::Finished && !row.is_item || drawn_all || computed_all;
        // Only a row that completes a block has one to publish; and most have nothing to say to those who wait for blocks.
        if row.completes_block() {
            device.publish(requests, tenants, slot);
        } else if request.published < request.computed / BLOCK_LEN {
            device.wake(requests, tenants, m);
        }
        if done {
            device.leave_lane(requests, tenants, slot);
            self.settle(now, slot, End::Finished);
            return;
        }
        match state {
            State::Draining if in_flight == 0 => device.restart(requests, tenants, slot),
            State::Draining => {}
            _ => device.hold(requests, tenants, slot),
        }
    }
}
