//! Packing and the matrix product: against candle's dequantisation, and bit for bit against the plain loop.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use common::*;
use proptest::prelude::*;
use weir_kernels::launch::Element;
use weir_kernels::{KernelError, Matrix, PackedMatrix, PackedSource, Pool, WeightType, ops, spec};

fn ggml(dtype: WeightType) -> GgmlDType {
    match dtype {
        WeightType::F32 => GgmlDType::F32,
        WeightType::F16 => GgmlDType::F16,
        WeightType::BF16 => GgmlDType::BF16,
        WeightType::Q4_0 => GgmlDType::Q4_0,
        WeightType::Q4_1 => GgmlDType::Q4_1,
        WeightType::Q5_0 => GgmlDType::Q5_0,
        WeightType::Q5_1 => GgmlDType::Q5_1,
        WeightType::Q8_0 => GgmlDType::Q8_0,
        WeightType::Q2K => GgmlDType::Q2K,
        WeightType::Q3K => GgmlDType::Q3K,
        WeightType::Q4K => GgmlDType::Q4K,
        WeightType::Q5K => GgmlDType::Q5K,
        WeightType::Q6K => GgmlDType::Q6K,
    }
}

/// Values of a quantised matrix by candle's own reading of the file format.
fn candle_values(dtype: WeightType, n: usize, k: usize, bytes: &[u8]) -> Vec<f32> {
    let storage = candle_core::quantized::QStorage::from_data(bytes.into(), &Device::Cpu, ggml(dtype)).unwrap();
    let tensor: Tensor = QTensor::new(storage, (n, k)).unwrap().dequantize(&Device::Cpu).unwrap();
    values(&tensor)
}

#[test]
fn packed_values_are_the_file_formats() {
    let mut seeded = Seeded::new(1);
    for dtype in WeightType::ALL {
        let (n, k) = (35, 512);
        let bytes = file_bytes(&mut seeded, dtype, n, k);
        let packed = PackedMatrix::pack(dtype, n, k, &bytes, &Pool::new(2)).unwrap();
        let expected = candle_values(dtype, n, k, &bytes);
        let mut row = vec![f32::NAN; k];
        for (at, expected) in expected.chunks(k).enumerate() {
            packed.dequantize_row(at, &mut row);
            // Zeros of both signs are equal: d * 0 is -0 for a negative d, fma(0, d, 0) is not.
            assert_eq!(row, expected, "{dtype:?} row {at}");
        }
    }
}

#[test]
fn what_the_type_table_says_is_what_candle_says() {
    for dtype in WeightType::ALL {
        assert_eq!(dtype.block_len(), ggml(dtype).block_size());
        assert_eq!(dtype.block_bytes(), ggml(dtype).type_size());
        assert_eq!(WeightType::try_from(ggml(dtype)), Ok(dtype));
    }
    assert!(WeightType::try_from(GgmlDType::Q8K).is_err());
}

fn product_equals_spec(dtype: WeightType, m: usize, n: usize, k: usize, biased: bool, seed: u64) {
    let mut seeded = Seeded::new(seed);
    let w = matrix(&mut seeded, dtype, n, k);
    let x = seeded.floats(m * k);
    let bias = biased.then(|| seeded.floats(n));
    let mut expected = vec![0.0; m * n];
    for (row, out) in expected.chunks_mut(n).enumerate() {
        spec::product(out, &x[row * k..][..k], w.packed().unwrap(), bias.as_deref());
    }
    for device in devices() {
        let out = unwritten(m, n);
        ops::matmul(&out, &tensor(&x, m), &w, bias.as_deref().map(vector).as_ref(), &device).unwrap();
        assert_bits(&values(&out), &expected, &(dtype, m, n, k, &device));
    }
}

#[test]
fn every_type_and_tile_shape_equals_the_plain_loop() {
    for dtype in WeightType::ALL {
        for m in [1, 2, 7, 13] {
            product_equals_spec(dtype, m, 83, 512, m == 2, m as u64);
        }
    }
}

#[test]
fn every_row_count_equals_the_plain_loop() {
    for m in 1..=50 {
        product_equals_spec(WeightType::Q4_1, m, 50, 96, false, m as u64);
    }
}

#[test]
fn every_type_at_many_rows_equals_the_plain_loop() {
    for (m, dtype) in (8..).zip(WeightType::ALL) {
        product_equals_spec(dtype, m, 40, 256, false, 6);
        product_equals_spec(dtype, m + 12, 17, 768, true, 7);
    }
}

#[test]
fn long_rows_are_taken_in_several_stretches() {
    product_equals_spec(WeightType::Q8_0, 1, 70, 1536, true, 3);
    product_equals_spec(WeightType::Q4K, 30, 40, 2048, true, 4);
    product_equals_spec(WeightType::F32, 3, 33, 1001, false, 5);
    product_equals_spec(WeightType::Q4_0, 9, 18, 32 * 131, true, 6);
    product_equals_spec(WeightType::Q6K, 17, 18, 256 * 17, true, 7);
    product_equals_spec(WeightType::Q2K, 25, 16, 256 * 9, false, 8);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape_equals_the_plain_loop(m in 1usize..70, n in 1usize..150, blocks in 0usize..5, dtype in 0usize..13, biased: bool, seed: u64) {
        let dtype = WeightType::ALL[dtype];
        let k = match dtype.block_len() { 1 => blocks * 37, 32 => blocks * 32, _ => (blocks % 3) * 256 };
        product_equals_spec(dtype, m, n, k, biased, seed);
    }
}

#[test]
fn rows_of_extremes_equal_the_plain_loop() {
    let (n, k) = (33, 256);
    for dtype in [WeightType::Q4_1, WeightType::Q8_0, WeightType::Q6K, WeightType::Q2K] {
        let w = matrix(&mut Seeded::new(21), dtype, n, k);
        let mut x = Seeded::new(22).floats(24 * k);
        for (row, x) in x.chunks_mut(k).enumerate() {
            match row % 6 {
                0 => x.fill(0.0),
                1 => x[32..64].iter_mut().for_each(|x| *x *= 1e-33),
                2 => x.iter_mut().for_each(|x| *x *= 1e30),
                3 => x.iter_mut().enumerate().for_each(|(at, x)| *x = if at % 2 == 0 { 127.0 } else { -127.0 }),
                4 => {
                    x.iter_mut().enumerate().for_each(|(at, x)| *x = if at % 32 == 0 { 127.0 } else { at as f32 + 0.5 })
                }
                _ => x[40] = -1e5,
            }
        }
        let mut expected = vec![0.0; 24 * n];
        for (x, out) in x.chunks(k).zip(expected.chunks_mut(n)) {
            spec::product(out, x, w.packed().unwrap(), None);
        }
        assert!(expected.iter().all(|value| value.is_finite()));
        for device in devices() {
            for m in [3, 24] {
                let out = unwritten(m, n);
                ops::matmul(&out, &tensor(&x[..m * k], m), &w, None, &device).unwrap();
                assert_bits(&values(&out), &expected[..m * n], &(dtype, m, &device));
            }
        }
    }
}

#[test]
fn a_value_that_is_not_a_number_spoils_its_row_alone() {
    let (n, k) = (20, 96);
    let w = matrix(&mut Seeded::new(23), WeightType::Q4_0, n, k);
    let mut x = Seeded::new(24).floats(20 * k);
    x[7 * k + 50] = f32::NAN;
    for device in devices() {
        let out = unwritten(20, n);
        ops::matmul(&out, &tensor(&x, 20), &w, None, &device).unwrap();
        for (row, got) in values(&out).chunks(n).enumerate() {
            assert!(got.iter().all(|value| value.is_nan() == (row == 7)), "row {row} on {device:?}");
        }
    }
}

#[test]
fn coded_values_are_the_nearest_multiples_of_their_scale() {
    let mut seeded = Seeded::new(25);
    for _ in 0..1000 {
        let (mut x, mut codes) = ([0.0; 32], [0; 32]);
        x.copy_from_slice(&seeded.floats(32));
        let scale = spec::code_block(&x, &mut codes);
        assert!(codes.iter().any(|code| code.abs() == 127));
        for (x, code) in x.iter().zip(codes) {
            assert!((x - scale * f32::from(code)).abs() <= scale * 0.50001, "{x} is {code} * {scale}");
        }
    }
}

#[test]
fn a_row_in_a_batch_equals_the_row_alone() {
    let mut seeded = Seeded::new(9);
    let device = cpu(2);
    for dtype in [WeightType::Q4_1, WeightType::Q8_0, WeightType::BF16] {
        let (n, k) = (200, 576);
        let w = matrix(&mut seeded, dtype, n, k);
        let x = seeded.floats(64 * k);
        let all = unwritten(64, n);
        ops::matmul(&all, &tensor(&x, 64), &w, None, &device).unwrap();
        for (x, all) in x.chunks(k).zip(values(&all).chunks(n)) {
            let alone = unwritten(1, n);
            ops::matmul(&alone, &tensor(x, 1), &w, None, &device).unwrap();
            assert_bits(&values(&alone), all, &dtype);
        }
    }
}

#[test]
fn parts_of_different_types_make_one_matrix() {
    let mut seeded = Seeded::new(11);
    let (k, device) = (256, cpu(2));
    let parts = [(WeightType::Q4_1, 40), (WeightType::Q6K, 16), (WeightType::F16, 7), (WeightType::Q4_1, 1)];
    let files: Vec<_> = parts.iter().map(|(dtype, n)| file_bytes(&mut seeded, *dtype, *n, k)).collect();
    let sources: Vec<_> =
        parts.iter().zip(&files).map(|((dtype, n), bytes)| PackedSource { dtype: *dtype, n: *n, k, bytes }).collect();
    let whole = Matrix::load(&sources, Element::F32, &device).unwrap();
    assert_eq!((whole.n(), whole.k()), (64, k));
    for m in [1, 5, 40] {
        let x = tensor(&seeded.floats(m * k), m);
        let out = unwritten(m, 64);
        ops::matmul(&out, &x, &whole, None, &device).unwrap();
        let mut first = 0;
        for source in &sources {
            let part = Matrix::load(&[*source], Element::F32, &device).unwrap();
            let expected = unwritten(m, source.n);
            ops::matmul(&expected, &x, &part, None, &device).unwrap();
            let got = values(&out.narrow(1, first, source.n).unwrap().contiguous().unwrap());
            assert_bits(&got, &values(&expected), &(m, source.dtype));
            first += source.n;
        }
    }
}

#[test]
fn products_into_narrowed_workspaces_leave_the_rest_alone() {
    let mut seeded = Seeded::new(12);
    let (m, n, k, device) = (5, 20, 64, cpu(2));
    let w = matrix(&mut seeded, WeightType::Q4_0, n, k);
    let x = seeded.floats(9 * k);
    let (wide, x) = (unwritten(8, 50), tensor(&x, 9));
    let out = wide.narrow(0, 2, m).unwrap().narrow(1, 17, n).unwrap();
    ops::matmul(&out, &x.narrow(0, 3, m).unwrap(), &w, None, &device).unwrap();
    for (row, got) in values(&wide).chunks(50).enumerate() {
        let mut expected = vec![f32::NAN; 50];
        if (2..7).contains(&row) {
            spec::product(&mut expected[17..37], &values(&x)[(row + 1) * k..(row + 2) * k], w.packed().unwrap(), None);
        }
        assert_bits(got, &expected, &row);
    }
}

#[test]
fn embedding_rows_are_the_tables_rows() {
    let mut seeded = Seeded::new(13);
    let table = matrix(&mut seeded, WeightType::Q8_0, 100, 96);
    let out = unwritten(3, 96);
    ops::embed(&out, &[99, 0, 41][..].into(), &table, &cpu(2)).unwrap();
    for (id, got) in [99, 0, 41].into_iter().zip(values(&out).chunks(96)) {
        let mut expected = vec![0.0; 96];
        table.packed().unwrap().dequantize_row(id, &mut expected);
        assert_bits(got, &expected, &id);
    }
    let refused = ops::embed(&out, &[0, 100, 1][..].into(), &table, &cpu(1));
    assert!(matches!(refused, Err(KernelError::Range { index: 100, bound: 100, .. })), "{refused:?}");
}

#[test]
fn wrong_shapes_and_lengths_are_refused() {
    let device = cpu(1);
    let w = matrix(&mut Seeded::new(14), WeightType::Q4_0, 16, 64);
    let shape = |result| assert!(matches!(result, Err(KernelError::Shape { .. })), "{result:?}");
    shape(ops::matmul(&unwritten(2, 15), &unwritten(2, 64), &w, None, &device));
    shape(ops::matmul(&unwritten(2, 16), &unwritten(3, 64), &w, None, &device));
    shape(ops::matmul(&unwritten(2, 16), &unwritten(2, 65), &w, None, &device));
    shape(ops::matmul(&unwritten(2, 16), &unwritten(2, 64), &w, Some(&vector(&[0.0; 15])), &device));
    shape(ops::matmul(&unwritten(64, 2).t().unwrap(), &unwritten(2, 64), &w, None, &device));
    let pack = |dtype, n, k, len| PackedMatrix::pack(dtype, n, k, &vec![0; len], device.pool()).map(|_| ());
    assert!(matches!(pack(WeightType::Q4_0, 1, 33, 18), Err(KernelError::WeightBlock { block: 32, .. })));
    assert!(matches!(pack(WeightType::Q4K, 1, 128, 72), Err(KernelError::WeightBlock { block: 256, .. })));
    assert!(matches!(pack(WeightType::Q4_0, 2, 32, 35), Err(KernelError::WeightLen { expected: 36, .. })));
    assert!(matches!(pack(WeightType::F32, usize::MAX, 2, 8), Err(KernelError::WeightLen { .. })));
    assert!(PackedMatrix::concat(&[], device.pool()).is_err());
}
