//! Launches of `norm.cu`. Weights and biases are f32, `[columns]`; there is at least one row.

use super::rows::{by_row, place, same, threads};
use super::{Arg, Element, Launch, RowsAt};

const MODULE: &str = "norm";
/// Heads that one block norms, a warp each.
const HEADS: u32 = 4;

fn launch(kernel: &'static str, element: Element, rows: RowsAt, args: Vec<Arg>) -> Launch {
    let (grid, block) = by_row(element, rows.rows, rows.cols);
    Launch { module: MODULE, kernel, element, grid, block, shared_bytes: 0, args }
}

/// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row. `out` may be `x`.
pub fn rms_norm(element: Element, out: RowsAt, x: RowsAt, weight: u64, eps: f32) -> Launch {
    debug_assert!(same(out, x));
    let args = [&place(out)[..], &place(x), &[Arg::Ptr(weight), Arg::U32(x.cols), Arg::F32(eps)]].concat();
    launch("rms_norm", element, x, args)
}

/// `residual += x`, then `out = rms_norm(residual)`. `out` may be `x`.
pub fn add_rms_norm(element: Element, out: RowsAt, residual: RowsAt, x: RowsAt, weight: u64, eps: f32) -> Launch {
    debug_assert!(same(out, x) && same(residual, x));
    let rest = [Arg::Ptr(weight), Arg::U32(x.cols), Arg::F32(eps)];
    let args = [&place(out)[..], &place(residual), &place(x), &rest].concat();
    launch("add_rms_norm", element, x, args)
}

/// Each head of each row of `x[rows, heads * head_dim]` normed by `weight[head_dim]`, in place. `x` may be a column
/// range of wider rows.
pub fn head_rms_norm(element: Element, x: RowsAt, head_dim: u32, weight: u64, eps: f32) -> Launch {
    debug_assert!(x.cols.is_multiple_of(head_dim));
    let heads = x.cols / head_dim;
    let rest = [Arg::U32(x.rows), Arg::U32(heads), Arg::U32(head_dim), Arg::Ptr(weight), Arg::F32(eps)];
    let blocks = (u64::from(x.rows) * u64::from(heads)).div_ceil(u64::from(HEADS));
    Launch {
        module: MODULE,
        kernel: "head_rms_norm",
        element,
        grid: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1],
        block: threads(HEADS * super::rows::WARP, u32::MAX),
        shared_bytes: 0,
        args: [&place(x)[..], &rest].concat(),
    }
}

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias`, row by row. `out` may be `x`.
pub fn layer_norm(element: Element, out: RowsAt, x: RowsAt, weight: u64, bias: u64, eps: f32) -> Launch {
    debug_assert!(same(out, x));
    let rest = [Arg::Ptr(weight), Arg::Ptr(bias), Arg::U32(x.cols), Arg::F32(eps)];
    launch("layer_norm", element, x, [&place(out)[..], &place(x), &rest].concat())
}

/// `out = layer_norm(x + y)`, the sum not being rounded to the element type. `out` may be `x` or `y`.
pub fn add_layer_norm(element: Element, out: RowsAt, x: RowsAt, y: RowsAt, weight: u64, bias: u64, eps: f32) -> Launch {
    debug_assert!(same(out, x) && same(y, x));
    let rest = [Arg::Ptr(weight), Arg::Ptr(bias), Arg::U32(x.cols), Arg::F32(eps)];
    launch("add_layer_norm", element, x, [&place(out)[..], &place(x), &place(y), &rest].concat())
}
