//! The paged KV tensor: its order in memory, and writing to it.
//!
//! One tensor `[blocks, layers, 2, kv_heads, 32, head_dim]`, on the CPU of f16: a block's bytes are contiguous, so one copy moves a block. The
//! tile of one head holds values as `[position][head_dim]` but keys as `[head_dim][position]`, so that scores of 32 positions are
//! two vectors and no dot product sums across lanes. (On a GPU it is of the activations' type, and keys lie as values do.) What lies in a tile is this crate's own affair: only [`kv_write`] and
//! [`crate::ops::paged_attention`] look inside.

use candle_core::{CpuStorage, DType, InplaceOp3, Layout, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::operands::{Indices, Operands};
use crate::view::{Rows, floats, halves_mut, in_range, shape};
use crate::{Device, KernelError, Pool, launch};

/// Positions in a block.
pub const BLOCK_LEN: usize = 32;

/// Rows below which a write is not worth sharing.
const ROWS_SHARED_MIN: usize = 16;

/// The KV tensor's shape and place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KvView {
    pub(crate) start: usize,
    pub(crate) blocks: usize,
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl KvView {
    pub(crate) fn of(op: &'static str, kv: &Tensor, layer: usize) -> Result<KvView, KernelError> {
        KvView::of_type(op, kv, layer, DType::F16)
    }

    pub(crate) fn of_type(op: &'static str, kv: &Tensor, layer: usize, dtype: DType) -> Result<KvView, KernelError> {
        let &[blocks, layers, 2, kv_heads, BLOCK_LEN, head_dim] = kv.dims() else {
            let got = format!("{:?}", kv.dims());
            return Err(shape(op, "kv", got, "[blocks, layers, 2, kv_heads, 32, head_dim]"));
        };
        if kv.dtype() != dtype || !kv.is_contiguous() {
            let got = format!("{:?} {:?}", kv.dtype(), kv.layout());
            return Err(shape(op, "kv", got, &format!("{} without gaps", dtype.as_str())));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(16) {
            return Err(shape(op, "head_dim", head_dim.to_string(), "a multiple of 16"));
        }
        in_range(op, "layer", layer, layers)?;
        Ok(KvView { start: kv.layout().start_offset(), blocks, layers, kv_heads, head_dim })
    }

    /// Where the key tile of a head begins.
    pub(crate) fn keys(self, block: usize, layer: usize, kv_head: usize) -> usize {
        let tile = (block * self.layers + layer) * 2 * self.kv_heads + kv_head;
        self.start + tile * BLOCK_LEN * self.head_dim
    }

    /// Where its value tile begins.
    pub(crate) fn values(self, block: usize, layer: usize, kv_head: usize) -> usize {
        self.keys(block, layer, kv_head) + self.kv_heads * BLOCK_LEN * self.head_dim
    }
}

struct KvWrite<'a> {
    kv: KvView,
    k: Rows,
    v: Rows,
    layer: usize,
    slots: &'a [u32],
    pool: &'a Pool,
}

/// The KV tensor's elements, shared by tasks that write different heads.
struct Shared(*mut f16);

// SAFETY: tasks write the tiles of different heads.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// The tile at `start` lies in the tensor, and nobody else has it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn tile(&self, start: usize, len: usize) -> &mut [f16] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

impl InplaceOp3 for KvWrite<'_> {
    fn name(&self) -> &'static str {
        "kv_write"
    }

    fn cpu_fwd(
        &self,
        kv: &mut CpuStorage,
        _: &Layout,
        k: &CpuStorage,
        _: &Layout,
        v: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<()> {
        let kv = Shared(halves_mut(kv)?.as_mut_ptr());
        let k = self.k.of_slice(floats(k)?);
        let v = self.v.of_slice(floats(v)?);
        let dim = self.kv.head_dim;
        let len = BLOCK_LEN * dim;
        let write = |head: usize| {
            for (row, slot) in self.slots.iter().enumerate() {
                let (block, position) = (*slot as usize / BLOCK_LEN, *slot as usize % BLOCK_LEN);
                // SAFETY: blocks and layer were checked against the tensor, and only this task has this head.
                let keys = unsafe { kv.tile(self.kv.keys(block, self.layer, head), len) };
                let column = keys[position..].iter_mut().step_by(BLOCK_LEN);
                for (key, k) in column.zip(&k.row(row)[head * dim..][..dim]) {
                    *key = f16::from_f32(*k);
                }
                // SAFETY: as above; the key tile's borrow has ended.
                let values = unsafe { kv.tile(self.kv.values(block, self.layer, head), len) };
                values[position * dim..][..dim].convert_from_f32_slice(&v.row(row)[head * dim..][..dim]);
            }
        };
        if self.slots.len() < ROWS_SHARED_MIN {
            (0..self.kv.kv_heads).for_each(write);
        } else {
            self.pool.run(self.kv.kv_heads, write);
        }
        Ok(())
    }
}

/// Writes the keys and values of a step: `k` and `v` are `[m, kv_heads * head_dim]` (column ranges of fused rows, as a rule), row
/// i goes to `slots[i]` = block * 32 + position in the block. Rounds to f16.
///
/// # Errors
/// If the shapes do not fit or a slot lies outside the tensor.
pub fn kv_write(
    kv: &Tensor,
    k: &Tensor,
    v: &Tensor,
    layer: usize,
    slots: &Indices,
    device: &Device,
) -> Result<(), KernelError> {
    let view = KvView::of_type("kv_write", kv, layer, kv.dtype())?;
    let cols = view.kv_heads * view.head_dim;
    for slot in slots.host() {
        in_range("kv_write", "slot", *slot as usize, view.blocks * BLOCK_LEN)?;
    }
    if let Some(stream) = device.stream() {
        let on = Operands::of("kv_write", kv, stream)?;
        let (k, v) = (on.expect("k", k, slots.len(), cols)?, on.expect("v", v, slots.len(), cols)?);
        return on.launch(&launch::kv::kv_write(on.element, on.kv(kv, layer)?, k, v, layer as u32, slots.on(stream)?));
    }
    let view = KvView::of("kv_write", kv, layer)?;
    let (slots, pool) = (slots.host(), device.pool());
    let op = KvWrite {
        kv: view,
        k: Rows::expect("kv_write", "k", k, slots.len(), cols)?,
        v: Rows::expect("kv_write", "v", v, slots.len(), cols)?,
        layer,
        slots,
        pool,
    };
    Ok(kv.inplace_op3(k, v, &op)?)
}
