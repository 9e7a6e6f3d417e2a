//! An op's arguments as the kernels of a GPU see them: addresses, checked against the op's shapes on the host.

use std::sync::OnceLock;

use candle_core::{DType, Storage, Tensor};

use crate::attention::AttentionRow;
use crate::cuda::{Buffer, Stream};
use crate::launch::attention::{AttentionPlan, AttentionShape};
use crate::launch::segment::{SegmentPlan, SegmentShape};
use crate::launch::{Element, KvAt, Launch, RowsAt};
use crate::view::{Rows, shape};
use crate::{Device, KernelError};

/// The tensors of one op on a stream: its first says of which element type all its rows are.
pub(crate) struct Operands<'a> {
    op: &'static str,
    pub(crate) stream: &'a Stream,
    pub(crate) element: Element,
}

impl<'a> Operands<'a> {
    pub(crate) fn of(op: &'static str, first: &Tensor, stream: &'a Stream) -> Result<Operands<'a>, KernelError> {
        let element = Element::of(first.dtype())
            .ok_or_else(|| shape(op, "out", format!("of type {:?}", first.dtype()), "f32, f16 or bf16"))?;
        Ok(Operands { op, stream, element })
    }

    /// Rows of the op's element type, of any shape.
    pub(crate) fn rows(&self, what: &'static str, tensor: &Tensor) -> Result<RowsAt, KernelError> {
        self.rows_of(self.element, what, tensor)
    }

    /// Rows of an element type of their own.
    pub(crate) fn rows_of(&self, element: Element, what: &'static str, tensor: &Tensor) -> Result<RowsAt, KernelError> {
        let view = Rows::of_type(self.op, what, tensor, element.dtype())?;
        let narrow = |value: usize| {
            u32::try_from(value).map_err(|_| shape(self.op, what, format!("{:?}", tensor.dims()), "below 2^32 a side"))
        };
        let base = self.stream.address(self.op, tensor)?;
        Ok(RowsAt {
            ptr: base + (view.start * element.bytes()) as u64,
            rows: narrow(view.rows)?,
            cols: narrow(view.cols)?,
            stride: narrow(view.stride)?,
        })
    }

    /// Rows of the op's element type, of exactly this shape.
    pub(crate) fn expect(
        &self,
        what: &'static str,
        tensor: &Tensor,
        rows: usize,
        cols: usize,
    ) -> Result<RowsAt, KernelError> {
        let found = self.rows(what, tensor)?;
        if (found.rows as usize, found.cols as usize) != (rows, cols) {
            let got = format!("[{}, {}]", found.rows, found.cols);
            return Err(shape(self.op, what, got, &format!("[{rows}, {cols}]")));
        }
        Ok(found)
    }

    /// The address of `len` f32 without gaps: norm weights, biases.
    pub(crate) fn floats(&self, what: &'static str, tensor: &Tensor, len: usize) -> Result<u64, KernelError> {
        let view = Rows::of_type(self.op, what, tensor, DType::F32)?;
        if (view.rows, view.cols) != (1, len) {
            return Err(shape(self.op, what, format!("{:?}", tensor.dims()), &format!("[{len}]")));
        }
        Ok(self.stream.address(self.op, tensor)? + 4 * view.start as u64)
    }

    /// The KV tensor, of the op's element type.
    pub(crate) fn kv(&self, kv: &Tensor, layer: usize) -> Result<KvAt, KernelError> {
        let view = crate::kv::KvView::of_type(self.op, kv, layer, self.element.dtype())?;
        let start = (view.start * self.element.bytes()) as u64;
        // A block table counts blocks in u32, and a model's layers and heads are far fewer.
        let narrow = |value: usize| value as u32;
        Ok(KvAt {
            ptr: self.stream.address(self.op, kv)? + start,
            blocks: narrow(view.blocks),
            layers: narrow(view.layers),
            kv_heads: narrow(view.kv_heads),
            head_dim: narrow(view.head_dim),
        })
    }

    pub(crate) fn launch(&self, launch: &Launch) -> Result<(), KernelError> {
        self.stream.launch(launch)
    }
}

/// Numbers that ops read beside their tensors: ids, positions, slots. A GPU gets them with the first op that reads them, once.
#[derive(Debug, Default)]
pub struct Indices {
    host: Vec<u32>,
    device: OnceLock<Buffer>,
}

impl Indices {
    /// The numbers.
    pub fn host(&self) -> &[u32] {
        &self.host
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.host.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.host.is_empty()
    }

    /// Where the stream's kernels read them.
    pub(crate) fn on(&self, stream: &Stream) -> Result<u64, KernelError> {
        uploaded(&self.device, || stream.upload(&self.host))
    }
}

impl From<Vec<u32>> for Indices {
    fn from(host: Vec<u32>) -> Indices {
        Indices { host, device: OnceLock::new() }
    }
}

impl From<&[u32]> for Indices {
    fn from(host: &[u32]) -> Indices {
        host.to_vec().into()
    }
}

/// The address of what is uploaded once.
pub(crate) fn uploaded(
    place: &OnceLock<Buffer>,
    upload: impl FnOnce() -> Result<Buffer, KernelError>,
) -> Result<u64, KernelError> {
    if let Some(buffer) = place.get() {
        return Ok(buffer.address());
    }
    // Should two threads come at once, one upload is dropped after the stream has passed it.
    let buffer = upload()?;
    Ok(place.get_or_init(|| buffer).address())
}

/// Segments of a packed batch: texts of an encoder, one after the other.
#[derive(Debug)]
pub struct Segments {
    lens: Vec<u32>,
    /// First row of each, then the rows of all.
    starts: Indices,
    /// How a GPU attends to them, and the plan's words where its kernels read them.
    plan: OnceLock<(SegmentShape, SegmentPlan, Buffer)>,
}

impl Segments {
    /// Rows of each segment.
    pub fn lens(&self) -> &[u32] {
        &self.lens
    }

    /// First row of each segment, then the rows of all.
    pub(crate) fn starts(&self) -> &Indices {
        &self.starts
    }

    /// How a GPU attends to them, made with the first layer's call and the same for all layers.
    pub(crate) fn plan(&self, shape: SegmentShape, stream: &Stream) -> Result<(&SegmentPlan, u64), KernelError> {
        if self.plan.get().is_none() {
            let plan = SegmentPlan::new(&self.lens, shape)?;
            let words = stream.upload(plan.words())?;
            let _ = self.plan.set((shape, plan, words));
        }
        let (planned, plan, words) = self.plan.get().expect("it has just been set");
        same_shape("segment_attention", *planned, shape)?;
        Ok((plan, words.address()))
    }
}

impl From<&[u32]> for Segments {
    fn from(lens: &[u32]) -> Segments {
        let mut starts = Vec::with_capacity(lens.len() + 1);
        let mut next = 0u32;
        starts.push(next);
        for len in lens {
            next = next.saturating_add(*len);
            starts.push(next);
        }
        Segments { lens: lens.to_vec(), starts: starts.into(), plan: OnceLock::new() }
    }
}

/// The rows of one step as attention reads them: the same for all layers, so that a GPU is told once.
#[derive(Debug)]
pub struct AttentionBatch<'a> {
    rows: &'a [AttentionRow<'a>],
    plan: OnceLock<PlannedAttention>,
}

/// How a GPU attends to the rows of one step.
#[derive(Debug)]
struct PlannedAttention {
    shape: AttentionShape,
    plan: AttentionPlan,
    words: Buffer,
    workspace: Buffer,
}

impl<'a> AttentionBatch<'a> {
    /// The rows.
    pub fn rows(&self) -> &'a [AttentionRow<'a>] {
        self.rows
    }

    /// Whether a GPU has been told of them, which also means that they were found sound.
    pub(crate) fn is_planned(&self) -> bool {
        self.plan.get().is_some()
    }

    /// What runs one layer's attention: made with the first layer's call.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn launches(
        &self,
        shape: AttentionShape,
        stream: &Stream,
        out: RowsAt,
        q: RowsAt,
        kv: KvAt,
        layer: u32,
        scale: f32,
    ) -> Result<Vec<Launch>, KernelError> {
        if self.plan.get().is_none() {
            let plan = AttentionPlan::new(self.rows, shape)?;
            let words = stream.upload(plan.words())?;
            let workspace = stream.buffer(plan.workspace_bytes())?;
            let _ = self.plan.set(PlannedAttention { shape, plan, words, workspace });
        }
        let planned = self.plan.get().expect("it has just been set");
        same_shape("paged_attention", planned.shape, shape)?;
        let (words, workspace) = (planned.words.address(), planned.workspace.address());
        planned.plan.launches(out, q, kv, layer, scale, words, workspace)
    }
}

impl<'a> From<&'a [AttentionRow<'a>]> for AttentionBatch<'a> {
    fn from(rows: &'a [AttentionRow<'a>]) -> AttentionBatch<'a> {
        AttentionBatch { rows, plan: OnceLock::new() }
    }
}

/// A plan is for one shape; all layers of a model have the same.
fn same_shape<T: PartialEq + std::fmt::Debug>(op: &'static str, planned: T, asked: T) -> Result<(), KernelError> {
    if planned == asked {
        return Ok(());
    }
    Err(shape(op, "shape", format!("{asked:?}"), &format!("{planned:?}, as in the layers before")))
}

/// Appends the values of `rows`, `[m, d]` without gaps of f32, f16 or bf16, to `out` in f32, once the device has written them.
///
/// # Errors
/// If they are no such rows, or the device is lost.
pub fn read_rows(rows: &Tensor, out: &mut Vec<f32>, device: &Device) -> Result<(), KernelError> {
    const OP: &str = "read_rows";
    let element = Element::of(rows.dtype())
        .ok_or_else(|| shape(OP, "rows", format!("of type {:?}", rows.dtype()), "f32, f16 or bf16"))?;
    let view = Rows::of_type(OP, "rows", rows, element.dtype())?;
    if !rows.is_contiguous() {
        return Err(shape(OP, "rows", format!("{:?}", rows.layout()), "rows without gaps"));
    }
    match device.stream() {
        Some(stream) => {
            let mut bytes = vec![0; view.rows * view.cols * element.bytes()];
            let start = (view.start * element.bytes()) as u64;
            stream.read(stream.address(OP, rows)? + start, &mut bytes)?;
            out.extend(element.read(&bytes));
        }
        None => {
            let (storage, _) = rows.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else {
                return Err(shape(OP, "rows", "on a GPU".into(), "on the CPU, as the device"));
            };
            out.extend_from_slice(&crate::view::floats(storage)?[view.start..view.start + view.rows * view.cols]);
        }
    }
    Ok(())
}
