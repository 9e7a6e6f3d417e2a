//! The kernels of `elementwise.cu` against the CPU's functions, to the bit.

use super::numbers::{Place, Rows, Seeded, Tally, round, upload_floats, upload_words};
use super::{Check, Finding};
use crate::launch::{Element, Launch, Runner, elementwise};
use crate::ops::GeluKind;
use crate::{KernelError, math, spec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        ("add", add),
        ("silu_mul", silu_mul),
        ("gelu", gelu),
        ("add_bias", add_bias),
        ("gather_rows", gather_rows),
        ("casts", casts),
    ]
}

const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 7), (2, 16), (40, 100), (3, 1536), (1, 9001)];
const SHAPES_SAID: &str = "1 to 40 rows of 1 to 9001, packed, and aligned and unaligned among wider rows";

fn over(
    kernel: &str,
    runner: &mut dyn Runner,
    mut each: impl FnMut(&mut dyn Runner, Element, Place, &mut Seeded, &mut Tally) -> Result<(), KernelError>,
) -> Result<Vec<Finding>, KernelError> {
    let mut findings = Vec::new();
    for element in Element::ALL {
        let mut tally = Tally::new(element);
        for (rows, cols) in SHAPES {
            for place in Place::each(rows, cols) {
                each(runner, element, place, &mut Seeded::new((rows + cols) as u64), &mut tally)?;
            }
        }
        findings.push(tally.exact(kernel, SHAPES_SAID));
    }
    Ok(findings)
}

fn add(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    over("add", runner, |runner, element, place, seeded, tally| {
        let x = Rows::seeded(runner, element, place, seeded)?;
        let y = Rows::seeded(runner, element, Place { stride: place.stride + 8, ..place }, seeded)?;
        runner.launch(&elementwise::add(element, x.at(), y.at()))?;
        for (row, got) in x.read(runner)?.iter().enumerate() {
            tally.row(got, x.row(row).iter().zip(y.row(row)).map(|(x, y)| x + y));
        }
        Ok(())
    })
}

/// Activations' inputs: mostly moderate, some where functions flatten out.
fn steep(seeded: &mut Seeded) -> f32 {
    let x = seeded.float();
    x * [1.0, 4.0, 12.0, 100.0][seeded.below(4)]
}

fn silu_mul(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    over("silu_mul", runner, |runner, element, place, seeded, tally| {
        let wide = Place { cols: 2 * place.cols, stride: place.stride + place.cols.next_multiple_of(8), ..place };
        let gate_up = Rows::of(runner, element, wide, || steep(seeded))?;
        let out = Rows::unwritten(runner, element, place)?;
        runner.launch(&elementwise::silu_mul(element, out.at(), gate_up.at()))?;
        for (row, got) in out.read(runner)?.iter().enumerate() {
            let mut expected = vec![0.0; place.cols];
            spec::silu_mul(&mut expected, gate_up.row(row));
            tally.row(got, expected);
        }
        Ok(())
    })
}

fn gelu(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let mut findings = Vec::new();
    let kinds =
        [("gelu_erf", GeluKind::Erf, math::gelu_erf as fn(f32) -> f32), ("gelu_tanh", GeluKind::Tanh, math::gelu_tanh)];
    for (kernel, kind, gelu) in kinds {
        findings.extend(over(kernel, runner, |runner, element, place, seeded, tally| {
            let x = Rows::of(runner, element, place, || steep(seeded))?;
            runner.launch(&elementwise::gelu(element, x.at(), kind))?;
            for (row, got) in x.read(runner)?.iter().enumerate() {
                tally.row(got, x.row(row).iter().map(|x| gelu(*x)));
            }
            Ok(())
        })?);
    }
    Ok(findings)
}

fn add_bias(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    over("add_bias", runner, |runner, element, place, seeded, tally| {
        let x = Rows::seeded(runner, element, place, seeded)?;
        let values = seeded.floats(place.cols);
        let bias = upload_floats(runner, &values)?;
        runner.launch(&elementwise::add_bias(element, x.at(), bias))?;
        for (row, got) in x.read(runner)?.iter().enumerate() {
            tally.row(got, x.row(row).iter().zip(&values).map(|(x, bias)| x + bias));
        }
        Ok(())
    })
}

fn gather_rows(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    over("gather_rows", runner, |runner, element, place, seeded, tally| {
        let x = Rows::seeded(runner, element, place, seeded)?;
        let out = Rows::unwritten(runner, element, Place { rows: place.rows + 2, ..place })?;
        // The last of the table, one past it, and the id that stands for a failed row among them.
        let mut rows: Vec<u32> = (0..place.rows + 2).map(|_| seeded.below(place.rows) as u32).collect();
        rows[0] = place.rows as u32 - 1;
        rows[1] = place.rows as u32;
        rows[2] = u32::MAX;
        let at = upload_words(runner, &rows)?;
        runner.launch(&elementwise::gather_rows(element, out.at(), x.at(), at))?;
        for (got, row) in out.read(runner)?.iter().zip(rows) {
            match (row as usize) < place.rows {
                true => tally.row(got, x.row(row as usize).iter().copied()),
                false => tally.row(got, vec![0.0; place.cols]),
            }
        }
        Ok(())
    })
}

fn casts(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let mut findings = over("to_f32", runner, |runner, element, place, seeded, tally| {
        let x = Rows::of(runner, element, place, || steep(seeded))?;
        let out = Rows::unwritten(runner, Element::F32, place)?;
        let launch: Launch = elementwise::to_f32(element, out.at(), x.at());
        runner.launch(&launch)?;
        for (row, got) in out.read(runner)?.iter().enumerate() {
            tally.row(got, x.row(row).iter().copied());
        }
        Ok(())
    })?;
    findings.extend(over("from_f32", runner, |runner, element, place, seeded, tally| {
        // Small numbers of every size too: where a type's exponents end, rounding is to its last fraction.
        let x = Rows::of(runner, Element::F32, place, || {
            let small = (-(seeded.below(40) as f32)).exp2();
            steep(seeded) * small
        })?;
        let out = Rows::unwritten(runner, element, place)?;
        runner.launch(&elementwise::from_f32(element, out.at(), x.at()))?;
        for (row, got) in out.read(runner)?.iter().enumerate() {
            tally.row(got, x.row(row).iter().map(|x| round(element, *x)));
        }
        Ok(())
    })?);
    Ok(findings)
}
