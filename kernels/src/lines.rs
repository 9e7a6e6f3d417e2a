//! Memory in whole cache lines.

use crate::Pool;

/// One cache line: the alignment of everything that vector loads read.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct Line([u8; 64]);

/// Zeroed bytes that start on a cache line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    lines: Vec<Line>,
    len: usize,
}

impl Lines {
    pub(crate) fn zeroed(len: usize) -> Lines {
        Lines { lines: vec![Line([0; 64]); len.div_ceil(64)], len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `lines` holds at least `len` initialised bytes, and a `Line` has no padding.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }

    /// At least `len` f32 values, kept from call to call; their contents are whatever was left there.
    pub(crate) fn floats(&mut self, len: usize) -> &mut [f32] {
        let room = self.room(len * size_of::<f32>());
        // SAFETY: the bytes are initialised, aligned to 64, `len` floats long, and every bit pattern is an f32.
        unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast(), len) }
    }

    /// At least `len` bytes, as [`Lines::floats`].
    pub(crate) fn room(&mut self, len: usize) -> &mut [u8] {
        if self.len < len {
            *self = Lines::zeroed(len);
        }
        &mut self.bytes_mut()[..len]
    }

    /// Calls `f(index, part)` for each part of `part_len` bytes, shared over the pool.
    pub(crate) fn for_each_part(&mut self, part_len: usize, pool: &Pool, f: impl Fn(usize, &mut [u8]) + Sync) {
        let parts = Parts::new(self.bytes_mut(), part_len);
        pool.run(parts.count(), |index| {
            // SAFETY: a run calls each index once, so each part is borrowed once.
            f(index, unsafe { parts.part(index) });
        });
    }
}

/// A slice that tasks of one region write disjoint parts of.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    part_len: usize,
    slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out disjoint parts of a uniquely borrowed slice, which may be written on other threads if T may.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T], part_len: usize) -> Parts<'a, T> {
        assert!(part_len > 0, "parts hold something");
        Parts { start: slice.as_mut_ptr(), len: slice.len(), part_len, slice: std::marker::PhantomData }
    }

    pub(crate) fn count(&self) -> usize {
        self.len.div_ceil(self.part_len)
    }

    /// # Safety
    /// Each part is borrowed at most once at a time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, index: usize) -> &mut [T] {
        let start = index * self.part_len;
        assert!(start < self.len, "part {index} exists");
        // SAFETY: in bounds by the assertion and the minimum; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), self.part_len.min(self.len - start)) }
    }

    /// Several parts in a row as one slice.
    ///
    /// # Safety
    /// Each part is borrowed at most once at a time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn parts(&self, range: std::ops::Range<usize>) -> &mut [T] {
        let (start, end) = (range.start * self.part_len, (range.end * self.part_len).min(self.len));
        assert!(start <= end, "parts {range:?} exist");
        // SAFETY: in bounds by the assertion and the minimum; unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), end - start) }
    }
}
