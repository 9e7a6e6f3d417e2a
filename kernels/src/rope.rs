//! Rotary position embedding.

use std::sync::OnceLock;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};

use crate::cuda::{Buffer, Stream};
use crate::operands::{Indices, Operands};
use crate::view::{Rows, floats_mut, in_range, shape};
use crate::{Device, KernelError, Pool, launch, spec};

/// Elements in one task.
const GRAIN: usize = 1 << 14;

/// Which two values of a head make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// (0, 1), (2, 3), ...: GGUF's llama files.
    Interleaved,
    /// (0, d/2), (1, d/2 + 1), ...: Hugging Face weights, and GGUF's qwen files.
    Half,
}

/// Cosines and sines of every position, computed in f64 and rounded once.
#[derive(Debug)]
pub struct RopeTable {
    /// [positions][pairs]
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
    positions: usize,
    /// The same where a GPU's kernels read it.
    device: OnceLock<(Buffer, Buffer)>,
}

impl RopeTable {
    /// A table for positions below `positions` (at least one) from the angle that each pair turns by in one position. The
    /// rotary width is twice their number; values of a head past it are not turned.
    pub fn new(inverse_frequencies: &[f64], positions: usize) -> RopeTable {
        let pairs = inverse_frequencies.len();
        let angles = (0..positions)
            .flat_map(|position| inverse_frequencies.iter().map(move |frequency| position as f64 * frequency));
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        RopeTable { cos, sin, pairs, positions, device: OnceLock::new() }
    }

    /// The usual angles: `theta ^ (-2 i / width)` for i below width / 2.
    pub fn frequencies(theta: f64, width: usize) -> Vec<f64> {
        (0..width / 2).map(|pair| theta.powf(-2.0 * pair as f64 / width as f64)).collect()
    }

    /// Positions it covers.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Where the stream's kernels read cosines and sines; uploaded with the first use.
    fn on(&self, stream: &Stream) -> Result<(u64, u64), KernelError> {
        if self.device.get().is_none() {
            let upload = |values: &[f32]| {
                let words: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
                stream.upload(&words)
            };
            let _ = self.device.set((upload(&self.cos)?, upload(&self.sin)?));
        }
        let (cos, sin) = self.device.get().expect("it has just been set");
        Ok((cos.address(), sin.address()))
    }

    /// The pairs of one position: cosines and sines.
    pub fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.pairs..(position + 1) * self.pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

struct Rope<'a> {
    x: Rows,
    head_dim: usize,
    positions: &'a [u32],
    table: &'a RopeTable,
    style: RopeStyle,
    pool: &'a Pool,
}

impl InplaceOp1 for Rope<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        self.x.of_slice_mut(floats_mut(x)?).for_each(self.pool, GRAIN, |row, x| {
            let (cos, sin) = self.table.row(self.positions[row] as usize);
            for head in x.chunks_mut(self.head_dim) {
                match self.style {
                    RopeStyle::Interleaved => spec::rope_interleaved(head, cos, sin),
                    RopeStyle::Half => spec::rope_half(head, cos, sin),
                }
            }
        });
        Ok(())
    }
}

/// Turns every head of `x[m, heads * head_dim]` in place, row i to `positions[i]`. `x` may be a column range of wider rows:
/// q and k of a fused qkv row are one range of `heads + kv_heads` heads.
///
/// # Errors
/// If the shapes do not fit or a position lies past the table.
pub fn rope(
    x: &Tensor,
    head_dim: usize,
    positions: &Indices,
    table: &RopeTable,
    style: RopeStyle,
    device: &Device,
) -> Result<(), KernelError> {
    let view = Rows::of_type("rope", "x", x, x.dtype())?;
    if view.rows != positions.len()
        || head_dim == 0
        || !view.cols.is_multiple_of(head_dim)
        || 2 * table.pairs > head_dim
    {
        let expected = format!(
            "[{}, a multiple of head_dim {head_dim}, itself at least the table's {}]",
            positions.len(),
            2 * table.pairs
        );
        return Err(shape("rope", "x", format!("{:?}", x.dims()), &expected));
    }
    for position in positions.host() {
        in_range("rope", "position", *position as usize, table.positions)?;
    }
    if let Some(stream) = device.stream() {
        let on = Operands::of("rope", x, stream)?;
        let (cos, sin) = table.on(stream)?;
        let (x, positions) = (on.rows("x", x)?, positions.on(stream)?);
        let (dim, pairs) = (head_dim as u32, table.pairs as u32);
        return on.launch(&launch::rope::rope(on.element, x, dim, positions, cos, sin, pairs, style));
    }
    let (view, positions, pool) = (Rows::of("rope", "x", x)?, positions.host(), device.pool());
    let op = Rope { x: view, head_dim, positions, table, style, pool };
    Ok(x.inplace_op1(&op)?)
}
