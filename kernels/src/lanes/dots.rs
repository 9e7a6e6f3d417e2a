//! Dot products of bytes: sixteen exact sums of four products at a time.

use super::Lanes;

/// Sixteen sums of whole numbers, lane by lane. A lane takes four neighbouring codes of its output with the four values of x that all
/// lanes share. The sums are exact in 32 bits, so the instances agree whatever their order.
pub(crate) trait Dots: Lanes {
    /// Sixteen sums.
    type Sums: Copy;
    /// Four codes of sixteen outputs, made ready for the instruction.
    type Codes: Copy;
    /// Rows of x that share a loaded code at most; 1, 2, 4 or 8.
    const ROWS_TOGETHER: usize;
    /// What [`Dots::bytes`] adds to each code: the sums must begin with as much less.
    const BIAS: i32;

    /// All sums of this value.
    fn sums(value: i32) -> Self::Sums;
    /// The codes in the low and in the high half bytes.
    /// # Safety
    /// 64 bytes are readable at `from`.
    unsafe fn nibbles(from: *const u8) -> (Self::Codes, Self::Codes);
    /// The codes of whole bytes in two's complement, plus [`Dots::BIAS`].
    /// # Safety
    /// 64 bytes are readable at `from`.
    unsafe fn bytes(from: *const u8) -> Self::Codes;
    /// Adds the products of codes of [`Dots::nibbles`] with the four bytes of x, none of them -128.
    fn dot_nibbles(sums: Self::Sums, codes: Self::Codes, x: i32) -> Self::Sums;
    /// As [`Dots::dot_nibbles`], of codes of [`Dots::bytes`].
    fn dot_bytes(sums: Self::Sums, codes: Self::Codes, x: i32) -> Self::Sums;
    /// Sums below 2^24 in f32, exactly.
    fn of_sums(sums: Self::Sums) -> Self;
    /// Asks for a line of memory ahead of time. Any address will do.
    fn prefetch(from: *const u8);
}

/// As [`super::per_isa!`], for bodies over [`Dots`]: AVX-512 without VNNI takes AVX2's.
macro_rules! per_dots {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            fn vnni($($arg: $type),*) {
                $body::<$crate::lanes::Avx512>($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $type),*) {
                $body::<$crate::lanes::Avx2>($($arg),*);
            }
            assert!(isa <= $crate::Isa::current(), "the pool names an available instruction set");
            match isa {
                // SAFETY: just asserted to be available.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Amx | $crate::Isa::Avx512Vnni => unsafe { vnni($($arg),*) },
                // SAFETY: just asserted to be available.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512 | $crate::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body::<$crate::lanes::Portable>($($arg),*),
            }
        }
    };
}
pub(crate) use per_dots;
