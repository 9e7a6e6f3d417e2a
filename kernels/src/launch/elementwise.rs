//! Launches of `elementwise.cu`. There is at least one row and one column.

use super::rows::{by_chunk, place, same};
use super::{Arg, Element, Launch, RowsAt};
use crate::ops::GeluKind;

fn launch(kernel: &'static str, element: Element, rows: RowsAt, args: &[&[Arg]]) -> Launch {
    let (grid, block) = by_chunk(element, rows.rows, rows.cols, 256);
    Launch { module: "elementwise", kernel, element, grid, block, shared_bytes: 0, args: args.concat() }
}

/// `x += y`.
pub fn add(element: Element, x: RowsAt, y: RowsAt) -> Launch {
    debug_assert!(same(x, y));
    launch("add", element, x, &[&place(x), &place(y), &[Arg::U32(x.cols)]])
}

/// `out[m, f] = silu(gate) * up` of `gate_up[m, 2 f]`, the gate columns first.
pub fn silu_mul(element: Element, out: RowsAt, gate_up: RowsAt) -> Launch {
    debug_assert!(out.rows == gate_up.rows && gate_up.cols == 2 * out.cols);
    launch("silu_mul", element, out, &[&place(out), &place(gate_up), &[Arg::U32(out.cols)]])
}

/// `x = gelu(x)`.
pub fn gelu(element: Element, x: RowsAt, kind: GeluKind) -> Launch {
    let kernel = match kind {
        GeluKind::Erf => "gelu_erf",
        GeluKind::Tanh => "gelu_tanh",
    };
    launch(kernel, element, x, &[&place(x), &[Arg::U32(x.cols)]])
}

/// `x += bias`, f32 `[columns]`, in every row.
pub fn add_bias(element: Element, x: RowsAt, bias: u64) -> Launch {
    launch("add_bias", element, x, &[&place(x), &[Arg::Ptr(bias), Arg::U32(x.cols)]])
}

/// `out[i] = x[rows[i]]`, `rows` being u32, one for each row of `out`; zeros where `x` has no such row.
pub fn gather_rows(element: Element, out: RowsAt, x: RowsAt, rows: u64) -> Launch {
    debug_assert!(out.cols == x.cols);
    let rest = [Arg::U32(x.rows), Arg::Ptr(rows), Arg::U32(x.cols)];
    launch("gather_rows", element, out, &[&place(out), &place(x), &rest])
}

/// `out = x`, `out` being f32 and `x` of `element`.
pub fn to_f32(element: Element, out: RowsAt, x: RowsAt) -> Launch {
    debug_assert!(same(out, x));
    launch("to_f32", element, x, &[&place(out), &place(x), &[Arg::U32(x.cols)]])
}

/// `out = x` rounded to the nearest, ties to even, `out` being of `element` and `x` f32.
pub fn from_f32(element: Element, out: RowsAt, x: RowsAt) -> Launch {
    debug_assert!(same(out, x));
    launch("from_f32", element, x, &[&place(out), &place(x), &[Arg::U32(x.cols)]])
}
