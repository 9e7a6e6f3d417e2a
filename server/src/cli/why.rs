//! `weir why ID`: where a request's time went, as a table.

use std::{fmt::Write, path::PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{
    client::{Server, client_key},
    put,
    remote::encoded,
};
use crate::config::DEMO_KEY_FILE;

/// Characters of the longest bar.
const BAR_LEN_MAX: u64 = 32;

#[derive(Debug, Args)]
pub(super) struct WhyArgs {
    /// The request's id: that of its answer (chatcmpl-...), or its x-request-id
    #[arg(value_name = "ID")]
    id: String,
    /// The server
    #[arg(long, env = "WEIR_URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// File with the key, unless WEIR_API_KEY holds it
    #[arg(long, value_name = "FILE", default_value = DEMO_KEY_FILE)]
    key_file: PathBuf,
    /// Show the server's answer as it is
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &WhyArgs) -> anyhow::Result<()> {
    let server = Server::new(&args.url, &client_key(&args.key_file)?);
    let body: Value = serde_json::from_reader(server.get(&format!("/v1/requests/{}", encoded(&args.id)))?)
        .context("the server's answer")?;
    if args.json {
        put(&format!("{body:#}\n"));
        return Ok(());
    }
    let told: Told = serde_json::from_value(body).context("the server's answer")?;
    put(&table(&told));
    Ok(())
}

/// As much of the answer as is shown.
#[derive(Debug, Deserialize)]
struct Told {
    id: String,
    model: String,
    state: String,
    cause: Option<String>,
    position: Option<u64>,
    expected_start_ms: Option<u64>,
    steps_us: u64,
    wait_us: Waits,
    total_us: u64,
    device_time_us: u64,
    preemptions: u64,
    cached_tokens: u64,
    parts: u64,
}

#[derive(Debug, Deserialize)]
struct Waits {
    queue: u64,
    share: u64,
    quota: u64,
    memory: u64,
    placement: u64,
    preemption: u64,
}

fn table(told: &Told) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(out, "{}: {}", told.id, told.state);
    if let Some(cause) = told.cause.as_deref().filter(|_| told.state == "waiting") {
        let _ = write!(out, " ({cause})");
    }
    if let Some(position) = told.position {
        let _ = write!(out, ", number {position} in line");
    }
    if let Some(millis) = told.expected_start_ms {
        let _ = write!(out, ", expected to start in {}", seconds(millis.saturating_mul(1_000)));
    }
    let _ = write!(out, "\n{}", told.model);
    if told.parts > 1 {
        let _ = write!(out, ", the slowest of {} choices", told.parts);
    }
    let _ = writeln!(
        out,
        "; {} of device time, {} cached tokens, {} preemptions\n",
        seconds(told.device_time_us),
        told.cached_tokens,
        told.preemptions
    );
    let waits = &told.wait_us;
    let rows = [
        ("steps", told.steps_us),
        ("queue", waits.queue),
        ("share", waits.share),
        ("quota", waits.quota),
        ("memory", waits.memory),
        ("placement", waits.placement),
        ("preemption", waits.preemption),
    ];
    for (name, micros) in rows {
        let of = |whole: u64| u128::from(micros) * u128::from(whole) / u128::from(told.total_us.max(1));
        let (tenths, bar) = (of(1_000), "#".repeat(of(BAR_LEN_MAX) as usize));
        let line = format!("  {name:<10} {micros:>13} us {:>4}.{} %  {bar}", tenths / 10, tenths % 10);
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let _ = writeln!(out, "  {:<10} {:>13} us", "total", told.total_us);
    out
}

fn seconds(micros: u64) -> String {
    format!("{}.{:03} s", micros / 1_000_000, micros / 1_000 % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_waiting_request_is_shown_with_its_place_and_where_its_time_went() {
        let told = json!({
            "id": "req-1", "object": "request", "model": "m", "created": 1, "state": "waiting", "cause": "queue",
            "position": 3, "expected_start_ms": 1250, "steps_us": 250, "total_us": 1000,
            "wait_us": {"queue": 749, "share": 1, "quota": 0, "memory": 0, "placement": 0, "preemption": 0},
            "device_time_us": 2_000_000, "preemptions": 1, "cached_tokens": 64, "parts": 2,
        });
        let shown = table(&serde_json::from_value(told).expect("the answer's shape"));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "req-1: waiting (queue), number 3 in line, expected to start in 1.250 s");
        assert_eq!(lines[1], "m, the slowest of 2 choices; 2.000 s of device time, 64 cached tokens, 1 preemptions");
        assert_eq!(lines[3], format!("  steps                250 us   25.0 %  {}", "#".repeat(8)));
        assert_eq!(lines[4], format!("  queue                749 us   74.9 %  {}", "#".repeat(23)));
        assert_eq!(lines[5], "  share                  1 us    0.1 %");
        assert_eq!(lines[10], "  total               1000 us");
    }
}
