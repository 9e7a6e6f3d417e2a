//! The routes, as a client sees them, on an engine whose model is fake and whose executor is a thread.

use std::collections::BTreeSet;

use axum::{
    body::to_bytes,
    http::{HeaderMap, Method, Request as HttpRequest, StatusCode},
};
use serde_json::{Value, json};
use tower::ServiceExt;
use weir_runtime::{DeviceConfig, EngineConfig, ExecutorMode, LOCALITY_QUANTUM, TenantSpec};

use super::*;
use people::app;

mod access;
mod controls;
mod kept;
mod matrix;
mod months;
mod people;
mod requests;
mod stored;

pub(super) const KEY: &str = "weir-key-of-a";
const OTHER_KEY: &str = "weir-key-of-b";
const TENANT_ADMIN: &str = "weir-key-of-as-admin";
pub(super) const OPERATOR: &str = "weir-operators-key";
const AUDITOR: &str = "weir-auditors-key";

pub(super) struct Answer {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The JSON of each event; the last must be `[DONE]`.
    fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let mut data: Vec<&str> = self.text().split_terminator("\n\n").filter(|e| !e.starts_with(':')).collect();
        assert_eq!(data.pop(), Some("data: [DONE]"), "{}", self.text());
        let parse = |event: &str| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON");
        data.into_iter().map(parse).collect()
    }
}

pub(super) const LIMITS: Limits = Limits {
    body_bytes_max: 64 << 10,
    request_timeout: Duration::from_secs(600),
    revoked_time: Duration::ZERO,
    connections_max: 64,
};

async fn loaded(limits: Limits) -> (Arc<App>, Router) {
    serving(limits, &["m=fake:step=10us,token=1us", "org/secret=fake:step=10us,token=1us"]).await
}

pub(super) async fn serving(limits: Limits, models: &[&str]) -> (Arc<App>, Router) {
    let engine = Engine::start(config(models));
    let app = app(limits);
    app.set_engine(engine.await.expect("engine"));
    (app.clone(), router(app))
}

/// An engine of two tenants.
fn config(models: &[&str]) -> EngineConfig {
    EngineConfig {
        models: models.iter().map(|m| m.parse().expect("model")).collect(),
        tenants: vec![TenantSpec::named("a"), TenantSpec::named("b")],
        devices: vec![DeviceConfig::cpu(0, ExecutorMode::Thread)],
        inspector: ExecutorMode::Thread,
        queue_len_max: 64,
        locality_quantum: LOCALITY_QUANTUM,
        canary_interval: Duration::from_secs(5),
        seed: 1,
        record: None,
        accounts: None,
    }
}

async fn send(router: &Router, request: HttpRequest<axum::body::Body>) -> Answer {
    let response = router.clone().oneshot(request).await.expect("infallible");
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 16 << 20).await.expect("body").to_vec();
    Answer { status: parts.status, headers: parts.headers, body }
}

pub(super) async fn ask(
    router: &Router,
    key: Option<&str>,
    method: Method,
    path: &str,
    body: impl Into<axum::body::Body>,
) -> Answer {
    let mut request = HttpRequest::builder().method(method).uri(path);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    send(router, request.body(body.into()).expect("request")).await
}

async fn get(router: &Router, path: &str) -> Answer {
    ask(router, Some(KEY), Method::GET, path, "").await
}

async fn post(router: &Router, path: &str, body: Value) -> Answer {
    ask(router, Some(KEY), Method::POST, path, body.to_string()).await
}

fn hello() -> Value {
    json!({
        "model": "m", "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 6, "temperature": 0, "ignore_eos": true
    })
}

fn with(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().expect("object") {
        body[name] = value.clone();
    }
    body
}

/// The four keys of an error, checked; its code.
fn code(answer: &Answer) -> String {
    let body = answer.json();
    let error = body["error"].as_object().expect("error");
    assert!(body.as_object().is_some_and(|b| b.len() == 1) && error.len() == 4, "{body}");
    assert!(error["message"].is_string() && error["type"].is_string(), "{body}");
    error["code"].as_str().expect("code").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_probes_answer_without_a_key() {
    let (_, router) = loaded(LIMITS).await;
    for path in PUBLIC {
        assert_eq!(ask(&router, None, Method::GET, path, "").await.status, 200, "{path}");
    }
    let guarded = [
        "/v1/models",
        "/v1/models/m",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/requests/x",
        "/version",
        "/openapi.json",
        "/metrics",
        "/health/",
        "//health",
        "/Health",
        "/",
        "/nothing",
    ];
    for path in guarded {
        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            for key in [None, Some("weir-wrong")] {
                let answer = ask(&router, key, method.clone(), path, "").await;
                assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (401, "invalid_api_key"), "{path}");
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
                assert!(answer.header("x-request-id").is_some());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_routes_and_methods_have_the_same_shape() {
    let (_, router) = loaded(LIMITS).await;
    let missing = get(&router, "/v1/nothing").await;
    assert_eq!((missing.status.as_u16(), code(&missing).as_str()), (404, "unknown_url"));
    assert!(missing.header("x-request-id").is_some());
    let wrong = get(&router, "/v1/chat/completions").await;
    assert_eq!((wrong.status.as_u16(), code(&wrong).as_str()), (405, "method_not_allowed"));
    assert_eq!(wrong.header("allow"), Some("POST"));
    let odd = get(&router, "/v1/models/%ff%fe").await;
    assert_eq!((odd.status.as_u16(), code(&odd).as_str()), (400, "invalid_value"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_where_a_body_is_left_unread() {
    let (_, router) = loaded(LIMITS).await;
    let closes = async |key, method, path: &str, body: &str| {
        let answer = ask(&router, key, method, path, body.to_owned()).await;
        assert!(answer.status.is_client_error(), "{path}");
        answer.header("connection").map(str::to_owned)
    };
    let close = Some("close".to_owned());
    assert_eq!(closes(None, Method::POST, "/v1/completions", "{}").await, close);
    assert_eq!(closes(Some(KEY), Method::PUT, "/v1/completions", "{}").await, close);
    assert_eq!(closes(Some(KEY), Method::POST, "/v1/nothing", "{}").await, close);
    // Read, or not there.
    assert_eq!(closes(Some(KEY), Method::POST, "/v1/completions", "{}").await, None);
    assert_eq!(closes(None, Method::GET, "/v1/models", "").await, None);
    assert_eq!(closes(Some(KEY), Method::GET, "/v1/completions", "").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_come_back() {
    let (_, router) = loaded(LIMITS).await;
    let with_id = |id: &str| {
        HttpRequest::get("/health").header("x-request-id", id).body(axum::body::Body::empty()).expect("request")
    };
    assert_eq!(send(&router, with_id("mine-1")).await.header("x-request-id"), Some("mine-1"));
    let made = send(&router, with_id("no good")).await;
    let made = made.header("x-request-id").expect("id");
    assert!(made.starts_with("req-") && made.len() == 28, "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_answered_in_one_body() {
    let (_, router) = loaded(LIMITS).await;
    let answer =
        post(&router, "/v1/chat/completions", with(hello(), json!({"n": 2, "logprobs": true, "top_logprobs": 2})))
            .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    assert_eq!((body["object"].as_str(), body["model"].as_str()), (Some("chat.completion"), Some("m")));
    assert!(body["system_fingerprint"].as_str().is_some_and(|f| f.starts_with("fp_")));
    let choices = body["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 2);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!((&choice["message"]["role"], &choice["finish_reason"]), (&json!("assistant"), &json!("length")));
        let tokens = choice["logprobs"]["content"].as_array().expect("logprobs");
        assert_eq!(tokens.len(), 6);
        assert!(tokens.iter().all(|t| t["top_logprobs"].as_array().is_some_and(|top| top.len() == 2)));
    }
    let usage = &body["usage"];
    assert_eq!(usage["completion_tokens"], 12);
    let prompt = usage["prompt_tokens"].as_u64().expect("count");
    assert!(prompt > 5);
    assert_eq!(usage["total_tokens"], prompt + 12);
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64());
    assert!(usage["weir"]["device_seconds"].as_f64().is_some_and(|s| s > 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_what_the_body_says() {
    let (_, router) = loaded(LIMITS).await;
    let whole = post(&router, "/v1/chat/completions", hello()).await.json();
    let streamed = with(hello(), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = post(&router, "/v1/chat/completions", streamed).await.events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let mut text = String::new();
    for event in &events[1..] {
        for name in ["id", "created", "model", "system_fingerprint"] {
            assert_eq!(event[name], events[0][name]);
        }
        text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    }
    assert_eq!(json!(text), whole["choices"][0]["message"]["content"]);
    let (last, rest) = events.split_last().expect("events");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 6);
    assert!(rest.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
    assert_eq!(rest[rest.len() - 1]["choices"][0]["finish_reason"], "length");
    let bare = post(&router, "/v1/chat/completions", with(hello(), json!({"stream": true}))).await.events();
    assert!(bare.iter().all(|event| event.get("usage").is_none() && event["choices"] != json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_prompts_are_numbered_in_a_row() {
    let (_, router) = loaded(LIMITS).await;
    let body = json!({
        "model": "m", "prompt": ["one", "two", "three"], "n": 2, "max_tokens": 3, "echo": true, "temperature": 0,
        "ignore_eos": true
    });
    let whole = post(&router, "/v1/completions", body.clone()).await;
    assert_eq!(whole.status, 200, "{}", whole.text());
    let whole = whole.json();
    assert!(whole["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    let choices = whole["choices"].as_array().expect("choices");
    let begins: Vec<&str> = ["one", "one", "two", "two", "three", "three"].into();
    assert_eq!(choices.len(), begins.len());
    for (index, (choice, begin)) in choices.iter().zip(begins).enumerate() {
        assert_eq!(choice["index"], index);
        assert!(choice["text"].as_str().is_some_and(|text| text.starts_with(begin)), "{choice}");
    }
    assert_eq!(whole["usage"]["completion_tokens"], 18);
    assert_eq!(whole["usage"]["prompt_tokens"], 11);
    let events = post(&router, "/v1/completions", with(body, json!({"stream": true}))).await.events();
    for choice in choices {
        let of = |event: &&Value| event["choices"][0]["index"] == choice["index"];
        let text: String = events.iter().filter(of).filter_map(|e| e["choices"][0]["text"].as_str()).collect();
        assert_eq!(json!(text), choice["text"]);
        assert_eq!(events.iter().filter(of).filter(|e| e["choices"][0]["finish_reason"].is_string()).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_are_the_same_in_both_encodings() {
    let (_, router) = loaded(LIMITS).await;
    let embed = async |more: Value| {
        let body = with(json!({"model": "m", "input": ["one", "two", "one"]}), more);
        let answer = post(&router, "/v1/embeddings", body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let floats = embed(json!({})).await;
    let packed = embed(json!({"encoding_format": "base64"})).await;
    let vector = |item: &Value| -> Vec<f32> {
        item["embedding"].as_array().expect("floats").iter().map(|x| x.as_f64().expect("number") as f32).collect()
    };
    let items = floats["data"].as_array().expect("data");
    for (index, (item, twin)) in items.iter().zip(packed["data"].as_array().expect("data")).enumerate() {
        assert_eq!((&item["index"], &twin["index"]), (&json!(index), &json!(index)));
        use base64::Engine as _;
        let text = twin["embedding"].as_str().expect("base64");
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
        let expected: Vec<u8> = vector(item).iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(bytes, expected);
    }
    assert_eq!(vector(&items[0]), vector(&items[2]));
    assert_ne!(vector(&items[0]), vector(&items[1]));
    assert_eq!(floats["usage"]["prompt_tokens"], floats["usage"]["total_tokens"]);
    let size = vector(&items[0]).len();
    assert_eq!(embed(json!({"dimensions": size})).await["data"].as_array().map(Vec::len), Some(3));
    let body = json!({"model": "m", "input": "one", "dimensions": size - 1});
    let refused = post(&router, "/v1/embeddings", body).await;
    assert_eq!((refused.status.as_u16(), code(&refused).as_str()), (400, "unsupported_parameter"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_model_looks_like_none() {
    let (_, router) = loaded(LIMITS).await;
    let names = async |key: &str| -> Vec<String> {
        let list = ask(&router, Some(key), Method::GET, "/v1/models", "").await.json();
        assert_eq!(list["object"], "list");
        list["data"].as_array().expect("data").iter().map(|m| m["id"].as_str().expect("id").to_owned()).collect()
    };
    assert_eq!(names(KEY).await, ["m", "org/secret"]);
    assert_eq!(names(OTHER_KEY).await, ["m"]);
    assert_eq!(get(&router, "/v1/models/org/secret").await.json()["id"], "org/secret");
    let asks = |model: &str| {
        [
            (Method::GET, format!("/v1/models/{model}"), String::new()),
            (Method::POST, "/v1/chat/completions".to_owned(), with(hello(), json!({"model": model})).to_string()),
            (Method::POST, "/v1/completions".to_owned(), json!({"model": model, "prompt": "x"}).to_string()),
            (Method::POST, "/v1/embeddings".to_owned(), json!({"model": model, "input": "x"}).to_string()),
        ]
    };
    for ((method, path, body), (_, nowhere, nothing)) in asks("org/secret").into_iter().zip(asks("org/sekret")) {
        let hidden = ask(&router, Some(OTHER_KEY), method.clone(), &path, body).await;
        let missing = ask(&router, Some(OTHER_KEY), method, &nowhere, nothing).await;
        assert_eq!((hidden.status.as_u16(), code(&hidden).as_str()), (404, "model_not_found"), "{path}");
        assert_eq!(hidden.text().replace("secret", "sekret"), missing.text());
        assert_eq!(hidden.json()["error"]["param"], "model");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_bounded_and_strict() {
    let (_, router) = loaded(Limits { body_bytes_max: 1000, ..LIMITS }).await;
    let chat = async |body: String| ask(&router, Some(KEY), Method::POST, "/v1/chat/completions", body).await;
    let large = chat("x".repeat(1001)).await;
    assert_eq!((large.status.as_u16(), code(&large).as_str()), (413, "request_too_large"));
    let cases = [
        (String::new(), "invalid_json"),
        ("[]".into(), "invalid_json"),
        (r#"{"model":"m","model":"m"}"#.into(), "invalid_json"),
        (with(hello(), json!({"tools": []})).to_string(), "unsupported_parameter"),
        (with(hello(), json!({"temprature": 1})).to_string(), "unknown_parameter"),
        (with(hello(), json!({"max_tokens": 2_000_000})).to_string(), "context_length_exceeded"),
        (with(hello(), json!({"logit_bias": {"4000000000": 1}})).to_string(), "invalid_value"),
    ];
    for (body, expected) in cases {
        let answer = chat(body.clone()).await;
        assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (400, expected), "{body}");
        assert!(answer.header("retry-after").is_none());
    }
    let packed = HttpRequest::post("/v1/chat/completions")
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-encoding", "gzip")
        .body(axum::body::Body::from("x"))
        .expect("request");
    let answer = send(&router, packed).await;
    assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (415, "unsupported_content_encoding"));
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_cannot_fit_is_not_tokenised() {
    let (_, router) = loaded(Limits { body_bytes_max: 4 << 20, ..LIMITS }).await;
    let context = get(&router, "/v1/models/m").await.json()["max_model_len"].as_u64().expect("length") as usize;
    let text = "x".repeat(context * 16 + 1);
    let answer = post(&router, "/v1/completions", json!({"model": "m", "prompt": text})).await;
    assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (400, "context_length_exceeded"));
    assert_eq!(answer.json()["error"]["param"], "prompt");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_loading_and_draining_probes_tell_the_truth() {
    let app = app(LIMITS);
    let router = router(app.clone());
    assert_eq!(get(&router, "/health").await.status, 200);
    for path in ["/ready", "/v1/models"] {
        let answer = get(&router, path).await;
        assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (503, "overloaded"), "{path}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    let (app, router) = loaded(LIMITS).await;
    assert_eq!(get(&router, "/ready").await.status, 200);
    app.begin_drain();
    app.engine().expect("loaded").shutdown(Duration::from_secs(5)).await;
    assert_eq!(get(&router, "/health").await.status, 200);
    assert_eq!(get(&router, "/ready").await.status, 503);
    let late = post(&router, "/v1/chat/completions", hello()).await;
    assert_eq!((late.status.as_u16(), code(&late).as_str()), (503, "overloaded"));
    assert!(late.header("retry-after").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_ends() {
    let limits = Limits { request_timeout: Duration::ZERO, ..LIMITS };
    let (_, router) = serving(limits, &["m=fake:step=50ms,token=1us"]).await;
    let long = with(hello(), json!({"max_tokens": 500}));
    let answer = post(&router, "/v1/chat/completions", long.clone()).await;
    assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (504, "request_timeout"));
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    let answer = post(&router, "/v1/chat/completions", with(long, json!({"stream": true}))).await;
    if answer.status == 200 {
        // The first event was there in time, the others were not.
        let events = answer.events();
        assert_eq!(events[events.len() - 1]["error"]["code"], "request_timeout");
    } else {
        assert_eq!((answer.status.as_u16(), code(&answer).as_str()), (504, "request_timeout"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_names_every_route() {
    let (_, router) = loaded(LIMITS).await;
    let document = get(&router, "/openapi.json").await.json();
    assert!(document["openapi"].as_str().is_some_and(|v| v.starts_with("3.")));
    let paths: Vec<&String> = document["paths"].as_object().expect("paths").keys().collect();
    let expected = [
        "/health",
        "/ready",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/keys",
        "/v1/keys/{id}/revoke",
        "/v1/keys/{id}/rotate",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/quotas",
        "/v1/requests/{id}",
        "/v1/usage",
        "/v1/webhooks",
        "/v1/webhooks/{webhook}",
        "/v1/webhooks/{webhook}/deliveries",
        "/v1/webhooks/{webhook}/deliveries/{delivery}/retry",
        "/v1/webhooks/{webhook}/test",
        "/version",
    ];
    let mut sorted: Vec<&str> = paths.iter().map(|p| p.as_str()).collect();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    assert_eq!(document["paths"]["/health"]["get"]["security"], json!([{}]));
    // Every reference leads somewhere.
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(list) => list.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.trim_start_matches('#');
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_their_own_router() {
    let (app, router) = loaded(LIMITS).await;
    assert_eq!(get(&router, "/metrics").await.status, 404);
    let metrics = metrics_router(app);
    let answer = ask(&metrics, None, Method::GET, "/metrics", "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("# TYPE weir_"), "{}", answer.text());
    assert!(!answer.text().contains("tenant=\""));
    let answer = ask(&metrics, None, Method::POST, "/v1/chat/completions", "{}").await;
    assert_eq!(answer.status, 404);
}
