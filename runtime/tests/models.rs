//! Models that come and are refused while others are served: a real engine, real files, the executor in a thread.

mod rig;

use std::{fs, path::Path};

use serde_json::{Value, json};
use weir_runtime::{AddModelError, Engine, ModelFault, Submission, SubmitError, TokenStream};

const FAKE: &str = "old=fake:step=1ms,token=1us";

async fn start() -> Engine {
    rig::start(&[FAKE]).await
}

fn ask(engine: &Engine, model: &str, tokens: u32) -> Submission {
    Submission { model: model.into(), ..rig::text(engine, "a", "ab", tokens) }
}

async fn read(stream: TokenStream) -> String {
    rig::read(stream, 1).await.texts.remove(0)
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "tie_word_embeddings": true,
    })
}

/// A decoder of one layer whose weights follow a fixed pattern, and a tokenizer of eight letters.
fn write_model(folder: &Path, config: &Value) {
    fs::create_dir_all(folder).expect("mkdir");
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors: Vec<(String, Vec<u64>)> = vec![
        ("model.embed_tokens.weight".into(), vec![8, 32]),
        ("model.norm.weight".into(), vec![32]),
        (layer("input_layernorm"), vec![32]),
        (layer("post_attention_layernorm"), vec![32]),
        (layer("self_attn.q_proj"), vec![32, 32]),
        (layer("self_attn.k_proj"), vec![16, 32]),
        (layer("self_attn.v_proj"), vec![16, 32]),
        (layer("self_attn.o_proj"), vec![32, 32]),
        (layer("mlp.gate_proj"), vec![32, 32]),
        (layer("mlp.up_proj"), vec![32, 32]),
        (layer("mlp.down_proj"), vec![32, 32]),
    ];
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let begin = data.len();
        for i in 0..shape.iter().product::<u64>() {
            data.extend((((i * 37 + begin as u64) % 19) as f32 / 19.0 - 0.5).to_le_bytes());
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let header = Value::Object(header).to_string().into_bytes();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    fs::write(folder.join("model.safetensors"), file).expect("write");
    fs::write(folder.join("config.json"), config.to_string()).expect("write");
    let vocab: serde_json::Map<String, Value> =
        "abcdefgh".chars().zip(0u32..).map(|(letter, id)| (letter.to_string(), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": null, "model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": null},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("write");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_joins_beside_a_running_stream_and_answers() {
    let folder = tempfile::tempdir().expect("folder");
    write_model(&folder.path().join("good"), &config());
    let engine = start().await;
    let undisturbed = read(engine.submit(ask(&engine, "old", 400)).await.expect("accepted")).await;
    let stream = engine.submit(ask(&engine, "old", 400)).await.expect("accepted");
    let card = engine.add_model("new".into(), folder.path().join("good")).await.expect("added");
    assert_eq!((card.name.as_str(), card.vocab_size, card.generates), ("new", 8, true));
    let text = read(engine.submit(ask(&engine, "new", 9)).await.expect("accepted")).await;
    assert_eq!(text.len(), 9, "{text:?}");
    assert_eq!(read(stream).await, undisturbed);
    assert_eq!(engine.models().iter().map(|m| m.name.clone()).collect::<Vec<_>>(), ["old", "new"]);
    assert!(engine.metrics_text().await.contains("model=\"new\""));
    let again = engine.add_model("new".into(), folder.path().join("good")).await;
    assert_eq!(again, Err(AddModelError::Taken("new".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_model_leaves_its_name_free() {
    let folder = tempfile::tempdir().expect("folder");
    let (good, bad) = (folder.path().join("good"), folder.path().join("bad"));
    write_model(&good, &config());
    let engine = start().await;
    type Change = fn(&mut Value);
    let cases: [(&str, ModelFault, Change); 4] = [
        ("has shape", ModelFault::Invalid, |c| c["intermediate_size"] = json!(64)),
        ("outside", ModelFault::Unsupported, |c| c["num_hidden_layers"] = json!(1_000_000_000u64)),
        ("vocab", ModelFault::Unsupported, |c| c["vocab_size"] = json!(1u64 << 31)),
        ("not built", ModelFault::Unsupported, |c| c["architectures"] = json!(["Other"])),
    ];
    for (why, fault, change) in cases {
        let mut config = config();
        change(&mut config);
        write_model(&bad, &config);
        match engine.add_model("new".into(), bad.clone()).await {
            Err(AddModelError::Refused(refusal)) => {
                assert!(refusal.message.contains(why), "{why}: {refusal}");
                assert_eq!(refusal.fault, fault, "{refusal}");
            }
            other => panic!("{why}: {other:?}"),
        }
        assert!(engine.model("new").is_none());
        let refused = engine.submit(ask(&engine, "new", 1)).await.err();
        assert_eq!(refused, Some(SubmitError::UnknownModel { model: "new".into() }));
    }
    assert!(matches!(engine.add_model("a b".into(), good.clone()).await, Err(AddModelError::Name(_))));
    // What could not be loaded is no reason not to load what can.
    engine.add_model("new".into(), good).await.expect("added");
    assert_eq!(read(engine.submit(ask(&engine, "new", 5)).await.expect("accepted")).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_leaves_a_whole_model_or_none() {
    let folder = tempfile::tempdir().expect("folder");
    write_model(folder.path(), &config());
    let engine = start().await;
    // The first poll sends it on its way; nobody waits for the answer.
    let mut adding = Box::pin(engine.add_model("new".into(), folder.path().to_owned()));
    let first = std::future::poll_fn(|context| std::task::Poll::Ready(adding.as_mut().poll(context))).await;
    assert!(first.is_pending());
    drop(adding);
    while engine.model("new").is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(read(engine.submit(ask(&engine, "new", 3)).await.expect("accepted")).await.len(), 3);
}
