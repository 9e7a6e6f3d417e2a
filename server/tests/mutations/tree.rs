//! JSON as a mutator needs it: keys may come twice, numbers and strings may be what no parser takes.

use serde_json::Value;

#[derive(Debug, Clone)]
pub(crate) enum Tree {
    /// Written as it is.
    Raw(String),
    /// Written as a string, escaped.
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

impl Tree {
    pub(crate) fn parse(text: &str) -> Self {
        Tree::from(serde_json::from_str::<Value>(text).expect("our own body"))
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let quoted = |out: &mut Vec<u8>, text: &str| {
            serde_json::to_writer(out, text).expect("memory does not fail");
        };
        match self {
            Tree::Raw(text) => out.extend_from_slice(text.as_bytes()),
            Tree::Text(text) => quoted(out, text),
            Tree::List(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
            Tree::Map(entries) => {
                out.push(b'{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    quoted(out, key);
                    out.push(b':');
                    value.write(out);
                }
                out.push(b'}');
            }
        }
    }

    /// This node and all below it.
    pub(crate) fn len(&self) -> usize {
        1 + match self {
            Tree::Raw(_) | Tree::Text(_) => 0,
            Tree::List(items) => items.iter().map(Tree::len).sum(),
            Tree::Map(entries) => entries.iter().map(|(_, value)| value.len()).sum(),
        }
    }

    /// The node at `index` in the order in which they are written; 0 is this one.
    pub(crate) fn node(&mut self, index: usize) -> &mut Tree {
        if index == 0 {
            return self;
        }
        let mut left = index - 1;
        let children: Vec<&mut Tree> = match self {
            Tree::Raw(_) | Tree::Text(_) => Vec::new(),
            Tree::List(items) => items.iter_mut().collect(),
            Tree::Map(entries) => entries.iter_mut().map(|(_, value)| value).collect(),
        };
        for child in children {
            let len = child.len();
            if left < len {
                return child.node(left);
            }
            left -= len;
        }
        unreachable!("the index is below `len`")
    }
}

impl From<Value> for Tree {
    fn from(value: Value) -> Self {
        match value {
            Value::String(text) => Tree::Text(text),
            Value::Array(items) => Tree::List(items.into_iter().map(Tree::from).collect()),
            Value::Object(map) => Tree::Map(map.into_iter().map(|(key, value)| (key, Tree::from(value))).collect()),
            scalar => Tree::Raw(scalar.to_string()),
        }
    }
}
