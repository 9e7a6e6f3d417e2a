//! Made models: the same bytes from the same seed, and answers through a real engine.
#![allow(clippy::unwrap_used)]

mod rig;

use std::{collections::BTreeMap, fs, path::Path};

use weir_runtime::{
    EmbedSubmission, Engine, ModelLocation, ModelSpec, Prompt, Submission,
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
    Engine::start(rig::config(["tiny-llama", "tiny-qwen2", "tiny-bert"].map(model).to_vec())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn made_models_load_and_answer() {
    let folder = tempfile::tempdir().unwrap();
    for shape in [Shape::TinyLlama, Shape::TinyQwen2, Shape::TinyBert] {
        let wanted = MakeModel { shape, seed: 1, dtype: Some(WeightDtype::BF16), layers: None };
        make(&wanted, &folder.path().join(shape.name()), &Pool::new(2)).unwrap();
    }
    let engine = start(folder.path()).await;
    for model in ["tiny-llama", "tiny-qwen2"] {
        let message = weir_runtime::ChatMessage { role: "user".into(), content: "Name a river.".into(), name: None };
        let asked = rig::text(&engine, "a", "", 12);
        let submission = Submission { model: model.into(), prompt: Prompt::Chat(vec![message]), ..asked };
        let answer = rig::complete(&engine, submission).await;
        let usage = answer.end.unwrap();
        assert_eq!(usage.completion_tokens, 12, "{model}");
        assert!(usage.prompt_tokens > 13, "{model}: a letter is a token");
        assert!(!answer.texts[0].is_empty(), "{model}");
    }
    let asked = rig::embedding(&engine, "a", ["a weir", "a river"]);
    let submission = EmbedSubmission { model: "tiny-bert".into(), ..asked };
    let found = engine.embed(submission).await.unwrap();
    assert_eq!(found.vectors.iter().map(Vec::len).collect::<Vec<_>>(), [256, 256]);
    assert_ne!(found.vectors[0], found.vectors[1]);
}
