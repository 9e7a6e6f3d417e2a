//! Which instruction set the bodies use.

use std::sync::OnceLock;

/// An instruction set that this crate has bodies for, weakest first. All of them give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust: right everywhere, fast where `f32::mul_add` is one instruction (aarch64), slow where it is not.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// And its dot products of bytes.
    Avx512Vnni,
    /// And AMX tiles of bytes, where the system lets this process use them.
    Amx,
}

impl Isa {
    /// All of them, weakest first.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni, Isa::Amx];

    /// The strongest instruction set of this machine, asked of the CPU (and of the system, which must permit AMX: it does so for the
    /// whole process, and from then on keeps 8 KiB more of a thread that has tiles in use).
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                let vnni = is_x86_feature_detected!("avx512vnni");
                return match (vnni, vnni && crate::amx::permitted()) {
                    (true, true) => Isa::Amx,
                    (true, false) => Isa::Avx512Vnni,
                    _ => Isa::Avx512,
                };
            }
            if avx2 {
                return Isa::Avx2;
            }
        }
        Isa::Portable
    }

    /// [`Isa::detect`], asked once.
    pub fn current() -> Isa {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(Isa::detect)
    }

    /// This one, or the strongest that the machine has below it.
    pub fn available(self) -> Isa {
        self.min(Isa::current())
    }

    /// Its name for people: `portable`, `avx2`, `avx512`, `avx512-vnni`, `amx`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Amx => "amx",
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
