//! Lanes as two AVX registers, with FMA and F16C.

use std::arch::x86_64::*;

use super::{Dots, Lanes};
use crate::math::Real;

#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

macro_rules! instruction {
    ($($name:ident($($arg:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self),*) -> Self {
            // SAFETY: a value of this type exists only where AVX2 and FMA do.
            unsafe { Avx2($intrinsic(self.0, $($arg.0),*), $intrinsic(self.1, $($arg.1),*)) }
        }
    )*};
}

/// The last three steps of the fixed tree of sums: 8 lanes to one.
///
/// # Safety
/// AVX is enabled.
#[inline(always)]
pub(super) unsafe fn reduce_half(half: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
        let eighth = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
        _mm_cvtss_f32(_mm_add_ss(eighth, _mm_movehdup_ps(eighth)))
    }
}

impl Avx2 {
    /// # Safety
    /// AVX2 is enabled.
    #[inline(always)]
    unsafe fn from_words(low: __m256i, high: __m256i) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Avx2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)) }
    }
}

impl Real for Avx2 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: called only below a wrapper that enables AVX2.
        unsafe { Avx2(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }

    instruction! {
        add(other) = _mm256_add_ps;
        sub(other) = _mm256_sub_ps;
        mul(other) = _mm256_mul_ps;
        div(other) = _mm256_div_ps;
        fma(by, plus) = _mm256_fmadd_ps;
        max(other) = _mm256_max_ps;
        min(other) = _mm256_min_ps;
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: a value of this type exists only where AVX2 does.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Avx2(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
        }
    }

    #[inline(always)]
    fn with_sign_of(self, other: Self) -> Self {
        // SAFETY: a value of this type exists only where AVX2 does.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Avx2(_mm256_or_ps(self.0, _mm256_and_ps(other.0, sign)), _mm256_or_ps(self.1, _mm256_and_ps(other.1, sign)))
        }
    }

    #[inline(always)]
    fn pow2(self) -> Self {
        // SAFETY: a value of this type exists only where AVX2 does.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias);
            Avx2(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)))
        }
    }
}

impl Lanes for Avx2 {
    // A lane vector takes two of 16 registers: 12 for accumulators, two for weights.
    const ACCUMULATORS: usize = 6;
    const ROWS: usize = 6;

    #[inline(always)]
    fn reduce(self) -> f32 {
        // SAFETY: a value of this type exists only where AVX2 does.
        unsafe { reduce_half(_mm256_add_ps(self.0, self.1)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise, and the type's.
        unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise, and the type's.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise, and the type's.
        unsafe {
            Avx2(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise, and the type's.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            Avx2(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise, and the type's.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            Avx2::from_words(_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)))
        }
    }
}

impl Dots for Avx2 {
    type Sums = (__m256i, __m256i);
    type Codes = (__m256i, __m256i);
    // A row takes two registers for its sums and two for its results.
    const ROWS_TOGETHER: usize = 2;
    const BIAS: i32 = 0;

    #[inline(always)]
    fn sums(value: i32) -> Self::Sums {
        // SAFETY: called only below a wrapper that enables AVX2.
        unsafe { (_mm256_set1_epi32(value), _mm256_set1_epi32(value)) }
    }

    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> (Self::Codes, Self::Codes) {
        // SAFETY: the caller's promise, and the type's.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let (first, second) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast()));
            let low = (_mm256_and_si256(first, mask), _mm256_and_si256(second, mask));
            let first = _mm256_and_si256(_mm256_srli_epi16::<4>(first), mask);
            (low, (first, _mm256_and_si256(_mm256_srli_epi16::<4>(second), mask)))
        }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Codes {
        // SAFETY: the caller's promise, and the type's.
        unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())) }
    }

    #[inline(always)]
    fn dot_nibbles(sums: Self::Sums, codes: Self::Codes, x: i32) -> Self::Sums {
        // Pairs of products take 16 bits: 2 * 15 * 127 fits.
        // SAFETY: called only below a wrapper that enables AVX2.
        unsafe {
            let (x, ones) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1));
            let first = _mm256_madd_epi16(_mm256_maddubs_epi16(codes.0, x), ones);
            let second = _mm256_madd_epi16(_mm256_maddubs_epi16(codes.1, x), ones);
            (_mm256_add_epi32(sums.0, first), _mm256_add_epi32(sums.1, second))
        }
    }

    #[inline(always)]
    fn dot_bytes(sums: Self::Sums, codes: Self::Codes, x: i32) -> Self::Sums {
        // The instruction takes one side without signs: the code's sign goes to x, which is at least -127. 2 * 128 * 127 fits.
        // SAFETY: called only below a wrapper that enables AVX2.
        unsafe {
            let (x, ones) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1));
            let first = _mm256_maddubs_epi16(_mm256_abs_epi8(codes.0), _mm256_sign_epi8(x, codes.0));
            let second = _mm256_maddubs_epi16(_mm256_abs_epi8(codes.1), _mm256_sign_epi8(x, codes.1));
            let first = _mm256_madd_epi16(first, ones);
            (_mm256_add_epi32(sums.0, first), _mm256_add_epi32(sums.1, _mm256_madd_epi16(second, ones)))
        }
    }

    #[inline(always)]
    fn of_sums(sums: Self::Sums) -> Self {
        // SAFETY: called only below a wrapper that enables AVX2.
        unsafe { Avx2::from_words(sums.0, sums.1) }
    }

    #[inline(always)]
    fn prefetch(from: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}
