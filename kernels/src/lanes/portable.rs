//! Lanes in plain Rust: right everywhere, and fast where the compiler has a fused multiply-add to use.

use super::{Dots, Lanes};
use crate::math::Real;
use crate::weight::half_bits;

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 16]);

macro_rules! lane_wise {
    ($($name:ident($($arg:ident),*);)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self),*) -> Self {
            let mut lanes = self.0;
            for at in 0..16 {
                lanes[at] = Real::$name(lanes[at], $($arg.0[at]),*);
            }
            Portable(lanes)
        }
    )*};
}

impl Real for Portable {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Portable([value; 16])
    }

    lane_wise! {
        add(other);
        sub(other);
        mul(other);
        div(other);
        fma(by, plus);
        max(other);
        min(other);
        abs();
        with_sign_of(sign);
        pow2();
    }
}

impl Lanes for Portable {
    // aarch64: a lane vector takes four of 32 registers. On x86-64 this is for machines without FMA, where it is a call in any case.
    const ACCUMULATORS: usize = if cfg!(target_arch = "x86_64") { 1 } else { 6 };
    const ROWS: usize = Self::ACCUMULATORS;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise; an f32 array needs no more than f32's alignment.
        Portable(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        Portable(unsafe { from.cast::<[u16; 16]>().read_unaligned() }.map(half_bits))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        Portable(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise.
        Portable(unsafe { from.cast::<[i8; 16]>().read_unaligned() }.map(f32::from))
    }
}

impl Dots for Portable {
    type Sums = [i32; 16];
    type Codes = [i8; 64];
    const ROWS_TOGETHER: usize = 1;
    const BIAS: i32 = 0;

    #[inline(always)]
    fn sums(value: i32) -> [i32; 16] {
        [value; 16]
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> ([i8; 64], [i8; 64]) {
        // SAFETY: the caller's promise.
        let both = unsafe { from.cast::<[u8; 64]>().read_unaligned() };
        (both.map(|both| (both & 15) as i8), both.map(|both| (both >> 4) as i8))
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [i8; 64] {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[i8; 64]>().read_unaligned() }
    }

    #[inline(always)]
    fn dot_nibbles(sums: [i32; 16], codes: [i8; 64], x: i32) -> [i32; 16] {
        Self::dot_bytes(sums, codes, x)
    }

    #[inline(always)]
    fn dot_bytes(mut sums: [i32; 16], codes: [i8; 64], x: i32) -> [i32; 16] {
        let x = x.to_ne_bytes();
        for lane in 0..16 {
            for at in 0..4 {
                sums[lane] = sums[lane].wrapping_add(i32::from(codes[4 * lane + at]) * i32::from(x[at] as i8));
            }
        }
        sums
    }

    #[inline(always)]
    fn of_sums(sums: [i32; 16]) -> Self {
        Portable(sums.map(|sum| sum as f32))
    }

    #[inline(always)]
    fn prefetch(_: *const u8) {}
}
