//! Models on an emulated GPU: the dispatch, plans, launches and kernels that a GPU runs, against the CPU. Products are plain loops.

use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use weir_kernels::launch::sample::SampleRow;
use weir_kernels::sample::Draw;
use weir_kernels::{Device, Pool, ops};
use weir_models::{BLOCK_LEN, KvStore, Llama, Model, ModelSource, Row};

use crate::emulation::Emulator;
use crate::support::{BLOCKS, Random, Tiny, write_folder};

/// A GPU in emulation: threads and blocks in an order of their own.
pub fn gpu() -> Device {
    Device::emulated(Arc::new(|| Box::new(Emulator::new(7))), Pool::new(2))
}

fn load(path: &Path, device: &Device) -> (Llama, KvStore) {
    let source = ModelSource::open(path).unwrap();
    let kv = source.kv_store(BLOCKS, device).unwrap();
    match source.load(device, 256).unwrap() {
        Model::Generate(llama) => (llama, kv),
        Model::Embed(_) => panic!("a decoder was written"),
    }
}

/// The largest difference, relative to the largest logit.
fn off(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    got.iter().zip(expected).fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

/// Logits of two sequences in three steps: a prompt whole beside the beginning of the other; the rest of that one beside one token;
/// one token each.
fn steps(path: &Path, device: &Device) -> Vec<Vec<f32>> {
    let (mut llama, kv) = load(path, device);
    let mut random = Random(5);
    let (a, b) = (random.ids(71, 100), random.ids(52, 100));
    // Blocks in no order.
    let tables: [Vec<u32>; 2] = [vec![9, 2, 40], vec![17, 3]];
    assert!(tables.iter().zip([&a, &b]).all(|(table, ids)| table.len() * BLOCK_LEN >= ids.len()));
    let row = |ids, position, table: usize, logits| Row { ids, position, blocks: &tables[table], logits };
    [
        vec![row(&a[..69], 0, 0, true), row(&b[..20], 0, 1, false)],
        vec![row(&a[69..70], 69, 0, true), row(&b[20..51], 20, 1, true)],
        vec![row(&a[70..], 70, 0, true), row(&b[51..], 51, 1, true)],
    ]
    .iter()
    .map(|rows| {
        let mut logits = Vec::new();
        llama.forward(rows, &kv, &mut logits).unwrap();
        logits
    })
    .collect()
}

#[test]
fn decoders_on_a_gpu_compute_what_the_cpu_does() {
    let tiny = Tiny { hidden: 64, intermediate: 64, layers: 2, ..Tiny::default() };
    let wide = Tiny { hidden: 256, intermediate: 256, layers: 1, head_dim: 64, tied: true, ..Tiny::default() };
    for (architecture, tiny, dtype, bound) in [
        // The CPU keeps keys and values in f16, this GPU in f32.
        ("llama", tiny, GgmlDType::F32, 2e-3),
        ("qwen3", Tiny { qk_norm: true, head_dim: 32, ..tiny }, GgmlDType::F32, 2e-3),
        ("qwen2", Tiny { bias: true, ..tiny }, GgmlDType::F16, 1e-2),
        // Blocks are multiplied in f32, activations between are bf16.
        ("llama", wide, GgmlDType::Q4_1, 5e-2),
    ] {
        let folder = tempfile::tempdir().unwrap();
        tiny.write_gguf(&folder.path().join("tiny.gguf"), architecture, &tiny.weights(22), dtype);
        let expected = steps(folder.path(), &Pool::new(1).into());
        for (step, (got, expected)) in steps(folder.path(), &gpu()).iter().zip(&expected).enumerate() {
            let off = off(got, expected);
            assert!(off < bound, "{architecture} {dtype:?}, step {step}: {off} of the largest logit");
        }
    }
}

#[test]
fn ids_are_drawn_where_the_logits_lie() {
    let tiny = Tiny { layers: 1, ..Tiny::default() };
    let folder = tempfile::tempdir().unwrap();
    tiny.write_gguf(&folder.path().join("tiny.gguf"), "llama", &tiny.weights(3), GgmlDType::F32);
    let device = gpu();
    let (mut llama, kv) = load(folder.path(), &device);
    let ids = Random(8).ids(30, 100);
    let rows: Vec<Row<'_>> = [7, 12, 30]
        .iter()
        .zip([&[1u32][..], &[4], &[2]])
        .map(|(len, blocks)| Row { ids: &ids[..*len], position: 0, blocks, logits: true })
        .collect();
    let draw = |temperature, seed| Draw { temperature, top_k: 20, top_p: 0.9, min_p: 0.0, seed, drawn: 3 };
    let how = [SampleRow::Draw(draw(0.0, 0)), SampleRow::Skip, SampleRow::Draw(draw(0.8, 77))];
    let mut checked = 0;
    llama
        .forward_with(&rows, &kv, |first, scores| {
            assert_eq!(first, 0);
            let mut logits = Vec::new();
            ops::read_rows(scores, &mut logits, &device)?;
            let drawn = ops::sample(scores, &how, &device)?;
            let mut scratch = weir_kernels::sample::Scratch::default();
            for (row, logits) in logits.chunks_exact(tiny.vocab).enumerate() {
                let expected = match &how[row] {
                    SampleRow::Draw(draw) => weir_kernels::sample::draw(logits, draw, &mut scratch).ok(),
                    SampleRow::Skip => None,
                };
                assert_eq!(drawn[row], expected, "row {row}");
            }
            // The host draws from what it was told to leave alone.
            let mut left = Vec::new();
            ops::read_rows(&scores.narrow(0, 1, 1)?, &mut left, &device)?;
            assert_eq!(left, logits[tiny.vocab..2 * tiny.vocab]);
            checked = logits.len();
            Ok(())
        })
        .unwrap();
    assert_eq!(checked, 3 * tiny.vocab);
}

#[test]
fn encoders_on_a_gpu_compute_what_the_cpu_does() {
    for (dtype, bound) in [(DType::F32, 1e-4), (DType::BF16, 5e-2)] {
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &crate::encoders::config(), &crate::encoders::weights(9), dtype);
        crate::encoders::write_modules(folder.path(), "pooling_mode_mean_tokens", true);
        let embed = |device: &Device| {
            let Model::Embed(mut bert) = ModelSource::open(folder.path()).unwrap().load(device, 300).unwrap() else {
                panic!("an encoder was written")
            };
            let mut random = Random(4);
            let inputs = [3, 40, 1, 33].map(|len| random.ids(len, 60));
            let mut out = Vec::new();
            bert.forward(&inputs.each_ref().map(|ids| &ids[..]), &mut out).unwrap();
            out
        };
        let (got, expected) = (embed(&gpu()), embed(&Pool::new(1).into()));
        let off = off(&got, &expected);
        assert!(off < bound, "{dtype:?}: {off}");
        let len: f32 = got[..got.len() / 4].iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((len - 1.0).abs() < 1e-5, "{len}");
    }
}
