//! The draw against a naive one that sorts, and what it promises.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use weir_kernels::math;
use weir_kernels::sample::{Draw, NotFinite, Scratch, best_logit, draw, mix};

const GREEDY: Draw = Draw { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, drawn: 0 };

/// An id's mass, as the module's page defines it.
fn masses(logits: &[f32], temperature: f32) -> Vec<(f32, u64)> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| math::exp((logit - best) / temperature);
    logits.iter().map(|logit| (weight(*logit), (f64::from(weight(*logit)) * 2f64.powi(40)).floor() as u64)).collect()
}

/// The ids that may be drawn, by sorting.
fn kept(logits: &[f32], of: &Draw) -> Vec<u32> {
    let masses = masses(logits, of.temperature);
    let weighs = |id: &u32| masses[*id as usize].0;
    let mass = |id: &u32| u128::from(masses[*id as usize].1);
    let mut order: Vec<u32> = (0..logits.len() as u32).filter(|id| weighs(id) >= of.min_p).collect();
    order.sort_by(|a, b| weighs(b).total_cmp(&weighs(a)).then(a.cmp(b)));
    if of.top_k > 0 {
        order.truncate(of.top_k as usize);
    }
    if of.top_p < 1.0 {
        let total: u128 = order.iter().map(mass).sum();
        let share = (f64::from(of.top_p) * 2f64.powi(53)).floor() as u128;
        let mut sum = 0;
        let last = order.iter().position(|id| {
            sum += mass(id);
            sum << 53 >= share * total
        });
        order.truncate(last.unwrap() + 1);
    }
    order.retain(|id| mass(id) > 0);
    order.sort_unstable();
    order
}

/// The draw, by sorting and walking.
fn naive(logits: &[f32], of: &Draw) -> u32 {
    let kept = kept(logits, of);
    let masses = masses(logits, of.temperature);
    let mass = |id: &u32| u128::from(masses[*id as usize].1);
    let total: u128 = kept.iter().map(mass).sum();
    let fraction = u128::from(mix(mix(of.seed).wrapping_add(u64::from(of.drawn))) >> 11);
    let wanted = (fraction * total) >> 53;
    let mut sum = 0;
    *kept
        .iter()
        .find(|id| {
            sum += mass(id);
            sum > wanted
        })
        .unwrap()
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    let spread = prop_oneof![Just(0.0f32), Just(0.5), Just(4.0), Just(60.0)];
    let step = prop_oneof![Just(0.0f32), Just(0.25), Just(1.0)];
    (spread, step, prop::collection::vec(-1.0f32..1.0, 1..300)).prop_map(|(spread, step, values)| {
        let rough = |x: f32| if step > 0.0 { (x / step).round() * step } else { x };
        values.into_iter().map(|x| rough(x * spread)).collect()
    })
}

fn ways() -> impl Strategy<Value = Draw> {
    let temperature = prop_oneof![Just(1.0f32), 0.05f32..2.0, Just(1e-30)];
    let top_k = prop_oneof![Just(0u32), Just(1), 1u32..400, Just(u32::MAX)];
    let top_p = prop_oneof![Just(1.0f32), 1e-6f32..1.0, Just(0.9), Just(f32::MIN_POSITIVE)];
    let min_p = prop_oneof![Just(0.0f32), 0.0f32..1.0, Just(1.0)];
    (temperature, top_k, top_p, min_p, any::<u64>(), any::<u32>()).prop_map(
        |(temperature, top_k, top_p, min_p, seed, drawn)| Draw { temperature, top_k, top_p, min_p, seed, drawn },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_draw_is_the_sorted_walks((logits, of) in (logits(), ways())) {
        let mut scratch = Scratch::default();
        prop_assert_eq!(draw(&logits, &of, &mut scratch), Ok(naive(&logits, &of)));
        // What a scratch was used for before changes nothing.
        let next = Draw { drawn: of.drawn.wrapping_add(1), ..of };
        prop_assert_eq!(draw(&logits, &next, &mut scratch), Ok(naive(&logits, &next)));
    }

    #[test]
    fn what_is_kept_is_drawn_and_nothing_else((logits, of) in (prop::collection::vec(-1.0f32..1.0, 1..12), ways())) {
        let of = Draw { temperature: of.temperature.max(0.5), ..of };
        let mut scratch = Scratch::default();
        let mut ids: Vec<u32> =
            (0..1500).map(|drawn| draw(&logits, &Draw { drawn, ..of }, &mut scratch).unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        prop_assert_eq!(ids, kept(&logits, &of));
    }

    #[test]
    fn greedy_takes_the_first_of_the_best(logits in logits()) {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first = logits.iter().position(|logit| *logit == best).unwrap() as u32;
        prop_assert_eq!(draw(&logits, &GREEDY, &mut Scratch::default()), Ok(first));
        prop_assert_eq!(best_logit(&logits), Ok(best));
    }
}

#[test]
fn a_row_that_is_not_finite_is_refused_wherever_it_is_not() {
    for len in [1, 15, 16, 17, 100] {
        for at in 0..len {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut logits = vec![0.5; len];
                logits[at] = bad;
                for temperature in [0.0, 1.0] {
                    let of = Draw { temperature, ..GREEDY };
                    assert_eq!(draw(&logits, &of, &mut Scratch::default()), Err(NotFinite), "{bad} at {at} of {len}");
                }
            }
        }
    }
    assert_eq!(draw(&[], &GREEDY, &mut Scratch::default()), Err(NotFinite));
}

#[test]
fn the_lowest_and_the_highest_number_are_logits_too() {
    let of = Draw { temperature: 1.0, ..GREEDY };
    let logits = [f32::MIN, f32::MAX, f32::MIN];
    for drawn in 0..100 {
        assert_eq!(draw(&logits, &Draw { drawn, ..of }, &mut Scratch::default()), Ok(1));
    }
}

#[test]
fn a_temperature_that_is_none_takes_the_best() {
    for temperature in [-1.0, f32::NAN] {
        let of = Draw { temperature, ..GREEDY };
        assert_eq!(draw(&[1.0, 3.0, 2.0], &of, &mut Scratch::default()), Ok(1));
    }
}
