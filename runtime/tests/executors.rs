//! An executor dies, hangs or computes nonsense: who notices, and who goes on as if nothing had happened.

mod common;

use std::time::Duration;

use common::{Answer, complete, metric, read};
use weir_runtime::{
    CpuConfig, EmbedInput, EmbedSubmission, Engine, EngineConfig, ExecutorMode, FailureKind, ModelSpec, Prompt,
    SamplingParams, Submission, SubmitError, TenantSpec,
};

/// Bytes that set off the faults of [`MODEL`] when they are computed.
const CRASH: &str = "\u{7}";
const HANG: &str = "\u{6}";
const NAN: &str = "\u{5}";
const MODEL: &str = "fake:step=1ms,token=1us,crash_on=7,hang_on=6,nan_on=5";

async fn start() -> Engine {
    let config = EngineConfig {
        models: vec![MODEL.parse::<ModelSpec>().expect("model")],
        tenants: vec![TenantSpec::named("a"), TenantSpec::named("b")],
        cpu: CpuConfig::default(),
        executor: ExecutorMode::Thread,
        queue_len_max: 1024,
        canary_interval: Duration::from_secs(5),
        seed: 1,
    };
    Engine::start(config).await.expect("starts")
}

fn text(engine: &Engine, prompt: &str, max_tokens: u32) -> Submission {
    Submission {
        tenant: engine.tenant("a").expect("tenant"),
        model: "fake".into(),
        request_id: "test".into(),
        prompt: Prompt::Text(prompt.into()),
        n: 1,
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens: Some(max_tokens),
        min_tokens: 0,
        stop: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        echo: false,
    }
}

/// Greedy and seeded, with one choice and several, with penalties and log-probabilities, long and short.
fn all_sorts(engine: &Engine) -> Vec<Submission> {
    (0..40u32)
        .map(|i| {
            let mut submission = text(engine, &format!("request {i} {}", "x".repeat(3 * i as usize)), 20 + 7 * i);
            if i % 2 == 1 {
                submission.sampling = SamplingParams { seed: Some(u64::from(i)), top_p: 0.9, ..Default::default() };
            }
            if i % 5 == 0 {
                submission.sampling.frequency_penalty = 0.7;
                submission.sampling.repetition_penalty = 1.1;
            }
            submission.n = 1 + u32::from(i % 7 == 0);
            submission.logprobs = (i % 3 == 0).then_some(2);
            submission
        })
        .collect()
}

/// All of an answer but how it was cut into deltas and what it took.
fn seen(answer: &Answer) -> impl PartialEq + std::fmt::Debug + use<> {
    let usage = answer.end.clone().map(|usage| (usage.prompt_tokens, usage.completion_tokens));
    (answer.texts.clone(), answer.reasons.clone(), answer.logprobs.clone(), usage)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_request_is_found_and_nobody_else_notices() {
    let engine = start().await;
    let mut expected = Vec::new();
    for submission in all_sorts(&engine) {
        expected.push(seen(&complete(&engine, submission).await));
    }
    let mut bystanders = Vec::new();
    for submission in all_sorts(&engine) {
        let n = submission.n as usize;
        let stream = engine.submit(submission).await.expect("accepted");
        bystanders.push(tokio::spawn(read(stream, n)));
    }
    let embedding = |inputs: Vec<String>| {
        let inputs = inputs.into_iter().map(EmbedInput::Text).collect();
        let tenant = engine.tenant("b").expect("tenant");
        engine.embed(EmbedSubmission { tenant, model: "fake".into(), request_id: "e".into(), inputs, truncate: false })
    };
    let list: Vec<String> = (0..300).map(|i| format!("input {i}")).collect();
    let (vectors, poison) =
        tokio::join!(embedding(list.clone()), complete(&engine, text(&engine, &format!("and {CRASH}"), 50)));
    assert_eq!(poison.end, Err(FailureKind::Quarantined));
    for (bystander, expected) in bystanders.into_iter().zip(expected) {
        assert_eq!(seen(&bystander.await.expect("no panic")), expected);
    }
    assert_eq!(metric(&engine, "weir_executor_restarts_total").await, 2.0);
    assert_eq!(metric(&engine, "weir_requests_quarantined_total").await, 1.0);
    let vectors = vectors.expect("embedded");
    assert_eq!(vectors.usage.prompt_tokens as usize, list.iter().map(String::len).sum::<usize>());
    assert_eq!(vectors.vectors, embedding(list).await.expect("embedded").vectors);

    // The same again is refused; of another tenant it is looked at anew.
    let refused = engine.submit(text(&engine, &format!("and {CRASH}"), 3)).await.expect_err("quarantined");
    assert!(matches!(refused, SubmitError::Invalid { code: Some("request_quarantined"), .. }), "{refused:?}");
    assert_eq!(metric(&engine, "weir_executor_restarts_total").await, 2.0);
    assert_eq!(metric(&engine, "weir_kv_blocks_used{").await, 0.0);
    assert_eq!(metric(&engine, "weir_requests_live").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_kills_is_kept_out_too() {
    let engine = start().await;
    let embedding = |texts: &[&str]| {
        let inputs = texts.iter().map(|text| EmbedInput::Text((*text).into())).collect();
        let tenant = engine.tenant("a").expect("tenant");
        engine.embed(EmbedSubmission { tenant, model: "fake".into(), request_id: "e".into(), inputs, truncate: false })
    };
    let (good, poison) = tokio::join!(embedding(&["a", "b"]), embedding(&["c", CRASH, "d"]));
    assert_eq!(good.expect("embedded").vectors.len(), 2);
    assert!(poison.is_err());
    assert!(matches!(embedding(&["c", CRASH, "d"]).await, Err(SubmitError::Invalid { .. })));
    assert_eq!(metric(&engine, "weir_executor_restarts_total").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_gets_nowhere_is_ended_like_a_death() {
    let engine = start().await;
    let expected = complete(&engine, text(&engine, "bystander", 2_000)).await;
    let bystander = engine.submit(text(&engine, "bystander", 2_000)).await.expect("accepted");
    let hanging = complete(&engine, text(&engine, HANG, 5)).await;
    assert_eq!(hanging.end, Err(FailureKind::Quarantined));
    assert_eq!(read(bystander, 1).await.texts, expected.texts);
    assert_eq!(metric(&engine, "weir_executor_hangs_total").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_a_number_ends_alone_and_leaves_nothing_in_the_cache() {
    let engine = start().await;
    let expected = complete(&engine, text(&engine, "neighbour", 200)).await;
    let neighbour = engine.submit(text(&engine, "neighbour", 200)).await.expect("accepted");
    let prompt = format!("{NAN}{}", "long enough for some blocks ".repeat(8));
    for _ in 0..2 {
        assert_eq!(complete(&engine, text(&engine, &prompt, 5)).await.end, Err(FailureKind::BadOutput));
    }
    let answer = read(neighbour, 1).await;
    assert_eq!((answer.texts, answer.end.is_ok()), (expected.texts, true));
    assert_eq!(metric(&engine, "weir_prefix_cache_hits_total").await, 0.0, "its blocks were not to be found");
    assert_eq!(metric(&engine, "weir_executor_restarts_total").await, 0.0);
}
