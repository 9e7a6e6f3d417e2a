//! The real models, when `WEIR_TEST_MODELS` names the folder that holds them. If it does and they are not there, these fail.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weir_kernels::Pool;
use weir_models::{Bert, KvStore, Llama, Model, ModelSource, Row};

/// The folder of a real model; `None` where none were promised.
pub fn model(name: &str) -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("WEIR_TEST_MODELS")?).join(name);
    assert!(folder.is_dir(), "WEIR_TEST_MODELS is set, so {} must be there", folder.display());
    Some(folder)
}

/// A committed fixture with reference values.
fn fixture<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[derive(Deserialize)]
struct Ids {
    chats: Vec<Encoded>,
    plain: Vec<Encoded>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
}

/// The ids of the fixture's chats.
pub fn chats() -> Vec<Vec<u32>> {
    fixture::<Ids>("smollm2-ids.json").chats.into_iter().map(|chat| chat.ids).collect()
}

#[test]
fn smollm2_ids_equal_llama_cpps() {
    let Some(folder) = model("smollm2-135m-instruct") else { return };
    let tokenizer = ModelSource::open(&folder).unwrap().tokenizer().unwrap();
    let fixture: Ids = fixture("smollm2-ids.json");
    assert!(fixture.chats.len() >= 8 && fixture.plain.len() >= 8);
    for Encoded { text, ids } in &fixture.chats {
        assert_eq!(&tokenizer.encode_rendered(text, None).unwrap(), ids, "{text}");
        // A mark at the end of a chat changes nothing.
        assert_eq!(&tokenizer.encode_rendered(&format!("{text}\u{E000}"), Some('\u{E000}')).unwrap(), ids, "{text}");
    }
    for Encoded { text, ids } in &fixture.plain {
        assert_eq!(&tokenizer.encode_text(text, true).unwrap(), ids, "{text}");
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).to_vec()).collect();
        assert_eq!(bytes, text.as_bytes());
    }
}

fn llama(folder: &Path, max_tokens: usize) -> (Llama, KvStore) {
    let source = ModelSource::open(folder).unwrap();
    let kv = KvStore::new(source.info(), 32).unwrap();
    match source.load(&Pool::new(threads()).into(), max_tokens).unwrap() {
        Model::Generate(llama) => (llama, kv),
        Model::Embed(_) => panic!("a decoder"),
    }
}

#[derive(Deserialize)]
struct LogProbs {
    llama_cpp_agreement: f64,
    llama_cpp_mean_abs_difference: f64,
    texts: Vec<Scored>,
}

/// Entry i speaks of position `from` + i: its most likely next id, and the log-probability of the id that follows.
#[derive(Deserialize)]
struct Scored {
    from: usize,
    ids: Vec<u32>,
    f32_top: Vec<u32>,
    f32_logprob: Vec<f64>,
}

#[test]
fn smollm2_is_as_near_to_f32_as_llama_cpp_is() {
    let Some(folder) = model("smollm2-135m-instruct") else { return };
    let fixture: LogProbs = fixture("smollm2-logprobs.json");
    let (mut llama, kv) = llama(&folder, 512);
    let (mut same, mut apart, mut positions, mut above, mut widest) = (0u32, 0.0, 0u32, 0.0, 0.0f32);
    let (mut logits, blocks) = (Vec::new(), (0..32).collect::<Vec<u32>>());
    let vocab = 49_152;
    for text in &fixture.texts {
        // Each token a row of its own, all in one step: keys and values of a layer are written before any row attends.
        let last = text.ids.len() - 1;
        let rows: Vec<Row<'_>> = (0..last)
            .map(|at| Row { ids: &text.ids[at..=at], position: at as u32, blocks: &blocks, logits: at >= text.from })
            .collect();
        llama.forward(&rows, &kv, &mut logits).unwrap();
        assert_eq!(logits.len(), text.f32_top.len() * vocab);
        for (entry, logits) in logits.chunks(vocab).enumerate() {
            let top = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
            let total: f64 = logits.iter().map(|logit| f64::from(logit - top.1).exp()).sum();
            let next = text.ids[text.from + entry + 1] as usize;
            let logprob = f64::from(logits[next] - top.1) - total.ln();
            same += u32::from(top.0 as u32 == text.f32_top[entry]);
            apart += (logprob - text.f32_logprob[entry]).abs();
            above += text.f32_logprob[entry] - logprob;
            widest = widest.max(top.1 - logits[text.f32_top[entry] as usize]);
            positions += 1;
        }
    }
    let (agreement, difference) = (f64::from(same) / f64::from(positions), apart / f64::from(positions));
    println!("figure=2.top1_agreement value={agreement:.4} llama_cpp={} n={positions}", fixture.llama_cpp_agreement);
    let peer = fixture.llama_cpp_mean_abs_difference;
    println!("figure=2.mean_abs_logprob_difference value={difference:.6} llama_cpp={peer} n={positions}");
    println!("figure=2.widest_tie_lost value={widest:.4} unit=logit n={positions}");
    let perplexity = (above / f64::from(positions)).exp();
    println!("figure=2.perplexity_of_f32s value={perplexity:.5} n={positions}");
    assert!((0.995..1.005).contains(&perplexity), "{perplexity}");
    // Both code activations in eight bits; which ids a near tie then falls to is luck, of one position in a hundred.
    assert!(agreement >= fixture.llama_cpp_agreement - 0.01, "{agreement}");
    assert!(difference <= fixture.llama_cpp_mean_abs_difference.min(0.05), "{difference}");
}

#[test]
fn smollm2_rows_in_a_batch_equal_rows_alone_to_the_bit() {
    let Some(folder) = model("smollm2-135m-instruct") else { return };
    let (mut llama, kv) = llama(&folder, 64);
    let fixture: Ids = fixture("smollm2-ids.json");
    let sequences: Vec<&[u32]> = fixture.chats.iter().take(4).map(|chat| &chat.ids[..chat.ids.len().min(40)]).collect();
    let mut expected = Vec::new();
    let mut logits = Vec::new();
    for ids in &sequences {
        llama.forward(&[Row { ids, position: 0, blocks: &[0, 1], logits: true }], &kv, &mut logits).unwrap();
        expected.extend_from_slice(&logits);
    }
    let tables: Vec<[u32; 2]> = (0..4).map(|index| [4 + index, 20 - index]).collect();
    // All but the last few tokens of each alone, then the rest of all together.
    for (ids, blocks) in sequences.iter().zip(&tables) {
        let row = Row { ids: &ids[..ids.len() - 5], position: 0, blocks, logits: false };
        llama.forward(&[row], &kv, &mut logits).unwrap();
    }
    let rows: Vec<Row<'_>> = sequences
        .iter()
        .zip(&tables)
        .map(|(ids, blocks)| {
            let before = ids.len() - 5;
            Row { ids: &ids[before..], position: before as u32, blocks, logits: true }
        })
        .collect();
    llama.forward(&rows, &kv, &mut logits).unwrap();
    assert!(logits.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits())));
}

#[derive(Deserialize)]
struct Vectors {
    inputs: Vec<Embedded>,
}

#[derive(Deserialize)]
struct Embedded {
    text: String,
    truncated: bool,
    ids: Vec<u32>,
    vector: Vec<f64>,
}

fn cosine(a: &[f32], b: &[f64]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum();
    let length = |squares: f64| squares.sqrt();
    let (a, b) = (a.iter().map(|x| f64::from(*x).powi(2)).sum(), b.iter().map(|x| x * x).sum());
    dot / (length(a) * length(b))
}

#[test]
fn minilm_vectors_equal_the_reference() {
    let Some(folder) = model("all-minilm-l6-v2") else { return };
    let source = ModelSource::open(&folder).unwrap();
    let tokenizer = source.tokenizer().unwrap();
    let Model::Embed(mut bert) = source.load(&Pool::new(threads()).into(), 2048).unwrap() else { panic!("an encoder") };
    let unknown = tokenizer.token_to_id("[UNK]");
    let fixture: Vectors = fixture("minilm-vectors.json");
    let (mut together, mut worst) = (Vec::new(), 1.0f64);
    let inputs: Vec<&[u32]> = fixture.inputs.iter().map(|input| &input.ids[..]).collect();
    bert.forward(&inputs, &mut together).unwrap();
    for (input, batched) in fixture.inputs.iter().zip(together.chunks(384)) {
        // The reference takes `[CLS]` in a text for the control token; here a user's text holds none.
        let plain = matches!(tokenizer.escape_specials(&input.text, '\u{E000}'), Cow::Borrowed(_));
        let ids = tokenizer.encode_text(&input.text, true).unwrap();
        if plain && !input.truncated {
            assert_eq!(ids, input.ids, "{}", input.text);
        }
        let inside = &ids[1..ids.len() - 1];
        assert!(!inside.iter().any(|id| tokenizer.is_special(*id) && Some(*id) != unknown), "{}", input.text);
        let alone = embed(&mut bert, &input.ids);
        let cosine = cosine(&alone, &input.vector);
        assert!(cosine > 0.9999, "{}: {cosine}", input.text);
        worst = worst.min(cosine);
        assert!(alone.iter().map(|x| x.to_bits()).eq(batched.iter().map(|x| x.to_bits())), "{}", input.text);
    }
    println!("figure=2.minilm_cosine_min value={worst:.7} n={}", fixture.inputs.len());
}

fn embed(bert: &mut Bert, ids: &[u32]) -> Vec<f32> {
    let mut out = Vec::new();
    bert.forward(&[ids], &mut out).unwrap();
    out
}
