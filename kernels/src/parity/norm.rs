//! The kernels of `norm.cu` against [`spec`].

use super::numbers::{Place, Rows, Seeded, Tally, round, upload_floats};
use super::{Check, Finding};
use crate::launch::{Element, RowsAt, Runner, norm};
use crate::{KernelError, spec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        ("rms_norm", rms_norm),
        ("add_rms_norm", add_rms_norm),
        ("head_rms_norm", head_rms_norm),
        ("layer_norm", layer_norm),
        ("add_layer_norm", add_layer_norm),
    ]
}

/// Rows and columns.
const SHAPES: [(usize, usize); 8] = [(1, 1), (3, 7), (2, 16), (5, 100), (3, 576), (1, 1001), (2, 4096), (1, 9000)];
const SHAPES_SAID: &str = "1 to 5 rows of 1 to 9000, packed, and aligned and unaligned among wider rows";
/// Sums of up to 9000 squares in another order differ by about 1e-6 of themselves; the norm takes a root of that.
const RMS_BOUND: f64 = 2e-6;
/// The mean is off by about 1e-7 of the largest value, which is several times the deviation that differences are
/// divided by.
const LAYER_BOUND: f64 = 5e-6;

/// A check over every element type, shape and place.
fn over(
    kernel: &str,
    f32_bound: f64,
    runner: &mut dyn Runner,
    shapes: &[(usize, usize)],
    mut each: impl FnMut(&mut dyn Runner, Element, Place, &mut Seeded, &mut Tally) -> Result<(), KernelError>,
) -> Result<Vec<Finding>, KernelError> {
    let mut findings = Vec::new();
    for element in Element::ALL {
        let mut tally = Tally::new(element);
        for (rows, cols) in shapes {
            for place in Place::each(*rows, *cols) {
                each(runner, element, place, &mut Seeded::new((rows * cols) as u64), &mut tally)?;
            }
        }
        findings.push(tally.rounded(kernel, SHAPES_SAID, f32_bound));
    }
    Ok(findings)
}

/// A norm's weight, on the runner and here. Not on sixteen bytes where the rows are not.
fn weight(runner: &mut dyn Runner, place: Place, seeded: &mut Seeded) -> Result<(u64, Vec<f32>), KernelError> {
    let skipped = place.first % 4;
    let values = seeded.floats(skipped + place.cols);
    let address = upload_floats(runner, &values)?;
    Ok((address + 4 * skipped as u64, values[skipped..].to_vec()))
}

fn rms(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    spec::rms_norm(&mut out, x, weight, 1e-5);
    out
}

fn rms_norm(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    over("rms_norm", RMS_BOUND, runner, &SHAPES, |runner, element, place, seeded, tally| {
        let x = Rows::seeded(runner, element, place, seeded)?;
        let out = Rows::unwritten(runner, element, place)?;
        let (weight, by) = weight(runner, place, seeded)?;
        runner.launch(&norm::rms_norm(element, out.at(), x.at(), weight, 1e-5))?;
        for (row, got) in out.read(runner)?.iter().enumerate() {
            tally.row(got, rms(x.row(row), &by));
        }
        Ok(())
    })
}

fn add_rms_norm(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    over("add_rms_norm", RMS_BOUND, runner, &SHAPES, |runner, element, place, seeded, tally| {
        let residual = Rows::seeded(runner, element, place, seeded)?;
        // Rows of another stride than the residual's.
        let x = Rows::seeded(runner, element, Place { stride: place.stride + 16, ..place }, seeded)?;
        let out = Rows::unwritten(runner, element, place)?;
        let (weight, by) = weight(runner, place, seeded)?;
        runner.launch(&norm::add_rms_norm(element, out.at(), residual.at(), x.at(), weight, 1e-5))?;
        let sums = residual.read(runner)?;
        for (row, got) in out.read(runner)?.iter().enumerate() {
            // The residual is rounded first; the norm is of what is kept.
            let sum: Vec<f32> = residual.row(row).iter().zip(x.row(row)).map(|(a, b)| round(element, a + b)).collect();
            tally.row(got, rms(&sum, &by));
            tally.row(&sums[row], sum);
        }
        Ok(())
    })
}

fn head_rms_norm(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let mut findings = Vec::new();
    for element in Element::ALL {
        let mut tally = Tally::new(element);
        for (rows, heads, head_dim) in [(1, 1, 64), (3, 5, 128), (2, 3, 256), (2, 2, 10), (7, 3, 8)] {
            for place in Place::each(rows, heads * head_dim) {
                let mut seeded = Seeded::new((rows * heads + head_dim) as u64);
                let x = Rows::seeded(runner, element, place, &mut seeded)?;
                let (weight, by) = weight(runner, Place { cols: head_dim, ..place }, &mut seeded)?;
                runner.launch(&norm::head_rms_norm(element, x.at(), head_dim as u32, weight, 1e-5))?;
                for (row, got) in x.read(runner)?.iter().enumerate() {
                    for (got, head) in got.chunks(head_dim).zip(x.row(row).chunks(head_dim)) {
                        tally.row(got, rms(head, &by));
                    }
                }
            }
        }
        findings.push(tally.rounded("head_rms_norm", "1 to 7 rows of 1 to 5 heads of 8 to 256", RMS_BOUND));
    }
    Ok(findings)
}

/// Numbers whose mean is as large as in hidden states: several deviations.
fn shifted(runner: &mut dyn Runner, element: Element, place: Place, seeded: &mut Seeded) -> Result<Rows, KernelError> {
    Rows::of(runner, element, place, || seeded.float() + 2.0)
}

/// What is to be normed, `weight` and `bias` at `address`es, and where to.
type LayerNorm<'a> = &'a dyn Fn(Element, RowsAt, RowsAt, RowsAt, u64, u64) -> crate::launch::Launch;

fn layer(name: &str, runner: &mut dyn Runner, adds: bool, launch: LayerNorm<'_>) -> Result<Vec<Finding>, KernelError> {
    over(name, LAYER_BOUND, runner, &SHAPES, |runner, element, place, seeded, tally| {
        let x = shifted(runner, element, place, seeded)?;
        let y = shifted(runner, element, place, seeded)?;
        let out = Rows::unwritten(runner, element, place)?;
        let ((weight, by), (bias, plus)) = (weight(runner, place, seeded)?, weight(runner, place, seeded)?);
        runner.launch(&launch(element, out.at(), x.at(), y.at(), weight, bias))?;
        let apart = out.read(runner)?;
        // Once more in place.
        runner.launch(&launch(element, x.at(), x.at(), y.at(), weight, bias))?;
        for (row, (apart, inside)) in apart.iter().zip(x.read(runner)?).enumerate() {
            let of: Vec<f32> = match adds {
                true => x.row(row).iter().zip(y.row(row)).map(|(x, y)| x + y).collect(),
                false => x.row(row).to_vec(),
            };
            let mut expected = vec![0.0; of.len()];
            spec::layer_norm(&mut expected, &of, &by, &plus, 1e-5);
            tally.row(apart, expected.iter().copied());
            tally.row(&inside, expected);
        }
        Ok(())
    })
}

fn layer_norm(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    layer("layer_norm", runner, false, &|element, out, x, _, weight, bias| {
        norm::layer_norm(element, out, x, weight, bias, 1e-5)
    })
}

fn add_layer_norm(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    layer("add_layer_norm", runner, true, &|element, out, x, y, weight, bias| {
        norm::add_layer_norm(element, out, x, y, weight, bias, 1e-5)
    })
}
