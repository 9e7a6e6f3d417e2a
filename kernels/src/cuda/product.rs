//! Products on the GPU: cuBLAS for float weights, candle's kernels for GGUF's blocks.
//!
//! `out[m, n] = x[m, k] w[n, k]^T` with rows in memory is, to cuBLAS, which thinks in columns, `out^T = w x^T` with `w` transposed.
//! Sums are f32 in every case; f32 operands are multiplied as f32 (no tf32). Results may differ in the last bits between batch
//! sizes, since cuBLAS picks its algorithm by shape.

use std::{borrow::Cow, ffi::c_void, sync::Arc};

use candle_core::{
    DType, Module, Tensor,
    quantized::{GgmlDType, QMatMul, QStorage, QTensor},
};
use cudarc::cublas::{result, sys};

use super::{Stream, failed};
use crate::launch::{Element, RowsAt, elementwise};
use crate::matrix::PackedSources;
use crate::operands::Operands;
use crate::{KernelError, PackedSource, WeightType};

/// A weight matrix on a GPU.
#[derive(Debug)]
pub(crate) struct CudaMatrix {
    parts: Vec<Part>,
    n: usize,
    k: usize,
}

/// Rows of it that one product computes.
#[derive(Debug)]
struct Part {
    /// First output.
    first: usize,
    n: usize,
    weights: PartWeights,
}

#[derive(Debug)]
enum PartWeights {
    /// `[n, k]` of the activations' type.
    Dense(Tensor),
    /// Blocks of a GGUF type, as in the file.
    Blocks(QMatMul),
}

impl CudaMatrix {
    pub(super) fn load(
        sources: PackedSources<'_>,
        element: Element,
        stream: &Stream,
    ) -> Result<CudaMatrix, KernelError> {
        let k = sources.first().map_or(0, |source| source.k);
        let mut matrix = CudaMatrix { parts: Vec::new(), n: 0, k };
        let mut rest = sources;
        while let Some(first) = rest.first() {
            check(first, k)?;
            // Float parts that follow each other become one product.
            let dense = rest.iter().take_while(|source| is_float(source.dtype)).count();
            let (n, weights);
            if dense > 0 {
                let (together, left) = rest.split_at(dense);
                rest = left;
                n = together.iter().map(|source| source.n).sum();
                let mut bytes = Vec::with_capacity(n * k * element.bytes());
                for source in together {
                    check(source, k)?;
                    append(&mut bytes, source, element);
                }
                let device = candle_core::Device::Cuda(stream.device().clone());
                weights = PartWeights::Dense(Tensor::from_raw_buffer(&bytes, element.dtype(), &[n, k], &device)?);
            } else {
                rest = &rest[1..];
                n = first.n;
                let device = candle_core::Device::Cuda(stream.device().clone());
                // candle reads blocks in place and asserts their alignment, which a file need not have.
                let bytes = match first.bytes.as_ptr().align_offset(8) {
                    0 => Cow::Borrowed(first.bytes),
                    _ => Cow::Owned(first.bytes.to_vec()),
                };
                let storage = QStorage::from_data(bytes, &device, ggml(first.dtype))?;
                weights = PartWeights::Blocks(QMatMul::QTensor(Arc::new(QTensor::new(storage, (n, k))?)));
            }
            matrix.parts.push(Part { first: matrix.n, n, weights });
            matrix.n += n;
        }
        Ok(matrix)
    }

    pub(crate) fn n(&self) -> usize {
        self.n
    }

    pub(crate) fn k(&self) -> usize {
        self.k
    }

    pub(super) fn rows(&self, stream: &Stream, element: Element) -> Result<RowsAt, KernelError> {
        match &self.parts[..] {
            [Part { weights: PartWeights::Dense(rows), .. }] => {
                Operands::of("embed", rows, stream)?.rows_of(element, "table", rows)
            }
            _ => Err(KernelError::Device { op: "embed", message: "the matrix was not loaded as a table".into() }),
        }
    }
}

/// Runs each part's product into its columns of `out`.
pub(super) fn run(stream: &Stream, out: &Tensor, x: &Tensor, w: &CudaMatrix) -> Result<(), KernelError> {
    for part in &w.parts {
        let out = out.narrow(1, part.first, part.n)?;
        match &part.weights {
            PartWeights::Dense(weights) => dense(stream, &out, x, weights)?,
            PartWeights::Blocks(weights) => blocks(stream, &out, x, weights)?,
        }
    }
    Ok(())
}

/// By cuBLAS.
fn dense(stream: &Stream, out: &Tensor, x: &Tensor, w: &Tensor) -> Result<(), KernelError> {
    const OP: &str = "matmul";
    let (x_on, out_on) = (Operands::of(OP, x, stream)?, Operands::of(OP, out, stream)?);
    let (x, out, w) = (x_on.rows("x", x)?, out_on.rows("out", out)?, x_on.rows("weights", w)?);
    if out.rows == 0 || out.cols == 0 {
        return Ok(());
    }
    let blas = stream.device().cublas_handle();
    stream.device().cuda_stream().context().bind_to_thread().map_err(failed(OP))?;
    let (alpha, beta) = (1.0f32, 0.0f32);
    let at = |address: u64| address as *const c_void;
    // SAFETY: the addresses are of tensors of these shapes and strides, and the handle is of the stream that owns them.
    unsafe {
        result::gemm_ex(
            *blas.handle(),
            sys::cublasOperation_t::CUBLAS_OP_T,
            sys::cublasOperation_t::CUBLAS_OP_N,
            out.cols as i32,
            out.rows as i32,
            x.cols as i32,
            std::ptr::from_ref(&alpha).cast(),
            at(w.ptr),
            cublas_type(x_on.element),
            w.stride as i32,
            at(x.ptr),
            cublas_type(x_on.element),
            x.stride as i32,
            std::ptr::from_ref(&beta).cast(),
            at(out.ptr).cast_mut(),
            cublas_type(out_on.element),
            out.stride as i32,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(failed(OP))
}

/// By candle's kernels, which take and give f32.
fn blocks(stream: &Stream, out: &Tensor, x: &Tensor, w: &QMatMul) -> Result<(), KernelError> {
    let x = x.to_dtype(DType::F32)?.contiguous()?;
    let product = w.forward(&x)?;
    let on = Operands::of("matmul", out, stream)?;
    let product_rows = on.rows_of(Element::F32, "product", &product)?;
    stream.launch(&elementwise::from_f32(on.element, on.rows("out", out)?, product_rows))
}

fn cublas_type(element: Element) -> sys::cudaDataType {
    match element {
        Element::F32 => sys::cudaDataType::CUDA_R_32F,
        Element::F16 => sys::cudaDataType::CUDA_R_16F,
        Element::BF16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

fn is_float(dtype: WeightType) -> bool {
    matches!(dtype, WeightType::F32 | WeightType::F16 | WeightType::BF16)
}

/// Refuses parts whose bytes are not what type and shape imply.
fn check(source: &PackedSource<'_>, k: usize) -> Result<(), KernelError> {
    let PackedSource { dtype, n, .. } = *source;
    let block = dtype.block_len();
    let row = dtype.row_bytes(source.k).ok_or(KernelError::WeightBlock { dtype, block, k: source.k })?;
    let (expected, got) = (row.saturating_mul(n), source.bytes.len());
    if expected != got || source.k != k {
        return Err(KernelError::WeightLen { dtype, n, k, expected, got });
    }
    Ok(())
}

/// Appends float weights in the activations' type.
fn append(bytes: &mut Vec<u8>, source: &PackedSource<'_>, element: Element) {
    let from = match source.dtype {
        WeightType::F16 => Element::F16,
        WeightType::BF16 => Element::BF16,
        _ => Element::F32,
    };
    if from == element {
        return bytes.extend_from_slice(source.bytes);
    }
    let values = from.read(source.bytes);
    let start = bytes.len();
    bytes.resize(start + values.len() * element.bytes(), 0);
    element.write(&values, &mut bytes[start..]);
}

fn ggml(dtype: WeightType) -> GgmlDType {
    match dtype {
        WeightType::F32 => GgmlDType::F32,
        WeightType::F16 => GgmlDType::F16,
        WeightType::BF16 => GgmlDType::BF16,
        WeightType::Q4_0 => GgmlDType::Q4_0,
        WeightType::Q4_1 => GgmlDType::Q4_1,
        WeightType::Q5_0 => GgmlDType::Q5_0,
        WeightType::Q5_1 => GgmlDType::Q5_1,
        WeightType::Q8_0 => GgmlDType::Q8_0,
        WeightType::Q2K => GgmlDType::Q2K,
        WeightType::Q3K => GgmlDType::Q3K,
        WeightType::Q4K => GgmlDType::Q4K,
        WeightType::Q5K => GgmlDType::Q5K,
        WeightType::Q6K => GgmlDType::Q6K,
    }
}
