//! Made models: the same bytes from the same seed, and answers through a real engine.
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use weir_runtime::{
    DeviceConfig, EmbedInput, EmbedSubmission, Engine, EngineConfig, ExecutorMode, ModelLocation, ModelSpec, Prompt,
    SamplingParams, Submission, TenantSpec,
    make_model::{MakeModel, Pool, Shape, WeightDtype, make},
};

/// Name and digest of each file of a made model.
fn digests(wanted: &MakeModel, threads: usize) -> BTreeMap<String, blake3::Hash> {
    let folder = tempfile::tempdir().unwrap();
    make(wanted, folder.path(), &Pool::new(threads)).unwrap();
    let files = fs::read_dir(folder.path()).unwrap().map(Result::unwrap);
    files.map(|file| (file.file_name().into_string().unwrap(), blake3::hash(&fs::read(file.path()).unwrap()))).collect()
}

#[test]
fn a_seed_gives_the_same_bytes_on_any_number_of_threads() {
    for shape in [Shape::TinyLlama, Shape::TinyQwen2, Shape::TinyBert] {
        for dtype in [WeightDtype::BF16, WeightDtype::F16, WeightDtype::F32] {
            let wanted = MakeModel { shape, seed: 7, dtype: Some(dtype), layers: Some(3) };
            let alone = digests(&wanted, 1);
            assert!(alone.contains_key("model.safetensors") && alone.contains_key("config.json"));
            for threads in [2, 5] {
                assert_eq!(digests(&wanted, threads), alone, "{shape:?} {dtype:?} on {threads}");
            }
            let other = digests(&MakeModel { seed: 8, ..wanted }, 2);
            assert_ne!(other["model.safetensors"], alone["model.safetensors"]);
            assert_eq!(other["tokenizer.json"], alone["tokenizer.json"]);
        }
    }
}

async fn start(folder: &Path) -> Engine {
    let model = |name: &str| ModelSpec {
        name: name.into(),
        source: ModelLocation::Path(folder.join(name)),
        devices: Vec::new(),
    };
    Engine::start(EngineConfig {
        models: ["tiny-llama", "tiny-qwen2", "tiny-bert"].map(model).to_vec(),
        tenants: vec![TenantSpec::named("a")],
        devices: vec![DeviceConfig { threads: 1, kv_bytes: 1 << 22, ..DeviceConfig::cpu(0, ExecutorMode::Thread) }],
        inspector: ExecutorMode::Thread,
        queue_len_max: 64,
        canary_interval: Duration::from_secs(5),
        seed: 1,
        record: None,
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn made_models_load_and_answer() {
    let folder = tempfile::tempdir().unwrap();
    for shape in [Shape::TinyLlama, Shape::TinyQwen2, Shape::TinyBert] {
        let wanted = MakeModel { shape, seed: 1, dtype: Some(WeightDtype::BF16), layers: None };
        make(&wanted, &folder.path().join(shape.name()), &Pool::new(2)).unwrap();
    }
    let engine = start(folder.path()).await;
    let tenant = engine.tenant("a").unwrap();
    for model in ["tiny-llama", "tiny-qwen2"] {
        let message = weir_runtime::ChatMessage { role: "user".into(), content: "Name a river.".into(), name: None };
        let submission = Submission {
            tenant,
            model: model.into(),
            request_id: "test".into(),
            priority: 0,
            answer_id: None,
            prompt: Prompt::Chat(vec![message]),
            n: 1,
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            max_tokens: Some(12),
            min_tokens: 0,
            stop: Vec::new(),
            ignore_eos: true,
            logprobs: None,
            echo: false,
        };
        let answer = common::complete(&engine, submission).await;
        let usage = answer.end.unwrap();
        assert_eq!(usage.completion_tokens, 12, "{model}");
        assert!(usage.prompt_tokens > 13, "{model}: a letter is a token");
        assert!(!answer.texts[0].is_empty(), "{model}");
    }
    let inputs = ["a weir", "a river"].map(|text| EmbedInput::Text(text.into())).to_vec();
    let submission = EmbedSubmission {
        tenant,
        model: "tiny-bert".into(),
        request_id: "test".into(),
        priority: 0,
        inputs,
        truncate: false,
    };
    let found = engine.embed(submission).await.unwrap();
    assert_eq!(found.vectors.iter().map(Vec::len).collect::<Vec<_>>(), [256, 256]);
    assert_ne!(found.vectors[0], found.vectors[1]);
}
