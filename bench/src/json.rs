//! A level as JSON, under the names that vLLM's `bench serve` gives its results, and under our own where it has none.
//!
//! Rates are over the window, totals over the whole level. A file holds a line a level: of one level it is what vLLM's
//! `--save-result` writes, of several what its `--append-result` does. As there, latencies are in ms where the name says so, and
//! in seconds in the lists of `detailed`. Texts are not kept: they answer prompts of random tokens.

use serde_json::{Map, Value, json};

use crate::config::LoadKind;
use crate::date;
use crate::level::{Latencies, LevelReport, TenantReport};
use crate::pace::Pace;
use crate::sample::{Attempt, Sample};
use crate::stats::Summary;
use crate::window::Rates;

pub(crate) fn of(report: &LevelReport) -> Value {
    let (request_rate, burstiness, max_concurrency) = match report.pace {
        Pace::Closed { concurrency } => (json!("inf"), json!(1.0), json!(concurrency)),
        Pace::Open { rate, burstiness } => (json!(rate), json!(burstiness), Value::Null),
        Pace::Trace => (json!("trace"), Value::Null, Value::Null),
    };
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| object.insert(name.to_string(), value);
    put("date", json!(date::stamp(report.unix_seconds)));
    put("backend", json!("weir"));
    let endpoint = match report.kind {
        LoadKind::Completions => "openai",
        LoadKind::Chat => "openai-chat",
        LoadKind::Embeddings => "openai-embeddings",
    };
    put("endpoint_type", json!(endpoint));
    put("model_id", json!(report.model));
    put("num_prompts", json!(report.completed + report.failed));
    put("request_rate", request_rate);
    put("burstiness", burstiness);
    put("max_concurrency", max_concurrency);
    put("duration", json!(report.duration_s));
    put("completed", json!(report.completed));
    put("failed", json!(report.failed));
    put("total_input_tokens", json!(report.prompt_tokens));
    put("total_output_tokens", json!(report.output_tokens));
    put("total_token_throughput", json!(report.total_throughput()));
    put("max_concurrent_requests", json!(report.open_peak));
    // Ours.
    put("seed", json!(report.seed));
    put("stream", json!(report.stream));
    put("prompt_tokens", json!(report.prompt_length.to_string()));
    put("output_tokens", json!(report.output_length.to_string()));
    put("inputs", json!(report.inputs));
    put("window", json!(report.window_s));
    put("steady", json!(report.steady));
    put("cached_tokens", json!(report.cached_tokens));
    put("decode_tokens_per_s", json!(report.decode_tokens_per_s));
    put("prompt_tokens_per_s", json!(report.prompt_tokens_per_s));
    put("clean", json!(report.void.is_none()));
    put("void", json!(report.void));
    put("notes", json!(report.notes));
    let failures = report.failures.iter().map(|f| json!({"reason": f.reason, "count": f.count}));
    put("failures", failures.collect());
    put("machine", json!(report.machine));
    put("tenants", report.tenants.iter().map(|tenant| tenant_json(tenant, report.slo.is_some())).collect());
    if let Some(slo) = report.slo {
        put("goodput", json!({"ttft": slo.ttft, "tpot": slo.tpot, "itl": slo.itl, "e2el": slo.e2el}));
    }
    if let Some(punctuality) = report.punctuality {
        put("offered_throughput", json!(punctuality.offered));
        put("late_ms_max", json!(punctuality.late_ms_max));
        put("late_ms_p99", json!(punctuality.late_ms_p99));
        put("unsent", json!(punctuality.unsent));
    }
    if let Some(machine) = &report.machine {
        let found = machine.server_pid.is_some();
        for (name, cores, known) in [
            ("server_us_per_request", machine.server_cores, found),
            ("executor_us_per_request", machine.executor_cores, found),
            ("client_us_per_request", machine.own_cores, true),
        ] {
            put(name, json!(report.micros_per_request(cores).filter(|_| known)));
        }
    }
    for (rates, suffix) in [(report.rates, ""), (report.rates_low, "_low"), (report.rates_high, "_high")] {
        insert_rates(&mut object, &rates, suffix, report.slo.is_some());
    }
    insert_latencies(&mut object, &report.latencies);
    if !report.samples.is_empty() {
        insert_requests(&mut object, &report.samples);
    }
    Value::Object(object)
}

fn tenant_json(tenant: &TenantReport, judged: bool) -> Value {
    let mut object = Map::new();
    object.insert("name".into(), json!(tenant.name));
    object.insert("completed".into(), json!(tenant.completed));
    object.insert("failed".into(), json!(tenant.failed));
    insert_rates(&mut object, &tenant.rates, "", judged);
    insert_latencies(&mut object, &tenant.latencies);
    Value::Object(object)
}

fn insert_rates(object: &mut Map<String, Value>, rates: &Rates, suffix: &str, judged: bool) {
    for (name, value) in [
        ("request_throughput", rates.requests),
        ("output_throughput", rates.output_tokens),
        ("prompt_throughput", rates.prompt_tokens),
        ("embeddings_per_s", rates.embeddings),
    ] {
        object.insert(format!("{name}{suffix}"), json!(value));
    }
    // As in vLLM, null where no limits were given.
    object.insert(format!("request_goodput{suffix}"), json!(judged.then_some(rates.good_requests)));
}

fn insert_latencies(object: &mut Map<String, Value>, latencies: &Latencies) {
    for (name, summary) in latencies.named() {
        if let Some(summary) = summary {
            insert_summary(object, name, &summary);
        }
    }
}

fn insert_summary(object: &mut Map<String, Value>, name: &str, summary: &Summary) {
    for (statistic, value) in [
        ("mean", summary.mean),
        ("median", summary.median),
        ("std", summary.std),
        ("p50", summary.median),
        ("p90", summary.p90),
        ("p95", summary.p95),
        ("p99", summary.p99),
        ("max", summary.max),
    ] {
        object.insert(format!("{statistic}_{name}_ms"), json!(value));
    }
}

/// Lists with an item a request, in the order in which requests began: a failed one has lengths of 0, no latencies, and the
/// text of its error.
fn insert_requests(object: &mut Map<String, Value>, attempts: &[Attempt]) {
    let seconds = |nanos: f64| nanos / 1e9;
    let of = |value: &dyn Fn(&Sample) -> Value, failed: Value| -> Value {
        attempts.iter().map(|a| a.outcome.as_ref().map_or(failed.clone(), value)).collect()
    };
    object.insert("input_lens".into(), of(&|s| json!(s.prompt_tokens), json!(0)));
    object.insert("output_lens".into(), of(&|s| json!(s.output_tokens), json!(0)));
    object.insert("ttfts".into(), of(&|s| json!(s.ttft().map_or(0.0, |ns| seconds(ns as f64))), json!(0.0)));
    object.insert("itls".into(), of(&|s| s.token_gaps().map(|ns| json!(seconds(ns))).collect(), json!([])));
    object.insert("e2els".into(), of(&|s| json!(seconds(s.e2el() as f64)), json!(0.0)));
    let starts: Value = attempts.iter().map(|a| json!(seconds(a.begin as f64))).collect();
    object.insert("start_times".into(), starts);
    let error = |a: &Attempt| a.outcome.as_ref().err().map_or(json!(""), |error| json!(error.to_string()));
    object.insert("errors".into(), attempts.iter().map(error).collect());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RequestError;
    use crate::level::tests::{outcome, shape};
    use crate::level::{Outcome, Shape};
    use crate::machine::tests::quiet;
    use crate::sample::tests::completion;

    const MS: u64 = 1_000_000;

    /// 100 ms for ten prompt tokens, then 20 tokens 5 ms apart; three rounds, and a fourth that failed.
    fn rounds() -> Outcome {
        let sample = |begin: u64| {
            let arrivals: Vec<(u64, u32)> = (0..21).map(|i| ((begin + 100 + 5 * i) * MS, 1)).collect();
            completion(0, begin * MS, (begin + 200) * MS, &arrivals)
        };
        let mut outcome = outcome((0..3).map(|i| sample(200 * i)).collect());
        let error = Err(RequestError::Stalled(600));
        outcome.attempts.push(Attempt {
            begin: 600 * MS,
            end: 600 * MS,
            outcome: error,
            ..outcome.attempts[0].clone()
        });
        outcome
    }

    /// The golden file is rewritten by `WEIR_GOLDEN=write cargo test`.
    #[test]
    fn a_result_is_exactly_the_golden_one() {
        let shape = Shape {
            slo: Some("ttft:150 e2el:250".parse().unwrap()),
            detailed: true,
            tenants: vec!["a".into(), "b".into()],
            ..shape(1)
        };
        let report = LevelReport::new(&shape, rounds(), Some(quiet()));
        let text = serde_json::to_string_pretty(&of(&report)).unwrap() + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/golden/result.json");
        if std::env::var("WEIR_GOLDEN").is_ok_and(|word| word == "write") {
            std::fs::write(path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(path).unwrap());
    }

    #[test]
    fn an_open_loop_says_its_rate_and_no_concurrency() {
        let shape = Shape { pace: Pace::Open { rate: 12.5, burstiness: 0.5 }, ..shape(1) };
        let object = of(&LevelReport::new(&shape, rounds(), None));
        assert_eq!((&object["request_rate"], &object["burstiness"]), (&json!(12.5), &json!(0.5)));
        assert_eq!((&object["max_concurrency"], &object["request_goodput"]), (&Value::Null, &Value::Null));
        assert!(object["late_ms_max"].is_number() && object["offered_throughput"].is_number());
        assert!(object.get("ttfts").is_none(), "only with `detailed`");
    }
}
