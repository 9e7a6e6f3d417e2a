//! The kernels of `rope.cu` against [`spec`], to the bit.

use super::numbers::{Place, Rows, Seeded, Tally, upload_floats, upload_words};
use super::{Check, Finding};
use crate::launch::{Element, Runner, rope};
use crate::ops::{RopeStyle, RopeTable};
use crate::{KernelError, spec};

pub(super) fn checks() -> Vec<Check> {
    vec![("rope_half", half), ("rope_interleaved", interleaved)]
}

fn half(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    each("rope_half", RopeStyle::Half, spec::rope_half, runner)
}

fn interleaved(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    each("rope_interleaved", RopeStyle::Interleaved, spec::rope_interleaved, runner)
}

fn each(
    kernel: &str,
    style: RopeStyle,
    turn: fn(&mut [f32], &[f32], &[f32]),
    runner: &mut dyn Runner,
) -> Result<Vec<Finding>, KernelError> {
    let mut findings = Vec::new();
    for element in Element::ALL {
        let mut tally = Tally::new(element);
        // Some turn a part of the head only, and some parts are no whole chunks.
        for (rows, heads, head_dim, width) in
            [(1, 1, 64, 64), (5, 12, 64, 64), (3, 5, 128, 128), (4, 3, 16, 12), (2, 2, 80, 20), (3, 2, 10, 2)]
        {
            let table = RopeTable::new(&RopeTable::frequencies(10_000.0, width), 64);
            let (cos, sin): (Vec<f32>, Vec<f32>) = (0..64)
                .flat_map(|position| {
                    let (cos, sin) = table.row(position);
                    cos.iter().copied().zip(sin.iter().copied())
                })
                .unzip();
            let (cos, sin) = (upload_floats(runner, &cos)?, upload_floats(runner, &sin)?);
            for place in Place::each(rows, heads * head_dim) {
                let mut seeded = Seeded::new((rows * heads + width) as u64);
                let positions: Vec<u32> = (0..rows).map(|row| if row == 0 { 63 } else { seeded.word() % 64 }).collect();
                let at = upload_words(runner, &positions)?;
                let x = Rows::seeded(runner, element, place, &mut seeded)?;
                let pairs = width as u32 / 2;
                runner.launch(&rope::rope(element, x.at(), head_dim as u32, at, cos, sin, pairs, style))?;
                for (row, got) in x.read(runner)?.iter().enumerate() {
                    let (cos, sin) = table.row(positions[row] as usize);
                    let mut expected = x.row(row).to_vec();
                    expected.chunks_mut(head_dim).for_each(|head| turn(head, cos, sin));
                    tally.row(got, expected);
                }
            }
        }
        findings.push(tally.exact(kernel, "1 to 5 rows of 1 to 12 heads of 10 to 128, rotary widths 2 to 128"));
    }
    Ok(findings)
}
