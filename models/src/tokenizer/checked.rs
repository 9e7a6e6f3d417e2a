//! `tokenizer.json`, checked before `tokenizers` reads it.
//!
//! That package trusts its files: a character map with an offset past its end, a merge whose result is no token, a template
//! that names a token nobody declared, or a prefix longer than the word it is cut from end in a panic or worse. So the file is
//! read here first, into the few parts that can do harm, and each is held against a rule. What it does *not* say (unknown keys)
//! is left to `tokenizers`, whose own refusals are errors already.

use std::collections::{HashMap, HashSet};
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{VOCABULARY_MAX, words};

/// Tokens beside the vocabulary of the model. Real files have up to a few thousand.
const ADDED_MAX: usize = 1 << 16;
/// Bytes of one token, as the vocabulary writes it. Runs of spaces are the longest in real files, with some 256.
const TOKEN_BYTES_MAX: usize = 1 << 10;
/// The same for Unigram models, which try every token at every place of a text. SentencePiece's own default is 16 characters.
const UNIGRAM_BYTES_MAX: usize = 1 << 8;
/// Ids without a token that are put up with: one more than there are tokens, and these.
const HOLES_SLACK: u64 = 1 << 10;
/// Letters of a word that WordPiece tries to cut; its cost grows with the square. Real files say 100.
const WORD_CHARS_MAX: u64 = 1 << 7;
/// Bytes of a text that a step puts in (`▁`, a prefix).
const INSERTED_MAX: usize = 256;
/// How much longer all replacements together may make a text.
const GROWTH_MAX: usize = 64;
/// Steps that a text goes through, and values that describe them, with their nesting.
const STEPS_MAX: usize = 32;
const STEP_VALUES_MAX: usize = 1 << 14;
const STEP_DEPTH_MAX: usize = 24;
/// Tokens that a template puts around a text.
const AROUND_MAX: usize = 64;
/// Bytes that a character map makes of one character. The longest that Unicode knows has 33.
const REPLACEMENT_MAX: usize = 64;
/// Bytes of a compiled character map, as base64. SentencePiece's largest has 320 kB.
const CHARSMAP_MAX: usize = 4 << 20;

/// What is looked at.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocabulary,
    #[serde(default)]
    merges: Vec<Merge>,
    unk_token: Option<String>,
    unk_id: Option<u64>,
    continuing_subword_prefix: Option<String>,
    dropout: Option<f64>,
    max_input_chars_per_word: Option<u64>,
}

/// A map of tokens to ids, or a list of tokens with scores, whose places are their ids.
#[derive(Default)]
struct Vocabulary(HashMap<String, u64>);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Vocabulary;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut tokens = HashMap::new();
                while let Some((token, id)) = map.next_entry()? {
                    if tokens.len() >= VOCABULARY_MAX {
                        return Err(A::Error::custom("the vocabulary has too many tokens"));
                    }
                    tokens.insert(token, id);
                }
                Ok(Vocabulary(tokens))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
                let mut tokens = HashMap::new();
                let mut next = 0;
                while let Some((token, _score)) = list.next_element::<(String, f64)>()? {
                    if next >= VOCABULARY_MAX as u64 {
                        return Err(A::Error::custom("the vocabulary has too many tokens"));
                    }
                    tokens.insert(token, next);
                    next += 1;
                }
                Ok(Vocabulary(tokens))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// `"a b"` or `["a", "b"]`.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pair of tokens")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => Ok(Merge(left.to_owned(), right.to_owned())),
                    _ => Err(E::custom(format!("the merge `{text}` is no pair"))),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                let mut part = || list.next_element()?.ok_or_else(|| A::Error::custom("a merge is no pair"));
                let merge = Merge(part()?, part()?);
                match list.next_element::<String>()? {
                    None => Ok(merge),
                    Some(_) => Err(A::Error::custom("a merge is no pair")),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Refuses the `tokenizer.json` in `bytes`, whose JSON was found sound, or returns the ids its added tokens must get.
pub(super) fn check(bytes: &[u8]) -> Result<Vec<(String, u32)>, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let vocabulary = &file.model.vocab.0;
    check_model(&file.model, &file.added_tokens)?;
    let unigram = file.model.kind.as_deref() == Some("Unigram") || file.model.unk_id.is_some();
    check_ids(vocabulary, &file.added_tokens, if unigram { UNIGRAM_BYTES_MAX } else { TOKEN_BYTES_MAX })?;
    let mut steps = Steps { vocabulary, added: &file.added_tokens, steps: 0, values: 0, growth: 1 };
    for (name, value) in [
        ("normalizer", &file.normalizer),
        ("pre_tokenizer", &file.pre_tokenizer),
        ("post_processor", &file.post_processor),
        ("decoder", &file.decoder),
    ] {
        steps.walk(value, 0).map_err(|reason| format!("its {name} {reason}"))?;
    }
    // Bounded by VOCABULARY_MAX, so it fits.
    Ok(file.added_tokens.into_iter().map(|added| (added.content, added.id as u32)).collect())
}

fn check_ids(vocabulary: &HashMap<String, u64>, added: &[Added], bytes_max: usize) -> Result<(), String> {
    if added.len() > ADDED_MAX {
        return Err(format!("it adds {} tokens, at most {ADDED_MAX} are read", added.len()));
    }
    let mut contents = HashSet::new();
    for token in added {
        if token.content.is_empty() || !contents.insert(token.content.as_str()) {
            return Err(format!("the added token of id {} is empty or there twice", token.id));
        }
    }
    let tokens = vocabulary.iter().map(|(token, id)| (token.as_str(), *id));
    let all = tokens.chain(added.iter().map(|token| (token.content.as_str(), token.id)));
    let (mut count, mut largest) = (0u64, 0);
    for (token, id) in all {
        if token.len() > bytes_max {
            return Err(format!("the token of id {id} has {} bytes, at most {bytes_max} are read", token.len()));
        }
        count += 1;
        largest = largest.max(id);
    }
    if count == 0 {
        return Err("its vocabulary is empty".into());
    }
    if largest >= VOCABULARY_MAX as u64 || largest > 2 * count + HOLES_SLACK {
        return Err(format!("its largest token id is {largest}, which does not fit {count} tokens"));
    }
    Ok(())
}

fn check_model(model: &Model, added: &[Added]) -> Result<(), String> {
    let vocabulary = &model.vocab.0;
    if let Some(kind) =
        model.kind.as_deref().filter(|kind| !["BPE", "Unigram", "WordPiece", "WordLevel"].contains(kind))
    {
        return Err(format!("its model `{kind}` is not known"));
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err("its model drops merges at random (`dropout`): the same text would not give the same ids".into());
    }
    if let Some(chars) = model.max_input_chars_per_word.filter(|chars| *chars > WORD_CHARS_MAX) {
        return Err(format!("`max_input_chars_per_word` is {chars}, at most {WORD_CHARS_MAX} are cut"));
    }
    if let Some(id) = model.unk_id.filter(|id| *id >= vocabulary.len() as u64) {
        return Err(format!("`unk_id` is {id}, outside the vocabulary of {}", vocabulary.len()));
    }
    let known = |token: &&String| vocabulary.contains_key(*token) || added.iter().any(|added| added.content == **token);
    if let Some(token) = model.unk_token.as_ref().filter(|token| !known(token)) {
        return Err(format!("`unk_token` is `{token}`, which is not in the vocabulary"));
    }
    let prefix = model.continuing_subword_prefix.as_deref().unwrap_or("");
    // WordPiece spells its prefix in the vocabulary; only merges are put together with it.
    let merges = model.merges.iter().map(|Merge(left, right)| (left.as_str(), right.as_str()));
    check_merges(merges, prefix, |token| vocabulary.contains_key(token))
}

/// Both halves of a merge and what they make must be tokens. A half that continues a word begins with `prefix`, which goes.
pub(super) fn check_merges<'a>(
    merges: impl Iterator<Item = (&'a str, &'a str)>,
    prefix: &str,
    known: impl Fn(&str) -> bool,
) -> Result<(), String> {
    let mut joined = String::new();
    for (left, right) in merges {
        let rest = right.strip_prefix(prefix);
        joined.clear();
        joined.push_str(left);
        joined.push_str(rest.unwrap_or(right));
        if rest.is_none() || ![left, right, &joined].into_iter().all(&known) {
            return Err(format!("the merge of `{left}` and `{right}` is not made of tokens"));
        }
    }
    Ok(())
}

/// Walks what a file declares to be done with a text.
struct Steps<'a> {
    vocabulary: &'a HashMap<String, u64>,
    added: &'a [Added],
    steps: usize,
    values: usize,
    growth: usize,
}

impl Steps<'_> {
    fn walk(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        self.values += 1;
        if depth > STEP_DEPTH_MAX || self.values > STEP_VALUES_MAX {
            return Err("has too many parts or nests too deeply".into());
        }
        match value {
            Value::Object(map) => {
                self.step(map)?;
                map.iter().filter(|(key, _)| *key != "precompiled_charsmap").try_for_each(|(key, value)| {
                    if key.len() > TOKEN_BYTES_MAX {
                        return Err("has a key that is too long".into());
                    }
                    self.walk(value, depth + 1)
                })
            }
            Value::Array(values) => values.iter().try_for_each(|value| self.walk(value, depth + 1)),
            Value::String(text) if text.len() > TOKEN_BYTES_MAX => Err(format!("has a text of {} bytes", text.len())),
            _ => Ok(()),
        }
    }

    fn step(&mut self, map: &serde_json::Map<String, Value>) -> Result<(), String> {
        if let Some(pattern) = map.get("Regex").and_then(Value::as_str) {
            words::check(pattern)?;
        }
        let text = |key: &str| map.get(key).and_then(Value::as_str);
        self.steps += usize::from(map.contains_key("type"));
        if self.steps > STEPS_MAX {
            return Err(format!("brings the steps that a text goes through to more than {STEPS_MAX}"));
        }
        match text("type") {
            Some("Replace") => {
                let content = text("content").unwrap_or("").len();
                let pattern = map.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
                if let Some(regex) = map.get("pattern").and_then(|pattern| pattern.get("Regex")).and_then(Value::as_str)
                {
                    words::check_replaced(regex)?;
                }
                if pattern == Some("") {
                    return Err("replaces nothing by something".into());
                }
                self.growth = self.growth.saturating_mul(content.div_ceil(pattern.map_or(1, str::len)).max(1));
                if content > INSERTED_MAX || self.growth > GROWTH_MAX {
                    return Err(format!("makes a text more than {GROWTH_MAX} times as long"));
                }
            }
            Some("Prepend") if text("prepend").unwrap_or("").len() > INSERTED_MAX => {
                return Err(format!("puts more than {INSERTED_MAX} bytes before a text"));
            }
            Some("FixedLength") if map.get("length").and_then(Value::as_u64) == Some(0) => {
                return Err("cuts a text into words of no length".into());
            }
            Some("Precompiled") => charsmap(text("precompiled_charsmap").unwrap_or(""))?,
            Some("TemplateProcessing") => self.template(map)?,
            Some("BertProcessing" | "RobertaProcessing") => {
                for key in ["sep", "cls"] {
                    self.known(map.get(key).and_then(|pair| pair.get(1)).and_then(Value::as_u64), key)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// An id that is put around texts must be one.
    fn known(&self, id: Option<u64>, name: &str) -> Result<(), String> {
        let bound = self.vocabulary.values().copied().chain(self.added.iter().map(|token| token.id)).max();
        match (id, bound) {
            (Some(id), Some(bound)) if id <= bound => Ok(()),
            (id, _) => Err(format!("puts the token `{name}` around texts, whose id {id:?} is not in the vocabulary")),
        }
    }

    fn template(&self, map: &serde_json::Map<String, Value>) -> Result<(), String> {
        let tokens = map.get("special_tokens").and_then(Value::as_object).ok_or("lacks `special_tokens`")?;
        if tokens.len() > AROUND_MAX {
            return Err(format!("puts more than {AROUND_MAX} tokens around a text"));
        }
        let single = map.get("single").and_then(Value::as_array).ok_or("lacks `single`")?;
        let pair = map.get("pair").and_then(Value::as_array).ok_or("lacks `pair`")?;
        if single.len() > AROUND_MAX || pair.len() > AROUND_MAX {
            return Err(format!("puts more than {AROUND_MAX} tokens around a text"));
        }
        let texts = |pieces: &[Value]| -> Vec<String> {
            let names = pieces.iter().filter_map(|piece| piece.get("Sequence")?.get("id")?.as_str());
            names.map(str::to_owned).collect()
        };
        if texts(single) != ["A"] {
            return Err("does not put a single text exactly once".into());
        }
        for piece in single.iter().chain(pair).filter_map(|piece| piece.get("SpecialToken")) {
            let name = piece.get("id").and_then(Value::as_str).unwrap_or("");
            let token =
                tokens.get(name).ok_or_else(|| format!("names the token `{name}`, which it does not declare"))?;
            let list = |key: &str| token.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let ids = list("ids");
            if ids.is_empty() || ids.len() != list("tokens").len() || ids.len() > AROUND_MAX {
                return Err(format!("declares the token `{name}` without an id for each of its parts"));
            }
            ids.iter().try_for_each(|id| self.known(id.as_u64(), name))?;
        }
        Ok(())
    }
}

/// SentencePiece's compiled character map: a double-array trie of little-endian words (their bytes' number first), and the
/// replacements, each ended by a zero byte. `spm_precompiled`, which reads it for `tokenizers`, follows offsets without a
/// look at the end, so every place that any text can lead to is visited here: at most (words x 255) steps.
fn charsmap(text: &str) -> Result<(), String> {
    if text.len() > CHARSMAP_MAX {
        return Err(format!("has a character map of {} bytes, at most {CHARSMAP_MAX} are read", text.len()));
    }
    let broken = |what: &str| format!("has a broken character map: {what}");
    let bytes = BASE64.decode(text).map_err(|error| broken(&error.to_string()))?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| broken("it is empty"))?;
    let size = u32::from_le_bytes(*size) as usize;
    let (trie, replacements) = rest.split_at_checked(size / 4 * 4).ok_or_else(|| broken("it ends early"))?;
    let replacements = std::str::from_utf8(replacements).map_err(|_| broken("its replacements are not UTF-8"))?;
    let units: Vec<usize> =
        trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]) as usize).collect();
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let unit = |at: usize| units.get(at).copied().ok_or_else(|| broken("an offset leaves it"));
    // Where a text can stand between two of its bytes.
    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(unit(0)?)];
    while let Some(place) = open.pop() {
        for byte in 1..=255usize {
            let at = place ^ byte;
            let found = unit(at)?;
            if found & ((1 << 31) | 0xFF) != byte {
                continue;
            }
            let next = at ^ offset(found);
            if (found >> 8) & 1 == 1 {
                let value = unit(next)? & ((1 << 31) - 1);
                let replacement = replacements.get(value..).ok_or_else(|| broken("a replacement starts outside"))?;
                let len = replacement.bytes().take(REPLACEMENT_MAX + 1).take_while(|byte| *byte != 0).count();
                if len > REPLACEMENT_MAX {
                    return Err(broken("a replacement is too long"));
                }
            }
            unit(next)?;
            if !std::mem::replace(&mut seen[next], true) {
                open.push(next);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A trie that maps `a` to what stands at `value`.
    fn map(value: u32, replacements: &[u8]) -> String {
        let mut units = [0u32; 512];
        // The root's children lie from 256 on; `a` is the one at 256 ^ 97, and its leaf at offset 1 from there.
        units[0] = 256 << 10;
        let child = 256 ^ usize::from(b'a');
        units[child] = (1 << 10) | (1 << 8) | u32::from(b'a');
        units[child ^ 1] = value | (1 << 31);
        let mut bytes = (units.len() as u32 * 4).to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(replacements);
        BASE64.encode(bytes)
    }

    #[test]
    fn character_maps_stay_inside() {
        assert_eq!(charsmap(&map(0, "é\0".as_bytes())), Ok(()));
        assert!(charsmap(&map(1, "é\0".as_bytes())).unwrap_err().contains("outside"), "inside a character");
        assert!(charsmap(&map(9, "é\0".as_bytes())).unwrap_err().contains("outside"));
        assert!(charsmap(&map(0, "x".repeat(65).as_bytes())).unwrap_err().contains("too long"));
        assert!(charsmap(&map(0, b"\xff\0")).unwrap_err().contains("UTF-8"));
        assert!(charsmap("").unwrap_err().contains("empty"));
        assert!(charsmap("!").unwrap_err().contains("broken"));
        assert!(charsmap(&BASE64.encode([4, 0, 0, 0])).unwrap_err().contains("ends early"));
        let far = [&4u32.to_le_bytes()[..], &(5000u32 << 10).to_le_bytes()].concat();
        assert!(charsmap(&BASE64.encode(far)).unwrap_err().contains("leaves it"));
        assert!(charsmap(&BASE64.encode([0, 0, 0, 0])).unwrap_err().contains("leaves it"));
    }

    fn file() -> Value {
        json!({
            "added_tokens": [{"id": 3, "content": "<s>"}],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "unk_token": null},
        })
    }

    #[test]
    fn each_rule_has_a_file_that_breaks_it() {
        assert_eq!(check(file().to_string().as_bytes()), Ok(vec![("<s>".to_owned(), 3)]));
        type Change = fn(&mut Value);
        let template = |single: Value, tokens: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens});
        let around =
            |name: &str| json!([{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
        let cases: Vec<(&str, Change)> = vec![
            ("not made of tokens", |f| f["model"]["merges"] = json!(["a a"])),
            ("not made of tokens", |f| f["model"]["merges"] = json!([["a", "z"]])),
            ("no pair", |f| f["model"]["merges"] = json!(["ab"])),
            ("no pair", |f| f["model"]["merges"] = json!([["a", "b", "c"]])),
            ("not made of tokens", |f| f["model"]["continuing_subword_prefix"] = json!("é")),
            ("largest token id", |f| f["model"]["vocab"]["b"] = json!(1_u64 << 40)),
            ("largest token id", |f| f["added_tokens"][0]["id"] = json!(2000)),
            ("invalid", |f| f["model"]["vocab"]["b"] = json!(-1)),
            ("empty or there twice", |f| f["added_tokens"][0]["content"] = json!("")),
            ("at random", |f| f["model"]["dropout"] = json!(0.1)),
            ("`unk_token`", |f| f["model"]["unk_token"] = json!("nowhere")),
            ("`unk_id`", |f| f["model"]["unk_id"] = json!(3)),
            ("not known", |f| f["model"]["type"] = json!("Magic")),
            ("max_input_chars_per_word", |f| f["model"]["max_input_chars_per_word"] = json!(1 << 30)),
            ("has 5000 bytes", |f| f["model"]["vocab"]["x".repeat(5000)] = json!(4)),
            ("no length", |f| f["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0})),
            ("nests quantifiers", |f| {
                let split =
                    json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false});
                f["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split]});
            }),
            ("looked for", |f| {
                f["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "[^x]*x|."}, "content": ""});
            }),
            ("more than 32", |f| {
                f["normalizer"] = json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 40]})
            }),
            ("has 300 bytes", |f| {
                f["model"] = json!({"type": "Unigram", "unk_id": 0, "vocab": [["x".repeat(300), 0.0]]});
            }),
            ("times as long", |f| {
                let step = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
                f["normalizer"] = json!({"type": "Sequence", "normalizers": [step, step]});
            }),
            ("nothing by something", |f| {
                f["normalizer"] = json!({"type": "Replace", "pattern": {"String": ""}, "content": "a"});
            }),
            ("before a text", |f| f["normalizer"] = json!({"type": "Prepend", "prepend": "x".repeat(300)})),
            ("broken character map", |f| {
                f["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
            }),
            ("not in the vocabulary", |f| {
                f["post_processor"] = json!({"type": "BertProcessing", "sep": ["x", 9], "cls": ["y", 0]})
            }),
            ("nests too deeply", |f| {
                f["decoder"] =
                    (0..40).fold(json!({"type": "Fuse"}), |inner, _| json!({"type": "Sequence", "decoders": [inner]}));
            }),
        ];
        for (why, change) in cases {
            let mut file = file();
            change(&mut file);
            let error = check(file.to_string().as_bytes()).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
        for (why, template) in [
            ("does not declare", template(around("<s>"), json!({}))),
            ("not in the vocabulary", template(around("s"), json!({"s": {"id": "s", "ids": [99], "tokens": ["s"]}}))),
            ("for each of its parts", template(around("s"), json!({"s": {"id": "s", "ids": [0, 1], "tokens": ["s"]}}))),
            ("exactly once", template(json!([{"Sequence": {"id": "B", "type_id": 0}}]), json!({}))),
        ] {
            let mut file = file();
            file["post_processor"] = template;
            let error = check(file.to_string().as_bytes()).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
    }
}
