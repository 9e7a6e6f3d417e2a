//! The kernels of `sample.cu` against [`crate::sample`]: the same weights to the bit, the same ids.

use super::numbers::{Place, Rows, Seeded, upload_words};
use super::{Check, Finding};
use crate::launch::sample::{NO_ID, SampleRow, bests_bytes, sample};
use crate::launch::{Element, Runner};
use crate::sample::{Draw, Scratch, draw};
use crate::{KernelError, math};

pub(super) fn checks() -> Vec<Check> {
    vec![
        ("weights", weights),
        ("greedy ids", greedy),
        ("drawn ids", drawn),
        ("drawn ids of wide rows", wide),
        ("rows that fail and rows left alone", refused),
    ]
}

const GREEDY: Draw = Draw { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, drawn: 0 };

/// What the launches made of some rows.
struct Outcome {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

fn run(runner: &mut dyn Runner, logits: &Rows, rows: &[SampleRow]) -> Result<Outcome, KernelError> {
    let at = logits.at();
    let words: Vec<u32> = rows.iter().flat_map(SampleRow::words).collect();
    let params = upload_words(runner, &words)?;
    let bests = runner.upload(&vec![0; bests_bytes(at.rows, at.cols)])?;
    let ids = upload_words(runner, &vec![NO_ID - 1; rows.len()])?;
    for launch in sample(at, params, bests, ids) {
        runner.launch(&launch)?;
    }
    let mut bytes = vec![0; 4 * rows.len()];
    runner.download(ids, &mut bytes)?;
    let ids = bytes.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
    Ok(Outcome { ids, logits: logits.read(runner)? })
}

/// Counts what differs.
#[derive(Default)]
struct Count {
    compared: usize,
    differ: usize,
}

impl Count {
    fn note(&mut self, same: bool) {
        self.compared += 1;
        self.differ += usize::from(!same);
    }

    fn finding(self, case: &str) -> Finding {
        let worst = self.differ as f64;
        Finding { case: case.to_owned(), compared: self.compared, worst, bound: 0.0 }
    }
}

/// The exponential's bits, over every size of argument that a weight has, and the division by the temperature before
/// it.
fn weights(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let mut count = Count::default();
    let temperatures = [1.0, 0.7, 1.9, 1e-3, 1e-40];
    let place = Place { rows: temperatures.len(), cols: 9_001, first: 0, stride: 9_004 };
    let mut step = 0;
    // From 3, the best, down to 104 below it, where weights end; then some whose fractions are random.
    let mut seeded = Seeded::new(1);
    let logits = Rows::of(runner, Element::F32, place, || {
        let at = step % 9_004;
        step += 1;
        match at {
            0..6_000 => 3.0 - at as f32 * (105.0 / 6_000.0),
            _ => 3.0 - seeded.float().abs() * 2f32.powi(-(seeded.below(30) as i32)) * 90.0,
        }
    })?;
    let rows = temperatures.map(|temperature| SampleRow::Draw(Draw { temperature, ..GREEDY }));
    let outcome = run(runner, &logits, &rows)?;
    for (row, temperature) in temperatures.into_iter().enumerate() {
        for (weight, logit) in outcome.logits[row].iter().zip(logits.row(row)) {
            count.note(weight.to_bits() == math::exp((logit - 3.0) / temperature).to_bits());
        }
    }
    Ok(vec![count.finding("sample_weigh_f32: e^x for x from -105 to 0, and of x by 5 temperatures")])
}

/// Draws on the CPU what the runner draws.
fn compare(
    runner: &mut dyn Runner,
    place: Place,
    value: impl FnMut() -> f32,
    rows: &[SampleRow],
    count: &mut Count,
) -> Result<(), KernelError> {
    let logits = Rows::of(runner, Element::F32, place, value)?;
    let outcome = run(runner, &logits, rows)?;
    let mut scratch = Scratch::default();
    for (row, (id, of)) in outcome.ids.iter().zip(rows).enumerate() {
        let SampleRow::Draw(of) = of else { continue };
        count.note(*id == draw(logits.row(row), of, &mut scratch).unwrap_or(NO_ID));
    }
    Ok(())
}

/// Rows in one piece and in several, with the best id anywhere, and more than one of them.
fn greedy(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let mut count = Count::default();
    for vocab in [1, 7, 1000, 4095, 4097, 20_003] {
        for place in Place::each(3, vocab) {
            let mut seeded = Seeded::new(vocab as u64);
            compare(runner, place, || seeded.float(), &[SampleRow::Draw(GREEDY); 3], &mut count)?;
            // Few different numbers, zeros of both signs among them, so that the first of many equals is asked for.
            let coarse = || [-0.0, 0.0, -1.0][seeded.below(3)];
            compare(runner, place, coarse, &[SampleRow::Draw(GREEDY); 3], &mut count)?;
        }
    }
    Ok(vec![count.finding("sample_f32: the best of 1 to 20003 ids, with ties")])
}

/// How a row's logits are spread.
#[derive(Clone, Copy)]
enum Spread {
    /// As a language model's.
    Usual,
    /// Many equal ones.
    Ties,
    /// All equal.
    Flat,
    /// A few large ones far above all others.
    Peaked,
    /// Over more sizes than weights have.
    Far,
}

impl Spread {
    const ALL: [Spread; 5] = [Spread::Usual, Spread::Ties, Spread::Flat, Spread::Peaked, Spread::Far];

    fn logit(self, seeded: &mut Seeded) -> f32 {
        // The sum of four: bell-shaped.
        let bell: f32 = (0..4).map(|_| seeded.float()).sum();
        match self {
            Spread::Usual => bell * 4.0,
            Spread::Ties => (bell * 2.0).round() * 0.5,
            Spread::Flat => 1.5,
            Spread::Peaked => bell + if seeded.below(40) == 0 { 20.0 } else { 0.0 },
            Spread::Far => bell * 40.0,
        }
    }
}

/// Some way to draw: every limit alone and together, at its ends and in between.
fn way(seeded: &mut Seeded, vocab: usize) -> Draw {
    let few = seeded.below(vocab.min(60)) as u32 + 1;
    Draw {
        temperature: [0.0, 0.3, 1.0, 1.0, 1.7, 1e-30][seeded.below(6)],
        top_k: [0, 0, 1, few, few, vocab as u32 / 2, vocab as u32, u32::MAX][seeded.below(8)],
        top_p: [1.0, 1.0, 0.9, 0.5, 1e-30, 1e-9, 0.999_999, seeded.float().abs()][seeded.below(8)],
        min_p: [0.0, 0.0, 0.0, 0.05, 0.5, 1.0, seeded.float().abs()][seeded.below(7)],
        seed: u64::from(seeded.word()) << 32 | u64::from(seeded.word()),
        drawn: seeded.word() % 1000,
    }
}

fn drawn(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let mut findings = Vec::new();
    for (name, spread) in ["usual", "tied", "flat", "peaked", "far"].into_iter().zip(Spread::ALL) {
        let mut count = Count::default();
        for (rows, vocab) in [(12, 1), (28, 7), (40, 33), (44, 300), (8, 1500)] {
            for place in Place::each(rows, vocab) {
                let mut seeded = Seeded::new((rows + vocab) as u64);
                let ways: Vec<SampleRow> = (0..rows).map(|_| SampleRow::Draw(way(&mut seeded, vocab))).collect();
                compare(runner, place, || spread.logit(&mut seeded), &ways, &mut count)?;
            }
        }
        findings.push(count.finding(&format!("sample_f32: draws from {name} rows of 1 to 1500")));
    }
    Ok(findings)
}

fn wide(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let mut count = Count::default();
    for spread in Spread::ALL {
        let mut seeded = Seeded::new(9);
        let place = Place { rows: 6, cols: 50_257, first: 0, stride: 50_260 };
        let whole = |seeded: &mut Seeded| Draw { temperature: 0.8, top_k: 0, top_p: 1.0, min_p: 0.0, ..way(seeded, 9) };
        let ways = [
            whole(&mut seeded),
            Draw { top_p: 0.9, ..whole(&mut seeded) },
            Draw { top_k: 40, ..whole(&mut seeded) },
            Draw { top_k: 20_000, top_p: 0.95, ..whole(&mut seeded) },
            Draw { min_p: 0.02, ..whole(&mut seeded) },
            GREEDY,
        ];
        compare(runner, place, || spread.logit(&mut seeded), &ways.map(SampleRow::Draw), &mut count)?;
    }
    Ok(vec![count.finding("sample_f32: draws from rows of 50257")])
}

fn refused(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let mut count = Count::default();
    for vocab in [1, 40, 9000] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let place = Place::packed(5, vocab);
            let mut seeded = Seeded::new(vocab as u64);
            // Rows 1 and 3 have one each.
            let bad_at = [vocab + seeded.below(vocab), 3 * vocab + seeded.below(vocab)];
            let mut at = 0;
            let logits = Rows::of(runner, Element::F32, place, || {
                at += 1;
                if bad_at.contains(&(at - 1)) { bad } else { seeded.float() }
            })?;
            let drawn = SampleRow::Draw(Draw { temperature: 1.0, ..GREEDY });
            let rows = [SampleRow::Draw(GREEDY), SampleRow::Draw(GREEDY), SampleRow::Skip, drawn, drawn];
            let outcome = run(runner, &logits, &rows)?;
            count.note((outcome.ids[0] as usize) < vocab && (outcome.ids[4] as usize) < vocab);
            count.note(outcome.ids[1] == NO_ID && outcome.ids[3] == NO_ID);
            // Its id stays what `run` put there.
            count.note(outcome.ids[2] == NO_ID - 1 && outcome.logits[2] == logits.row(2));
        }
    }
    Ok(vec![count.finding("sample_f32: rows with an infinity or a NaN, and skipped rows")])
}
