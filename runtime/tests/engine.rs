//! The whole stack below HTTP on the `fake:` executor: real engine thread, real boundary, no weights.

mod rig;

use std::{task::Poll, time::Duration};

use rig::{complete, metric, read};
use weir_runtime::{
    DeviceConfig, DeviceQuota, Engine, EngineConfig, EngineError, ExecutorMode, FailureKind, FinishReason, Prompt,
    RecordConfig, SamplingParams, StopReason, StreamEvent, Submission, SubmitError, TenantId, TenantSpec,
};

async fn start(models: &[&str], change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let mut config = rig::config(rig::specs(models));
    change(&mut config);
    Engine::start(config).await.expect("starts")
}

const FAST: &str = "fake:step=200us,token=1us";

#[tokio::test(flavor = "multi_thread")]
async fn the_same_text_alone_and_in_company() {
    let engine = start(&[FAST], |_| {}).await;
    let prompts: Vec<String> = (0..64).map(|i| format!("prompt {i} {}", "x".repeat(i * 7))).collect();
    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.push(complete(&engine, rig::text(&engine, "a", prompt, 40)).await.texts.remove(0));
    }
    let mut together = Vec::new();
    for prompt in &prompts {
        together.push(engine.submit(rig::text(&engine, "b", prompt, 40)).await.expect("accepted"));
    }
    for (stream, alone) in together.into_iter().zip(alone) {
        assert_eq!(read(stream, 1).await.texts[0], alone);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_counts_what_was_used() {
    let engine = start(&[FAST], |_| {}).await;
    let answer = complete(&engine, rig::text(&engine, "a", "hello", 17)).await;
    let usage = answer.end.expect("done");
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens), (5, 17, 0));
    assert_eq!(answer.reasons, [Some(FinishReason::Length)]);
    // Seventeen steps of 200 us, alone on the device: all of it is this request's.
    assert!(usage.device_nanos >= 17 * 200_000, "{}", usage.device_nanos);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_came_later_is_served_and_named() {
    let engine = start(&[FAST], |_| {}).await;
    engine.put_tenant(TenantId(3), TenantSpec::named("c")).await.expect("the next number");
    assert_eq!((engine.tenant("c"), engine.tenants_len()), (Some(TenantId(3)), 3));
    assert!(complete(&engine, rig::text(&engine, "c", "hello", 5)).await.end.is_ok());
    metric(&engine, r#"weir_tenant_kv_block_seconds_total{tenant="c""#).await;

    let lost = TenantSpec { pool: Some("gold".into()), ..TenantSpec::named("d") };
    for (number, spec, says) in [
        (5, TenantSpec::named("d"), "the next is 4"),
        (0, TenantSpec::named("d"), "the next is 4"),
        (4, TenantSpec::named("a"), "two tenants are named `a`"),
        (4, lost, "no device is in pool `gold`, which tenant `d` names"),
    ] {
        let Err(EngineError::Config(said)) = engine.put_tenant(TenantId(number), spec).await else { panic!("{says}") };
        assert!(said.contains(says), "{said}");
    }
    assert_eq!(engine.tenants_len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_changes_holds_for_what_runs() {
    let engine = start(&["fake:step=1ms,token=1us"], |_| {}).await;
    let long = engine.submit(rig::text(&engine, "a", "hello", 2_000)).await.expect("accepted");
    let quota = DeviceQuota { hour: Some(Duration::from_millis(20)), ..DeviceQuota::default() };
    engine.put_tenant(TenantId(1), TenantSpec { quota, ..TenantSpec::named("a") }).await.expect("a plan");
    let usage = read(long, 1).await.end.expect("a text, so far");
    assert_eq!(usage.stop, Some(StopReason::Quota));
    let refused = engine.submit(rig::text(&engine, "a", "hello", 5)).await.err();
    assert!(matches!(refused, Some(SubmitError::QuotaSpent { .. })), "{refused:?}");
    engine.put_tenant(TenantId(1), TenantSpec::named("a")).await.expect("a plan");
    let usage = complete(&engine, rig::text(&engine, "a", "hello", 50)).await.end.expect("done");
    assert_eq!((usage.completion_tokens, usage.stop), (50, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_share_no_cache() {
    let engine = start(&[FAST], |_| {}).await;
    let prompt = "a long prompt that fills several blocks ".repeat(10);
    let cached = async |tenant: &str| {
        complete(&engine, rig::text(&engine, tenant, &prompt, 2)).await.end.expect("done").cached_tokens
    };
    assert_eq!(cached("a").await, 0);
    assert!(cached("a").await >= 384);
    assert_eq!(cached("b").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_turn_finds_what_was_drawn_under_its_own_name() {
    let engine = start(&[FAST], |_| {}).await;
    // The fake model's ids are bytes: what it drew is the same ids again when it comes as text.
    let mut conversation = "forty bytes of prompt, a block and more.".to_owned();
    for turn in 0..4 {
        let answer = complete(&engine, rig::text(&engine, "a", &conversation, 100)).await;
        let usage = answer.end.expect("done");
        // All blocks that were computed before; the last id was drawn and not computed.
        let known = if turn == 0 { 0 } else { usage.prompt_tokens - 1 - 1 };
        assert_eq!(usage.cached_tokens, known / 32 * 32, "turn {turn}");
        conversation += &answer.texts[0];
        conversation += "?";
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_differ_by_seed_and_repeat_with_it() {
    let engine = start(&[FAST], |_| {}).await;
    let submission = || {
        let mut submission = rig::text(&engine, "a", "three ways on", 24);
        submission.n = 3;
        submission.sampling = SamplingParams { seed: Some(7), ..SamplingParams::default() };
        submission
    };
    let first = complete(&engine, submission()).await;
    assert!(first.texts[0] != first.texts[1] && first.texts[1] != first.texts[2]);
    assert_eq!(first.texts, complete(&engine, submission()).await.texts);
    assert_eq!(first.end.expect("done").completion_tokens, 72);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_end_a_choice_before_they_show() {
    let engine = start(&[FAST], |_| {}).await;
    let whole = complete(&engine, rig::text(&engine, "a", "go", 60)).await.texts.remove(0);
    let stop: String = whole.chars().skip(20).take(3).collect();
    let mut submission = rig::text(&engine, "a", "go", 60);
    submission.stop = vec![stop.clone()];
    let answer = complete(&engine, submission).await;
    assert_eq!(answer.texts[0], whole[..whole.find(&stop).expect("there")]);
    assert_eq!(answer.reasons, [Some(FinishReason::Stop)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn echo_puts_the_prompt_first() {
    let engine = start(&[FAST], |_| {}).await;
    let plain = complete(&engine, rig::text(&engine, "a", "say", 5)).await.texts.remove(0);
    let mut submission = rig::text(&engine, "a", "say", 5);
    submission.echo = true;
    assert_eq!(complete(&engine, submission).await.texts[0], format!("say{plain}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_stream_frees_its_blocks() {
    let engine = start(&["fake:step=1ms,token=1us"], |_| {}).await;
    let mut streams = Vec::new();
    for i in 0..20 {
        let prompt = format!("{i} {}", "p".repeat(400));
        streams.push(engine.submit(rig::text(&engine, "a", &prompt, 20_000)).await.expect("accepted"));
    }
    for stream in &mut streams {
        assert!(matches!(stream.next().await, Some(StreamEvent::Delta { .. })));
    }
    assert!(metric(&engine, "weir_kv_blocks_used{").await > 200.0);
    drop(streams);
    // A request admitted after the cancels is planned after them, so its end shows their blocks freed: two more steps
    // at most were queued.
    complete(&engine, rig::text(&engine, "b", "x", 8)).await;
    assert_eq!(metric(&engine, "weir_requests_running{").await, 0.0);
    assert_eq!(metric(&engine, "weir_kv_blocks_used{").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_vanish_while_being_admitted_leave_nothing() {
    let engine = start(&["fake:step=100us,token=0us"], |_| {}).await;
    for yields in 0..400 {
        let submission = rig::text(&engine, "a", "gone", 30_000);
        let mut submitting = Box::pin(engine.submit(submission));
        // Drops the caller at each stage of being admitted, the engine thread's answer on its way included.
        for _ in 0..yields % 40 {
            if futures_poll_once(submitting.as_mut()).await {
                break;
            }
            std::hint::black_box((0..yields * 50).sum::<u64>());
        }
        drop(submitting);
    }
    complete(&engine, rig::text(&engine, "b", "x", 8)).await;
    assert_eq!(metric(&engine, "weir_requests_running{").await, 0.0);
    assert_eq!(metric(&engine, "weir_requests_waiting{").await, 0.0);
}

/// Polls a future once and lets others run; true when it has ended (and its value is dropped).
async fn futures_poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    let ended = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await;
    tokio::task::yield_now().await;
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn long_prompts_are_echoed_whole_for_every_choice() {
    let engine = start(&[FAST], |_| {}).await;
    let prompt = "long ".repeat(4_000);
    let mut submission = rig::text(&engine, "a", &prompt, 3);
    submission.echo = true;
    submission.n = 4;
    let answer = complete(&engine, submission).await;
    assert!(answer.end.is_ok());
    assert!(answer.texts.iter().all(|text| text.starts_with(&prompt) && text.len() > prompt.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_are_cut_and_nobody_waits_for_them() {
    let engine = start(&["fake:step=50us,token=0us"], |_| {}).await;
    let mut slow_request = rig::text(&engine, "a", "slow", 30_000);
    slow_request.logprobs = Some(20);
    let slow = engine.submit(slow_request).await.expect("accepted");
    // Each token's 21 log-probabilities weigh some 500 bytes: the outbox is full after some 130 tokens.
    for _ in 0..40 {
        complete(&engine, rig::text(&engine, "b", "quick", 10)).await;
    }
    assert_eq!(read(slow, 1).await.end, Err(FailureKind::SlowReader));
    assert_eq!(metric(&engine, "weir_requests_total{outcome=\"failed\"}").await, 1.0);
    assert_eq!(metric(&engine, "weir_requests_total{outcome=\"cancelled\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_come_in_order_and_in_any_company() {
    let engine = start(&[FAST], |_| {}).await;
    let texts: Vec<String> = (0..100).map(|i| format!("text {i}")).collect();
    let all = engine.embed(rig::embedding(&engine, "a", texts.clone())).await.expect("embeds");
    assert_eq!(all.vectors.len(), 100);
    assert_eq!(all.usage.prompt_tokens as usize, texts.iter().map(String::len).sum::<usize>());
    for at in [0, 42, 99] {
        let alone = engine.embed(rig::embedding(&engine, "a", [texts[at].clone()])).await.expect("embeds");
        assert_eq!(alone.vectors[0], all.vectors[at]);
    }
    let mut cut = rig::embedding(&engine, "a", ["x".repeat(513)]);
    assert!(matches!(engine.embed(cut.clone()).await, Err(SubmitError::ContextTooLong { .. })));
    cut.truncate = true;
    assert_eq!(engine.embed(cut).await.expect("cut").usage.prompt_tokens, 512);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_is_refused_with_its_reason() {
    let engine = start(&[FAST], |_| {}).await;
    let refused = async |change: &dyn Fn(&mut Submission)| {
        let mut submission = rig::text(&engine, "a", "x", 5);
        change(&mut submission);
        engine.submit(submission).await.err()
    };
    assert!(matches!(refused(&|s| s.model = "other".into()).await, Some(SubmitError::UnknownModel { .. })));
    assert!(matches!(refused(&|s| s.max_tokens = Some(32_768)).await, Some(SubmitError::ContextTooLong { .. })));
    assert!(matches!(refused(&|s| s.prompt = Prompt::Tokens(vec![258])).await, Some(SubmitError::Invalid { .. })));
    assert!(matches!(refused(&|s| s.prompt = Prompt::Tokens(vec![])).await, Some(SubmitError::Invalid { .. })));
    let bias = |s: &mut Submission| s.sampling.logit_bias = vec![(1000, 1.0)];
    assert!(matches!(refused(&bias).await, Some(SubmitError::Invalid { param: Some("logit_bias"), .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_refused_with_a_time() {
    let slow_tenant = |config: &mut EngineConfig| {
        config.tenants[0].queue_len_max = 3;
        config.tenants[0].running_max = 1;
    };
    let engine = start(&["fake:step=20ms,token=0us"], slow_tenant).await;
    let mut streams = Vec::new();
    let refusal = loop {
        match engine.submit(rig::text(&engine, "a", "x", 1000)).await {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 10);
    };
    let SubmitError::Busy { retry_after, tenant_limit: true, .. } = refusal else { panic!("{refusal:?}") };
    assert!(retry_after > Duration::ZERO);
    assert_eq!(complete(&engine, rig::text(&engine, "b", "x", 2)).await.end.expect("done").completion_tokens, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_finishes_what_runs_and_takes_nothing_new() {
    let engine = start(&["fake:step=2ms,token=0us"], |_| {}).await;
    let running = engine.submit(rig::text(&engine, "a", "x", 50)).await.expect("accepted");
    let stopping = tokio::spawn({
        let engine = engine.clone();
        async move { engine.shutdown(Duration::from_secs(20)).await }
    });
    assert_eq!(read(running, 1).await.end.expect("done").completion_tokens, 50);
    stopping.await.expect("drains");
    assert_eq!(engine.submit(rig::text(&engine, "a", "x", 5)).await.err(), Some(SubmitError::Draining));
    assert!(engine.ready().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn device_time_adds_up() {
    let engine = start(&[FAST, "other=fake:step=300us,token=2us"], |_| {}).await;
    let mut charged = 0;
    for i in 0..10 {
        let mut submission = rig::text(&engine, if i % 2 == 0 { "a" } else { "b" }, "add up", 9);
        submission.model = if i % 3 == 0 { "fake".into() } else { "other".into() };
        charged += complete(&engine, submission).await.end.expect("done").device_nanos;
    }
    let tenants = metric(&engine, "weir_device_seconds_total{device=\"cpu:0\",account=\"tenants\"}").await;
    assert!((tenants - charged as f64 / 1e9).abs() < 1e-6, "{tenants} against {charged} ns");
}

#[tokio::test(flavor = "multi_thread")]
async fn prices_and_decisions_are_told() {
    let engine = start(&["fake:step=2ms,token=50us"], |_| {}).await;
    for len in [3, 40, 300, 90, 500, 7] {
        complete(&engine, rig::text(&engine, "a", "x".repeat(len), 30)).await;
    }
    let price = async |of: &str| {
        metric(&engine, &format!("weir_fitted_price_seconds{{device=\"cpu:0\",model=\"fake\",of=\"{of}\"}}")).await
    };
    // What a fake step costs it is said to cost, so the fit finds it.
    assert!((price("step").await / 0.002 - 1.0).abs() < 0.05, "{}", price("step").await);
    assert!((price("token").await / 50e-6 - 1.0).abs() < 0.05, "{}", price("token").await);
    for of in ["row", "context", "read"] {
        assert!((0.0..5e-6).contains(&price(of).await), "{of}: {}", price(of).await);
    }
    let steps = metric(&engine, "weir_device_steps_total{").await;
    for decision in ["plan", "settle"] {
        let counted =
            metric(&engine, &format!("weir_scheduler_decision_seconds_count{{decision=\"{decision}\"}}")).await;
        assert!(counted >= steps && counted <= steps + 2.0, "{decision}: {counted} of {steps}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_ended_leaves_a_whole_trace() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("trace.ndjson");
    let record = RecordConfig { path: path.clone(), bytes_max: 1 << 20 };
    let engine = start(&[FAST], |config| config.record = Some(record)).await;
    // One ends by itself, the other with the server.
    complete(&engine, rig::text(&engine, "a", "first", 5)).await;
    let cut = engine.submit(rig::text(&engine, "b", "second", 30_000)).await.expect("accepted");
    engine.shutdown(Duration::ZERO).await;
    let text = std::fs::read_to_string(&path).expect("a trace");
    let ends: Vec<&str> = text.lines().filter(|line| line.contains("\"kind\":\"request\"")).collect();
    assert_eq!(ends.len(), 2, "{text}");
    assert!(ends[0].contains("\"finished\"") && ends[1].contains("\"failed\""), "{ends:?}");
    assert_eq!(read(cut, 1).await.end, Err(FailureKind::Draining));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_leaves_no_trace_in_the_way_of_the_next() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("trace.ndjson");
    let program = folder.path().join("missing");
    let config = || EngineConfig {
        devices: vec![DeviceConfig {
            executor: ExecutorMode::Process { program: program.clone(), args: Vec::new() },
            ..rig::cpu(0)
        }],
        record: Some(RecordConfig { path: path.clone(), bytes_max: 1 << 20 }),
        ..rig::config(rig::specs(&[FAST]))
    };
    for _ in 0..2 {
        let error = Engine::start(config()).await.err().expect("no executor").to_string();
        assert!(!error.contains("trace") && !path.exists(), "{error}");
    }
}
