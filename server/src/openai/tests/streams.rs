use serde_json::Value;
use weir_runtime::{FailureKind, FinishReason, RequestFailure, StreamEvent, TokenLogprob, TopLogprob, Usage};

use super::super::{
    answer::{Answer, Head},
    sampling::StreamOptions,
    stream::{Encoder, Progress, Shape},
};

fn head(logprobs_top: Option<u32>) -> Head {
    Head { id: "id-1".into(), created: 7, model: "m".into(), system_fingerprint: "fp_0".into(), logprobs_top }
}

fn delta(index: u32, text: &str, tokens: u32) -> StreamEvent {
    StreamEvent::Delta { index, text: text.into(), tokens, logprobs: Vec::new() }
}

fn finished(index: u32, reason: FinishReason) -> StreamEvent {
    StreamEvent::Finished { index, reason }
}

fn done() -> StreamEvent {
    StreamEvent::Done(Usage {
        prompt_tokens: 5,
        cached_tokens: 3,
        completion_tokens: 2,
        device_nanos: 1_234_567,
        stop: None,
    })
}

fn written(mut encoder: Encoder, story: Vec<StreamEvent>) -> String {
    let mut out = String::new();
    let last = story.len() - 1;
    for (place, event) in story.into_iter().enumerate() {
        let ended = encoder.encode(event, &mut out) == Progress::Ended;
        assert_eq!(ended, place == last);
    }
    out
}

fn chat(options: StreamOptions, choices: usize, story: Vec<StreamEvent>) -> String {
    written(Encoder::new(Shape::Chat, head(None), options, 5, choices), story)
}

const CHAT: &str =
    r#"{"id":"id-1","object":"chat.completion.chunk","created":7,"model":"m","system_fingerprint":"fp_0","choices":["#;
const TEXT: &str =
    r#"{"id":"id-1","object":"text_completion","created":7,"model":"m","system_fingerprint":"fp_0","choices":["#;

fn lines(head: &str, chunks: &[&str]) -> String {
    chunks
        .iter()
        .map(
            |chunk| {
                if chunk.starts_with('[') { format!("data: {chunk}\n\n") } else { format!("data: {head}{chunk}\n\n") }
            },
        )
        .collect()
}

#[test]
fn plain_chat() {
    let story = vec![delta(0, "Hé", 1), delta(0, "", 2), delta(0, "llo", 3), finished(0, FinishReason::Stop), done()];
    let expected = lines(
        CHAT,
        &[
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}"#,
            r#"{"index":0,"delta":{"content":"Hé"},"logprobs":null,"finish_reason":null}]}"#,
            r#"{"index":0,"delta":{"content":"llo"},"logprobs":null,"finish_reason":null}]}"#,
            r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}"#,
            "[DONE]",
        ],
    );
    assert_eq!(chat(StreamOptions::default(), 1, story), expected);
}

#[test]
fn usage_is_null_until_the_last_chunk() {
    let options = StreamOptions { include_usage: Some(true), continuous_usage_stats: None };
    let story = vec![delta(0, "a", 1), finished(0, FinishReason::Length), done()];
    let expected = lines(
        CHAT,
        &[
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}"#,
            r#"],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":3},"weir":{"device_seconds":0.001235}}}"#,
            "[DONE]",
        ],
    );
    assert_eq!(chat(options, 1, story), expected);
}

#[test]
fn continuous_usage_counts_all_choices() {
    let options = StreamOptions { include_usage: Some(true), continuous_usage_stats: Some(true) };
    let story = vec![
        delta(1, "x", 2),
        delta(0, "a", 1),
        finished(1, FinishReason::Stop),
        finished(0, FinishReason::Stop),
        done(),
    ];
    let out = chat(options, 2, story);
    let events: Vec<Value> = out
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: ").filter(|data| *data != "[DONE]"))
        .map(|data| serde_json::from_str(data).expect("JSON"))
        .collect();
    let totals: Vec<u64> = events.iter().map(|e| e["usage"]["total_tokens"].as_u64().expect("usage")).collect();
    // Role and text of choice 1, role and text of choice 0, two endings, and the usage chunk with the engine's count.
    assert_eq!(totals, [5, 7, 7, 8, 8, 8, 7]);
    let roles: Vec<u64> = events
        .iter()
        .filter(|e| e["choices"][0]["delta"]["role"] == "assistant")
        .filter_map(|e| e["choices"][0]["index"].as_u64())
        .collect();
    assert_eq!(roles, [1, 0]);
    assert_eq!(events[6]["choices"], Value::Array(Vec::new()));
}

#[test]
fn plain_completion_has_no_role_chunk() {
    let encoder = Encoder::new(Shape::Completion, head(None), StreamOptions::default(), 5, 1);
    let story = vec![delta(0, "a", 1), finished(0, FinishReason::Length), done()];
    let expected = lines(
        TEXT,
        &[
            r#"{"text":"a","index":0,"logprobs":null,"finish_reason":null}]}"#,
            r#"{"text":"","index":0,"logprobs":null,"finish_reason":"length"}]}"#,
            "[DONE]",
        ],
    );
    assert_eq!(written(encoder, story), expected);
}

#[test]
fn a_failure_is_one_event_and_the_end() {
    let failure = RequestFailure { message: "The executor was lost.".into(), kind: FailureKind::ExecutorLost };
    let out = chat(StreamOptions::default(), 1, vec![StreamEvent::Failed(failure)]);
    let error =
        r#"{"error":{"message":"The executor was lost.","type":"server_error","param":null,"code":"internal_error"}}"#;
    assert_eq!(out, format!("data: {error}\n\ndata: [DONE]\n\n"));
}

fn token(text: &str, logprob: f32, offset: usize) -> TokenLogprob {
    let chosen = TopLogprob { token: text.into(), bytes: text.as_bytes().to_vec(), logprob };
    let rival = TopLogprob { token: "z".into(), bytes: vec![122], logprob: -3.0 };
    TokenLogprob { top: vec![chosen.clone(), rival], chosen, text_offset: offset }
}

#[test]
fn tokens_without_text_yet_are_reported() {
    let tokens = vec![token("\u{fffd}", -0.5, 0)];
    let story = vec![
        StreamEvent::Delta { index: 0, text: String::new(), tokens: 1, logprobs: tokens },
        finished(0, FinishReason::Stop),
        done(),
    ];
    let out = written(Encoder::new(Shape::Chat, head(Some(2)), StreamOptions::default(), 5, 1), story);
    let expected = lines(
        CHAT,
        &[
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}"#,
            "{\"index\":0,\"delta\":{\"content\":\"\"},\"logprobs\":{\"content\":[{\"token\":\"\u{fffd}\",\"logprob\":-0.5,\"bytes\":[239,191,189],\"top_logprobs\":[{\"token\":\"\u{fffd}\",\"logprob\":-0.5,\"bytes\":[239,191,189]},{\"token\":\"z\",\"logprob\":-3.0,\"bytes\":[122]}]}],\"refusal\":null},\"finish_reason\":null}]}",
            r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}"#,
            "[DONE]",
        ],
    );
    assert_eq!(out, expected);
}

#[test]
fn completion_logprobs_are_parallel_lists() {
    let story = || {
        let tokens = vec![token("a", -0.25, 0), token("b", -1.0, 1)];
        [StreamEvent::Delta { index: 0, text: "ab".into(), tokens: 2, logprobs: tokens }]
    };
    for (top, lists) in
        [(2, r#""top_logprobs":[{"a":-0.25,"z":-3.0},{"b":-1.0,"z":-3.0}]"#), (0, r#""top_logprobs":null"#)]
    {
        let mut out = String::new();
        let mut encoder = Encoder::new(Shape::Completion, head(Some(top)), StreamOptions::default(), 5, 1);
        for event in story() {
            encoder.encode(event, &mut out);
        }
        let expected = format!(
            r#"{{"text":"ab","index":0,"logprobs":{{"tokens":["a","b"],"token_logprobs":[-0.25,-1.0],{lists},"text_offset":[0,1]}},"finish_reason":null}}]}}"#
        );
        assert_eq!(out, lines_of(&expected));
    }
    fn lines_of(chunk: &str) -> String {
        lines(TEXT, &[chunk])
    }
}

#[test]
fn one_body_holds_what_the_events_said() {
    let story = [
        delta(1, "x", 1),
        delta(0, "Hé", 1),
        delta(0, "llo", 2),
        finished(0, FinishReason::Stop),
        finished(1, FinishReason::Length),
    ];
    let mut answer = Answer::new(2);
    for event in story.clone() {
        assert_eq!(answer.add(event), Ok(None));
    }
    let usage = answer.add(done()).expect("no failure").expect("the end").into();
    let chat = serde_json::to_string(&answer.chat(head(None), usage)).expect("JSON");
    let expected = concat!(
        r#"{"id":"id-1","object":"chat.completion","created":7,"model":"m","system_fingerprint":"fp_0","choices":["#,
        r#"{"index":0,"message":{"role":"assistant","content":"Héllo","refusal":null},"logprobs":null,"finish_reason":"stop"},"#,
        r#"{"index":1,"message":{"role":"assistant","content":"x","refusal":null},"logprobs":null,"finish_reason":"length"}],"#,
        r#""usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":3},"#,
        r#""weir":{"device_seconds":0.001235}}}"#,
    );
    assert_eq!(chat, expected);
    let mut answer = Answer::new(1);
    assert!(answer.add(delta(1, "x", 1)).is_err());
    let failure = RequestFailure { message: "m".into(), kind: FailureKind::Draining };
    assert_eq!(answer.add(StreamEvent::Failed(failure)).map_err(|e| e.status().as_u16()), Err(503));
}
