//! `weir bench serve`: puts a running server under load, over HTTP only.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use weir_bench::{LoadConfig, LoadKind};

use super::client_key;
use crate::config::DEMO_KEY_FILE;

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Measure a running server: tokens and vectors per second, latencies, memory, CPU time
    Serve(BenchArgs),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// Streamed completions of fixed lengths
    Completions,
    /// Embeddings of 1, 8 and 32 inputs
    Embeddings,
}

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// The model, as it is served
    #[arg(long)]
    model: String,
    /// File with the key, unless WEIR_API_KEY holds it
    #[arg(long, value_name = "FILE", default_value = DEMO_KEY_FILE)]
    key_file: PathBuf,
    /// What to ask for
    #[arg(long, value_enum, default_value_t = Kind::Completions)]
    kind: Kind,
    /// Connections, one level after the other
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    concurrency: Vec<u32>,
    /// Tokens of each prompt or input
    #[arg(long, default_value_t = 128)]
    prompt_tokens: u32,
    /// Tokens of each answer
    #[arg(long, default_value_t = 128)]
    output_tokens: u32,
    /// Requests a level; 0 goes by --seconds
    #[arg(long, default_value_t = 0)]
    requests: u32,
    /// Seconds a level
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Requests before the first level that are not counted
    #[arg(long, default_value_t = 2)]
    warmup: u32,
    /// Where prompts come from: another seed, other prompts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prompts are drawn from the ids below this
    #[arg(long, default_value_t = 30_000)]
    vocab: u32,
    /// Append one JSON object a level to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(command: BenchCommand) -> anyhow::Result<()> {
    let BenchCommand::Serve(args) = command;
    let config = LoadConfig {
        url: args.url,
        key: client_key(&args.key_file)?,
        model: args.model,
        kind: match args.kind {
            Kind::Completions => LoadKind::Completions,
            Kind::Embeddings => LoadKind::Embeddings,
        },
        concurrency: args.concurrency,
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        requests: args.requests,
        seconds: args.seconds,
        warmup: args.warmup,
        seed: args.seed,
        vocab: args.vocab,
        server_pids: Vec::new(),
        json: args.json,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Its errors name their cause themselves, so the chain would say it twice.
    runtime.block_on(weir_bench::run(config, &mut std::io::stdout())).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(())
}
