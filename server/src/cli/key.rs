//! `weir key`: keys of tenants and of those who run the server.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    put,
    remote::{Column, Remote, encoded, lines, moment, text},
};
use crate::keys::{Key, write_key_file};

#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key for a configuration file: it is shown once; the file needs only its hash
    New(NewArgs),
    /// Make a key of a tenant: it is shown once
    Create {
        /// The tenant's id, or `operator` for those who run the server
        tenant: String,
        #[command(flatten)]
        wish: KeyWish,
    },
    /// List a tenant's keys
    List {
        /// The tenant's id, or `operator`
        tenant: String,
    },
    /// Make a key that takes the place of another, which works on for a while
    Rotate {
        /// The tenant's id, or `operator`
        tenant: String,
        /// The old key's id: wk_...
        key: String,
        /// How long the old one works beside the new one, 30d at most
        #[arg(long, value_name = "TIME", default_value = "1d", value_parser = long_time)]
        overlap: Duration,
        /// Write the key into this new file (mode 0600) instead of showing it
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Revoke a key for ever: what runs by it is cut
    Revoke {
        /// The tenant's id, or `operator`
        tenant: String,
        /// The key's id: wk_...
        key: String,
        /// Why
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Debug, Args)]
struct NewArgs {
    /// Write the key into this new file (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// What is asked of a key that is to be made.
#[derive(Debug, Args)]
pub(super) struct KeyWish {
    /// What the key is called
    #[arg(long = "key-name", value_name = "NAME")]
    name: Option<String>,
    /// member or tenant_admin; of `operator`: auditor or operator [default: the lesser]
    #[arg(long)]
    role: Option<String>,
    /// What it may do, once for each [default: all that its role allows]
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// The models it may use, once for each [default: its tenant's]
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// When it ends, from now: such as 90d or 12h [default: never]
    #[arg(long, value_name = "TIME", value_parser = long_time)]
    expires_in: Option<Duration>,
    /// Write the key into this new file (mode 0600) instead of showing it
    #[arg(long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
}

/// A time of days or hours, where seconds would be many.
fn long_time(text: &str) -> Result<Duration, String> {
    let units = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let found = units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)));
    let time = found.and_then(|(number, seconds): (_, u64)| number.parse::<u32>().ok().map(|n| u64::from(n) * seconds));
    time.map(Duration::from_secs).ok_or_else(|| format!("`{text}` is not a time such as 30d, 12h or 0s"))
}

impl KeyWish {
    /// As the server takes it.
    pub(super) fn body(&self) -> anyhow::Result<Map<String, Value>> {
        let mut body = Map::new();
        let mut say = |field: &str, value: Value| drop(body.insert(field.to_owned(), value));
        if let Some(name) = &self.name {
            say("name", name.as_str().into());
        }
        if let Some(role) = &self.role {
            say("role", role.as_str().into());
        }
        if !self.scopes.is_empty() {
            say("scopes", self.scopes.clone().into());
        }
        if !self.models.is_empty() {
            say("models", self.models.clone().into());
        }
        if let Some(time) = &self.expires_in {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
            say("expires_us", u64::try_from((now + *time).as_micros()).context("--expires-in")?.into());
        }
        Ok(body)
    }

    /// Where the key goes, if not to standard output.
    pub(super) fn place(&self) -> anyhow::Result<Option<&Path>> {
        place(self.file.as_deref())
    }
}

/// A file that is there is refused before the server makes a key that nobody would have then.
fn place(file: Option<&Path>) -> anyhow::Result<Option<&Path>> {
    match file {
        Some(file) if file.exists() => bail!("{} is there already", file.display()),
        file => Ok(file),
    }
}

/// Puts the key in the clear, which the answer has this once, into a file.
pub(super) fn keep(made: &mut Value, file: Option<&Path>) -> anyhow::Result<()> {
    let (Some(file), Some(key)) = (file, made["key"].as_str()) else { return Ok(()) };
    let write = || -> std::io::Result<()> {
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        writeln!(out, "{key}")?;
        out.sync_all()
    };
    write().with_context(|| {
        format!("{}: the key {} was made and cannot be kept: revoke it", file.display(), text(&made["id"]))
    })?;
    made["key"] = format!("in {}", file.display()).into();
    Ok(())
}

pub(super) fn run(args: KeyArgs) -> anyhow::Result<()> {
    let KeyArgs { command, remote } = args;
    let make = |path: &str, body: Value, file: Option<&Path>| -> anyhow::Result<()> {
        let mut made = remote.ask("POST", path, Some(&body))?;
        keep(&mut made, file)?;
        remote.show(&made, lines);
        Ok(())
    };
    match command {
        KeyCommand::New(args) => new(args),
        KeyCommand::Create { tenant, wish } => make(&path(&tenant), wish.body()?.into(), wish.place()?),
        KeyCommand::List { tenant } => {
            let columns: &[Column] = &[
                ("ID", |row| text(&row["id"])),
                ("NAME", |row| text(&row["name"])),
                ("ROLE", |row| text(&row["role"])),
                ("EXPIRES", |row| moment(&row["expires_us"])),
                ("REVOKED", |row| moment(&row["revoked_us"])),
                ("LAST USED", |row| moment(&row["last_used_us"])),
            ];
            remote.list(&remote.all(&path(&tenant))?, columns);
            Ok(())
        }
        KeyCommand::Rotate { tenant, key, overlap, file } => {
            let path = format!("{}/{}/rotate", path(&tenant), encoded(&key));
            make(&path, json!({ "overlap_s": overlap.as_secs() }), place(file.as_deref())?)
        }
        KeyCommand::Revoke { tenant, key, reason } => {
            let path = format!("{}/{}/revoke", path(&tenant), encoded(&key));
            make(&path, json!({ "reason": reason }), None)
        }
    }
}

fn path(tenant: &str) -> String {
    format!("/admin/v1/tenants/{}/keys", encoded(tenant))
}

fn new(args: NewArgs) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_times_have_days() {
        for (text, seconds) in [("30d", 2_592_000), ("12h", 43_200), ("5m", 300), ("0s", 0)] {
            assert_eq!(long_time(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "d", "1", "-1d", "1w", "1.5h", "99999999999d"] {
            assert!(long_time(bad).is_err(), "{bad}");
        }
    }
}
