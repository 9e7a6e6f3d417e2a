//! Which requests a level sends, and in an open loop when: all of it a function of the seed.
//!
//! Requests are numbered through the run, so that no level repeats a prompt of another. In an open loop each tenant's
//! arrivals are a process of their own, with its share of the rate, and the schedule is their union; a Poisson process per
//! tenant is then a Poisson process in all. In a closed loop a connection belongs to one tenant.

use std::time::Duration;

use crate::config::{REQUESTS_MAX, Tenant};
use crate::lengths::Lengths;
use crate::random::SplitMix64;
use crate::trace::Traced;

/// The families of random numbers that a seed gives, besides the prompts' own.
const LENGTHS: u64 = 1;
const GAPS: u64 = 2;

const NANOS_PER_SECOND: f64 = 1e9;

/// One request to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// The number of its (first) prompt.
    pub(crate) prompt: u64,
    /// The length of each of its prompts.
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    /// The place among the run's tenants.
    pub(crate) tenant: u16,
}

/// A request of an open loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// Nanoseconds since the level began.
    pub(crate) at: u64,
    pub(crate) ask: Ask,
}

/// How long a level goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    Requests(u32),
    /// New requests begin for this long.
    Time(Duration),
}

/// The lengths and prompts of requests, by number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asks {
    pub(crate) seed: u64,
    pub(crate) prompt_tokens: Lengths,
    pub(crate) output_tokens: Lengths,
    pub(crate) prompts_per_request: u32,
    /// The number of the level's first prompt.
    pub(crate) first_prompt: u64,
}

impl Asks {
    /// The level's request `index`, for a tenant.
    pub(crate) fn ask(&self, index: u32, tenant: u16) -> Ask {
        let prompt = self.prompt(index);
        let mut random = SplitMix64::stream(self.seed, LENGTHS, prompt);
        Ask {
            prompt,
            prompt_tokens: self.prompt_tokens.draw(&mut random),
            output_tokens: self.output_tokens.draw(&mut random),
            tenant,
        }
    }

    fn prompt(&self, index: u32) -> u64 {
        self.first_prompt + u64::from(index) * u64::from(self.prompts_per_request)
    }

    /// The arrivals of an open loop of `rate` requests per second, ascending.
    pub(crate) fn arrivals(&self, tenants: &[Tenant], rate: f64, burstiness: f64, extent: Extent) -> Vec<Due> {
        let weights: f64 = tenants.iter().map(|tenant| tenant.weight).sum();
        let mut processes: Vec<Gaps> = tenants
            .iter()
            .enumerate()
            .map(|(index, tenant)| Gaps {
                // Prompts are numbered through the run: their numbers keep the levels' arrivals apart.
                random: SplitMix64::stream(self.seed ^ self.first_prompt, GAPS, index as u64),
                mean: NANOS_PER_SECOND * weights / (rate * tenant.weight),
                shape: burstiness,
                now: 0.0,
            })
            .collect();
        let (count_max, until) = match extent {
            Extent::Requests(count) => (count, f64::INFINITY),
            Extent::Time(time) => (REQUESTS_MAX, time.as_nanos() as f64),
        };
        processes.iter_mut().for_each(Gaps::advance);
        let mut schedule = Vec::new();
        while (schedule.len() as u32) < count_max {
            let next = processes.iter().enumerate().min_by(|a, b| a.1.now.total_cmp(&b.1.now));
            let Some((tenant, at)) = next.map(|(tenant, process)| (tenant, process.now)) else { break };
            if at >= until {
                break;
            }
            // At most `TENANTS_MAX` tenants.
            schedule.push(Due { at: at as u64, ask: self.ask(schedule.len() as u32, tenant as u16) });
            processes[tenant].advance();
        }
        schedule
    }

    /// The arrivals of a trace, which are in order.
    pub(crate) fn traced(&self, trace: &[Traced]) -> Vec<Due> {
        let ask = |index: usize, traced: &Traced| Ask {
            prompt: self.prompt(index as u32),
            prompt_tokens: traced.prompt_tokens,
            output_tokens: traced.output_tokens,
            tenant: traced.tenant,
        };
        trace.iter().enumerate().map(|(index, traced)| Due { at: traced.at, ask: ask(index, traced) }).collect()
    }
}

/// One tenant's arrivals.
struct Gaps {
    random: SplitMix64,
    /// Of the gaps, ns.
    mean: f64,
    shape: f64,
    /// The next arrival, ns.
    now: f64,
}

impl Gaps {
    fn advance(&mut self) {
        self.now += self.mean * self.random.gamma(self.shape);
    }
}

/// The tenant of each of `connections`: by turns, so that each has its share of them, and at least one.
pub(crate) fn connection_tenants(tenants: &[Tenant], connections: u32) -> Vec<u16> {
    let mut counts = vec![0u32; tenants.len()];
    (0..connections)
        .map(|_| {
            // Whoever would have the fewest for its weight is next; those without any come first.
            let turn = |index: usize| (counts[index] > 0, f64::from(counts[index] + 1) / tenants[index].weight);
            let next = (0..tenants.len())
                .min_by(|&a, &b| turn(a).0.cmp(&turn(b).0).then(turn(a).1.total_cmp(&turn(b).1)))
                .expect("a run has a tenant");
            counts[next] += 1;
            next as u16
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tenant;

    fn asks(seed: u64) -> Asks {
        Asks {
            seed,
            prompt_tokens: Lengths { min: 10, max: 20 },
            output_tokens: Lengths::fixed(4),
            prompts_per_request: 1,
            first_prompt: 0,
        }
    }

    fn one() -> Vec<Tenant> {
        vec![tenant("a", "x", 1.0)]
    }

    fn gaps(schedule: &[Due]) -> Vec<f64> {
        schedule.windows(2).map(|pair| (pair[1].at - pair[0].at) as f64).collect()
    }

    /// Mean and coefficient of variation.
    fn moments(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_mean_of_the_rate_and_the_variation_of_the_burstiness() {
        for burstiness in [0.25, 1.0, 4.0] {
            let schedule = asks(1).arrivals(&one(), 50.0, burstiness, Extent::Requests(100_000));
            let (mean, variation) = moments(&gaps(&schedule));
            assert!((mean / 2e7 - 1.0).abs() < 0.02, "burstiness {burstiness}: mean {mean} ns");
            assert!((variation * burstiness.sqrt() - 1.0).abs() < 0.03, "burstiness {burstiness}: cv {variation}");
        }
    }

    #[test]
    fn a_schedule_is_a_function_of_its_seed_and_level() {
        let schedule = |asks: Asks| asks.arrivals(&one(), 10.0, 1.0, Extent::Requests(50));
        let same = schedule(asks(1));
        assert_eq!(same, schedule(asks(1)));
        let times = |schedule: &[Due]| schedule.iter().map(|due| due.at).collect::<Vec<_>>();
        assert_ne!(times(&same), times(&schedule(asks(2))));
        assert_ne!(times(&same), times(&schedule(Asks { first_prompt: 50, ..asks(1) })));
        assert!(same.windows(2).all(|pair| pair[0].at <= pair[1].at && pair[0].ask.prompt + 1 == pair[1].ask.prompt));
        assert!(same.iter().any(|due| due.ask.prompt_tokens != same[0].ask.prompt_tokens), "lengths are drawn");
    }

    #[test]
    fn a_schedule_of_some_seconds_ends_with_them() {
        let schedule = asks(3).arrivals(&one(), 100.0, 1.0, Extent::Time(Duration::from_secs(20)));
        assert!(schedule.last().unwrap().at < 20_000_000_000);
        // 2,000 expected, 45 the standard deviation.
        assert!((1_800..2_200).contains(&schedule.len()), "{}", schedule.len());
    }

    #[test]
    fn tenants_share_the_rate_by_weight_each_with_its_own_poisson_process() {
        let tenants = vec![tenant("a", "x", 3.0), tenant("b", "y", 1.0)];
        let schedule = asks(4).arrivals(&tenants, 40.0, 1.0, Extent::Requests(80_000));
        for (index, rate) in [(0, 30.0), (1, 10.0)] {
            let own: Vec<Due> = schedule.iter().filter(|due| due.ask.tenant == index).copied().collect();
            let (mean, variation) = moments(&gaps(&own));
            assert!((mean * rate / 1e9 - 1.0).abs() < 0.03, "tenant {index}: mean {mean} ns");
            assert!((variation - 1.0).abs() < 0.03, "tenant {index}: cv {variation}");
        }
        let (mean, variation) = moments(&gaps(&schedule));
        assert!((mean / 2.5e7 - 1.0).abs() < 0.02 && (variation - 1.0).abs() < 0.03, "{mean} {variation}");
    }

    #[test]
    fn a_trace_keeps_its_times_lengths_and_tenants() {
        let trace = [
            Traced { at: 5, prompt_tokens: 7, output_tokens: 2, tenant: 1 },
            Traced { at: 9, prompt_tokens: 8, output_tokens: 3, tenant: 0 },
        ];
        let schedule = Asks { first_prompt: 100, prompts_per_request: 4, ..asks(1) }.traced(&trace);
        let ask = |prompt, prompt_tokens, output_tokens, tenant| Ask { prompt, prompt_tokens, output_tokens, tenant };
        assert_eq!(schedule, [Due { at: 5, ask: ask(100, 7, 2, 1) }, Due { at: 9, ask: ask(104, 8, 3, 0) }]);
    }

    #[test]
    fn connections_go_to_tenants_by_weight_and_each_has_one() {
        let tenants = vec![tenant("a", "x", 6.0), tenant("b", "y", 2.0), tenant("c", "z", 0.001)];
        let counts = |connections| {
            let owners = connection_tenants(&tenants, connections);
            [0, 1, 2].map(|tenant| owners.iter().filter(|&&owner| owner == tenant).count())
        };
        assert_eq!(counts(3), [1, 1, 1]);
        assert_eq!(counts(9), [6, 2, 1]);
        assert_eq!(counts(33), [24, 8, 1]);
    }
}
