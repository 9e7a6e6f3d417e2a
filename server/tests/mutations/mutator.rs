//! One mutant for each number: a valid body, changed as a tree, then as bytes, and its request changed a little.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weir_server::openai::{chat::ChatRequest, completion::CompletionRequest};

use crate::{
    bodies::{CHAT, COMPLETION, EMBEDDING, VALID},
    extremes::extremes,
    pools::{CONTROLS, NAMES, NUMBERS, STRINGS},
    rng::Rng,
    tree::Tree,
};

/// Largest body that is made, a little over the cap of [`crate::rig`].
const BODY_BYTES_MAX: usize = (4 << 20) + 100;
/// New tokens that an accepted request may ask for: what is measured is reading it, not carrying it out.
const TOKENS_MAX: u64 = 4;

/// A request as it is sent.
#[derive(Serialize, Deserialize)]
pub(crate) struct Mutant {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    #[serde(skip)]
    pub(crate) body: Vec<u8>,
    /// What was done, for whoever reads the figures.
    pub(crate) story: String,
    /// Its key, if it is a known one.
    pub(crate) known_key: bool,
}

/// The mutant of a number.
pub(crate) fn mutant(seed: u64, index: u64) -> Mutant {
    let mut rng = Rng::of(seed, index);
    if let Some((name, path, body)) = extremes().get(index as usize) {
        return Mutant::plain((*path).to_owned(), body(), format!("extreme `{name}`"));
    }
    let (path, valid) = *rng.pick(&VALID);
    let mut tree = Tree::parse(valid);
    let mut story = Vec::new();
    for _ in 0..rng.below(4) {
        story.push(change(&mut tree, &mut rng));
    }
    let mut body = Vec::new();
    tree.write(&mut body);
    // Bytes are changed seldom where the tree was: most such bodies are no JSON, which is the same answer each time.
    if rng.one_in(if story.is_empty() { 2 } else { 8 }) {
        for _ in 0..1 + rng.below(3) {
            story.push(change_bytes(&mut body, &mut rng));
        }
    }
    body.truncate(BODY_BYTES_MAX);
    let mut mutant = Mutant::plain(path.to_owned(), body, story.join(", "));
    if rng.one_in(16) {
        mutant.change_request(&mut rng);
    }
    mutant
}

impl Mutant {
    pub(crate) fn plain(path: String, body: Vec<u8>, story: String) -> Self {
        let body = small(&path, body);
        Mutant { method: "POST".into(), path, headers: Vec::new(), body, story, known_key: true }
    }

    /// As a file that [`Mutant::read`] makes it of without an allocation of note but its body's, so that the memory which is
    /// then measured was not there before.
    pub(crate) fn written(&self) -> Vec<u8> {
        let mut file = serde_json::to_vec(self).expect("memory does not fail");
        file.push(b'\n');
        file.extend_from_slice(&self.body);
        file
    }

    pub(crate) fn read(mut file: Vec<u8>) -> Self {
        let end = file.iter().position(|byte| *byte == b'\n').expect("a line before the body");
        let mut mutant: Mutant = serde_json::from_slice(&file[..end]).expect("our own line");
        file.drain(..=end);
        mutant.body = file;
        mutant
    }

    fn change_request(&mut self, rng: &mut Rng) {
        match rng.below(5) {
            0 => self.method = (*rng.pick(&["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "BREW"])).to_owned(),
            1 => {
                let paths = [
                    CHAT,
                    COMPLETION,
                    EMBEDDING,
                    "/v1/models",
                    "/v1/models/%ff",
                    "/v1/models/org/other",
                    "/v1//completions",
                    "/v1/completions/",
                    "/V1/completions",
                    "/v1/models/..%2f..%2fetc",
                    "/%00",
                    "/v1/models/%",
                    "/health",
                    "/v1/completions?x=%zz",
                    "/openapi.json",
                    "/version",
                    "/metrics",
                    "/",
                ];
                self.path = (*rng.pick(&paths)).to_owned();
                // The new path may take what the old one did not.
                self.body = small(&self.path, std::mem::take(&mut self.body));
            }
            2 => {
                self.known_key = false;
                let keys: [&[u8]; 6] =
                    [b"", b"Bearer", b"Bearer ", b"Basic abc", b"Bearer \xff\xfe", b"bearer weir-key-of-x"];
                self.headers.push(("authorization".into(), rng.pick(&keys).to_vec()));
            }
            3 => {
                let encodings: [&[u8]; 5] = [b"gzip", b"identity", b"", b"br, gzip", b"\xff"];
                self.headers.push(("content-encoding".into(), rng.pick(&encodings).to_vec()));
            }
            _ => {
                let names =
                    ["content-type", "accept", "x-request-id", "content-length", "expect", "traceparent", "cookie"];
                let values: [&[u8]; 7] =
                    [b"", b"text/plain", b"-1", b"99999999999999999999", b"100-continue", b"a b\tc", &[b'x'; 300]];
                self.headers.push(((*rng.pick(&names)).to_owned(), rng.pick(&values).to_vec()));
            }
        }
    }
}

/// Changes one node, and says how.
fn change(tree: &mut Tree, rng: &mut Rng) -> String {
    let len = tree.len();
    let at = rng.below(len);
    let other = tree.node(rng.below(len)).clone();
    let node = tree.node(at);
    let what = match rng.below(16) {
        0 => replace(node, Tree::Raw((*rng.pick(&NUMBERS)).to_owned()), "a number"),
        1 => replace(node, Tree::Raw((*rng.pick(&STRINGS)).to_owned()), "a string"),
        2 => replace(
            node,
            Tree::Raw((*rng.pick(&["null", "true", "false", "[]", "{}", "nul", ""])).to_owned()),
            "a word",
        ),
        3 => replace(node, Tree::List(vec![other]), "a list of another"),
        4 => replace(node, other, "another"),
        5 => {
            let inner = std::mem::replace(node, Tree::Raw("null".into()));
            replace(node, Tree::List(vec![inner]), "a list of itself")
        }
        6 => {
            let inner = std::mem::replace(node, Tree::Raw("null".into()));
            replace(node, Tree::Map(vec![((*rng.pick(&NAMES)).to_owned(), inner)]), "a map of itself")
        }
        7 => {
            // At the bound, over it, far over it; and far over what a stack would bear, now and then.
            let depth = match rng.below(400) {
                0 => 200_000,
                n => *[29, 30, 31, 32, 33, 127, 128, 129, 1000].get(n % 9).expect("nine"),
            };
            let open = *rng.pick(&["[", "{\"a\":", "[{\"a\":"]);
            let close = if open == "[" {
                "]"
            } else if open.starts_with('{') {
                "}"
            } else {
                "}]"
            };
            let text = if rng.one_in(4) { open.repeat(depth) } else { open.repeat(depth) + "0" + &close.repeat(depth) };
            replace(node, Tree::Raw(text), "a deep nesting")
        }
        8 => {
            let unit = *rng.pick(&["x", " ", "\u{e000}", "a ", "\u{1f600}", "\n", "<|im_end|>", "aA0", "\0"]);
            replace(node, Tree::Text(unit.repeat(size(rng) / unit.len())), "a long string")
        }
        9 => {
            let item = *rng.pick(&[
                "0",
                "\"\"",
                "[]",
                "{}",
                "[0]",
                "{\"a\":0}",
                "97",
                "\"x\"",
                "null",
                "{\"role\":\"user\",\"content\":\"\"}",
            ]);
            let items = vec![item; size(rng) / (item.len() + 1)].join(",");
            replace(node, Tree::Raw(format!("[{items}]")), "a long list")
        }
        10 => {
            let entries = (0..size(rng) / 9).map(|i| format!("\"{i:05}\":0")).collect::<Vec<_>>().join(",");
            replace(node, Tree::Raw(format!("{{{entries}}}")), "a wide map")
        }
        11 => insert_control(node, rng),
        kind => return change_entries(tree, kind, rng),
    };
    format!("node {at}: {what}")
}

fn replace(node: &mut Tree, by: Tree, what: &'static str) -> &'static str {
    *node = by;
    what
}

/// Mostly small, seldom as large as a body may be.
fn size(rng: &mut Rng) -> usize {
    let bits = match rng.below(1000) {
        0 => 20 + rng.below(3),
        1..=9 => 15 + rng.below(5),
        _ => rng.below(13),
    };
    1 << bits
}

/// Puts a control token's spelling into a string, or splits it over two parts.
fn insert_control(node: &mut Tree, rng: &mut Rng) -> &'static str {
    let control = *rng.pick(&CONTROLS);
    match node {
        Tree::Text(text) if rng.one_in(2) => {
            let at = text.floor_char_boundary(rng.below(text.len() + 1));
            text.insert_str(at, control);
            "a control token's spelling inside"
        }
        _ => {
            let part = |text: &str| {
                Tree::Map(vec![("type".into(), Tree::Text("text".into())), ("text".into(), Tree::Text(text.into()))])
            };
            let (left, right) = control.split_at(rng.below(control.len()));
            *node = Tree::List(vec![part(left), part(right)]);
            "a control token's spelling in two parts"
        }
    }
}

/// Changes the keys of some map.
fn change_entries(tree: &mut Tree, kind: usize, rng: &mut Rng) -> String {
    let len = tree.len();
    let at = (0..8).map(|_| rng.below(len)).find(|&at| matches!(tree.node(at), Tree::Map(_))).unwrap_or(0);
    let extra = Tree::parse(rng.pick(&VALID).1);
    let Tree::Map(entries) = tree.node(at) else { return "nothing".into() };
    let name = (*rng.pick(&NAMES)).to_owned();
    let what = match (kind, entries.is_empty()) {
        (12, false) => {
            let entry = entries[rng.below(entries.len())].clone();
            entries.push(entry);
            "a key twice"
        }
        (13, false) => {
            entries.remove(rng.below(entries.len()));
            "a key less"
        }
        (14, false) => {
            let index = rng.below(entries.len());
            match rng.below(4) {
                0 => entries[index].0 = name,
                1 => entries[index].0.push('\0'),
                2 => entries[index].0 = entries[index].0.to_uppercase(),
                _ => entries[index].0 = "k".repeat(size(rng)),
            }
            "a key renamed"
        }
        _ => {
            if rng.one_in(2) {
                entries.push((name, Tree::Raw((*rng.pick(&NUMBERS)).to_owned())));
                "a key more"
            } else {
                let Tree::Map(more) = extra else { return "nothing".into() };
                entries.extend(more);
                "another body's keys"
            }
        }
    };
    format!("map {at}: {what}")
}

/// Changes some bytes, and says how.
fn change_bytes(body: &mut Vec<u8>, rng: &mut Rng) -> String {
    let at = rng.below(body.len() + 1);
    let end = at + rng.below((body.len() - at).min(64) + 1);
    let what = match rng.below(10) {
        0 if at < body.len() => {
            body[at] ^= 1 << rng.below(8);
            "a bit flipped"
        }
        1 if at < body.len() => {
            body[at] = rng.next() as u8;
            "a byte replaced"
        }
        2 => {
            body.truncate(at);
            "truncated"
        }
        3 => {
            body.insert(at, *rng.pick(b"\0\"\\{}[],:0-.eE \xff\xc0\xef"));
            "a byte inserted"
        }
        4 => {
            body.drain(at..end);
            "bytes taken out"
        }
        5 => {
            let copy = body[at..end].to_vec();
            body.splice(at..at, copy);
            "bytes doubled"
        }
        6 => {
            let other = rng.pick(&VALID).1.as_bytes();
            body.truncate(at);
            body.extend_from_slice(&other[rng.below(other.len())..]);
            "spliced with another body"
        }
        7 => {
            body.splice(0..0, *b"\xef\xbb\xbf");
            "a byte-order mark before"
        }
        8 => {
            let ends: [&[u8]; 7] = [b" ", b"\n\n", b"x", b"{}", b"\0", b",", b"}"];
            let end = *rng.pick(&ends);
            body.extend_from_slice(end);
            "something behind"
        }
        _ => {
            *body = (0..rng.below(200)).map(|_| rng.next() as u8).collect();
            "random bytes"
        }
    };
    format!("{what} at {at}")
}

/// The body, asking for few new tokens if it would be accepted: asked of the server's own parsers, so that nothing that
/// would be refused is made right.
fn small(path: &str, body: Vec<u8>) -> Vec<u8> {
    let sampling = match path {
        CHAT => ChatRequest::parse(&body).ok().map(|r| r.sampling),
        COMPLETION => CompletionRequest::parse(&body).ok().map(|r| r.sampling),
        _ => None,
    };
    let Some(sampling) = sampling else { return body };
    if sampling.tokens_max().is_some_and(|tokens| u64::from(tokens) <= TOKENS_MAX) {
        return body;
    }
    let mut value: Value = serde_json::from_slice(&body).expect("it was accepted");
    let map = value.as_object_mut().expect("an object");
    map.remove("max_completion_tokens");
    map.remove("min_tokens");
    map.insert("max_tokens".into(), TOKENS_MAX.into());
    value.to_string().into_bytes()
}
