//! A run: every level in turn, shown as it ends.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::{Arrivals, LoadConfig, LoadKind};
use crate::error::{BenchError, RequestError};
use crate::level::{LevelReport, Outcome, Shape};
use crate::load::Load;
use crate::machine::Machine;
use crate::pace::Pace;
use crate::prompts::Prompts;
use crate::schedule::{Asks, Extent};
use crate::trace::{self, Traced};
use crate::{closed_loop, json, open_loop, plot, report};

/// The most connections of a warm-up.
const WARMUP_CONNECTIONS_MAX: u32 = 32;

/// Measures a running server as `config` says, and writes a table and `figure=` lines to `out`.
///
/// A request that fails is counted in its level's report and does not end the run.
///
/// # Errors
///
/// [`BenchError`] when the configuration or a trace cannot be used, the server cannot be reached, refuses a key or lacks the
/// model, a warm-up fails whole, or the report cannot be written.
pub async fn run(config: LoadConfig, out: &mut dyn Write) -> Result<Vec<LevelReport>, BenchError> {
    let port = config.check().map(|target| target.is_local().then_some(target.port))?;
    let machine = Machine::this(&config.server_pids, port);
    run_on(&config, &machine, out).await
}

async fn run_on(config: &LoadConfig, machine: &Machine, out: &mut dyn Write) -> Result<Vec<LevelReport>, BenchError> {
    let target = config.check()?;
    let trace = match &config.arrivals {
        Arrivals::Trace(path) => trace::read(path, &config.tenants)?,
        _ => Vec::new(),
    };
    // Opened first: an hour's figures must not be lost to a mistyped path.
    let mut output = config.output.as_deref().map(create).transpose()?;
    let mut chart = config.plot.as_deref().map(create).transpose()?;
    let load = Load {
        target,
        tenants: config.tenants.clone(),
        model: config.model.clone(),
        kind: config.kind,
        inputs: 1,
        stream: config.stream,
        count_deltas: config.count_deltas,
        prompts: Prompts::new(config.seed, config.vocab),
    };
    check_model(config, &load).await?;
    report::write_head(out, config.kind)?;
    let mut reports = Vec::new();
    let mut next_prompt = 0;
    for pace in paces(&config.arrivals) {
        for inputs in inputs(config) {
            let load = Arc::new(Load { inputs, ..load.clone() });
            let report = level(config, machine, &load, pace, &trace, &mut next_prompt).await?;
            report::write_row(out, &report)?;
            if let Some((path, file)) = &mut output {
                writeln!(file, "{}", json::of(&report)).map_err(|e| file_error(path, e))?;
            }
            reports.push(report);
        }
    }
    if let (Some((path, file)), Some(svg)) = (&mut chart, plot::of(&reports)) {
        file.write_all(svg.as_bytes()).map_err(|e| file_error(path, e))?;
    }
    report::write_figures(out, &reports)?;
    out.flush()?;
    Ok(reports)
}

fn create(path: &Path) -> Result<(&Path, File), BenchError> {
    File::create(path).map(|file| (path, file)).map_err(|e| file_error(path, e))
}

fn file_error(path: &Path, source: std::io::Error) -> BenchError {
    BenchError::File { path: path.to_path_buf(), source }
}

fn paces(arrivals: &Arrivals) -> Vec<Pace> {
    match arrivals {
        Arrivals::Concurrency(levels) => levels.iter().map(|&concurrency| Pace::Closed { concurrency }).collect(),
        Arrivals::Rate { rates, burstiness } => {
            rates.iter().map(|&rate| Pace::Open { rate, burstiness: *burstiness }).collect()
        }
        Arrivals::Trace(_) => vec![Pace::Trace],
    }
}

fn inputs(config: &LoadConfig) -> Vec<u32> {
    if config.kind == LoadKind::Embeddings { config.inputs.clone() } else { vec![1] }
}

/// Asks for the list of models with each tenant's key, so that a wrong address, key or name is one clear line and not a
/// level of failures.
async fn check_model(config: &LoadConfig, load: &Load) -> Result<(), BenchError> {
    for tenant in &config.tenants {
        let url = config.url.clone();
        let served = load.models(tenant).await.map_err(|source| match source {
            RequestError::Status { .. } => BenchError::Refused { url, tenant: tenant.name.clone(), source },
            source => BenchError::Unreachable { url, source },
        })?;
        if !served.contains(&config.model) {
            return Err(BenchError::UnknownModel { model: config.model.clone(), served: served.join(", ") });
        }
    }
    Ok(())
}

/// Warm-up, a look at the idle machine, and the measured loop.
async fn level(
    config: &LoadConfig,
    machine: &Machine,
    load: &Arc<Load>,
    pace: Pace,
    trace: &[Traced],
    next_prompt: &mut u64,
) -> Result<LevelReport, BenchError> {
    let asks = |first_prompt| Asks {
        seed: config.seed,
        prompt_tokens: config.prompt_tokens,
        output_tokens: config.output_tokens,
        prompts_per_request: load.inputs,
        first_prompt,
    };
    if config.warmup > 0 {
        let connections = match pace {
            Pace::Closed { concurrency } => concurrency.min(config.warmup),
            _ => config.warmup.min(WARMUP_CONNECTIONS_MAX),
        };
        let extent = Extent::Requests(config.warmup);
        let attempts = closed_loop::drive(load, asks(*next_prompt), connections, extent).await?;
        *next_prompt += u64::from(load.inputs) * attempts.len() as u64;
        if attempts.iter().all(|attempt| attempt.outcome.is_err())
            && let Some(source) = attempts.into_iter().find_map(|attempt| attempt.outcome.err())
        {
            return Err(BenchError::WarmUp { level: pace.to_string(), source });
        }
    }
    let before = machine.read();
    tokio::time::sleep(machine.idle_check()).await;
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let extent = match config.requests {
        0 => Extent::Time(Duration::from_secs(u64::from(config.seconds))),
        requests => Extent::Requests(requests),
    };
    let asks = asks(*next_prompt);
    let schedule = match pace {
        Pace::Closed { .. } => Vec::new(),
        Pace::Open { rate, burstiness } => asks.arrivals(&config.tenants, rate, burstiness, extent),
        Pace::Trace => asks.traced(trace),
    };
    let begin = machine.read();
    let outcome = match pace {
        Pace::Closed { concurrency } => {
            let attempts = closed_loop::drive(load, asks, concurrency, extent).await?;
            Outcome { open_peak: concurrency.min(attempts.len() as u32), unsent: 0, attempts, unix_seconds }
        }
        Pace::Open { .. } | Pace::Trace => {
            let run = open_loop::drive(load, &schedule, config.open_max).await?;
            Outcome { attempts: run.attempts, open_peak: run.open_peak, unsent: run.unsent, unix_seconds }
        }
    };
    let end = machine.read();
    *next_prompt += u64::from(load.inputs) * outcome.attempts.len() as u64;
    let machine_report = match (before, begin, end) {
        (Some(before), Some(begin), Some(end)) => Some(machine.report(&before, &begin, &end)),
        _ => None,
    };
    let requests = (config.requests > 0 && pace != Pace::Trace).then_some(config.requests);
    let shape = Shape {
        kind: config.kind,
        model: config.model.clone(),
        pace,
        inputs: load.inputs,
        prompt_tokens: config.prompt_tokens,
        output_tokens: config.output_tokens,
        stream: config.stream,
        slo: config.slo,
        window: config.window,
        tenants: config.tenants.iter().map(|tenant| tenant.name.clone()).collect(),
        requests,
        open_max: config.open_max,
        seed: config.seed,
        detailed: config.detailed,
    };
    Ok(LevelReport::new(&shape, outcome, machine_report))
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
