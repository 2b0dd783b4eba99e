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
}

impl InstructionSet {
    /// All of them, the best first.
    const BEST_FIRST: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Scalar];

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
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
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

/// The instruction set that the kernels use: the best one this processor has.
///
/// `AHA_KERNELS=scalar`, `avx2` or `avx512` in the environment, read once, asks for another. A value
/// that is unknown or that the processor lacks has no effect; compare the answer of this function
/// with the wish to find out.
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
}
