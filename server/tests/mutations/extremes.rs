//! Bodies that cost as much as 4 MiB can be made to cost: each was written against one loop or one allocation.

use crate::bodies::{CHAT, COMPLETION, EMBEDDING};

type Extreme = (&'static str, &'static str, fn() -> Vec<u8>);

/// What a body may hold around what is repeated.
const ROOM: usize = (4 << 20) - 1000;

fn filled(before: &str, item: &str, after: &str) -> Vec<u8> {
    let separated = format!("{item},");
    let mut body = before.to_owned();
    body.push_str(&separated.repeat((ROOM - before.len()) / separated.len()));
    body.push_str(item);
    body.push_str(after);
    body.into_bytes()
}

fn chat(content: &str) -> Vec<u8> {
    let quoted = serde_json::to_string(content).expect("text");
    format!(r#"{{"model":"m","max_tokens":1,"messages":[{{"role":"user","content":{quoted}}}]}}"#).into_bytes()
}

/// A list of `n` prompts or inputs of so many bytes.
fn texts(n: usize, bytes: usize, around: &str) -> Vec<u8> {
    let text = format!("\"{}\"", "x".repeat(bytes));
    around.replace("TEXTS", &vec![text; n].join(",")).into_bytes()
}

/// Name, path and body.
pub(crate) fn extremes() -> &'static [Extreme] {
    &[
        ("two million numbers", COMPLETION, || filled(r#"{"model":"m","prompt":["#, "0", "]}")),
        ("a million lists of one", COMPLETION, || filled(r#"{"model":"m","prompt":["#, "[0]", "]}")),
        ("a million empty maps", CHAT, || filled(r#"{"model":"m","messages":["#, "{}", "]}")),
        ("half a million maps of one", CHAT, || filled(r#"{"model":"m","messages":["#, r#"{"a":0}"#, "]}")),
        ("a million short strings", COMPLETION, || filled(r#"{"model":"m","prompt":["#, "\"x\"", "]}")),
        ("a map of half a million keys", CHAT, || {
            let keys: Vec<String> = (0..ROOM / 11).map(|i| format!("\"{i:x}\":0")).collect();
            format!("{{{}}}", keys.join(",")).into_bytes()
        }),
        ("as many values as are read", COMPLETION, || {
            format!(r#"{{"model":"m","prompt":[{}]}}"#, vec!["\"x\""; 320_000 - 4].join(",")).into_bytes()
        }),
        ("as many keys as are read", CHAT, || {
            format!(r#"{{"model":"m","messages":[{}]}}"#, vec![r#"{"a":0}"#; (1 << 14) - 3].join(",")).into_bytes()
        }),
        ("300,000 ids to embed", EMBEDDING, || {
            let ids = format!("[{}]", vec!["97"; 512].join(","));
            format!(r#"{{"model":"m","input":[{}]}}"#, vec![ids; 585].join(",")).into_bytes()
        }),
        ("2,048 texts to embed and cut", EMBEDDING, || {
            texts(2048, 2000, r#"{"model":"m","input":[TEXTS],"truncate":true}"#)
        }),
        ("one long text to embed and cut", EMBEDDING, || {
            texts(1, ROOM, r#"{"model":"m","input":[TEXTS],"truncate":true}"#)
        }),
        ("128 prompts that fill the context", COMPLETION, || {
            texts(128, 32_000, r#"{"model":"m","prompt":[TEXTS],"max_tokens":1}"#)
        }),
        ("128 prompts, eight choices, echoed", COMPLETION, || {
            texts(128, 32_000, r#"{"model":"m","prompt":[TEXTS],"max_tokens":1,"n":8,"echo":true}"#)
        }),
        ("as much as is echoed", COMPLETION, || {
            texts(16, 32_000, r#"{"model":"m","prompt":[TEXTS],"max_tokens":1,"n":8,"echo":true}"#)
        }),
        ("128 prompts, eight choices, all biases", COMPLETION, || {
            let bias: Vec<String> = (0..258).map(|id| format!("\"{id}\":1")).collect();
            let body = r#"{"model":"m","prompt":[TEXTS],"max_tokens":4,"n":8,"logprobs":20,"logit_bias":{BIAS}}"#;
            texts(128, 100, &body.replace("BIAS", &bias.join(",")))
        }),
        ("2,048 messages", CHAT, || {
            let message = format!(r#"{{"role":"user","content":"{}"}}"#, "x".repeat(250));
            format!(r#"{{"model":"m","max_tokens":1,"messages":[{}]}}"#, vec![message; 2048].join(",")).into_bytes()
        }),
        ("as many parts as keys allow", CHAT, || {
            let parts = vec![r#"{"type":"text","text":"x"}"#; 2000].join(",");
            let message = format!(r#"{{"role":"user","content":[{parts}]}}"#);
            format!(r#"{{"model":"m","max_tokens":1,"messages":[{}]}}"#, vec![message; 4].join(",")).into_bytes()
        }),
        ("every private-use character but the last, behind long content", CHAT, || {
            // Their last bytes are those that the private-use characters have.
            let filler: String = ('\u{1e00}'..='\u{1e3f}').collect();
            let all: String = ('\u{e000}'..'\u{f8ff}').collect();
            chat(&(filler.repeat(2500) + &all))
        }),
        ("control tokens only", CHAT, || chat(&"<|im_end|>".repeat(50_000))),
        ("beginnings of control tokens", CHAT, || chat(&"<|im_".repeat(100_000))),
        ("one word as long as the context takes", CHAT, || chat(&"a".repeat(16 * 32_768))),
        ("escapes only", CHAT, || {
            let content = r"\u0041".repeat(ROOM / 6);
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{content}"}}]}}"#).into_bytes()
        }),
        ("nested 200,000 deep", CHAT, || "[".repeat(200_000).into_bytes()),
        ("brackets only", CHAT, || format!(r#"{{"messages":{}"#, "[".repeat(ROOM)).into_bytes()),
        ("a number of four million digits", CHAT, || format!(r#"{{"n":{}}}"#, "9".repeat(ROOM)).into_bytes()),
        ("a fraction of four million digits", CHAT, || format!(r#"{{"n":0.{}1}}"#, "0".repeat(ROOM)).into_bytes()),
        ("an exponent of four million digits", CHAT, || format!(r#"{{"n":1e{}}}"#, "9".repeat(ROOM)).into_bytes()),
        ("a key of four million bytes", CHAT, || format!(r#"{{"{}":1}}"#, "k".repeat(ROOM)).into_bytes()),
        ("a key of four million bytes twice", CHAT, || {
            let key = "k".repeat(ROOM / 2);
            format!(r#"{{"{key}":1,"{key}":1}}"#).into_bytes()
        }),
        ("white space only", CHAT, || vec![b' '; 4 << 20]),
        ("a body at the cap that is wrong at its end", CHAT, || {
            format!(r#"{{"model":"m","messages":"{}"x"#, "x".repeat(ROOM)).into_bytes()
        }),
        ("a body over the cap", CHAT, || vec![b' '; (4 << 20) + 1]),
    ]
}
