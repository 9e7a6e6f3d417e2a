//! Devices that go and come back, and what becomes of their requests: what the runtime does after an executor's death, done here
//! (`runtime/src/node/recovery.rs`, decision 6).
//!
//! A device that dies, or whose report does not come for too long, is lost to the scheduler. What it had goes on at once elsewhere, as
//! prompts of all that is known. Requests with rows in the fatal steps are suspects and run one at a time in the lane of one device
//! until each has drawn an id, or ended; a device lost in the only step of its lane's first has named its killer, which ends.

use super::client::Client;
use super::world::{Happening, World};
use crate::admit::{Admission, Reject, RejectReason, Resumption};
use crate::event::End;
use crate::ids::{DeviceId, Nanos, RequestId, StepId};
use crate::plan::{RowOutcome, StepReport};

use alloc::vec::Vec;

/// Devices that may be lost in a step of one request.
const DEATHS_MAX: u32 = 8;

impl World<'_> {
    pub(super) fn lose(&mut self, d: usize, outage: Nanos) {
        if !self.machines[d].up {
            return;
        }
        self.outcome.incidents.losses += 1;
        let machine = &mut self.machines[d];
        let mut dying: Vec<RequestId> =
            machine.queue.iter().flat_map(|plan| plan.rows.iter().map(|row| row.request)).collect();
        dying.sort_unstable();
        dying.dedup();
        let lane = core::mem::take(&mut machine.lane);
        machine.up = false;
        machine.idle_since = None;
        machine.spare.extend(machine.queue.drain(..));
        let killer = lane.front().copied().filter(|first| dying.contains(first));
        for request in dying {
            if let Some(client) = self.clients.get_mut(request) {
                client.deaths += 1;
                client.suspect = killer.is_none();
                client.killer = killer == Some(request);
            }
        }
        for request in lane {
            if let Some(client) = self.clients.get_mut(request) {
                client.suspect = true;
            }
        }
        self.scheduler.device_lost(self.now, DeviceId(d as u16));
        self.hear();
        self.plan(self.now + outage, Happening::Back(d));
        self.take_up();
    }

    /// The report of a step has not come.
    pub(super) fn give_up(&mut self, d: usize, step: StepId) {
        if self.machines[d].queue.front().is_some_and(|plan| plan.step == step) {
            self.outcome.incidents.lost_reports += 1;
            self.lose(d, self.scenario.faults.outage);
        }
    }

    /// A report that comes too late is known as that and changes nothing.
    pub(super) fn hear_late(&mut self, d: usize, step: StepId, rows: usize) {
        let rows = alloc::vec![RowOutcome::Advanced; rows];
        let report = StepReport { step, device_time: Nanos::from_secs(1), rows: &rows };
        assert!(!self.scheduler.finish_step(self.now, DeviceId(d as u16), &report, &mut self.events));
    }

    pub(super) fn drain(&mut self, d: usize) {
        self.outcome.incidents.drains += u64::from(self.machines[d].up);
        self.scheduler.drain_device(DeviceId(d as u16));
        self.machines[d].closed = true;
    }

    pub(super) fn resume(&mut self, d: usize) {
        self.scheduler.resume_device(DeviceId(d as u16));
        self.machines[d].closed = false;
        self.take_up();
    }

    /// Whether a request that a lost device had goes on.
    pub(super) fn keeps(&self, client: &Client) -> bool {
        !client.killer && client.deaths < DEATHS_MAX
    }

    /// Takes up what lost devices had, suspects first, on those that are there. What only a device can do that is not there
    /// waits for it.
    pub(super) fn take_up(&mut self) {
        if self.returning.is_empty() || !self.machines.iter().any(|machine| machine.up) {
            return;
        }
        let mut returning = core::mem::take(&mut self.returning);
        returning.sort_by_key(|client| (!client.suspect, client.came_at, client.number));
        for mut client in returning {
            let source = &self.scenario.sources[client.source];
            if client.cancel_at.is_some_and(|at| at <= self.now) {
                self.close(client, End::Cancelled);
                continue;
            }
            client.before += core::mem::take(&mut client.run) * u32::from(client.is_list());
            let admission = Admission {
                tenant: source.tenant,
                model: source.model,
                priority: source.priority,
                work: client.rest(),
            };
            let redo = if client.is_list() { 0 } else { client.computed };
            let resumption = Resumption { admission, redo, since: client.came_at, times: client.times };
            let admitted = match client.suspect {
                true => self.admit_suspect(resumption),
                false => self.scheduler.admit_again(self.now, None, resumption),
            };
            match admitted {
                Ok(id) => {
                    (client.id, client.planned, client.runs) = (id, 0, false);
                    if let Some(at) = client.cancel_at {
                        self.plan(at, Happening::Cancel(id));
                    }
                    self.outcome.incidents.resumed += 1;
                    self.clients.insert(client);
                }
                Err(_) if self.machines.iter().any(|machine| !machine.up || machine.closed) => {
                    self.returning.push(client);
                }
                Err(_) => self.close(client, End::Lost),
            }
        }
        self.head_lanes();
    }

    /// Puts a suspect into the lane of a device that can do it: where one is already, or where there is least to do.
    fn admit_suspect(&mut self, resumption: Resumption) -> Result<RequestId, Reject> {
        let mut refused = Reject { reason: RejectReason::NoDevice, retry_after: Nanos::ZERO };
        let mut up: Vec<usize> = (0..self.machines.len()).filter(|&d| self.machines[d].up).collect();
        up.sort_by_key(|&d| {
            let machine = &self.machines[d];
            (machine.lane.is_empty(), machine.closed, self.scheduler.device_live(DeviceId(d as u16)), d)
        });
        for d in up {
            match self.scheduler.admit_again(self.now, Some(DeviceId(d as u16)), resumption.clone()) {
                Ok(id) => {
                    self.machines[d].lane.push_back(id);
                    return Ok(id);
                }
                Err(reject) => refused = reject,
            }
        }
        Err(refused)
    }

    /// Has the first of each lane run alone, or everybody run.
    pub(super) fn head_lanes(&mut self) {
        for (d, machine) in self.machines.iter_mut().enumerate().filter(|(_, machine)| !machine.lane.is_empty()) {
            while machine.lane.front().is_some_and(|first| self.clients.get(*first).is_none()) {
                machine.lane.pop_front();
            }
            self.scheduler.run_alone(DeviceId(d as u16), machine.lane.front().copied());
        }
    }

    /// Puts a suspect that waits for a grant behind those of its lane that do not, for while it is first others may run, and suspects
    /// must not be among them. True if all of the lane wait for grants.
    pub(super) fn turn_lane(&mut self, d: usize) -> bool {
        let lane = &mut self.machines[d].lane;
        if !lane.front().is_some_and(|first| self.scheduler.is_dry(*first)) {
            return false;
        }
        let Some(at) = lane.iter().position(|id| !self.scheduler.is_dry(*id)) else { return true };
        lane.rotate_left(at);
        self.head_lanes();
        false
    }

    /// The first of a lane has drawn an id.
    pub(super) fn survive(&mut self, d: usize, id: RequestId) {
        if let Some(client) = self.clients.get_mut(id) {
            client.suspect = false;
        }
        self.scheduler.unpin(id);
        if self.machines[d].lane.front() == Some(&id) {
            self.machines[d].lane.pop_front();
            self.scheduler.run_alone(DeviceId(d as u16), self.machines[d].lane.front().copied());
        }
    }

    /// The lane's first can have no row although nothing runs: it goes on in company. Not if it waits for a grant: others run until
    /// that comes, and then it does, alone. What is left are its tenant's own limits, at which work on other devices may keep it. True if
    /// that makes a difference to the step, as it does if the want of a grant was found just now.
    pub(super) fn pass_over(&mut self, d: usize, was_dry: bool) -> bool {
        let machine = &self.machines[d];
        if !machine.is_idle() || machine.lane.is_empty() {
            return false;
        }
        match machine.lane.front().copied() {
            Some(first) if self.scheduler.is_dry(first) => return !was_dry,
            Some(first) if self.clients.get(first).is_some() => {
                self.outcome.incidents.passed_over += 1;
                self.survive(d, first);
            }
            _ => self.head_lanes(),
        }
        true
    }
}
