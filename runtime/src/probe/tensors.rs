//! Results as a safetensors file, f32, for programs in other languages.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::ProbeError;

/// A tensor of rows.
pub(super) struct Named {
    name: &'static str,
    pub(super) shape: [usize; 2],
    /// Row after row.
    pub(super) values: Vec<f32>,
}

impl Named {
    pub(super) fn new(name: &'static str, rows: usize, columns: usize) -> Self {
        Named { name, shape: [rows, columns], values: Vec::with_capacity(rows * columns) }
    }
}

/// Writes them as `NAME.0`, `NAME.1` and so on.
pub(super) fn write(path: &Path, tensors: &[Named]) -> Result<(), ProbeError> {
    let mut directory = Map::new();
    let mut begin = 0;
    for (index, tensor) in tensors.iter().enumerate() {
        let end = begin + tensor.values.len() * size_of::<f32>();
        let entry = json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end]});
        directory.insert(format!("{}.{index}", tensor.name), entry);
        begin = end;
    }
    let header = Value::Object(directory).to_string();
    let file = File::create(path).map_err(ProbeError::file(path))?;
    let mut file = BufWriter::new(file);
    let mut put = || {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for value in tensors.iter().flat_map(|tensor| &tensor.values) {
            file.write_all(&value.to_le_bytes())?;
        }
        file.flush()
    };
    put().map_err(ProbeError::file(path))
}
