//! How a report is shown: a table for people, `figure=` lines for scripts.

use std::io::{self, Write};

use crate::config::LoadKind;
use crate::level::LevelReport;
use crate::pace::Pace;

/// A column: its title, its width, and what stands in it.
type Column = (&'static str, usize, fn(&LevelReport) -> String);

const PACE_COLUMNS: [Column; 3] = [
    ("load", 8, |r| match r.pace {
        Pace::Closed { concurrency } => format!("c{concurrency}"),
        Pace::Open { rate, .. } => format!("{rate}/s"),
        Pace::Trace => "trace".into(),
    }),
    ("ok", 6, |r| r.completed.to_string()),
    ("fail", 5, |r| r.failed.to_string()),
];

const COMPLETION_COLUMNS: [Column; 12] = [
    ("req/s", 8, |r| number(Some(r.rates.requests))),
    ("decode/s", 9, |r| number(r.decode_tokens_per_s)),
    ("prompt/s", 9, |r| number(r.prompt_tokens_per_s)),
    ("out/s", 8, |r| number(Some(r.rates.output_tokens))),
    ("total/s", 8, |r| number(Some(r.total_throughput()))),
    ("TTFT p50", 9, |r| number(r.latencies.ttft.map(|s| s.median))),
    ("p99 ms", 8, |r| number(r.latencies.ttft.map(|s| s.p99))),
    ("ITL p50", 8, |r| number(r.latencies.itl.map(|s| s.median))),
    ("p99 ms", 8, |r| number(r.latencies.itl.map(|s| s.p99))),
    ("TPOT ms", 8, |r| number(r.latencies.tpot.map(|s| s.mean))),
    ("E2E p50", 9, |r| number(r.latencies.e2el.map(|s| s.median))),
    ("p99 ms", 9, |r| number(r.latencies.e2el.map(|s| s.p99))),
];

const EMBEDDING_COLUMNS: [Column; 7] = [
    ("inputs", 6, |r| r.inputs.to_string()),
    ("req/s", 8, |r| number(Some(r.rates.requests))),
    ("emb/s", 9, |r| number(Some(r.rates.embeddings))),
    ("tokens/s", 10, |r| number(Some(r.rates.prompt_tokens))),
    ("E2E p50", 9, |r| number(r.latencies.e2el.map(|s| s.median))),
    ("p90 ms", 9, |r| number(r.latencies.e2el.map(|s| s.p90))),
    ("p99 ms", 9, |r| number(r.latencies.e2el.map(|s| s.p99))),
];

const GOODPUT_COLUMN: Column = ("good/s", 8, |r| number(r.slo.map(|_| r.rates.good_requests)));

/// Processor time, in us per request, of the server, its executors and this client, and other load in cores; after
/// either kind's columns.
const MACHINE_COLUMNS: [Column; 4] = [
    ("srv us/rq", 9, |r| micros(r, |m| m.server_pid.map(|_| m.server_cores))),
    ("exec", 8, |r| micros(r, |m| m.server_pid.map(|_| m.executor_cores))),
    ("own", 6, |r| micros(r, |m| Some(m.own_cores))),
    ("other", 5, |r| r.machine.as_ref().map_or("-".into(), |machine| format!("{:.2}", machine.other_cores))),
];

fn columns(kind: LoadKind) -> impl Iterator<Item = &'static Column> {
    let own: &[Column] = match kind {
        LoadKind::Completions | LoadKind::Chat => &COMPLETION_COLUMNS,
        LoadKind::Embeddings => &EMBEDDING_COLUMNS,
    };
    PACE_COLUMNS.iter().chain(own).chain([&GOODPUT_COLUMN]).chain(&MACHINE_COLUMNS)
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value < 100.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.1}"),
    }
}

fn micros(report: &LevelReport, of: fn(&crate::MachineReport) -> Option<f64>) -> String {
    let cores = report.machine.as_ref().and_then(of);
    cores.and_then(|cores| report.micros_per_request(cores)).map_or("-".into(), |micros| format!("{micros:.0}"))
}

/// The table's head. Latencies are in ms.
pub(crate) fn write_head(out: &mut dyn Write, kind: LoadKind) -> io::Result<()> {
    let titles: Vec<String> = columns(kind).map(|&(title, width, _)| format!("{title:>width$}")).collect();
    writeln!(out, "{}", titles.join(" "))
}

/// A level's row, and under it what must be known about it.
pub(crate) fn write_row(out: &mut dyn Write, report: &LevelReport) -> io::Result<()> {
    let cells: Vec<String> =
        columns(report.kind).map(|&(_, width, cell)| format!("{:>width$}", cell(report))).collect();
    writeln!(out, "{}", cells.join(" "))?;
    if let Some(reason) = &report.void {
        writeln!(out, "     void: {reason}")?;
    }
    if let Some(punctuality) = &report.punctuality {
        writeln!(
            out,
            "     offered {:.2}/s, {} open at most; the client was {:.2} ms late at worst, 99 % under {:.2} ms",
            punctuality.offered, report.open_peak, punctuality.late_ms_max, punctuality.late_ms_p99
        )?;
    }
    for tenant in &report.tenants {
        let [ttft, _, itl, e2el] = tenant.latencies.named().map(|(_, summary)| number(summary.map(|s| s.p99)));
        writeln!(
            out,
            "     {}: {} ok, {} failed, {} req/s, {} out/s, p99 ms: TTFT {ttft}, ITL {itl}, E2E {e2el}{}",
            tenant.name,
            tenant.completed,
            tenant.failed,
            number(Some(tenant.rates.requests)),
            number(Some(tenant.rates.output_tokens)),
            report.slo.map_or(String::new(), |_| format!(", {} good/s", number(Some(tenant.rates.good_requests)))),
        )?;
    }
    for failure in &report.failures {
        writeln!(out, "     failed {}x: {}", failure.count, failure.reason)?;
    }
    for note in &report.notes {
        writeln!(out, "     note: {note}")?;
    }
    out.flush()
}

/// One `figure=<name> value=<v>` line each; `void=true` ends the line of a figure that cannot stand. Resident memory is
/// that of the end of the run.
pub(crate) fn write_figures(out: &mut dyn Write, reports: &[LevelReport]) -> io::Result<()> {
    for report in reports {
        let void = if report.void.is_some() { " void=true" } else { "" };
        for (name, value) in figures(report) {
            writeln!(out, "figure={name} value={value:.3}{void}")?;
        }
    }
    if let Some(machine) = reports.last().and_then(|report| report.machine.as_ref()) {
        for (name, value) in
            [("rss_mib_server", machine.rss_mib_server), ("rss_mib_executor", machine.rss_mib_executor)]
        {
            if let Some(value) = value {
                writeln!(out, "figure={name} value={value:.1}")?;
            }
        }
    }
    Ok(())
}

/// The figures of a level that has any, by name; `_c8` is concurrency 8, `_r8` 8 requests/s, `_b32` 32 inputs.
fn figures(report: &LevelReport) -> Vec<(String, f64)> {
    let suffix = match report.kind {
        LoadKind::Completions | LoadKind::Chat => report.pace.suffix(),
        LoadKind::Embeddings => format!("b{}_{}", report.inputs, report.pace.suffix()),
    };
    let has_samples = report.completed > 0;
    let measured = |value: f64| has_samples.then_some(value);
    let mut all: Vec<(&str, Option<f64>)> = Vec::new();
    match report.kind {
        LoadKind::Completions | LoadKind::Chat => all.extend([
            ("decode_tokens_per_s", report.decode_tokens_per_s),
            ("prompt_tokens_per_s", report.prompt_tokens_per_s),
            ("output_tokens_per_s", measured(report.rates.output_tokens)),
            ("total_tokens_per_s", measured(report.total_throughput())),
            ("requests_per_s", measured(report.rates.requests)),
            ("ttft_ms_p50", report.latencies.ttft.map(|s| s.median)),
            ("ttft_ms_p99", report.latencies.ttft.map(|s| s.p99)),
            ("itl_ms_p50", report.latencies.itl.map(|s| s.median)),
            ("itl_ms_p99", report.latencies.itl.map(|s| s.p99)),
            ("tpot_ms_mean", report.latencies.tpot.map(|s| s.mean)),
        ]),
        LoadKind::Embeddings => all.extend([
            ("embeddings_per_s", measured(report.rates.embeddings)),
            ("embedding_tokens_per_s", measured(report.rates.prompt_tokens)),
            ("requests_per_s", measured(report.rates.requests)),
        ]),
    }
    all.extend([
        ("e2el_ms_p50", report.latencies.e2el.map(|s| s.median)),
        ("e2el_ms_p99", report.latencies.e2el.map(|s| s.p99)),
    ]);
    all.push(("good_requests_per_s", report.slo.map(|_| report.rates.good_requests)));
    all.push(("late_ms_max", report.punctuality.map(|p| p.late_ms_max)));
    all.push(("failed_requests", Some(f64::from(report.failed))));
    if let Some(machine) = &report.machine {
        let found = |cores: f64| machine.server_pid.and_then(|_| report.micros_per_request(cores));
        all.extend([
            ("server_us_per_request", found(machine.server_cores)),
            ("executor_us_per_request", found(machine.executor_cores)),
            ("client_us_per_request", report.micros_per_request(machine.own_cores)),
        ]);
    }
    all.into_iter().filter_map(|(name, value)| Some((format!("{name}_{suffix}"), value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lengths::Lengths;
    use crate::level::tests::{outcome, shape};
    use crate::level::{Outcome, Shape};
    use crate::sample::Sample;
    use crate::sample::tests::completion;

    const MS: u64 = 1_000_000;

    fn report() -> LevelReport {
        // 100 ms for ten prompt tokens, then 20 tokens 5 ms apart; three rounds.
        let sample = |begin: u64| {
            let arrivals: Vec<(u64, u32)> = (0..21).map(|i| ((begin + 100 + 5 * i) * MS, 1)).collect();
            completion(0, begin * MS, (begin + 200) * MS, &arrivals)
        };
        let shape = Shape { output_tokens: Lengths::fixed(21), ..shape(1) };
        LevelReport::new(&shape, outcome((0..3).map(|i| sample(200 * i)).collect()), None)
    }

    fn text(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> String {
        let mut bytes = Vec::new();
        write(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn figures_carry_their_level_in_their_names() {
        let want = "figure=decode_tokens_per_s_c1 value=200.000
figure=prompt_tokens_per_s_c1 value=100.000
figure=output_tokens_per_s_c1 value=105.000
figure=total_tokens_per_s_c1 value=155.000
figure=requests_per_s_c1 value=5.000
figure=ttft_ms_p50_c1 value=100.000
figure=ttft_ms_p99_c1 value=100.000
figure=itl_ms_p50_c1 value=5.000
figure=itl_ms_p99_c1 value=5.000
figure=tpot_ms_mean_c1 value=5.000
figure=e2el_ms_p50_c1 value=200.000
figure=e2el_ms_p99_c1 value=200.000
figure=failed_requests_c1 value=0.000
";
        assert_eq!(text(|out| write_figures(out, &[report()])), want);
    }

    #[test]
    fn embedding_figures_name_inputs_and_concurrency() {
        let name = |concurrency, inputs| {
            let sample = Sample { inputs, ..completion(0, 0, 10 * MS, &[]) };
            let shape = Shape { kind: LoadKind::Embeddings, inputs, ..shape(concurrency) };
            figures(&LevelReport::new(&shape, outcome(vec![sample]), None)).swap_remove(0)
        };
        assert_eq!(name(1, 32), ("embeddings_per_s_b32_c1".into(), 3200.0));
        assert_eq!(name(8, 1), ("embeddings_per_s_b1_c8".into(), 100.0));
    }

    #[test]
    fn void_figures_are_marked_and_a_dead_level_has_none_but_its_failures() {
        let mut void = report();
        void.void = Some("other load".into());
        assert!(text(|out| write_figures(out, &[void.clone()])).lines().all(|line| line.ends_with(" void=true")));
        assert!(text(|out| write_row(out, &void)).contains("\n     void: other load\n"));
        let dead = LevelReport::new(&shape(4), Outcome::default(), None);
        assert_eq!(text(|out| write_figures(out, &[dead])), "figure=failed_requests_c4 value=0.000\n");
    }

    #[test]
    fn head_and_row_stand_in_the_same_columns() {
        for kind in [LoadKind::Completions, LoadKind::Embeddings] {
            let level = LevelReport { kind, ..report() };
            let head = text(|out| write_head(out, kind));
            let row = text(|out| write_row(out, &level));
            assert_eq!(head.trim_end().len(), row.lines().next().unwrap().len(), "{head}{row}");
        }
    }
}
