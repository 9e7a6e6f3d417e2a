//! Random weights, straight into safetensors files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use serde_json::{Map, Value, json};
use weir_kernels::Pool;

use super::shape::TensorPlan;
use super::{MadeModel, MakeModelError};

/// Bytes of one file, but for a tensor that is larger alone; as the Hugging Face libraries split.
const FILE_BYTES_MAX: u64 = 5_000_000_000;
/// Values made and written at once, by one thread.
const PIECE: u64 = 1 << 20;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum WeightDtype {
    BF16,
    F16,
    F32,
}

impl WeightDtype {
    fn bytes(self) -> u64 {
        match self {
            WeightDtype::BF16 | WeightDtype::F16 => 2,
            WeightDtype::F32 => 4,
        }
    }

    fn safetensors_name(self) -> &'static str {
        match self {
            WeightDtype::BF16 => "BF16",
            WeightDtype::F16 => "F16",
            WeightDtype::F32 => "F32",
        }
    }

    /// What `config.json` calls it.
    pub(super) fn torch_name(self) -> &'static str {
        match self {
            WeightDtype::BF16 => "bfloat16",
            WeightDtype::F16 => "float16",
            WeightDtype::F32 => "float32",
        }
    }
}

impl FromStr for WeightDtype {
    type Err = MakeModelError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "bf16" => Ok(WeightDtype::BF16),
            "f16" => Ok(WeightDtype::F16),
            "f32" => Ok(WeightDtype::F32),
            _ => Err(MakeModelError::UnknownDtype(name.to_owned())),
        }
    }
}

/// What the tensors are filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// Values.
    Values,
    /// Nothing: the file is a hole behind its header. Enough to open a model, for tests of large shapes.
    #[cfg_attr(not(test), expect(dead_code, reason = "for tests"))]
    Holes,
}

/// A part of a tensor, and where it goes.
struct Piece<'a> {
    file: usize,
    offset: u64,
    tensor: &'a TensorPlan,
    first: u64,
    values: u64,
}

/// Writes `tensors` into `folder`, in one file or in several with an index.
pub(super) fn write(
    folder: &Path,
    tensors: &[TensorPlan],
    seed: u64,
    dtype: WeightDtype,
    fill: Fill,
    pool: &Pool,
) -> Result<MadeModel, MakeModelError> {
    let groups = split(tensors, dtype);
    let (mut files, mut pieces, mut weight_map) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (index, group) in groups.iter().enumerate() {
        let name = match groups.len() {
            1 => "model.safetensors".to_owned(),
            several => format!("model-{:05}-of-{several:05}.safetensors", index + 1),
        };
        let path = folder.join(&name);
        let at = |source| MakeModelError::Unwritable { path: path.clone(), source };
        let file = File::create_new(&path).map_err(at)?;
        let header = header(group, dtype);
        let mut offset = header.len() as u64;
        file.write_all_at(&header, 0).map_err(at)?;
        for &tensor in group {
            weight_map.insert(tensor.name.clone(), name.clone());
            let elements = tensor.elements();
            for first in (0..elements).step_by(PIECE as usize) {
                let values = PIECE.min(elements - first);
                pieces.push(Piece { file: index, offset: offset + first * dtype.bytes(), tensor, first, values });
            }
            offset += elements * dtype.bytes();
        }
        file.set_len(offset).map_err(at)?;
        files.push((path, file));
    }
    let failed = Mutex::new(None);
    if fill == Fill::Values {
        pool.run(pieces.len(), |task| {
            let piece = &pieces[task];
            let key = tensor_key(seed, &piece.tensor.name);
            let bytes = values(key, piece, dtype);
            let (path, file) = &files[piece.file];
            if let Err(source) = file.write_all_at(&bytes, piece.offset) {
                let error = MakeModelError::Unwritable { path: path.clone(), source };
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        });
    }
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let parameters: u64 = tensors.iter().map(TensorPlan::elements).sum();
    let made = MadeModel { parameters, bytes: parameters * dtype.bytes(), files: files.len() as u32 };
    if files.len() > 1 {
        let path = folder.join("model.safetensors.index.json");
        let index = json!({"metadata": {"total_size": made.bytes}, "weight_map": weight_map});
        fs::write(&path, format!("{index:#}\n")).map_err(|source| MakeModelError::Unwritable { path, source })?;
    }
    Ok(made)
}

/// Tensors by file, in order.
fn split(tensors: &[TensorPlan], dtype: WeightDtype) -> Vec<Vec<&TensorPlan>> {
    let (mut groups, mut bytes) = (vec![Vec::new()], 0);
    for tensor in tensors {
        let more = tensor.elements() * dtype.bytes();
        if bytes > 0 && bytes + more > FILE_BYTES_MAX {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += more;
        if let Some(group) = groups.last_mut() {
            group.push(tensor);
        }
    }
    groups
}

/// The length of the directory, and the directory, padded so that the data begin at a multiple of 64 bytes.
fn header(tensors: &[&TensorPlan], dtype: WeightDtype) -> Vec<u8> {
    let mut directory = Map::new();
    directory.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut begin = 0;
    for tensor in tensors {
        let end = begin + tensor.elements() * dtype.bytes();
        let entry = json!({"dtype": dtype.safetensors_name(), "shape": tensor.shape, "data_offsets": [begin, end]});
        directory.insert(tensor.name.clone(), entry);
        begin = end;
    }
    let mut text = Value::Object(directory).to_string().into_bytes();
    let len = (8 + text.len()).next_multiple_of(64) - 8;
    text.resize(len, b' ');
    [&(len as u64).to_le_bytes()[..], &text].concat()
}

/// Where a tensor's random sequence begins.
fn tensor_key(seed: u64, name: &str) -> u64 {
    let mut hash = [0; 8];
    let digest = blake3::hash(name.as_bytes());
    hash.copy_from_slice(&digest.as_bytes()[..8]);
    mixed(seed).wrapping_add(u64::from_le_bytes(hash))
}

/// SplitMix64's output function.
fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// The bytes of a piece. Value `i` of a tensor comes from word `i` of a SplitMix64 sequence that begins at the tensor's key, so
/// that any piece can be made alone.
fn values(key: u64, piece: &Piece<'_>, dtype: WeightDtype) -> Vec<u8> {
    let TensorPlan { mean, std, drawn, .. } = *piece.tensor;
    let all = (piece.first..piece.first + piece.values).map(|at| {
        if at >= drawn {
            return 0.0;
        }
        let word = mixed(key.wrapping_add(at.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        mean + std * bell(word)
    });
    let mut bytes = vec![0; (piece.values * dtype.bytes()) as usize];
    match dtype {
        WeightDtype::BF16 => put(&mut bytes, all, |value| bf16::from_f32(value).to_le_bytes()),
        WeightDtype::F16 => put(&mut bytes, all, |value| f16::from_f32_const(value).to_le_bytes()),
        WeightDtype::F32 => put(&mut bytes, all, f32::to_le_bytes),
    }
    bytes
}

fn put<const N: usize>(bytes: &mut [u8], values: impl Iterator<Item = f32>, encode: impl Fn(f32) -> [u8; N]) {
    for (place, value) in bytes.chunks_exact_mut(N).zip(values) {
        place.copy_from_slice(&encode(value));
    }
}

/// A value of mean 0 and deviation 1 that looks normal and stays within 3.5: the sum of four uniform ones. One word makes one,
/// in integers, so that no machine's logarithm can change a weight.
fn bell(word: u64) -> f32 {
    /// Deviation of the sum of four uniform 16-bit numbers: `sqrt(4 (2^32 - 1) / 12)`.
    const DEVIATION: f32 = 37_837.227;
    const MEAN: i32 = 2 * 0xffff;
    let part = |shift: u32| ((word >> shift) & 0xffff) as i32;
    (part(0) + part(16) + part(32) + part(48) - MEAN) as f32 * (1.0 / DEVIATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_deviation_that_was_asked_for() {
        let all: Vec<f64> = (0..1 << 16).map(|i| f64::from(bell(mixed(i)))).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let deviation = (all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt();
        assert!(mean.abs() < 0.01 && (deviation - 1.0).abs() < 0.01, "{mean} {deviation}");
        assert!(all.iter().all(|v| v.abs() < 3.5));
    }

    #[test]
    fn files_are_split_before_they_are_too_large() {
        let tensor = |n: u64| TensorPlan { name: n.to_string(), shape: vec![n], mean: 0.0, std: 1.0, drawn: n };
        let tensors = [2_400_000_000, 50_000_000, 100_000_000, 3_000_000_000, 1].map(tensor);
        let sizes: Vec<usize> = split(&tensors, WeightDtype::BF16).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 1, 1], "4.9 GB, 0.2 GB, 6 GB alone, and the rest");
    }
}
