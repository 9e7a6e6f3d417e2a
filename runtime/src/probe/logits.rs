//! `probe logits` and `probe greedy`: what a model says, for comparisons with another implementation of it.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::json;
use weir_models::{BLOCK_LEN, ModelKind, ModelSource, Row};

use super::loaded::{Loaded, Sequence, lay_out};
use super::tensors::{self, Named};
use super::{Args, Place, ProbeError, say};

/// Tokens of a step, unless it is said.
const STEP_TOKENS: u32 = 2048;
/// Rows of a step of `--path prefill`, whose logits are all kept until it ends.
const PREFILL_ROWS: usize = 64;

/// Teacher-forced: the ids are given, and the logits behind each of them are written.
///
/// On the path `decode` every id is a step of its own behind those before it, all lists beside each other; on the path `prefill`
/// every position is a row of its own that computes the whole list up to there. Both must say the same, each through kernels of
/// its own.
pub(super) fn logits(args: &Args, place: Place<'_>, out: &mut dyn Write) -> Result<(), ProbeError> {
    let model = Path::new(args.required("model")?);
    let file = Path::new(args.required("out")?);
    let lists = read_lists(Path::new(args.required("ids")?))?;
    let step_tokens = args.count("step-tokens", Some(STEP_TOKENS))?;
    let path = args.text("path").unwrap_or("decode");
    let kind = ModelSource::open(model)?.info().kind;
    let named = match (kind, path) {
        (ModelKind::Embed, _) => vectors(model, place, &lists, step_tokens)?,
        (ModelKind::Generate, "decode") => decoded(model, place, lists, step_tokens)?,
        (ModelKind::Generate, "prefill") => prefilled(model, place, &lists, step_tokens)?,
        (_, other) => return Err(ProbeError::Usage(format!("--path is `{other}`, neither decode nor prefill"))),
    };
    tensors::write(file, &named)?;
    let shapes: Vec<[usize; 2]> = named.iter().map(|tensor| tensor.shape).collect();
    say(out, &json!({"kind": "logits", "device": place.name(), "path": path, "file": file, "shapes": shapes}));
    Ok(())
}

fn decoded(model: &Path, place: Place<'_>, lists: Vec<Vec<u32>>, step_tokens: u32) -> Result<Vec<Named>, ProbeError> {
    let step_tokens = step_tokens.max(lists.len() as u32);
    let (mut sequences, blocks) = lay_out(lists, 0)?;
    let mut model = Loaded::open(model, place, step_tokens, blocks)?;
    let vocab = model.vocab();
    let mut named: Vec<Named> =
        sequences.iter().map(|sequence| Named::new("logits", sequence.ids.len(), vocab)).collect();
    loop {
        let going = |sequence: &&Sequence| sequence.computed < sequence.ids.len();
        let rows: Vec<Row<'_>> = sequences.iter().filter(going).map(|sequence| sequence.row(1, true)).collect();
        if rows.is_empty() {
            return Ok(named);
        }
        model.step(&rows)?;
        let mut found = model.output.chunks_exact(vocab);
        for (sequence, named) in sequences.iter_mut().zip(&mut named) {
            if sequence.computed < sequence.ids.len() {
                sequence.computed += 1;
                named.values.extend_from_slice(found.next().unwrap_or_default());
            }
        }
    }
}

fn prefilled(model: &Path, place: Place<'_>, lists: &[Vec<u32>], step_tokens: u32) -> Result<Vec<Named>, ProbeError> {
    if let Some(list) = lists.iter().find(|list| list.len() > step_tokens as usize) {
        return Err(ProbeError::Usage(format!("a list of {} ids is longer than --step-tokens", list.len())));
    }
    // Rows of a step share no block, so each has its own copy of the beginning that it has in common with the others.
    let blocks = step_tokens.div_ceil(BLOCK_LEN as u32) + PREFILL_ROWS as u32;
    let mut model = Loaded::open(model, place, step_tokens, blocks)?;
    let vocab = model.vocab();
    let mut named = Vec::with_capacity(lists.len());
    for list in lists {
        let mut tensor = Named::new("logits", list.len(), vocab);
        let mut end = 1;
        while end <= list.len() {
            let (mut tables, mut tokens, mut next) = (Vec::new(), 0, 0u32);
            let first = end;
            while end <= list.len() && tables.len() < PREFILL_ROWS && tokens + end <= step_tokens as usize {
                let blocks = end.div_ceil(BLOCK_LEN) as u32;
                tables.push((next..next + blocks).collect::<Vec<u32>>());
                next += blocks;
                tokens += end;
                end += 1;
            }
            let row = |(len, blocks)| Row { ids: &list[..len], position: 0, blocks, logits: true };
            let rows: Vec<Row<'_>> = (first..).zip(tables.iter().map(Vec::as_slice)).map(row).collect();
            model.step(&rows)?;
            tensor.values.extend_from_slice(&model.output);
        }
        named.push(tensor);
    }
    Ok(named)
}

fn vectors(model: &Path, place: Place<'_>, lists: &[Vec<u32>], step_tokens: u32) -> Result<Vec<Named>, ProbeError> {
    let mut model = Loaded::open(model, place, step_tokens, 0)?;
    let dim = model.info.embedding_dim.unwrap_or(0) as usize;
    let bound = step_tokens.max(model.info.max_input_len) as usize;
    let mut tensor = Named::new("vectors", lists.len(), dim);
    let mut rest = lists;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |list: &&Vec<u32>| {
            tokens += list.len();
            tokens <= bound
        };
        // At least one: an input that is too long is refused by the model, which says why.
        let count = rest.iter().take_while(fits).count().max(1);
        let (now, later) = rest.split_at(count);
        let inputs: Vec<&[u32]> = now.iter().map(Vec::as_slice).collect();
        model.embed(&inputs)?;
        tensor.values.extend_from_slice(&model.output);
        rest = later;
    }
    Ok(vec![tensor])
}

/// The likeliest ids behind each list, all lists in one batch.
pub(super) fn greedy(args: &Args, place: Place<'_>, out: &mut dyn Write) -> Result<(), ProbeError> {
    let lists = read_lists(Path::new(args.required("ids")?))?;
    let new = args.count("new", None)? as usize;
    let step_tokens = args.count("step-tokens", Some(STEP_TOKENS))?.max(lists.len() as u32);
    let (mut sequences, blocks) = lay_out(lists, new)?;
    let mut model = Loaded::open(Path::new(args.required("model")?), place, step_tokens, blocks)?;
    model.fill(&mut sequences, 1, step_tokens as usize, |model, rows, _| model.step(rows))?;
    let mut drawn: Vec<Vec<u32>> = vec![Vec::with_capacity(new); sequences.len()];
    for _ in 0..new {
        let rows: Vec<Row<'_>> = sequences.iter().map(|sequence| sequence.row(1, true)).collect();
        model.draw(&rows)?;
        for ((sequence, drawn), &id) in sequences.iter_mut().zip(&mut drawn).zip(&model.drawn) {
            sequence.computed += 1;
            sequence.ids.push(id);
            drawn.push(id);
        }
    }
    say(out, &json!({"kind": "greedy", "device": place.name(), "ids": drawn}));
    Ok(())
}

/// Lists of ids: at least one, none empty. Whether the ids exist, the model checks.
fn read_lists(path: &Path) -> Result<Vec<Vec<u32>>, ProbeError> {
    let text = fs::read_to_string(path).map_err(ProbeError::file(path))?;
    match serde_json::from_str::<Vec<Vec<u32>>>(&text) {
        Ok(lists) if !lists.is_empty() && lists.iter().all(|list| !list.is_empty()) => Ok(lists),
        Ok(_) => Err(ProbeError::Usage(format!("{} holds no list, or an empty one", path.display()))),
        Err(error) => Err(ProbeError::Usage(format!("{} is no list of lists of ids: {error}", path.display()))),
    }
}
