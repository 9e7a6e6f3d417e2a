//! Attention: paged and by segments, bit for bit against the plain loops, and blind to what a query must not see.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor};
use common::*;
use half::f16;
use proptest::prelude::*;
use weir_kernels::ops::{AttentionRow, BLOCK_LEN};
use weir_kernels::{KernelError, ops, spec};

const LAYERS: usize = 2;
const SCALE: f32 = 0.3;

/// Heads of one model.
#[derive(Debug, Clone, Copy)]
struct Heads {
    q: usize,
    kv: usize,
    dim: usize,
}

/// Sequences with their keys and values in plain rows, and the same in a KV tensor.
struct Cache {
    heads: Heads,
    /// [sequence][position][kv * dim]
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    tables: Vec<Vec<u32>>,
    kv: Tensor,
}

impl Cache {
    /// Sequences of these lengths, written a chunk at a time; blocks are dealt out in an odd order, and what is not written is NaN.
    fn new(seeded: &mut Seeded, heads: Heads, lens: &[usize], chunk: usize, device: &weir_kernels::Device) -> Cache {
        let width = heads.kv * heads.dim;
        let needed: usize = lens.iter().map(|len| len.div_ceil(BLOCK_LEN)).sum();
        let blocks = needed + 3;
        let shape = (blocks, LAYERS, 2, heads.kv, BLOCK_LEN, heads.dim);
        let kv = Tensor::full(f16::NAN, shape, &Device::Cpu).unwrap();
        let mut free: Vec<u32> = (0..blocks as u32).rev().collect();
        let mut cache = Cache { heads, keys: vec![], values: vec![], tables: vec![], kv };
        for len in lens {
            let table: Vec<u32> =
                (0..len.div_ceil(BLOCK_LEN)).map(|_| free.swap_remove(seeded.below(free.len()))).collect();
            let qkv = seeded.floats(len * (heads.q * heads.dim + 2 * width));
            let rows = tensor(&qkv, *len);
            let k = rows.narrow(1, heads.q * heads.dim, width).unwrap();
            let v = rows.narrow(1, heads.q * heads.dim + width, width).unwrap();
            let slots: Vec<u32> = (0..*len).map(|p| table[p / BLOCK_LEN] * 32 + (p % BLOCK_LEN) as u32).collect();
            for first in (0..*len).step_by(chunk) {
                let count = chunk.min(len - first);
                let (k, v) = (k.narrow(0, first, count).unwrap(), v.narrow(0, first, count).unwrap());
                ops::kv_write(&cache.kv, &k, &v, 1, &slots[first..first + count].into(), device).unwrap();
            }
            let rounded = |t: &Tensor| {
                let halves = t.contiguous().unwrap().to_dtype(DType::F16).unwrap();
                values(&halves.to_dtype(DType::F32).unwrap())
            };
            cache.keys.push(rounded(&k));
            cache.values.push(rounded(&v));
            cache.tables.push(table);
        }
        cache
    }

    fn expected(&self, q: &[f32], sequence: usize, position: usize, window: Option<u32>) -> Vec<f32> {
        let Heads { q: heads, kv, dim } = self.heads;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
        let mut out = vec![f32::NAN; heads * dim];
        for head in 0..heads {
            let at = |p: usize, d: usize| (p * kv + head / (heads / kv)) * dim + d;
            spec::attention(
                &mut out[head * dim..][..dim],
                &q[head * dim..][..dim],
                first,
                position,
                SCALE,
                |p, d| self.keys[sequence][at(p, d)],
                |p, d| self.values[sequence][at(p, d)],
            );
        }
        out
    }
}

/// Rows of (context, new tokens) in one batch equal the plain loop, on every instruction set.
fn batch_equals_spec(heads: Heads, rows: &[(usize, usize)], window: Option<u32>, seed: u64) {
    let mut seeded = Seeded::new(seed);
    let lens: Vec<usize> = rows.iter().map(|(context, tokens)| context + tokens).collect();
    let cache = Cache::new(&mut seeded, heads, &lens, 7 + seed as usize % 60, &cpu(2));
    let width = heads.q * heads.dim;
    let tokens: usize = rows.iter().map(|(_, tokens)| tokens).sum();
    let q = seeded.floats(tokens * (width + 5));
    let mut batch = vec![];
    let mut first = 0;
    for ((context, count), blocks) in rows.iter().zip(&cache.tables) {
        batch.push(AttentionRow { first_token: first, tokens: *count as u32, context: *context as u32, blocks });
        first += *count as u32;
    }
    let mut expected = vec![];
    let mut token = 0;
    for (sequence, (context, count)) in rows.iter().enumerate() {
        for at in 0..*count {
            let q = &q[token * (width + 5) + 2..][..width];
            expected.extend(cache.expected(q, sequence, context + at, window));
            token += 1;
        }
    }
    for device in devices() {
        let out = unwritten(tokens, width);
        let q = tensor(&q, tokens).narrow(1, 2, width).unwrap();
        ops::paged_attention(&out, &q, &cache.kv, 1, &batch[..].into(), heads.q, SCALE, window, &device).unwrap();
        assert_bits(&values(&out), &expected, &(heads, rows, window, &device));
    }
}

#[test]
fn decode_rows_equal_the_plain_loop() {
    for (q, kv, dim) in [(9, 3, 64), (4, 4, 16), (14, 2, 64), (16, 1, 32), (2, 1, 80)] {
        let rows = [(0, 1), (31, 1), (32, 1), (63, 1), (150, 1)];
        batch_equals_spec(Heads { q, kv, dim }, &rows, None, 1);
    }
}

#[test]
fn mixed_prefill_and_decode_equal_the_plain_loop() {
    let rows = [(0, 70), (40, 1), (33, 35), (0, 1), (95, 2)];
    batch_equals_spec(Heads { q: 9, kv: 3, dim: 64 }, &rows, None, 2);
    batch_equals_spec(Heads { q: 6, kv: 6, dim: 48 }, &rows, None, 3);
}

#[test]
fn windows_hide_what_is_older() {
    for window in [1, 5, 32, 33, 100] {
        let rows = [(0, 50), (90, 20), (130, 1)];
        batch_equals_spec(Heads { q: 4, kv: 2, dim: 32 }, &rows, Some(window), u64::from(window));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_batch_equals_the_plain_loop(
        rows in prop::collection::vec((0usize..100, 1usize..40), 1..5),
        shape in 0usize..4,
        window in prop::option::of(1u32..80),
        seed in 0u64..1000,
    ) {
        let (q, kv, dim) = [(9, 3, 32), (2, 2, 16), (7, 1, 16), (12, 4, 48)][shape];
        batch_equals_spec(Heads { q, kv, dim }, &rows, window, seed);
    }
}

#[test]
fn chunks_of_a_prompt_do_not_change_a_bit() {
    let heads = Heads { q: 9, kv: 3, dim: 64 };
    let mut seeded = Seeded::new(5);
    let device = cpu(2);
    let cache = Cache::new(&mut seeded, heads, &[150], 150, &device);
    let q = tensor(&seeded.floats(150 * 576), 150);
    let attend = |chunk: usize| {
        let out = unwritten(150, 576);
        for first in (0..150).step_by(chunk) {
            let count = chunk.min(150 - first);
            let row =
                AttentionRow { first_token: 0, tokens: count as u32, context: first as u32, blocks: &cache.tables[0] };
            let (out, q) = (out.narrow(0, first, count).unwrap(), q.narrow(0, first, count).unwrap());
            ops::paged_attention(&out, &q, &cache.kv, 1, &[row][..].into(), 9, SCALE, None, &device).unwrap();
        }
        values(&out)
    };
    let whole = attend(150);
    for chunk in [1, 13, 32, 64] {
        assert_bits(&attend(chunk), &whole, &chunk);
    }
}

#[test]
fn attention_is_softmax_attention() {
    let heads = Heads { q: 2, kv: 1, dim: 16 };
    let mut seeded = Seeded::new(6);
    let cache = Cache::new(&mut seeded, heads, &[100], 100, &cpu(1));
    let q = seeded.floats(32);
    let got = cache.expected(&q, 0, 99, None);
    for head in 0..2 {
        let scores: Vec<f64> = (0..100)
            .map(|p| {
                (0..16).map(|d| f64::from(q[head * 16 + d]) * f64::from(cache.keys[0][p * 16 + d])).sum::<f64>()
                    * f64::from(SCALE)
            })
            .collect();
        let sum: f64 = scores.iter().map(|s| s.exp()).sum();
        for d in 0..16 {
            let exact: f64 =
                scores.iter().enumerate().map(|(p, s)| s.exp() / sum * f64::from(cache.values[0][p * 16 + d])).sum();
            assert!((f64::from(got[head * 16 + d]) - exact).abs() < 1e-6, "head {head} {d}");
        }
    }
}

#[test]
fn bad_tables_and_slots_are_refused() {
    let heads = Heads { q: 2, kv: 1, dim: 16 };
    let device = cpu(1);
    let cache = Cache::new(&mut Seeded::new(7), heads, &[40], 40, &device);
    let (out, q) = (unwritten(2, 32), unwritten(2, 32));
    let attend = |rows: &[AttentionRow<'_>], window| {
        ops::paged_attention(&out, &q, &cache.kv, 1, &rows.into(), 2, SCALE, window, &device)
    };
    let row = AttentionRow { first_token: 0, tokens: 1, context: 0, blocks: &[0] };
    assert!(attend(&[row], None).is_ok());
    assert!(matches!(attend(&[row], Some(0)), Err(KernelError::Shape { .. })));
    assert!(matches!(attend(&[AttentionRow { context: 32, ..row }], None), Err(KernelError::Shape { .. })));
    assert!(matches!(
        attend(&[AttentionRow { blocks: &[5], ..row }], None),
        Err(KernelError::Range { index: 5, bound: 5, .. })
    ));
    assert!(matches!(attend(&[row, row], None), Err(KernelError::Shape { .. })));
    assert!(matches!(attend(&[AttentionRow { first_token: 2, ..row }], None), Err(KernelError::Shape { .. })));
    let far = AttentionRow { context: u32::MAX, tokens: u32::MAX, ..row };
    assert!(matches!(attend(&[far], None), Err(KernelError::Shape { .. })));
    let k = unwritten(1, 16);
    assert!(matches!(
        ops::kv_write(&cache.kv, &k, &k.copy().unwrap(), 0, &[160][..].into(), &device),
        Err(KernelError::Range { index: 160, .. })
    ));
    assert!(matches!(
        ops::kv_write(&cache.kv, &k, &k.copy().unwrap(), 2, &[0][..].into(), &device),
        Err(KernelError::Range { index: 2, .. })
    ));
}

fn segments_equal_spec(lens: &[u32], heads: usize, dim: usize, seed: u64) {
    let m = lens.iter().sum::<u32>() as usize;
    let width = heads * dim;
    let qkv = Seeded::new(seed).floats(m * 3 * width);
    let mut expected = vec![f32::NAN; m * width];
    let mut start = 0;
    for len in lens {
        for token in start..start + *len as usize {
            for head in 0..heads {
                let at = |row: usize, part: usize, d: usize| qkv[row * 3 * width + part * width + head * dim + d];
                let q: Vec<f32> = (0..dim).map(|d| at(token, 0, d)).collect();
                spec::segment_attention(
                    &mut expected[token * width + head * dim..][..dim],
                    &q,
                    *len as usize,
                    SCALE,
                    |p, d| at(start + p, 1, d),
                    |p, d| at(start + p, 2, d),
                );
            }
        }
        start += *len as usize;
    }
    for device in devices() {
        let out = unwritten(m, width);
        ops::segment_attention(&out, &tensor(&qkv, m), &lens.into(), heads, dim, SCALE, &device).unwrap();
        assert_bits(&values(&out), &expected, &(lens, heads, dim, &device));
    }
}

#[test]
fn segments_equal_the_plain_loop() {
    segments_equal_spec(&[1], 2, 16, 1);
    segments_equal_spec(&[16, 33, 1, 70], 3, 32, 2);
    segments_equal_spec(&[32, 64], 2, 48, 3);
    segments_equal_spec(&[13], 1, 64, 4);
}
