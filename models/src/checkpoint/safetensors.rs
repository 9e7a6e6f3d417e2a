//! safetensors headers: our own check before any byte is used.
//!
//! A file is a little-endian `u64`, that many bytes of JSON, and the data. The JSON maps tensor names to a type, a shape and
//! a byte range of the data. Checked here: the length against the file and a bound, no name twice, known types, at most four
//! dimensions, ranges that have exactly the size that type and shape imply, inside the file, apart from each other.
//!
//! Format: <https://huggingface.co/docs/safetensors/index#format>

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::dtype;
use super::{TensorEntry, check_disjoint};
use crate::ModelError;

/// Bytes of a header that are read; the format's own reference uses the same bound.
const HEADER_MAX: u64 = 100_000_000;
/// Tensors a header may list.
const TENSORS_MAX: usize = 1 << 16;

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header as a list, in file order, so that a name given twice is seen.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else if entries.len() == TENSORS_MAX {
                        return Err(serde::de::Error::custom("it lists too many tensors"));
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(List)
    }
}

/// Reads and checks the tensor directory of the file `bytes`; `path` is for messages.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<HashMap<String, TensorEntry>, ModelError> {
    parse_entries(bytes).map_err(|reason| ModelError::Damaged { path: path.to_owned(), reason })
}

fn parse_entries(bytes: &[u8]) -> Result<HashMap<String, TensorEntry>, String> {
    let prefix = bytes.first_chunk::<8>().ok_or("it is shorter than a header")?;
    let header_len = u64::from_le_bytes(*prefix);
    let rest = &bytes[8..];
    if header_len > HEADER_MAX || header_len > rest.len() as u64 {
        return Err(format!("its header of {header_len} bytes does not fit the file"));
    }
    let (header, data) = rest.split_at(header_len as usize);
    let data_start = 8 + header.len();
    let Entries(entries) =
        serde_json::from_slice(header).map_err(|error| format!("its header is no tensor directory: {error}"))?;

    let mut tensors = HashMap::with_capacity(entries.len());
    for (name, entry) in entries {
        let storage = dtype::safetensors(&entry.dtype)
            .ok_or_else(|| format!("tensor `{name}` has the unknown type {}", entry.dtype))?;
        if entry.shape.len() > 4 {
            return Err(format!("tensor `{name}` has {} dimensions", entry.shape.len()));
        }
        let [start, end] = entry.data_offsets;
        let len = storage.bytes(&entry.shape).ok_or_else(|| format!("the size of tensor `{name}` overflows"))?;
        if end < start || end - start != len {
            return Err(format!("tensor `{name}` of shape {:?} cannot lie at {start}..{end}", entry.shape));
        }
        if end > data.len() as u64 {
            return Err(format!(
                "tensor `{name}` ends at {end}, past the end of the file (a download that broke off?)"
            ));
        }
        let entry = TensorEntry {
            storage,
            shape: entry.shape.iter().map(|&dim| dim as usize).collect(),
            range: data_start + start as usize..data_start + end as usize,
        };
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(format!("the tensor `{name}` appears twice"));
        }
    }
    check_disjoint(&tensors)?;
    Ok(tensors)
}
