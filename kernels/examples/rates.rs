//! Prints the rates of the product and of attention on this machine, for the shapes of SmolLM2-135M:
//! `cargo run --release -p weir-kernels --example rates [threads] [products]`. Lines read `figure=... value=... unit=...`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use weir_kernels::launch::Element;
use weir_kernels::ops::{self, AttentionBatch, AttentionRow, Segments};
use weir_kernels::{Device, Matrix, PackedSource, Pool, WeightType};

/// Rows of x.
const ROWS: [usize; 7] = [1, 4, 8, 16, 32, 128, 512];
/// Bytes of weights that take turns.
const COLD_BYTES: usize = 96 << 20;
/// Bytes that are read to find what memory gives.
const FLOOR_BYTES: usize = 256 << 20;

/// What all threads read together, in GB/s.
fn bandwidth(pool: &Pool) -> f64 {
    let words = vec![1u64; FLOOR_BYTES / 8];
    let parts: Vec<&[u64]> = words.chunks(1 << 17).collect();
    let seconds = median(|| {
        pool.run(parts.len(), |part| {
            black_box(parts[part].iter().fold(0u64, |sum, word| sum.wrapping_add(*word)));
        });
    });
    FLOOR_BYTES as f64 / seconds / 1e9
}

/// The median time of one call, over about half a second.
fn median(mut call: impl FnMut()) -> f64 {
    call();
    let mut times = Vec::new();
    let started = Instant::now();
    while times.len() < 5 || (started.elapsed() < Duration::from_millis(400) && times.len() < 2_000) {
        let before = Instant::now();
        call();
        times.push(before.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Bytes of a matrix whose scales are small and finite: every 16-bit word is a small f16.
fn weights(dtype: WeightType, n: usize, k: usize) -> Vec<u8> {
    if dtype == WeightType::F32 {
        return (0..n * k).flat_map(|at| ((at % 97) as f32).to_le_bytes()).collect();
    }
    let len = n * dtype.row_bytes(k).expect("k is a whole number of blocks");
    let mut state = 7u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 24) as u8) & 0x2f
        })
        .collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |arg| arg.parse())?;
    let pool = Pool::new(threads);
    let device = Device::cpu(pool.clone());
    let cpu = candle_core::Device::Cpu;
    println!("figure=threads value={} isa={}", pool.threads(), pool.isa());
    let memory = bandwidth(&pool);
    println!("figure=memory/read value={memory:.1} unit=GB/s bytes={FLOOR_BYTES}");
    let shapes = [
        ("qkv", WeightType::Q4_1, 960, 576),
        ("attn_out", WeightType::Q4_1, 576, 576),
        ("gate_up", WeightType::Q4_1, 3072, 576),
        ("down", WeightType::Q4_1, 576, 1536),
        ("head", WeightType::Q8_0, 49152, 576),
        ("kv_alone", WeightType::Q4_1, 192, 576),
        ("gate_up_q4_0", WeightType::Q4_0, 3072, 576),
        ("gate_up_f16", WeightType::F16, 3072, 576),
        ("gate_up_f32", WeightType::F32, 3072, 576),
        ("qwen_attn_out", WeightType::Q4K, 1536, 1536),
        ("qwen_gate_up", WeightType::Q4K, 17920, 1536),
        ("qwen_down", WeightType::Q6K, 1536, 8960),
    ];
    let of_step = ["qkv", "attn_out", "gate_up", "down", "head"];
    let mut step = [0.0; ROWS.len()];
    for (name, dtype, n, k) in shapes {
        let bytes = weights(dtype, n, k);
        let load = || Matrix::load(&[PackedSource { dtype, n, k, bytes: &bytes }], Element::F32, &device);
        let first = load()?;
        let size = first.packed().expect("it is on the CPU").bytes();
        // As many as a step of a small model reads, so that none is found in a cache.
        let mut matrices = vec![first];
        while matrices.len() * size < COLD_BYTES {
            matrices.push(load()?);
        }
        for (at, m) in ROWS.into_iter().enumerate() {
            if name == "head" && m > 64 {
                continue;
            }
            let x = Tensor::randn(0f32, 1.0, (m, k), &cpu)?;
            let out = Tensor::zeros((m, n), DType::F32, &cpu)?;
            let mut turn = 0;
            let seconds = median(|| {
                turn = (turn + 1) % matrices.len();
                ops::matmul(&out, &x, &matrices[turn], None, &device).expect("shapes fit");
            });
            black_box(&out);
            if of_step.contains(&name) {
                step[at] += if name == "head" { 1.0 } else { 30.0 } * seconds;
            }
            let flops = 2.0 * (m * n * k) as f64 / seconds / 1e9;
            let rate = size as f64 / seconds / 1e9;
            println!(
                "figure=matmul/{name}/{dtype:?}/m{m} value={flops:.1} unit=GFLOP/s us={:.1} gbps={rate:.2} of_read={:.2}",
                seconds * 1e6,
                rate / memory
            );
        }
    }
    for (m, seconds) in ROWS.into_iter().zip(step) {
        println!(
            "figure=products_of_a_step/m{m} value={:.3} unit=ms tokens_per_second={:.0}",
            seconds * 1e3,
            m as f64 / seconds
        );
    }
    if std::env::args().nth(2).is_some_and(|what| what == "products") {
        return Ok(());
    }
    for (tokens, context, rows) in [(1usize, 127usize, 1usize), (1, 1023, 1), (1, 255, 32), (512, 0, 1), (128, 1024, 1)]
    {
        let (heads, kv_heads, dim) = (9, 3, 64);
        let blocks = (tokens + context).div_ceil(32);
        let kv = Tensor::randn(0f32, 1.0, (rows * blocks, 1, 2, kv_heads, 32, dim), &cpu)?.to_dtype(DType::F16)?;
        let q = Tensor::randn(0f32, 1.0, (tokens * rows, heads * dim), &cpu)?;
        let out = Tensor::zeros((tokens * rows, heads * dim), DType::F32, &cpu)?;
        let tables: Vec<Vec<u32>> =
            (0..rows).map(|row| (row * blocks..(row + 1) * blocks).map(|b| b as u32).collect()).collect();
        let rows_of_step: Vec<_> = tables
            .iter()
            .enumerate()
            .map(|(row, blocks)| AttentionRow {
                first_token: (row * tokens) as u32,
                tokens: tokens as u32,
                context: context as u32,
                blocks,
            })
            .collect();
        let batch = AttentionBatch::from(&rows_of_step[..]);
        let seconds =
            median(|| ops::paged_attention(&out, &q, &kv, 0, &batch, heads, 0.125, None, &device).expect("shapes fit"));
        black_box(&out);
        println!(
            "figure=attention/rows{rows}/tokens{tokens}/context{context} value={:.1} unit=us layers30_ms={:.2}",
            seconds * 1e6,
            seconds * 30e3
        );
    }
    for (len, segments) in [(16usize, 1usize), (128, 32)] {
        let (heads, dim, m) = (12, 32, len * segments);
        let qkv = Tensor::randn(0f32, 1.0, (m, 3 * heads * dim), &cpu)?;
        let out = Tensor::zeros((m, heads * dim), DType::F32, &cpu)?;
        let lens = Segments::from(&vec![len as u32; segments][..]);
        let seconds =
            median(|| ops::segment_attention(&out, &qkv, &lens, heads, dim, 0.177, &device).expect("shapes fit"));
        println!("figure=segment_attention/segments{segments}/len{len} value={:.1} unit=us", seconds * 1e6);
    }
    for m in [1usize, 512] {
        let x = Tensor::randn(0f32, 1.0, (m, 576), &cpu)?;
        let out = Tensor::zeros((m, 576), DType::F32, &cpu)?;
        let weight = Tensor::ones(576, DType::F32, &cpu)?;
        let gate_up = Tensor::randn(0f32, 1.0, (m, 3072), &cpu)?;
        let act = Tensor::zeros((m, 1536), DType::F32, &cpu)?;
        let norm = median(|| ops::rms_norm(&out, &x, &weight, 1e-5, &device).expect("shapes fit"));
        let silu = median(|| ops::silu_mul(&act, &gate_up, &device).expect("shapes fit"));
        println!("figure=rms_norm/m{m} value={:.2} unit=us", norm * 1e6);
        println!("figure=silu_mul/m{m} value={:.2} unit=us", silu * 1e6);
    }
    Ok(())
}
