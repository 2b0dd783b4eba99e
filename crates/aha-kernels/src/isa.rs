#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;
use std::sync::OnceLock;

use crate::KernelError;

/// An instruction set that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InstructionSet {
    /// Portable Rust; runs everywhere.
    Scalar,
    /// AVX2 with FMA and F16C (x86-64 processors since about 2013).
    Avx2,
    /// AVX-512 with dot products of 8-bit integers (VNNI) and of `bf16` (AMD since Zen 4, Intel's
    /// servers since Sapphire Rapids). Kernels without a body of their own for it use that of AVX2.
    Avx512,
    /// The matrix tiles of Intel's servers (AMX, since Sapphire Rapids) for `bf16`, beside AVX-512; on
    /// Linux, which grants them on demand.
    Amx,
    /// AdvSIMD, which 64-bit ARM processors have had from the first on.
    Neon,
    /// AdvSIMD with dot products of 8-bit integers (ARM processors since about 2018: Apple's since the
    /// A13 and M1, Graviton 2, Ampere Altra).
    NeonDotprod,
    /// The same with products of small matrices of 8-bit integers (Apple's since the M2, Graviton 3).
    NeonI8mm,
}

impl InstructionSet {
    /// All of them, the best first among those of an architecture.
    const BEST_FIRST: [Self; 7] = [
        Self::Amx,
        Self::Avx512,
        Self::Avx2,
        Self::NeonI8mm,
        Self::NeonDotprod,
        Self::Neon,
        Self::Scalar,
    ];

    /// Those that this processor can run, the best first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::BEST_FIRST
            .into_iter()
            .filter(|set| set.is_available())
    }

    /// The name that the environment variable `AHA_KERNELS` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::NeonDotprod => "dotprod",
            Self::NeonI8mm => "i8mm",
        }
    }

    /// Whether this processor can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => Self::Avx512.is_available() && amx::is_granted(),
            #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
            Self::Amx => false,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => {
                Self::Neon.is_available() && is_aarch64_feature_detected!("dotprod")
            }
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => {
                Self::NeonDotprod.is_available() && is_aarch64_feature_detected!("i8mm")
            }
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon | Self::NeonDotprod | Self::NeonI8mm => false,
        }
    }

    /// Whether it includes AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx2(self) -> bool {
        matches!(self, Self::Avx2 | Self::Avx512 | Self::Amx)
    }

    /// Whether it includes AdvSIMD.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn has_neon(self) -> bool {
        matches!(self, Self::Neon | Self::NeonDotprod | Self::NeonI8mm)
    }

    /// Whether it includes AVX-512 as [`InstructionSet::Avx512`] means it.
    pub(crate) fn has_avx512(self) -> bool {
        matches!(self, Self::Avx512 | Self::Amx)
    }

    /// Whether products with `bf16` weights round the activations to `bf16`, which its dot products take.
    pub fn rounds_to_bf16(self) -> bool {
        self.has_avx512()
    }

    /// `self`, or an error when this processor lacks it. Every public function that takes an
    /// instruction set passes through here, which is what the kernels' safety rests on.
    pub(crate) fn require(self) -> Result<Self, KernelError> {
        if self.is_available() {
            Ok(self)
        } else {
            Err(KernelError::InstructionSet(self))
        }
    }
}

/// Tiles are more state than systems save for every thread: a process asks for them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    use std::ffi::c_long;
    use std::sync::OnceLock;

    /// Whether processor and system have tiles with `bf16` products, and let this process use them.
    pub(super) fn is_granted() -> bool {
        static GRANTED: OnceLock<bool> = OnceLock::new();
        *GRANTED.get_or_init(|| is_present() && request())
    }

    fn is_present() -> bool {
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        const TILE_STATES: u64 = 3 << 17;
        const OSXSAVE: u32 = 1 << 27;
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
            return false;
        }
        let features = __cpuid_count(7, 0).edx;
        let wanted = AMX_BF16 | AMX_TILE;
        // SAFETY: the system has enabled the instruction (OSXSAVE).
        features & wanted == wanted && unsafe { states() } & TILE_STATES == TILE_STATES
    }

    /// The states that the system saves.
    ///
    /// # Safety
    /// OSXSAVE must be set.
    #[target_feature(enable = "xsave")]
    unsafe fn states() -> u64 {
        // SAFETY: the caller's promise.
        unsafe { _xgetbv(0) }
    }

    fn request() -> bool {
        const ARCH_PRCTL: c_long = 158;
        const ARCH_REQ_XCOMP_PERM: c_long = 0x1023;
        const TILE_DATA: c_long = 18;
        unsafe extern "C" {
            fn syscall(number: c_long, ...) -> c_long;
        }
        // SAFETY: a request without pointers; a refusal is an error number.
        unsafe { syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
    }
}

/// The instruction set that the kernels use: the best one this processor has.
///
/// `AHA_KERNELS=scalar`, `avx2`, `avx512`, `amx`, `neon`, `dotprod` or `i8mm` in the environment, read once, asks
/// for another. A value that is unknown or that the processor lacks has no effect here; programs compare it with the
/// names of [`InstructionSet::available`] first, as `aha` does.
pub fn instruction_set() -> InstructionSet {
    static CHOSEN: OnceLock<InstructionSet> = OnceLock::new();
    *CHOSEN.get_or_init(|| choose(std::env::var("AHA_KERNELS").ok().as_deref()))
}

fn choose(wish: Option<&str>) -> InstructionSet {
    wish.and_then(|wish| InstructionSet::available().find(|set| set.name() == wish))
        .or_else(|| InstructionSet::available().next())
        .unwrap_or(InstructionSet::Scalar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_may_ask_for_less_but_not_for_more() {
        assert_eq!(choose(Some("scalar")), InstructionSet::Scalar);
        let best = choose(None);
        assert!(best.is_available());
        assert_eq!(choose(Some("mmx")), best);
        for set in InstructionSet::available() {
            assert_eq!(choose(Some(set.name())), set);
        }
    }

    #[test]
    fn what_the_processor_lacks_is_refused() {
        for set in InstructionSet::BEST_FIRST {
            let is_listed = InstructionSet::available().any(|other| other == set);
            assert_eq!(is_listed, set.is_available(), "{set:?}");
            assert_eq!(set.require().is_ok(), is_listed, "{set:?}");
            if !is_listed {
                assert_eq!(choose(Some(set.name())), choose(None));
            }
        }
        // No architecture has the sets of another.
        let is_arm = |set: InstructionSet| set.name() == "neon";
        let is_x86 = |set: InstructionSet| set.name() == "avx2";
        let has = |is: fn(InstructionSet) -> bool| InstructionSet::available().any(is);
        assert!(!(has(is_arm) && has(is_x86)));
    }
}
