//! What the architectures share: tensors they need, weights they pack, workspaces they fill.

use candle_core::{DType, Tensor};
use weir_kernels::launch::Element;
use weir_kernels::{Device, Matrix, PackedSource, ops};

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

/// The device that a model lies on, and the type of its activations there.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) device: Device,
    pub(crate) element: Element,
}

impl Place {
    /// The tensors `parts` (name, rows) of `columns` columns, put together by rows.
    pub(crate) fn matrix(
        &self,
        checkpoint: &Checkpoint,
        parts: &[(String, usize)],
        columns: usize,
    ) -> Result<Matrix, ModelError> {
        Ok(Matrix::load(&sources(checkpoint, parts, columns)?, self.element, &self.device)?)
    }

    /// One tensor `[rows, columns]` whose rows are looked up.
    pub(crate) fn table(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Matrix, ModelError> {
        let parts = [(name.to_owned(), rows)];
        Ok(Matrix::table(&sources(checkpoint, &parts, columns)?, self.element, &self.device)?)
    }

    /// The vectors `parts` (name, length) one after the other, as one f32 tensor.
    pub(crate) fn vectors(&self, checkpoint: &Checkpoint, parts: &[(String, usize)]) -> Result<Tensor, ModelError> {
        let mut all = Vec::new();
        for (name, len) in parts {
            all.extend(checkpoint.vector(name, *len)?);
        }
        let len = all.len();
        Ok(Tensor::from_vec(all, len, self.device.tensors())?)
    }

    /// A zeroed workspace `[rows, columns]` of activations.
    pub(crate) fn workspace(&self, rows: usize, columns: usize) -> Result<Tensor, ModelError> {
        Ok(Tensor::zeros((rows, columns), self.element.dtype(), self.device.tensors())?)
    }

    /// A zeroed workspace `[rows, columns]` of f32.
    pub(crate) fn floats(&self, rows: usize, columns: usize) -> Result<Tensor, ModelError> {
        Ok(Tensor::zeros((rows, columns), DType::F32, self.device.tensors())?)
    }

    /// Appends the rows of a workspace to `out`, in f32.
    pub(crate) fn append_rows(&self, out: &mut Vec<f32>, workspace: &Tensor) -> Result<(), ModelError> {
        Ok(ops::read_rows(workspace, out, &self.device)?)
    }
}

fn sources<'a>(
    checkpoint: &'a Checkpoint,
    parts: &[(String, usize)],
    columns: usize,
) -> Result<Vec<PackedSource<'a>>, ModelError> {
    let source = |(name, rows): &(String, usize)| {
        let tensor = checkpoint.shaped(name, &[*rows, columns])?;
        Ok(PackedSource { dtype: tensor.dtype, n: *rows, k: columns, bytes: tensor.bytes })
    };
    parts.iter().map(source).collect()
}

/// The first `rows` rows of a workspace.
pub(crate) fn rows(workspace: &Tensor, rows: usize) -> Result<Tensor, ModelError> {
    Ok(workspace.narrow(0, 0, rows)?)
}
