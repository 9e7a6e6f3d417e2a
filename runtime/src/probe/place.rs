//! Where a probe runs.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use weir_kernels::launch::Runner;
use weir_kernels::{Device, Matrix, PackedMatrix, WeightType, ops};

use super::ProbeError;

/// How long something took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Elapsed {
    /// By the device's own clock, from the first to the last thing it was given.
    pub(super) device: Duration,
    /// By the host's, from before the call until its results were there.
    pub(super) host: Duration,
}

/// A rate of a device.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rate {
    /// `copy`, `matrix`.
    pub(super) name: &'static str,
    /// How many a second.
    pub(super) value: f64,
    /// Of what.
    pub(super) unit: &'static str,
    /// On what it was measured.
    pub(super) how: String,
}

/// A device with a clock.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) device: &'a Device,
}

impl Place<'_> {
    /// `cpu` or `cuda`.
    pub(super) fn name(self) -> &'static str {
        if self.device.is_cuda() { "cuda" } else { "cpu" }
    }

    /// Runs `work` and says how long it took; what the device was given before is waited for, and not counted.
    pub(super) fn clock(self, work: impl FnOnce() -> Result<(), ProbeError>) -> Result<Elapsed, ProbeError> {
        self.device.synchronize()?;
        let clock = Instant::now();
        let began = self.device.event()?;
        work()?;
        let ended = self.device.event()?;
        ended.wait()?;
        let host = clock.elapsed();
        Ok(Elapsed { device: Duration::from_nanos(began.nanos_until(&ended)?), host })
    }

    /// What runs CUDA kernels, if anything does.
    pub(super) fn runner(self) -> Option<Box<dyn Runner>> {
        self.device.runner()
    }

    /// Launches so far: of kernels, and of regions of the pool.
    pub(super) fn launches(self) -> u64 {
        self.device.progress()
    }

    /// How fast it copies and multiplies.
    pub(super) fn rates(self) -> Result<Vec<Rate>, ProbeError> {
        if self.device.is_cuda() {
            return Ok(vec![self.device_copy()?, self.device_product()?]);
        }
        Ok(vec![self.memory_copy()?, self.cpu_product()?])
    }

    fn device_copy(self) -> Result<Rate, ProbeError> {
        const WORDS: usize = 1 << 29;
        let from = Tensor::zeros(WORDS, DType::F32, self.device.tensors())?;
        let best = self.best(|| {
            black_box(from.copy()?);
            Ok(())
        })?;
        let bytes = WORDS * size_of::<f32>();
        let how = format!("device copy of {} MiB, read and write counted", bytes >> 20);
        Ok(Rate { name: "copy", value: 2.0 * bytes as f64 / best.as_secs_f64(), unit: "B/s", how })
    }

    fn device_product(self) -> Result<Rate, ProbeError> {
        const N: usize = 8192;
        // Not all alike: a GPU that toggles few bits draws less power, and clocks higher than it would at work.
        let matrix = || Tensor::rand(-1f32, 1.0, (N, N), self.device.tensors())?.to_dtype(DType::BF16);
        let (a, b) = (matrix()?, matrix()?);
        let best = self.best(|| {
            black_box(a.matmul(&b)?);
            Ok(())
        })?;
        let how = format!("bf16 product of {N} x {N} x {N} by cuBLAS, sums in f32");
        Ok(Rate { name: "matrix", value: 2.0 * (N as f64).powi(3) / best.as_secs_f64(), unit: "FLOP/s", how })
    }

    fn memory_copy(self) -> Result<Rate, ProbeError> {
        /// Bytes that one thread copies in one task.
        const PIECE: usize = 4 << 20;
        /// Pieces of a copy: too much for any cache.
        const PIECES: usize = 64;
        let from = vec![1u8; PIECE * PIECES];
        let into: Vec<Mutex<Vec<u8>>> = (0..PIECES).map(|_| Mutex::new(vec![0; PIECE])).collect();
        let best = self.best(|| {
            self.device.pool().run(PIECES, |task| {
                if let Ok(mut into) = into[task].lock() {
                    into.copy_from_slice(&from[task * PIECE..(task + 1) * PIECE]);
                }
            });
            Ok(())
        })?;
        black_box(&into);
        let how = format!("memory copy of {} MiB, read and write counted, {}", from.len() >> 20, self.words());
        Ok(Rate { name: "copy", value: 2.0 * from.len() as f64 / best.as_secs_f64(), unit: "B/s", how })
    }

    fn cpu_product(self) -> Result<Rate, ProbeError> {
        const M: usize = 256;
        const N: usize = 2048;
        let weights: Vec<u8> = (0..N * N).flat_map(|at| ((at % 97) as f32 / 97.0).to_le_bytes()).collect();
        let weights = Matrix::from(PackedMatrix::pack(WeightType::F32, N, N, &weights, self.device.pool())?);
        let x = Tensor::ones((M, N), DType::F32, self.device.tensors())?;
        let out = Tensor::zeros((M, N), DType::F32, self.device.tensors())?;
        let best = self.best(|| Ok(ops::matmul(&out, &x, &weights, None, self.device)?))?;
        let how = format!("f32 product of {M} x {N} x {N}, {}", self.words());
        Ok(Rate { name: "matrix", value: (2 * M * N * N) as f64 / best.as_secs_f64(), unit: "FLOP/s", how })
    }

    fn words(self) -> String {
        let pool = self.device.pool();
        format!("{} threads, {}", pool.threads(), pool.isa().name())
    }

    /// The shortest of several times, after one that does not count: a neighbour only ever makes it longer.
    fn best(self, mut work: impl FnMut() -> Result<(), ProbeError>) -> Result<Duration, ProbeError> {
        const REPEATS: usize = 10;
        work()?;
        let mut best = Duration::MAX;
        for _ in 0..REPEATS {
            best = best.min(self.clock(&mut work)?.device);
        }
        Ok(best.max(Duration::from_nanos(1)))
    }
}
