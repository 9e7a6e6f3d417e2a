//! A request's text does not depend on its company: byte for byte, and to the bit of every log-probability. On SmolLM2,
//! when `WEIR_TEST_MODELS` names the folder that holds it; if it does and the model is not there, these fail.
//!
//! What company changes: which rows share a step, where a prompt is cut into chunks, which blocks its keys and values are
//! in, what was found in the prefix cache, whether it was preempted and computed again, and how many threads compute.

mod rig;

/// Small in every run of the tests; with `WEIR_PROOFS=full` at the size of its figure.
mod proofs {
    use std::{path::PathBuf, time::Duration};

    use serde_json::Value;
    use weir_runtime::{
        DeviceConfig, Engine, EngineConfig, FinishReason, ModelLocation, ModelSpec, Prompt, SamplingParams, Submission,
        TenantSpec, TokenLogprob,
    };

    use crate::rig::{self, complete, metric, read_telling};

    /// Bytes of 32 positions of SmolLM2-135M: [layers 30, 2, heads 3, positions 32, features 64] f16.
    const BLOCK_BYTES: u64 = 30 * 2 * 3 * 32 * 64 * 2;
    /// Ids from here to the end of the vocabulary are text.
    const TEXT_IDS: std::ops::Range<u64> = 1_000..49_000;

    /// SplitMix64.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ (z >> 31)) % bound
        }

        fn one_in(&mut self, n: u64) -> bool {
            self.below(n) == 0
        }
    }

    fn full() -> bool {
        std::env::var("WEIR_PROOFS").is_ok_and(|size| size == "full")
    }

    async fn start(model: PathBuf, change: impl FnOnce(&mut DeviceConfig)) -> Engine {
        let mut cpu = DeviceConfig { kv_bytes: 1024 * BLOCK_BYTES, ..rig::cpu(0) };
        change(&mut cpu);
        // One for each request, so that alone it finds nothing in the prefix cache, and one for all of them.
        let tenants = (0..=64).map(|tenant| TenantSpec::named(&format!("t{tenant}"))).collect();
        let spec = ModelSpec { name: "smollm2".into(), source: ModelLocation::Path(model), devices: Vec::new() };
        let config = EngineConfig { tenants, devices: vec![cpu], ..rig::config(vec![spec]) };
        Engine::start(config).await.expect("starts")
    }

    /// Requests of all sorts: real chats and random ids, short and long, greedy and seeded, with and without penalties, stop
    /// strings, several choices and log-probabilities.
    fn requests(engine: &Engine, count: usize) -> Vec<Submission> {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/smollm2-ids.json");
        let fixture: Value = serde_json::from_str(&std::fs::read_to_string(fixture).expect("fixture")).expect("JSON");
        let chats: Vec<Vec<u32>> = fixture["chats"]
            .as_array()
            .expect("chats")
            .iter()
            .map(|chat| serde_json::from_value(chat["ids"].clone()).expect("ids"))
            .collect();
        let mut random = Random(3);
        (0..count)
            .map(|index| {
                // The first grow by two blocks while they run; where memory is short, that preempts.
                let grows = index < count.div_ceil(4);
                let mut prompt = match grows || random.one_in(3) {
                    true => Vec::new(),
                    false => chats[index % chats.len()].clone(),
                };
                let more =
                    if prompt.is_empty() { 1 + random.below(if grows { 30 } else { 120 }) } else { random.below(12) };
                prompt.extend((0..more).map(|_| (TEXT_IDS.start + random.below(TEXT_IDS.end - TEXT_IDS.start)) as u32));
                let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
                let mut sampling = match index % 2 {
                    0 => greedy,
                    _ => SamplingParams {
                        temperature: 0.6 + random.below(7) as f32 / 10.0,
                        top_p: if random.one_in(2) { 0.9 } else { 1.0 },
                        top_k: if random.one_in(3) { 40 } else { 0 },
                        seed: Some(random.below(1 << 40)),
                        ..SamplingParams::default()
                    },
                };
                if random.one_in(4) {
                    sampling.repetition_penalty = 1.3;
                    sampling.frequency_penalty = 0.2;
                }
                Submission {
                    prompt: Prompt::Tokens(prompt),
                    n: if random.one_in(8) { 2 } else { 1 },
                    sampling,
                    max_tokens: Some(if grows { 68 } else { 2 + random.below(if full() { 64 } else { 24 }) as u32 }),
                    stop: if !grows && random.one_in(4) { vec![" the".into()] } else { Vec::new() },
                    ignore_eos: grows || !random.one_in(3),
                    logprobs: random.one_in(2).then_some(3),
                    ..rig::text(engine, &format!("t{index}"), "", 0)
                }
            })
            .collect()
    }

    /// All that a client sees of a request but its counts.
    type Seen = (Vec<String>, Vec<Option<FinishReason>>, Vec<Vec<TokenLogprob>>);

    /// Each request alone on the device, with nothing in the cache.
    async fn alone(engine: &Engine, requests: &[Submission]) -> Vec<Seen> {
        let mut seen = Vec::new();
        for request in requests {
            let answer = complete(engine, request.clone()).await;
            // A second choice finds the first's prompt.
            let cached = answer.end.expect("done").cached_tokens;
            assert!(cached == 0 || request.n > 1, "nobody shares a cache with this request");
            seen.push((answer.texts, answer.reasons, answer.logprobs));
        }
        seen
    }

    /// All requests, each arriving when those before it have had up to `gap` events more. Also says how many prompt tokens
    /// were found in the cache.
    async fn together(engine: &Engine, requests: &[Submission], gap: u64) -> (Vec<Seen>, u32) {
        let mut random = Random(gap);
        let (tick, ticks) = flume::unbounded();
        let (mut reading, mut open) = (Vec::new(), 0);
        for request in requests {
            let n = request.n as usize;
            let stream = engine.submit(request.clone()).await.expect("accepted");
            let tick = tick.clone();
            reading.push(tokio::spawn(async move {
                let tell = |ended: bool| tick.send(ended).expect("the other end waits for this task");
                let answer = read_telling(stream, n, || tell(false)).await;
                tell(true);
                answer
            }));
            open += 1;
            for _ in 0..random.below(gap + 1) {
                if open == 0 {
                    break;
                }
                open -= usize::from(ticks.recv_async().await.expect("a sender is here"));
            }
        }
        let (mut seen, mut cached) = (Vec::new(), 0);
        for reader in reading {
            let answer = reader.await.expect("no panic");
            cached += answer.end.expect("done").cached_tokens;
            seen.push((answer.texts, answer.reasons, answer.logprobs));
        }
        (seen, cached)
    }

    fn differing(got: &[Seen], expected: &[Seen]) -> usize {
        assert_eq!(got.len(), expected.len());
        got.iter().zip(expected).filter(|(got, expected)| got != expected).count()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn text_and_probabilities_are_the_same_in_any_company() {
        let Some(models) = std::env::var_os("WEIR_TEST_MODELS") else { return };
        let model = PathBuf::from(models).join("smollm2-135m-instruct");
        assert!(model.is_dir(), "WEIR_TEST_MODELS is set, so {} must be there", model.display());

        let engine = start(model.clone(), |_| {}).await;
        let requests = requests(&engine, if full() { 64 } else { 9 });
        let expected = alone(&engine, &requests).await;
        assert!(expected.iter().any(|(texts, ..)| texts[0].len() > 20), "the texts are texts");
        let figure = |name: &str, got: &[Seen], more: &str| {
            let differing = differing(got, &expected);
            println!("figure=1.differing_{name} value={differing} n={}{more}", got.len());
            assert_eq!(differing, 0, "{name}");
        };

        let mut of_one_tenant = requests.clone();
        of_one_tenant.iter_mut().for_each(|request| request.tenant = engine.tenant("t64").expect("tenant"));
        let (cold, _) = together(&engine, &of_one_tenant, 20).await;
        figure("in_company", &cold, "");
        let (warm, cached) = together(&engine, &of_one_tenant, 30).await;
        assert!(cached > 0, "the second time finds the first's blocks");
        figure("with_warm_prefix_cache", &warm, &format!(" cached_tokens={cached}"));
        assert_eq!(metric(&engine, "weir_preemptions_total").await, 0.0, "that was a case of its own");
        engine.shutdown(Duration::ZERO).await;

        // Room for a few requests of many tenants that all want to run.
        let blocks = if full() { 14 } else { 7 };
        let engine = start(model.clone(), |cpu| cpu.kv_bytes = blocks * BLOCK_BYTES).await;
        let (preempted, _) = together(&engine, &requests, 2).await;
        let preemptions = metric(&engine, "weir_preemptions_total").await;
        assert!(preemptions > 0.0, "memory was short");
        figure("with_preemption", &preempted, &format!(" preemptions={preemptions}"));
        engine.shutdown(Duration::ZERO).await;

        let engine = start(model.clone(), |cpu| cpu.threads = 1).await;
        let (one_thread, _) = together(&engine, &of_one_tenant, 10).await;
        figure("on_one_thread", &one_thread, "");
        engine.shutdown(Duration::ZERO).await;

        // Prompts in many chunks, few rows to a step.
        let engine = start(model, |cpu| (cpu.step_tokens_max, cpu.rows_max) = (24, 7)).await;
        let (chunked, _) = together(&engine, &of_one_tenant, 15).await;
        figure("in_small_steps", &chunked, "");
        engine.shutdown(Duration::ZERO).await;
    }
}
