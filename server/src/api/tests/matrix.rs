//! Every field of the three endpoints against every odd value: each is taken or refused by name, as one table says.
//!
//! The table is held against what the parsers look for, so that a field which is added without a row fails here.

use std::collections::BTreeSet;

use super::*;
use crate::openai::{chat::ChatRequest, completion::CompletionRequest, embedding::EmbeddingRequest, fields::ASKED};

/// A field, and which of the odd values it takes.
struct Row {
    /// As errors write it.
    path: &'static str,
    takes: fn(&Value) -> bool,
    /// What else the body needs for the field to make sense, as JSON.
    with: &'static str,
}

const fn row(path: &'static str, takes: fn(&Value) -> bool) -> Row {
    Row { path, takes, with: "{}" }
}

fn nothing(value: &Value) -> bool {
    value.is_null()
}

/// A field that is required takes not even null.
fn not_even_null(_: &Value) -> bool {
    false
}

fn boolean(value: &Value) -> bool {
    value.is_null() || value.is_boolean()
}

/// Odd strings are empty, short or very long; the long one is over every cap.
fn label(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(|text| text.len() <= 512)
}

fn content(value: &Value) -> bool {
    value.is_string()
}

fn name(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(|text| !text.is_empty() && text.len() <= 64)
}

fn number(value: &Value, min: f64, max: f64) -> bool {
    value.is_null() || value.as_f64().is_some_and(|x| (min..=max).contains(&x))
}

fn integer(value: &Value, min: i64, max: i64) -> bool {
    value.is_null() || value.as_i64().is_some_and(|x| (min..=max).contains(&x))
}

/// A text, a list of them, or ids; an empty list and an empty text are none.
fn prompt(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty()) || *value == json!([0]) || *value == json!(["x"])
}

/// As a prompt, but an embedding model takes 512 tokens.
fn input(value: &Value) -> bool {
    prompt(value) && value.as_str().is_none_or(|text| text.len() <= 512)
}

fn item(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

fn stop(value: &Value) -> bool {
    value.is_null()
        || value.as_str().is_some_and(|text| !text.is_empty() && text.len() <= 256)
        || *value == json!([])
        || *value == json!(["x"])
}

fn empty_object(value: &Value) -> bool {
    value.is_null() || *value == json!({})
}

/// The fields that chat and completions share.
const SHARED: [Row; 22] = [
    row("model", not_even_null),
    row("user", label),
    row("temperature", |v| number(v, 0.0, 2.0)),
    // 1e-300 is above 0, but rounds to it.
    row("top_p", |v| number(v, 1e-30, 1.0)),
    row("top_k", |v| integer(v, -1, u32::MAX as i64)),
    row("min_p", |v| number(v, 0.0, 1.0)),
    row("seed", |v| integer(v, i64::MIN, i64::MAX)),
    row("frequency_penalty", |v| number(v, -2.0, 2.0)),
    row("presence_penalty", |v| number(v, -2.0, 2.0)),
    row("repetition_penalty", |v| number(v, 1e-30, 2.0)),
    row("logit_bias", empty_object),
    Row { path: "logit_bias.97", takes: |v| !v.is_null() && number(v, -100.0, 100.0), with: r#"{"logit_bias":{}}"# },
    row("priority", |v| integer(v, 0, 9)),
    row("n", |v| integer(v, 1, 8)),
    row("max_tokens", |v| integer(v, 1, 1000)),
    Row { path: "max_completion_tokens", takes: |v| integer(v, 1, 1000), with: r#"{"max_tokens":null}"# },
    row("min_tokens", |v| integer(v, 0, 1)),
    row("stop", stop),
    row("ignore_eos", boolean),
    row("stream", boolean),
    Row { path: "stream_options", takes: empty_object, with: r#"{"stream":true}"# },
    row("suffix", nothing),
];

/// What `stream_options` holds.
const STREAM_OPTIONS: [Row; 3] = [
    in_options("stream_options.include_usage", boolean),
    in_options("stream_options.continuous_usage_stats", boolean),
    in_options("stream_options.include_obfuscation", |v| v.is_null() || *v == json!(false)),
];

const fn in_options(path: &'static str, takes: fn(&Value) -> bool) -> Row {
    Row { path, takes, with: r#"{"stream":true,"stream_options":{}}"# }
}

const CHAT: [Row; 37] = [
    row("messages", not_even_null),
    row("messages[0].role", not_even_null),
    row("messages[0].content", content),
    row("messages[0].name", name),
    row("messages[0].tool_calls", nothing),
    row("messages[0].function_call", nothing),
    row("messages[0].tool_call_id", nothing),
    row("messages[0].audio", nothing),
    row("messages[0].refusal", nothing),
    row("messages[0].annotations", |v| v.is_null() || *v == json!([])),
    row("messages[1].content[0].type", not_even_null),
    row("messages[1].content[0].text", content),
    row("messages[1].content[0]", not_even_null),
    row("logprobs", boolean),
    Row { path: "top_logprobs", takes: |v| integer(v, 0, 20), with: r#"{"logprobs":true}"# },
    row("tools", nothing),
    row("tool_choice", nothing),
    row("functions", nothing),
    row("function_call", nothing),
    row("parallel_tool_calls", boolean),
    row("response_format", nothing),
    row("audio", nothing),
    row("modalities", nothing),
    row("prediction", nothing),
    row("reasoning_effort", nothing),
    row("verbosity", nothing),
    row("web_search_options", nothing),
    row("store", |v| v.is_null() || *v == json!(false)),
    row("service_tier", nothing),
    row("prompt_cache_retention", nothing),
    row("best_of", nothing),
    row("echo", nothing),
    row("safety_identifier", label),
    row("prompt_cache_key", label),
    row("metadata", empty_object),
    Row { path: "metadata.key", takes: |v| !v.is_null() && label(v), with: r#"{"metadata":{}}"# },
    row("messages[2]", not_even_null),
];

const COMPLETION: [Row; 5] = [
    row("prompt", prompt),
    row("best_of", |v| v.is_null() || *v == json!(1)),
    row("logprobs", |v| integer(v, 0, 20)),
    row("echo", boolean),
    Row { path: "prompt[0]", takes: item, with: r#"{"prompt":["a","b"]}"# },
];

const EMBEDDING: [Row; 8] = [
    row("model", not_even_null),
    row("input", input),
    row("encoding_format", nothing),
    // The model's vectors have 384 dimensions, which none of the odd values is.
    row("dimensions", nothing),
    row("truncate", boolean),
    row("priority", |v| integer(v, 0, 9)),
    row("user", label),
    Row { path: "input[0]", takes: |v| item(v) && input(v), with: r#"{"input":["a","b"]}"# },
];

struct Endpoint {
    path: &'static str,
    body: Value,
    rows: Vec<&'static Row>,
    parse: fn(&[u8]) -> Result<(), ApiError>,
}

fn endpoints() -> [Endpoint; 3] {
    let messages = json!([
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"},
    ]);
    [
        Endpoint {
            path: "/v1/chat/completions",
            body: json!({"model": "m", "messages": messages, "max_tokens": 1}),
            rows: SHARED.iter().chain(&STREAM_OPTIONS).chain(&CHAT).collect(),
            parse: |bytes| ChatRequest::parse(bytes).map(drop),
        },
        Endpoint {
            path: "/v1/completions",
            body: json!({"model": "m", "prompt": "p", "max_tokens": 1}),
            rows: SHARED.iter().chain(&STREAM_OPTIONS).chain(&COMPLETION).collect(),
            parse: |bytes| CompletionRequest::parse(bytes).map(drop),
        },
        Endpoint {
            path: "/v1/embeddings",
            body: json!({"model": "m", "input": "p"}),
            rows: EMBEDDING.iter().collect(),
            parse: |bytes| EmbeddingRequest::parse(bytes).map(drop),
        },
    ]
}

fn odd_values() -> Vec<Value> {
    let long = "x".repeat(5000);
    let nested = (0..20).fold(json!([]), |inner, _| json!([inner]));
    vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(-1),
        json!(9),
        json!(21),
        json!(101),
        json!(2.5),
        json!(1.0),
        json!(-0.0),
        json!(1e-300),
        json!(1e308),
        json!(-1e308),
        json!(1e19),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(u32::MAX),
        json!(""),
        json!("x"),
        json!("1"),
        json!("NaN"),
        json!("inf"),
        json!(long),
        json!([]),
        json!([null]),
        json!([0]),
        json!([-1]),
        json!([0.5]),
        json!([u32::MAX]),
        json!(["x"]),
        json!(["x", 1]),
        json!([""]),
        json!([[]]),
        nested,
        json!({}),
        json!({"x": 1}),
        json!({"x": {}}),
    ]
}

/// What is written like a number, or nearly, and is none that JSON or a 64-bit float has.
const NOT_JSON: [&str; 12] =
    ["NaN", "-NaN", "nan", "Infinity", "-Infinity", "1e400", "-1e400", "01", "+1", ".5", "0x1", "1_000"];

/// The body with a field set, as text.
fn set(endpoint: &Endpoint, row: &Row, value: &str) -> String {
    const HOLE: &str = "the value goes here";
    let mut body = with(endpoint.body.clone(), serde_json::from_str(row.with).expect("JSON"));
    let pointer = format!("/{}", row.path.replace(['.', '['], "/").replace(']', ""));
    match body.pointer_mut(&pointer) {
        Some(place) => *place = json!(HOLE),
        None => {
            let (parent, name) = pointer.rsplit_once('/').expect("begins with one");
            body.pointer_mut(parent).expect("the object it is in")[name] = json!(HOLE);
        }
    }
    body.to_string().replace(&format!("\"{HOLE}\""), value)
}

/// Lists name their items, or themselves: `prompt` is as good as `prompt[0]`, which is all there is.
fn names(param: &Value, path: &str) -> bool {
    let outer = path.strip_suffix("[0]").filter(|outer| matches!(*outer, "prompt" | "input")).unwrap_or(path);
    // Pairs of `metadata` are too many to name one.
    let outer = if outer == "metadata.key" { "metadata" } else { outer };
    param.as_str().is_some_and(|param| param.starts_with(outer))
}

#[test]
fn every_field_that_is_looked_for_has_a_row() {
    for endpoint in endpoints() {
        let more = if endpoint.path.contains("completions") {
            json!({"stream": true, "stream_options": {}})
        } else {
            json!({})
        };
        ASKED.take();
        (endpoint.parse)(with(endpoint.body.clone(), more).to_string().as_bytes()).expect("valid");
        let rows: BTreeSet<&str> = endpoint.rows.iter().map(|row| row.path).collect();
        let asked = ASKED.take();
        assert!(asked.len() >= 6, "{asked:?}");
        for path in asked {
            // Items of a list are alike: one row is enough.
            let alike = |row: &&str| digits_off(row) == digits_off(&path);
            assert!(rows.iter().any(alike), "{}: no row for `{path}`", endpoint.path);
        }
    }
}

/// `messages[2].role` as `messages[].role`.
fn digits_off(path: &str) -> String {
    path.replace(|c: char| c.is_ascii_digit(), "")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_takes_or_refuses_every_odd_value() {
    let (_, router) = loaded(LIMITS).await;
    let (mut taken, mut refused) = (0, 0);
    for endpoint in endpoints() {
        for row in &endpoint.rows {
            let ask = async |value: &str| {
                let answer =
                    super::ask(&router, Some(KEY), Method::POST, endpoint.path, set(&endpoint, row, value)).await;
                (format!("{} with {} = {value:.60}: {:.300}", endpoint.path, row.path, answer.text()), answer)
            };
            for value in odd_values() {
                let (what, answer) = ask(&value.to_string()).await;
                if (row.takes)(&value) {
                    assert_eq!(answer.status, 200, "{what}");
                    taken += 1;
                    continue;
                }
                let a_name = row.path == "model" && value.as_str().is_some_and(|t| !t.is_empty() && t.len() <= 256);
                assert_eq!(answer.status, if a_name { 404 } else { 400 }, "{what}");
                assert!(!code(&answer).is_empty(), "{what}");
                assert!(names(&answer.json()["error"]["param"], row.path), "{what}");
                assert!(answer.body.len() < 1024, "{what}");
                refused += 1;
            }
            for text in NOT_JSON {
                let (what, answer) = ask(text).await;
                assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (400, "invalid_json"), "{what}");
                refused += 1;
            }
        }
    }
    println!("figure=2.matrix_taken value={taken}");
    println!("figure=2.matrix_refused value={refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_those_of_the_vocabulary() {
    let (_, router) = loaded(LIMITS).await;
    // 256 bytes and two markers: 257 is the last.
    let asks = |id: u64| {
        [
            ("/v1/completions", json!({"model": "m", "prompt": [97, id], "max_tokens": 1})),
            ("/v1/completions", json!({"model": "m", "prompt": [[97], [id]], "max_tokens": 1})),
            ("/v1/completions", json!({"model": "m", "prompt": [97, id], "max_tokens": 1, "echo": true})),
            ("/v1/embeddings", json!({"model": "m", "input": [id]})),
            ("/v1/embeddings", json!({"model": "m", "input": [[97], [id]], "truncate": true})),
            (
                "/v1/completions",
                json!({"model": "m", "prompt": "x", "max_tokens": 1, "logit_bias": {id.to_string(): 1}}),
            ),
            ("/v1/chat/completions", with(hello(), json!({"logit_bias": {id.to_string(): -100}}))),
        ]
    };
    for (path, body) in asks(257) {
        assert_eq!(post(&router, path, body.clone()).await.status, 200, "{path} {body}");
    }
    for id in [258, u64::from(u32::MAX), u64::from(u32::MAX) + 1, u64::MAX] {
        for (path, body) in asks(id) {
            let answer = post(&router, path, body.clone()).await;
            assert_eq!(answer.status, 400, "{path} {body}");
            let param = answer.json()["error"]["param"].as_str().expect("a field").to_owned();
            assert!(body.get(param.split(['[', '.']).next().expect("one")).is_some(), "{path} {body}: {param}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_fit_the_context_is_refused_in_its_name() {
    let (_, router) = loaded(Limits { body_bytes_max: 4 << 20, ..LIMITS }).await;
    let context = get(&router, "/v1/models/m").await.json()["max_model_len"].as_u64().expect("length");
    let long = "x".repeat(usize::try_from(context).expect("fits"));
    let cases = [
        (json!({"max_tokens": context}), "messages"),
        (json!({"max_tokens": null, "min_tokens": context}), "messages"),
        (json!({"messages": [{"role": "user", "content": long}]}), "messages"),
    ];
    for (more, param) in cases {
        let answer = post(&router, "/v1/chat/completions", with(hello(), more)).await;
        assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (400, "context_length_exceeded"));
        assert_eq!(answer.json()["error"]["param"], param);
    }
    // Cut to what the model takes, and refused where it is not to be cut; more tokens in all than one request may have.
    let text = "x".repeat(1 << 20);
    let embed = async |body: Value| post(&router, "/v1/embeddings", body).await;
    assert_eq!(embed(json!({"model": "m", "input": text, "truncate": true})).await.status, 200);
    assert_eq!(embed(json!({"model": "m", "input": text})).await.status, 400);
    let many = vec!["x".repeat(500); 2048];
    let answer = embed(json!({"model": "m", "input": many})).await;
    assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (400, "array_above_max_length"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_thousand_brackets_are_one_refusal() {
    let (_, router) = loaded(Limits { body_bytes_max: 4 << 20, ..LIMITS }).await;
    let bodies = [
        "[".repeat(200_000),
        "{\"a\":".repeat(200_000),
        format!("{{\"messages\":{}", "[".repeat(200_000)),
        format!("{{\"model\":\"m\",\"messages\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000)),
    ];
    for body in bodies {
        for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"] {
            let answer = ask(&router, Some(KEY), Method::POST, path, body.clone()).await;
            assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (400, "invalid_json"));
        }
    }
    assert_eq!(post(&router, "/v1/chat/completions", hello()).await.status, 200);
}
