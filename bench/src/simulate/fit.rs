//! A cost model from the steps of a real run.

use weir_scheduler::sim::{Rng, SimModel, StepCost};
use weir_scheduler::{ModelId, ModelLimits, Nanos};

use super::{
    least_squares::{TERMS, non_negative},
    recorded::RecordedStep,
    trace::Trace,
};

/// Steps of a model below which nothing is fitted: half of them are held out.
const STEPS_MIN: usize = 40;
/// How often the worst are set aside and the rest fitted anew.
const ROUNDS: usize = 6;
/// A step is set aside when it is off by more than so many times the median.
const OFF_MAX: f64 = 4.0;
/// But never when it is off by less than this.
const OFF_MIN: f64 = 0.02;

/// One model's fitted cost, and how well it foretells steps that it was not fitted to.
#[derive(Clone, Debug)]
pub struct Fit {
    /// The model's name.
    pub model: String,
    /// Its limits on the device that it was recorded on.
    pub limits: ModelLimits,
    /// The cost.
    pub cost: StepCost,
    /// Steps fitted to, and of them those set aside as accidents.
    pub fitted: usize,
    /// See `fitted`.
    pub aside: usize,
    /// Steps held out.
    pub held_out: usize,
    /// Of the held-out steps, all of them: the median of how far the cost is off, as a part of the measured time.
    pub error_p50: f64,
    /// The same that nine tenths stay under.
    pub error_p90: f64,
    /// The device time that the cost foretells for all held-out steps together, as a part of the measured.
    pub total: f64,
}

impl Fit {
    /// As the simulator takes it.
    pub fn sim_model(&self, id: ModelId) -> SimModel {
        SimModel { id, limits: self.limits, cost: self.cost }
    }
}

/// Fits every model that has steps enough: `time = step + token * tokens + kilocontext * context / 1,000 + kiloread * reads / 1,000`, by
/// least squares of the relative error on a random half of its steps, none of the four below zero. Steps that are far off are accidents
/// of the machine and are set aside, a few rounds long; the error is told of the other half, accidents included.
///
/// The overhead is the wall time of a step beyond its device time, in the mean without the highest and the lowest twentieth.
///
/// # Errors
/// When no model has steps enough.
pub fn fit(trace: &Trace, seed: u64) -> Result<Vec<Fit>, String> {
    let mut fits = Vec::new();
    let mut most = 0;
    for (id, model) in (0..).zip(&trace.models) {
        let Some(model) = model else { continue };
        let timed = |step: &&RecordedStep| step.model == id && step.device_time > 0;
        let steps: Vec<&RecordedStep> = trace.steps.iter().filter(timed).collect();
        most = most.max(steps.len());
        if steps.len() >= STEPS_MIN {
            fits.push(fit_model(&model.name, model.limits, &steps, seed));
        }
    }
    match fits.is_empty() {
        true => Err(format!("no model has the {STEPS_MIN} steps that a fit takes; the most is {most}")),
        false => Ok(fits),
    }
}

fn fit_model(name: &str, limits: ModelLimits, steps: &[&RecordedStep], seed: u64) -> Fit {
    // The first step of a model warms it up, and what no clock saw says nothing.
    let mut rng = Rng::new(seed);
    let (mut half, mut rest) = (Vec::new(), Vec::new());
    for step in steps.iter().skip(1) {
        if rng.per_mille(500) { half.push(*step) } else { rest.push(*step) }
    }
    let (coefficients, aside) = trimmed(&half);
    let [step, token, context, read] = coefficients;
    let cost = StepCost {
        step: nanos(step),
        token: nanos(token),
        kilocontext: nanos(context * 1_000.0),
        kiloread: nanos(read * 1_000.0),
        overhead: nanos(overhead(&half)),
    };
    let mut errors: Vec<f64> = rest.iter().map(|step| off(&coefficients, step).abs()).collect();
    errors.sort_by(f64::total_cmp);
    let at = |part: f64| errors.get((errors.len() as f64 * part) as usize).copied().unwrap_or(0.0);
    let measured: f64 = rest.iter().map(|step| step.device_time as f64).sum();
    let foretold: f64 = rest.iter().map(|step| time(&coefficients, step)).sum();
    Fit {
        model: name.to_owned(),
        limits,
        cost,
        fitted: half.len(),
        aside,
        held_out: rest.len(),
        error_p50: at(0.5),
        error_p90: at(0.9),
        total: foretold / measured.max(1.0),
    }
}

/// The coefficients, and how many steps were set aside.
fn trimmed(steps: &[&RecordedStep]) -> ([f64; TERMS], usize) {
    let mut kept: Vec<&RecordedStep> = steps.to_vec();
    let mut coefficients = [0.0; TERMS];
    for round in 0..ROUNDS {
        let expected = |step: &RecordedStep| match round {
            0 => step.device_time as f64,
            _ => time(&coefficients, step).max(1.0),
        };
        let points: Vec<_> = kept.iter().map(|step| point(step, expected(step))).collect();
        coefficients = non_negative(&points);
        let mut errors: Vec<f64> = steps.iter().map(|step| off(&coefficients, step).abs()).collect();
        errors.sort_by(f64::total_cmp);
        let median = errors.get(errors.len() / 2).copied().unwrap_or(0.0);
        let most = (OFF_MAX * median).max(OFF_MIN);
        kept = steps.iter().copied().filter(|step| off(&coefficients, step).abs() <= most).collect();
    }
    (coefficients, steps.len() - kept.len())
}

fn terms(step: &RecordedStep) -> [f64; TERMS] {
    [1.0, step.tokens as f64, step.context as f64, step.reads as f64]
}

/// Weighted so that errors count as parts of the expected time: a short step is as good a witness as a long one. Parts of the measured
/// time would favour steps that happened to be short, and foretell too little.
fn point(step: &RecordedStep, expected: f64) -> ([f64; TERMS], f64, f64) {
    (terms(step), step.device_time as f64, 1.0 / (expected * expected))
}

fn time(coefficients: &[f64; TERMS], step: &RecordedStep) -> f64 {
    coefficients.iter().zip(terms(step)).map(|(coefficient, term)| coefficient * term).sum()
}

/// How far the cost is off, as a part of the measured time.
fn off(coefficients: &[f64; TERMS], step: &RecordedStep) -> f64 {
    (time(coefficients, step) - step.device_time as f64) / step.device_time as f64
}

fn overhead(steps: &[&RecordedStep]) -> f64 {
    let mut beyond: Vec<u64> = steps.iter().map(|step| step.wall.saturating_sub(step.device_time)).collect();
    beyond.sort_unstable();
    let cut = beyond.len() / 20;
    let kept = &beyond[cut..beyond.len() - cut];
    kept.iter().sum::<u64>() as f64 / kept.len().max(1) as f64
}

fn nanos(value: f64) -> Nanos {
    Nanos(value.round().clamp(0.0, 1e15) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(noise: u64, accidents: bool) -> Vec<RecordedStep> {
        (0..600u64)
            .map(|n| {
                let (rows, prompt, at) = (1 + n * 7 % 16, if n % 5 == 0 { n * 53 % 400 } else { 0 }, n * 31 % 900);
                let (tokens, context) = (rows + prompt, rows * at + prompt);
                let reads = rows * at + prompt * prompt / 2;
                // Noise either way: up to `noise` per mille.
                let noise = 1_000 - noise + n * 7919 % (2 * noise + 1);
                let time = (4_000_000 + 20_000 * tokens + 900 * context + 5 * reads) * noise / 1_000;
                let device_time = if accidents && n % 17 == 3 { time * 6 } else { time };
                RecordedStep {
                    model: 0,
                    device: 0,
                    rows,
                    tokens,
                    context,
                    reads,
                    device_time,
                    wall: device_time + 70_000,
                }
            })
            .collect()
    }

    fn fitted(steps: &[RecordedStep]) -> Fit {
        let limits = ModelLimits { blocks: 1, rows_max: 16, tokens_max: 512, context_len_max: 4096 };
        fit_model("m", limits, &steps.iter().collect::<Vec<_>>(), 1)
    }

    #[test]
    fn known_costs_are_found_again() {
        let fit = fitted(&steps(40, false));
        let cost = fit.cost;
        for (found, truth) in [(cost.step.0, 4_000_000), (cost.token.0, 20_000), (cost.kilocontext.0, 900_000)] {
            assert!(found.abs_diff(truth) * 20 < truth, "{found} for {truth}: {cost:?}");
        }
        assert_eq!(cost.overhead, Nanos(70_000));
        assert!(fit.error_p50 < 0.03 && fit.error_p90 < 0.05 && (fit.total - 1.0).abs() < 0.01, "{fit:?}");
        assert_eq!(fit.fitted + fit.held_out, 599);
        assert!(fit.fitted.abs_diff(300) < 50);
    }

    #[test]
    fn a_noisy_machine_is_not_taken_for_a_faster_one() {
        let fit = fitted(&steps(600, false));
        assert!((fit.total - 1.0).abs() < 0.05, "{fit:?}");
    }

    #[test]
    fn accidents_are_set_aside_and_still_count_as_errors() {
        let fit = fitted(&steps(40, true));
        assert!(fit.cost.step.0.abs_diff(4_000_000) < 300_000, "{fit:?}");
        assert!(fit.aside >= 10, "{fit:?}");
        assert!(fit.total < 0.9, "what accidents took is missing: {fit:?}");
    }
}
