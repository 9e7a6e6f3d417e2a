//! Small files beside the weights: bounded reading of JSON, and listing a folder.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::ModelError;

/// Bytes of a JSON file that are read. The largest real `tokenizer.json` (a vocabulary of 2^18) has 34 MB.
const JSON_MAX: u64 = 1 << 27;

/// The whole of a small file.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
    let unreadable = |source| ModelError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(JSON_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > JSON_MAX {
        let reason = format!("it is larger than {JSON_MAX} bytes");
        return Err(ModelError::Damaged { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

/// Reads the JSON file at `path`.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    serde_json::from_slice(&read_bytes(path)?)
        .map_err(|error| ModelError::Damaged { path: path.to_owned(), reason: error.to_string() })
}

/// Reads the JSON file at `path` if it is there.
pub(crate) fn read_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ModelError> {
    if path.is_file() { read(path).map(Some) } else { Ok(None) }
}

/// The files of `folder` whose names end with `suffix`, sorted.
pub(crate) fn files_ending(folder: &Path, suffix: &str) -> Result<Vec<PathBuf>, ModelError> {
    let unreadable = |source| ModelError::Unreadable { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_file() && path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(suffix)) {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}
