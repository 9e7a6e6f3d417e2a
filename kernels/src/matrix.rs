//! Weight matrices on whichever device.

use crate::cuda::CudaMatrix;
use crate::launch::Element;
use crate::{Device, KernelError, PackedMatrix, PackedSource};

/// Parts of a matrix that is put together by rows.
pub(crate) type PackedSources<'a> = &'a [PackedSource<'a>];

/// A weight matrix `[n outputs, k inputs]`, in the order that the product of its device reads: packed on the CPU
/// ([`PackedMatrix`]); on a GPU as rows of the activations' type, or in the blocks of a GGUF type.
#[derive(Debug)]
pub struct Matrix(pub(crate) Weights);

#[derive(Debug)]
pub(crate) enum Weights {
    Packed(PackedMatrix),
    Cuda(CudaMatrix),
}

impl Matrix {
    /// Puts a matrix together from parts with rows of one length, for activations of `element`. Work on the host is shared over the
    /// device's pool.
    ///
    /// # Errors
    /// If a row is not a whole number of its type's blocks, bytes do not fit shapes, parts do not fit each other, or the device has
    /// no room.
    pub fn load(parts: &[PackedSource<'_>], element: Element, device: &Device) -> Result<Matrix, KernelError> {
        match device.stream() {
            None => PackedMatrix::concat(parts, device.pool()).map(Matrix::from),
            Some(stream) => Ok(Matrix(Weights::Cuda(stream.matrix(parts, element)?))),
        }
    }

    /// As [`Matrix::load`], for a table whose rows [`crate::ops::embed`] reads: on a GPU it is never kept in blocks.
    ///
    /// # Errors
    /// As [`Matrix::load`].
    pub fn table(parts: &[PackedSource<'_>], element: Element, device: &Device) -> Result<Matrix, KernelError> {
        match device.stream() {
            Some(stream) if parts.iter().any(|part| part.dtype.block_len() > 1) => {
                let packed = PackedMatrix::concat(parts, device.pool())?;
                let bytes = rows_of(&packed, element, device);
                let dtype = element.weights();
                let part = PackedSource { dtype, n: packed.n(), k: packed.k(), bytes: &bytes };
                Ok(Matrix(Weights::Cuda(stream.matrix(&[part], element)?)))
            }
            _ => Matrix::load(parts, element, device),
        }
    }

    /// The packed form that it has on the CPU.
    pub fn packed(&self) -> Option<&PackedMatrix> {
        match &self.0 {
            Weights::Packed(matrix) => Some(matrix),
            Weights::Cuda(_) => None,
        }
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        match &self.0 {
            Weights::Packed(matrix) => matrix.n(),
            Weights::Cuda(matrix) => matrix.n(),
        }
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        match &self.0 {
            Weights::Packed(matrix) => matrix.k(),
            Weights::Cuda(matrix) => matrix.k(),
        }
    }
}

impl From<PackedMatrix> for Matrix {
    fn from(matrix: PackedMatrix) -> Matrix {
        Matrix(Weights::Packed(matrix))
    }
}

/// The rows of a matrix in an element type, row-major and little-endian.
pub(crate) fn rows_of(matrix: &PackedMatrix, element: Element, device: &Device) -> Vec<u8> {
    let row_bytes = matrix.k() * element.bytes();
    let mut bytes = vec![0; matrix.n() * row_bytes];
    let parts = crate::lines::Parts::new(&mut bytes, row_bytes.max(1));
    device.pool().run(if row_bytes == 0 { 0 } else { matrix.n() }, |row| {
        let mut values = vec![0.0; matrix.k()];
        matrix.dequantize_row(row, &mut values);
        // SAFETY: a run calls each index once, so each part is borrowed once.
        let to = unsafe { parts.part(row) };
        element.write(&values, to);
    });
    bytes
}
