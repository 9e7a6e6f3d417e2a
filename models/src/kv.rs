//! The paged KV store.

use candle_core::{DType, Tensor};
use weir_kernels::Device;

use crate::{ModelError, ModelInfo};

/// Positions in a block.
pub const BLOCK_LEN: usize = 32;

/// Keys and values of one model on one device, in blocks of [`BLOCK_LEN`] positions.
///
/// One tensor `[blocks, layers, 2, kv_heads, 32, head_dim]`, f16 on the CPU and of the activations' type on a GPU: the block comes first, so that moving a block is one copy.
/// Which block belongs to whom is the scheduler's business; a model reads and writes what its rows name.
#[derive(Debug)]
pub struct KvStore {
    tensor: Tensor,
    blocks: u32,
}

impl KvStore {
    /// A store of `blocks` blocks on the CPU, all zero. The system hands out its memory as blocks are first written.
    ///
    /// # Errors
    /// When there is no such memory.
    pub fn new(info: &ModelInfo, blocks: u32) -> Result<Self, ModelError> {
        // A failed allocation would end the process, so this one is tried first. It is only reserved, not touched.
        let bytes = Self::bytes_per_block(info, DType::F16).checked_mul(u64::from(blocks));
        let fits = bytes
            .and_then(|bytes| usize::try_from(bytes).ok())
            .is_some_and(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok());
        if !fits {
            return Err(ModelError::step(format!("there is no memory for {blocks} KV blocks")));
        }
        Self::zeros(info, blocks, DType::F16, &candle_core::Device::Cpu)
    }

    /// A store on any device, of the type that its kernels take. On a GPU all of its memory is taken at once.
    pub(crate) fn on(info: &ModelInfo, blocks: u32, dtype: DType, device: &Device) -> Result<Self, ModelError> {
        match device.is_cuda() {
            false => Self::new(info, blocks),
            true => Self::zeros(info, blocks, dtype, device.tensors()),
        }
    }

    fn zeros(info: &ModelInfo, blocks: u32, dtype: DType, tensors: &candle_core::Device) -> Result<Self, ModelError> {
        let shape =
            (blocks as usize, info.layers as usize, 2, info.kv_heads as usize, BLOCK_LEN, info.head_dim as usize);
        // [blocks, layers, 2, kv_heads, 32, head_dim]
        Ok(Self { tensor: Tensor::zeros(shape, dtype, tensors)?, blocks })
    }

    /// Bytes that one block takes in a store of this type.
    pub fn bytes_per_block(info: &ModelInfo, dtype: DType) -> u64 {
        [info.layers, 2, info.kv_heads, BLOCK_LEN as u32, info.head_dim, dtype.size_in_bytes() as u32]
            .into_iter()
            .map(u64::from)
            .fold(1, u64::saturating_mul)
    }

    /// Blocks in the store.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The tensor `[blocks, layers, 2, kv_heads, 32, head_dim]`.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}
