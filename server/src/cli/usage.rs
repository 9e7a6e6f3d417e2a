//! `weir usage TENANT`: what a tenant used, as a table.

use std::fmt::Write;

use clap::Args;
use serde_json::Value;

use super::remote::{Remote, encoded, text};

#[derive(Debug, Args)]
pub(super) struct UsageArgs {
    /// Whose; all tenants' where absent
    #[arg(value_name = "TENANT")]
    tenant: Option<String>,
    /// The first day, such as 2026-11-01 (UTC) [default: the first of the month]
    #[arg(long, value_name = "DAY")]
    from: Option<String>,
    /// The last day [default: today]
    #[arg(long, value_name = "DAY")]
    to: Option<String>,
    /// Some of tenant, day, model, key, plan, device_class [default: day,model; tenant where all are shown]
    #[arg(long, value_name = "LIST")]
    by: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

pub(super) fn run(args: &UsageArgs) -> anyhow::Result<()> {
    let by = args.by.as_deref().unwrap_or(if args.tenant.is_some() { "day,model" } else { "tenant" });
    let mut path = format!("/admin/v1/usage?group_by={}", encoded(by));
    for (name, value) in [("tenant", &args.tenant), ("from", &args.from), ("to", &args.to)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", encoded(value)));
        }
    }
    let report = args.remote.ask("GET", &path, None)?;
    args.remote.show(&report, |report| table(report, args.tenant.as_deref()));
    Ok(())
}

fn table(report: &Value, tenant: Option<&str>) -> String {
    let by: Vec<String> = report["group_by"].as_array().into_iter().flatten().map(text).collect();
    let lines = report["data"].as_array().cloned().unwrap_or_default();
    let mut rows = vec![by.iter().map(|name| name.replace('_', " ")).chain(HEADS.map(str::to_owned)).collect()];
    for line in &lines {
        rows.push(by.iter().map(|name| text(&line[name.as_str()])).chain(sums(line)).collect());
    }
    let mut total: Vec<String> = vec![String::new(); by.len()];
    if let Some(first) = total.first_mut() {
        *first = "total".to_owned();
    }
    rows.push(total.into_iter().chain(sums(&report["total"])).collect());
    let head =
        format!("{}, {} to {} (UTC)\n\n", tenant.unwrap_or("all tenants"), text(&report["from"]), text(&report["to"]));
    head + &columns(&rows, by.len())
}

const HEADS: [&str; 5] = ["requests", "prompt", "completion", "device s", "cost"];

/// The figures of a line or a total.
fn sums(of: &Value) -> [String; 5] {
    let int = |name: &str| of[name].as_i64().unwrap_or_default();
    [
        int("requests").to_string(),
        int("prompt_tokens").to_string(),
        int("completion_tokens").to_string(),
        format!("{}.{:06}", int("device_ns") / 1_000_000_000, int("device_ns") / 1_000 % 1_000_000),
        money(int("cost_micros")),
    ]
}

/// Millionths of the currency as a number.
pub(super) fn money(micros: i64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

/// Lines in columns, of which the first are words, to the left, and the others figures, to the right.
pub(super) fn columns(rows: &[Vec<String>], words: usize) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a String cannot fail.
            let _ = match column < words {
                true => write!(line, "{cell:<width$}  "),
                false => write!(line, "{cell:>width$}  "),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn use_is_shown_in_columns_that_end_with_the_total() {
        let sums = json!({"requests": 3, "prompt_tokens": 12, "completion_tokens": 30, "device_ns": 1_234_567_999,
                          "cost_micros": 1_000_003});
        let mut line = sums.clone();
        line["day"] = json!("2026-11-21");
        line["model"] = json!("fake");
        let report = json!({"from": "2026-11-01", "to": "2026-11-21", "group_by": ["day", "model"], "data": [line],
                            "total": sums});
        let shown = table(&report, Some("acme"));
        assert_eq!(
            shown.lines().collect::<Vec<_>>(),
            [
                "acme, 2026-11-01 to 2026-11-21 (UTC)",
                "",
                "day         model  requests  prompt  completion  device s      cost",
                "2026-11-21  fake          3      12          30  1.234567  1.000003",
                "total                     3      12          30  1.234567  1.000003",
            ]
        );
    }
}
