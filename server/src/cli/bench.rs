//! `weir bench serve`: puts a running server under load, over HTTP only.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use weir_bench::{Arrivals, Lengths, LoadConfig, LoadKind, Slo, Tenant};

use super::client::client_key;
use crate::{config::DEMO_KEY_FILE, keys::read_key_file};

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Measure a running server: throughput, latencies, goodput, processor time per request
    #[command(after_help = SERVE_HELP)]
    Serve(BenchArgs),
}

const SERVE_HELP: &str = "\
Several levels of --concurrency or --request-rate are measured one after the other. A level during which something else \
used the machine, or in which the client could not keep its own schedule, is void, and the command then fails.

Examples:
  weir bench serve --model m --concurrency 1,8,32 --plot sweep.svg
  weir bench serve --model m --request-rate 2,4,8 --goodput ttft:500 itl:50 --output result.json
  weir bench serve --model m --trace day.jsonl --tenant a=a.key --tenant b=b.key";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// Completions of token ids
    Completions,
    /// Chat completions of as many words
    Chat,
    /// Embeddings of token ids
    Embeddings,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("load").args(["concurrency", "request_rate", "trace"]))]
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
    /// Send as this tenant too, with the key in FILE and WEIGHT parts of the load; in place of --key-file
    #[arg(long = "tenant", value_name = "NAME[:WEIGHT]=FILE", conflicts_with = "key_file")]
    tenants: Vec<String>,
    /// What to ask for
    #[arg(long, value_enum, default_value_t = Kind::Completions)]
    kind: Kind,
    /// Closed loop: connections, each sending its next request when its last has ended [default: 1,8,32]
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    concurrency: Vec<u32>,
    /// Open loop: requests per second, sent on schedule whatever became of those before
    #[arg(long, value_delimiter = ',', value_name = "R,...")]
    request_rate: Vec<f64>,
    /// Shape of the open loop's Gamma distribution: 1 is Poisson, less comes in bursts
    #[arg(long, default_value_t = 1.0, requires = "request_rate")]
    burstiness: f64,
    /// Open loop of the JSON lines of a file: {"at": seconds, "prompt_tokens": N, "output_tokens": N, "tenant": NAME}
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Inputs of an embeddings request, one level each
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    inputs: Vec<u32>,
    /// Tokens of each prompt or input: a number, or a range to draw from
    #[arg(long, default_value = "128", value_name = "N[:N]")]
    prompt_tokens: Lengths,
    /// Tokens of each answer: a number, or a range to draw from
    #[arg(long, default_value = "128", value_name = "N[:N]")]
    output_tokens: Lengths,
    /// Ask for answers in one piece
    #[arg(long)]
    no_stream: bool,
    /// Do not ask the server to count the tokens of each delta, as an ordinary client would not
    #[arg(long)]
    no_delta_counts: bool,
    /// Requests a level; 0 goes by --seconds
    #[arg(long, default_value_t = 0)]
    requests: u32,
    /// Seconds a level
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Requests before each level that are not counted
    #[arg(long, default_value_t = 2)]
    warmup: u32,
    /// The most requests that an open loop may have open at once; one more is not sent, and voids the level
    #[arg(long, default_value_t = 1000)]
    open_max: u32,
    /// Limits in ms that a good request keeps: ttft, tpot, itl (each gap), e2el
    #[arg(long, num_args = 1.., value_name = "NAME:MS")]
    goodput: Vec<String>,
    /// The steady window, as fractions of the time in which requests begin [default: chosen from the requests]
    #[arg(long, value_name = "FROM:TO", value_parser = window)]
    window: Option<(f64, f64)>,
    /// Where prompts, lengths and arrivals come from: another seed, others
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prompts are drawn from the ids below this
    #[arg(long, default_value_t = 30_000)]
    vocab: u32,
    /// Write one JSON object a level, a line each, with the names of vLLM's benchmark
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Put each request's lengths and latencies into that JSON
    #[arg(long, requires = "output")]
    detailed: bool,
    /// Write a chart of the levels, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Do not fail when levels are void; they are marked all the same
    #[arg(long)]
    allow_busy: bool,
}

pub(super) fn run(command: BenchCommand) -> anyhow::Result<()> {
    let BenchCommand::Serve(args) = command;
    let allow_busy = args.allow_busy;
    let config = config(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Its errors name their cause themselves, so the chain would say it twice.
    let mut out = std::io::stdout();
    let reports = runtime.block_on(weir_bench::run(config, &mut out)).map_err(|error| anyhow!("{error}"))?;
    let void = reports.iter().filter(|report| report.void.is_some()).count();
    if void > 0 && !allow_busy {
        bail!("{void} of {} levels are void, as said above; --allow-busy lets them pass", reports.len());
    }
    Ok(())
}

fn config(args: BenchArgs) -> anyhow::Result<LoadConfig> {
    let tenants = if args.tenants.is_empty() {
        vec![Tenant { name: "default".into(), key: client_key(&args.key_file)?, weight: 1.0 }]
    } else {
        args.tenants.iter().map(|text| tenant(text)).collect::<anyhow::Result<_>>()?
    };
    let arrivals = match (args.trace, args.request_rate) {
        (Some(path), _) => Arrivals::Trace(path),
        (None, rates) if !rates.is_empty() => Arrivals::Rate { rates, burstiness: args.burstiness },
        _ if args.concurrency.is_empty() => Arrivals::Concurrency(vec![1, 8, 32]),
        _ => Arrivals::Concurrency(args.concurrency),
    };
    let slo = match args.goodput.join(" ") {
        none if none.is_empty() => None,
        limits => Some(limits.parse::<Slo>().map_err(|reason| anyhow!("--goodput: {reason}"))?),
    };
    Ok(LoadConfig {
        url: args.url,
        tenants,
        model: args.model,
        kind: match args.kind {
            Kind::Completions => LoadKind::Completions,
            Kind::Chat => LoadKind::Chat,
            Kind::Embeddings => LoadKind::Embeddings,
        },
        arrivals,
        inputs: args.inputs,
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        stream: !args.no_stream,
        count_deltas: !args.no_delta_counts,
        requests: args.requests,
        seconds: args.seconds,
        warmup: args.warmup,
        open_max: args.open_max,
        slo,
        window: args.window,
        seed: args.seed,
        vocab: args.vocab,
        server_pids: Vec::new(),
        output: args.output,
        detailed: args.detailed,
        plot: args.plot,
    })
}

/// `NAME=FILE` or `NAME:WEIGHT=FILE`. Keys come from files: what is on a command line, every process can read.
fn tenant(text: &str) -> anyhow::Result<Tenant> {
    let (left, file) = text.split_once('=').with_context(|| format!("--tenant {text}: not NAME[:WEIGHT]=FILE"))?;
    let (name, weight) = match left.split_once(':') {
        Some((name, weight)) => {
            (name, weight.parse().with_context(|| format!("--tenant {text}: its weight is not a number"))?)
        }
        None => (left, 1.0),
    };
    let key = read_key_file(Path::new(file)).with_context(|| format!("--tenant {text}: no key"))?;
    Ok(Tenant { name: name.to_owned(), key: key.reveal().to_owned(), weight })
}

fn window(text: &str) -> Result<(f64, f64), String> {
    let (from, to) = text.split_once(':').ok_or("not FROM:TO")?;
    let number = |part: &str| part.parse::<f64>().map_err(|_| format!("`{part}` is not a number"));
    Ok((number(from)?, number(to)?))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(words: &str) -> Result<BenchArgs, String> {
        let words = ["bench", "--model", "m"].into_iter().chain(words.split_whitespace());
        Command::try_parse_from(words).map(|command| command.args).map_err(|error| error.to_string())
    }

    #[test]
    fn one_thing_sets_the_pace() {
        assert_eq!(parse("--concurrency 1,2").expect("words").concurrency, [1, 2]);
        assert_eq!(parse("--request-rate 0.5,2 --burstiness 0.25").expect("words").request_rate, [0.5, 2.0]);
        for words in ["--concurrency 1 --request-rate 2", "--trace x --concurrency 1", "--burstiness 2", "--detailed"] {
            assert!(parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn the_words_become_a_load() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("key");
        fs::write(&key, "weir-a-key-of-some-length\n").expect("a key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
        let words = format!(
            "--tenant a={0} --tenant b:2.5={0} --request-rate 3 --goodput ttft:500 itl:50 --prompt-tokens 8:16 --window 0.2:0.9",
            key.display()
        );
        let load = config(parse(&words).expect("words")).expect("a load");
        let tenants: Vec<_> = load.tenants.iter().map(|t| (t.name.as_str(), t.key.as_str(), t.weight)).collect();
        assert_eq!(tenants, [("a", "weir-a-key-of-some-length", 1.0), ("b", "weir-a-key-of-some-length", 2.5)]);
        assert_eq!(load.arrivals, Arrivals::Rate { rates: vec![3.0], burstiness: 1.0 });
        assert_eq!(load.slo, Some(Slo { ttft: Some(500.0), itl: Some(50.0), ..Slo::default() }));
        assert_eq!((load.prompt_tokens, load.window), (Lengths { min: 8, max: 16 }, Some((0.2, 0.9))));
        for words in ["--tenant a", "--tenant a=/nonexistent/key", "--tenant a:x=/nonexistent/key"] {
            assert!(config(parse(words).expect("words")).is_err(), "{words}");
        }
        assert!(parse("--window 0.2").is_err() && parse("--prompt-tokens 9:8").is_err());
    }
}
