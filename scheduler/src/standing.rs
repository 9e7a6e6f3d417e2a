//! How tenants stand on a device: calm or short.
//!
//! A tenant with live requests on a device is *short* there if it wanted more of a step than it got, and *calm* otherwise. Calm tenants have
//! all they want: each has a row in the step, or is held back by its own limits or grant or by what it has in flight, or has just come.
//! So there are at most as many as rows and arrivals, and a step can afford to look at each. Short tenants can be any number,
//! and a step looks only at those it gets to: they are filed, per model, by virtual time, those that have running requests apart from
//! those that only have waiting ones, for when no request may start any more, the latter need not be asked.
//!
//! *Filed times lag.* A tenant's virtual time is one over all devices, and changes with every row of it anywhere. It nearly always grows; then
//! nothing is done, and who reads the least of a file brings it up to date first: a filed time is never above the true one, so
//! what is least and true is the least of all. Where a time falls (a request ends before what was held for it was used), the
//! tenant is noted in [`Tenants::lowered`], and filed anew on all devices before the next step is planned.
//!
//! *A step* lifts the calm ones, takes tenants from both kinds in the order of their times, and then notes for each that it looked at whether it
//! wanted more. Short ones that got a row stay *at hand*, out of the files: two steps are in flight, so their times change only
//! after the next step is planned, and that one mostly reaches them again. Who was at hand and gets no row is filed. A
//! short tenant that is not looked at stays short: it had something to run and nobody asked. It turns calm at once when its
//! last request leaves its lanes.
//!
//! Cost: O(calm + at hand), which is O(rows + arrivals), and O(log tenants) for each that comes to hand.

use crate::device::Device;
use crate::ids::StepId;
use crate::scheduler::Scheduler;
use crate::share::Virtual;
use crate::tenant::Tenants;
use crate::tournament::Tournament;

impl Scheduler {
    /// Files tenants anew whose virtual time has fallen.
    pub(crate) fn file_lowered(&mut self) {
        while let Some(tenant) = self.tenants.next_lowered() {
            let time = self.tenants.file(tenant);
            for model in self.devices.iter_mut().flat_map(|device| &mut device.models) {
                for file in [&mut model.short_running, &mut model.short_waiting, &mut model.kin.ahead] {
                    if file.has(tenant) {
                        file.set(tenant, time);
                    }
                }
            }
        }
    }

    /// What planning has looked at so far: tenants, requests, and levels of the trees that keep tenants in order. A measure of the
    /// cost of decisions that is the same on every machine.
    pub fn touched(&self) -> u64 {
        let of_model = |model: &crate::model::Model| {
            let files = [&model.short_running, &model.short_waiting, &model.kin.ahead];
            files.iter().map(|file| file.played).sum::<u64>() + model.pool.played()
        };
        let of_device = |device: &Device| device.touched + device.models.iter().map(of_model).sum::<u64>();
        self.devices.iter().map(of_device).sum()
    }
}

/// The tenant with the least virtual time in a file, its time being brought up to date.
pub(crate) fn least(file: &mut Tournament<Virtual>, tenants: &mut Tenants) -> Option<(Virtual, u32)> {
    loop {
        let (filed, tenant) = file.least()?;
        let time = tenants.get(tenant).service.virtual_time();
        if time == filed {
            return Some((time, tenant));
        }
        file.set(tenant, tenants.file(tenant));
    }
}

/// What a step was to a tenant that was looked at for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It wants no more than it got.
    Content,
    /// It wants more than the rows it got.
    Reached,
    /// It got none.
    PassedOver,
}

impl Device {
    /// A request of the tenant arrived.
    pub(crate) fn enter(&mut self, tenant: u32) {
        self.live += 1;
        let share = &mut self.shares[tenant as usize];
        share.live += 1;
        if share.live == 1 {
            self.weights += u64::from(share.weight);
            self.calm.set(tenant, true);
        }
    }

    /// A request of the tenant ended or went to another device. It is out of queue and lane.
    pub(crate) fn leave(&mut self, tenant: u32) {
        self.live -= 1;
        let share = &mut self.shares[tenant as usize];
        share.live -= 1;
        if share.live == 0 {
            debug_assert!(!share.short, "who has nothing is short of nothing");
            self.weights -= u64::from(share.weight);
            self.calm.set(tenant, false);
        }
    }

    /// Takes over what the tenant bought.
    pub(crate) fn set_plan(&mut self, tenants: &Tenants, tenant: u32) {
        let account = tenants.get(tenant);
        let share = &mut self.shares[tenant as usize];
        let before = core::mem::replace(&mut share.weight, account.weight());
        if share.live > 0 {
            self.weights = self.weights - u64::from(before) + u64::from(share.weight);
        }
        let serves = self.serves(account);
        for model in &mut self.models {
            model.pool.set_plan(tenant, account, serves);
        }
    }

    /// Brings the virtual clock up to date and lifts every tenant that was not short: to what was measured of the short tenant that is
    /// next, and not to what is held for it besides. A tenant lifted over the whole of a running prompt would stand behind that
    /// prompt with whatever it asks for next.
    pub(crate) fn lift(&mut self, tenants: &mut Tenants) {
        let (mut least_time, mut least_measured) = (Virtual::MAX, Virtual::MAX);
        let mut consider = |tenants: &Tenants, tenant: u32| {
            let service = &tenants.get(tenant).service;
            least_time = least_time.min(service.virtual_time());
            least_measured = least_measured.min(service.measured());
        };
        for model in &mut self.models {
            for file in [&mut model.short_running, &mut model.short_waiting] {
                if let Some((_, tenant)) = least(file, tenants) {
                    consider(tenants, tenant);
                }
            }
        }
        for tenant in self.at_hand.iter() {
            consider(tenants, tenant);
        }
        self.least = (least_time < Virtual::MAX).then_some(least_time);
        (self.level, self.clock) = match self.least {
            Some(_) => (least_time, least_measured),
            None => self.level_of_calm(tenants),
        };
        for tenant in self.calm.iter() {
            tenants.get_mut(tenant).service.lift(self.clock);
        }
        self.touched += (self.calm.len() + self.at_hand.len()) as u64;
    }

    /// The greatest virtual time of the calm, nobody being short, and what they are lifted to: that, or what it was before, so that who
    /// comes back to an idle device finds what he has used forgiven. But who is short of another device comes here with what he is owed,
    /// and those who have come with him are not lifted past him.
    fn level_of_calm(&self, tenants: &Tenants) -> (Virtual, Virtual) {
        let (mut greatest, mut owed) = (0, Virtual::MAX);
        for service in self.calm.iter().map(|tenant| &tenants.get(tenant).service) {
            greatest = greatest.max(service.virtual_time());
            owed = if service.is_short() { owed.min(service.measured()) } else { owed };
        }
        (greatest, self.clock.max(greatest).min(owed))
    }

    /// The model of the most deserving tenant that has work for a model not tried yet; of its models, the one that ran least
    /// recently, so that a long text of one model does not hold up the same tenant's work for another.
    pub(crate) fn choose_model(&mut self, tenants: &mut Tenants) -> Option<usize> {
        if let [model] = &self.models[..] {
            return (!model.tried && self.live > 0).then_some(0);
        }
        let mut best: Option<(Virtual, u32, StepId, usize)> = None;
        let mut consider = |candidate| {
            if best.is_none_or(|best| candidate < best) {
                best = Some(candidate);
            }
        };
        for (m, model) in self.models.iter_mut().enumerate().filter(|(_, model)| !model.tried) {
            for file in [&mut model.short_running, &mut model.short_waiting] {
                if let Some((time, tenant)) = least(file, tenants) {
                    consider((time, tenant, model.last_step, m));
                }
            }
        }
        for tenant in self.calm.iter().chain(self.at_hand.iter()) {
            let time = tenants.get(tenant).service.virtual_time();
            for (m, model) in self.models.iter().enumerate() {
                if !model.tried && !model.lanes[tenant as usize].is_empty() && !tenants.get(tenant).is_dry() {
                    consider((time, tenant, model.last_step, m));
                }
            }
        }
        self.touched += (self.calm.len() + self.at_hand.len()) as u64;
        best.map(|(_, _, _, m)| m)
    }

    /// Notes which of the tenants looked at wanted more than the step gives them, `planning` being the step that was, or would have been,
    /// planned. Of a step that is one request's alone nothing is noted: the others wanted no less because they were not asked.
    pub(crate) fn note_short(&mut self, tenants: &mut Tenants, planning: StepId) {
        if self.alone.is_some() {
            return;
        }
        self.touched += (self.calm.len() + self.at_hand.len()) as u64;
        let mut at = 0;
        while let Some(tenant) = self.at_hand.get(at) {
            match self.outcome(tenants, tenant, planning) {
                Outcome::Content => self.calm_down(tenants, tenant),
                Outcome::Reached => at += 1,
                Outcome::PassedOver => {
                    self.at_hand.set(tenant, false);
                    self.file_all(tenants, tenant);
                }
            }
        }
        let mut at = 0;
        while let Some(tenant) = self.calm.get(at) {
            let outcome = self.outcome(tenants, tenant, planning);
            if outcome == Outcome::Content {
                at += 1;
                continue;
            }
            self.calm.set(tenant, false);
            self.shares[tenant as usize].note_short(&mut tenants.get_mut(tenant).service, true);
            match outcome {
                Outcome::Reached => self.at_hand.set(tenant, true),
                _ => self.file_all(tenants, tenant),
            }
        }
    }

    /// Notes as short, while a step that is late keeps the device from planning, who waits here and could start: it wants more than it gets.
    pub(crate) fn note_kept(&mut self, tenants: &mut Tenants) {
        self.lift(tenants);
        let mut at = 0;
        while let Some(tenant) = self.calm.get(at) {
            let account = tenants.get(tenant);
            // One that is parked waits for another request, and not for the device.
            let waits = self.models.iter().any(|model| !model.lanes[tenant as usize].waiting.is_empty());
            if !waits || !account.may_start() || account.is_dry() {
                at += 1;
                continue;
            }
            let time = account.service.virtual_time();
            self.least = Some(self.least.map_or(time, |least| least.min(time)));
            self.calm.set(tenant, false);
            self.shares[tenant as usize].note_short(&mut tenants.get_mut(tenant).service, true);
            self.file_all(tenants, tenant);
        }
    }

    /// What the step `planning` was to the tenant.
    #[inline]
    fn outcome(&self, tenants: &Tenants, tenant: u32, planning: StepId) -> Outcome {
        let (mut wants_more, mut is_reached) = (false, false);
        for lane in self.models.iter().map(|model| &model.lanes[tenant as usize]) {
            wants_more |= !lane.is_empty() && (lane.asked != planning || lane.short);
            is_reached |= lane.reached == planning;
        }
        match is_reached {
            // What it wants is a grant, and not the device.
            _ if !wants_more || tenants.get(tenant).is_dry() => Outcome::Content,
            true => Outcome::Reached,
            false => Outcome::PassedOver,
        }
    }

    fn calm_down(&mut self, tenants: &mut Tenants, tenant: u32) {
        let share = &mut self.shares[tenant as usize];
        share.note_short(&mut tenants.get_mut(tenant).service, false);
        self.at_hand.set(tenant, false);
        self.calm.set(tenant, share.live > 0);
        for model in &mut self.models {
            model.short_running.remove(tenant);
            model.short_waiting.remove(tenant);
        }
    }

    /// Brings the lists up to date after the tenant's lane in a model has changed.
    pub(crate) fn refile(&mut self, tenants: &mut Tenants, m: usize, tenant: u32) {
        let model = &mut self.models[m];
        let lane = &model.lanes[tenant as usize];
        model.running_tenants.set(tenant, lane.runs());
        model.waiting_tenants.set(tenant, !lane.waiting.is_empty());
        if !self.shares[tenant as usize].short {
            return;
        }
        if !self.at_hand.has(tenant) {
            self.file(tenants, m, tenant);
        }
        if self.models.iter().all(|model| model.lanes[tenant as usize].is_empty()) {
            self.calm_down(tenants, tenant);
        }
    }

    fn file_all(&mut self, tenants: &mut Tenants, tenant: u32) {
        for m in 0..self.models.len() {
            self.file(tenants, m, tenant);
        }
    }

    /// Files a short tenant where its lane in a model belongs.
    fn file(&mut self, tenants: &mut Tenants, m: usize, tenant: u32) {
        let model = &mut self.models[m];
        let lane = &model.lanes[tenant as usize];
        let runs = lane.runs();
        let waits = !runs && !lane.waiting.is_empty();
        for (file, belongs) in [(&mut model.short_running, runs), (&mut model.short_waiting, waits)] {
            match (file.has(tenant), belongs) {
                (false, true) => file.set(tenant, tenants.file(tenant)),
                (true, false) => file.remove(tenant),
                _ => {}
            }
        }
    }
}
