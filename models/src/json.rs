//! Small files beside the weights: bounded reading of JSON, and listing a folder.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::ModelError;
use crate::file::open_regular;

/// Bytes of a `tokenizer.json` that are read. The largest real one (a vocabulary of 2^18) has 34 MB.
pub(crate) const TOKENIZER_MAX: u64 = 1 << 27;
/// Bytes of any other JSON file: the largest are `tokenizer_config.json` with a megabyte, and indices of weight files.
const JSON_MAX: u64 = 1 << 24;
/// Bytes of a chat template. Published ones have up to 30 kB.
pub(crate) const TEMPLATE_MAX: u64 = 1 << 18;
/// Entries of a model's folder that are looked at.
const FOLDER_MAX: usize = 1 << 12;

/// The whole of a file of at most `bytes_max` bytes.
pub(crate) fn read_bytes(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ModelError> {
    let unreadable = |source| ModelError::Unreadable { path: path.to_owned(), source };
    let file = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > bytes_max {
        let reason = format!("it is larger than {bytes_max} bytes");
        return Err(ModelError::Damaged { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

/// Reads the JSON file at `path`.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let bytes = read_bytes(path, JSON_MAX)?;
    check(path, &bytes)?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(path, &error))
}

fn damaged(path: &Path, error: &serde_json::Error) -> ModelError {
    ModelError::Damaged { path: path.to_owned(), reason: error.to_string() }
}

/// Refuses JSON in which an object has a key twice: which of the two counts differs between readers, and what was checked
/// must be what is used. Nesting is bounded by `serde_json` (128).
pub(crate) fn check(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    serde_json::from_slice(bytes).map(|Sound| ()).map_err(|error| damaged(path, &error))
}

/// JSON without repeated keys; its values are dropped as they are read.
struct Sound;

impl<'de> Deserialize<'de> for Sound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Sound)
    }
}

impl<'de> Visitor<'de> for Sound {
    type Value = Sound;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Sound, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<Sound>()?;
            if keys.contains(&key) {
                return Err(A::Error::custom(format!("the key `{key}` appears twice")));
            }
            keys.insert(key);
        }
        Ok(Sound)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Sound, A::Error> {
        while let Some(Sound) = list.next_element()? {}
        Ok(Sound)
    }

    fn visit_unit<E>(self) -> Result<Sound, E> {
        Ok(Sound)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Sound, E> {
        Ok(Sound)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Sound, E> {
        Ok(Sound)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Sound, E> {
        Ok(Sound)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Sound, E> {
        Ok(Sound)
    }

    fn visit_str<E>(self, _: &str) -> Result<Sound, E> {
        Ok(Sound)
    }
}

/// Reads the JSON file at `path` if it is there.
pub(crate) fn read_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
    if path.is_file() { read(path).map(Some) } else { Ok(None) }
}

/// The files of `folder` whose names end with `suffix`, sorted.
pub(crate) fn files_ending(folder: &Path, suffix: &str) -> Result<Vec<PathBuf>, ModelError> {
    let unreadable = |source| ModelError::Unreadable { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for (index, entry) in std::fs::read_dir(folder).map_err(unreadable)?.enumerate() {
        if index == FOLDER_MAX {
            let reason = format!("the folder has more than {FOLDER_MAX} entries");
            return Err(ModelError::NoModel { path: folder.to_owned(), reason });
        }
        let path = entry.map_err(unreadable)?.path();
        if path.is_file() && path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(suffix)) {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}
