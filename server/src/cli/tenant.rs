//! `weir tenant`: who pays, and what for.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    key::{KeyWish, keep},
    remote::{Column, Remote, encoded, lines, moment, patch, text},
};

/// The settings that are not limits.
const OWN: &[&str] = &[
    "name",
    "domain",
    "status",
    "reason",
    "plan",
    "overrides",
    "models",
    "default_models",
    "price_ppm",
    "flags",
    "ip_allow",
    "retention_days",
    "retain_bodies",
    "metadata",
];

#[derive(Debug, Args)]
pub(super) struct TenantArgs {
    #[command(subcommand)]
    command: TenantCommand,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Make a tenant and its first key, which is shown once
    Create(CreateArgs),
    /// List all tenants
    List,
    /// Show a tenant
    Show {
        /// Its id
        id: String,
    },
    /// Show how full a tenant's quotas are
    Quotas {
        /// Its id
        id: String,
    },
    /// Change a tenant's settings and limits
    Set {
        /// Its id
        id: String,
        /// Such as plan=professional weight=4 device_seconds_per_month=36000 'models=["m"]'; with nothing behind the `=` the
        /// field is taken away, and the plan's limit holds
        #[arg(value_name = "FIELD=VALUE", required = true)]
        fields: Vec<String>,
    },
    /// Refuse a tenant everything, until it is activated
    Suspend {
        /// Its id
        id: String,
        /// Why
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let a tenant work
    Activate {
        /// Its id
        id: String,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Its id, for ever: letters, digits and -_.
    id: String,
    /// Its plan [default: starter]
    #[arg(long)]
    plan: Option<String>,
    /// More settings and limits, as for `weir tenant set`
    #[arg(value_name = "FIELD=VALUE")]
    fields: Vec<String>,
    /// Make no key
    #[arg(long)]
    no_key: bool,
    #[command(flatten)]
    key: KeyWish,
}

pub(super) fn run(args: TenantArgs) -> anyhow::Result<()> {
    let TenantArgs { command, remote } = args;
    let one = |method: &str, path: &str, body: Option<Value>| -> anyhow::Result<()> {
        let body = remote.ask(method, path, body.as_ref())?;
        remote.show(&body, lines);
        Ok(())
    };
    match command {
        TenantCommand::Create(args) => create(&remote, &args),
        TenantCommand::List => {
            let columns: &[Column] = &[
                ("ID", |row| text(&row["id"])),
                ("NAME", |row| text(&row["name"])),
                ("STATUS", |row| text(&row["status"])),
                ("PLAN", |row| text(&row["plan"])),
                ("OVERRIDES", |row| text(&row["overrides"])),
            ];
            remote.list(&remote.all("/admin/v1/tenants")?, columns);
            Ok(())
        }
        TenantCommand::Show { id } => one("GET", &path(&id), None),
        TenantCommand::Quotas { id } => {
            let columns: &[Column] = &[
                ("UNIT", |row| text(&row["unit"])),
                ("PERIOD", |row| text(&row["period"])),
                ("ALLOWED", |row| text(&row["allowed"])),
                ("GRANTED", |row| text(&row["granted"])),
                ("SPENT", |row| text(&row["spent"])),
                ("OVER", |row| text(&row["over"])),
                ("UNTIL (UTC)", |row| moment(&row["until_us"])),
            ];
            let found = remote.ask("GET", &format!("{}/quotas", path(&id)), None)?;
            remote.list(found["data"].as_array().map_or(&[], Vec::as_slice), columns);
            Ok(())
        }
        TenantCommand::Set { id, fields } => {
            let mut body = patch(&fields, OWN, "overrides")?;
            let read = remote.ask("GET", &path(&id), None)?;
            body.insert("version".into(), read["version"].clone());
            one("PATCH", &path(&id), Some(body.into()))
        }
        TenantCommand::Suspend { id, reason } => {
            one("POST", &format!("{}/suspend", path(&id)), Some(json!({ "reason": reason })))
        }
        TenantCommand::Activate { id } => one("POST", &format!("{}/activate", path(&id)), Some(json!({}))),
    }
}

fn create(remote: &Remote, args: &CreateArgs) -> anyhow::Result<()> {
    let mut body: Map<String, Value> = patch(&args.fields, OWN, "overrides")?;
    body.insert("id".into(), args.id.as_str().into());
    if let Some(plan) = &args.plan {
        body.insert("plan".into(), plan.as_str().into());
    }
    body.insert("key".into(), if args.no_key { Value::Null } else { args.key.body()?.into() });
    let file = args.key.place()?;
    let mut made = remote.ask("POST", "/admin/v1/tenants", Some(&body.into()))?;
    keep(&mut made["key"], file)?;
    remote.show(&made, |made| {
        let key = match made["key"]["key"].as_str() {
            Some(key) => format!("key      {key}\n"),
            None => String::new(),
        };
        format!(
            "tenant   {}\nplan     {}\nstatus   {}\n{key}",
            text(&made["id"]),
            text(&made["plan"]),
            text(&made["status"])
        )
    });
    Ok(())
}

fn path(id: &str) -> String {
    format!("/admin/v1/tenants/{}", encoded(id))
}
