//! What came of a load: what each tenant saw of it, what each device did.

use serde::Serialize;
use weir_scheduler::sim::{Diary, Entry, Outcome, Scenario, Watch};
use weir_scheduler::{End, Nanos, TenantId};

use super::{
    load::Load,
    recorded::{RecordedEnd, RecordedRequest},
    trace::Trace,
};

/// Percentiles of a delay, in milliseconds, by nearest rank.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Delays {
    /// Half stay under it.
    pub p50: f64,
    /// 95 of 100 do.
    pub p95: f64,
    /// 99 of 100 do.
    pub p99: f64,
}

/// What a tenant saw. A request counts once, however many choices it has.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TenantAnswer {
    /// Its name.
    pub name: String,
    /// Its weight.
    pub weight: u32,
    /// Requests that came, and of them those refused, finished, and cancelled by their clients.
    pub asked: u64,
    /// See `asked`.
    pub refused: u64,
    /// See `asked`.
    pub finished: u64,
    /// See `asked`.
    pub cancelled: u64,
    /// Device time that it was charged, in seconds.
    pub device_seconds: f64,
    /// Its part of what all tenants were charged.
    pub share: f64,
    /// From a request's coming to its first token, or to its answer if that is a list of vectors.
    pub ttft: Option<Delays>,
    /// Between two tokens of a text.
    pub itl: Option<Delays>,
    /// Prompt tokens of texts, and those of them found in the cache.
    pub prompt_tokens: u64,
    /// See `prompt_tokens`.
    pub cached_tokens: u64,
    /// Tokens drawn.
    pub drawn_tokens: u64,
    /// The 99th percentile of the time to the first token where a refused request counts as one that never had any; none if that is
    /// more than one in a hundred.
    #[serde(skip)]
    pub(super) ttft_p99_of_asked: Option<f64>,
}

/// What a device did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceAnswer {
    /// Its number.
    pub device: usize,
    /// Device time of its steps over all time.
    pub utilisation: f64,
    /// Steps.
    pub steps: u64,
    /// Rows in a step, in the mean.
    pub rows_per_step: f64,
    /// New tokens a second, of prompts and answers.
    pub tokens_per_s: f64,
}

/// Everybody together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Total {
    /// From the first request to the last end, in seconds.
    pub seconds: f64,
    /// Requests that came.
    pub asked: u64,
    /// Of them, those refused.
    pub refused: u64,
    /// Requests that were finished, a second.
    pub requests_per_s: f64,
    /// New tokens a second, of prompts and answers, on all devices.
    pub tokens_per_s: f64,
    /// Device time of steps over all time of all devices.
    pub utilisation: f64,
    /// Requests that had to give their blocks back.
    pub preemptions: u64,
}

/// How things went on, by window.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Course {
    /// The end of each window, in seconds.
    pub seconds: Vec<f64>,
    /// By tenant: device seconds charged until then.
    pub service: Vec<Vec<f64>>,
    /// By tenant: device seconds by weight that it is behind the one that has had most.
    pub lag: Vec<Vec<f64>>,
    /// Of the requests that came in the window: time to the first token in milliseconds, half of them and 99 of 100.
    pub ttft_p50: Vec<Option<f64>>,
    /// See `ttft_p50`.
    pub ttft_p99: Vec<Option<f64>>,
    /// Part of the devices' time in which a step ran.
    pub utilisation: Vec<f64>,
}

/// What came of a load on so many devices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The workload's name, or the trace's.
    pub load: String,
    /// The cost model's.
    pub cost: String,
    /// Of the draws.
    pub seed: u64,
    /// How many devices.
    pub devices: u16,
    /// Everybody together.
    pub total: Total,
    /// Tenants, in the order of their ids.
    pub tenants: Vec<TenantAnswer>,
    /// Devices.
    pub device: Vec<DeviceAnswer>,
    /// How things went on.
    pub course: Course,
    /// What the server measured that the load was recorded from, if this is that load.
    pub measured: Option<Measured>,
    /// A digest of the history: equal ones had equal histories.
    pub digest: String,
}

/// What a trace says of the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// How many devices there were.
    pub devices: u16,
    /// Tenants that asked, in the order of their ids.
    pub tenants: Vec<TenantAnswer>,
}

/// What everybody is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Targets {
    /// The most that a tenant's 99th percentile of the time to the first token may be, in milliseconds.
    pub ttft_p99: Option<f64>,
    /// The same of the time between two tokens.
    pub itl_p99: Option<f64>,
}

/// A tenant that does not have what it is to have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Miss {
    /// Who.
    pub tenant: String,
    /// `TTFT` or `ITL`.
    pub what: &'static str,
    /// The 99th percentile, in milliseconds; none if more than one in a hundred was refused.
    pub p99: Option<f64>,
}

/// A request with its choices.
#[derive(Clone, Copy, Debug)]
struct Request {
    tenant: TenantId,
    at: Nanos,
    first: Option<Nanos>,
    end: Option<(Nanos, End)>,
    charge: Nanos,
    prompt: u32,
    cached: u32,
    drawn: u64,
}

impl Request {
    /// From coming to the first token, or to the answer of a list.
    fn ttft(&self) -> Option<Nanos> {
        let answered = self.end.filter(|(_, end)| *end == End::Finished && self.drawn == 0).map(|(at, _)| at);
        self.first.or(answered).map(|at| at.saturating_sub(self.at))
    }
}

/// The entries of a request's choices follow on each other.
fn requests(entries: &[Entry]) -> Vec<Request> {
    let of_choices = |choices: &[Entry]| {
        let end = choices.iter().filter_map(|entry| entry.end).max_by_key(|(at, _)| *at);
        // One that was not finished is not made good by another that was.
        let how = choices.iter().filter_map(|entry| entry.end).map(|(_, how)| how).max();
        Request {
            tenant: choices[0].tenant,
            at: choices[0].at,
            first: choices.iter().filter_map(|entry| entry.first).min(),
            end: end.map(|(at, _)| at).zip(how),
            charge: choices.iter().map(|entry| entry.charge).sum(),
            prompt: choices[0].prompt_len,
            cached: choices.iter().map(|entry| entry.cached).max().unwrap_or(0),
            drawn: choices.iter().map(|entry| u64::from(entry.drawn)).sum(),
        }
    };
    entries.chunk_by(|a, b| a.number == b.number).map(of_choices).collect()
}

fn millis(time: Nanos) -> f64 {
    time.0 as f64 / 1e6
}

fn seconds(time: Nanos) -> f64 {
    time.0 as f64 / 1e9
}

/// The smallest that `per_cent` of an ascending list stay at or under.
fn nearest(ascending: &[Nanos], per_cent: usize) -> Option<Nanos> {
    let rank = (ascending.len() * per_cent).div_ceil(100).max(1);
    ascending.get(rank - 1).copied()
}

impl Delays {
    fn of(mut delays: Vec<Nanos>) -> Option<Delays> {
        delays.sort_unstable();
        let at = |per_cent| nearest(&delays, per_cent).map(millis);
        Some(Delays { p50: at(50)?, p95: at(95)?, p99: at(99)? })
    }
}

impl TenantAnswer {
    fn of(name: String, weight: u32, requests: &[&Request], itl: Option<Delays>, charged: Nanos) -> TenantAnswer {
        let count = |is: &dyn Fn(&Request) -> bool| requests.iter().filter(|request| is(request)).count() as u64;
        let charge: Nanos = requests.iter().map(|request| request.charge).sum();
        let sum = |of: &dyn Fn(&Request) -> u64| requests.iter().map(|request| of(request)).sum();
        let mut ttft: Vec<Nanos> = requests.iter().filter_map(|request| request.ttft()).collect();
        let refused = count(&|request| request.end.is_none());
        // Who gave up before the first token, or lost it to a fault, waited longer than any that is listed.
        let gave_up =
            count(&|request| request.ttft().is_none() && request.end.is_some_and(|(_, end)| end != End::Finished));
        ttft.sort_unstable();
        let rank = ((ttft.len() + (refused + gave_up) as usize) * 99).div_ceil(100).max(1);
        TenantAnswer {
            name,
            weight,
            asked: requests.len() as u64,
            refused,
            finished: count(&|request| request.end.is_some_and(|(_, end)| end == End::Finished)),
            cancelled: count(&|request| request.end.is_some_and(|(_, end)| end == End::Cancelled)),
            device_seconds: seconds(charge),
            share: charge.0 as f64 / charged.0.max(1) as f64,
            ttft_p99_of_asked: ttft.get(rank - 1).copied().map(millis),
            ttft: Delays::of(ttft),
            itl,
            prompt_tokens: sum(&|request| u64::from(request.prompt)),
            cached_tokens: sum(&|request| u64::from(request.cached)),
            drawn_tokens: sum(&|request| request.drawn),
        }
    }

    /// The part of its prompt tokens that was found in the cache.
    pub fn hit_rate(&self) -> Option<f64> {
        (self.prompt_tokens > 0).then(|| self.cached_tokens as f64 / self.prompt_tokens as f64)
    }
}

impl Answer {
    pub(super) fn new(load: &Load, scenario: &Scenario, outcome: &Outcome, diary: Diary, watch: Watch) -> Answer {
        let requests = requests(&diary.entries);
        let span = outcome.end.0.max(1) as f64;
        let charged: Nanos = outcome.tenants.iter().map(|tenant| tenant.charge).sum();
        let mut tenants = Vec::new();
        let mut by_tenant: Vec<Vec<&Request>> = vec![Vec::new(); load.names.len()];
        let places: Vec<TenantId> = load.names.keys().copied().collect();
        for request in &requests {
            if let Ok(place) = places.binary_search(&request.tenant) {
                by_tenant[place].push(request);
            }
        }
        for ((id, name), requests) in load.names.iter().zip(&by_tenant) {
            let source = scenario.sources.iter().find(|source| source.tenant == *id);
            // A trace names tenants that never asked.
            let Some(source) = source else { continue };
            let itl = diary.gaps.get(id).and_then(|gaps| {
                let under = |per_mille| gaps.under(per_mille).map(millis);
                Some(Delays { p50: under(500)?, p95: under(950)?, p99: under(990)? })
            });
            tenants.push(TenantAnswer::of(name.clone(), source.plan.weight, requests, itl, charged));
        }
        let device = diary.devices.iter().enumerate().map(|(device, did)| DeviceAnswer {
            device,
            utilisation: did.busy.0 as f64 / span,
            steps: did.steps,
            rows_per_step: did.rows as f64 / did.steps.max(1) as f64,
            tokens_per_s: did.tokens as f64 / span * 1e9,
        });
        let device: Vec<DeviceAnswer> = device.collect();
        let count = |of: fn(&TenantAnswer) -> u64| tenants.iter().map(of).sum::<u64>();
        let total = Total {
            seconds: seconds(outcome.end),
            asked: count(|tenant| tenant.asked),
            refused: count(|tenant| tenant.refused),
            requests_per_s: count(|tenant| tenant.finished) as f64 / span * 1e9,
            tokens_per_s: device.iter().map(|device| device.tokens_per_s).sum(),
            utilisation: device.iter().map(|device| device.utilisation).sum::<f64>() / device.len().max(1) as f64,
            preemptions: outcome.preemptions,
        };
        Answer {
            load: load.name.clone(),
            cost: load.cost.clone(),
            seed: scenario.seed,
            devices: scenario.devices,
            total,
            course: Course::new(&tenants, load, &requests, &watch, scenario.devices),
            tenants,
            device,
            measured: load.measured.clone().filter(|measured| measured.devices == scenario.devices),
            digest: format!("{:016x}", outcome.digest),
        }
    }

    /// Who does not have what it is to have.
    pub fn misses(&self, targets: &Targets) -> Vec<Miss> {
        let mut misses = Vec::new();
        for tenant in self.tenants.iter().filter(|tenant| tenant.asked > 0) {
            let p99 = tenant.ttft_p99_of_asked;
            if targets.ttft_p99.is_some_and(|most| p99.is_none_or(|p99| p99 > most)) {
                misses.push(Miss { tenant: tenant.name.clone(), what: "TTFT", p99 });
            }
            let p99 = tenant.itl.map(|itl| itl.p99);
            if targets.itl_p99.is_some_and(|most| p99.is_some_and(|p99| p99 > most)) {
                misses.push(Miss { tenant: tenant.name.clone(), what: "ITL", p99 });
            }
        }
        misses
    }
}

impl Course {
    fn new(tenants: &[TenantAnswer], load: &Load, requests: &[Request], watch: &Watch, devices: u16) -> Course {
        let mut course = Course {
            service: vec![Vec::new(); tenants.len()],
            lag: vec![Vec::new(); tenants.len()],
            ..Course::default()
        };
        // The watch has the tenants in the order in which the scheduler was told of them.
        let place = |tenant: &TenantAnswer| {
            let id = load.names.iter().find(|(_, name)| **name == tenant.name).map(|(id, _)| *id);
            watch.tenants.iter().position(|(other, _)| Some(*other) == id)
        };
        let places: Vec<Option<usize>> = tenants.iter().map(place).collect();
        let mut served = vec![0.0; tenants.len()];
        let mut by_window: Vec<Vec<Nanos>> = vec![Vec::new(); watch.windows.len()];
        for request in requests {
            let window = (request.at.0 / watch.len.0.max(1)) as usize;
            if let (Some(window), Some(ttft)) = (by_window.get_mut(window), request.ttft()) {
                window.push(ttft);
            }
        }
        for (window, mut ttft) in watch.windows.iter().zip(by_window) {
            course.seconds.push(seconds(window.from + watch.len));
            for (served, place) in served.iter_mut().zip(&places) {
                *served += place.map_or(0.0, |place| seconds(window.parts[place].charge));
            }
            let weights = tenants.iter().map(|tenant| f64::from(tenant.weight.max(1)));
            let weighted: Vec<f64> = served.iter().zip(weights).map(|(served, weight)| served / weight).collect();
            let most = weighted.iter().copied().fold(0.0, f64::max);
            course.service.iter_mut().zip(&served).for_each(|(service, served)| service.push(*served));
            course.lag.iter_mut().zip(weighted).for_each(|(lag, weighted)| lag.push(most - weighted));
            ttft.sort_unstable();
            course.ttft_p50.push(nearest(&ttft, 50).map(millis));
            course.ttft_p99.push(nearest(&ttft, 99).map(millis));
            let all = watch.len.0 as f64 * f64::from(devices.max(1));
            course.utilisation.push(1.0 - window.idle.0 as f64 / all);
        }
        course
    }
}

impl Measured {
    pub(super) fn of(trace: &Trace, recorded: &[RecordedRequest]) -> Measured {
        let requests: Vec<(usize, Request)> = recorded
            .iter()
            .map(|request| {
                let at = Nanos(request.at);
                let end = match request.end {
                    RecordedEnd::Finished => Some(End::Finished),
                    RecordedEnd::Cancelled => Some(End::Cancelled),
                    RecordedEnd::Failed => Some(End::Failed),
                    RecordedEnd::Refused => None,
                };
                let request = Request {
                    tenant: TenantId(request.tenant as u32 + 1),
                    at,
                    first: request.ttft.map(|ttft| at + Nanos(ttft)),
                    end: end.map(|end| (at + Nanos(request.took), end)),
                    charge: Nanos(request.device_time),
                    prompt: request.prompt_len,
                    cached: request.cached_tokens,
                    drawn: request.drawn.iter().map(|drawn| u64::from(*drawn)).sum(),
                };
                (request.tenant.0 as usize - 1, request)
            })
            .collect();
        let charged: Nanos = requests.iter().map(|(_, request)| request.charge).sum();
        let tenants = trace.tenants.iter().enumerate().filter_map(|(at, tenant)| {
            let own: Vec<&Request> =
                requests.iter().filter(|(other, _)| *other == at).map(|(_, request)| request).collect();
            let name = tenant.name.clone();
            (!own.is_empty()).then(|| TenantAnswer::of(name, tenant.weight, &own, None, charged))
        });
        Measured { devices: trace.devices.len().max(1) as u16, tenants: tenants.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        costs::tests::costs,
        load::LoadOptions,
        trace::tests::{request, trace},
    };
    use super::*;

    fn load(lines: &str) -> Load {
        Load::recorded("t", &trace(lines), &costs(4_000, 20), &LoadOptions::default()).unwrap()
    }

    #[test]
    fn one_request_alone_sees_exactly_its_steps() {
        let answer = load(&request(500, 1, 100, 5)).play(1);
        assert_eq!(answer.tenants.len(), 1, "who never asked is not there");
        let tenant = &answer.tenants[0];
        assert_eq!((tenant.name.as_str(), tenant.asked, tenant.finished, tenant.drawn_tokens), ("b", 1, 1, 5));
        // A step of 100 tokens, then steps of one: 4 ms and 20 us a token.
        assert_eq!(tenant.ttft.unwrap().p99, 6.0);
        let itl = tenant.itl.unwrap();
        assert!((4.02..4.06).contains(&itl.p50) && itl.p50 == itl.p99, "{itl:?}");
        assert_eq!((tenant.share, tenant.prompt_tokens, tenant.hit_rate()), (1.0, 100, Some(0.0)));
        assert_eq!(tenant.device_seconds, 0.02208);
    }

    #[test]
    fn what_was_measured_stands_beside_it_where_it_can_be_compared() {
        let lines = request(500, 1, 100, 5) + &request(900, 0, 100, 5).replace("finished", "refused");
        let load = load(&lines);
        let measured = load.play(1).measured.unwrap();
        let seen: Vec<_> =
            measured.tenants.iter().map(|t| (t.name.as_str(), t.asked, t.refused, t.ttft.map(|t| t.p50))).collect();
        assert_eq!(seen, [("a", 1, 1, Some(5e-6)), ("b", 1, 0, Some(5e-6))]);
        assert_eq!(load.play(2).measured, None);
        let options = LoadOptions { weight: vec![("a".into(), 2)], ..LoadOptions::default() };
        let other = Load::recorded("t", &trace(&lines), &costs(1, 1), &options).unwrap();
        assert_eq!(other.play(1).measured, None);
    }

    #[test]
    fn targets_count_a_refused_request_as_one_without_a_token() {
        // 16 rows at once and room for 256 to wait: of 600 at once, some are refused.
        let lines: String = (0..600).map(|n| request(n, 0, 10, 5)).collect();
        let answer = load(&lines).play(1);
        assert!(answer.total.refused > 6, "{}", answer.total.refused);
        let most = Targets { ttft_p99: Some(1e9), itl_p99: None };
        assert_eq!(answer.misses(&most), [Miss { tenant: "a".into(), what: "TTFT", p99: None }]);
        let alone = load(&request(0, 0, 10, 5)).play(1);
        assert_eq!(alone.misses(&most), []);
        let tight = Targets { ttft_p99: Some(4.0), itl_p99: Some(4.0) };
        assert_eq!(alone.misses(&tight).iter().map(|miss| miss.what).collect::<Vec<_>>(), ["TTFT", "ITL"]);
    }

    #[test]
    fn the_course_ends_where_the_totals_are() {
        let lines: String = (0..300).map(|n| request(n * 30_000_000, n as usize % 2, 60, 8)).collect();
        let answer = load(&lines).play(1);
        let course = &answer.course;
        assert!(course.seconds.len() >= 55, "{}", course.seconds.len());
        for (tenant, service) in answer.tenants.iter().zip(&course.service) {
            let last = service.last().unwrap();
            assert!(service.is_sorted() && *last <= tenant.device_seconds + 1e-9);
            assert!(tenant.device_seconds - last < 0.3, "only what came after the last whole window is missing");
        }
        assert!(course.utilisation.iter().all(|part| (0.0..=1.0).contains(part)));
        assert!(course.lag.iter().flatten().all(|lag| *lag >= 0.0));
    }
}
