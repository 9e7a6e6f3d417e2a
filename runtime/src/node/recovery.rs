//! After an executor's death: what it was running goes on, and what killed it is found.
//!
//! The engine knows every id of every text, and a draw is a function of the seed, the text and its place in it. So a request that
//! an executor took with it is taken up where it was, as a prompt of all that is known: at once by another device, or by the next
//! executor of the only one. Its reader notices a pause. Nothing is told twice and nothing is left out, streamed or not.
//!
//! *Who did it?* The requests with rows in the steps that the executor died in are suspects; the rest are not. Suspects
//! run one at a time, in one device's *lane*, with no other row in the step and no other step in flight, until each has
//! drawn an id (a list to embed: until its end), which takes it past the place where it was. The lane is on the device
//! with the least to do, and there is one in the node: other devices are not touched by a second death. An executor that
//! dies with the lane's first in its only step has named its killer: that request ends and is kept out, see
//! [`super::quarantine`]. So a request that kills kills twice, and nobody else ends because of it; its copies end with it.
//! First in the lane is a canary: an executor that dies of that has named nobody.
//!
//! Who comes while no executor is there waits at the door, for it is there again in a moment.
//!
//! *Bounds.* A request whose steps [`DEATHS_MAX`] executors died in is given up even if it survived each lane, and all are when
//! an executor fails to come up again and again.

use std::time::Instant;

use weir_scheduler::{Admission, DeviceId, End, ModelId, Nanos, Reject, RejectReason, RequestId, Resumption, Work};

use super::{
    Live, Node,
    device::Device,
    group::{Group, Output},
    message::GroupId,
    quarantine::Fingerprint,
};
use crate::error::FailureKind;

/// Executors that may die in a step of one request.
const DEATHS_MAX: u32 = 8;

impl Node {
    /// The device is lost to the scheduler: its requests settle as lost, which puts them where they wait for the next executor.
    pub(super) fn lose_device(&mut self, device: usize) {
        let entry = &mut self.devices[device];
        let mut dying: Vec<RequestId> =
            entry.in_flight.iter().flat_map(|step| step.rows.iter().map(|row| row.request)).collect();
        // A list has many rows in a step, and a text one in each of two.
        dying.sort_unstable();
        dying.dedup();
        let lane = std::mem::take(&mut entry.lane);
        let killer = lane.front().copied().filter(|first| dying.contains(first));
        for request in &dying {
            if let Some(live) = self.sequences.get_mut(request) {
                live.deaths += 1;
                // Who ran beside the killer was not there: the lane's first runs alone.
                live.suspect = killer.is_none();
            }
        }
        for request in &lane {
            if let Some(live) = self.sequences.get_mut(request) {
                live.suspect = true;
            }
        }
        if let Some(killer) = killer {
            self.keep_out(killer);
        }
        self.take_device(device);
    }

    /// Takes from a device all that it has, suspecting nobody.
    pub(super) fn take_device(&mut self, device: usize) {
        // Whoever stood in its lane is still a suspect.
        self.devices[device].lane.clear();
        let now = self.now();
        self.scheduler.device_lost(now, DeviceId(device as u16));
        self.settle();
    }

    /// Ends a request that brings executors down, and its like for some time.
    fn keep_out(&mut self, killer: RequestId) {
        let Some(live) = self.sequences.get(&killer) else { return };
        let Some(group) = self.groups.get(&live.group) else { return };
        let Some(fingerprint) = self.fingerprint(group) else { return };
        tracing::error!(
            model = self.models[group.model].name,
            tenant = group.tenant.0,
            "a request has brought its executor down twice, the second time alone; it is kept out"
        );
        self.quarantine.add(Instant::now(), fingerprint);
        // Its copies would do the same, one after another.
        let mut same: Vec<GroupId> =
            self.groups.values().filter(|group| self.fingerprint(group) == Some(fingerprint)).map(|g| g.id).collect();
        same.sort_unstable();
        for id in same {
            self.metrics.quarantined();
            self.fail(id, FailureKind::Quarantined, QUARANTINED);
        }
    }

    /// What a request is known by in the quarantine; nothing for the operator's own.
    fn fingerprint(&self, group: &Group) -> Option<Fingerprint> {
        let of =
            |inputs: &mut dyn Iterator<Item = &[u32]>| self.quarantine.fingerprint(group.tenant, group.model, inputs);
        match &group.output {
            Output::Vectors { inputs, .. } => Some(of(&mut inputs.iter().map(Vec::as_slice))),
            Output::Text(_) => {
                let running = group.requests.iter().filter_map(|request| self.sequences.get(request));
                let mut lives = running.chain(self.returning.iter().filter(|live| live.group == group.id));
                let prompt = lives.find_map(|live| live.sequence.as_ref())?.prompt();
                Some(of(&mut std::iter::once(prompt)))
            }
            Output::Canary { .. } => None,
        }
    }

    /// Keeps what a lost device was running; nothing if it is not to go on.
    pub(super) fn keep(&mut self, mut live: Live) -> Option<Live> {
        live.open_on = None;
        let group = self.groups.get(&live.group)?;
        if !group.is_wanted() || live.deaths >= DEATHS_MAX {
            return Some(live);
        }
        live.lost_at = Some(self.now());
        self.returning.push(live);
        None
    }

    /// Takes up what lost devices were running, suspects first, on those that are there. What only a device can do that is
    /// not there waits for it.
    pub(super) fn take_up(&mut self) {
        if self.returning.is_empty() || !self.devices.iter().any(Device::is_ready) {
            return;
        }
        let mut returning = std::mem::take(&mut self.returning);
        // In the order in which they came, for that is the order in which they waited.
        returning.sort_by_key(|live| {
            let came = self.groups.get(&live.group).map(|group| group.submitted);
            (!live.suspect, came, live.group, live.choice)
        });
        for mut live in returning {
            let Some(group) = self.groups.get_mut(&live.group) else { continue };
            if !group.is_wanted() {
                self.close(live, End::Cancelled);
                continue;
            }
            let (work, redo) = match live.sequence.as_ref() {
                Some(sequence) => (sequence.rest(), live.computed),
                None => {
                    let items = group.unembedded().unwrap_or_default();
                    if items.is_empty() {
                        self.close(live, End::Finished);
                        continue;
                    }
                    let lens = items.iter().filter_map(|&item| group.input(item)).map(|input| input.len() as u32);
                    let work = Work::Embed { lens: lens.collect() };
                    live.items = Some(items);
                    (work, 0)
                }
            };
            let admission =
                Admission { tenant: group.tenant, model: ModelId(group.model as u16), priority: group.priority, work };
            let resumption = Resumption { admission, redo, since: group.tally.since, times: live.times };
            let admitted = match live.suspect {
                true => self.admit_suspect(resumption),
                false => self.scheduler.admit_again(self.now(), None, resumption),
            };
            match admitted {
                Ok(request) => {
                    if let Some(slot) =
                        self.groups.get_mut(&live.group).and_then(|g| g.requests.get_mut(live.choice as usize))
                    {
                        *slot = request;
                    }
                    self.metrics.resumed();
                    live.lost_at = None;
                    self.sequences.insert(request, live);
                }
                Err(_) if self.devices.iter().any(|device| device.is_coming_back() || device.late) => {
                    self.returning.push(live);
                }
                Err(reject) => {
                    tracing::error!(?reject, "a request could not be taken up again");
                    self.close(live, End::Lost);
                }
            }
        }
        (0..self.devices.len()).for_each(|device| self.head_lane(device));
    }

    /// Puts a suspect into the lane of a device that can do it.
    fn admit_suspect(&mut self, resumption: Resumption) -> Result<RequestId, Reject> {
        let mut refused = Reject { reason: RejectReason::NoDevice, retry_after: Nanos(0) };
        for device in self.lane_devices() {
            match self.scheduler.admit_again(self.now(), Some(DeviceId(device as u16)), resumption.clone()) {
                Ok(request) => {
                    if self.devices[device].lane.is_empty() {
                        // An executor that cannot even do this has nothing to say about who killed the one before.
                        let canary = self.admit_canary(device);
                        self.devices[device].lane.extend(canary);
                    }
                    self.devices[device].lane.push_back(request);
                    return Ok(request);
                }
                Err(reject) => refused = reject,
            }
        }
        Err(refused)
    }

    /// The devices that suspects may run on: the one that has a lane already, then those with the least to do. The others
    /// count only for models that the first does not have.
    fn lane_devices(&self) -> Vec<usize> {
        let mut ready: Vec<usize> = (0..self.devices.len()).filter(|&device| self.devices[device].is_ready()).collect();
        ready.sort_by_key(|&device| {
            let entry = &self.devices[device];
            let live = self.scheduler.device_live(DeviceId(device as u16));
            (entry.lane.is_empty(), !entry.is_open(), live, device)
        });
        ready
    }

    /// Has the lane's first run alone, or everybody run.
    fn head_lane(&mut self, device: usize) {
        let entry = &mut self.devices[device];
        while entry.lane.front().is_some_and(|first| !self.sequences.contains_key(first)) {
            entry.lane.pop_front();
        }
        self.scheduler.run_alone(DeviceId(device as u16), entry.lane.front().copied());
    }

    /// A request has drawn an id, or ended: if it was the lane's first, it has survived.
    pub(super) fn survived(&mut self, request: RequestId) {
        for device in 0..self.devices.len() {
            if self.devices[device].lane.front() == Some(&request) {
                self.devices[device].lane.pop_front();
                if let Some(live) = self.sequences.get_mut(&request) {
                    live.suspect = false;
                }
                self.scheduler.unpin(request);
                self.head_lane(device);
            }
        }
    }

    /// Puts a suspect that waits for a grant behind those of its lane that do not, for while it is first others may run, and suspects
    /// must not be among them. True if all of the lane wait for grants.
    pub(super) fn turn_lane(&mut self, device: usize) -> bool {
        let lane = &mut self.devices[device].lane;
        if !lane.front().is_some_and(|first| self.scheduler.is_dry(*first)) {
            return false;
        }
        let Some(at) = lane.iter().position(|request| !self.scheduler.is_dry(*request)) else { return true };
        lane.rotate_left(at);
        self.head_lane(device);
        false
    }

    /// The lane's first can have no row although nothing runs. That is no proof of anything, but all others wait for it. Not if it waits for a
    /// grant: others run until that comes, and then it does, alone. What is left are its tenant's own limits, at which work on other
    /// devices may keep it. True if that makes a difference to the step, as it does if the want of a grant was found just now.
    pub(super) fn pass_over(&mut self, device: usize, was_dry: bool) -> bool {
        let entry = &mut self.devices[device];
        let stands = entry.is_ready() && entry.in_flight.is_empty();
        let Some(first) = entry.lane.front().copied().filter(|_| stands) else { return false };
        if self.scheduler.is_dry(first) {
            return !was_dry;
        }
        tracing::warn!("a suspect cannot run alone; it goes on in company");
        self.survived(first);
        true
    }

    /// Whether no device runs steps now and one is likely to soon: then newcomers wait at the door.
    pub(super) fn is_coming_back(&self) -> bool {
        let started = self.started.is_none();
        let down = !self.devices.iter().any(Device::is_open);
        started && down && self.devices.iter().any(Device::is_coming_back)
    }

    /// Lets those at the door in, who are refused if no device is there after all.
    pub(super) fn open_door(&mut self) {
        if !self.is_coming_back() {
            for submit in std::mem::take(&mut self.door) {
                self.let_in(submit);
            }
        }
    }

    /// Gives up what waits for a device that does not come back.
    pub(super) fn give_up_returning(&mut self) {
        if !self.devices.iter().any(|device| device.is_ready() || device.is_coming_back()) {
            for live in std::mem::take(&mut self.returning) {
                self.close(live, End::Lost);
            }
        }
    }

    /// Takes out what waits for a device although its reader has gone.
    pub(super) fn drop_returning(&mut self, group: GroupId) {
        let (gone, stay) = std::mem::take(&mut self.returning).into_iter().partition(|live| live.group == group);
        self.returning = stay;
        let gone: Vec<Live> = gone;
        for live in gone {
            self.close(live, End::Cancelled);
        }
    }
}

/// What the client of a quarantined request is told, then and when it comes again.
pub(super) const QUARANTINED: &str =
    "This request has brought down the process that ran it, twice. It is not run again; please report it.";
