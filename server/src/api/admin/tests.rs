//! The operators' routes, on an engine whose model is fake.

use std::fs;

use axum::http::Method;
use serde_json::json;

use super::super::tests::{Answer, KEY, LIMITS, OPERATOR, ask, serving};
use super::*;

const PATH: &str = "/admin/v1/models";

async fn admin(root: Option<ModelsRoot>) -> (Router, Router) {
    let (app, api) = serving(LIMITS, &["m=fake:step=10us,token=1us"]).await;
    (admin_router(app, root), api)
}

async fn post(router: &Router, body: serde_json::Value) -> Answer {
    ask(router, Some(OPERATOR), Method::POST, PATH, body.to_string()).await
}

fn code(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_operators_key_opens_it() {
    let (admin, api) = admin(None).await;
    for path in [PATH, "/admin/v1/nothing", "/v1/models", "/metrics"] {
        for key in [None, Some(KEY), Some("weir-operators-ke"), Some("")] {
            assert_eq!(ask(&admin, key, Method::GET, path, "").await.status, 401, "{path} {key:?}");
        }
    }
    assert_eq!(ask(&admin, Some(OPERATOR), Method::GET, PATH, "").await.json()["data"][0]["id"], "m");
    assert_eq!(ask(&admin, Some(OPERATOR), Method::GET, "/v1/models", "").await.status, 404);
    assert_eq!(ask(&admin, Some(OPERATOR), Method::DELETE, PATH, "").await.status, 405);
    assert_eq!(ask(&api, Some(OPERATOR), Method::GET, "/v1/models", "").await.status, 401, "nor does it open the API");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_root_nothing_is_added() {
    let (admin, _) = admin(None).await;
    let answer = post(&admin, json!({"name": "x", "source": "y"})).await;
    assert_eq!(code(&answer), (403, "forbidden".into()));
    assert!(answer.text().contains("models_root"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_added_is_refused_by_name_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    fs::create_dir(folder.path().join("empty")).expect("mkdir");
    fs::write(folder.path().join("bad.gguf"), b"GGUF\x03\0\0\0").expect("write");
    fs::create_dir(folder.path().join("odd")).expect("mkdir");
    fs::write(folder.path().join("odd/config.json"), r#"{"architectures": ["OddForCausalLM"]}"#).expect("write");
    let (admin, api) = admin(Some(ModelsRoot::open(folder.path()).expect("root"))).await;
    for (body, expected) in [
        (json!({}), (400, "invalid_json")),
        (json!({"name": "x", "source": "empty", "path": "/etc"}), (400, "invalid_json")),
        (json!({"name": 1, "source": "empty"}), (400, "invalid_json")),
        (json!({"name": "x y", "source": "empty"}), (400, "invalid_value")),
        (json!({"name": "", "source": "empty"}), (400, "invalid_value")),
        (json!({"name": "m", "source": "empty"}), (409, "model_exists")),
        (json!({"name": "x", "source": "nothing"}), (400, "invalid_source")),
        (json!({"name": "x", "source": "../empty"}), (400, "invalid_source")),
        (json!({"name": "x", "source": "empty"}), (400, "invalid_model_file")),
        (json!({"name": "x", "source": "bad.gguf"}), (400, "invalid_model_file")),
        (json!({"name": "x", "source": "odd"}), (400, "unsupported_model")),
    ] {
        let answer = post(&admin, body.clone()).await;
        assert_eq!(code(&answer), (expected.0, expected.1.to_owned()), "{body}: {}", answer.text());
        let root = folder.path().to_string_lossy().into_owned();
        assert!(!answer.text().contains(&root), "the root's path is shown: {}", answer.text());
    }
    assert_eq!(ask(&admin, Some(OPERATOR), Method::POST, PATH, "[").await.status, 400);
    assert_eq!(ask(&admin, Some(OPERATOR), Method::POST, PATH, " ".repeat(5000)).await.status, 413);
    let models = ask(&api, Some(KEY), Method::GET, "/v1/models", "").await.json();
    assert_eq!(models["data"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_device_is_drained_by_force_and_comes_back() {
    let (admin, api) = admin(None).await;
    const DEVICES: &str = "/admin/v1/devices";
    let list = ask(&admin, Some(OPERATOR), Method::GET, DEVICES, "").await.json();
    let device = &list["data"][0];
    assert_eq!((&device["name"], &device["kind"], &device["state"]), (&json!("cpu:0"), &json!("cpu"), &json!("ready")));
    assert_eq!(device["models"], json!(["m"]));
    let order = |path: &'static str, body: &'static str| {
        let admin = admin.clone();
        async move { ask(&admin, Some(OPERATOR), Method::POST, &format!("{DEVICES}/{path}"), body).await }
    };
    for (path, body, expected) in [
        ("cpu:1/drain", "", (404, "device_not_found")),
        ("cpu:1/resume", "", (404, "device_not_found")),
        ("cpu:0/drain", "", (409, "last_device")),
        ("cpu:0/drain", "{\"force\": false}", (409, "last_device")),
        ("cpu:0/drain", "{\"deadline_s\": -1}", (400, "invalid_value")),
        ("cpu:0/drain", "{\"deadline_s\": 1e9}", (400, "invalid_value")),
        ("cpu:0/drain", "{\"deadline\": 1}", (400, "invalid_json")),
        ("cpu:0/drain", "[", (400, "invalid_json")),
    ] {
        assert_eq!(code(&order(path, body).await), (expected.0, expected.1.to_owned()), "{path} {body}");
    }
    let resumed = order("cpu:0/resume", "").await;
    assert_eq!(resumed.json()["state"], "ready", "a device that was not drained is left as it is");
    let drained = order("cpu:0/drain", "{\"force\": true}").await.json();
    assert!(drained["state"] == "drained" || drained["state"] == "draining", "{drained}");
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).to_string();
    assert_eq!(ask(&api, Some(KEY), Method::POST, "/v1/chat/completions", chat.clone()).await.status, 503);
    assert_eq!(ask(&api, None, Method::GET, "/ready", "").await.status, 503);
    order("cpu:0/resume", "").await;
    // It waits at the door until the executor is there.
    assert_eq!(ask(&api, Some(KEY), Method::POST, "/v1/chat/completions", chat).await.status, 200);
}
