//! `weir probe`: what `weir_runtime::probe` says about this machine's CPU and models on it.

use clap::Args;
use weir_runtime::probe::{self, Device};

use super::make_model::pool;

#[derive(Debug, Args)]
pub(super) struct ProbeArgs {
    /// What to look at, and how; without words, what there is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

pub(super) fn run(args: &ProbeArgs) -> anyhow::Result<()> {
    Ok(probe::main(&args.words, &Device::cpu(pool(0)))?)
}
