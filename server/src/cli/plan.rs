//! `weir plan` and `weir price`: what can be bought, and for how much.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use weir_runtime::quota::month_begins_us;

use super::remote::{Column, Remote, encoded, lines, moment, patch, text};

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    #[command(subcommand)]
    command: PlanCommand,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum PlanCommand {
    /// List all plans
    List,
    /// Show a plan
    Show {
        /// Its name
        id: String,
    },
    /// Make a plan
    Create {
        /// Its name
        id: String,
        /// Its limits, such as weight=4 requests_per_minute=600 device_seconds_per_month=36000
        #[arg(value_name = "LIMIT=VALUE")]
        limits: Vec<String>,
    },
    /// Change a plan's limits, for all of its tenants at once
    Set {
        /// Its name
        id: String,
        /// As for `weir plan create`; with nothing behind the `=` there is no such limit any more
        #[arg(value_name = "LIMIT=VALUE", required = true)]
        limits: Vec<String>,
    },
    /// Remove a plan that no tenant ever had
    Delete {
        /// Its name
        id: String,
    },
}

pub(super) fn run(args: PlanArgs) -> anyhow::Result<()> {
    let PlanArgs { command, remote } = args;
    let path = |id: &str| format!("/admin/v1/plans/{}", encoded(id));
    let one = |method: &str, path: &str, body: Option<Value>| -> anyhow::Result<()> {
        let body = remote.ask(method, path, body.as_ref())?;
        remote.show(&body, lines);
        Ok(())
    };
    match command {
        PlanCommand::List => {
            let columns: &[Column] = &[("ID", |row| text(&row["id"])), ("LIMITS", |row| text(&row["limits"]))];
            remote.list(&remote.all("/admin/v1/plans")?, columns);
            Ok(())
        }
        PlanCommand::Show { id } => one("GET", &path(&id), None),
        PlanCommand::Create { id, limits } => {
            let mut body = patch(&limits, &[], "limits")?;
            body.insert("id".into(), id.into());
            one("POST", "/admin/v1/plans", Some(body.into()))
        }
        PlanCommand::Set { id, limits } => {
            let mut body = patch(&limits, &[], "limits")?;
            let read = remote.ask("GET", &path(&id), None)?;
            body.insert("version".into(), read["version"].clone());
            one("PATCH", &path(&id), Some(body.into()))
        }
        PlanCommand::Delete { id } => one("DELETE", &path(&id), None),
    }
}

#[derive(Debug, Args)]
pub(super) struct PriceArgs {
    #[command(subcommand)]
    command: PriceCommand,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum PriceCommand {
    /// List all prices, those that no longer hold among them
    List,
    /// Set the price of a device hour; earlier months keep theirs
    Set {
        /// The price of 3,600 s of a device, such as 2.50
        #[arg(value_name = "AMOUNT")]
        per_hour: String,
        /// For this model only
        #[arg(long, default_value = "*")]
        model: String,
        /// For this plan only
        #[arg(long, default_value = "*")]
        plan: String,
        /// For this class of devices only
        #[arg(long, default_value = "*")]
        device_class: String,
        /// From the beginning of this month on (2026-11), the current one at the earliest [default: from now on]
        #[arg(long, value_name = "MONTH")]
        from: Option<String>,
    },
}

pub(super) fn price(args: PriceArgs) -> anyhow::Result<()> {
    let PriceArgs { command, remote } = args;
    match command {
        PriceCommand::List => {
            let columns: &[Column] = &[
                ("MODEL", |row| text(&row["model"])),
                ("PLAN", |row| text(&row["plan"])),
                ("DEVICES", |row| text(&row["device_class"])),
                ("FROM", |row| moment(&row["from_us"])),
                ("PER HOUR", |row| amount(row["micros_per_device_hour"].as_i64().unwrap_or_default())),
            ];
            remote.list(&remote.all("/admin/v1/prices")?, columns);
        }
        PriceCommand::Set { per_hour, model, plan, device_class, from } => {
            let mut body = json!({"model": model, "plan": plan, "device_class": device_class,
                                  "micros_per_device_hour": micros(&per_hour)?});
            if let Some(month) = from {
                let from_us =
                    month_begins_us(&month).with_context(|| format!("`{month}` is no month: write 2026-11"))?;
                body["from_us"] = from_us.into();
            }
            let set = remote.ask("POST", "/admin/v1/prices", Some(&body))?;
            remote.show(&set, lines);
        }
    }
    Ok(())
}

/// Millionths of an amount that is written with at most six digits behind the point: no part of it is lost.
fn micros(text: &str) -> anyhow::Result<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > 6 || !digits(whole) || !digits(part) {
        bail!("`{text}` is no amount: write 2.50");
    }
    format!("{whole}{part:0<6}").parse().with_context(|| format!("`{text}` is too much"))
}

fn amount(micros: i64) -> String {
    let (whole, part) = (micros / 1_000_000, micros % 1_000_000);
    let part = format!("{part:06}");
    let short = part.trim_end_matches('0');
    format!("{whole}.{short:0<2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact() {
        for (text, value) in [("2.5", 2_500_000), ("0.000001", 1), ("12", 12_000_000), ("2.50", 2_500_000)] {
            assert_eq!(micros(text).expect("an amount"), value, "{text}");
        }
        for bad in ["", ".5", "1.0000001", "-1", "1e3", "1,5", "99999999999999999"] {
            assert!(micros(bad).is_err(), "{bad}");
        }
        for (value, text) in [(2_500_000, "2.50"), (1, "0.000001"), (0, "0.00"), (12_345_600, "12.3456")] {
            assert_eq!(amount(value), text);
        }
    }
}
