//! Rates of a decoder's steps, without a server: decoding rows of equal length, and prompts.
//!
//! ```text
//! cargo run --release -p weir-models --example steps -- MODEL [THREADS] [CONTEXT]
//! ```
//!
//! Lines read `figure=decode/rows8 value=... unit=tokens/s ms=...`: the median step, and the fastest and slowest tenth.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use weir_kernels::Pool;
use weir_models::{BLOCK_LEN, KvStore, Llama, Model, ModelSource, Row};

/// Tokens of the longest prompt that is measured.
const PROMPT: usize = 512;
/// Rows of the widest step.
const ROWS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, rest @ ..] = &args[..] else { return Err("usage: steps MODEL [THREADS] [CONTEXT]".into()) };
    let number = |index: usize, default: usize| rest.get(index).map_or(Ok(default), |text| text.parse());
    let (threads, context) = (number(0, std::thread::available_parallelism()?.get())?, number(1, 128)?);
    let source = ModelSource::open(Path::new(model))?;
    let Model::Generate(mut llama) = source.load(&Pool::new(threads).into(), PROMPT)? else {
        return Err("an encoder has no steps".into());
    };
    let blocks_of_row = (context + 1).div_ceil(BLOCK_LEN).max(PROMPT.div_ceil(BLOCK_LEN)) as u32;
    let kv = KvStore::new(source.info(), blocks_of_row * ROWS as u32)?;
    let tables: Vec<Vec<u32>> =
        (0..ROWS as u32).map(|row| (row * blocks_of_row..(row + 1) * blocks_of_row).collect()).collect();
    for rows in [1, 2, 4, 8, 16, 32, 64] {
        let ids: Vec<u32> = (0..rows as u32).map(|row| 100 + row).collect();
        let rows: Vec<Row<'_>> = (0..rows)
            .map(|row| Row { ids: &ids[row..=row], position: context as u32, blocks: &tables[row], logits: true })
            .collect();
        measure(&format!("decode/rows{}", rows.len()), rows.len(), &mut llama, &rows, &kv)?;
    }
    for tokens in [128, PROMPT] {
        let ids: Vec<u32> = (0..tokens as u32).map(|at| 100 + 7 * at % 900).collect();
        let row = Row { ids: &ids, position: 0, blocks: &tables[0], logits: true };
        measure(&format!("prompt/tokens{tokens}"), tokens, &mut llama, &[row], &kv)?;
    }
    Ok(())
}

fn measure(name: &str, tokens: usize, llama: &mut Llama, rows: &[Row<'_>], kv: &KvStore) -> Result<(), Box<dyn Error>> {
    llama.forward_with(rows, kv, |_, _| Ok(()))?;
    let (mut times, started) = (Vec::new(), Instant::now());
    while times.len() < 5 || started.elapsed() < Duration::from_millis(1500) {
        let before = Instant::now();
        llama.forward_with(rows, kv, |_, _| Ok(()))?;
        times.push(before.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times[part * (times.len() - 1) / 10];
    println!(
        "figure={name} value={:.1} unit=tokens/s ms={:.3} low={:.3} high={:.3}",
        tokens as f64 / at(5),
        at(5) * 1e3,
        at(1) * 1e3,
        at(9) * 1e3
    );
    Ok(())
}
