//! `weir inspect`: what a model's files are, or what is wrong with them. The server has this command look at a model before it
//! opens it itself; see `weir_runtime::inspect`.

use std::{fmt::Write, path::PathBuf};

use anyhow::Context;
use clap::Args;
use weir_runtime::inspect::{Inspection, answer, confine};

use super::put;

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A folder, or a .gguf file
    #[arg(value_name = "MODEL")]
    path: PathBuf,
    /// Print one line of JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    // Before a byte of the files is read. Programs listen at a pipe; people may send the summary into a file.
    confine(&args.path, !args.json).context("cannot limit this process")?;
    let (line, found) = answer(&args.path);
    match (found, args.json) {
        (Ok(_), true) => put(&format!("{line}\n")),
        (Err(_), true) => {
            put(&format!("{line}\n"));
            // Said already, on standard output.
            std::process::exit(1);
        }
        (Ok(inspection), false) => put(&summary(&inspection)),
        (Err(refusal), false) => return Err(refusal.into()),
    }
    Ok(())
}

fn summary(inspection: &Inspection) -> String {
    let info = &inspection.info;
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<14}{value}");
    };
    row("architecture", info.architecture.clone());
    row("parameters", info.parameters.to_string());
    row("weights", format!("{} bytes, mostly {}", info.weight_bytes, info.quantization));
    row("layers", format!("{} of {}, {} heads ({} for keys)", info.layers, info.hidden, info.heads, info.kv_heads));
    row("vocabulary", info.vocab_size.to_string());
    row("context", info.context_len.to_string());
    match info.embedding_dim {
        Some(dim) => row("embeds", format!("{dim} dimensions, inputs of up to {} tokens", info.max_input_len)),
        None => row("chats", if inspection.has_chat_template { "yes" } else { "no template" }.into()),
    }
    text
}
