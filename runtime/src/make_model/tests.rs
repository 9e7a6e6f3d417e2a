use std::collections::HashSet;

use weir_models::{ModelKind, ModelSource};

use super::*;

fn wanted(shape: Shape) -> MakeModel {
    MakeModel { shape, seed: 1, dtype: None, layers: None }
}

/// A model of the right shape whose weights are a hole in the file.
fn outline(shape: Shape) -> (tempfile::TempDir, MadeModel, ModelSource) {
    let folder = tempfile::tempdir().expect("folder");
    let made = write(&wanted(shape), folder.path(), &Pool::new(1), Fill::Holes).expect("made");
    let source = ModelSource::open(folder.path()).expect("it opens");
    (folder, made, source)
}

#[test]
fn real_shapes_have_the_parameters_of_the_real_ones() {
    for (shape, parameters, files) in
        [(Shape::Llama31_8B, 8_030_261_248, 4), (Shape::Qwen25_05B, 494_032_768, 1), (Shape::BertBase, 109_482_240, 1)]
    {
        let (_folder, made, source) = outline(shape);
        assert_eq!((made.parameters, made.files), (parameters, files), "{shape:?}");
        assert_eq!(source.info().parameters, parameters, "{shape:?}");
    }
}

#[test]
fn llama_and_qwen_are_described_as_published() {
    let (_folder, _, llama) = outline(Shape::Llama31_8B);
    let info = llama.info();
    assert_eq!((info.layers, info.hidden, info.heads, info.kv_heads, info.head_dim), (32, 4096, 32, 8, 128));
    assert_eq!((info.bos, &info.eos[..], info.add_bos), (Some(128_000), &[128_001, 128_008, 128_009][..], true));
    assert_eq!((info.context_len, &info.quantization[..]), (131_072, "BF16"));
    let (_folder, _, qwen) = outline(Shape::Qwen25_05B);
    let info = qwen.info();
    assert_eq!((info.layers, info.hidden, info.heads, info.kv_heads, info.head_dim), (24, 896, 14, 2, 64));
    assert_eq!((&info.eos[..], info.add_bos), (&[151_643, 151_645][..], false));
    assert_eq!(info.vocab_size, 151_936);
}

#[test]
fn tokenizers_fill_their_vocabularies_and_spell_texts() {
    for shape in Shape::ALL {
        let (_folder, _, source) = outline(shape);
        let tokenizer = source.tokenizer().expect("it reads");
        let words = match shape {
            Shape::Qwen25_05B => 151_665,
            Shape::TinyQwen2 => 512,
            other => other.vocab() as u32,
        };
        assert_eq!(tokenizer.vocab_size(), words, "{shape:?}");
        if source.info().kind == ModelKind::Generate {
            let spelled: HashSet<&[u8]> = (0..words).map(|id| tokenizer.token_bytes(id)).collect();
            assert_eq!(spelled.len(), words as usize, "{shape:?}: each id has a text of its own");
        }
        let ids = tokenizer.encode_text("a weir, 1 2!", false).expect("ids");
        let text: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).copied().collect();
        let text = String::from_utf8(text).expect("text").replace("##", "").replace(' ', "");
        assert_eq!(text, "aweir,12!", "{shape:?}");
    }
}

#[test]
fn control_tokens_have_their_published_ids() {
    for (shape, token, id) in [
        (Shape::Llama31_8B, "<|eot_id|>", 128_009),
        (Shape::Llama31_8B, "<|reserved_special_token_247|>", 128_255),
        (Shape::Qwen25_05B, "<|im_start|>", 151_644),
        (Shape::Qwen25_05B, "<|file_sep|>", 151_664),
        (Shape::BertBase, "[MASK]", 103),
    ] {
        let (_folder, _, source) = outline(shape);
        assert_eq!(source.tokenizer().expect("it reads").token_to_id(token), Some(id), "{token}");
    }
}

#[test]
fn what_is_there_stays_there() {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(folder.path().join("mine"), "").expect("write");
    let refused = make(&wanted(Shape::TinyLlama), folder.path(), &Pool::new(1));
    assert!(matches!(refused, Err(MakeModelError::NotEmpty(_))), "{refused:?}");
    let none = MakeModel { layers: Some(0), ..wanted(Shape::TinyLlama) };
    assert!(matches!(make(&none, &folder.path().join("new"), &Pool::new(1)), Err(MakeModelError::Layers(0))));
    assert!("tiny-gpt".parse::<Shape>().is_err() && "f8".parse::<WeightDtype>().is_err());
}

#[test]
fn what_has_no_text_is_never_the_likeliest() {
    for (shape, name, rows) in
        [(Shape::TinyLlama, "lm_head.weight", 501), (Shape::TinyQwen2, "model.embed_tokens.weight", 490)]
    {
        let tensors = shape.tensors(None);
        let output = tensors.iter().find(|tensor| tensor.name == name).expect("an output matrix");
        assert_eq!(output.drawn, rows * 256, "{shape:?}");
        let others = tensors.iter().filter(|tensor| tensor.name != name);
        assert!(others.into_iter().all(|tensor| tensor.drawn == tensor.elements()));
    }
}
