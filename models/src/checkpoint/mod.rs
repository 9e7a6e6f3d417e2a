//! Checkpoints: mapped weight files behind one directory of tensors.

mod dtype;
pub(crate) mod gguf;
mod mapping;
mod safetensors;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weir_kernels::WeightType;

use crate::ModelError;
pub(crate) use dtype::Storage;
pub(crate) use mapping::Mapping;

/// Where one tensor lies in its file.
#[derive(Clone, Debug)]
pub(crate) struct TensorEntry {
    pub(crate) storage: Storage,
    /// Row-major: the last dimension is contiguous.
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<usize>,
}

/// No byte may belong to two tensors: overlapping entries are a way to make a small file look like a large model.
fn check_disjoint(tensors: &HashMap<String, TensorEntry>) -> Result<(), String> {
    let mut ranges: Vec<_> = tensors.iter().map(|(name, entry)| (entry.range.start, entry.range.end, name)).collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && end > start
        {
            return Err(format!("the tensors `{first}` and `{second}` overlap"));
        }
    }
    Ok(())
}

/// A tensor as it lies in the file.
#[derive(Clone, Copy)]
pub(crate) struct RawTensor<'a> {
    pub(crate) dtype: WeightType,
    pub(crate) shape: &'a [usize],
    /// Row-major, little-endian.
    pub(crate) bytes: &'a [u8],
}

/// One or more mapped weight files.
pub(crate) struct Checkpoint {
    files: Vec<Mapping>,
    tensors: HashMap<String, (usize, TensorEntry)>,
}

impl Checkpoint {
    /// Opens a GGUF file and returns its header beside it.
    pub(crate) fn open_gguf(path: &Path) -> Result<(Self, gguf::Header), ModelError> {
        let file = Mapping::open(path)?;
        let mut header = gguf::Header::parse(path, file.bytes())?;
        let tensors = header.tensors.drain().map(|(name, entry)| (name, (0, entry))).collect();
        Ok((Self { files: vec![file], tensors }, header))
    }

    /// Opens the safetensors files of `folder`.
    pub(crate) fn open_safetensors(folder: &Path) -> Result<Self, ModelError> {
        let mut checkpoint = Self { files: Vec::new(), tensors: HashMap::new() };
        for path in safetensors_files(folder)? {
            let file = Mapping::open(&path)?;
            let index = checkpoint.files.len();
            for (name, entry) in safetensors::parse(&path, file.bytes())? {
                if checkpoint.tensors.insert(name.clone(), (index, entry)).is_some() {
                    let reason = format!("the tensor `{name}` is in another file of the folder, too");
                    return Err(ModelError::Damaged { path, reason });
                }
            }
            checkpoint.files.push(file);
        }
        Ok(checkpoint)
    }

    /// The bytes of the first file (a GGUF is one file).
    pub(crate) fn first_file(&self) -> &[u8] {
        self.files.first().map_or(&[], Mapping::bytes)
    }

    /// Whether there is a tensor `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names, types and sizes of all tensors.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &TensorEntry)> {
        self.tensors.iter().map(|(name, (_, entry))| (name.as_str(), entry))
    }

    /// The tensor `name`; an error when it is missing or in a type that cannot be read.
    pub(crate) fn tensor(&self, name: &str) -> Result<RawTensor<'_>, ModelError> {
        let (file, entry) =
            self.tensors.get(name).ok_or_else(|| ModelError::TensorMissing { tensor: name.to_owned() })?;
        Ok(RawTensor {
            dtype: entry.weight_type(name)?,
            shape: &entry.shape,
            // The range was checked against this very file.
            bytes: &self.files[*file].bytes()[entry.range.clone()],
        })
    }

    /// The tensor `name`, which must have the shape `wanted`.
    pub(crate) fn shaped(&self, name: &str, wanted: &[usize]) -> Result<RawTensor<'_>, ModelError> {
        let tensor = self.tensor(name)?;
        if tensor.shape != wanted {
            return Err(ModelError::TensorShape {
                tensor: name.to_owned(),
                found: tensor.shape.to_vec(),
                wanted: wanted.to_vec(),
            });
        }
        Ok(tensor)
    }

    /// A small float tensor (norm, bias) of shape `[len]`, widened to f32.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        self.floats(name, &[len])
    }

    /// A small float tensor of any shape, widened to f32. Matrices that products read are packed instead.
    pub(crate) fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let tensor = self.shaped(name, shape)?;
        let halves = || tensor.bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match tensor.dtype {
            WeightType::F32 => {
                Ok(tensor.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            WeightType::F16 => Ok(halves().map(|b| half::f16::from_le_bytes(b).to_f32()).collect()),
            WeightType::BF16 => Ok(halves().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()),
            other => Err(ModelError::TensorType {
                tensor: name.to_owned(),
                found: format!("{other:?}"),
                readable: "F32, F16, BF16",
            }),
        }
    }
}

impl TensorEntry {
    /// The kernels' name for the stored type, or the error that names the tensor.
    pub(crate) fn weight_type(&self, name: &str) -> Result<WeightType, ModelError> {
        self.storage.weight.ok_or_else(|| ModelError::TensorType {
            tensor: name.to_owned(),
            found: self.storage.name.to_owned(),
            readable: dtype::READABLE,
        })
    }
}

/// Files that an index may name. The largest open models have some 160.
const FILES_MAX: usize = 1 << 10;

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The files a folder's weights are in: those its index names, or else `model.safetensors`, or else the only one.
fn safetensors_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index_path = folder.join("model.safetensors.index.json");
    if index_path.is_file() {
        let index: Index = crate::json::read(&index_path)?;
        let mut names: Vec<_> = index.weight_map.into_values().collect();
        names.sort_unstable();
        names.dedup();
        // A name that leaves the folder is not a file of this model.
        if let Some(name) = names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
            let reason = format!("it names the file `{name}` outside the folder");
            return Err(ModelError::Damaged { path: index_path, reason });
        }
        if names.is_empty() || names.len() > FILES_MAX {
            let reason = format!("it names {} files, 1 to {FILES_MAX} are read", names.len());
            return Err(ModelError::Damaged { path: index_path, reason });
        }
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let mut found = crate::json::files_ending(folder, ".safetensors")?;
    match (found.pop(), found.is_empty()) {
        (Some(path), true) => Ok(vec![path]),
        (None, _) => Err(ModelError::NoModel {
            path: folder.to_owned(),
            reason: "it has a config.json but no *.safetensors".into(),
        }),
        (Some(_), false) => Err(ModelError::NoModel {
            path: folder.to_owned(),
            reason: "it has several *.safetensors but no model.safetensors.index.json".into(),
        }),
    }
}
