//! Greedy text from a prompt, or the vector of a text, with rates.
//!
//! ```text
//! cargo run --release -p weir-models --example generate -- MODEL PROMPT [TOKENS] [THREADS]
//! ```
//!
//! Control tokens in PROMPT are recognised: `$'<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'`.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use weir_kernels::Pool;
use weir_models::{BLOCK_LEN, KvStore, Llama, Model, ModelInfo, ModelSource, Row, Tokenizer};

/// Tokens of one step of the prompt.
const CHUNK: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompt, rest @ ..] = &args[..] else {
        return Err("usage: generate MODEL PROMPT [TOKENS] [THREADS]".into());
    };
    let number = |index: usize, default: usize| rest.get(index).map_or(Ok(default), |text| text.parse());
    let (count, threads) = (number(0, 64)?, number(1, std::thread::available_parallelism()?.get())?);

    let start = Instant::now();
    let source = ModelSource::open(Path::new(model))?;
    let tokenizer = source.tokenizer()?;
    let opened = start.elapsed();
    let model = source.load(&Pool::new(threads).into(), CHUNK)?;
    eprintln!("opened in {opened:.2?}, loaded in {:.2?}: {:?}", start.elapsed() - opened, source.info());
    match model {
        Model::Generate(llama) => generate(llama, source.info(), &tokenizer, prompt, count),
        Model::Embed(mut bert) => {
            let ids = tokenizer.encode_text(prompt, true)?;
            let mut vector = Vec::new();
            bert.forward(&[&ids], &mut vector)?;
            println!("{vector:?}");
            let start = Instant::now();
            let rounds = 20;
            for _ in 0..rounds {
                bert.forward(&[&ids], &mut vector)?;
            }
            eprintln!("figure=embed tokens={} value={:.2?}", ids.len(), start.elapsed() / rounds);
            Ok(())
        }
    }
}

fn generate(
    mut llama: Llama,
    info: &ModelInfo,
    tokenizer: &Tokenizer,
    prompt: &str,
    count: usize,
) -> Result<(), Box<dyn Error>> {
    let prompt = tokenizer.encode_rendered(prompt, None)?;
    let blocks: Vec<u32> = (0..(prompt.len() + count).div_ceil(BLOCK_LEN) as u32).collect();
    let kv = KvStore::new(info, blocks.len() as u32)?;
    let mut logits = Vec::new();
    let mut position = 0;
    let start = Instant::now();
    for chunk in prompt.chunks(CHUNK) {
        let row = Row { ids: chunk, position, blocks: &blocks, logits: true };
        llama.forward(&[row], &kv, &mut logits)?;
        position += chunk.len() as u32;
    }
    let prefilled = start.elapsed();
    let start = Instant::now();
    let mut made = 0;
    while made < count {
        let id = argmax(&logits);
        made += 1;
        if info.eos.contains(&id) {
            break;
        }
        std::io::stdout().write_all(tokenizer.token_bytes(id))?;
        std::io::stdout().flush()?;
        let row = Row { ids: &[id], position, blocks: &blocks, logits: true };
        llama.forward(&[row], &kv, &mut logits)?;
        position += 1;
    }
    println!();
    let rate = |tokens: usize, seconds: f64| tokens as f64 / seconds;
    eprintln!(
        "figure=prompt tokens={} value={:.1}/s; figure=decode tokens={made} value={:.1}/s",
        prompt.len(),
        rate(prompt.len(), prefilled.as_secs_f64()),
        rate(made, start.elapsed().as_secs_f64())
    );
    Ok(())
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (id as u32, logit);
        }
    }
    best.0
}
