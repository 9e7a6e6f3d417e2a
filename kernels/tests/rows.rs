//! Norms, activations, rotation, pooling: bit for bit against the plain loops, on every instruction set.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use weir_kernels::ops::{GeluKind, RopeStyle, RopeTable};
use weir_kernels::{KernelError, math, ops, spec};

/// Widths with and without a tail, and one that is one lane short of a vector.
const WIDTHS: [usize; 5] = [15, 16, 64, 100, 576];

#[test]
fn norms_equal_the_plain_loops() {
    for width in WIDTHS {
        for m in [1, 3, 60] {
            let mut seeded = Seeded::new(width as u64);
            let (x, y) = (seeded.floats(m * width), seeded.floats(m * width));
            let (weight, bias) = (seeded.floats(width), seeded.floats(width));
            let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            let rms = |x: &[f32]| {
                let mut out = vec![0.0; m * width];
                for (out, x) in out.chunks_mut(width).zip(x.chunks(width)) {
                    spec::rms_norm(out, x, &weight, 1e-5);
                }
                out
            };
            let layer = |x: &[f32]| {
                let mut out = vec![0.0; m * width];
                for (out, x) in out.chunks_mut(width).zip(x.chunks(width)) {
                    spec::layer_norm(out, x, &weight, &bias, 1e-12);
                }
                out
            };
            for device in devices() {
                let (w, b) = (vector(&weight), vector(&bias));
                let out = unwritten(m, width);
                ops::rms_norm(&out, &tensor(&x, m), &w, 1e-5, &device).unwrap();
                assert_bits(&values(&out), &rms(&x), &("rms_norm", width, m, &device));

                let residual = tensor(&x, m);
                ops::add_rms_norm(&out, &residual, &tensor(&y, m), &w, 1e-5, &device).unwrap();
                assert_bits(&values(&residual), &sum, &("residual", width, m, &device));
                assert_bits(&values(&out), &rms(&sum), &("add_rms_norm", width, m, &device));

                ops::layer_norm(&out, &tensor(&x, m), &w, &b, 1e-12, &device).unwrap();
                assert_bits(&values(&out), &layer(&x), &("layer_norm", width, m, &device));
                ops::add_layer_norm(&out, &tensor(&x, m), &tensor(&y, m), &w, &b, 1e-12, &device).unwrap();
                assert_bits(&values(&out), &layer(&sum), &("add_layer_norm", width, m, &device));

                let heads = tensor(&x, m);
                ops::head_rms_norm(&heads, &w, 1e-5, &device).unwrap();
                assert_bits(&values(&heads), &rms(&x), &("head_rms_norm", width, m, &device));
            }
        }
    }
}

#[test]
fn norms_are_norms() {
    let mut seeded = Seeded::new(2);
    let x = seeded.floats(1000);
    let (mut rms, mut layer) = (vec![0.0; 1000], vec![0.0; 1000]);
    spec::rms_norm(&mut rms, &x, &[1.0; 1000], 0.0);
    spec::layer_norm(&mut layer, &x, &[1.0; 1000], &[0.0; 1000], 0.0);
    let mean = |x: &[f32], f: fn(f64) -> f64| x.iter().map(|x| f(f64::from(*x))).sum::<f64>() / x.len() as f64;
    assert!((mean(&rms, |x| x * x) - 1.0).abs() < 1e-6);
    assert!(mean(&layer, |x| x).abs() < 1e-6);
    assert!((mean(&layer, |x| x * x) - 1.0).abs() < 1e-6);
}

#[test]
fn activations_equal_the_plain_loops() {
    for width in WIDTHS {
        let m = 3;
        let mut seeded = Seeded::new(width as u64);
        let gate_up: Vec<f32> = seeded.floats(2 * m * width).iter().map(|x| x * 12.0).collect();
        let mut expected = vec![0.0; m * width];
        for (out, x) in expected.chunks_mut(width).zip(gate_up.chunks(2 * width)) {
            spec::silu_mul(out, x);
        }
        for device in devices() {
            let out = unwritten(m, width);
            ops::silu_mul(&out, &tensor(&gate_up, m), &device).unwrap();
            assert_bits(&values(&out), &expected, &("silu_mul", width, &device));
            for (kind, gelu) in [(GeluKind::Erf, math::gelu_erf as fn(f32) -> f32), (GeluKind::Tanh, math::gelu_tanh)] {
                let x = tensor(&gate_up, m);
                ops::gelu(&x, kind, &device).unwrap();
                let expected: Vec<f32> = gate_up.iter().map(|x| gelu(*x)).collect();
                assert_bits(&values(&x), &expected, &(kind, width, &device));
            }
        }
    }
}

#[test]
fn rotation_turns_pairs_by_their_angles() {
    let (m, heads, dim) = (4, 3, 16);
    let table = RopeTable::new(&RopeTable::frequencies(10_000.0, 12), 64);
    let positions = [0, 63, 5, 5];
    let mut seeded = Seeded::new(3);
    let x = seeded.floats(m * (heads * dim + 7));
    for (style, partner) in [(RopeStyle::Interleaved, 1usize), (RopeStyle::Half, 6)] {
        for device in devices() {
            let wide = tensor(&x, m);
            ops::rope(
                &wide.narrow(1, 5, heads * dim).unwrap(),
                dim,
                &positions.as_slice().into(),
                &table,
                style,
                &device,
            )
            .unwrap();
            let got = values(&wide);
            for (row, position) in positions.iter().enumerate() {
                let (got, x) = (&got[row * 55..][..55], &x[row * 55..][..55]);
                assert_eq!((&got[..5], &got[53..]), (&x[..5], &x[53..]), "columns outside the range stay");
                for head in 0..heads {
                    let (got, x) = (&got[5 + head * dim..][..dim], &x[5 + head * dim..][..dim]);
                    assert_eq!(got[12..], x[12..], "values past the rotary width stay");
                    for pair in 0..6 {
                        let first = if partner == 1 { 2 * pair } else { pair };
                        let angle = f64::from(*position) * 10_000f64.powf(-(2.0 * pair as f64) / 12.0);
                        let (a, b) = (f64::from(x[first]), f64::from(x[first + partner]));
                        let expected = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos());
                        assert!((f64::from(got[first]) - expected.0).abs() < 1e-6, "{style:?} {row} {head} {pair}");
                        assert!(
                            (f64::from(got[first + partner]) - expected.1).abs() < 1e-6,
                            "{style:?} {row} {head} {pair}"
                        );
                    }
                }
            }
        }
    }
    let refused = ops::rope(&unwritten(1, 16), 16, &[64][..].into(), &table, RopeStyle::Half, &devices()[0]);
    assert!(matches!(refused, Err(KernelError::Range { index: 64, bound: 64, .. })), "{refused:?}");
}

#[test]
fn rows_are_gathered_and_pooled() {
    let mut seeded = Seeded::new(4);
    let (m, d) = (12, 37);
    let x = seeded.floats(m * d);
    let lens = [3u32, 1, 8];
    for device in devices() {
        let t = tensor(&x, m);
        let out = unwritten(3, d);
        ops::gather_rows(&out, &t, &[11, 0, 11][..].into(), &device).unwrap();
        assert_bits(&values(&out), &[&x[11 * d..], &x[..d], &x[11 * d..]].concat(), &device);
        ops::cls_pool(&out, &t, &lens[..].into(), &device).unwrap();
        assert_bits(&values(&out), &[&x[..d], &x[3 * d..4 * d], &x[4 * d..5 * d]].concat(), &device);
        ops::mean_pool(&out, &t, &lens[..].into(), &device).unwrap();
        let mut expected = vec![0.0; 3 * d];
        let mut first = 0;
        for (out, len) in expected.chunks_mut(d).zip(lens) {
            spec::mean_pool(out, &x[first * d..(first + len as usize) * d]);
            first += len as usize;
        }
        assert_bits(&values(&out), &expected, &device);
        ops::l2_normalize(&out, &device).unwrap();
        expected.chunks_mut(d).for_each(spec::l2_normalize);
        assert_bits(&values(&out), &expected, &device);
        for row in expected.chunks(d) {
            let length: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
            assert!((length - 1.0).abs() < 1e-6);
        }
        assert!(ops::mean_pool(&out, &t, &[3, 0, 9][..].into(), &device).is_err(), "an empty segment has no mean");
        assert!(ops::mean_pool(&out, &t, &[3, 1, 7][..].into(), &device).is_err());
        assert!(ops::gather_rows(&out, &t, &[0, 12, 0][..].into(), &device).is_err());
    }
    let zero = tensor(&[0.0; 4], 1);
    ops::l2_normalize(&zero, &devices()[0]).unwrap();
    assert_eq!(values(&zero), [0.0; 4]);
}

#[test]
fn refused_ops_write_nothing() {
    let device = &devices()[0];
    let residual = tensor(&[1.0, 2.0], 1);
    let refused = ops::add_rms_norm(&unwritten(1, 2), &residual, &tensor(&[1.0, 1.0], 1), &vector(&[1.0]), 0.0, device);
    assert!(refused.is_err());
    assert_eq!(values(&residual), [1.0, 2.0]);
    let half = unwritten(1, 2).to_dtype(candle_core::DType::F16).unwrap();
    assert!(matches!(ops::add(&half, &residual, device), Err(KernelError::Shape { .. })));
}
