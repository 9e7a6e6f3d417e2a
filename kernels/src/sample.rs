//! Draws one id from one row of logits, in whole numbers.
//!
//! What is drawn must not depend on the order in which a row is summed, so that a GPU, which shares a row among
//! thousands of threads, draws the id that the CPU draws. Sums of floating-point numbers do depend on it; sums of whole
//! numbers do not.
//!
//! The *weight* of an id is `e^((logit - best logit) / temperature)`, an f32 whose bits are the same everywhere
//! ([`crate::math`]); its *mass* is the whole part of `weight * 2^40`. The best id weighs exactly 1; ids that weigh
//! less than 2^-40 have no mass and are never drawn. Masses of 2^23 ids and fewer add up within 64 bits.
//!
//! Ids are ordered by weight, the largest first, the lower id first among equals. min-p lets through weights of at
//! least its fraction of the best. top-k keeps the first k ids of what is left. top-p keeps the shortest beginning of
//! the order whose mass reaches its fraction of theirs. Then the kept ids are walked in the order of their numbers
//! until their mass passes `u` of the total, `u` being 53 bits that are a function of the seed and of how many ids were
//! drawn before.
//!
//! Nothing is sorted. What top-k and top-p keep ends at one weight (the *cut*), and of the ids of exactly that weight
//! the first few are kept. The cut is found by digits of ten bits, the highest first: a histogram over the first digit
//! of every weight tells in which bin the cut lies, one over the second digit of that bin's ids narrows it, one over
//! the third finds it. Time is linear in the row, whatever its logits. For instance with weights 1, 0.5, 0.5, 0.2 and
//! top-p 0.7: the mass is 2.2, 1.54 are wanted, the weights above 0.5 reach 1, so the cut is 0.5 and ceil(0.54 / 0.5) =
//! 2 ids of that weight are kept.

use crate::Isa;
use crate::lanes::{Lanes, per_isa};
use crate::math::exp_real;
use crate::packed::LANES;
use crate::tile::{load_part, store_part};

/// How one id is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// 0 takes the best id, the lowest of equals.
    pub temperature: f32,
    /// Ids kept at most; 0 keeps all.
    pub top_k: u32,
    /// Mass kept, as a fraction; 1 keeps all.
    pub top_p: f32,
    /// Weights kept, as a fraction of the best one's; 0 keeps all.
    pub min_p: f32,
    /// Where the random numbers come from.
    pub seed: u64,
    /// How many were drawn from this seed before.
    pub drawn: u32,
}

/// A row holds an infinity or something that is not a number, or nothing at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the logits are not finite")]
pub struct NotFinite;

/// A [`Draw`] with its numbers in the form that both bodies compare with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rule {
    /// Not below 0.
    pub(crate) temperature: f32,
    /// At least 1.
    pub(crate) top_k: u32,
    /// Fraction of the mass, in units of 2^-53; at least [`WHOLE`] keeps all.
    pub(crate) share: u64,
    /// In 2^-40 ..= 1.
    pub(crate) floor: f32,
    pub(crate) seed: u64,
    pub(crate) drawn: u32,
}

/// 1 as a fraction in units of 2^-53.
const WHOLE: u64 = 1 << 53;
/// 2^-40: the smallest weight with a mass.
const WEIGHT_MIN: f32 = 1.0 / MASS_OF_ONE;
/// The mass of the weight 1.
const MASS_OF_ONE: f32 = (1u64 << 40) as f32;
const DIGIT_BITS: u32 = 10;
const BINS: usize = 1 << DIGIT_BITS;
/// Ids whose mass is summed at once while drawing from a whole row.
const STRETCH: usize = 512;

impl Rule {
    pub(crate) fn of(draw: &Draw) -> Rule {
        Rule {
            // What is no temperature takes the best id.
            temperature: if draw.temperature > 0.0 { draw.temperature } else { 0.0 },
            top_k: if draw.top_k == 0 { u32::MAX } else { draw.top_k },
            // Whole parts, and the conversion takes what is below 0 for 0 and what is above the type for its largest.
            share: (f64::from(draw.top_p) * WHOLE as f64) as u64,
            // The best id weighs 1 and stays whatever is asked for.
            floor: if draw.min_p > WEIGHT_MIN { draw.min_p.min(1.0) } else { WEIGHT_MIN },
            seed: draw.seed,
            drawn: draw.drawn,
        }
    }
}

/// What draws share from one to the next: memory, never a number.
#[derive(Debug, Default)]
pub struct Scratch {
    weights: Vec<f32>,
    stretches: Vec<u64>,
    ids: Vec<u32>,
    bins: Vec<Sum>,
}

/// How many ids, and their mass.
#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    count: u64,
    mass: u64,
}

/// The end of what is kept: ids that weigh more, and the first `equals` of those that weigh as much.
#[derive(Debug, Clone, Copy)]
struct Cut {
    weight: f32,
    equals: u64,
    /// Mass of all that is kept.
    mass: u64,
}

/// What a [`Cut`] is to reach.
#[derive(Debug, Clone, Copy)]
enum Goal {
    Count(u64),
    /// A fraction in units of 2^-53 of a mass; `None`: of all that the floor lets through.
    Share(u64, Option<u64>),
}

/// Draws an id from `logits`, f32 `[vocabulary]`, of fewer than 2^23 ids.
///
/// # Errors
/// If one of the logits is not finite.
pub fn draw(logits: &[f32], draw: &Draw, scratch: &mut Scratch) -> Result<u32, NotFinite> {
    let rule = Rule::of(draw);
    let best = best_logit(logits)?;
    if rule.temperature == 0.0 {
        // It was found among them.
        return Ok(logits.iter().position(|logit| *logit == best).unwrap_or(0) as u32);
    }
    let Scratch { weights, stretches, ids, bins } = scratch;
    weights.resize(logits.len(), 0.0);
    weigh(Isa::current(), weights, logits, best, rule.temperature);
    let fraction = fraction(rule.seed, rule.drawn);
    let mut cut = None;
    if (rule.top_k as usize) < logits.len() {
        cut = find_cut(weights, rule.floor, Goal::Count(u64::from(rule.top_k)), ids, bins);
    }
    if rule.share < WHOLE {
        let mass = cut.map(|cut| cut.mass);
        cut = find_cut(weights, rule.floor, Goal::Share(rule.share, mass), ids, bins);
    }
    Ok(match cut {
        Some(cut) => pick_kept(weights, cut, fraction),
        None => pick(weights, rule.floor, stretches, fraction),
    })
}

/// The largest logit of a row, all of whose logits are finite.
///
/// # Errors
/// If one is not, or there are none.
pub fn best_logit(logits: &[f32]) -> Result<f32, NotFinite> {
    let (mut best, mut zero) = (f32::NEG_INFINITY, 0.0);
    scan(Isa::current(), logits, &mut best, &mut zero);
    // Of nothing but finite numbers, zero times each adds up to zero; an infinity or a NaN makes it a NaN.
    if zero == 0.0 && !logits.is_empty() { Ok(best) } else { Err(NotFinite) }
}

per_isa! {
    fn scan(logits: &[f32], best: &mut f32, zero: &mut f32) = scan_body
}
per_isa! {
    fn weigh(weights: &mut [f32], logits: &[f32], best: f32, temperature: f32) = weigh_body
}
per_isa! {
    fn sum_stretches(sums: &mut [u64], weights: &[f32], floor: f32) = sum_stretches_body
}

#[inline(always)]
fn scan_body<V: Lanes>(logits: &[f32], best: &mut f32, zero: &mut f32) {
    let (lanes, tail) = logits.as_chunks::<LANES>();
    let (mut bests, mut zeros) = (V::splat(f32::NEG_INFINITY), V::splat(0.0));
    for x in lanes {
        // SAFETY: the chunk holds 16 f32.
        let x = unsafe { V::load(x.as_ptr()) };
        bests = x.max(bests);
        zeros = x.fma(V::splat(0.0), zeros);
    }
    *best = bests.reduce_max();
    *zero = zeros.reduce();
    for x in tail {
        *best = if x > best { *x } else { *best };
        *zero += x * 0.0;
    }
}

#[inline(always)]
fn weigh_body<V: Lanes>(weights: &mut [f32], logits: &[f32], best: f32, temperature: f32) {
    for (weights, logits) in weights.chunks_mut(LANES).zip(logits.chunks(LANES)) {
        // SAFETY: each chunk is as long as it says.
        unsafe {
            let x: V = load_part(logits.as_ptr(), logits.len());
            let weight = exp_real(x.sub(V::splat(best)).div(V::splat(temperature)));
            store_part(weight, weights.as_mut_ptr(), weights.len());
        }
    }
}

/// The mass of each stretch of ids. Written for the compiler to spread over lanes; the type names the instruction set
/// only.
#[inline(always)]
fn sum_stretches_body<V: Lanes>(sums: &mut [u64], weights: &[f32], floor: f32) {
    for (sum, weights) in sums.iter_mut().zip(weights.chunks(STRETCH)) {
        *sum = weights.iter().fold(0, |sum: u64, weight| sum.wrapping_add(mass_from(*weight, floor)));
    }
}

/// The whole part of `weight * 2^40`.
#[inline(always)]
fn mass(weight: f32) -> u64 {
    (weight * MASS_OF_ONE) as u64
}

/// The mass of a weight that the floor lets through, and 0 of one that it does not.
#[inline(always)]
fn mass_from(weight: f32, floor: f32) -> u64 {
    if weight >= floor { mass(weight) } else { 0 }
}

/// Bits of a weight of at least 2^-40, counted from there: ordered as the weights are, below 2^29.
#[inline(always)]
fn key(weight: f32) -> u32 {
    weight.to_bits().wrapping_sub(WEIGHT_MIN.to_bits())
}

/// `fraction` (in units of 2^-53, at most 1) of `total`: the whole part, and whether there is more.
fn part_of(fraction: u64, total: u64) -> (u64, bool) {
    let product = u128::from(fraction) * u128::from(total);
    ((product >> 53) as u64, product & u128::from(WHOLE - 1) != 0)
}

/// The shortest beginning of the order that reaches `goal`, or `None` where all ids that the floor lets through do not.
fn find_cut(weights: &[f32], floor: f32, goal: Goal, ids: &mut Vec<u32>, bins: &mut Vec<Sum>) -> Option<Cut> {
    let mut above = Sum::default();
    let mut target = 0;
    let mut prefix = 0;
    for shift in [2 * DIGIT_BITS, DIGIT_BITS, 0] {
        bins.clear();
        bins.resize(BINS, Sum::default());
        let mut count = |weight: f32| {
            let bin = &mut bins[(key(weight) >> shift) as usize % BINS];
            bin.count = bin.count.wrapping_add(1);
            bin.mass = bin.mass.wrapping_add(mass(weight));
        };
        if shift == 2 * DIGIT_BITS {
            weights.iter().filter(|weight| **weight >= floor).for_each(|weight| count(*weight));
            target = match goal {
                Goal::Count(count) => count,
                Goal::Share(share, total) => {
                    let total = total.unwrap_or_else(|| bins.iter().map(|bin| bin.mass).sum());
                    let (target, rest) = part_of(share, total);
                    (target + u64::from(rest)).max(1)
                }
            };
        } else {
            ids.iter().for_each(|id| count(weights[*id as usize]));
        }
        let measure = |sum: &Sum| if matches!(goal, Goal::Count(_)) { sum.count } else { sum.mass };
        let mut at = BINS;
        loop {
            at = at.checked_sub(1)?;
            if measure(&above) + measure(&bins[at]) >= target {
                break;
            }
            above.count += bins[at].count;
            above.mass += bins[at].mass;
        }
        prefix = prefix << DIGIT_BITS | at as u32;
        // Only this bin's ids go on.
        if shift == 2 * DIGIT_BITS {
            ids.clear();
            let here = |weight: &f32| *weight >= floor && key(*weight) >> shift == prefix;
            ids.extend((0u32..).zip(weights).filter(|(_, weight)| here(weight)).map(|(id, _)| id));
        } else {
            ids.retain(|id| key(weights[*id as usize]) >> shift == prefix);
        }
    }
    let weight = f32::from_bits(prefix + WEIGHT_MIN.to_bits());
    let equals = match goal {
        Goal::Count(_) => target - above.count,
        Goal::Share(..) => (target - above.mass).div_ceil(mass(weight)),
    };
    Some(Cut { weight, equals, mass: above.mass + equals * mass(weight) })
}

/// Walks the ids that `cut` keeps.
fn pick_kept(weights: &[f32], cut: Cut, fraction: u64) -> u32 {
    let (mut wanted, _) = part_of(fraction, cut.mass);
    let mut equals = cut.equals;
    for (id, weight) in (0u32..).zip(weights) {
        if *weight < cut.weight || (*weight == cut.weight && equals == 0) {
            continue;
        }
        equals -= u64::from(*weight == cut.weight);
        match wanted.checked_sub(mass(*weight)) {
            Some(rest) => wanted = rest,
            None => return id,
        }
    }
    unreachable!("a part below one of the kept mass is passed within it")
}

/// Walks all ids that the floor lets through: over stretches first, then within one.
fn pick(weights: &[f32], floor: f32, stretches: &mut Vec<u64>, fraction: u64) -> u32 {
    stretches.resize(weights.len().div_ceil(STRETCH), 0);
    sum_stretches(Isa::current(), stretches, weights, floor);
    let (mut wanted, _) = part_of(fraction, stretches.iter().sum());
    for (stretch, sum) in weights.chunks(STRETCH).enumerate().zip(stretches.iter()) {
        if let Some(rest) = wanted.checked_sub(*sum) {
            wanted = rest;
            continue;
        }
        let (at, stretch) = stretch;
        for (id, weight) in (at as u32 * STRETCH as u32..).zip(stretch) {
            match wanted.checked_sub(mass_from(*weight, floor)) {
                Some(rest) => wanted = rest,
                None => return id,
            }
        }
    }
    unreachable!("a part below one of the whole mass is passed within it")
}

/// A number in 0 .. 2^53 from the seed and the count of ids drawn before (splitmix64, Steele et al. 2014).
pub(crate) fn fraction(seed: u64, drawn: u32) -> u64 {
    mix(mix(seed).wrapping_add(u64::from(drawn))) >> 11
}

/// One round of splitmix64.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
