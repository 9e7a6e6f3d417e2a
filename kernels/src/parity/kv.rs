//! The kernel of `kv_write.cu`: every element where it belongs, and nothing else touched.

use super::numbers::{Place, Rows, Seeded, upload_words};
use super::{Check, Finding};
use crate::KernelError;
use crate::launch::kv::kv_write;
use crate::launch::{Element, KvAt, Runner};

pub(super) fn checks() -> Vec<Check> {
    vec![("kv_write", writes_its_slots_and_nothing_else)]
}

/// What no key or value is.
const UNTOUCHED: f32 = 30_000.0;

/// kv heads, head_dim, rows.
const SHAPES: [(usize, usize, usize); 5] = [(1, 16, 1), (3, 48, 40), (2, 64, 33), (8, 128, 5), (1, 256, 64)];

fn writes_its_slots_and_nothing_else(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    const BLOCKS: usize = 4;
    const LAYERS: usize = 3;
    let mut findings = Vec::new();
    for element in Element::ALL {
        let (mut compared, mut worst) = (0, 0.0f64);
        for (kv_heads, dim, rows) in SHAPES {
            for place in Place::each(rows, kv_heads * dim) {
                let mut seeded = Seeded::new((rows * dim) as u64);
                let k = Rows::seeded(runner, element, place, &mut seeded)?;
                let v = Rows::seeded(runner, element, place, &mut seeded)?;
                let tiles = Place::packed(BLOCKS * LAYERS * 2 * kv_heads * 32, dim);
                let kv = Rows::of(runner, element, tiles, || UNTOUCHED)?;
                let mut free: Vec<u32> = (0..BLOCKS as u32 * 32).collect();
                let slots: Vec<u32> = (0..rows).map(|_| free.swap_remove(seeded.below(free.len()))).collect();
                // One row more than there are slots in the tensor: it is skipped.
                let mut uploaded = slots.clone();
                uploaded[0] = u32::MAX;
                let words = upload_words(runner, &uploaded)?;
                let layer = 1;
                let at = KvAt {
                    ptr: kv.at().ptr,
                    blocks: BLOCKS as u32,
                    layers: LAYERS as u32,
                    kv_heads: kv_heads as u32,
                    head_dim: dim as u32,
                };
                runner.launch(&kv_write(element, at, k.at(), v.at(), layer, words))?;
                let mut expected = vec![vec![UNTOUCHED; dim]; tiles.rows];
                for (row, slot) in slots.iter().enumerate().skip(1) {
                    let (block, position) = (*slot as usize / 32, *slot as usize % 32);
                    for head in 0..kv_heads {
                        let tile = |of_values: usize| ((block * LAYERS + 1) * 2 + of_values) * kv_heads + head;
                        expected[tile(0) * 32 + position].copy_from_slice(&k.row(row)[head * dim..][..dim]);
                        expected[tile(1) * 32 + position].copy_from_slice(&v.row(row)[head * dim..][..dim]);
                    }
                }
                let got = kv.read(runner)?;
                compared += got.len() * dim;
                // 30,000 is no number of bf16; what it was rounded to is as good.
                let untouched = kv.row(0)[0];
                for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
                    let expected = if *expected == UNTOUCHED { untouched } else { *expected };
                    if *got != expected {
                        worst = f64::INFINITY;
                    }
                }
            }
        }
        let case = format!("kv_write_{}: 1 to 8 heads of 16 to 256, up to 64 rows", element.suffix());
        findings.push(Finding { case, compared, worst, bound: 0.0 });
    }
    Ok(findings)
}
