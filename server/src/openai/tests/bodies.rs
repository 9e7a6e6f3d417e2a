use serde_json::{Value, json};

use super::super::{chat::ChatRequest, completion::CompletionRequest, embedding::EmbeddingRequest};
use crate::error::ApiError;

fn chat_body() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
}

fn completion_body() -> Value {
    json!({"model": "m", "prompt": "hi"})
}

fn embedding_body() -> Value {
    json!({"model": "m", "input": "hi"})
}

fn with(mut body: Value, more: &Value) -> Vec<u8> {
    for (name, value) in more.as_object().expect("object") {
        body[name] = value.clone();
    }
    body.to_string().into_bytes()
}

fn chat(more: &Value) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(&with(chat_body(), more))
}

fn completion(more: &Value) -> Result<CompletionRequest, ApiError> {
    CompletionRequest::parse(&with(completion_body(), more))
}

fn embedding(more: &Value) -> Result<EmbeddingRequest, ApiError> {
    EmbeddingRequest::parse(&with(embedding_body(), more))
}

/// Parameter and code of a refusal.
fn refusal<T>(result: Result<T, ApiError>) -> Option<(String, &'static str)> {
    match result {
        Err(ApiError::Invalid { param, code, .. }) => Some((param.unwrap_or_default(), code)),
        Err(other) => panic!("not a 400: {other:?}"),
        Ok(_) => None,
    }
}

#[test]
fn shared_fields_are_ranged_in_both_endpoints() {
    const INT_LOW: &str = "integer_below_min_value";
    const INT_HIGH: &str = "integer_above_max_value";
    const DEC_LOW: &str = "decimal_below_min_value";
    const DEC_HIGH: &str = "decimal_above_max_value";
    const TYPE: &str = "invalid_type";
    let numbers = |name: &'static str, good: &[Value], bad: &[(Value, &'static str)]| {
        let mut cases: Vec<(Value, Option<&str>)> = good.iter().map(|v| (v.clone(), None)).collect();
        cases.extend(bad.iter().map(|(v, code)| (v.clone(), Some(*code))));
        cases.push((Value::Null, None));
        for odd in [json!("1"), json!("NaN"), json!(true), json!([1]), json!({"a": 1})] {
            cases.push((odd, Some(TYPE)));
        }
        for (value, code) in cases {
            let more = json!({ name: value });
            let expected = code.map(|code| (name.to_owned(), code));
            assert_eq!(refusal(chat(&more)), expected, "chat {more}");
            assert_eq!(refusal(completion(&more)), expected, "completion {more}");
        }
    };
    let (huge, tiny) = (json!(1e308), json!(-1e308));
    let ints = |min: i64, max: i64| {
        vec![
            (json!(min - 1), INT_LOW),
            (json!(i64::MIN), INT_LOW),
            (json!(max + 1), INT_HIGH),
            (json!(u64::MAX), INT_HIGH),
            (json!(1.5), TYPE),
            (json!(1e308), TYPE),
        ]
    };
    numbers(
        "temperature",
        &[json!(0), json!(-0.0), json!(0.7), json!(2)],
        &[(json!(-1), DEC_LOW), (json!(2.01), DEC_HIGH), (huge.clone(), DEC_HIGH), (tiny.clone(), DEC_LOW)],
    );
    numbers(
        "top_p",
        &[json!(1), json!(0.001)],
        &[(json!(0), DEC_LOW), (json!(1e-300), DEC_LOW), (json!(-1), DEC_LOW), (json!(1.01), DEC_HIGH)],
    );
    numbers(
        "min_p",
        &[json!(0), json!(1)],
        &[(json!(-0.01), DEC_LOW), (json!(1.01), DEC_HIGH), (huge.clone(), DEC_HIGH)],
    );
    for name in ["frequency_penalty", "presence_penalty"] {
        numbers(
            name,
            &[json!(0), json!(-2), json!(2)],
            &[(json!(-2.01), DEC_LOW), (json!(2.01), DEC_HIGH), (huge.clone(), DEC_HIGH), (tiny.clone(), DEC_LOW)],
        );
    }
    numbers(
        "repetition_penalty",
        &[json!(0.5), json!(2)],
        &[(json!(0), DEC_LOW), (json!(-1), DEC_LOW), (json!(2.01), DEC_HIGH)],
    );
    numbers("top_k", &[json!(-1), json!(0), json!(u32::MAX)], &ints(-1, i64::from(u32::MAX)));
    numbers("n", &[json!(1), json!(8)], &ints(1, 8));
    numbers("max_tokens", &[json!(1), json!(i32::MAX)], &ints(1, i64::from(i32::MAX)));
    numbers("max_completion_tokens", &[json!(1), json!(i32::MAX)], &ints(1, i64::from(i32::MAX)));
    numbers("min_tokens", &[json!(0), json!(1)], &ints(0, i64::from(i32::MAX)));
    let over = json!(u64::MAX);
    numbers("seed", &[json!(0), json!(-1), json!(i64::MIN), json!(i64::MAX)], &[(over, INT_HIGH), (json!(0.5), TYPE)]);
    for name in ["ignore_eos", "stream"] {
        for value in [json!(true), json!(false), json!(null)] {
            assert_eq!(refusal(chat(&json!({ name: value }))), None);
        }
        for value in [json!(0), json!(1), json!("true"), json!([])] {
            assert_eq!(refusal(chat(&json!({ name: value }))), Some((name.into(), TYPE)));
        }
    }
}

#[test]
fn log_probabilities_have_a_shape_for_each_endpoint() {
    assert_eq!(chat(&json!({"logprobs": true})).expect("valid").logprobs_top(), Some(0));
    assert_eq!(chat(&json!({"logprobs": true, "top_logprobs": 20})).expect("valid").logprobs_top(), Some(20));
    assert_eq!(chat(&json!({"logprobs": false})).expect("valid").logprobs_top(), None);
    assert_eq!(completion(&json!({"logprobs": 0})).expect("valid").logprobs, Some(0));
    let cases = [
        (json!({"logprobs": 1}), "logprobs", "invalid_type"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "integer_above_max_value"),
        (json!({"logprobs": true, "top_logprobs": -1}), "top_logprobs", "integer_below_min_value"),
        (json!({"top_logprobs": 1}), "top_logprobs", "invalid_value"),
        (json!({"logprobs": false, "top_logprobs": 0}), "top_logprobs", "invalid_value"),
    ];
    for (more, param, code) in cases {
        assert_eq!(refusal(chat(&more)), Some((param.into(), code)), "{more}");
    }
    let cases = [
        (json!({"logprobs": true}), "logprobs", "invalid_type"),
        (json!({"logprobs": 21}), "logprobs", "integer_above_max_value"),
        (json!({"logprobs": -1}), "logprobs", "integer_below_min_value"),
        (json!({"logprobs": 0, "echo": true}), "echo", "unsupported_parameter"),
    ];
    for (more, param, code) in cases {
        assert_eq!(refusal(completion(&more)), Some((param.into(), code)), "{more}");
    }
    assert!(completion(&json!({"logprobs": 1, "echo": false})).is_ok());
}

#[test]
fn stop_is_a_string_or_up_to_four() {
    let stops = |value: Value| chat(&json!({ "stop": value })).map(|r| r.sampling.stop);
    let long = "é".repeat(128);
    assert_eq!(stops(json!("x")).expect("valid"), Some(vec!["x".to_owned()]));
    assert_eq!(stops(json!(["a", "b", "c", long])).expect("valid").map(|s| s.len()), Some(4));
    assert_eq!(stops(json!([])).expect("valid"), Some(Vec::new()));
    assert_eq!(stops(json!(null)).expect("valid"), None);
    let cases = [
        (json!(""), "stop[0]", "string_below_min_length"),
        (json!(["a", ""]), "stop[1]", "string_below_min_length"),
        (json!(["a", "b", "c", "d", "e"]), "stop", "array_above_max_length"),
        (json!(format!("{long}x")), "stop[0]", "string_above_max_length"),
        (json!(["a", 1]), "stop[1]", "invalid_type"),
        (json!(["a", null]), "stop[1]", "invalid_type"),
        (json!(1), "stop", "invalid_type"),
        (json!({}), "stop", "invalid_type"),
    ];
    for (value, param, code) in cases {
        assert_eq!(refusal(stops(value.clone())), Some((param.into(), code)), "{value}");
    }
}

#[test]
fn logit_bias_maps_ids_to_numbers() {
    let bias = |value: Value| completion(&json!({ "logit_bias": value })).map(|r| r.sampling.params().logit_bias);
    let mut read = bias(json!({"0": -100, "7": 0.5, "4294967295": 100})).expect("valid");
    read.sort_by_key(|(id, _)| *id);
    assert_eq!(read, [(0, -100.0), (7, 0.5), (u32::MAX, 100.0)]);
    assert_eq!(bias(json!({})).expect("valid"), []);
    let many: serde_json::Map<String, Value> = (0..301).map(|id| (id.to_string(), json!(1))).collect();
    let cases = [
        (json!({"-1": 1}), "logit_bias", "invalid_value"),
        (json!({"01": 1}), "logit_bias", "invalid_value"),
        (json!({"+1": 1}), "logit_bias", "invalid_value"),
        (json!({" 1": 1}), "logit_bias", "invalid_value"),
        (json!({"": 1}), "logit_bias", "invalid_value"),
        (json!({"word": 1}), "logit_bias", "invalid_value"),
        (json!({"4294967296": 1}), "logit_bias", "invalid_value"),
        (json!({"5": 100.1}), "logit_bias.5", "decimal_above_max_value"),
        (json!({"5": -100.1}), "logit_bias.5", "decimal_below_min_value"),
        (json!({"5": 1e308}), "logit_bias.5", "decimal_above_max_value"),
        (json!({"5": null}), "logit_bias.5", "invalid_type"),
        (json!({"5": "1"}), "logit_bias.5", "invalid_type"),
        (json!([1]), "logit_bias", "invalid_type"),
        (Value::Object(many), "logit_bias", "array_above_max_length"),
    ];
    for (value, param, code) in cases {
        assert_eq!(refusal(bias(value.clone())), Some((param.into(), code)), "{value}");
    }
}

#[test]
fn token_counts_have_to_agree() {
    let cases = [
        (json!({"max_tokens": 5, "max_completion_tokens": 5}), None),
        (json!({"max_tokens": 5, "max_completion_tokens": null}), None),
        (json!({"max_tokens": 5, "max_completion_tokens": 6}), Some("max_tokens")),
        (json!({"max_tokens": 5, "min_tokens": 5}), None),
        (json!({"max_tokens": 5, "min_tokens": 6}), Some("min_tokens")),
        (json!({"max_completion_tokens": 5, "min_tokens": 6}), Some("min_tokens")),
    ];
    for (more, param) in cases {
        let expected = param.map(|param: &str| (param.to_owned(), "invalid_value"));
        assert_eq!(refusal(chat(&more)), expected, "{more}");
    }
    let tokens = |more: Value| completion(&more).expect("valid").sampling.tokens_max();
    assert_eq!(chat(&json!({})).expect("valid").sampling.tokens_max(), None);
    assert_eq!(tokens(json!({})), Some(16));
    assert_eq!(tokens(json!({"min_tokens": 40})), Some(40));
    assert_eq!(tokens(json!({"max_completion_tokens": 3})), Some(3));
}

#[test]
fn stream_options_need_a_stream() {
    let options = json!({"include_usage": true, "continuous_usage_stats": false, "include_obfuscation": false});
    assert!(chat(&json!({"stream": true, "stream_options": options})).is_ok());
    assert!(chat(&json!({"stream": false, "stream_options": null})).is_ok());
    let cases = [
        (json!({"stream_options": {}}), "stream_options", "invalid_value"),
        (json!({"stream": false, "stream_options": {"include_usage": true}}), "stream_options", "invalid_value"),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
            "invalid_type",
        ),
        (json!({"stream": true, "stream_options": {"usage": true}}), "stream_options.usage", "unknown_parameter"),
        (
            json!({"stream": true, "stream_options": {"include_obfuscation": true}}),
            "stream_options.include_obfuscation",
            "unsupported_parameter",
        ),
        (json!({"stream": true, "stream_options": []}), "stream_options", "invalid_type"),
    ];
    for (more, param, code) in cases {
        assert_eq!(refusal(chat(&more)), Some((param.into(), code)), "{more}");
    }
}

#[test]
fn what_is_not_carried_out_is_refused_by_name() {
    let chat_only = [
        ("tools", json!([])),
        ("tools", json!([{"type": "function"}])),
        ("tool_choice", json!("auto")),
        ("tool_choice", json!({"type": "function"})),
        ("functions", json!([])),
        ("function_call", json!("auto")),
        ("response_format", json!({"type": "json_object"})),
        ("response_format", json!({"type": "text", "x": 1})),
        ("audio", json!({})),
        ("modalities", json!(["text", "audio"])),
        ("prediction", json!({})),
        ("reasoning_effort", json!("low")),
        ("verbosity", json!("low")),
        ("web_search_options", json!({})),
        ("store", json!(true)),
        ("service_tier", json!("flex")),
        ("prompt_cache_retention", json!("24h")),
        ("best_of", json!(1)),
        ("echo", json!(true)),
        ("suffix", json!("x")),
    ];
    for (name, value) in chat_only {
        assert_eq!(refusal(chat(&json!({ name: value }))), Some((name.into(), "unsupported_parameter")), "{name}");
        assert_eq!(refusal(chat(&json!({ name: null }))), None, "{name}");
    }
    for (name, value) in [("best_of", json!(2)), ("suffix", json!("x"))] {
        assert_eq!(refusal(completion(&json!({ name: value }))), Some((name.into(), "unsupported_parameter")));
    }
}

#[test]
fn what_asks_for_nothing_is_accepted() {
    let accepted = [
        json!({"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "parallel_tool_calls": true}),
        json!({"metadata": {"a": "b"}, "store": false, "service_tier": "auto", "modalities": ["text"]}),
        json!({"service_tier": "default", "response_format": {"type": "text"}, "tool_choice": "none"}),
        json!({"prompt_cache_retention": "in_memory", "metadata": {}}),
    ];
    for more in accepted {
        assert_eq!(refusal(chat(&more)), None, "{more}");
    }
    assert_eq!(refusal(completion(&json!({"best_of": 1, "user": "u"}))), None);
    let long = "x".repeat(513);
    let refused = [
        (json!({"user": 1}), "user", "invalid_type"),
        (json!({"user": long}), "user", "string_above_max_length"),
        (json!({"parallel_tool_calls": "no"}), "parallel_tool_calls", "invalid_type"),
        (json!({"metadata": {"a": 1}}), "metadata", "invalid_value"),
        (json!({"metadata": []}), "metadata", "invalid_type"),
    ];
    for (more, param, code) in refused {
        assert_eq!(refusal(chat(&more)), Some((param.into(), code)), "{more}");
    }
}

#[test]
fn unknown_fields_are_named() {
    for name in ["temprature", "guided_json", "stop_token_ids", "Model", ""] {
        let expected = Some((name.to_owned(), "unknown_parameter"));
        assert_eq!(refusal(chat(&json!({ name: 1 }))), expected);
        assert_eq!(refusal(completion(&json!({ name: null }))), expected);
        assert_eq!(refusal(embedding(&json!({ name: 1 }))), expected);
    }
    // Only completions echo, only embeddings have dimensions.
    assert_eq!(refusal(completion(&json!({"messages": []}))), Some(("messages".into(), "unknown_parameter")));
    assert_eq!(refusal(chat(&json!({"dimensions": 1}))), Some(("dimensions".into(), "unknown_parameter")));
}

#[test]
fn models_have_a_name() {
    let long = "m".repeat(257);
    let none = json!({ "model": null });
    assert_eq!(chat(&none).expect("the default's").model, None);
    assert_eq!(completion(&none).expect("the default's").model, None);
    assert_eq!(embedding(&none).expect("the default's").model, None);
    for (value, code) in
        [(json!(""), "string_below_min_length"), (json!(1), "invalid_type"), (json!(long), "string_above_max_length")]
    {
        let expected = Some(("model".to_owned(), code));
        let more = json!({ "model": value });
        assert_eq!(refusal(chat(&more)), expected);
        assert_eq!(refusal(completion(&more)), expected);
        assert_eq!(refusal(embedding(&more)), expected);
    }
}

#[test]
fn messages_become_role_and_text() {
    let read = chat(&json!({"messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "kim"},
        {"role": "assistant", "content": "", "refusal": null, "annotations": [], "tool_calls": null, "audio": null},
    ]}));
    let messages: Vec<(String, String, Option<String>)> =
        read.expect("valid").messages.into_iter().map(|m| (m.role, m.content, m.name)).collect();
    let expected = [
        ("system".to_owned(), "be brief".to_owned(), None),
        ("user".to_owned(), "ab".to_owned(), Some("kim".to_owned())),
        ("assistant".to_owned(), String::new(), None),
    ];
    assert_eq!(messages, expected);
}

#[test]
fn messages_that_are_not_text_are_refused() {
    let one = |message: Value| refusal(chat(&json!({ "messages": [message] })));
    let cases = [
        (json!({"content": "x"}), "messages[0].role", "missing_required_parameter"),
        (json!({"role": "king", "content": "x"}), "messages[0].role", "invalid_value"),
        (json!({"role": "tool", "content": "x", "tool_call_id": "1"}), "messages[0].role", "unsupported_parameter"),
        (json!({"role": 1, "content": "x"}), "messages[0].role", "invalid_type"),
        (json!({"role": "user"}), "messages[0].content", "missing_required_parameter"),
        (json!({"role": "assistant", "content": null}), "messages[0].content", "missing_required_parameter"),
        (json!({"role": "user", "content": 1}), "messages[0].content", "invalid_type"),
        (json!({"role": "user", "content": []}), "messages[0].content", "empty_array"),
        (json!({"role": "user", "content": ["x"]}), "messages[0].content[0]", "invalid_type"),
        (
            json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            json!({"role": "user", "content": [{"type": "text"}]}),
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        (
            json!({"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}),
            "messages[0].content[0].y",
            "unknown_parameter",
        ),
        (json!({"role": "user", "content": "x", "name": "a b"}), "messages[0].name", "invalid_value"),
        (json!({"role": "user", "content": "x", "name": "<|im_start|>"}), "messages[0].name", "invalid_value"),
        (json!({"role": "user", "content": "x", "weight": 1}), "messages[0].weight", "unknown_parameter"),
        (
            json!({"role": "assistant", "content": "x", "tool_calls": [1]}),
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
        (json!("x"), "messages[0]", "invalid_type"),
        (json!(null), "messages[0]", "invalid_type"),
    ];
    for (message, param, code) in cases {
        assert_eq!(one(message.clone()), Some((param.into(), code)), "{message}");
    }
    let lists = [
        (json!([]), "empty_array"),
        (json!(null), "missing_required_parameter"),
        (json!("x"), "invalid_type"),
        (json!({}), "invalid_type"),
        (Value::Array(vec![json!({"role": "user", "content": "x"}); 2049]), "array_above_max_length"),
    ];
    for (list, code) in lists {
        assert_eq!(refusal(chat(&json!({ "messages": list }))), Some(("messages".into(), code)));
    }
}

#[test]
fn prompts_and_inputs_come_in_four_shapes() {
    let good = [
        (json!("a"), json!(["a"])),
        (json!(["a", "b"]), json!(["a", "b"])),
        (json!([1, 2]), json!([[1, 2]])),
        (json!([0]), json!([[0]])),
        (json!([[1], [2, 3]]), json!([[1], [2, 3]])),
    ];
    for (value, expected) in good {
        let prompt = completion(&json!({ "prompt": value })).expect("valid").prompt;
        assert_eq!(json!(prompt), expected);
        let input = embedding(&json!({ "input": value })).expect("valid").input;
        assert_eq!(json!(input), expected);
    }
    let bad = [
        (json!(null), "", "missing_required_parameter"),
        (json!(""), "", "string_below_min_length"),
        (json!([]), "", "empty_array"),
        (json!([""]), "", "string_below_min_length"),
        (json!(["a", ""]), "[1]", "string_below_min_length"),
        (json!([[]]), "", "empty_array"),
        (json!([[1], []]), "[1]", "empty_array"),
        (json!(1), "", "invalid_type"),
        (json!({}), "", "invalid_type"),
        (json!(["a", 1]), "[1]", "invalid_type"),
        (json!(["a", [1]]), "[1]", "invalid_type"),
        (json!([[1], "a"]), "[1]", "invalid_type"),
        (json!([1, "a"]), "[1]", "invalid_type"),
        (json!([1, -1]), "[1]", "integer_below_min_value"),
        (json!([1, 4_294_967_296u64]), "[1]", "integer_above_max_value"),
        (json!([1, 1.5]), "[1]", "invalid_type"),
        (json!([[1, null]]), "[1]", "invalid_type"),
        (json!([null]), "", "invalid_type"),
        (json!([true]), "", "invalid_type"),
    ];
    for (value, place, code) in bad {
        let more = json!({ "prompt": value });
        assert_eq!(refusal(completion(&more)), Some((format!("prompt{place}"), code)), "{more}");
        let more = json!({ "input": value });
        assert_eq!(refusal(embedding(&more)), Some((format!("input{place}"), code)), "{more}");
    }
    let too_many = |len: usize| Value::Array(vec![json!("a"); len]);
    assert!(completion(&json!({"prompt": too_many(128)})).is_ok());
    assert_eq!(
        refusal(completion(&json!({"prompt": too_many(129)}))),
        Some(("prompt".into(), "array_above_max_length"))
    );
    assert!(embedding(&json!({"input": too_many(2048)})).is_ok());
    assert_eq!(refusal(embedding(&json!({"input": too_many(2049)}))), Some(("input".into(), "array_above_max_length")));
}

#[test]
fn embeddings_are_bounded_in_tokens() {
    let ids = |len: usize| json!({"input": [vec![1; len], vec![1; 100_000]]});
    assert!(embedding(&ids(200_000)).is_ok());
    assert_eq!(refusal(embedding(&ids(200_001))), Some(("input".into(), "array_above_max_length")));
}

#[test]
fn embedding_options_are_checked() {
    let cases = [
        (json!({"encoding_format": "float"}), None),
        (json!({"encoding_format": "base64", "dimensions": 1, "truncate": true, "user": "u"}), None),
        (json!({"encoding_format": "int8"}), Some(("encoding_format", "invalid_value"))),
        (json!({"encoding_format": 1}), Some(("encoding_format", "invalid_type"))),
        (json!({"dimensions": 0}), Some(("dimensions", "integer_below_min_value"))),
        (json!({"dimensions": -1}), Some(("dimensions", "integer_below_min_value"))),
        (json!({"dimensions": 1e308}), Some(("dimensions", "invalid_type"))),
        (json!({"truncate": "yes"}), Some(("truncate", "invalid_type"))),
        (json!({"temperature": 1}), Some(("temperature", "unknown_parameter"))),
    ];
    for (more, expected) in cases {
        let expected = expected.map(|(param, code)| (param.to_owned(), code));
        assert_eq!(refusal(embedding(&more)), expected, "{more}");
    }
}

#[test]
fn defaults_are_openais() {
    let params = chat(&json!({})).expect("valid").sampling.params();
    assert_eq!(params, weir_runtime::SamplingParams::default());
    let all = json!({"temperature": 0, "top_k": -1, "seed": -1, "min_p": 0.5, "repetition_penalty": 1.5});
    let params = chat(&all).expect("valid").sampling.params();
    assert_eq!((params.temperature, params.top_k, params.seed), (0.0, 0, Some(u64::MAX)));
    assert_eq!((params.min_p, params.repetition_penalty), (0.5, 1.5));
}

/// The published schema and the parser know the same fields.
#[test]
fn every_published_field_is_known() {
    fn properties(schema: &Value, all: &Value, names: &mut Vec<String>) {
        if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
            properties(&all[name], all, names);
        }
        names.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
        schema["allOf"].as_array().into_iter().flatten().for_each(|part| properties(part, all, names));
    }
    let document: Value = serde_json::from_str(&crate::openapi::document().to_json().expect("JSON")).expect("JSON");
    let schemas = &document["components"]["schemas"];
    let known = |name: &str, parse: &dyn Fn(&Value) -> Option<(String, &'static str)>, at_least: usize| {
        let mut names = Vec::new();
        properties(&schemas[name], schemas, &mut names);
        assert!(names.len() >= at_least, "{name}: {names:?}");
        for field in names {
            // Nothing takes a list of lists of lists: a known field is refused for its type, an unknown one as unknown.
            let (param, code) = parse(&json!({ field.clone(): [[[0]]] })).expect("refused");
            assert!(code != "unknown_parameter", "{name}.{field}: {param} {code}");
        }
    };
    known("ChatRequest", &|more| refusal(chat(more)), 21);
    known("CompletionRequest", &|more| refusal(completion(more)), 21);
    known("EmbeddingRequest", &|more| refusal(embedding(more)), 6);
}

#[test]
fn echo_repeats_a_bounded_number_of_bytes() {
    use super::super::completion::ECHO_BYTES_MAX;
    let text = "x".repeat(ECHO_BYTES_MAX / 8);
    let ids = vec![0; ECHO_BYTES_MAX / 16];
    let echo = |prompt: Value, n: u32| refusal(completion(&json!({"prompt": prompt, "n": n, "echo": true})));
    let refused = Some(("echo".to_owned(), "invalid_value"));
    assert_eq!(echo(json!(text), 8), None);
    assert_eq!(echo(json!([text, "x"]), 8), refused);
    assert_eq!(echo(json!(ids), 1), None);
    assert_eq!(echo(json!(ids), 2), refused);
    assert_eq!(refusal(completion(&json!({"prompt": [text, "x"], "n": 8}))), None);
}
