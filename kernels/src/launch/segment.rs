//! Attention both ways inside the segments of a packed batch: the plan of a batch, and its launch.

use super::attention::queries_per_tile;
use super::{Arg, Element, Launch, RowsAt, TILE_THREADS, head_dim_fits, tile_kernel, tile_shared_bytes};
use crate::KernelError;
use crate::view::shape;

const OP: &str = "segment_attention";

/// The attention of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentShape {
    /// Heads.
    pub heads: u32,
    /// Elements of a head: a multiple of 16, at most 256.
    pub head_dim: u32,
    /// What activations are made of.
    pub element: Element,
}

/// The attention of one packed batch, made once and good for every layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentPlan {
    words: Vec<u32>,
    rows: u32,
    shape: SegmentShape,
}

impl SegmentPlan {
    /// Plans segments of `lens` rows, which follow each other.
    ///
    /// # Errors
    /// If a segment is empty, there are no heads, or `head_dim` is not a multiple of 16 up to 256.
    pub fn new(lens: &[u32], model: SegmentShape) -> Result<SegmentPlan, KernelError> {
        head_dim_fits(OP, model.head_dim)?;
        if model.heads == 0 {
            return Err(shape(OP, "heads", "0".into(), "at least 1"));
        }
        let per_tile = queries_per_tile(model.element);
        let (mut words, mut rows) = (Vec::new(), 0);
        for len in lens {
            if *len == 0 {
                return Err(shape(OP, "segment", "empty".into(), "at least one row"));
            }
            for first in (0..*len).step_by(per_tile as usize) {
                words.extend([rows, *len, first, per_tile.min(len - first)]);
            }
            rows += len;
        }
        Ok(SegmentPlan { words, rows, shape: model })
    }

    /// What the kernel looks up: to be uploaded in one copy, at a multiple of 4 bytes.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// `out` is `[rows, heads * head_dim]`, `qkv` is `[rows, 3 * heads * head_dim]`, q then k then v, and `words` is where the plan's
    /// words lie. One launch, or none for no segments.
    ///
    /// # Errors
    /// If the tensors do not have the plan's shape.
    pub fn launches(&self, out: RowsAt, qkv: RowsAt, scale: f32, words: u64) -> Result<Vec<Launch>, KernelError> {
        let SegmentShape { heads, head_dim, element } = self.shape;
        let width = heads * head_dim;
        for (what, rows, cols) in [("out", out, width), ("qkv", qkv, 3 * width)] {
            if rows.rows < self.rows || rows.cols != cols {
                let expected = format!("[{} or more, {cols}]", self.rows);
                return Err(shape(OP, what, format!("[{}, {}]", rows.rows, rows.cols), &expected));
            }
        }
        if self.words.is_empty() {
            return Ok(Vec::new());
        }
        let (kernel, columns) = tile_kernel(head_dim, ["segment64", "segment128", "segment256"]);
        let sizes = [out.stride, qkv.stride, heads, head_dim, u32::from(qkv.wide(element))];
        let pointers = [out.ptr, qkv.ptr, words].map(Arg::Ptr);
        Ok(vec![Launch {
            module: "segment",
            kernel,
            element,
            grid: [(self.words.len() / 4) as u32, heads, 1],
            block: [TILE_THREADS, 1, 1],
            shared_bytes: tile_shared_bytes(head_dim, columns, element),
            args: [&pointers[..], &sizes.map(Arg::U32), &[Arg::F32(scale)]].concat(),
        }])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn shape_of(heads: u32, head_dim: u32, element: Element) -> SegmentShape {
        SegmentShape { heads, head_dim, element }
    }

    #[test]
    fn every_row_is_in_one_tile() {
        for element in Element::ALL {
            let lens = [1, 16, 17, 63, 64, 65, 512];
            let plan = SegmentPlan::new(&lens, shape_of(12, 32, element)).unwrap();
            let mut covered = Vec::new();
            for tile in plan.words().chunks(4) {
                assert!(tile[3] >= 1 && tile[2] + tile[3] <= tile[1]);
                covered.extend(tile[0] + tile[2]..tile[0] + tile[2] + tile[3]);
            }
            assert_eq!(covered, (0..lens.iter().sum()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(SegmentPlan::new(&[3, 0], shape_of(1, 32, Element::F32)).is_err());
        assert!(SegmentPlan::new(&[3], shape_of(0, 32, Element::F32)).is_err());
        assert!(SegmentPlan::new(&[3], shape_of(1, 24, Element::F32)).is_err());
        let plan = SegmentPlan::new(&[3], shape_of(2, 32, Element::F32)).unwrap();
        let out = RowsAt { ptr: 0, rows: 3, cols: 64, stride: 64 };
        let qkv = RowsAt { ptr: 0, rows: 3, cols: 192, stride: 192 };
        assert_eq!(plan.launches(out, qkv, 1.0, 0).unwrap().len(), 1);
        assert!(plan.launches(qkv, qkv, 1.0, 0).is_err());
        assert!(plan.launches(RowsAt { rows: 2, ..out }, qkv, 1.0, 0).is_err());
    }
}
