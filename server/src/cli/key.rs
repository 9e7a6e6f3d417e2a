//! `weir key new`: a key for a client, and its hash for the server.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::put;
use crate::keys::{Key, write_key_file};

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key: it is shown once; the server needs only its hash
    New(NewArgs),
}

#[derive(Debug, Args)]
pub(super) struct NewArgs {
    /// Write the key into this new file (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(super) fn run(command: KeyCommand) -> anyhow::Result<()> {
    let KeyCommand::New(args) = command;
    let key = Key::random()?;
    let hash = key.hash().hex();
    match args.file {
        Some(path) => {
            write_key_file(&path, &key)?;
            put(&format!("key:    in {}\nsha256 = \"{hash}\"\n", path.display()));
        }
        None => put(&format!("key:    {}\nsha256 = \"{hash}\"\n", key.reveal())),
    }
    Ok(())
}
