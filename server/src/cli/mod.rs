//! The `weir` command.

mod audit;
mod bench;
mod chat;
mod client;
mod doctor;
mod inspect;
mod invoice;
mod key;
mod ledger;
mod make_model;
mod plan;
mod probe;
mod quickstart;
mod remote;
mod serve;
mod simulate;
mod tenant;
mod usage;
mod why;

use std::{
    env, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, Layer, STARTER_FILE, Settings, demo_tenant, print, read_env, read_file};

/// An inference server that knows its tenants: each gets its share of the device and pays for exactly what it used.
/// Clients see an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "weir", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models
    #[command(after_help = SERVE_HELP)]
    Serve(ServeArgs),
    /// Measure a running server
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Answer capacity questions by simulation: how many devices for this load, what if a tenant doubles
    #[command(after_help = simulate::HELP)]
    Simulate(simulate::SimulateArgs),
    /// Talk to a running server
    Chat(chat::ChatArgs),
    /// Say why a request waited, or waits: where its time went, and its place in line
    Why(why::WhyArgs),
    /// Say what this machine can do, and what is missing
    Doctor(doctor::DoctorArgs),
    /// Look after tenants
    Tenant(tenant::TenantArgs),
    /// Look after keys
    Key(key::KeyArgs),
    /// Look after plans
    Plan(plan::PlanArgs),
    /// Look after prices
    Price(plan::PriceArgs),
    /// Look at the log of changes, or verify it
    Audit(audit::AuditArgs),
    /// Verify the ledger; close its months, and archive them
    Ledger(ledger::LedgerArgs),
    /// Say what a tenant used, or all of them, and what it costs
    Usage(usage::UsageArgs),
    /// Print a tenant's bill of a month
    Invoice(invoice::InvoiceArgs),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look at a model's files without serving them: a summary, or what is wrong
    Inspect(inspect::InspectArgs),
    /// Write a model of random weights in a real model's shape, to measure with
    MakeModel(make_model::MakeModelArgs),
    /// Look at models on this machine without a server, for programs: see bench/gpu
    #[command(hide = true, disable_help_flag = true)]
    Probe(probe::ProbeArgs),
    /// Run a device; started by `weir serve`
    #[command(hide = true)]
    Executor,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Show what `weir serve` with the same arguments would have in force, with secrets masked
    Print(ServeArgs),
}

const SERVE_HELP: &str = "\
Flags win over environment variables, which win over the file, which wins over defaults. Each flag has a variable: \
--kv-memory is WEIR_KV_MEMORY; WEIR_MODELS lists models and WEIR_CONFIG names the file. RUST_LOG sets what is logged, \
WEIR_LOG_FORMAT=json how.

Examples:
  weir serve my-model.gguf
  weir serve chat=models/smollm2 embed=sentence-transformers/all-MiniLM-L6-v2
  weir serve fake:step=4ms,token=20us --port 9000";

/// What `weir serve` and `weir config print` take.
#[derive(Debug, Args)]
struct ServeArgs {
    /// What to serve: a folder, a .gguf file, a Hugging Face id (org/name[@revision][:file.gguf]), or
    /// fake:step=4ms,token=20us. NAME is what clients ask for [default: the models of the file]
    #[arg(value_name = "[NAME=]MODEL")]
    models: Vec<String>,
    /// The configuration file [default: weir.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever is in it.
            let line = format!("{error:#}").replace(['\n', '\r'], " ");
            eprintln!("weir: {line}");
            ExitCode::FAILURE
        }
    }
}

/// The command of these words, for tests.
#[cfg(test)]
pub(crate) fn run_words(words: &[String]) -> anyhow::Result<()> {
    run(Cli::try_parse_from(words)?.command)
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Executor => weir_runtime::executor_main(weir_runtime::DeviceChoice::Cpu),
        Command::Serve(args) => {
            log_to_stderr();
            load(args).and_then(serve::run)
        }
        Command::Bench(command) => bench::run(command),
        Command::Simulate(args) => simulate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Why(args) => why::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Tenant(args) => tenant::run(args),
        Command::Key(args) => key::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Price(args) => plan::price(args),
        Command::Audit(args) => audit::run(args),
        Command::Ledger(args) => ledger::run(args),
        Command::Usage(args) => usage::run(&args),
        Command::Invoice(args) => invoice::run(&args),
        Command::MakeModel(args) => make_model::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Config(ConfigCommand::Print(args)) => load(args).map(|(config, _)| put(&print(&config))),
    }
}

/// Whether the server was told nothing at all, neither by a file nor of tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Nobody wrote a file yet.
    First,
    /// There is a file.
    Configured,
}

/// Reads all layers.
fn load(args: ServeArgs) -> anyhow::Result<(Config, Start)> {
    let get = |name: &str| env::var(name).ok();
    let env = read_env(get).map_err(anyhow::Error::msg)?;
    let named = args.config.or_else(|| get("WEIR_CONFIG").filter(|name| !name.is_empty()).map(PathBuf::from));
    let path = named.or_else(|| Path::new(STARTER_FILE).exists().then(|| PathBuf::from(STARTER_FILE)));
    let start = if path.is_some() { Start::Configured } else { Start::First };
    let file = path.map(|path| read_file(&path).map(|file| (path, file))).transpose()?;
    let mut config = Config::merge(Layer { settings: args.settings, models: args.models }, env, file);
    if config.tenants.is_empty() {
        config.tenants.push(demo_tenant());
    }
    Ok((config, start))
}

/// Logs go to standard error: standard output is for what was asked for.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let json = env::var("WEIR_LOG_FORMAT").is_ok_and(|format| format == "json");
    let set = if json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
    if let Err(error) = set {
        eprintln!("weir: no log: {error}");
    }
}

/// Writes to standard output. A reader that went away (`weir doctor | head -1`) is no error.
fn put(text: &str) {
    use io::Write;
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_is_a_flag_and_models_come_in_order() {
        let parsed = Cli::try_parse_from(["weir", "serve", "a=x", "fake:step=4ms", "--kv-memory", "2GiB", "--port=0"]);
        let Command::Serve(args) = parsed.expect("valid").command else { panic!("serve") };
        assert_eq!(args.models, ["a=x", "fake:step=4ms"]);
        assert_eq!(args.settings.engine.kv_memory, Some(crate::config::ByteSize(2 << 30)));
        assert_eq!(args.settings.server.port, Some(0));
        for bad in ["--kv-memory=5", "--rows-max=0", "--executor=gpu", "--metrics=here", "--port=65536", "--no-such"] {
            assert!(Cli::try_parse_from(["weir", "serve", bad]).is_err(), "{bad}");
        }
    }
}
