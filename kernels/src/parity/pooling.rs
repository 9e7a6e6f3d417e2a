//! The kernels of `pooling.cu` against [`spec`]: pools to the bit, lengths nearly.

use super::numbers::{Place, Rows, Seeded, Tally, upload_words};
use super::{Check, Finding};
use crate::launch::{Element, Launch, RowsAt, Runner, pooling};
use crate::{KernelError, spec};

pub(super) fn checks() -> Vec<Check> {
    vec![("mean_pool", mean_pool), ("cls_pool", cls_pool), ("l2_normalize", l2_normalize)]
}

/// Segments' lengths and columns.
const SEGMENTS: [(&[u32], usize); 5] =
    [(&[1], 1), (&[3, 1, 8], 37), (&[17, 64, 2], 384), (&[1, 1, 1, 1, 5], 768), (&[130], 1027)];

fn pools(
    kernel: &str,
    runner: &mut dyn Runner,
    launch: fn(Element, RowsAt, RowsAt, u64) -> Launch,
    pool: fn(&mut [f32], &[f32]),
) -> Result<Vec<Finding>, KernelError> {
    let mut findings = Vec::new();
    for element in Element::ALL {
        let mut tally = Tally::new(element);
        for (lens, cols) in SEGMENTS {
            let mut starts = vec![0];
            for len in lens {
                starts.push(starts[starts.len() - 1] + len);
            }
            let rows = starts[lens.len()] as usize;
            for place in Place::each(rows, cols) {
                let mut seeded = Seeded::new((rows + cols) as u64);
                let x = Rows::seeded(runner, element, place, &mut seeded)?;
                let out = Rows::unwritten(runner, element, Place { rows: lens.len(), ..place })?;
                let at = upload_words(runner, &starts)?;
                runner.launch(&launch(element, out.at(), x.at(), at))?;
                for (segment, got) in out.read(runner)?.iter().enumerate() {
                    let rows = starts[segment]..starts[segment + 1];
                    let rows: Vec<f32> = rows.flat_map(|row| x.row(row as usize).to_vec()).collect();
                    let mut expected = vec![0.0; cols];
                    pool(&mut expected, &rows);
                    tally.row(got, expected);
                }
            }
        }
        findings.push(tally.exact(kernel, "1 to 5 segments of 1 to 130 rows of 1 to 1027"));
    }
    Ok(findings)
}

fn mean_pool(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    pools("mean_pool", runner, pooling::mean_pool, spec::mean_pool)
}

fn cls_pool(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    pools("cls_pool", runner, pooling::cls_pool, |out, rows| out.copy_from_slice(&rows[..out.len()]))
}

fn l2_normalize(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let mut findings = Vec::new();
    for element in Element::ALL {
        let mut tally = Tally::new(element);
        for (rows, cols) in [(1, 1), (3, 7), (2, 384), (5, 768), (1, 4099)] {
            for place in Place::each(rows, cols) {
                let mut seeded = Seeded::new((rows + cols) as u64);
                // Among them a vector of zeros, which stays one.
                let zeros = seeded.below(2) == 0;
                let x = Rows::of(runner, element, place, || if zeros { 0.0 } else { seeded.float() })?;
                runner.launch(&pooling::l2_normalize(element, x.at()))?;
                for (row, got) in x.read(runner)?.iter().enumerate() {
                    let mut expected = x.row(row).to_vec();
                    spec::l2_normalize(&mut expected);
                    tally.row(got, expected);
                }
            }
        }
        // A sum of up to 4099 squares in another order.
        findings.push(tally.rounded("l2_normalize", "1 to 5 rows of 1 to 4099", 2e-6));
    }
    Ok(findings)
}
