//! AMX: tiles of bytes, by instruction text, as the compiler's own functions for them are not stable.
//!
//! Four products are started together, so that one loads while another computes: results in tiles 0 to 3, rows of x in
//! 4 and 5, codes in 6 and 7. The configuration is a thread's state and costs about as much as one tile; it is loaded for each task
//! and released with it, so that nobody else's tiles (candle has AMX bodies of its own) meet it, and a thread between tasks has no
//! tiles for the system to save.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

/// Rows of a tile at most.
pub(crate) const ROWS: usize = 16;
/// Bytes of a full tile, and what [`Tiles::products`] writes for each group.
pub(crate) const TILE_BYTES: usize = 1024;

/// Whether the CPU has tiles of bytes, the system saves them, and it permits them to this process, which is asked here.
pub(crate) fn permitted() -> bool {
    supported() && ask()
}

fn supported() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    /// Tile configuration and tile data.
    const STATE: u32 = 0b11 << 17;
    // The leaves asked for exist wherever AVX-512 does, of which the caller knows.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has the instruction.
    let (first, seventh) = unsafe { (__cpuid_count(1, 0), __cpuid_count(7, 0)) };
    if first.ecx & OSXSAVE == 0 || seventh.edx & AMX_TILE == 0 || seventh.edx & AMX_INT8 == 0 {
        return false;
    }
    let enabled: u32;
    // SAFETY: OSXSAVE says that the instruction may be used.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack, preserves_flags)) };
    enabled & STATE == STATE
}

#[cfg(target_os = "linux")]
fn ask() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let answer: i64;
    // SAFETY: the call reads no memory of ours. It fails where the kernel does not know it or a thread's signal stack is too small.
    unsafe {
        asm!("syscall", inlateout("rax") SYS_ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILE_DATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn ask() -> bool {
    false
}

/// As the processor reads it.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's tiles, while they are configured.
#[derive(Debug)]
pub(crate) struct Tiles {
    /// Values of a group.
    group: usize,
}

impl Tiles {
    /// Configures for products of `rows` rows of x over groups of `group` values.
    ///
    /// # Safety
    /// [`permitted`] has said yes, and this thread has no other `Tiles`.
    pub(crate) unsafe fn new(rows: usize, group: usize) -> Tiles {
        assert!((1..=ROWS).contains(&rows) && (group == 32 || group == 16), "{rows} rows, groups of {group}");
        let (rows, depth) = (rows as u8, group as u16);
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].copy_from_slice(&[64, 64, 64, 64, depth, depth, 64, 64]);
        let words = (depth / 4) as u8;
        configuration.rows[..8].copy_from_slice(&[rows, rows, rows, rows, rows, rows, words, words]);
        // SAFETY: AMX is there and permitted; the configuration is a valid one.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly)) };
        Tiles { group }
    }

    /// The exact products of one group: `sums[row][output] = x[row] . codes[output]`, all 16 outputs of a panel.
    ///
    /// # Safety
    /// x is `rows` of a group's bytes, 32 bytes apart; `codes` a group's codes in bytes; `sums` has room for `rows` cache lines.
    #[inline(always)]
    pub(crate) unsafe fn product(&self, x: *const i8, codes: *const i8, sums: *mut i32) {
        // SAFETY: the caller's promise; the tiles are configured for these shapes.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tileloadd tmm6, [{codes} + {line}]",
                "tileloadd tmm4, [{x} + {row}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tilestored [{sums} + {line}], tmm0",
                codes = in(reg) codes, x = in(reg) x, sums = in(reg) sums, line = in(reg) 64usize, row = in(reg) 32usize,
                options(nostack, preserves_flags)
            );
        }
    }

    /// As [`Tiles::product`] of four groups, their codes one behind the other, and each one's sums [`TILE_BYTES`] on.
    ///
    /// # Safety
    /// As [`Tiles::product`].
    #[inline(always)]
    pub(crate) unsafe fn products(&self, x: [*const i8; 4], codes: *const i8, sums: *mut i32) {
        let step = self.group.wrapping_mul(16);
        let second = codes.wrapping_add(step);
        let third = second.wrapping_add(step);
        let fourth = third.wrapping_add(step);
        // SAFETY: the caller's promise; the tiles are configured for these shapes.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tileloadd tmm6, [{c0} + {line}]",
                "tileloadd tmm4, [{x0} + {row}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{c1} + {line}]",
                "tileloadd tmm5, [{x1} + {row}]",
                "tdpbssd tmm1, tmm5, tmm7",
                "tileloadd tmm6, [{c2} + {line}]",
                "tileloadd tmm4, [{x2} + {row}]",
                "tdpbssd tmm2, tmm4, tmm6",
                "tileloadd tmm7, [{c3} + {line}]",
                "tileloadd tmm5, [{x3} + {row}]",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 1024], tmm1",
                "tilestored [{sums} + {line} + 2048], tmm2",
                "tilestored [{sums} + {line} + 3072], tmm3",
                c0 = in(reg) codes, c1 = in(reg) second, c2 = in(reg) third, c3 = in(reg) fourth,
                x0 = in(reg) x[0], x1 = in(reg) x[1], x2 = in(reg) x[2], x3 = in(reg) x[3],
                sums = in(reg) sums, line = in(reg) 64usize, row = in(reg) 32usize,
                options(nostack, preserves_flags)
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the tiles were configured by this thread, which a `Tiles` cannot leave.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}
