//! What can be asked about requests, while they run and for some time after.
//!
//! A request is found by the ids that its client knows: the header's and the answer's. Each tenant has a table of its own, so
//! that another tenant's id is not found any more than one that never was, and the number of ended requests that are kept for a tenant
//! does not depend on what others do. Of an ended request only its figures are kept, not its text.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use weir_scheduler::{Cause, Nanos, TenantId, Times};

use super::{
    Live, Node,
    group::Group,
    message::{GroupId, SubmitWork},
};
use crate::{
    numbers::NumberMap,
    why::{Explanation, Names, Place, RequestState},
};

/// Ended requests that can still be asked for, over all tenants; each has an equal part of it for itself.
const ENDED_LEN_MAX: usize = 8192;
/// And at least so many.
const ENDED_LEN_MIN: usize = 32;

/// What is counted of a group while it runs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// When the scheduler accepted it, on the node's clock.
    pub(crate) since: Nanos,
    /// Time that it waited at the door before.
    door: Nanos,
    /// Times of the slowest of its parts that have ended.
    times: Option<Times>,
    preemptions: u32,
}

impl Tally {
    /// A part of it has ended.
    pub(super) fn part_ended(&mut self, live: &Live) {
        self.preemptions += live.preemptions;
        let slower = self.times.is_none_or(|times| times.total() < live.times.total());
        self.times = if slower { Some(live.times) } else { self.times };
    }

    fn with_door(&self, mut times: Times) -> Times {
        times.add(Cause::Placement, self.door);
        times
    }
}

/// What is left of requests that have ended.
#[derive(Debug, Clone, Copy)]
struct Ended {
    state: RequestState,
    times: Times,
    device_nanos: u64,
    preemptions: u32,
    cached_tokens: u32,
}

impl Ended {
    fn of(group: &Group) -> Ended {
        Ended {
            state: match (group.failed, group.cancelled) {
                (true, _) => RequestState::Failed,
                (false, true) => RequestState::Cancelled,
                (false, false) => RequestState::Finished,
            },
            times: group.tally.with_door(group.tally.times.unwrap_or_default()),
            device_nanos: group.usage.device_nanos,
            preemptions: group.tally.preemptions,
            cached_tokens: group.usage.cached_tokens,
        }
    }

    /// Both, as one request.
    fn with(self, other: Ended) -> Ended {
        let slowest = if other.times.total() > self.times.total() { other } else { self };
        let good = |state| state == RequestState::Finished;
        Ended {
            state: if good(self.state) { other.state } else { self.state },
            times: slowest.times,
            device_nanos: self.device_nanos + other.device_nanos,
            preemptions: self.preemptions + other.preemptions,
            cached_tokens: self.cached_tokens.saturating_add(other.cached_tokens),
        }
    }
}

/// One request of a client.
#[derive(Debug)]
struct Record {
    request: Arc<str>,
    answer: Option<Arc<str>>,
    model: usize,
    created: u64,
    parts: u32,
    /// Its groups that run: one for each of its prompts.
    live: Vec<GroupId>,
    /// Those that have ended, as one.
    ended: Option<Ended>,
    /// It is in the table's list of those that have ended.
    listed: bool,
}

/// One tenant's requests, by number and by id.
#[derive(Debug, Default)]
struct Table {
    records: NumberMap<u64, Record>,
    ids: HashMap<Arc<str>, u64>,
    /// Those that have ended, the oldest first.
    ended: VecDeque<u64>,
}

impl Table {
    fn remove(&mut self, number: u64) {
        let Some(record) = self.records.remove(&number) else { return };
        for id in [Some(record.request), record.answer].into_iter().flatten() {
            // A later request may have taken the id over.
            if self.ids.get(&id) == Some(&number) {
                self.ids.remove(&id);
            }
        }
    }
}

/// Every request that can be asked for.
#[derive(Debug)]
pub(super) struct Records {
    tables: NumberMap<TenantId, Table>,
    groups: NumberMap<GroupId, (TenantId, u64)>,
    numbers: u64,
    ended_len_max: usize,
}

impl Records {
    pub(super) fn new(tenants: usize) -> Records {
        let mut records =
            Records { tables: NumberMap::default(), groups: NumberMap::default(), numbers: 0, ended_len_max: 0 };
        records.share_among(tenants);
        records
    }

    /// There are so many tenants by now. What is above the part of one goes when its next request ends.
    pub(super) fn share_among(&mut self, tenants: usize) {
        self.ended_len_max = (ENDED_LEN_MAX / tenants.max(1)).max(ENDED_LEN_MIN);
    }

    /// A group of a request is there, as one more of its parts, or as its first.
    pub(super) fn begin(&mut self, group: GroupId, tenant: TenantId, names: &Names, model: usize, parts: u32) {
        if self.groups.contains_key(&group) {
            return;
        }
        let table = self.tables.entry(tenant).or_default();
        let known = names.answer.as_deref().and_then(|answer| table.ids.get(answer)).copied();
        let number = known.unwrap_or_else(|| {
            self.numbers += 1;
            let request: Arc<str> = names.request.as_str().into();
            let answer: Option<Arc<str>> = names.answer.as_deref().map(Arc::from);
            for id in [Some(request.clone()), answer.clone()].into_iter().flatten() {
                table.ids.insert(id, self.numbers);
            }
            let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
            let record =
                Record { request, answer, model, created, parts: 0, live: Vec::new(), ended: None, listed: false };
            table.records.insert(self.numbers, record);
            self.numbers
        });
        self.groups.insert(group, (tenant, number));
        if let Some(record) = table.records.get_mut(&number) {
            record.live.push(group);
            record.parts += parts;
        }
    }

    /// The group was not accepted.
    pub(super) fn refused(&mut self, group: GroupId) {
        self.leave(group, None);
    }

    fn ended(&mut self, group: GroupId, ended: Ended) {
        self.leave(group, Some(ended));
    }

    fn leave(&mut self, group: GroupId, ended: Option<Ended>) {
        let Some((tenant, number)) = self.groups.remove(&group) else { return };
        let Some(table) = self.tables.get_mut(&tenant) else { return };
        let Some(record) = table.records.get_mut(&number) else { return };
        record.live.retain(|live| *live != group);
        record.ended = match (record.ended, ended) {
            (Some(before), Some(ended)) => Some(before.with(ended)),
            (before, ended) => before.or(ended),
        };
        if !record.live.is_empty() {
            return;
        }
        match record.ended {
            None => table.remove(number),
            Some(_) if record.listed => {}
            Some(_) => {
                record.listed = true;
                table.ended.push_back(number);
            }
        }
        while table.ended.len() > self.ended_len_max {
            let oldest = table.ended.pop_front();
            // One whose next prompt came after the last had ended runs again, and will end again.
            let Some(record) = oldest.and_then(|oldest| table.records.get_mut(&oldest)) else { continue };
            record.listed = false;
            if let Some(gone) = oldest.filter(|_| record.live.is_empty()) {
                table.remove(gone);
            }
        }
    }

    /// A tenant's request, or anybody's if no tenant is named.
    fn find(&self, tenant: Option<TenantId>, id: &str) -> Option<(TenantId, &Record)> {
        let look = |tenant: TenantId, table: &'_ Table| Some((tenant, *table.ids.get(id)?));
        let (tenant, number) = match tenant {
            Some(tenant) => look(tenant, self.tables.get(&tenant)?),
            None => self.tables.iter().filter_map(|(tenant, table)| look(*tenant, table)).max_by_key(|found| found.1),
        }?;
        Some((tenant, self.tables.get(&tenant)?.records.get(&number)?))
    }
}

/// How one part of a request stands.
struct Part {
    state: RequestState,
    cause: Option<Cause>,
    place: Option<Place>,
    times: Times,
}

impl Part {
    /// The greater, the longer its request has to wait for it.
    fn slowness(&self) -> (bool, bool, u32, Nanos) {
        let waits = self.state == RequestState::Waiting;
        (waits, self.cause.is_some(), self.place.map_or(0, |place| place.position), self.times.total())
    }

    /// One that has no device.
    fn stranded(mut times: Times, since: Nanos, now: Nanos) -> Part {
        times.add(Cause::Placement, now.saturating_sub(since));
        Part { state: RequestState::Waiting, cause: Some(Cause::Placement), place: None, times }
    }
}

impl Node {
    /// A group was accepted, `came` being when it was put off at the door.
    pub(super) fn follow(&mut self, group: GroupId, names: &Names, since: Nanos, came: Option<Nanos>) {
        let Some(entry) = self.groups.get_mut(&group) else { return };
        entry.tally.since = since;
        entry.tally.door = came.map_or(Nanos::ZERO, |came| since.saturating_sub(came));
        self.records.begin(group, entry.tenant, names, entry.model, entry.requests.len() as u32);
    }

    /// A group has ended.
    pub(super) fn explain_end(&mut self, group: &Group) {
        self.records.ended(group.id, Ended::of(group));
    }

    /// Where a request's time went; nothing if the tenant has none of that id.
    pub(super) fn why(&self, tenant: Option<TenantId>, id: &str) -> Option<Explanation> {
        let (tenant, record) = self.records.find(tenant, id)?;
        let now = self.now();
        let ended = record.ended;
        let mut parts: Vec<Part> = Vec::new();
        parts.extend(ended.map(|ended| Part { state: ended.state, cause: None, place: None, times: ended.times }));
        let mut device_nanos = ended.map_or(0, |ended| ended.device_nanos);
        let mut preemptions = ended.map_or(0, |ended| ended.preemptions);
        let mut cached_tokens = ended.map_or(0, |ended| ended.cached_tokens);
        for id in &record.live {
            let Some(group) = self.groups.get(id) else {
                let came = self.door.iter().find(|submit| submit.group == *id).and_then(|submit| submit.came);
                parts.push(Part::stranded(Times::default(), came.unwrap_or(now), now));
                continue;
            };
            device_nanos += group.usage.device_nanos;
            preemptions += group.tally.preemptions;
            cached_tokens = cached_tokens.saturating_add(group.usage.cached_tokens);
            let tally = &group.tally;
            for live in self.returning.iter().filter(|live| live.group == *id) {
                preemptions += live.preemptions;
                let times = tally.with_door(live.times);
                parts.push(Part::stranded(times, live.lost_at.unwrap_or(now), now));
            }
            for request in &group.requests {
                let Some(why) = self.scheduler.why(now, *request) else { continue };
                let live = self.sequences.get(request);
                device_nanos += why.charge.saturating_sub(live.map_or(Nanos(0), |live| live.booked)).0;
                preemptions += why.preemptions + live.map_or(0, |live| live.preemptions);
                let place = why.queued.map(|queued| Place {
                    position: queued.position,
                    tenants_ahead: queued.tenants_ahead,
                    expected_start: Duration::from_nanos(queued.expected_start.0),
                });
                let state = if place.is_some() { RequestState::Waiting } else { RequestState::Running };
                parts.push(Part { state, cause: Some(why.cause), place, times: tally.with_door(why.times) });
            }
        }
        let slowest = parts.into_iter().max_by_key(Part::slowness)?;
        Some(Explanation {
            tenant,
            model: self.models.get(record.model).map(|model| model.name.clone()).unwrap_or_default(),
            created: record.created,
            state: slowest.state,
            cause: slowest.cause,
            place: slowest.place,
            times: slowest.times,
            parts: record.parts,
            device_nanos,
            preemptions,
            cached_tokens,
        })
    }
}

/// Choices or lists that the work is made of.
pub(super) fn parts_of(work: &SubmitWork) -> u32 {
    match work {
        SubmitWork::Generate { choices, .. } => choices.len() as u32,
        SubmitWork::Embed { .. } => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: TenantId = TenantId(1);
    const THEIRS: TenantId = TenantId(2);

    fn names(request: &str, answer: Option<&str>) -> Names {
        Names { request: request.into(), answer: answer.map(str::to_owned), key: "".into(), bill: None }
    }

    fn ended(millis: u64, state: RequestState) -> Ended {
        let mut times = Times::default();
        times.add(Cause::Share, Nanos::from_millis(millis));
        Ended { state, times, device_nanos: 5, preemptions: 1, cached_tokens: 0 }
    }

    fn found(records: &Records, tenant: TenantId, id: &str) -> Option<u64> {
        let record = records.find(Some(tenant), id)?.1;
        Some(record.ended.map_or(0, |ended| ended.times.total().0 / 1_000_000))
    }

    #[test]
    fn a_request_is_found_by_both_ids_and_by_its_tenant_only() {
        let mut records = Records::new(2);
        records.begin(GroupId(1), MINE, &names("req-1", Some("chatcmpl-1")), 0, 1);
        records.begin(GroupId(2), THEIRS, &names("req-1", Some("chatcmpl-2")), 0, 1);
        records.ended(GroupId(1), ended(3, RequestState::Finished));
        assert_eq!(found(&records, MINE, "req-1"), Some(3));
        assert_eq!(found(&records, MINE, "chatcmpl-1"), Some(3));
        assert_eq!(found(&records, THEIRS, "req-1"), Some(0));
        assert_eq!(found(&records, THEIRS, "chatcmpl-1"), None);
        assert_eq!(found(&records, TenantId(9), "req-1"), None);
        assert_eq!(records.find(None, "chatcmpl-2").map(|found| found.0), Some(THEIRS));
    }

    #[test]
    fn prompts_of_one_answer_are_one_request_even_if_one_ends_before_the_next_comes() {
        let mut records = Records::new(1);
        let both = names("req-1", Some("cmpl-1"));
        records.begin(GroupId(1), MINE, &both, 0, 2);
        records.ended(GroupId(1), ended(7, RequestState::Finished));
        records.begin(GroupId(2), MINE, &both, 0, 2);
        records.ended(GroupId(2), ended(4, RequestState::Cancelled));
        let (_, record) = records.find(Some(MINE), "cmpl-1").expect("known");
        let both = record.ended.expect("ended");
        assert_eq!((record.parts, both.state, both.device_nanos), (4, RequestState::Cancelled, 10));
        assert_eq!(both.times.total(), Nanos::from_millis(7));
    }

    #[test]
    fn a_reused_id_names_the_latest_and_outlives_the_earlier() {
        let mut records = Records::new(1);
        records.ended_len_max = 1;
        records.begin(GroupId(1), MINE, &names("same", None), 0, 1);
        records.ended(GroupId(1), ended(1, RequestState::Finished));
        records.begin(GroupId(2), MINE, &names("same", None), 0, 1);
        records.ended(GroupId(2), ended(2, RequestState::Finished));
        assert_eq!(found(&records, MINE, "same"), Some(2));
        records.begin(GroupId(3), MINE, &names("refused", None), 0, 1);
        records.refused(GroupId(3));
        assert_eq!(found(&records, MINE, "refused"), None);
    }

    #[test]
    fn each_tenant_keeps_its_own_last_requests() {
        let mut records = Records::new(2);
        records.ended_len_max = 3;
        let mut run = |tenant, n: u64| {
            records.begin(GroupId(n), tenant, &names(&format!("req-{n}"), None), 0, 1);
            records.ended(GroupId(n), ended(n, RequestState::Finished));
        };
        run(THEIRS, 1);
        (10..20).for_each(|n| run(MINE, n));
        assert_eq!(found(&records, THEIRS, "req-1"), Some(1));
        assert_eq!([16, 17, 19].map(|n| found(&records, MINE, &format!("req-{n}"))), [None, Some(17), Some(19)]);
        let table = &records.tables[&MINE];
        assert_eq!((table.records.len(), table.ids.len(), table.ended.len()), (3, 3, 3));
        assert!(records.groups.is_empty());
    }
}
