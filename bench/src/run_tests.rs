//! Whole runs against a scripted server on a loopback port.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::Lengths;
use crate::config::tests::{sample_config, tenant};
use crate::machine::tests::{OWN_PID, fake_machine};
use crate::procfs::tests::FakeProc;
use crate::schedule::{Ask, Due};

type Answers = dyn Fn(usize, &Value) -> Answer + Send + Sync;

/// What the server was asked, and how it answers the n-th POST.
#[derive(Clone)]
struct Script {
    asked: Arc<Mutex<Vec<Value>>>,
    connections: Arc<Mutex<usize>>,
    answer: Arc<Answers>,
    /// Nothing is answered before so many requests wait for it.
    gate: Option<Arc<tokio::sync::Barrier>>,
}

enum Answer {
    /// A whole answer: status and body, `Content-Length` framing.
    Whole(u16, String),
    /// The events of a stream, each its own chunk and write.
    Events(Vec<String>),
    /// The bytes as they are, then the end of the connection.
    Cut(Vec<u8>),
}

impl Script {
    fn new(answer: impl Fn(usize, &Value) -> Answer + Send + Sync + 'static) -> Script {
        Script { asked: Arc::default(), connections: Arc::default(), answer: Arc::new(answer), gate: None }
    }

    async fn start(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *script.connections.lock().unwrap() += 1;
                tokio::spawn(script.clone().serve(stream));
            }
        });
        port
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        while let Some((head, body)) = next_request(&mut stream, &mut bytes).await {
            let answer = if head.starts_with("GET /v1/models ") {
                if head.contains("Bearer weir-secret") || head.contains("Bearer second-secret") {
                    Answer::Whole(200, json!({"object": "list", "data": [{"id": "m"}, {"id": "n"}]}).to_string())
                } else {
                    Answer::Whole(401, json!({"error": {"message": "bad key", "code": "invalid_api_key"}}).to_string())
                }
            } else {
                let body = with_key(serde_json::from_slice(&body).unwrap(), &head);
                let number = {
                    let mut asked = self.asked.lock().unwrap();
                    asked.push(body.clone());
                    asked.len() - 1
                };
                if let Some(gate) = &self.gate {
                    gate.wait().await;
                }
                (self.answer)(number, &body)
            };
            match answer {
                Answer::Whole(status, body) => {
                    let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
                Answer::Events(events) => {
                    let head =
                        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
                    stream.write_all(head.as_bytes()).await.unwrap();
                    for event in events {
                        let event = format!("data: {event}\n\n");
                        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                        stream.write_all(chunk.as_bytes()).await.unwrap();
                    }
                    stream.write_all(b"0\r\n\r\n").await.unwrap();
                }
                Answer::Cut(bytes) => {
                    stream.write_all(&bytes).await.unwrap();
                    return;
                }
            }
        }
    }
}

async fn next_request(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let length: usize = length.map_or(0, |text| text.parse().unwrap());
            if bytes.len() >= end + 4 + length {
                let body = bytes[end + 4..end + 4 + length].to_vec();
                bytes.drain(..end + 4 + length);
                return Some((head, body));
            }
        }
        if stream.read_buf(bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// The key of each request is not in its body: the head's is put there.
fn with_key(mut body: Value, head: &str) -> Value {
    let key = head.lines().find_map(|line| line.strip_prefix("Authorization: Bearer ")).unwrap_or_default();
    body["key"] = json!(key);
    body
}

/// A completion as the server streams it, with a running count.
fn completion_events(body: &Value) -> Vec<String> {
    let (prompt, total) = (body["prompt"].as_array().unwrap().len(), body["max_tokens"].as_u64().unwrap());
    let usage = |n: u64| json!({"prompt_tokens": prompt, "completion_tokens": n, "total_tokens": prompt as u64 + n});
    let mut events: Vec<String> = (1..=total)
        .map(|n| json!({"choices": [{"index": 0, "text": "x", "finish_reason": null}], "usage": usage(n)}).to_string())
        .collect();
    events.push(
        json!({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": usage(total)}).to_string(),
    );
    events.push(json!({"choices": [], "usage": usage(total)}).to_string());
    events.push("[DONE]".into());
    events
}

fn embeddings(body: &Value) -> String {
    let inputs = body["input"].as_array().unwrap();
    let data: Vec<Value> = (0..inputs.len()).map(|i| json!({"index": i, "embedding": "AAAAAA=="})).collect();
    let tokens: usize = inputs.iter().map(|ids| ids.as_array().unwrap().len()).sum();
    json!({"object": "list", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}).to_string()
}

async fn run_script(
    script: &Script,
    change: impl FnOnce(&mut LoadConfig),
) -> (Result<Vec<LevelReport>, BenchError>, String) {
    let mut config = sample_config();
    config.url = format!("http://127.0.0.1:{}", script.start().await);
    change(&mut config);
    let proc = FakeProc::new(&format!("run-{}", config.url.rsplit_once(':').unwrap().1));
    proc.cpu(100, 0);
    proc.process(OWN_PID, "weir", 1, 10, 1024);
    proc.process(10, "weir", 1, 10, 2048);
    proc.process(11, "weir", 10, 10, 4096);
    let mut out = Vec::new();
    let result = run_on(&config, &fake_machine(&proc, Some(8000)), &mut out).await;
    (result, String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn completions_are_driven_measured_and_printed() {
    let script = Script::new(|_, body| Answer::Events(completion_events(body)));
    let json_path = std::env::temp_dir().join(format!("weir-bench-{}-json", std::process::id()));
    let (reports, out) = run_script(&script, |c| {
        c.arrivals = Arrivals::Concurrency(vec![1, 3]);
        c.requests = 7;
        c.warmup = 2;
        c.output_tokens = Lengths::fixed(20);
        c.output = Some(json_path.clone());
    })
    .await;
    let reports = reports.unwrap();
    assert_eq!(
        reports.iter().map(|r| (r.pace.suffix(), r.completed, r.failed)).collect::<Vec<_>>(),
        [("c1".into(), 7, 0), ("c3".into(), 7, 0)]
    );
    for report in &reports {
        assert_eq!((report.output_tokens, report.prompt_tokens), (140, 56));
        assert!(report.latencies.ttft.is_some() && report.latencies.e2el.is_some());
        let machine = report.machine.as_ref().unwrap();
        assert_eq!((machine.rss_mib_server, machine.rss_mib_executor), (Some(2.0), Some(4.0)));
        assert_eq!(report.void, None);
    }
    assert!(reports[0].rates.output_tokens > 0.0);
    for figure in ["output_tokens_per_s_c1", "ttft_ms_p50_c3", "rss_mib_server", "rss_mib_executor"] {
        assert!(out.contains(&format!("figure={figure} value=")), "{figure}: {out}");
    }

    let asked = script.asked.lock().unwrap();
    assert_eq!(asked.len(), 18);
    let prompts: HashSet<String> = asked.iter().map(|body| body["prompt"].to_string()).collect();
    assert_eq!(prompts.len(), 18, "a prompt was repeated");
    assert!(
        asked.iter().all(|body| body["ignore_eos"] == true && body["temperature"] == 0.0 && body["stream"] == true)
    );
    // One for the models; per level, one for each connection of warm-up (1, 2) and of the measured loop (1, 3).
    assert_eq!(*script.connections.lock().unwrap(), 1 + (1 + 1) + (2 + 3), "connections are kept alive");

    let lines: Vec<Value> =
        std::fs::read_to_string(&json_path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    std::fs::remove_file(&json_path).unwrap();
    assert_eq!(lines.iter().map(|l| l["max_concurrency"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(3)]);
    assert!(lines[0]["p99_e2el_ms"].as_f64().is_some_and(|ms| ms > 0.0));
}

#[tokio::test]
async fn embeddings_are_driven_with_each_batch() {
    let script = Script::new(|_, body| Answer::Whole(200, embeddings(body)));
    let (reports, out) = run_script(&script, |c| {
        c.kind = LoadKind::Embeddings;
        c.inputs = vec![1, 8, 32];
    })
    .await;
    let reports = reports.unwrap();
    assert_eq!(
        reports.iter().map(|r| (r.inputs, r.completed, r.prompt_tokens)).collect::<Vec<_>>(),
        [(1, 3, 24), (8, 3, 192), (32, 3, 768)]
    );
    assert!(reports.iter().all(|r| r.rates.embeddings > 0.0 && r.latencies.ttft.is_none()));
    assert!(out.contains("figure=embeddings_per_s_b32_c1 value="), "{out}");
    let asked = script.asked.lock().unwrap();
    let inputs: HashSet<String> =
        asked.iter().flat_map(|b| b["input"].as_array().unwrap()).map(Value::to_string).collect();
    assert_eq!(inputs.len(), 3 * (1 + 8 + 32), "an input was repeated");
}

#[tokio::test]
async fn every_kind_of_failure_is_reported_and_none_ends_the_run() {
    let script = Script::new(|number, body| match number {
        0 => Answer::Whole(429, json!({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}).to_string()),
        1 => Answer::Cut(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata".to_vec()),
        2 => Answer::Events(vec![json!({"error": {"message": "out of quota"}}).to_string(), "[DONE]".into()]),
        3 => Answer::Cut(b"HTTP/1.1 200 OK\r\n".to_vec()),
        4 => Answer::Cut(b"hello\r\n\r\n".to_vec()),
        _ => Answer::Events(completion_events(body)),
    });
    let (reports, out) = run_script(&script, |c| c.requests = 8).await;
    let report = &reports.unwrap()[0];
    assert_eq!((report.completed, report.failed), (3, 5));
    let reasons: Vec<&str> = report.failures.iter().map(|f| f.reason.as_str()).collect();
    for part in [
        "429 (rate_limit_exceeded): slow down",
        "in the middle of an answer's body",
        "out of quota",
        "answer's head",
        "status line",
    ] {
        assert!(reasons.iter().any(|reason| reason.contains(part)), "{part}: {reasons:?}");
        assert!(out.contains(part), "{part}: {out}");
    }
    assert!(out.contains("figure=failed_requests_c1 value=5.000"), "{out}");
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_opened_again() {
    let script = Script::new(|_, body| {
        let answer = completion_events(body).iter().map(|e| format!("data: {e}\n\n")).collect::<String>();
        // No word of closing, and then the connection is gone.
        Answer::Cut(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()).into_bytes())
    });
    let (reports, _) = run_script(&script, |c| c.requests = 5).await;
    let report = &reports.unwrap()[0];
    assert_eq!((report.completed, &report.failures), (5, &Vec::new()));
    assert_eq!(script.asked.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn a_level_of_nothing_but_failures_is_ended() {
    let script = Script::new(|_, _| Answer::Whole(503, "down".into()));
    let (reports, _) = run_script(&script, |c| c.requests = 1000).await;
    let report = &reports.unwrap()[0];
    assert_eq!((report.completed, report.failed), (0, 16));
    assert!(report.notes[0].contains("only failures"), "{:?}", report.notes);
}

#[tokio::test]
async fn what_makes_a_run_pointless_is_one_clear_error() {
    let script = Script::new(|_, _| Answer::Whole(503, json!({"error": {"message": "draining"}}).to_string()));
    let error = |result: Result<Vec<LevelReport>, BenchError>| result.unwrap_err().to_string();
    let (key, _) = run_script(&script, |c| c.tenants[0].key = "other".into()).await;
    assert!(error(key).ends_with("refused to list its models to `demo`: status 401 (invalid_api_key): bad key"));
    let (model, _) = run_script(&script, |c| c.model = "gpt".into()).await;
    assert_eq!(error(model), "the server has no model `gpt`; it has: m, n");
    let (warmup, _) = run_script(&script, |c| c.warmup = 1).await;
    assert_eq!(error(warmup), "every warm-up request failed at concurrency 1: status 503: draining");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (nobody, _) = run_script(&script, |c| c.url = format!("http://{closed}")).await;
    assert!(matches!(nobody, Err(BenchError::Unreachable { .. })));
    let (path, _) = run_script(&script, |c| c.output = Some("/nonexistent/x.json".into())).await;
    assert!(matches!(path, Err(BenchError::File { .. })));
}

fn at_rate(rate: f64) -> Arrivals {
    Arrivals::Rate { rates: vec![rate], burstiness: 1.0 }
}

#[tokio::test]
async fn an_open_loop_sends_its_schedule_to_the_end() {
    let script = Script::new(|_, body| Answer::Events(completion_events(body)));
    let folder = std::env::temp_dir().join(format!("weir-bench-{}-open", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (reports, out) = run_script(&script, |c| {
        c.arrivals = at_rate(2000.0);
        c.requests = 50;
        c.slo = Some("e2el:100000".parse().unwrap());
        c.tenants.push(tenant("other", "second-secret", 3.0));
        c.output_tokens = Lengths { min: 2, max: 6 };
        (c.output, c.plot, c.detailed) = (Some(folder.join("x.json")), Some(folder.join("x.svg")), true);
    })
    .await;
    let report = &reports.unwrap()[0];
    assert_eq!((report.completed, report.failed, report.tenants.len()), (50, 0, 2));
    assert!(report.tenants[1].completed > report.tenants[0].completed, "{:?}", report.tenants);
    assert_eq!(report.tenants.iter().map(|t| t.completed).sum::<u32>(), 50);
    let punctuality = report.punctuality.unwrap();
    assert!(punctuality.unsent == 0 && punctuality.late_ms_max >= punctuality.late_ms_p99);
    assert!(out.contains("figure=requests_per_s_r2000 value=") && out.contains("     other: "), "{out}");

    let asked = script.asked.lock().unwrap();
    let by_key = |key: &str| asked.iter().filter(|body| body["key"] == key).count() as u32;
    assert_eq!(
        (by_key("weir-secret"), by_key("second-secret")),
        (report.tenants[0].completed, report.tenants[1].completed)
    );
    let lengths: HashSet<u64> = asked.iter().map(|body| body["max_tokens"].as_u64().unwrap()).collect();
    assert_eq!(lengths, HashSet::from([2, 3, 4, 5, 6]));
    let tokens: u64 = asked.iter().map(|body| body["max_tokens"].as_u64().unwrap()).sum();
    assert_eq!(tokens, report.output_tokens);

    let object: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("x.json")).unwrap()).unwrap();
    let sum = |name: &str| object[name].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("output_lens"), sum("input_lens")), (report.output_tokens, report.prompt_tokens));
    let starts: Vec<f64> = object["start_times"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
    assert!(starts.len() == 50 && starts.is_sorted());
    assert!(std::fs::read_to_string(folder.join("x.svg")).unwrap().starts_with("<svg "));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn an_open_loop_does_not_wait_for_answers_and_says_what_it_could_not_send() {
    // The server answers nothing until all that may be open are: a loop that waited would never end.
    let open = Arc::new(tokio::sync::Barrier::new(5));
    let script = Script::new(|_, body| Answer::Events(completion_events(body)));
    let gate = Script { gate: Some(open), ..script };
    let (reports, _) = run_script(&gate, |c| {
        c.arrivals = at_rate(10_000.0);
        c.requests = 5;
        c.open_max = 5;
    })
    .await;
    let report = &reports.unwrap()[0];
    assert_eq!((report.completed, report.failed, report.open_peak), (5, 0, 5));
}

#[tokio::test]
async fn an_arrival_above_the_most_that_may_be_open_is_not_sent() {
    let script = Script::new(|_, body| Answer::Events(completion_events(body)));
    let url = format!("http://127.0.0.1:{}", script.start().await);
    let config = LoadConfig { url, ..sample_config() };
    let load = Arc::new(Load {
        target: config.check().unwrap(),
        tenants: config.tenants.clone(),
        model: "m".into(),
        kind: LoadKind::Completions,
        inputs: 1,
        stream: true,
        count_deltas: true,
        prompts: Prompts::new(1, 300),
    });
    let ask = |prompt| Ask { prompt, prompt_tokens: 8, output_tokens: 4, tenant: 0 };
    let schedule: Vec<Due> = (0..5).map(|prompt| Due { at: 0, ask: ask(prompt) }).collect();
    // All are due before the server could have answered one: it lives on this very thread.
    let (sender, due) = tokio::sync::mpsc::channel(5);
    (0..5).for_each(|index| sender.try_send(index).unwrap());
    drop(sender);
    let run = open_loop::send(&load, &schedule, due, Instant::now(), 4).await.unwrap();
    assert_eq!((run.attempts.len(), run.open_peak, run.unsent), (5, 4, 1));
    let failed: Vec<&RequestError> = run.attempts.iter().filter_map(|attempt| attempt.outcome.as_ref().err()).collect();
    assert_eq!(failed, [&RequestError::Unsent(4)]);
    assert_eq!(script.asked.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn a_trace_is_sent_as_it_says() {
    let script = Script::new(|_, body| Answer::Events(completion_events(body)));
    let path = std::env::temp_dir().join(format!("weir-bench-{}-trace", std::process::id()));
    std::fs::write(
        &path,
        "{\"at\":0.002,\"prompt_tokens\":7,\"output_tokens\":3}\n{\"at\":0,\"prompt_tokens\":5,\"output_tokens\":2}\n",
    )
    .unwrap();
    let (reports, _) = run_script(&script, |c| (c.arrivals, c.requests) = (Arrivals::Trace(path.clone()), 0)).await;
    let report = &reports.unwrap()[0];
    assert_eq!((report.pace, report.completed, report.output_tokens, report.prompt_tokens), (Pace::Trace, 2, 5, 12));
    let (bad, _) = {
        std::fs::write(&path, "{\"at\":0,\"prompt_tokens\":5}\nnonsense\n").unwrap();
        run_script(&script, |c| c.arrivals = Arrivals::Trace(path.clone())).await
    };
    std::fs::remove_file(&path).unwrap();
    let error = bad.unwrap_err().to_string();
    assert!(error.contains("trace, line 2: expected"), "{error}");
}

#[tokio::test]
async fn chats_and_whole_answers_are_measured_too() {
    let script = Script::new(|_, body| {
        if body["stream"] == true {
            let usage = json!({"prompt_tokens": 40, "completion_tokens": 4});
            let delta = json!({"choices": [{"delta": {"content": "abcd"}}], "usage": usage}).to_string();
            return Answer::Events(vec![delta, "[DONE]".into()]);
        }
        let usage = json!({"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12});
        Answer::Whole(200, json!({"choices": [{"text": "abcd"}], "usage": usage}).to_string())
    });
    let (reports, _) = run_script(&script, |c| c.kind = LoadKind::Chat).await;
    let report = &reports.unwrap()[0];
    assert_eq!((report.completed, report.prompt_tokens, report.output_tokens), (3, 120, 12));
    assert!(script.asked.lock().unwrap().iter().all(|body| body["messages"][0]["content"].is_string()));
    let (reports, _) = run_script(&script, |c| c.stream = false).await;
    let report = &reports.unwrap()[0];
    assert_eq!((report.completed, report.output_tokens, report.latencies.ttft), (3, 12, None));
    assert!(report.latencies.e2el.is_some() && report.rates.output_tokens > 0.0);
}
