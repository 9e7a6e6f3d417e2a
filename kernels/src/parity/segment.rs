//! The kernels of `segment.cu` against [`spec::segment_attention`].

use super::attention::Worst;
use super::numbers::{Place, Rows, Seeded, upload_words};
use super::{Check, Finding};
use crate::launch::segment::{SegmentPlan, SegmentShape};
use crate::launch::{Element, Runner};
use crate::{KernelError, spec};

pub(super) fn checks() -> Vec<Check> {
    vec![("segment_attention", attends_within_its_segment)]
}

/// Heads, head_dim, the segments' rows.
const SHAPES: [(usize, usize, &[u32]); 8] = [
    (1, 16, &[1]),
    (2, 32, &[5, 31, 32, 33, 1]),
    (3, 64, &[64, 65, 7]),
    (1, 64, &[130]),
    (2, 80, &[17, 40]),
    (1, 128, &[70, 3]),
    (1, 144, &[33]),
    (1, 256, &[20, 66]),
];

fn attends_within_its_segment(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let mut findings = Vec::new();
    for element in Element::ALL {
        let mut worst = Worst::default();
        for (heads, dim, lens) in SHAPES {
            let (width, rows) = (heads * dim, lens.iter().sum::<u32>() as usize);
            // The last place has rows that do not begin at multiples of 16 bytes.
            for place in Place::each(rows, 3 * width) {
                let mut seeded = Seeded::new((rows * dim) as u64);
                let qkv = Rows::seeded(runner, element, place, &mut seeded)?;
                let out = Rows::unwritten(runner, element, Place { cols: width, ..place })?;
                let shape = SegmentShape { heads: heads as u32, head_dim: dim as u32, element };
                let plan = SegmentPlan::new(lens, shape)?;
                let words = upload_words(runner, plan.words())?;
                // Twice what models use, so that weights differ.
                let scale = 2.0 / (dim as f32).sqrt();
                for launch in plan.launches(out.at(), qkv.at(), scale, words)? {
                    runner.launch(&launch)?;
                }
                let got = out.read(runner)?;
                let mut start = 0;
                for len in lens.iter().map(|len| *len as usize) {
                    for (row, got) in got.iter().enumerate().skip(start).take(len) {
                        let mut expected = vec![0.0; width];
                        for (head, expected) in expected.chunks_mut(dim).enumerate() {
                            let at = head * dim;
                            let q = &qkv.row(row)[at..at + dim];
                            let key = |p: usize, d: usize| qkv.row(start + p)[width + at + d];
                            let value = |p: usize, d: usize| qkv.row(start + p)[2 * width + at + d];
                            spec::segment_attention(expected, q, len, scale, key, value);
                        }
                        worst.row(got, &expected);
                    }
                    start += len;
                }
            }
        }
        findings.push(worst.finding(element, "segment_attention", "heads of 16 to 256, segments of 1 to 130"));
    }
    Ok(findings)
}
