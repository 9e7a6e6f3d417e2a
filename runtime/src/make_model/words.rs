//! Tokenizers for made models: real control tokens at their real ids, everything else made up.

use serde_json::{Map, Value, json};

use super::Shape;
use super::shape::Family;

/// A control token: its text, and whether it is special to libraries that leave those out of texts.
type Control = (String, bool);

/// `<|eot_id|>` is the tenth.
const LLAMA_CONTROLS: [&str; 11] = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
];
/// Of Llama 3.1, those above included.
const LLAMA_CONTROLS_LEN: u64 = 256;

const QWEN_CONTROLS: [(&str, bool); 22] = [
    ("<|endoftext|>", true),
    ("<|im_start|>", true),
    ("<|im_end|>", true),
    ("<|object_ref_start|>", true),
    ("<|object_ref_end|>", true),
    ("<|box_start|>", true),
    ("<|box_end|>", true),
    ("<|quad_start|>", true),
    ("<|quad_end|>", true),
    ("<|vision_start|>", true),
    ("<|vision_end|>", true),
    ("<|vision_pad|>", true),
    ("<|image_pad|>", true),
    ("<|video_pad|>", true),
    ("<tool_call>", false),
    ("</tool_call>", false),
    ("<|fim_prefix|>", false),
    ("<|fim_middle|>", false),
    ("<|fim_suffix|>", false),
    ("<|fim_pad|>", false),
    ("<|repo_name|>", false),
    ("<|file_sep|>", false),
];

/// Ids of BERT's control tokens.
const BERT_CONTROLS: [(&str, u64); 5] = [("[PAD]", 0), ("[UNK]", 100), ("[CLS]", 101), ("[SEP]", 102), ("[MASK]", 103)];

const LLAMA_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n\
     {{ message['content'] | trim }}<|eot_id|>{% endfor %}\
     {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";
const QWEN_TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
     {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Llama 3's and Qwen2's own rules for words.
const LLAMA_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Shape {
    /// The id of a control token; 0 if there is none of that name, which a test excludes.
    pub(super) fn id(self, control: &str) -> u64 {
        let place = self.controls().iter().position(|(text, _)| text == control);
        place.map_or(0, |place| self.words() + place as u64)
    }

    /// Ids of words, which come before the control tokens.
    pub(super) fn words(self) -> u64 {
        match self {
            Shape::Llama31_8B => 128_000,
            Shape::Qwen25_05B => 151_643,
            Shape::TinyLlama | Shape::TinyQwen2 => 512 - self.controls().len() as u64,
            Shape::BertBase | Shape::TinyBert => self.vocab(),
        }
    }

    fn controls(self) -> Vec<Control> {
        match self.family() {
            Family::Llama => {
                let reserved = 3..if self == Shape::Llama31_8B { LLAMA_CONTROLS_LEN - 8 } else { 3 };
                let reserved = reserved.map(|n| format!("<|reserved_special_token_{n}|>"));
                LLAMA_CONTROLS.iter().map(|text| (*text).to_owned()).chain(reserved).map(|text| (text, true)).collect()
            }
            Family::Qwen2 => QWEN_CONTROLS.iter().map(|(text, special)| ((*text).to_owned(), *special)).collect(),
            Family::Bert => Vec::new(),
        }
    }
}

/// The tokenizer's files, by name.
pub(super) fn files(shape: Shape) -> Vec<(&'static str, Value)> {
    let (tokenizer, config) = match shape.family() {
        Family::Llama => {
            let begin = "<|begin_of_text|>";
            let around = json!({
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    {"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": begin, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {begin: {"id": begin, "ids": [shape.id(begin)], "tokens": [begin]}},
            });
            let config = json!({"bos_token": begin, "eos_token": "<|eot_id|>", "chat_template": LLAMA_TEMPLATE});
            (byte_level(shape, LLAMA_WORDS, around), config)
        }
        Family::Qwen2 => {
            let byte_level_offsets =
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
            let config = json!({
                "add_bos_token": false, "bos_token": null, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                "chat_template": QWEN_TEMPLATE,
            });
            (byte_level(shape, QWEN_WORDS, byte_level_offsets), config)
        }
        Family::Bert => {
            let config = json!({
                "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
                "mask_token": "[MASK]", "do_lower_case": true, "model_max_length": 512,
            });
            (word_piece(shape), config)
        }
    };
    let mut config = config;
    // The class that reads `tokenizer.json` and nothing else.
    config["tokenizer_class"] = "PreTrainedTokenizerFast".into();
    config["clean_up_tokenization_spaces"] = false.into();
    vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", config)]
}

/// Byte-level BPE without merges: a text is its bytes. The other words of the vocabulary are only ever drawn.
fn byte_level(shape: Shape, rule: &str, post_processor: Value) -> Value {
    let mut vocabulary = Map::new();
    for (symbol, id) in byte_symbols().into_iter().zip(0u64..) {
        vocabulary.insert(symbol.to_string(), id.into());
    }
    for id in vocabulary.len() as u64..shape.words() {
        // `Ġ` is how a space is spelled.
        vocabulary.insert(format!("Ġ{}", word(id)), id.into());
    }
    let added: Vec<Value> = shape
        .controls()
        .into_iter()
        .zip(shape.words()..)
        .map(|((content, special), id)| added_token(id, &content, special))
        .collect();
    let step = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": false}, step,
        ]},
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": [],
        },
    })
}

/// WordPiece that knows letters, digits and signs, alone and inside a word.
fn word_piece(shape: Shape) -> Value {
    let mut tokens: Vec<Option<String>> = vec![None; shape.vocab() as usize];
    for (text, id) in BERT_CONTROLS {
        tokens[id as usize] = Some(text.to_owned());
    }
    let signs = (0x21u8..0x7f).map(char::from).filter(|sign| !sign.is_ascii_uppercase());
    let mut spelled = signs.flat_map(|sign| [sign.to_string(), format!("##{sign}")]);
    for (token, id) in tokens.iter_mut().zip(0u64..) {
        if token.is_none() {
            // As in the real one, what lies before the control tokens is unused.
            *token = Some(match id {
                0..=103 => format!("[unused{id}]"),
                id => spelled.next().unwrap_or_else(|| word(id)),
            });
        }
    }
    let vocabulary: Map<String, Value> =
        tokens.into_iter().flatten().zip(0u64..).map(|(token, id)| (token, id.into())).collect();
    let added: Vec<Value> = BERT_CONTROLS.iter().map(|(text, id)| added_token(*id, text, true)).collect();
    let special = |name: &str, type_id: u32| json!({"SpecialToken": {"id": name, "type_id": type_id}});
    let part = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
    let declared = |name: &str, id: u32| json!({"id": name, "ids": [id], "tokens": [name]});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]", 0), part("A", 0), special("[SEP]", 0)],
            "pair": [special("[CLS]", 0), part("A", 0), special("[SEP]", 0), part("B", 1), special("[SEP]", 1)],
            "special_tokens": {"[CLS]": declared("[CLS]", 101), "[SEP]": declared("[SEP]", 102)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    })
}

fn added_token(id: u64, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special,
    })
}

/// A word of its own for each id: four or more letters, so that none is a letter, a byte's symbol or a part of one.
fn word(id: u64) -> String {
    let mut rest = id;
    let mut letters = String::new();
    while letters.len() < 4 || rest > 0 {
        letters.push(char::from(b'a' + (rest % 26) as u8));
        rest /= 26;
    }
    letters
}

/// The characters that byte-level BPE spells the 256 bytes with, as GPT-2 numbers them: printable ones first, as themselves, then
/// the others, as characters from U+0100 on.
fn byte_symbols() -> Vec<char> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let plain = (0..=255u8).filter(printable).map(char::from);
    let others = (0x100u32..).zip((0..=255u8).filter(|byte| !printable(byte)));
    plain.chain(others.filter_map(|(symbol, _)| char::from_u32(symbol))).collect()
}
