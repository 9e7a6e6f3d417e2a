//! What the tests share: seeded values, weights of every type, and comparisons of bits.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use weir_kernels::{Device as On, Isa, Matrix, PackedMatrix, Pool, WeightType};

/// A small seeded generator, so that failures repeat.
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Seeded {
        Seeded(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.word() as usize % bound
    }

    /// Between -1 and 1.
    pub fn float(&mut self) -> f32 {
        self.word() as f32 / (1u32 << 30) as f32 - 1.0
    }

    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// Random file bytes of a matrix; every f16 scale among them is finite and moderate.
pub fn file_bytes(seeded: &mut Seeded, dtype: WeightType, n: usize, k: usize) -> Vec<u8> {
    let blocks = n * k / dtype.block_len();
    let mut bytes = Vec::with_capacity(blocks * dtype.block_bytes());
    for _ in 0..blocks {
        let start = bytes.len();
        match dtype {
            WeightType::F32 => bytes.extend(seeded.float().to_le_bytes()),
            WeightType::F16 => bytes.extend(half::f16::from_f32(seeded.float()).to_le_bytes()),
            WeightType::BF16 => bytes.extend(half::bf16::from_f32(seeded.float()).to_le_bytes()),
            _ => {
                bytes.extend((0..dtype.block_bytes()).map(|_| seeded.word() as u8));
                let halves: &[usize] = match dtype {
                    WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => &[0, 2],
                    WeightType::Q2K => &[80, 82],
                    WeightType::Q3K => &[108],
                    WeightType::Q6K => &[208],
                    _ => &[0],
                };
                for at in halves {
                    let scale = half::f16::from_f32(seeded.float() / 64.0);
                    bytes[start + at..start + at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
    }
    bytes
}

pub fn matrix(seeded: &mut Seeded, dtype: WeightType, n: usize, k: usize) -> Matrix {
    let bytes = file_bytes(seeded, dtype, n, k);
    PackedMatrix::pack(dtype, n, k, &bytes, &Pool::new(1)).unwrap().into()
}

/// The CPU with so many threads.
pub fn cpu(threads: usize) -> On {
    Pool::new(threads).into()
}

pub fn tensor(values: &[f32], rows: usize) -> Tensor {
    Tensor::from_slice(values, (rows, values.len() / rows.max(1)), &Device::Cpu).unwrap()
}

pub fn vector(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
}

/// A tensor of NaN, so that what an op forgets to write shows.
pub fn unwritten(rows: usize, cols: usize) -> Tensor {
    tensor(&vec![f32::NAN; rows * cols], rows)
}

pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The CPU with every instruction set of this machine, with one thread and with three.
pub fn devices() -> Vec<On> {
    Isa::ALL
        .into_iter()
        .filter(|isa| isa.available() == *isa)
        .flat_map(|isa| [Pool::with_isa(1, isa), Pool::with_isa(3, isa)].map(On::cpu))
        .collect()
}

#[track_caller]
pub fn assert_bits(got: &[f32], expected: &[f32], context: &dyn std::fmt::Debug) {
    assert_eq!(got.len(), expected.len(), "{context:?}");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            got.to_bits() == expected.to_bits(),
            "value {at} is {got} ({:08x}), expected {expected} ({:08x}): {context:?}",
            got.to_bits(),
            expected.to_bits()
        );
    }
}
