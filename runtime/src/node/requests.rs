//! Requests in the engine thread: admitted, cancelled, settled. Each gets exactly one ending.

use std::time::{Duration, Instant};

use weir_scheduler::{Admission, Cause, End, Event, Nanos, Reject, RejectReason, RequestId, TenantId, Times, Work};

use super::{
    Live, Node,
    books::Bill,
    group::{Group, Output},
    message::{GroupId, Submit, SubmitWork},
    quotas::QUOTA_SPENT,
    record::Recorded,
    recovery,
    sequence::Sequence,
    why::{self, Tally},
};
use crate::{
    error::{FailureKind, SubmitError},
    metrics::Outcome,
    outlet::Outlet,
    submission::Usage,
};

impl Node {
    /// Takes a request out of the inbox.
    pub(super) fn let_in(&mut self, submit: Submit) {
        self.status.left_inbox();
        self.admit(submit);
    }

    /// Has a request wait at the door.
    pub(super) fn put_off(&mut self, mut submit: Submit) {
        submit.came = Some(self.now());
        let (model, parts) = (submit.model.0 as usize, why::parts_of(&submit.work));
        self.records.begin(submit.group, submit.tenant, &submit.names, model, parts);
        self.door.push_back(submit);
    }

    fn admit(&mut self, submit: Submit) {
        let Submit { group, tenant, model, work, priority, names, came, accepted } = submit;
        let now = self.now();
        let model_index = model.0 as usize;
        if !self.books.take_newcomers() {
            self.metrics.ended(Outcome::Rejected);
            self.records.refused(group);
            let _ = accepted.send(Err(SubmitError::LedgerUnavailable));
            return;
        }
        if self.is_kept_out(tenant, model_index, &work) {
            self.metrics.ended(Outcome::Rejected);
            self.records.refused(group);
            let message = recovery::QUARANTINED.into();
            let _ =
                accepted.send(Err(SubmitError::Invalid { message, param: None, code: Some("request_quarantined") }));
            return;
        }
        let prompt_tokens;
        let (admissions, sequences, output) = match work {
            SubmitWork::Generate { choices, prompt, hashes, chain, outbox } => {
                let admissions = choices
                    .iter()
                    .map(|spec| {
                        let work = Work::Generate {
                            prompt_len: prompt.len() as u32,
                            new_tokens_max: spec.new_tokens_max,
                            hashes: hashes.clone(),
                        };
                        Admission { tenant, model, priority, work }
                    })
                    .collect::<Vec<_>>();
                let named = (chain, hashes);
                let sequences: Vec<Option<Sequence>> =
                    choices.into_iter().map(|spec| Some(Sequence::new(spec, &prompt, Some(named.clone())))).collect();
                prompt_tokens = prompt.len() as u32;
                (admissions, sequences, Output::Text(Outlet::new(outbox)))
            }
            SubmitWork::Embed { inputs, reply } => {
                let lens: Vec<u32> = inputs.iter().map(|input| input.len() as u32).collect();
                prompt_tokens = lens.iter().sum();
                let vectors = vec![Vec::new(); inputs.len()];
                let admission = Admission { tenant, model, priority, work: Work::Embed { lens } };
                (vec![admission], vec![None], Output::Vectors { inputs, vectors, reply: Some(reply) })
            }
        };
        match self.scheduler.admit_group(now, admissions) {
            Ok(requests) => {
                self.register(group, tenant, model_index, output, &requests, sequences, prompt_tokens);
                let name = names.answer.clone().unwrap_or_else(|| names.request.clone());
                let bill = self.books.open(tenant, names.key.clone(), name, names.bill.clone());
                if let Some(group) = self.groups.get_mut(&group) {
                    (group.priority, group.bill) = (priority, bill);
                }
                self.follow(group, &names, now, came);
                if accepted.send(Ok(())).is_err() {
                    self.cancel(group);
                }
            }
            Err(reject) => {
                if reject.reason == RejectReason::QuotaSpent {
                    self.leases.was_refused(tenant);
                }
                self.metrics.ended(Outcome::Rejected);
                self.records.refused(group);
                self.record_refusal((tenant, model_index, priority), prompt_tokens, &output, &sequences);
                let _ = accepted.send(Err(refusal(reject)));
            }
        }
    }

    /// Whether a request like this one has been killing executors.
    fn is_kept_out(&mut self, tenant: TenantId, model: usize, work: &SubmitWork) -> bool {
        if self.quarantine.is_empty(Instant::now()) {
            return false;
        }
        self.quarantine.holds(match work {
            SubmitWork::Generate { prompt, .. } => {
                self.quarantine.fingerprint(tenant, model, std::iter::once(&prompt[..]))
            }
            SubmitWork::Embed { inputs, .. } => {
                self.quarantine.fingerprint(tenant, model, inputs.iter().map(Vec::as_slice))
            }
        })
    }

    #[expect(clippy::too_many_arguments, reason = "a constructor's fields, from two callers")]
    pub(super) fn register(
        &mut self,
        id: GroupId,
        tenant: TenantId,
        model: usize,
        output: Output,
        requests: &[RequestId],
        sequences: Vec<Option<Sequence>>,
        prompt_tokens: u32,
    ) {
        for (choice, (&request, sequence)) in requests.iter().zip(sequences).enumerate() {
            let live = Live {
                group: id,
                choice: choice as u32,
                sequence,
                last_token: None,
                started: false,
                items: None,
                computed: 0,
                open_on: None,
                booked: Nanos::ZERO,
                deaths: 0,
                suspect: false,
                times: Times::default(),
                preemptions: 0,
                lost_at: None,
            };
            self.sequences.insert(request, live);
        }
        let group = Group {
            id,
            tenant,
            model,
            priority: 0,
            output,
            requests: requests.to_vec(),
            open: requests.len(),
            usage: Usage { prompt_tokens, ..Usage::default() },
            failed: false,
            cancelled: false,
            started: false,
            cut: Vec::new(),
            submitted: Instant::now(),
            first_token: None,
            tally: Tally::default(),
            recorded: Recorded::default(),
            bill: Bill::default(),
        };
        self.groups.insert(id, group);
    }

    pub(super) fn cancel(&mut self, id: GroupId) {
        let now = self.now();
        if let Some(at) = self.door.iter().position(|submit| submit.group == id) {
            self.door.remove(at);
            self.records.refused(id);
            self.status.left_inbox();
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.cancelled = true;
        for &request in &group.requests {
            self.scheduler.cancel(now, request);
        }
        self.drop_returning(id);
    }

    pub(super) fn fail(&mut self, group: GroupId, kind: FailureKind, message: &str) {
        if self.groups.get_mut(&group).is_some_and(|entry| entry.fail(kind, message)) {
            self.metrics.ended(Outcome::Failed);
        }
        self.cancel(group);
    }

    /// Applies what the scheduler says has happened.
    pub(super) fn settle(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        // What is granted or given back has consequences of its own.
        loop {
            self.scheduler.take_events(&mut events);
            if events.is_empty() {
                break;
            }
            for event in events.drain(..) {
                match event {
                    Event::Started { request, cached_tokens } => {
                        // Taken up again, a request has started before.
                        if let Some(live) = self.sequences.get_mut(&request)
                            && !std::mem::replace(&mut live.started, true)
                            && let Some(group) = self.groups.get_mut(&live.group)
                        {
                            self.metrics.started(group.submitted.elapsed());
                            group.started = true;
                            group.usage.cached_tokens = group.usage.cached_tokens.max(cached_tokens);
                        }
                    }
                    Event::Preempted { .. } => self.metrics.preempted(),
                    Event::GrantLow { tenant, wanted, .. } => self.ask_lease(tenant, wanted),
                    Event::GrantReturned { tenant, epoch, amount } => self.return_lease(tenant, epoch, amount),
                    Event::Moved { request, from, charge } => self.book(request, from, charge),
                    Event::Settled { request, end, device, charge, times, preemptions, .. } => {
                        self.book(request, device, charge);
                        if let Some(live) = self.sequences.get_mut(&request) {
                            // It may go on under another id.
                            live.booked = Nanos::ZERO;
                            live.times = times;
                            live.preemptions += preemptions;
                        }
                        self.settled(request, end);
                    }
                }
            }
        }
        self.events = events;
    }

    fn settled(&mut self, request: RequestId, end: End) {
        let Some(mut live) = self.sequences.remove(&request) else { return };
        self.survived(request);
        if end == End::Lost {
            match self.keep(live) {
                None => return,
                Some(back) => live = back,
            }
            return self.close(live, end);
        }
        if let Some(group) = self.groups.get(&live.group) {
            self.forget_sequence(live.open_on, group.model, request);
        }
        self.close(live, end);
    }

    /// Has the executor that holds a sequence, if it is still that one, forget it with its next step.
    pub(super) fn forget_sequence(&mut self, open_on: Option<(usize, u64)>, model: usize, request: RequestId) {
        if let Some((device, epoch)) = open_on
            && let Some(entry) = self.devices.get_mut(device).filter(|entry| entry.epoch == epoch)
        {
            entry.close[model].push(request.0);
        }
    }

    /// One choice has ended for good; with the last, the request has.
    pub(super) fn close(&mut self, mut live: Live, end: End) {
        if end == End::Quota {
            self.cut(&mut live);
        }
        let now = self.now();
        let Some(group) = self.groups.get_mut(&live.group) else { return };
        group.open -= 1;
        if let Some(lost_at) = live.lost_at {
            live.times.add(Cause::Placement, now.saturating_sub(lost_at));
        }
        group.tally.part_ended(&live);
        if !group.is_canary() {
            self.metrics.waited(&live.times);
        }
        if let Some(sequence) = &live.sequence {
            group.usage.completion_tokens += sequence.drawn();
            group.recorded.choice(sequence);
        }
        let mut rest_is_lost = false;
        let failure = match end {
            End::Lost => Some((FailureKind::ExecutorLost, "The device running this request was lost")),
            End::NeverFits => {
                Some((FailureKind::NeverFits, "Your plan was changed, and leaves too little memory for this"))
            }
            _ => None,
        };
        if let Some((kind, message)) = failure.filter(|_| !group.cancelled) {
            rest_is_lost = group.open > 0;
            if group.fail(kind, message) {
                self.metrics.ended(Outcome::Failed);
            }
        }
        let id = group.id;
        if rest_is_lost {
            // Its reader has been told: nobody waits for the other choices.
            return self.cancel(id);
        }
        if self.groups.get(&id).is_some_and(|group| group.open == 0 && !group.cut.is_empty()) {
            self.end_cut(id);
        }
        let Some(group) = self.groups.get_mut(&id).filter(|group| group.open == 0) else { return };
        if !group.failed {
            let outcome = match (group.cancelled, group.is_canary()) {
                (true, _) => Outcome::Cancelled,
                (false, true) => Outcome::Canary,
                (false, false) if !group.cut.is_empty() => Outcome::Quota,
                (false, false) => Outcome::Completed,
            };
            self.metrics.ended(outcome);
            if matches!(outcome, Outcome::Completed | Outcome::Quota) {
                self.metrics.completed(group.submitted.elapsed(), group.usage);
            }
        }
        if let Some(mut group) = self.groups.remove(&id) {
            self.explain_end(&group);
            self.settle_bill(&mut group);
            self.record_end(group);
        }
    }
}

/// Tells the caller why the scheduler did not take a request.
fn refusal(reject: Reject) -> SubmitError {
    let retry_after = Duration::from_nanos(reject.retry_after.0);
    let busy = |message: &str, tenant_limit| SubmitError::Busy { message: message.into(), retry_after, tenant_limit };
    match reject.reason {
        RejectReason::TenantQueueFull => busy("Too many requests of yours are waiting", true),
        RejectReason::QuotaSpent => SubmitError::QuotaSpent { message: QUOTA_SPENT.into(), retry_after },
        RejectReason::QueueFull => busy("The server has too many requests waiting", false),
        RejectReason::NoDevice => busy("The model's device is not available at present", false),
        RejectReason::TargetUnmet if reject.retry_after == Nanos::ZERO => SubmitError::Invalid {
            message:
                "The prompt takes longer than your plan's target for the first token, even with the device to itself"
                    .into(),
            param: None,
            code: Some("latency_target_unmet"),
        },
        RejectReason::TargetUnmet => SubmitError::TargetUnmet {
            message: "The first token is not expected within your plan's target at present".into(),
            retry_after,
        },
        RejectReason::Draining => SubmitError::Draining,
        RejectReason::ContextTooLong | RejectReason::NeverFits => SubmitError::ContextTooLong {
            message: "The request is longer than the memory of the model's device allows".into(),
            param: "messages",
        },
        RejectReason::InputTooLong => SubmitError::ContextTooLong {
            message: "An input is longer than a step of the model can hold".into(),
            param: "input",
        },
        // Whoever asks knows the model, so it is a device that lost it and could not load it again.
        RejectReason::UnknownModel => busy("The model is not available at present", false),
        RejectReason::UnknownTenant => SubmitError::Internal { message: "The server's tables disagree".into() },
    }
}
