//! `weir audit`: what was done, and whether the record of it is whole.

use anyhow::bail;
use clap::{Args, Subcommand};

use super::remote::{Column, Remote, encoded, lines, moment, text};

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// List who changed what, oldest first
    List {
        /// Of this tenant only
        #[arg(long)]
        tenant: Option<String>,
    },
    /// Recompute the log's chain; fails if a row is not as it was written
    Verify,
}

pub(super) fn run(args: AuditArgs) -> anyhow::Result<()> {
    let AuditArgs { command, remote } = args;
    match command {
        AuditCommand::List { tenant } => {
            let columns: &[Column] = &[
                ("SEQ", |row| text(&row["seq"])),
                ("AT", |row| moment(&row["at_us"])),
                ("ACTOR", |row| text(&row["actor"])),
                ("ACTION", |row| text(&row["action"])),
                ("TARGET", |row| text(&row["target"])),
                ("RESULT", |row| text(&row["result"])),
                ("REASON", |row| text(&row["reason"])),
            ];
            let query = tenant.map(|tenant| format!("?tenant={}", encoded(&tenant))).unwrap_or_default();
            remote.list(&remote.all(&format!("/admin/v1/audit{query}"))?, columns);
            Ok(())
        }
        AuditCommand::Verify => verified(&remote, "/admin/v1/audit/verify"),
    }
}

/// Shows what was found, and fails if it is not whole.
pub(super) fn verified(remote: &Remote, path: &str) -> anyhow::Result<()> {
    let found = remote.ask("GET", path, None)?;
    remote.show(&found, lines);
    match found["valid"].as_bool() {
        Some(true) => Ok(()),
        _ => bail!("it is not whole: {}", text(&found["fault"])),
    }
}
