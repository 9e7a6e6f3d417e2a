//! `probe charges`: whether what a row is charged is what it costs.
//!
//! The real scheduler plans steps of mixed requests (see [`traffic`]), the model runs them, and the scheduler splits their time. Every
//! few steps, a step with rows of several groups is run again as it was and without each group, turn by turn, several times. What the step
//! is shorter without a group is what the group costs; these differences, scaled so that they add up to the step, are what the groups'
//! charges are held against. A step is charged before the fit learns from it, so none is judged by a fit that has seen it.
//!
//! A step runs one model, and a decoder embeds nothing here: so a decoder's steps mix long decodes, short decodes and prompts, and an
//! encoder's steps long items and short ones; each model is probed by itself.
//!
//! Running a step again is harmless: the same ids give the same keys and values at the same places. On a machine with busy
//! neighbours, `taskset -c 0 weir probe charges ...` gives the probe one thread, whose waits can be told from its work.

mod quiet;
mod traffic;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::json;
use weir_models::{ModelKind, ModelSource, Row};
use weir_scheduler::Nanos;

use super::loaded::Loaded;
use super::{Args, Place, ProbeError};
use crate::config::{DeviceConfig, ExecutorMode};
use quiet::quiet;
use traffic::{Group, Part, Traffic, blocks};

/// Steps before the first that is replayed.
const WARM_UP: u32 = 60;
/// Of the mixed steps behind those, one in so many is replayed.
const EVERY: u32 = 4;

pub(super) fn run(args: &Args, place: Place<'_>, out: &mut dyn Write) -> Result<(), ProbeError> {
    let path = Path::new(args.required("model")?);
    let steps = args.count("steps", Some(40))?;
    let repeats = args.count("repeats", Some(5))?;
    let seed = args.count("seed", Some(1))?;
    let mut raw = match args.text("raw") {
        Some(raw) => Some(File::create(raw).map_err(ProbeError::file(Path::new(raw)))?),
        None => None,
    };
    let info = ModelSource::open(path)?.info().clone();
    let cpu = DeviceConfig::cpu(0, ExecutorMode::Thread);
    let (blocks, context) = match info.kind {
        ModelKind::Generate => (blocks(), info.context_len),
        ModelKind::Embed => (0, info.max_input_len),
    };
    let mut model = Loaded::open(path, place, cpu.step_tokens_max, blocks)?;
    let tokens = cpu.step_tokens_max.max(if info.kind == ModelKind::Embed { context } else { 0 });
    let mut traffic = Traffic::new(info.kind, blocks, tokens, context, u64::from(seed));

    let (mut replayed, mut mixed, mut done, mut disturbed) = (0, 0, 0, 0);
    let mut errors: Vec<(Group, f64)> = Vec::new();
    while replayed < steps {
        let mut parts = traffic.next()?;
        let took = quiet(place, &mut disturbed, || forward(&mut model, &parts, None))?;
        let took = took.as_nanos() as u64;
        traffic.finish(&mut parts, Nanos(took))?;
        done += 1;
        let groups: Vec<Group> =
            Group::ALL.into_iter().filter(|group| parts.iter().any(|part| part.group == *group)).collect();
        let mut times: Vec<Vec<u64>> = Vec::new();
        if done > WARM_UP && groups.len() > 1 {
            mixed += 1;
            if mixed % EVERY == 0 {
                replayed += 1;
                times = replay(&mut model, place, &mut disturbed, &parts, &groups, repeats)?;
                errors.extend(judge(&parts, &groups, &times, took));
            }
        }
        if let Some(raw) = &mut raw {
            let rows: Vec<_> = parts
                .iter()
                .map(|part| json!([part.group.name(), part.from, part.ids.len(), part.samples, part.charge]))
                .collect();
            let names: Vec<_> = groups.iter().map(|group| group.name()).collect();
            let _ = writeln!(raw, "{}", json!({"time": took, "rows": rows, "groups": names, "replays": times}));
        }
    }
    let all: Vec<f64> = errors.iter().map(|(_, error)| *error).collect();
    for group in Group::ALL {
        let of_group: Vec<f64> = errors.iter().filter(|(of, _)| *of == group).map(|(_, error)| *error).collect();
        if !of_group.is_empty() {
            figure(out, &format!("{}_error_median", group.name()), &of_group);
        }
    }
    let of_kind = if info.kind == ModelKind::Embed { "encoder" } else { "decoder" };
    figure(out, &format!("{of_kind}_error_median"), &all);
    let threads = place.device.pool().threads();
    let _ = writeln!(out, "threads={threads} steps={done} replayed={replayed} disturbed_runs={disturbed}");
    Ok(())
}

/// Runs a step, or what is left of it without a group.
fn forward(model: &mut Loaded, parts: &[Part], without: Option<Group>) -> Result<(), ProbeError> {
    let parts = parts.iter().filter(|part| Some(part.group) != without);
    if model.info.kind == ModelKind::Embed {
        let inputs: Vec<&[u32]> = parts.map(|part| part.ids.as_slice()).collect();
        return model.embed(&inputs);
    }
    let rows: Vec<Row<'_>> = parts
        .map(|part| Row { ids: &part.ids, position: part.from, blocks: &part.blocks, logits: part.samples })
        .collect();
    model.draw(&rows)
}

/// The times of the whole step, and of it without each group.
fn replay(
    model: &mut Loaded,
    place: Place<'_>,
    disturbed: &mut u64,
    parts: &[Part],
    groups: &[Group],
    repeats: u32,
) -> Result<Vec<Vec<u64>>, ProbeError> {
    let variants: Vec<Option<Group>> = std::iter::once(None).chain(groups.iter().copied().map(Some)).collect();
    let mut times = vec![Vec::new(); variants.len()];
    for _ in 0..repeats {
        for (without, times) in variants.iter().zip(&mut times) {
            let took = quiet(place, disturbed, || forward(model, parts, *without))?;
            times.push(took.as_nanos() as u64);
        }
    }
    Ok(times)
}

/// How far each group's charge is from its part of the step, relative to that.
fn judge(parts: &[Part], groups: &[Group], times: &[Vec<u64>], took: u64) -> Vec<(Group, f64)> {
    let median = |times: &[u64]| {
        let mut times = times.to_vec();
        times.sort_unstable();
        times[times.len() / 2] as f64
    };
    let whole = median(&times[0]);
    let costs: Vec<f64> = times[1..].iter().map(|times| (whole - median(times)).max(0.0)).collect();
    let sum: f64 = costs.iter().sum();
    let one = |(group, cost): (&Group, &f64)| {
        let charge: u64 = parts.iter().filter(|part| part.group == *group).map(|part| part.charge).sum();
        let due = cost / sum * took as f64;
        (*group, (charge as f64 - due).abs() / due)
    };
    groups.iter().zip(&costs).map(one).collect()
}

fn figure(out: &mut dyn Write, name: &str, errors: &[f64]) {
    let mut errors = errors.to_vec();
    errors.sort_by(f64::total_cmp);
    let at = |percent: usize| errors.get((errors.len() - 1) * percent / 100).copied().unwrap_or(f64::NAN);
    let _ = writeln!(
        out,
        "figure=4.{name} value={:.3} p25={:.3} p75={:.3} p90={:.3} groups={}",
        at(50),
        at(25),
        at(75),
        at(90),
        errors.len()
    );
}
