//! A run: every level in turn, shown as it ends.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use crate::closed_loop::{Extent, Load, Work, drive};
use crate::config::{EMBEDDING_BATCHES, LoadConfig, LoadKind};
use crate::error::{BenchError, RequestError};
use crate::level::{LevelReport, Shape};
use crate::machine::Machine;
use crate::prompts::Prompts;
use crate::report;

/// Measures a running server as `config` says, and writes a table and `figure=` lines to `out`.
///
/// A request that fails is counted in its level's report and does not end the run.
///
/// # Errors
///
/// [`BenchError`] when the configuration cannot be used, the server cannot be reached, refuses the key or lacks the model,
/// a warm-up fails whole, or the report cannot be written.
pub async fn run(config: LoadConfig, out: &mut dyn Write) -> Result<Vec<LevelReport>, BenchError> {
    let port = config.check().map(|target| target.is_local().then_some(target.port))?;
    let machine = Machine::this(&config.server_pids, port);
    run_on(&config, &machine, out).await
}

async fn run_on(config: &LoadConfig, machine: &Machine, out: &mut dyn Write) -> Result<Vec<LevelReport>, BenchError> {
    let target = config.check()?;
    // Opened first: an hour's figures must not be lost to a mistyped path.
    let mut json = match &config.json {
        Some(path) => Some((path, File::create(path).map_err(|e| json_error(path, e))?)),
        None => None,
    };
    let load = Load {
        target,
        key: config.key.clone(),
        model: config.model.clone(),
        prompts: Prompts::new(config.seed, config.vocab, config.prompt_tokens),
        work: Work::Completion { output_tokens: config.output_tokens },
    };
    check_model(config, &load).await?;
    report::write_head(out, config.kind)?;
    let mut reports = Vec::new();
    let mut next_prompt = 0;
    for &concurrency in &config.concurrency {
        for work in works(config) {
            let load = Arc::new(Load { work, ..load.clone() });
            let report = level(config, machine, &load, concurrency, &mut next_prompt).await?;
            report::write_row(out, &report)?;
            if let Some((path, file)) = &mut json {
                writeln!(file, "{}", report::to_json(&report)).map_err(|e| json_error(path, e))?;
            }
            reports.push(report);
        }
    }
    report::write_figures(out, &reports)?;
    out.flush()?;
    Ok(reports)
}

fn json_error(path: &std::path::Path, source: std::io::Error) -> BenchError {
    BenchError::Json { path: path.to_path_buf(), source }
}

fn works(config: &LoadConfig) -> Vec<Work> {
    match config.kind {
        LoadKind::Completions => vec![Work::Completion { output_tokens: config.output_tokens }],
        LoadKind::Embeddings => EMBEDDING_BATCHES.iter().map(|&inputs| Work::Embedding { inputs }).collect(),
    }
}

/// Asks for the list of models, so that a wrong address, key or name is one clear line and not a level of failures.
async fn check_model(config: &LoadConfig, load: &Load) -> Result<(), BenchError> {
    let url = config.url.clone();
    let served = load.models().await.map_err(|source| match source {
        RequestError::Status { .. } => BenchError::Refused { url, source },
        source => BenchError::Unreachable { url, source },
    })?;
    if served.contains(&config.model) {
        return Ok(());
    }
    Err(BenchError::UnknownModel { model: config.model.clone(), served: served.join(", ") })
}

/// Warm-up, a look at the idle machine, and the measured loop.
async fn level(
    config: &LoadConfig,
    machine: &Machine,
    load: &Arc<Load>,
    concurrency: u32,
    next_prompt: &mut u64,
) -> Result<LevelReport, BenchError> {
    if config.warmup > 0 {
        let connections = concurrency.min(config.warmup);
        let attempts = drive(load, connections, Extent::Requests(config.warmup), *next_prompt).await?;
        *next_prompt += u64::from(load.prompts_per_request()) * attempts.len() as u64;
        if attempts.iter().all(|attempt| attempt.outcome.is_err())
            && let Some(source) = attempts.into_iter().find_map(|attempt| attempt.outcome.err())
        {
            return Err(BenchError::WarmUp { concurrency, source });
        }
    }
    let before = machine.read();
    tokio::time::sleep(machine.idle_check()).await;
    let begin = machine.read();
    let extent = match config.requests {
        0 => Extent::Time(Duration::from_secs(u64::from(config.seconds))),
        requests => Extent::Requests(requests),
    };
    let attempts = drive(load, concurrency, extent, *next_prompt).await?;
    let end = machine.read();
    *next_prompt += u64::from(load.prompts_per_request()) * attempts.len() as u64;
    let machine_report = match (before, begin, end) {
        (Some(before), Some(begin), Some(end)) => Some(machine.report(&before, &begin, &end)),
        _ => None,
    };
    let shape = Shape {
        kind: config.kind,
        model: config.model.clone(),
        concurrency,
        inputs: load.prompts_per_request(),
        prompt_tokens: config.prompt_tokens,
        output_tokens: config.output_tokens,
        requests: (config.requests > 0).then_some(config.requests),
    };
    Ok(LevelReport::new(&shape, &attempts, machine_report))
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
