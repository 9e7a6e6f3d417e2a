//! Answers for people.

use std::fmt::Write;

use super::{
    answer::{Answer, TenantAnswer},
    find::Try,
    fit::Fit,
};

/// Tenants that a table shows; the rest are in the JSON.
const TENANTS_SHOWN_MAX: usize = 20;

/// Columns as wide as what is in them, numbers to the right.
fn columns(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([head[at].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    let head = head.iter().map(|word| (*word).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match at {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn ms(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value < 10.0 => format!("{value:.2}"),
        Some(value) if value < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}

fn percent(part: f64) -> String {
    format!("{:.1}%", part * 100.0)
}

const TENANT_HEAD: [&str; 13] = [
    "tenant", "weight", "asked", "refused", "ended", "device s", "share", "TTFT p50", "p95", "p99", "ITL p50", "p99",
    "hits",
];

fn tenant_row(tenant: &TenantAnswer) -> Vec<String> {
    vec![
        tenant.name.clone(),
        tenant.weight.to_string(),
        tenant.asked.to_string(),
        tenant.refused.to_string(),
        tenant.finished.to_string(),
        format!("{:.3}", tenant.device_seconds),
        percent(tenant.share),
        ms(tenant.ttft.map(|t| t.p50)),
        ms(tenant.ttft.map(|t| t.p95)),
        ms(tenant.ttft.map(|t| t.p99)),
        ms(tenant.itl.map(|t| t.p50)),
        ms(tenant.itl.map(|t| t.p99)),
        tenant.hit_rate().map_or("-".into(), percent),
    ]
}

/// The tenants that fit a table: those that were charged most.
fn shown(tenants: &[TenantAnswer]) -> Vec<&TenantAnswer> {
    let mut order: Vec<usize> = (0..tenants.len()).collect();
    order.sort_by(|&a, &b| tenants[b].device_seconds.total_cmp(&tenants[a].device_seconds));
    order.truncate(TENANTS_SHOWN_MAX);
    order.sort_unstable();
    order.into_iter().map(|at| &tenants[at]).collect()
}

/// What came of a load.
pub fn answer_table(answer: &Answer) -> String {
    let total = &answer.total;
    let mut out = format!(
        "{} on {} device{} of {}, seed {}\n\n",
        answer.load,
        answer.devices,
        if answer.devices == 1 { "" } else { "s" },
        answer.cost,
        answer.seed
    );
    let rows: Vec<_> = shown(&answer.tenants).into_iter().map(tenant_row).collect();
    out += &columns(&TENANT_HEAD, &rows);
    if answer.tenants.len() > rows.len() {
        let _ = writeln!(out, "... and {} tenants that were charged less", answer.tenants.len() - rows.len());
    }
    if let Some(measured) = &answer.measured {
        out += "\nas measured while it was recorded:\n";
        let rows: Vec<_> = shown(&measured.tenants).into_iter().map(tenant_row).collect();
        out += &columns(&TENANT_HEAD, &rows);
    }
    out.push('\n');
    let rows: Vec<_> = answer
        .device
        .iter()
        .map(|device| {
            vec![
                device.device.to_string(),
                percent(device.utilisation),
                device.steps.to_string(),
                format!("{:.1}", device.rows_per_step),
                format!("{:.0}", device.tokens_per_s),
            ]
        })
        .collect();
    out += &columns(&["device", "utilisation", "steps", "rows/step", "tokens/s"], &rows);
    let _ = writeln!(
        out,
        "\n{:.1} s, {} requests ({} refused), {:.2} requests/s, {:.0} tokens/s, {} preemptions; times in ms",
        total.seconds, total.asked, total.refused, total.requests_per_s, total.tokens_per_s, total.preemptions
    );
    out
}

/// The numbers of devices that were tried.
pub fn tries_table(tries: &[Try]) -> String {
    let rows: Vec<_> = tries
        .iter()
        .map(|attempt| {
            vec![
                attempt.devices.to_string(),
                ms(attempt.ttft_p99),
                ms(attempt.itl_p99),
                attempt.refused.to_string(),
                percent(attempt.utilisation),
                if attempt.meets { "yes" } else { "no" }.to_owned(),
            ]
        })
        .collect();
    columns(&["devices", "worst TTFT p99", "worst ITL p99", "refused", "utilisation", "meets"], &rows)
}

/// What a fit found.
pub fn fit_lines(fits: &[Fit]) -> String {
    let mut out = String::new();
    for fit in fits {
        let micros = |nanos: weir_scheduler::Nanos| nanos.0 as f64 / 1e3;
        let _ = writeln!(
            out,
            "{}: a step takes {:.1} us, and {:.3} us a token, {:.3} us per 1,000 positions of context, {:.3} us per 1,000 pairs of \
             positions; {:.1} us between steps",
            fit.model,
            micros(fit.cost.step),
            micros(fit.cost.token),
            micros(fit.cost.kilocontext),
            micros(fit.cost.kiloread),
            micros(fit.cost.overhead)
        );
        let _ = writeln!(
            out,
            "{}: fitted to {} steps, {} of them set aside as accidents; {} held out",
            fit.model, fit.fitted, fit.aside, fit.held_out
        );
        for (name, value) in [("error_p50", fit.error_p50), ("error_p90", fit.error_p90), ("total", fit.total)] {
            let _ = writeln!(out, "figure=fit.{}.{name} value={value:.4}", fit.model);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{
        costs::tests::costs,
        load::{Load, LoadOptions},
        trace::tests::{request, trace},
    };
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [vec!["a".into(), "1".into()], vec!["long".into(), "12345".into()]];
        assert_eq!(columns(&["n", "of"], &rows), "n        of\na         1\nlong  12345\n");
    }

    #[test]
    fn a_table_is_exactly_this() {
        let lines = request(0, 0, 100, 5) + &request(1_000_000_000, 1, 10, 1);
        let load = Load::recorded("t", &trace(&lines), &costs(4_000, 20), &LoadOptions::default()).unwrap();
        let table = answer_table(&load.play(2));
        let expected = "\
t on 2 devices of test, seed 0

tenant  weight  asked  refused  ended  device s  share  TTFT p50   p95   p99  ITL p50   p99  hits
a            1      1        0      1     0.022  84.0%      6.00  6.00  6.00     4.03  4.03  0.0%
b            1      1        0      1     0.004  16.0%      4.20  4.20  4.20        -     -  0.0%

device  utilisation  steps  rows/step  tokens/s
";
        assert!(table.starts_with(expected), "{table}");
        assert!(
            table.ends_with("2 requests (0 refused), 1.98 requests/s, 115 tokens/s, 0 preemptions; times in ms\n"),
            "{table}"
        );
    }
}
