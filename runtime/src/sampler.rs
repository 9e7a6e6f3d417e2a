//! Draws one id from one row of logits.
//!
//! Order: log-probabilities are read from the model's own distribution; then repetition penalty, frequency and presence
//! penalties, logit bias, ids banned by `min_tokens`; then temperature, min-p, top-k, top-p and the draw, which are
//! [`weir_kernels::sample`]'s. The random number is a function of (seed, how many ids were drawn before), so neither
//! the batch nor a preemption changes a seeded text. Ties go to the lower id.

use std::{cmp::Ordering, collections::HashMap};

use weir_kernels::sample::{self, Draw, Scratch};
pub(crate) use weir_kernels::sample::{NotFinite, mix};

use crate::{executor::wire::Sampled, submission::SamplingParams};

/// The sampling state of one sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    params: SamplingParams,
    seed: u64,
    logprobs: Option<u32>,
    min_tokens: u32,
    banned: Vec<u32>,
    /// Ids seen so far; kept only where a penalty needs them.
    seen: HashMap<u32, Seen>,
    drawn: u32,
    adjusted: Vec<f32>,
    scratch: Scratch,
    order: Vec<u32>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    in_output: u32,
}

impl Sampler {
    /// `prompt` is read once, for the repetition penalty; `output` is what was drawn before, by another sampler of the
    /// same parameters, whose next draw is this one's first.
    pub(crate) fn new(
        params: SamplingParams,
        logprobs: Option<u32>,
        min_tokens: u32,
        banned: Vec<u32>,
        (prompt, output): (&[u32], &[u32]),
    ) -> Self {
        let mut seen = HashMap::new();
        if params.repetition_penalty != 1.0 {
            seen.extend(prompt.iter().map(|&id| (id, Seen::default())));
        }
        let seed = params.seed.unwrap_or(0);
        let mut sampler = Sampler {
            params,
            seed,
            logprobs,
            min_tokens,
            banned,
            seen,
            drawn: 0,
            adjusted: Vec::new(),
            scratch: Scratch::default(),
            order: Vec::new(),
        };
        output.iter().for_each(|&id| sampler.note(id));
        sampler
    }

    /// Draws the next id from `logits` ([vocabulary] f32).
    pub(crate) fn draw(&mut self, logits: &[f32]) -> Result<Sampled, NotFinite> {
        let draw = self.next_draw();
        let id = if self.adjusts() {
            // What is banned or penalised must not hide that the model's own numbers are none.
            sample::best_logit(logits)?;
            let mut adjusted = std::mem::take(&mut self.adjusted);
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.adjust(&mut adjusted);
            let id = sample::draw(&adjusted, &draw, &mut self.scratch);
            self.adjusted = adjusted;
            id?
        } else {
            sample::draw(logits, &draw, &mut self.scratch)?
        };
        self.note(id);
        let (logprob, top) = match self.logprobs {
            Some(count) => self.report(logits, id, count as usize),
            None => (None, Vec::new()),
        };
        Ok(Sampled { id, logprob, top })
    }

    /// The next draw, if it is from the model's own logits and nothing is asked of them besides.
    pub(crate) fn plain_draw(&self) -> Option<Draw> {
        (!self.adjusts() && self.logprobs.is_none()).then(|| self.next_draw())
    }

    /// Takes the id that was drawn as [`Sampler::plain_draw`] says.
    pub(crate) fn accept(&mut self, id: u32) -> Sampled {
        self.note(id);
        Sampled { id, logprob: None, top: Vec::new() }
    }

    fn note(&mut self, id: u32) {
        let p = &self.params;
        if p.repetition_penalty != 1.0 || p.frequency_penalty != 0.0 || p.presence_penalty != 0.0 {
            self.seen.entry(id).or_default().in_output += 1;
        }
        self.drawn += 1;
    }

    /// The next draw, once the logits are adjusted.
    fn next_draw(&self) -> Draw {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        Draw { temperature, top_k, top_p, min_p, seed: self.seed, drawn: self.drawn }
    }

    /// Whether the next draw is from other logits than the model's.
    fn adjusts(&self) -> bool {
        !self.seen.is_empty()
            || !self.params.logit_bias.is_empty()
            || (self.drawn < self.min_tokens && !self.banned.is_empty())
    }

    fn adjust(&self, logits: &mut [f32]) {
        let p = &self.params;
        for (&id, seen) in &self.seen {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            if p.repetition_penalty != 1.0 {
                *logit = if *logit > 0.0 { *logit / p.repetition_penalty } else { *logit * p.repetition_penalty };
            }
            if seen.in_output > 0 {
                *logit -= p.frequency_penalty * seen.in_output as f32 + p.presence_penalty;
            }
        }
        for &(id, bias) in &p.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        if self.drawn < self.min_tokens {
            // As low as a number can be: it weighs nothing beside any other, and a draw refuses infinities.
            for &id in &self.banned {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = f32::MIN;
                }
            }
        }
    }

    fn report(&mut self, logits: &[f32], id: u32, count: usize) -> (Option<f32>, Vec<(u32, f32)>) {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from((l - top).exp())).sum();
        let log_sum = sum.ln() + f64::from(top);
        let logprob = |i: u32| (f64::from(logits[i as usize]) - log_sum) as f32;
        let order = &mut self.order;
        order.clear();
        order.extend(0..logits.len() as u32);
        let better = |a: &u32, b: &u32| descending(logits[*a as usize], logits[*b as usize]).then(a.cmp(b));
        let count = count.min(order.len());
        if count > 0 {
            order.select_nth_unstable_by(count - 1, better);
            order[..count].sort_unstable_by(better);
        }
        (Some(logprob(id)), order[..count].iter().map(|&i| (i, logprob(i))).collect())
    }
}

fn descending(a: f32, b: f32) -> Ordering {
    b.partial_cmp(&a).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(params: SamplingParams) -> Sampler {
        Sampler::new(params, None, 0, Vec::new(), (&[], &[]))
    }

    fn draws(params: &SamplingParams, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = sampler(params.clone());
        (0..count).map(|_| sampler.draw(logits).expect("finite").id).collect()
    }

    fn seeded(seed: u64) -> SamplingParams {
        SamplingParams { seed: Some(seed), ..SamplingParams::default() }
    }

    #[test]
    fn temperature_zero_takes_the_lowest_of_the_best() {
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        assert_eq!(draws(&params, &[1.0, 3.0, 3.0, 2.0], 2), [1, 1]);
    }

    #[test]
    fn same_seed_same_ids_and_other_seed_others() {
        let logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32 * 0.1).collect();
        assert_eq!(draws(&seeded(1), &logits, 50), draws(&seeded(1), &logits, 50));
        assert_ne!(draws(&seeded(1), &logits, 50), draws(&seeded(2), &logits, 50));
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let logits = [0.0f32, (2.0f32).ln(), (5.0f32).ln()];
        let ids = draws(&seeded(3), &logits, 8000);
        for (id, share) in [(0, 0.125), (1, 0.25), (2, 0.625)] {
            let got = ids.iter().filter(|&&i| i == id).count() as f64 / 8000.0;
            assert!((got - share).abs() < 0.02, "id {id}: {got} instead of {share}");
        }
    }

    #[test]
    fn truncations_keep_the_right_set() {
        let logits = [1.0f32, 4.0, 3.0, 2.0, 0.0];
        let only = |params: SamplingParams| {
            let mut ids = draws(&params, &logits, 2000);
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(only(SamplingParams { top_k: 2, ..seeded(1) }), [1, 2]);
        // Probabilities: 0.636, 0.234, 0.086, 0.032, 0.012.
        assert_eq!(only(SamplingParams { top_p: 0.85, ..seeded(1) }), [1, 2]);
        assert_eq!(only(SamplingParams { top_p: 0.6, ..seeded(1) }), [1]);
        assert_eq!(only(SamplingParams { min_p: 0.1, ..seeded(1) }), [1, 2, 3]);
        assert_eq!(only(SamplingParams { top_k: 3, top_p: 0.8, ..seeded(1) }), [1, 2]);
    }

    #[test]
    fn nucleus_wider_than_the_guess_is_found_by_a_full_sort() {
        let logits = vec![0.0f32; 5000];
        let ids = draws(&SamplingParams { top_p: 0.9, ..seeded(5) }, &logits, 3000);
        assert!(ids.iter().all(|&id| id < 4500));
        assert!(ids.iter().any(|&id| id > 4000));
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let logits = [3.0f32, 2.5, 1.0];
        let presence = SamplingParams { presence_penalty: 1.0, ..greedy.clone() };
        assert_eq!(draws(&presence, &logits, 3), [0, 1, 0]);
        let frequency = SamplingParams { frequency_penalty: 0.3, ..greedy.clone() };
        assert_eq!(draws(&frequency, &logits, 4), [0, 0, 1, 0]);
        let bias = SamplingParams { logit_bias: vec![(2, 5.0)], ..greedy.clone() };
        assert_eq!(draws(&bias, &logits, 1), [2]);
        let mut repetition =
            Sampler::new(SamplingParams { repetition_penalty: 1.5, ..greedy }, None, 0, Vec::new(), (&[0], &[]));
        assert_eq!(repetition.draw(&logits).expect("finite").id, 1);
    }

    #[test]
    fn banned_ids_wait_for_min_tokens() {
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let mut sampler = Sampler::new(params, None, 2, vec![1], (&[], &[]));
        let ids: Vec<u32> = (0..3).map(|_| sampler.draw(&[0.0, 9.0, 1.0]).expect("finite").id).collect();
        assert_eq!(ids, [2, 2, 1]);
    }

    #[test]
    fn logprobs_are_the_models_own() {
        let params = SamplingParams { temperature: 0.0, logit_bias: vec![(0, 10.0)], ..SamplingParams::default() };
        let mut sampler = Sampler::new(params, Some(2), 0, Vec::new(), (&[], &[]));
        let got = sampler.draw(&[0.0, (3.0f32).ln()]).expect("finite");
        assert_eq!(got.id, 0);
        assert!((got.logprob.expect("asked for") - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn a_sampler_goes_on_where_another_stopped() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.3).collect();
        let params = SamplingParams { frequency_penalty: 0.5, repetition_penalty: 1.2, top_p: 0.9, ..seeded(9) };
        let draw = |sampler: &mut Sampler| sampler.draw(&logits).expect("finite").id;
        let mut whole = Sampler::new(params.clone(), None, 20, vec![3], (&[5, 6], &[]));
        let ids: Vec<u32> = (0..40).map(|_| draw(&mut whole)).collect();
        for at in [0, 1, 19, 20, 39] {
            let mut resumed = Sampler::new(params.clone(), None, 20, vec![3], (&[5, 6], &ids[..at]));
            let rest: Vec<u32> = (at..40).map(|_| draw(&mut resumed)).collect();
            assert_eq!(rest, ids[at..], "after {at}");
        }
    }

    #[test]
    fn rows_that_are_not_numbers_fail() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(sampler(seeded(1)).draw(&[0.0, bad]), Err(NotFinite));
        }
    }
}
