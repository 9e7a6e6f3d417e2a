//! How a report is shown: a table for people, `figure=` lines for scripts, JSON for other tools.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::config::LoadKind;
use crate::level::LevelReport;
use crate::stats::Summary;

/// A column: its title, its width, and what stands in it.
type Column = (&'static str, usize, fn(&LevelReport) -> String);

const COMPLETION_COLUMNS: [Column; 14] = [
    ("conc", 4, |r| r.concurrency.to_string()),
    ("ok", 5, |r| r.completed.to_string()),
    ("fail", 4, |r| r.failed.to_string()),
    ("decode/s", 9, |r| number(r.decode_tokens_per_s)),
    ("prompt/s", 9, |r| number(r.prompt_tokens_per_s)),
    ("out/s", 8, |r| number(Some(r.output_throughput))),
    ("total/s", 8, |r| number(Some(r.total_throughput()))),
    ("TTFT p50", 9, |r| number(r.ttft.map(|s| s.median))),
    ("p99 ms", 8, |r| number(r.ttft.map(|s| s.p99))),
    ("ITL p50", 8, |r| number(r.itl.map(|s| s.median))),
    ("p99 ms", 8, |r| number(r.itl.map(|s| s.p99))),
    ("TPOT ms", 8, |r| number(r.tpot.map(|s| s.mean))),
    ("E2E p50", 9, |r| number(r.e2el.map(|s| s.median))),
    ("p99 ms", 9, |r| number(r.e2el.map(|s| s.p99))),
];

const EMBEDDING_COLUMNS: [Column; 9] = [
    ("conc", 4, |r| r.concurrency.to_string()),
    ("inputs", 6, |r| r.inputs.to_string()),
    ("ok", 6, |r| r.completed.to_string()),
    ("fail", 4, |r| r.failed.to_string()),
    ("emb/s", 9, |r| number(Some(r.embeddings_per_s))),
    ("tokens/s", 10, |r| number(Some(r.prompt_throughput))),
    ("E2E p50", 9, |r| number(r.e2el.map(|s| s.median))),
    ("p90 ms", 9, |r| number(r.e2el.map(|s| s.p90))),
    ("p99 ms", 9, |r| number(r.e2el.map(|s| s.p99))),
];

/// Processor time, in cores, after either kind's columns.
const MACHINE_COLUMNS: [Column; 4] = [
    ("server", 6, |r| cores(r, |m| m.server_cores)),
    ("exec", 5, |r| cores(r, |m| m.executor_cores)),
    ("own", 5, |r| cores(r, |m| m.own_cores)),
    ("other", 5, |r| cores(r, |m| m.other_cores)),
];

fn columns(kind: LoadKind) -> impl Iterator<Item = &'static Column> {
    let own: &[Column] = match kind {
        LoadKind::Completions => &COMPLETION_COLUMNS,
        LoadKind::Embeddings => &EMBEDDING_COLUMNS,
    };
    own.iter().chain(&MACHINE_COLUMNS)
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value < 100.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.1}"),
    }
}

fn cores(report: &LevelReport, of: fn(&crate::MachineReport) -> f64) -> String {
    report.machine.as_ref().map_or("-".into(), |machine| format!("{:.2}", of(machine)))
}

/// The table's head. Times are in ms, processor time in cores.
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

/// The figures of a level that has any, by name; `_c8` is concurrency 8, `_b32` 32 inputs (with `_c8` after it where the
/// concurrency is not 1).
fn figures(report: &LevelReport) -> Vec<(String, f64)> {
    let n = report.concurrency;
    let suffix = match report.kind {
        LoadKind::Completions => format!("c{n}"),
        LoadKind::Embeddings if n == 1 => format!("b{}", report.inputs),
        LoadKind::Embeddings => format!("b{}_c{n}", report.inputs),
    };
    let has_samples = report.completed > 0;
    let measured = |value: f64| has_samples.then_some(value);
    let mut all: Vec<(&str, Option<f64>)> = Vec::new();
    match report.kind {
        LoadKind::Completions => all.extend([
            ("decode_tokens_per_s", report.decode_tokens_per_s),
            ("prompt_tokens_per_s", report.prompt_tokens_per_s),
            ("output_tokens_per_s", measured(report.output_throughput)),
            ("total_tokens_per_s", measured(report.total_throughput())),
            ("requests_per_s", measured(report.request_throughput)),
            ("ttft_ms_p50", report.ttft.map(|s| s.median)),
            ("ttft_ms_p99", report.ttft.map(|s| s.p99)),
            ("itl_ms_p50", report.itl.map(|s| s.median)),
            ("itl_ms_p99", report.itl.map(|s| s.p99)),
            ("tpot_ms_mean", report.tpot.map(|s| s.mean)),
        ]),
        LoadKind::Embeddings => all.extend([
            ("embeddings_per_s", measured(report.embeddings_per_s)),
            ("embedding_tokens_per_s", measured(report.prompt_throughput)),
            ("requests_per_s", measured(report.request_throughput)),
        ]),
    }
    all.extend([("e2el_ms_p50", report.e2el.map(|s| s.median)), ("e2el_ms_p99", report.e2el.map(|s| s.p99))]);
    all.push(("failed_requests", Some(f64::from(report.failed))));
    if let Some(machine) = &report.machine {
        all.extend([
            ("server_cores", machine.server_pid.map(|_| machine.server_cores)),
            ("executor_cores", machine.server_pid.map(|_| machine.executor_cores)),
            ("own_cores", Some(machine.own_cores)),
        ]);
    }
    all.into_iter().filter_map(|(name, value)| Some((format!("{name}_{suffix}"), value?))).collect()
}

/// A level as one JSON object, under the names that vLLM's `bench serve` gives its results, and under our own where it has
/// none. Throughputs are over the window, totals over the whole level.
pub(crate) fn to_json(report: &LevelReport) -> Value {
    let mut object = json!({
        "backend": "weir",
        "endpoint_type": match report.kind { LoadKind::Completions => "openai", LoadKind::Embeddings => "openai-embeddings" },
        "model_id": report.model,
        "num_prompts": report.completed + report.failed,
        "request_rate": "inf",
        "max_concurrency": report.concurrency,
        "duration": report.duration_s,
        "completed": report.completed,
        "failed": report.failed,
        "total_input_tokens": report.prompt_tokens,
        "total_output_tokens": report.output_tokens,
        "request_throughput": report.request_throughput,
        "output_throughput": report.output_throughput,
        "total_token_throughput": report.total_throughput(),
        "prompt_throughput": report.prompt_throughput,
        "decode_tokens_per_s": report.decode_tokens_per_s,
        "prompt_tokens_per_s": report.prompt_tokens_per_s,
        "cached_tokens": report.cached_tokens,
        "window": report.window_s,
        "steady": report.steady,
        "failures": report.failures.iter().map(|f| json!({"reason": f.reason, "count": f.count})).collect::<Vec<_>>(),
        "machine": report.machine,
        "void": report.void,
        "notes": report.notes,
    });
    if let Value::Object(object) = &mut object {
        if report.kind == LoadKind::Embeddings {
            object.insert("inputs".into(), json!(report.inputs));
            object.insert("embeddings_per_s".into(), json!(report.embeddings_per_s));
        }
        for (name, summary) in
            [("ttft", report.ttft), ("tpot", report.tpot), ("itl", report.itl), ("e2el", report.e2el)]
        {
            if let Some(summary) = summary {
                insert_summary(object, name, &summary);
            }
        }
    }
    object
}

fn insert_summary(object: &mut Map<String, Value>, name: &str, summary: &Summary) {
    for (statistic, value) in [
        ("mean", summary.mean),
        ("median", summary.median),
        ("std", summary.std),
        ("p90", summary.p90),
        ("p99", summary.p99),
    ] {
        object.insert(format!("{statistic}_{name}_ms"), json!(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Shape;
    use crate::level::tests::{attempts, shape};
    use crate::sample::Sample;
    use crate::sample::tests::completion;

    const MS: u64 = 1_000_000;

    fn report() -> LevelReport {
        // 100 ms for ten prompt tokens, then 20 tokens 5 ms apart; three rounds.
        let sample = |begin: u64| {
            let arrivals: Vec<(u64, u32)> = (0..21).map(|i| ((begin + 100 + 5 * i) * MS, 1)).collect();
            completion(0, begin * MS, (begin + 200) * MS, &arrivals)
        };
        let shape = Shape { output_tokens: 21, ..shape(1) };
        LevelReport::new(&shape, &attempts((0..3).map(|i| sample(200 * i)).collect()), None)
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
            figures(&LevelReport::new(&shape, &attempts(vec![sample]), None)).swap_remove(0)
        };
        assert_eq!(name(1, 32), ("embeddings_per_s_b32".into(), 3200.0));
        assert_eq!(name(8, 1), ("embeddings_per_s_b1_c8".into(), 100.0));
    }

    #[test]
    fn void_figures_are_marked_and_a_dead_level_has_none_but_its_failures() {
        let mut void = report();
        void.void = Some("other load".into());
        assert!(text(|out| write_figures(out, &[void.clone()])).lines().all(|line| line.ends_with(" void=true")));
        assert!(text(|out| write_row(out, &void)).contains("\n     void: other load\n"));
        let dead = LevelReport::new(&shape(4), &[], None);
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

    #[test]
    fn json_uses_the_names_of_vllm() {
        let object = to_json(&report());
        for (name, value) in [
            ("request_throughput", 5.0),
            ("output_throughput", 105.0),
            ("total_token_throughput", 155.0),
            ("mean_ttft_ms", 100.0),
            ("median_tpot_ms", 5.0),
            ("p99_itl_ms", 5.0),
            ("std_e2el_ms", 0.0),
            ("duration", 0.6),
        ] {
            assert!((object[name].as_f64().unwrap() - value).abs() < 1e-6, "{name}: {}", object[name]);
        }
        assert_eq!((object["completed"].as_u64(), object["total_output_tokens"].as_u64()), (Some(3), Some(63)));
        assert_eq!(object["void"], Value::Null);
    }
}
