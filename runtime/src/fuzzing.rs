//! One function for each parser of outside bytes below the API, for `fuzz/` and the replay of its corpora. They take what they
//! are given, and return; a panic, or a run that does not end, is the bug that is looked for.
//!
//! Model files are given to `weir-models` as files, as they come: what is tried is what opens them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use weir_models::{ChatTemplate, ModelSource, Tokenizer};

use crate::{
    codec::template::Template,
    executor::wire::{FromExecutor, ToExecutor, read_frame, write_frame},
    submission::ChatMessage,
};

/// What a tokenizer that was accepted is tried on: words, digits, white space, other scripts, and the spelling of a control
/// token.
const TEXT: &str = "Ab\tc  12 <s>\u{e9}\u{4e2d}\u{1f600}\u{200d}\n";

/// A GGUF file: header, configuration, directory of tensors, tokenizer.
pub fn gguf(bytes: &[u8]) {
    FOLDER.with(|folder| {
        let path = folder.write("fuzzed.gguf", bytes);
        if let Ok(tokenizer) = ModelSource::open(&path).and_then(|source| source.tokenizer()) {
            try_out(&tokenizer);
        }
    });
}

/// The safetensors file of a model whose other files are right.
pub fn safetensors(bytes: &[u8]) {
    FOLDER.with(|folder| {
        folder.write("model.safetensors", bytes);
        let _ = ModelSource::open(&folder.0);
    });
}

/// The `tokenizer.json` of a model whose other files are right.
pub fn tokenizer(bytes: &[u8]) {
    FOLDER.with(|folder| {
        folder.write("model.safetensors", &weights());
        folder.write("tokenizer.json", bytes);
        if let Ok(tokenizer) = ModelSource::open(&folder.0).and_then(|source| source.tokenizer()) {
            try_out(&tokenizer);
        }
    });
}

fn try_out(tokenizer: &Tokenizer) {
    let mark = '\u{e000}';
    let ids = tokenizer.encode_text(TEXT, true).unwrap_or_default();
    let rendered = tokenizer.escape_specials(TEXT, mark);
    let more = tokenizer.encode_rendered(&rendered, Some(mark)).unwrap_or_default();
    for id in ids.into_iter().chain(more).chain([0, u32::MAX]) {
        let _ = (tokenizer.token_bytes(id), tokenizer.is_special(id));
    }
}

/// A model's folder of this thread, gone with it.
struct Folder(PathBuf);

thread_local! {
    static FOLDER: Folder = Folder::new();
}

impl Folder {
    /// With the configuration of a model of one layer.
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("weir-fuzz-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // In memory, where that is to be had: a fuzzer writes thousands of files a second.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = Folder(place.join(name));
        fs::create_dir_all(&folder.0).expect("a folder in the system's own for temporary files");
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 32, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64
        });
        folder.write("config.json", config.to_string().as_bytes());
        folder.write("model.safetensors", &weights());
        ModelSource::open(&folder.0).expect("a model that is right");
        folder
    }

    /// Writes anew: a file that is mapped is never shortened.
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).expect("room for a small file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The weights of that model, all zero.
fn weights() -> Vec<u8> {
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let shapes = [
        ("model.embed_tokens.weight".to_owned(), vec![8, 32]),
        ("model.norm.weight".to_owned(), vec![32]),
        (layer("input_layernorm"), vec![32]),
        (layer("post_attention_layernorm"), vec![32]),
        (layer("self_attn.q_proj"), vec![32, 32]),
        (layer("self_attn.k_proj"), vec![16, 32]),
        (layer("self_attn.v_proj"), vec![16, 32]),
        (layer("self_attn.o_proj"), vec![32, 32]),
        (layer("mlp.gate_proj"), vec![8, 32]),
        (layer("mlp.up_proj"), vec![8, 32]),
        (layer("mlp.down_proj"), vec![32, 8]),
    ];
    let mut end = 0;
    let mut header = Map::new();
    for (name, shape) in shapes {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + end, 0);
    file
}

/// A chat template and a conversation: the source up to the first zero byte, then contents by turns of system, user and
/// assistant, a zero byte between each.
pub fn template(bytes: &[u8]) {
    let mut parts = bytes.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    let Some(source) = parts.next() else { return };
    let template = ChatTemplate { source: source.into_owned(), bos_token: "<s>".into(), eos_token: "</s>".into() };
    let Ok(template) = Template::new(&template) else { return };
    let message = |(content, role): (std::borrow::Cow<'_, str>, &str)| ChatMessage {
        role: role.to_owned(),
        content: content.into_owned(),
        name: None,
    };
    let messages: Vec<_> = parts.zip(["system", "user", "assistant"].into_iter().cycle()).map(message).collect();
    let _ = template.render(&messages);
}

/// Frames that an executor reads.
pub fn to_executor(bytes: &[u8]) {
    frames::<ToExecutor>(bytes);
}

/// Frames that an executor's reader reads.
pub fn from_executor(bytes: &[u8]) {
    frames::<FromExecutor>(bytes);
}

/// The bytes as a stream of frames, and as the payload of one whose header is right: a fuzzer that had to find the header
/// first, anew with each version, would see little of what is behind it.
fn frames<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let mut stream = bytes;
    while let Ok(Some(message)) = read_frame::<T>(&mut stream) {
        comes_back(&message);
    }
    let mut frame = Vec::new();
    write_frame(&mut frame, &()).expect("an empty frame");
    let (_, length) = frame.split_at_mut(LENGTH_AT);
    length.copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    frame.extend_from_slice(bytes);
    if let Ok(Some(message)) = read_frame::<T>(&mut frame.as_slice()) {
        comes_back(&message);
    }
}

/// Where a header says how long its payload is, up to its end.
const LENGTH_AT: usize = 8;

/// What was read is written as a frame that reads as the same. Floats that are not numbers equal nothing, so bytes are
/// compared.
fn comes_back<T: Serialize + DeserializeOwned>(message: &T) {
    let mut once = Vec::new();
    write_frame(&mut once, message).expect("what fitted a frame fits one");
    let again: T = read_frame(&mut once.as_slice()).expect("our own frame").expect("a frame, not the end");
    let mut twice = Vec::new();
    write_frame(&mut twice, &again).expect("it fitted before");
    assert_eq!(once, twice);
}
