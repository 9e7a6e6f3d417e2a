//! Sixteen f32 lanes, once for each instruction set.
//!
//! A body is written once over [`Lanes`] as an `#[inline(always)]` generic and instantiated by [`per_isa!`] inside functions that
//! enable the instruction set, so that the compiler inlines one into the other. Every operation is an IEEE-754 one, lane by lane,
//! so the instances agree bit for bit.
//!
//! A trap: a closure inside a body is a function of its own, without the wrapper's instruction set, and makes every lane operation in
//! it a call. Bodies use loops, and closures only for what holds no lanes.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dots;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use dots::{Dots, per_dots};
pub(crate) use portable::Portable;

use crate::math::Real;

/// Sixteen f32. The arithmetic of [`Real`] and the loads below may use instructions that the build does not assume: values of these
/// types exist only below a [`per_isa!`] wrapper that the machine supports.
pub(crate) trait Lanes: Real {
    /// Accumulators that stay in registers in a product tile, beside its operands.
    const ACCUMULATORS: usize;
    /// Rows of a product tile at most.
    const ROWS: usize;

    /// # Safety
    /// 16 f32 are readable at `from`.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// 16 f32 are writable at `to`.
    unsafe fn store(self, to: *mut f32);
    /// # Safety
    /// 16 f16 are readable at `from`.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// # Safety
    /// 16 bf16 are readable at `from`.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// # Safety
    /// 16 bytes are readable at `from`.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// The sum in the fixed tree of [`crate::spec::reduce`].
    #[inline(always)]
    fn reduce(self) -> f32 {
        let mut lanes = [0.0; 16];
        // SAFETY: the array holds 16 f32.
        unsafe { self.store(lanes.as_mut_ptr()) };
        crate::spec::reduce(lanes)
    }

    /// The greatest lane. Of NaNs and of zeros of both signs, any.
    #[inline(always)]
    fn reduce_max(self) -> f32 {
        let mut lanes = [0.0; 16];
        // SAFETY: the array holds 16 f32.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut max = lanes[0];
        for lane in lanes {
            max = Real::max(lane, max);
        }
        max
    }
}

/// What a tile of an instruction set may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) rows: usize,
    pub(crate) accumulators: usize,
}

/// The limits of the lanes that [`per_isa!`] chooses for `isa`.
pub(crate) fn limits(isa: crate::Isa) -> Limits {
    fn of<V: Lanes>() -> Limits {
        Limits { rows: V::ROWS, accumulators: V::ACCUMULATORS }
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        crate::Isa::Avx512 | crate::Isa::Avx512Vnni | crate::Isa::Amx => of::<Avx512>(),
        #[cfg(target_arch = "x86_64")]
        crate::Isa::Avx2 => of::<Avx2>(),
        _ => of::<Portable>(),
    }
}

/// Makes `name(isa, args)` out of a generic `body::<V: Lanes>(args)`: one instance for each instruction set, chosen by `isa`, which
/// must be available on this machine (it is, coming from a [`crate::Pool`]).
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $type),*) {
                $body::<$crate::lanes::Avx512>($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $type),*) {
                $body::<$crate::lanes::Avx2>($($arg),*);
            }
            assert!(isa <= $crate::Isa::current(), "the pool names an available instruction set");
            match isa {
                // SAFETY: just asserted to be available.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512 | $crate::Isa::Avx512Vnni | $crate::Isa::Amx => unsafe { avx512($($arg),*) },
                // SAFETY: just asserted to be available.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body::<$crate::lanes::Portable>($($arg),*),
            }
        }
    };
}
pub(crate) use per_isa;
