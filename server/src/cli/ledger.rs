//! `weir ledger`: whether it is whole, and its months: closed, exported and archived.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, ErrorKind},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use weir_runtime::ledger::{Checked, PublicKey, check_archive};

use super::{
    audit::verified,
    put,
    remote::{Column, Remote, encoded, lines, moment, text},
};

#[derive(Debug, Args)]
pub(super) struct LedgerArgs {
    #[command(subcommand)]
    command: LedgerCommand,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum LedgerCommand {
    /// Recompute the ledger's chains and sums, and check its months; fails if a row is not as it was written
    Verify {
        /// A public key: every month must be signed by one of those that are named [default: whichever key it names]
        #[arg(long = "key", value_name = "HEX", value_parser = public_key)]
        keys: Vec<PublicKey>,
    },
    /// List closed months with their sums
    Months,
    /// Close a month now, which the server does by itself ten minutes after its end
    Close {
        /// Such as 2026-11 (UTC)
        month: String,
    },
    /// Print a closed month's signed statement as JSON, to be kept elsewhere
    Statement {
        /// Such as 2026-11 (UTC)
        month: String,
    },
    /// Export a closed month's rows into a file, check that, and remove them from the store; again, to finish what broke off
    Archive {
        /// Such as 2026-11 (UTC), the oldest that is not archived
        month: String,
        /// The file, as NDJSON; one that is there must hold this month
        #[arg(long, value_name = "FILE")]
        into: PathBuf,
        /// A public key that the month must be signed by
        #[arg(long = "key", value_name = "HEX", value_parser = public_key)]
        keys: Vec<PublicKey>,
    },
    /// Check a file that `weir ledger archive` made; needs no server
    Check {
        /// The file
        file: PathBuf,
        /// A public key that the month must be signed by
        #[arg(long = "key", value_name = "HEX", value_parser = public_key)]
        keys: Vec<PublicKey>,
    },
}

fn public_key(text: &str) -> Result<PublicKey, String> {
    PublicKey::from_hex(text).ok_or_else(|| "a public key is 64 hexadecimal digits".to_owned())
}

pub(super) fn run(args: LedgerArgs) -> anyhow::Result<()> {
    let LedgerArgs { command, remote } = args;
    let path = |month: &str, what: &str| format!("/admin/v1/ledger/months/{}{what}", encoded(month));
    match command {
        LedgerCommand::Verify { keys } => {
            let keys: Vec<String> = keys.iter().map(PublicKey::to_string).collect();
            let query = if keys.is_empty() { String::new() } else { format!("?key={}", keys.join(",")) };
            verified(&remote, &format!("/admin/v1/ledger/verify{query}"))
        }
        LedgerCommand::Months => {
            let columns: &[Column] = &[
                ("MONTH", |row| text(&row["month"])),
                ("CLOSED", |row| moment(&row["closed_us"])),
                ("ARCHIVED", |row| moment(&row["archived_us"])),
                ("TENANTS", |row| text(&row["tenants"])),
                ("REQUESTS", |row| text(&row["requests"])),
                ("DEVICE S", |row| seconds(&row["device_ns"])),
                ("UNEQUAL INVOICES", |row| text(&row["unequal_invoices"])),
                ("SIGNED BY", |row| text(&row["signer"])),
            ];
            let answer = remote.ask("GET", "/admin/v1/ledger/months", None)?;
            remote.list(answer["data"].as_array().map_or(&[][..], Vec::as_slice), columns);
            Ok(())
        }
        LedgerCommand::Close { month } => {
            let closed = remote.ask("POST", &path(&month, "/close"), Some(&json!({})))?;
            remote.show(&closed, lines);
            Ok(())
        }
        LedgerCommand::Statement { month } => {
            put(&format!("{:#}\n", remote.ask("GET", &path(&month, ""), None)?));
            Ok(())
        }
        LedgerCommand::Archive { month, into, keys } => {
            // A file that is there is what an earlier call has made: the rows may be gone by now.
            let found = match checked(&into, &keys) {
                Err(error) if is_missing(&error) => export(&remote, &path(&month, "/rows"), &into, &keys)?,
                found => found?,
            };
            if found.month.month != month {
                bail!("{} holds {}, and not {month}", into.display(), found.month.month);
            }
            let said = json!({"hash": found.hash.to_string(), "rows": found.rows});
            let answer = remote.ask("POST", &path(&month, "/archive"), Some(&said))?;
            remote.show(&answer, |answer| {
                let (rows, removed) = (found.rows, text(&answer["removed"]));
                format!("{month}: {rows} rows are in {}, checked; {removed} were removed\n", into.display())
            });
            Ok(())
        }
        LedgerCommand::Check { file, keys } => {
            let Checked { month, hash, signer, rows } = checked(&file, &keys)?;
            let (hash, signer) = (hash.to_string(), signer.to_string());
            let found = json!({"month": month.month, "rows": rows, "hash": hash, "signer": signer, "valid": true});
            remote.show(&found, lines);
            Ok(())
        }
    }
}

fn seconds(ns: &Value) -> String {
    let ns = ns.as_i64().unwrap_or_default();
    format!("{}.{:06}", ns / 1_000_000_000, ns / 1_000 % 1_000_000)
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Reads an archive and recomputes it.
fn checked(path: &Path, keys: &[PublicKey]) -> anyhow::Result<Checked> {
    let found = check_archive(BufReader::new(File::open(path)?)).with_context(|| path.display().to_string())?;
    if !keys.is_empty() && !keys.contains(&found.signer) {
        bail!("{}: it was signed by {}, which is none of the keys that were named", path.display(), found.signer);
    }
    Ok(found)
}

/// Makes the file: whole, checked and on the disk, or not there.
fn export(remote: &Remote, path: &str, into: &Path, keys: &[PublicKey]) -> anyhow::Result<Checked> {
    let name = into.file_name().with_context(|| format!("{} is no file", into.display()))?;
    let beside = into.with_file_name(format!("{}.partial", name.to_string_lossy()));
    let mut rows = remote.stream(path)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    io::copy(&mut rows, &mut file).context("the server's answer")?;
    file.sync_all()?;
    let found = checked(&beside, keys)?;
    fs::rename(&beside, into)?;
    let folder = into.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()?;
    Ok(found)
}
