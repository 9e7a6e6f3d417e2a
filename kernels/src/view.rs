//! Checked views of candle's CPU storage: rows of f32 with a stride.

use candle_core::{CpuStorage, DType, Tensor};
use half::f16;

use crate::KernelError;
use crate::lines::Parts;

/// The rows that a layout describes inside its storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) start: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl Rows {
    /// Reads `[cols]` as one row and `[rows, cols]` as rows, which may lie apart but must be contiguous each; of f32.
    pub(crate) fn of(op: &'static str, what: &'static str, tensor: &Tensor) -> Result<Rows, KernelError> {
        Rows::of_type(op, what, tensor, DType::F32)
    }

    /// As [`Rows::of`], of another type.
    pub(crate) fn of_type(
        op: &'static str,
        what: &'static str,
        tensor: &Tensor,
        dtype: DType,
    ) -> Result<Rows, KernelError> {
        if tensor.dtype() != dtype {
            return Err(shape(op, what, format!("of type {:?}", tensor.dtype()), dtype.as_str()));
        }
        let layout = tensor.layout();
        let (dims, strides) = (layout.dims(), layout.stride());
        let (rows, cols, stride, inner) = match (dims, strides) {
            (&[cols], &[inner]) => (1, cols, cols, inner),
            (&[rows, cols], &[stride, inner]) => (rows, cols, stride, inner),
            _ => return Err(shape(op, what, format!("{dims:?}"), "[rows, columns]")),
        };
        let gapless = inner == 1 || cols <= 1;
        if !gapless || (rows > 1 && stride < cols) {
            let got = format!("{dims:?} with strides {strides:?}");
            return Err(shape(op, what, got, "rows without gaps inside"));
        }
        Ok(Rows { start: layout.start_offset(), rows, cols, stride: if rows > 1 { stride } else { cols.max(1) } })
    }

    /// As [`Rows::of`], of exactly this shape.
    pub(crate) fn expect(
        op: &'static str,
        what: &'static str,
        tensor: &Tensor,
        rows: usize,
        cols: usize,
    ) -> Result<Rows, KernelError> {
        let found = Rows::of(op, what, tensor)?;
        if (found.rows, found.cols) != (rows, cols) {
            let got = format!("[{}, {}]", found.rows, found.cols);
            return Err(shape(op, what, got, &format!("[{rows}, {cols}]")));
        }
        Ok(found)
    }

    /// Elements from the first of the first row to the last of the last.
    fn span(self) -> usize {
        if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.cols }
    }

    pub(crate) fn of_slice<T>(self, all: &[T]) -> RowsRef<'_, T> {
        RowsRef { data: &all[self.start..self.start + self.span()], view: self }
    }

    pub(crate) fn of_slice_mut<T>(self, all: &mut [T]) -> RowsMut<'_, T> {
        RowsMut { data: &mut all[self.start..self.start + self.span()], view: self }
    }
}

/// Rows to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowsRef<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) view: Rows,
}

impl<'a, T> RowsRef<'a, T> {
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        &self.data[row * self.view.stride..][..self.view.cols]
    }
}

/// Rows to write.
#[derive(Debug)]
pub(crate) struct RowsMut<'a, T> {
    pub(crate) data: &'a mut [T],
    pub(crate) view: Rows,
}

impl<T: Send> RowsMut<'_, T> {
    /// Calls `f(row, its columns)` for every row, in tasks of about `grain` elements shared over the pool.
    pub(crate) fn for_each(self, pool: &crate::Pool, grain: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let Rows { rows, cols, stride, .. } = self.view;
        if rows == 0 || cols == 0 {
            return;
        }
        let rows_per_task = (grain / cols).clamp(1, rows);
        let parts = Parts::new(self.data, rows_per_task * stride);
        pool.run(parts.count(), |task| {
            // SAFETY: a run calls each index once, so each part is borrowed once.
            let part = unsafe { parts.part(task) };
            for (at, row) in part.chunks_mut(stride).enumerate() {
                f(task * rows_per_task + at, &mut row[..cols]);
            }
        });
    }
}

pub(crate) fn shape(op: &'static str, what: &'static str, got: String, expected: &str) -> KernelError {
    KernelError::Shape { op, what, got, expected: expected.to_owned() }
}

pub(crate) fn in_range(op: &'static str, what: &'static str, index: usize, bound: usize) -> Result<(), KernelError> {
    if index < bound {
        return Ok(());
    }
    Err(KernelError::Range { op, what, index: index as u64, bound: bound as u64 })
}

macro_rules! typed {
    ($name:ident, $name_mut:ident, $variant:ident, $type:ty) => {
        pub(crate) fn $name(storage: &CpuStorage) -> candle_core::Result<&[$type]> {
            match storage {
                CpuStorage::$variant(data) => Ok(data),
                _ => candle_core::bail!("storage is not of type {}", stringify!($type)),
            }
        }

        pub(crate) fn $name_mut(storage: &mut CpuStorage) -> candle_core::Result<&mut [$type]> {
            match storage {
                CpuStorage::$variant(data) => Ok(data),
                _ => candle_core::bail!("storage is not of type {}", stringify!($type)),
            }
        }
    };
}

typed!(floats, floats_mut, F32, f32);
typed!(halves, halves_mut, F16, f16);
