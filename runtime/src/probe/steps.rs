//! `probe steps`: how long steps of a known shape take, straight against the model.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_models::{ModelKind, ModelSource, Row};

use super::loaded::{Loaded, Sequence, lay_out};
use super::place::Elapsed;
use super::{Args, Place, ProbeError, say};

/// Tokens of a prefill step, unless it is said.
const PREFILL: u32 = 2048;
/// Steps before those that count: caches fill, buffers are made, code is loaded.
const WARM_UP: usize = 3;

pub(super) fn run(args: &Args, place: Place<'_>, out: &mut dyn Write) -> Result<(), ProbeError> {
    let path = Path::new(args.required("model")?);
    let (batch, context) = (args.count("batch", None)?, args.count("context", None)?);
    let new = args.count("new", None)? as usize;
    let prefill = args.count("prefill", Some(PREFILL))?;
    let kind = ModelSource::open(path)?.info().kind;
    let lists = lists(batch, context);
    match kind {
        ModelKind::Generate => decode(path, lists, new, prefill, place, out),
        ModelKind::Embed => embed(path, &lists, new, place, out),
    }
}

/// Prompts whose ids differ from row to row and are small enough for any vocabulary but a toy's.
fn lists(batch: u32, context: u32) -> Vec<Vec<u32>> {
    (0..batch).map(|row| (0..context).map(|at| 1 + (at * 7 + row * 13) % 200).collect()).collect()
}

fn decode(
    path: &Path,
    lists: Vec<Vec<u32>>,
    new: usize,
    prefill: u32,
    place: Place<'_>,
    out: &mut dyn Write,
) -> Result<(), ProbeError> {
    let (batch, context) = (lists.len(), lists.first().map_or(0, Vec::len));
    let step_tokens = (prefill as usize).max(batch);
    let (mut sequences, blocks) = lay_out(lists, WARM_UP + new)?;
    let began = Instant::now();
    let mut model = Loaded::open(path, place, step_tokens as u32, blocks)?;
    say(out, &json!({"kind": "load", "device": place.name(), "seconds": began.elapsed().as_secs_f64()}));

    let mut times = Vec::new();
    model.fill(&mut sequences, 1, step_tokens, |model, rows, tokens| {
        let took = place.clock(|| model.step(rows))?;
        // Only whole steps are steps of that size.
        if tokens == step_tokens || times.is_empty() {
            times.push((took, tokens));
        }
        Ok(())
    })?;
    // The first step of a process is no measure of the others, where there are others.
    let counted = if times.len() > 1 { &times[1..] } else { &times[..] };
    if let Some(&(_, tokens)) = counted.first() {
        let took: Vec<Elapsed> = counted.iter().map(|(took, _)| *took).collect();
        say(out, &line("prefill", place, batch, context, &took, tokens, None));
    }

    let mut took = Vec::with_capacity(new);
    let mut launches = None;
    for step in 0..WARM_UP + new {
        let before = place.launches();
        let began = Instant::now();
        let rows: Vec<Row<'_>> = sequences.iter().map(|sequence| sequence.row(1, true)).collect();
        let elapsed = place.clock(|| model.draw(&rows))?;
        for (sequence, &id) in sequences.iter_mut().zip(&model.drawn) {
            advance(sequence, id);
        }
        if step >= WARM_UP {
            launches = Some(place.launches().wrapping_sub(before));
            took.push(Elapsed { device: elapsed.device, host: began.elapsed() });
        }
    }
    say(out, &line("decode", place, batch, context, &took, batch, launches));
    Ok(())
}

fn advance(sequence: &mut Sequence, id: u32) {
    sequence.computed += 1;
    sequence.ids.push(id);
}

fn embed(
    path: &Path,
    lists: &[Vec<u32>],
    repeats: usize,
    place: Place<'_>,
    out: &mut dyn Write,
) -> Result<(), ProbeError> {
    let (batch, context) = (lists.len(), lists.first().map_or(0, Vec::len));
    let began = Instant::now();
    let mut model = Loaded::open(path, place, (batch * context) as u32, 0)?;
    say(out, &json!({"kind": "load", "device": place.name(), "seconds": began.elapsed().as_secs_f64()}));
    let inputs: Vec<&[u32]> = lists.iter().map(Vec::as_slice).collect();
    let mut took = Vec::with_capacity(repeats);
    let mut launches = None;
    for step in 0..WARM_UP + repeats {
        let before = place.launches();
        let elapsed = place.clock(|| model.embed(&inputs))?;
        if step >= WARM_UP {
            launches = Some(place.launches().wrapping_sub(before));
            took.push(elapsed);
        }
    }
    say(out, &line("embed", place, batch, context, &took, batch * context, launches));
    Ok(())
}

/// What steps of `tokens` tokens took.
fn line(
    kind: &str,
    place: Place<'_>,
    batch: usize,
    context: usize,
    took: &[Elapsed],
    tokens: usize,
    launches: Option<u64>,
) -> Value {
    let device = spread(took.iter().map(|took| took.device));
    let host = spread(took.iter().map(|took| took.host));
    let rate = tokens as f64 / (device[1] / 1e6).max(f64::MIN_POSITIVE);
    let named = |[p10, median, p90]: [f64; 3]| json!({"p10": p10, "median": median, "p90": p90});
    json!({
        "kind": kind, "device": place.name(), "batch": batch, "context": context, "step_tokens": tokens,
        "steps": took.len(), "device_us": named(device), "host_us": named(host), "tokens_per_s": rate,
        "launches": launches,
    })
}

/// The tenth, fiftieth and ninetieth percentile, in microseconds.
fn spread(times: impl Iterator<Item = Duration>) -> [f64; 3] {
    let mut micros: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e6).collect();
    micros.sort_by(f64::total_cmp);
    let last = micros.len().saturating_sub(1);
    [10, 50, 90].map(|percent| micros.get((last * percent + 50) / 100).copied().unwrap_or(0.0))
}
