//! Lanes as one AVX-512 register.

use std::arch::x86_64::*;

use super::{Dots, Lanes};
use crate::math::Real;

#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

macro_rules! instruction {
    ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self),*) -> Self {
            // SAFETY: a value of this type exists only where AVX-512 does.
            Avx512(unsafe { $intrinsic(self.0, $($arg.0),*) })
        }
    )*};
}

impl Real for Avx512 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: called only below a wrapper that enables AVX-512.
        Avx512(unsafe { _mm512_set1_ps(value) })
    }

    instruction! {
        add(other) = _mm512_add_ps;
        sub(other) = _mm512_sub_ps;
        mul(other) = _mm512_mul_ps;
        div(other) = _mm512_div_ps;
        fma(by, plus) = _mm512_fmadd_ps;
        max(other) = _mm512_max_ps;
        min(other) = _mm512_min_ps;
        abs() = _mm512_abs_ps;
    }

    #[inline(always)]
    fn with_sign_of(self, sign: Self) -> Self {
        // SAFETY: a value of this type exists only where AVX-512 does.
        Avx512(unsafe { _mm512_or_ps(self.0, _mm512_and_ps(sign.0, _mm512_set1_ps(-0.0))) })
    }

    #[inline(always)]
    fn pow2(self) -> Self {
        // SAFETY: a value of this type exists only where AVX-512 does.
        Avx512(unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        })
    }
}

impl Lanes for Avx512 {
    // Of 32 registers: 24 accumulators, up to 4 weights, and the compiler's own.
    const ACCUMULATORS: usize = 24;
    const ROWS: usize = 12;

    #[inline(always)]
    fn reduce(self) -> f32 {
        // SAFETY: a value of this type exists only where AVX-512 does.
        unsafe {
            let half = _mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
            super::avx2::reduce_half(half)
        }
    }

    #[inline(always)]
    fn reduce_max(self) -> f32 {
        // SAFETY: a value of this type exists only where AVX-512 does.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise, and the type's.
        Avx512(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise, and the type's.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise, and the type's.
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise, and the type's.
        Avx512(unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        })
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise, and the type's.
        Avx512(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
    }
}

/// Below a [`super::per_dots!`] wrapper: the dot products are VNNI's.
impl Dots for Avx512 {
    type Sums = __m512i;
    type Codes = __m512i;
    const ROWS_TOGETHER: usize = 8;
    // The instruction takes codes without signs: those with signs are moved up.
    const BIAS: i32 = 128;

    #[inline(always)]
    fn sums(value: i32) -> __m512i {
        // SAFETY: called only below a wrapper that enables AVX-512.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> (__m512i, __m512i) {
        // SAFETY: the caller's promise, and the type's.
        unsafe {
            let (both, mask) = (_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(15));
            (_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask))
        }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m512i {
        // SAFETY: the caller's promise, and the type's.
        unsafe { _mm512_xor_si512(_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(-128)) }
    }

    #[inline(always)]
    fn dot_nibbles(sums: __m512i, codes: __m512i, x: i32) -> __m512i {
        // SAFETY: called only below a wrapper that enables VNNI.
        unsafe { _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    fn dot_bytes(sums: __m512i, codes: __m512i, x: i32) -> __m512i {
        Self::dot_nibbles(sums, codes, x)
    }

    #[inline(always)]
    fn of_sums(sums: __m512i) -> Self {
        // SAFETY: called only below a wrapper that enables AVX-512.
        Avx512(unsafe { _mm512_cvtepi32_ps(sums) })
    }

    #[inline(always)]
    fn prefetch(from: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}
