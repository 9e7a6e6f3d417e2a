//! What an executor's death, or a row that is not a number, does to requests; below HTTP, with the executor in a thread that its
//! fault points end. The same with processes that are killed is in `tests/e2e/executors.py`.

mod rig;

use std::{collections::HashMap, path::Path};

use candle_core::{Device, Tensor};
use rig::{Answer, complete, metric, read, read_telling};
use weir_runtime::{Engine, FailureKind, ModelLocation, ModelSpec, Prompt, SamplingParams, Submission, SubmitError};

async fn fake(cost: &str) -> Engine {
    rig::start(&[&format!("m=fake:{cost}")]).await
}

fn greedy(engine: &Engine, prompt: &str, max_tokens: u32) -> Submission {
    rig::text(engine, "a", prompt, max_tokens)
}

/// Greedy, seeded, with every penalty, with stop strings, log-probabilities, several choices; short and over several blocks.
fn requests(engine: &Engine) -> Vec<Submission> {
    let mut requests = Vec::new();
    for index in 0..16u64 {
        let mut request = greedy(engine, &format!("bystander {index} {}", "y".repeat(index as usize * 9)), 150);
        if index % 2 == 1 {
            let seed = (index % 4 == 1).then_some(index);
            request.sampling = SamplingParams { seed, temperature: 0.8, top_p: 0.95, ..SamplingParams::default() };
        }
        // Without a seed of its own a text is another each time.
        request.sampling.seed = request.sampling.seed.or(Some(1000 + index));
        if index % 3 == 0 {
            request.sampling.repetition_penalty = 1.2;
            request.sampling.frequency_penalty = 0.1;
            request.sampling.presence_penalty = 0.1;
        }
        request.n = if index % 5 == 0 { 3 } else { 1 };
        request.logprobs = (index % 4 == 2).then_some(2);
        request.min_tokens = if index % 4 == 3 { 120 } else { 0 };
        request.ignore_eos = index % 4 != 3;
        requests.push(request);
    }
    requests
}

/// What a client sees of an answer, but its cached tokens and its bill.
fn seen(answer: Answer) -> impl PartialEq + std::fmt::Debug {
    let usage = answer.end.expect("done");
    (answer.texts, answer.reasons, answer.logprobs, usage.prompt_tokens, usage.completion_tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_death_interrupts_goes_on_where_it_was() {
    let engine = fake("step=2ms,token=5us,crash_on=7").await;
    let mut expected = Vec::new();
    for request in requests(&engine) {
        expected.push(seen(complete(&engine, request).await));
    }
    let texts: Vec<String> = (0..400).map(|index| format!("input {index} {}", "z".repeat(60))).collect();
    let vectors = engine.embed(rig::embedding(&engine, "b", texts.clone())).await.expect("embeds").vectors;

    let (delivered, deliveries) = flume::unbounded();
    let mut reading = Vec::new();
    for request in requests(&engine) {
        let n = request.n as usize;
        let stream = engine.submit(request).await.expect("accepted");
        let delivered = delivered.clone();
        let tell = move || delivered.send(()).expect("the other end waits for this task");
        reading.push(tokio::spawn(read_telling(stream, n, tell)));
    }
    let embedding = tokio::spawn({
        let (engine, submission) = (engine.clone(), rig::embedding(&engine, "b", texts));
        async move { engine.embed(submission).await }
    });
    for _ in 0..200 {
        deliveries.recv_async().await.expect("a sender is here");
    }
    let poison = engine.submit(greedy(&engine, "poison \u{7}", 5)).await.expect("accepted");
    assert_eq!(read(poison, 1).await.end, Err(FailureKind::Quarantined));
    for (index, (reader, expected)) in reading.into_iter().zip(expected).enumerate() {
        assert_eq!(seen(reader.await.expect("no panic")), expected, "request {index}");
    }
    let embedded = embedding.await.expect("no panic").expect("embeds");
    assert_eq!(embedded.vectors, vectors);

    assert_eq!(metric(&engine, "weir_executor_restarts_total").await, 2.0);
    assert_eq!(metric(&engine, "weir_requests_quarantined_total").await, 1.0);
    assert!(metric(&engine, "weir_requests_resumed_total").await >= 16.0);
    assert_eq!(metric(&engine, "weir_requests_total{outcome=\"failed\"}").await, 1.0);
    assert_eq!(metric(&engine, "weir_requests_running{").await, 0.0);
    assert_eq!(metric(&engine, "weir_kv_blocks_used{").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_request_is_refused_and_no_other() {
    let engine = fake("step=1ms,token=0us,crash_on=7").await;
    let poison = || greedy(&engine, "poison \u{7}", 5);
    assert_eq!(complete(&engine, poison()).await.end, Err(FailureKind::Quarantined));
    let refused = |error: Option<SubmitError>| {
        matches!(error, Some(SubmitError::Invalid { code: Some("request_quarantined"), .. }))
    };
    assert!(refused(engine.submit(poison()).await.err()));
    let mut changed = poison();
    changed.sampling.seed = Some(4);
    changed.max_tokens = Some(9);
    assert!(refused(engine.submit(changed).await.err()), "the same ids kill as surely");

    let inputs = || rig::embedding(&engine, "b", ["fine".to_owned(), "not \u{7} fine".to_owned()]);
    assert!(refused(engine.embed(inputs()).await.err()));
    // An answer proves that the last death's restart has been counted.
    assert!(complete(&engine, greedy(&engine, "back", 2)).await.end.is_ok());
    assert_eq!(metric(&engine, "weir_executor_restarts_total").await, 4.0);
    assert!(refused(engine.embed(inputs()).await.err()));
    assert_eq!(metric(&engine, "weir_executor_restarts_total").await, 4.0, "refused at the door");
    assert_eq!(metric(&engine, "weir_requests_quarantined_total").await, 2.0);

    assert!(complete(&engine, greedy(&engine, "poison", 5)).await.end.is_ok());
    assert_eq!(engine.embed(rig::embedding(&engine, "b", ["fine".to_owned()])).await.expect("embeds").vectors.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_poison_end_with_it() {
    let engine = fake("step=1ms,token=0us,crash_on=7").await;
    let bystander = engine.submit(greedy(&engine, "bystander", 2_000)).await.expect("accepted");
    // Long enough to share blocks: all but one wait for the one that computes them, and have no row when it kills.
    let prompt = format!("{} \u{7}", "the same poison ".repeat(20));
    let mut copies = Vec::new();
    for _ in 0..12 {
        copies.push(engine.submit(greedy(&engine, &prompt, 5)).await.expect("accepted"));
    }
    for copy in copies {
        assert_eq!(read(copy, 1).await.end, Err(FailureKind::Quarantined));
    }
    assert!(read(bystander, 1).await.end.is_ok());
    assert_eq!(metric(&engine, "weir_executor_restarts_total").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_lives_through_too_many_deaths_ends_with_one_error() {
    let engine = fake("step=2ms,token=0us,crash_on=7").await;
    let (delivered, deliveries) = flume::unbounded();
    let stream = engine.submit(greedy(&engine, "unlucky", 30_000)).await.expect("accepted");
    let unlucky = tokio::spawn(read_telling(stream, 1, move || {
        // Nobody listens once enough has been seen.
        let _ = delivered.send(());
    }));
    let mut poisons = 0;
    while !unlucky.is_finished() {
        poisons += 1;
        assert!(poisons < 20, "it lives for ever");
        // It runs, so it is in flight when the next one comes. It has ended where no more of it comes.
        deliveries.drain();
        if deliveries.recv_async().await.is_err() {
            break;
        }
        let poison = engine.submit(greedy(&engine, &format!("poison {poisons} \u{7}"), 5)).await.expect("accepted");
        assert_eq!(read(poison, 1).await.end, Err(FailureKind::Quarantined));
    }
    assert_eq!(unlucky.await.expect("no panic").end, Err(FailureKind::ExecutorLost));
    assert!(complete(&engine, greedy(&engine, "and on", 3)).await.end.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_what_waits_for_its_executor_leaves_nothing() {
    let engine = fake("step=2ms,token=0us,crash_on=7").await;
    for round in 0..20 {
        let mut streams = Vec::new();
        for index in 0..8 {
            let mut request = greedy(&engine, &format!("round {round} stream {index}"), 20_000);
            request.n = 2;
            streams.push(engine.submit(request).await.expect("accepted"));
        }
        for stream in &mut streams {
            stream.next().await.expect("it began");
        }
        let poison = engine.submit(greedy(&engine, &format!("poison {round} \u{7}"), 5)).await.expect("accepted");
        // The clients go at some moment of the deaths and of the lane.
        tokio::task::yield_now().await;
        drop(streams);
        assert_eq!(read(poison, 1).await.end, Err(FailureKind::Quarantined));
    }
    complete(&engine, greedy(&engine, "x", 8)).await;
    assert_eq!(metric(&engine, "weir_requests_running{").await, 0.0);
    assert_eq!(metric(&engine, "weir_requests_waiting{").await, 0.0);
    assert_eq!(metric(&engine, "weir_kv_blocks_used{").await, 0.0);
}

/// Requests with and without what makes a row fail: the first fails, the others are as they were alone, and nothing of the failed
/// one is in the cache.
async fn fails_alone(engine: &Engine, bad: Vec<u32>, good: Vec<Vec<u32>>, len: u32) {
    let of = |ids: &Vec<u32>| {
        let mut request = Submission { prompt: Prompt::Tokens(ids.clone()), ..rig::text(engine, "b", "", len) };
        // They do not draw it themselves.
        request.sampling.logit_bias = vec![(BROKEN, -100.0)];
        request
    };
    let mut alone = Vec::new();
    for ids in &good {
        alone.push(seen(complete(engine, of(ids)).await));
    }
    let cached = metric(engine, "weir_kv_blocks_cached{").await;
    let mut streams = Vec::new();
    for ids in &good {
        streams.push(engine.submit(of(ids)).await.expect("accepted"));
    }
    let bad = || Submission { prompt: Prompt::Tokens(bad.clone()), ..rig::text(engine, "a", "", len) };
    assert_eq!(complete(engine, bad()).await.end, Err(FailureKind::BadOutput));
    for (stream, alone) in streams.into_iter().zip(alone) {
        assert_eq!(seen(read(stream, 1).await), alone);
    }
    assert_eq!(complete(engine, bad()).await.end, Err(FailureKind::BadOutput));
    // Planned after whatever of it was still in flight; too short for a block of its own.
    let short = Submission { max_tokens: Some(5), ..of(&vec![1, 2, 3]) };
    assert!(complete(engine, short).await.end.is_ok());
    assert_eq!(metric(engine, "weir_kv_blocks_cached{").await, cached, "nothing of tenant a is kept");
    assert_eq!(metric(engine, "weir_kv_blocks_used{").await, 0.0);
    assert_eq!(metric(engine, "weir_executor_restarts_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_a_number_ends_its_request_only() {
    let engine = fake("step=1ms,token=5us,nan_on=6").await;
    // Longer than a step holds, so that blocks are published before the row that fails.
    let mut bad = vec![97; 700];
    bad[40] = 6;
    let good = (0..6).map(|index| vec![98 + index; 40]).collect();
    fails_alone(&engine, bad, good, 60).await;
}

/// Ids of the tiny model.
const VOCABULARY: usize = 96;
/// The one whose embedding is not a number.
const BROKEN: u32 = 77;

/// Writes a seeded Llama of two layers; the embedding of [`BROKEN`] is not a number.
fn write_tiny(folder: &Path) {
    let (hidden, inner, layers, heads, kv_heads) = (64, 96, 2, 4, 2);
    let mut state = 11u64;
    let mut tensor = |shape: &[usize], middle: f32| {
        let spread = if shape.len() == 2 { (3.0 / shape[1] as f32).sqrt() } else { 0.2 };
        let values: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                middle + spread * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            })
            .collect();
        values
    };
    let mut tensors = HashMap::new();
    let mut put = |name: &str, shape: &[usize], values: Vec<f32>| {
        tensors.insert(name.to_owned(), Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor"));
    };
    let mut embedding = tensor(&[VOCABULARY, hidden], 0.0);
    embedding[BROKEN as usize * hidden..][..hidden].fill(f32::NAN);
    put("model.embed_tokens.weight", &[VOCABULARY, hidden], embedding);
    put("model.norm.weight", &[hidden], tensor(&[hidden], 1.0));
    put("lm_head.weight", &[VOCABULARY, hidden], tensor(&[VOCABULARY, hidden], 0.0));
    let kv = hidden * kv_heads / heads;
    for layer in 0..layers {
        for (stem, shape, middle) in [
            ("input_layernorm", vec![hidden], 1.0),
            ("post_attention_layernorm", vec![hidden], 1.0),
            ("self_attn.q_proj", vec![hidden, hidden], 0.0),
            ("self_attn.k_proj", vec![kv, hidden], 0.0),
            ("self_attn.v_proj", vec![kv, hidden], 0.0),
            ("self_attn.o_proj", vec![hidden, hidden], 0.0),
            ("mlp.gate_proj", vec![inner, hidden], 0.0),
            ("mlp.up_proj", vec![inner, hidden], 0.0),
            ("mlp.down_proj", vec![hidden, inner], 0.0),
        ] {
            put(&format!("model.layers.{layer}.{stem}.weight"), &shape, tensor(&shape, middle));
        }
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).expect("weights");
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": hidden / heads, "vocab_size": VOCABULARY, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false, "eos_token_id": 1,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("config");
    let vocabulary: HashMap<String, usize> =
        (0..VOCABULARY).map(|id| (char::from_u32(0x100 + id as u32).expect("a letter").to_string(), id)).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
                  "merges": []},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("tokenizer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_weight_that_is_not_a_number_ends_only_the_requests_that_read_it() {
    let folder = tempfile::tempdir().expect("a folder");
    write_tiny(folder.path());
    let source = ModelLocation::Path(folder.path().to_owned());
    let spec = ModelSpec { name: "m".into(), source, devices: Vec::new() };
    let engine = Engine::start(rig::config(vec![spec])).await.expect("starts");
    let mut bad: Vec<u32> = (0..700).map(|at| at % 70).collect();
    bad[40] = BROKEN;
    let good = (0..6u32).map(|index| (0..40).map(|at| (at * 3 + index * 11) % 70).collect()).collect();
    fails_alone(&engine, bad, good, 6).await;
}
