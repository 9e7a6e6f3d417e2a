//! What the architectures share: tensors they need, weights they pack, workspaces they fill.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use weir_kernels::{PackedMatrix, PackedSource, Pool};

use crate::ModelError;
use crate::checkpoint::Checkpoint;

/// A tensor that an architecture needs, by name and shape.
pub(crate) type Need = (String, Vec<usize>);

/// Checks that every needed tensor is there, in its shape and in a type that can be read, and that none is left over that
/// `ignorable` does not know: a tensor nobody reads is a feature of the model that would silently be missing.
pub(crate) fn check(
    checkpoint: &Checkpoint,
    needs: &[Need],
    ignorable: impl Fn(&str) -> bool,
) -> Result<(), ModelError> {
    for (name, shape) in needs {
        checkpoint.shaped(name, shape)?;
    }
    let known: std::collections::HashSet<&str> = needs.iter().map(|(name, _)| name.as_str()).collect();
    let mut others: Vec<&str> =
        checkpoint.entries().map(|(name, _)| name).filter(|name| !known.contains(name) && !ignorable(name)).collect();
    others.sort_unstable();
    match others.first() {
        None => Ok(()),
        Some(name) => Err(ModelError::TensorUnused { tensor: (*name).to_owned() }),
    }
}

/// Packs the tensors `parts` (name, rows) of `columns` columns, put together by rows.
pub(crate) fn pack(
    checkpoint: &Checkpoint,
    parts: &[(String, usize)],
    columns: usize,
    pool: &Pool,
) -> Result<PackedMatrix, ModelError> {
    let sources = parts
        .iter()
        .map(|(name, rows)| {
            let tensor = checkpoint.shaped(name, &[*rows, columns])?;
            Ok(PackedSource { dtype: tensor.dtype, n: *rows, k: columns, bytes: tensor.bytes })
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    Ok(PackedMatrix::concat(&sources, pool)?)
}

/// The vectors `parts` (name, length) one after the other, as one f32 tensor.
pub(crate) fn vectors(checkpoint: &Checkpoint, parts: &[(String, usize)]) -> Result<Tensor, ModelError> {
    let mut all = Vec::new();
    for (name, len) in parts {
        all.extend(checkpoint.vector(name, *len)?);
    }
    let len = all.len();
    Ok(Tensor::from_vec(all, len, &Device::Cpu)?)
}

/// A zeroed f32 workspace `[rows, columns]`.
pub(crate) fn workspace(rows: usize, columns: usize) -> Result<Tensor, ModelError> {
    Ok(Tensor::zeros((rows, columns), DType::F32, &Device::Cpu)?)
}

/// The first `rows` rows of a workspace.
pub(crate) fn rows(workspace: &Tensor, rows: usize) -> Result<Tensor, ModelError> {
    Ok(workspace.narrow(0, 0, rows)?)
}

/// Appends the first `rows` rows of a workspace to `out`.
pub(crate) fn append_rows(out: &mut Vec<f32>, workspace: &Tensor, rows: usize) -> Result<(), ModelError> {
    let len = rows * workspace.dim(1)?;
    let (storage, layout) = workspace.storage_and_layout();
    let start = layout.start_offset();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => out.extend_from_slice(&values[start..start + len]),
        _ => unreachable!("workspaces are f32 on the CPU"),
    }
    Ok(())
}
