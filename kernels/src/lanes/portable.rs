//! Lanes in plain Rust: right everywhere, and fast where the compiler has a fused multiply-add to use.

use super::Lanes;
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
    unsafe fn load_u8(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        Portable(unsafe { from.cast::<[u8; 16]>().read_unaligned() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise.
        Portable(unsafe { from.cast::<[i8; 16]>().read_unaligned() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn load_u4(from: *const u8) -> [Self; 8] {
        // SAFETY: the caller's promise.
        let words = unsafe { from.cast::<[[u8; 4]; 16]>().read_unaligned() }.map(u32::from_le_bytes);
        let mut codes = [Portable([0.0; 16]); 8];
        for (at, code) in codes.iter_mut().enumerate() {
            *code = Portable(words.map(|word| ((word >> (4 * at)) & 15) as f32));
        }
        codes
    }
}
