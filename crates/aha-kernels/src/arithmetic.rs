#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
#[cfg(target_arch = "aarch64")]
use std::arch::{aarch64::*, asm};
use std::hint::black_box;
use std::time::Instant;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::InstructionSet;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::bf16::amx::{TILE_OPERATIONS, multiply_zeros};
use crate::instruction_set;

/// Multiply-adds that one lane does in a timed stretch: about two milliseconds.
const ROUNDS: usize = 1_000_000;

/// Timed stretches, short enough that some fall between the interruptions of a busy machine.
const STRETCHES: usize = 40;

/// Enough lanes to hide the latency, few enough to stay in registers.
const LANES: usize = 96;

/// What a product multiplies and adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Arithmetic {
    /// Fused multiply-adds of `f32`; weights of other types are converted on their way.
    F32,
    /// Dot products of pairs of `bf16`, summed in `f32`.
    Bf16,
    /// Dot products of four bytes, summed in 32-bit integers.
    Int8,
}

impl Arithmetic {
    /// A short name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// Measures how many operations a second `threads` threads together do that only multiply and add, a product and its sum being two.
///
/// This is the ceiling of a product with many rows. The best of a few rounds counts; the measurement takes about a
/// tenth of a second. `None` where the kernels have nothing faster than [`Arithmetic::F32`] for this arithmetic: then
/// that rate is the ceiling.
pub fn measure_multiply_add_rate(arithmetic: Arithmetic, threads: usize) -> Option<f64> {
    let set = instruction_set();
    match arithmetic {
        #[cfg(target_arch = "x86_64")]
        Arithmetic::F32 if set.has_avx512() => {
            Some(rate(threads, 2 * 16 * REGISTERS, || {
                // SAFETY: the instruction set is present, or it would not have been chosen.
                black_box(unsafe { multiply_add_avx512(ROUNDS) });
            }))
        }
        Arithmetic::F32 => Some(rate(threads, 2 * LANES, || match set {
            #[cfg(target_arch = "x86_64")]
            set if set.has_avx2() => {
                // SAFETY: the instruction set is present, or it would not have been chosen.
                black_box(unsafe { multiply_add_avx2(ROUNDS) });
            }
            #[cfg(target_arch = "aarch64")]
            set if set.has_neon() => {
                black_box(multiply_add_neon(ROUNDS));
            }
            _ => {
                black_box(multiply_add(ROUNDS));
            }
        })),
        #[cfg(target_arch = "x86_64")]
        Arithmetic::Bf16 if set == InstructionSet::Avx512 => {
            Some(rate(threads, 2 * 32 * REGISTERS, || {
                // SAFETY: the instruction set is present, or it would not have been chosen.
                black_box(unsafe { bf16_avx512(ROUNDS) });
            }))
        }
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Arithmetic::Bf16 if set == InstructionSet::Amx => {
            // A tile has hundreds of times the operations of a lane.
            const SHARE: usize = 64;
            Some(rate(threads, 4 * TILE_OPERATIONS / SHARE, || {
                // SAFETY: as above.
                unsafe { multiply_zeros(ROUNDS / SHARE) }
            }))
        }
        #[cfg(target_arch = "x86_64")]
        Arithmetic::Int8 if set.has_avx512() => {
            Some(rate(threads, 2 * 64 * REGISTERS, || {
                // SAFETY: as above.
                black_box(unsafe { int8_avx512(ROUNDS) });
            }))
        }
        #[cfg(target_arch = "x86_64")]
        Arithmetic::Int8 if set.has_avx2() => {
            Some(rate(threads, 2 * 32 * REGISTERS, || {
                // SAFETY: as above.
                black_box(unsafe { int8_avx2(ROUNDS) });
            }))
        }
        #[cfg(target_arch = "aarch64")]
        Arithmetic::Int8 if set == InstructionSet::NeonI8mm => {
            Some(rate(threads, 2 * 32 * REGISTERS, || {
                // SAFETY: as above.
                black_box(unsafe { int8_i8mm(ROUNDS) });
            }))
        }
        #[cfg(target_arch = "aarch64")]
        Arithmetic::Int8 if set == InstructionSet::NeonDotprod => {
            Some(rate(threads, 2 * 16 * REGISTERS, || {
                // SAFETY: as above.
                black_box(unsafe { int8_dotprod(ROUNDS) });
            }))
        }
        // Other sets convert such weights on their way.
        Arithmetic::Bf16 | Arithmetic::Int8 => None,
    }
}

/// Operations a second of `threads` threads that each run `stretch`, which is [`ROUNDS`] times `operations`.
fn rate(threads: usize, operations: usize, stretch: impl Fn() + Sync) -> f64 {
    let threads = threads.max(1);
    let mut fastest = f64::INFINITY;
    for _ in 0..STRETCHES {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(&stretch);
            }
        });
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    (operations * ROUNDS * threads) as f64 / fastest
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_avx2(rounds: usize) -> [f32; LANES] {
    let mut lanes = [1.0_f32; LANES];
    let (factor, term) = black_box((0.999_f32, 1e-3_f32));
    for _ in 0..rounds {
        lanes
            .iter_mut()
            .for_each(|lane| *lane = lane.mul_add(factor, term));
    }
    lanes
}

/// Registers of sums of the dot products.
#[cfg(target_arch = "x86_64")]
const REGISTERS: usize = 12;
#[cfg(target_arch = "aarch64")]
const REGISTERS: usize = 24;

/// The lane is what is added to: NEON writes the sum where that was.
#[cfg(target_arch = "aarch64")]
fn multiply_add_neon(rounds: usize) -> [f32; LANES] {
    let mut lanes = [1.0_f32; LANES];
    let (factor, term) = black_box((0.999_f32, 1e-3_f32));
    for _ in 0..rounds {
        lanes
            .iter_mut()
            .for_each(|lane| *lane = factor.mul_add(term, *lane));
    }
    lanes
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,i8mm")]
fn int8_i8mm(rounds: usize) -> [int32x4_t; REGISTERS] {
    let bytes = black_box(vdupq_n_s8(1));
    let mut sums = [vdupq_n_s32(0); REGISTERS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: registers only; the instruction set is present.
            unsafe {
                asm!(
                    "smmla {sum:v}.4s, {bytes:v}.16b, {bytes:v}.16b",
                    sum = inout(vreg) *sum,
                    bytes = in(vreg) bytes,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
    }
    sums
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
fn int8_dotprod(rounds: usize) -> [int32x4_t; REGISTERS] {
    let bytes = black_box(vdupq_n_s8(1));
    let mut sums = [vdupq_n_s32(0); REGISTERS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: as above.
            unsafe {
                asm!(
                    "sdot {sum:v}.4s, {bytes:v}.16b, {bytes:v}.16b",
                    sum = inout(vreg) *sum,
                    bytes = in(vreg) bytes,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_add_avx512(rounds: usize) -> [__m512; REGISTERS] {
    let (factor, term) = black_box((_mm512_set1_ps(0.999), _mm512_set1_ps(1e-3)));
    let mut sums = [_mm512_set1_ps(1.0); REGISTERS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, term);
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_avx512(rounds: usize) -> [__m512; REGISTERS] {
    let pairs = black_box(_mm512_cvtne2ps_pbh(
        _mm512_set1_ps(0.5),
        _mm512_set1_ps(0.5),
    ));
    let mut sums = [_mm512_setzero_ps(); REGISTERS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, pairs, pairs);
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn int8_avx512(rounds: usize) -> [__m512i; REGISTERS] {
    let bytes = black_box(_mm512_set1_epi32(0x0101_0101));
    let mut sums = [_mm512_setzero_si512(); REGISTERS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, bytes, bytes);
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn int8_avx2(rounds: usize) -> [__m256i; REGISTERS] {
    let (bytes, ones) = black_box((_mm256_set1_epi8(1), _mm256_set1_epi16(1)));
    let mut sums = [_mm256_setzero_si256(); REGISTERS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // The sums take part, or the products would be computed once.
            let pairs = _mm256_maddubs_epi16(bytes, _mm256_xor_si256(*sum, bytes));
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    sums
}

/// Without fused multiply-adds, which processors may lack and libraries then emulate.
fn multiply_add(rounds: usize) -> [f32; LANES] {
    let mut lanes = [1.0_f32; LANES];
    let (factor, term) = black_box((0.999_f32, 1e-3_f32));
    for _ in 0..rounds {
        lanes
            .iter_mut()
            .for_each(|lane| *lane = *lane * factor + term);
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_a_machine_of_this_world() {
        let rate = measure_multiply_add_rate(Arithmetic::F32, 2).unwrap();
        assert!((1e8..1e15).contains(&rate), "{rate}");
        for arithmetic in [Arithmetic::Bf16, Arithmetic::Int8] {
            if let Some(faster) = measure_multiply_add_rate(arithmetic, 2) {
                assert!((1e8..1e16).contains(&faster), "{arithmetic:?}: {faster}");
            }
        }
    }
}
