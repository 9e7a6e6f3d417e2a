use std::fs;

use serde_json::json;
use weir_kernels::Pool;

use super::*;
use crate::make_model::{MakeModel, Shape, make};

/// What a probe says, with `MODEL` and `DIR` in its words replaced by a tiny model and the folder around it.
fn probe(shape: Shape, ids: &Value, words: &str) -> (tempfile::TempDir, Result<Vec<Value>, ProbeError>) {
    let folder = tempfile::tempdir().expect("folder");
    let model = folder.path().join("model");
    let pool = Pool::new(2);
    make(&MakeModel { shape, seed: 3, dtype: None, layers: None }, &model, &pool).expect("made");
    fs::write(folder.path().join("ids"), ids.to_string()).expect("write");
    let words: Vec<String> = words
        .split_whitespace()
        .map(|word| word.replace("MODEL", &model.to_string_lossy()).replace("DIR", &folder.path().to_string_lossy()))
        .collect();
    let mut out = Vec::new();
    let done = run(&words, &Device::cpu(pool), &mut out);
    let lines = String::from_utf8(out).expect("text");
    let lines = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    (folder, done.map(|()| lines))
}

/// The values of a file of [`tensors::write`], in order.
fn values(path: &Path) -> Vec<f32> {
    let bytes = fs::read(path).expect("read");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    bytes[8 + header..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four"))).collect()
}

#[test]
fn decode_and_prefill_say_the_same_to_the_bit_on_the_cpu() {
    let ids = json!([[1, 2, 3, 4, 5, 6, 7], (10..80).collect::<Vec<u32>>(), [9]]);
    let found = ["decode", "prefill"].map(|path| {
        let words = format!("logits --model MODEL --ids DIR/ids --out DIR/out --path {path} --step-tokens 96");
        let (folder, lines) = probe(Shape::TinyLlama, &ids, &words);
        assert_eq!(lines.expect("lines")[0]["shapes"], json!([[7, 512], [70, 512], [1, 512]]));
        values(&folder.path().join("out"))
    });
    assert_eq!(found[0].len(), 78 * 512);
    assert!(found[0].iter().all(|logit| logit.is_finite()) && found[0].iter().any(|logit| logit.abs() > 0.1));
    assert!(found[0].iter().zip(&found[1]).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn greedy_ids_are_the_likeliest_of_the_logits() {
    let (_folder, lines) =
        probe(Shape::TinyQwen2, &json!([[1, 2, 3], [7]]), "greedy --model MODEL --ids DIR/ids --new 4");
    let drawn = lines.expect("lines")[0]["ids"].clone();
    let drawn: Vec<Vec<u32>> = serde_json::from_value(drawn).expect("ids");
    assert_eq!(drawn.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
    assert!(drawn[0].windows(2).any(|pair| pair[0] != pair[1]), "a made model that stutters: {drawn:?}");
    // The same ids, given: each must be the likeliest behind those before it.
    let forced = [&[1, 2, 3][..], &drawn[0]].concat();
    let (folder, lines) = probe(Shape::TinyQwen2, &json!([forced]), "logits --model MODEL --ids DIR/ids --out DIR/out");
    lines.expect("lines");
    let logits = values(&folder.path().join("out"));
    for (step, id) in drawn[0].iter().enumerate() {
        let row = &logits[(2 + step) * 544..(3 + step) * 544];
        assert!(row.iter().all(|logit| *logit <= row[*id as usize]), "step {step}");
    }
}

#[test]
fn encoders_give_a_vector_a_list() {
    let ids = json!([[101, 5, 102], [101, 102], (100..300).collect::<Vec<u32>>()]);
    let (folder, lines) = probe(Shape::TinyBert, &ids, "logits --model MODEL --ids DIR/ids --out DIR/out");
    assert_eq!(lines.expect("lines")[0]["shapes"], json!([[3, 256]]));
    assert!(values(&folder.path().join("out")).iter().all(|value| value.is_finite()));
}

#[test]
fn steps_are_of_the_shape_that_was_asked_for() {
    let words = "steps --model MODEL --batch 3 --context 40 --new 5 --prefill 32";
    let (_folder, lines) = probe(Shape::TinyLlama, &json!([[1]]), words);
    let lines = lines.expect("lines");
    let kinds: Vec<&str> = lines.iter().filter_map(|line| line["kind"].as_str()).collect();
    assert_eq!(kinds, ["load", "prefill", "decode"]);
    assert_eq!((&lines[1]["step_tokens"], &lines[2]["step_tokens"]), (&json!(32), &json!(3)));
    assert_eq!((&lines[2]["batch"], &lines[2]["context"], &lines[2]["steps"]), (&json!(3), &json!(40), &json!(5)));
    assert!(lines[2]["launches"].as_u64() > Some(10), "{lines:?}");
    let (_folder, lines) = probe(Shape::TinyBert, &json!([[1]]), "steps --model MODEL --batch 2 --context 9 --new 2");
    assert_eq!(lines.expect("lines")[1]["step_tokens"], json!(18));
}

#[test]
fn groups_of_rows_are_charged_and_replayed() {
    let groups = |shape: Shape, groups: &[&str], last: &str| {
        let folder = tempfile::tempdir().expect("folder");
        let (model, raw) = (folder.path().join("model"), folder.path().join("raw"));
        let pool = Pool::new(1);
        make(&MakeModel { shape, seed: 3, dtype: None, layers: None }, &model, &pool).expect("made");
        let words = ["charges", "--steps", "6", "--repeats", "1", "--model"].map(String::from).into_iter();
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let words: Vec<String> = words.chain([path(&model), "--raw".into(), path(&raw)]).collect();
        let mut out = Vec::new();
        run(&words, &Device::cpu(pool), &mut out).expect("figures");
        let out = String::from_utf8(out).expect("text");
        for group in groups {
            assert!(out.contains(&format!("figure=4.{group}_error_median value=")), "{out}");
        }
        assert!(out.contains(&format!("figure=4.{last}_error_median value=")) && out.contains("replayed=6"), "{out}");
        let mut replays = 0;
        for line in fs::read_to_string(&raw).expect("raw").lines() {
            let step: Value = serde_json::from_str(line).expect("JSON");
            let charges = step["rows"].as_array().expect("rows").iter().map(|row| row[4].as_u64().expect("a charge"));
            assert_eq!(charges.sum::<u64>(), step["time"].as_u64().expect("a time"), "{line}");
            let times = step["replays"].as_array().expect("replays").len();
            assert!(times == 0 || times == 1 + step["groups"].as_array().expect("groups").len(), "{line}");
            replays += usize::from(times > 0);
        }
        assert_eq!(replays, 6);
    };
    groups(Shape::TinyLlama, &["short_decode", "prefill"], "decoder");
    groups(Shape::TinyBert, &["long_embedding", "short_embedding"], "encoder");
}

#[test]
fn wrong_words_are_refused_and_no_gpu_is_said() {
    for words in
        ["fly", "greedy --model MODEL --ids DIR/ids", "steps --batch 0 --model MODEL --context 1 --new 1", "device 5"]
    {
        let (_folder, done) = probe(Shape::TinyLlama, &json!([[1]]), words);
        assert!(matches!(done, Err(ProbeError::Usage(_))), "{words}: {done:?}");
    }
    let (_folder, lines) = probe(Shape::TinyLlama, &json!([[1]]), "kernels");
    assert_eq!(lines.expect("lines")[0]["kind"], "unavailable");
    let (_folder, done) = probe(Shape::TinyLlama, &json!([[512]]), "greedy --model MODEL --ids DIR/ids --new 1");
    assert!(matches!(done, Err(ProbeError::Model(_))), "{done:?}");
}
