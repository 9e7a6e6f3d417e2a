//! `weir invoice TENANT MONTH`: a bill, as a table, CSV or JSON.

use anyhow::Context;
use clap::Args;
use weir_runtime::billing::Invoice;

use super::{
    put,
    remote::{Remote, encoded},
    usage::{columns, money},
};

#[derive(Debug, Args)]
pub(super) struct InvoiceArgs {
    /// Whose
    #[arg(value_name = "TENANT")]
    tenant: String,
    /// Such as 2026-11 (UTC)
    #[arg(value_name = "MONTH")]
    month: String,
    #[command(flatten)]
    remote: Remote,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

pub(super) fn run(args: &InvoiceArgs) -> anyhow::Result<()> {
    let path = format!("/admin/v1/invoices/{}/{}", encoded(&args.tenant), encoded(&args.month));
    if args.csv {
        put(&args.remote.text(&format!("{path}.csv"))?);
        return Ok(());
    }
    let body = args.remote.ask("GET", &path, None)?;
    let bill: Invoice = serde_json::from_value(body.clone()).context("the server's answer")?;
    args.remote.show(&body, |_| table(&bill));
    Ok(())
}

fn table(bill: &Invoice) -> String {
    let state = if bill.closed { "closed" } else { "so far, at today's prices" };
    let heads = ["model", "plan", "device", "requests", "device s", "per hour", "times", "amount"];
    let seconds = |ns: i64| format!("{}.{:06}", ns / 1_000_000_000, ns / 1_000 % 1_000_000);
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for line in &bill.lines {
        rows.push(vec![
            line.model.clone(),
            line.plan.clone(),
            line.device_class.clone(),
            line.used.requests.to_string(),
            seconds(line.used.device_ns),
            line.micros_per_device_hour.map_or("no price".to_owned(), money),
            format!("{}.{:06}", line.price_ppm / 1_000_000, line.price_ppm % 1_000_000),
            money(line.amount_micros),
        ]);
    }
    let total = [
        "total",
        "",
        "",
        &bill.used.requests.to_string(),
        &seconds(bill.used.device_ns),
        "",
        "",
        &money(bill.amount_micros),
    ];
    rows.push(total.map(str::to_owned).to_vec());
    format!("{}, {} (UTC), {state}\n\n{}", bill.tenant, bill.month, columns(&rows, 3))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bill_is_read_from_the_answer_and_ends_with_its_total() {
        let sums = json!({"requests": 2, "prompt_tokens": 1, "completion_tokens": 1, "device_ns": 7_200_000_000_000i64,
                          "amount_micros": 3_000_000});
        let mut line = sums.clone();
        for (name, value) in [
            ("model", json!("m")),
            ("plan", json!("starter")),
            ("device_class", json!("cpu")),
            ("price_from_us", json!(0)),
            ("micros_per_device_hour", json!(1_000_000)),
            ("price_ppm", json!(1_500_000)),
        ] {
            line[name] = value;
        }
        let mut bill = sums;
        for (name, value) in [
            ("object", json!("invoice")),
            ("tenant", json!("acme")),
            ("month", json!("2026-11")),
            ("closed", json!(true)),
            ("made_us", json!(7)),
            ("lines", json!([line])),
        ] {
            bill[name] = value;
        }
        let shown = table(&serde_json::from_value(bill).expect("a bill"));
        assert_eq!(
            shown.lines().collect::<Vec<_>>(),
            [
                "acme, 2026-11 (UTC), closed",
                "",
                "model  plan     device  requests     device s  per hour     times    amount",
                "m      starter  cpu            2  7200.000000  1.000000  1.500000  3.000000",
                "total                          2  7200.000000                      3.000000",
            ]
        );
    }
}
