//! `weir simulate`: capacity questions, answered by the scheduler itself on simulated devices. No server is needed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use serde::Serialize;
use weir_bench::simulate::{
    Answer, Costs, DEVICES_MAX, Load, LoadOptions, Order, Targets, Trace, Try, answer_table, charts, find_devices, fit,
    fit_lines, tries_table,
};

use super::put;
use crate::config::Span;

/// Largest factor of a tenant's load.
const SCALE_MAX: f64 = 1_000.0;
/// Largest weight of a tenant, as in a server's file.
const WEIGHT_MAX: u32 = 10_000;

pub(super) const HELP: &str = "\
The load is a workload by name, or a trace that `weir serve --record FILE` wrote. The cost of a step is a machine's by name \
(h200-llama8b), or a file that `weir simulate fit` wrote; a trace without --cost is fitted to its own steps.

Examples:
  weir simulate --workload noisy-neighbour --devices 4 --cost h200-llama8b
  weir simulate --trace day.ndjson --ttft-p99 500ms --itl-p99 50ms --find-devices
  weir simulate --trace day.ndjson --scale acme=2 --plots charts
  weir simulate fit day.ndjson --out cost.json";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(super) struct SimulateArgs {
    #[command(subcommand)]
    fit: Option<SimulateCommand>,
    #[command(flatten)]
    question: QuestionArgs,
}

#[derive(Debug, Subcommand)]
enum SimulateCommand {
    /// Fit what a step costs to the steps of a trace, and say how far off that is on steps held out
    Fit(FitArgs),
}

#[derive(Debug, Args)]
struct FitArgs {
    /// What `weir serve --record` wrote
    trace: PathBuf,
    /// Write the cost to this file, for --cost
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Of the random half of the steps that is fitted to
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// By what rule the next row of a step is chosen.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Policy {
    /// Weir's: the tenant that had the least device time by weight
    Weir,
    /// Who came first
    Fcfs,
    /// Tenants take turns
    RoundRobin,
    /// The tenant that had the fewest tokens by weight
    Vtc,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("load").args(["workload", "trace"]).required(true))]
#[command(group = ArgGroup::new("targets").args(["ttft_p99", "itl_p99"]).multiple(true))]
struct QuestionArgs {
    /// A load by name; any other word lists them
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// A recorded load
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Devices [default: 1, or as many as the trace was recorded on]. A workload by name is made to fit them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(DEVICES_MAX)))]
    devices: Option<u16>,
    /// What a step costs: h200-llama8b, or a file [default: h200-llama8b; of a trace, fitted to it]
    #[arg(long, value_name = "NAME|FILE")]
    cost: Option<String>,
    /// So many times the requests of a tenant
    #[arg(long, value_name = "TENANT=FACTOR", value_parser = scale)]
    scale: Vec<(String, f64)>,
    /// Another weight for a tenant
    #[arg(long, value_name = "TENANT=WEIGHT", value_parser = weight)]
    weight: Vec<(String, u32)>,
    /// Every tenant's 99th percentile of the time to the first token is to be at most this
    #[arg(long, value_name = "TIME")]
    ttft_p99: Option<Span>,
    /// Every tenant's 99th percentile of the time between two tokens is to be at most this
    #[arg(long, value_name = "TIME")]
    itl_p99: Option<Span>,
    /// Find the least number of devices on which that is so, with the load as it is
    #[arg(long, requires = "targets")]
    find_devices: bool,
    /// Who goes next
    #[arg(long, value_enum, default_value_t = Policy::Weir)]
    policy: Policy,
    /// Of all draws: the same seed gives the same answer
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// No more requests than this
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// Write the answer to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write charts into this folder, as SVG: service, lag, TTFT and utilisation over time
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Document<'a> {
    answer: Option<&'a Answer>,
    tries: &'a [Try],
}

pub(super) fn run(args: SimulateArgs) -> anyhow::Result<()> {
    match args.fit {
        Some(SimulateCommand::Fit(args)) => run_fit(&args),
        None => run_question(&args.question),
    }
}

fn run_fit(args: &FitArgs) -> anyhow::Result<()> {
    let trace = Trace::read(&args.trace)?;
    notes(&trace.notes);
    let fits = fit(&trace, args.seed).map_err(|error| anyhow!("{}: {error}", args.trace.display()))?;
    put(&fit_lines(&fits));
    match &args.out {
        Some(path) => fs::write(path, Costs::file(&fits)).with_context(|| path.display().to_string()),
        None => Ok(()),
    }
}

fn run_question(args: &QuestionArgs) -> anyhow::Result<()> {
    let load = load(args)?;
    notes(&load.notes);
    let millis = |span: Option<Span>| span.map(|span| span.0.as_secs_f64() * 1e3);
    let targets = Targets { ttft_p99: millis(args.ttft_p99), itl_p99: millis(args.itl_p99) };
    let (answer, tries) = match args.find_devices {
        true => find_devices(&load, &targets),
        false => (Some(load.play(args.devices.unwrap_or(load.devices()))), Vec::new()),
    };
    if !tries.is_empty() {
        put(&(tries_table(&tries) + "\n"));
    }
    if let Some(answer) = &answer {
        put(&answer_table(answer));
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&Document { answer: answer.as_ref(), tries: &tries })?;
        fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    if let (Some(folder), Some(answer)) = (&args.plots, &answer) {
        write_charts(folder, answer)?;
    }
    let Some(answer) = answer else {
        bail!("not even {DEVICES_MAX} devices meet the targets; the last number tried is in the table");
    };
    let misses = answer.misses(&targets);
    for miss in &misses {
        let p99 = miss.p99.map_or("more than 1 in 100 refused".into(), |p99| format!("{p99:.1} ms"));
        put(&format!("{}: {} p99 is over its target: {p99}\n", miss.tenant, miss.what));
    }
    match misses.is_empty() {
        true => Ok(()),
        false => bail!("{} targets are missed", misses.len()),
    }
}

fn load(args: &QuestionArgs) -> anyhow::Result<Load> {
    let options = LoadOptions {
        seed: args.seed,
        requests: args.requests,
        scale: args.scale.clone(),
        weight: args.weight.clone(),
        order: match args.policy {
            Policy::Weir => Order::DeviceTime,
            Policy::Fcfs => Order::Fcfs,
            Policy::RoundRobin => Order::RoundRobin,
            Policy::Vtc => Order::Tokens,
        },
    };
    let open = |name: &str| Costs::open(name).map_err(anyhow::Error::msg);
    if let Some(path) = &args.trace {
        let trace = Trace::read(path)?;
        let wrong = |error: String| anyhow!("{}: {error}", path.display());
        let costs = match &args.cost {
            Some(name) => open(name)?,
            None => Costs::fitted("its own fit", &fit(&trace, args.seed).map_err(wrong)?),
        };
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        return Load::recorded(&name, &trace, &costs, &options).map_err(wrong);
    }
    let costs = open(args.cost.as_deref().unwrap_or("h200-llama8b"))?;
    let name = args.workload.as_deref().unwrap_or_default();
    Load::named(name, args.devices.unwrap_or(1), &costs, &options).map_err(anyhow::Error::msg)
}

fn write_charts(folder: &Path, answer: &Answer) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for (name, svg) in charts(answer) {
        let path = folder.join(name);
        fs::write(&path, svg).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// For people, beside the answer.
fn notes(notes: &[String]) {
    for note in notes {
        eprintln!("note: {note}");
    }
}

fn pair<T: std::str::FromStr>(text: &str) -> Option<(String, T)> {
    // A name may hold anything but an equals sign.
    let (name, value) = text.rsplit_once('=')?;
    Some((name.to_owned(), value.parse().ok()?))
}

fn scale(text: &str) -> Result<(String, f64), String> {
    let (name, factor) = pair::<f64>(text).ok_or("not TENANT=FACTOR, as in acme=2")?;
    match factor.is_finite() && (0.001..=SCALE_MAX).contains(&factor) {
        true => Ok((name, factor)),
        false => Err(format!("the factor must be 0.001 to {SCALE_MAX}")),
    }
}

fn weight(text: &str) -> Result<(String, u32), String> {
    let (name, weight) = pair::<u32>(text).ok_or("not TENANT=WEIGHT, as in acme=2")?;
    match (1..=WEIGHT_MAX).contains(&weight) {
        true => Ok((name, weight)),
        false => Err(format!("the weight must be 1 to {WEIGHT_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn parse(words: &str) -> Result<SimulateArgs, String> {
        let words = ["simulate"].into_iter().chain(words.split_whitespace());
        Command::try_parse_from(words).map(|command| command.args).map_err(|error| error.to_string())
    }

    #[test]
    fn a_question_has_one_load_and_a_search_has_targets() {
        let args = parse("--workload x --scale a=2 --scale b=0.5 --weight a=3 --devices 4").expect("words").question;
        assert_eq!(args.scale, [("a".to_owned(), 2.0), ("b".to_owned(), 0.5)]);
        assert_eq!((args.weight, args.devices), (vec![("a".to_owned(), 3)], Some(4)));
        assert!(parse("--trace x --find-devices --itl-p99 50ms").is_ok());
        assert!(matches!(parse("fit x --out y").expect("words").fit, Some(SimulateCommand::Fit(_))));
        for words in [
            "",
            "--devices 4",
            "--workload x --trace y",
            "--workload x --find-devices",
            "--workload x --devices 65",
            "--workload x --devices 0",
            "--workload x --scale a",
            "--workload x --scale a=-1",
            "--workload x --scale a=nan",
            "--workload x --weight a=0",
            "--workload x --ttft-p99 500",
            "--workload x --policy best",
            "--workload x fit y",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn unknown_names_come_with_those_there_are() {
        let error = |words: &str| run(parse(words).expect("words")).expect_err("an error").to_string();
        let workload = error("--workload nothing");
        assert!(workload.contains("`nothing`") && workload.contains("noisy-neighbour"), "{workload}");
        let cost = error("--workload steady --cost nowhere");
        assert!(cost.contains("nowhere") && cost.contains("h200-llama8b"), "{cost}");
        let tenant = error("--workload overload --scale acme=2");
        assert!(tenant.contains("`acme`") && tenant.contains("1, 2"), "{tenant}");
        assert!(error("--trace /nonexistent").contains("/nonexistent"));
    }
}
