//! The AVX2 body: products of bytes in pairs, two registers of eight lanes.

use std::arch::x86_64::*;

use super::kernel::{self, Lanes, Source};
use super::{Format, Layout, Tile};
use crate::buffer::Line;
use crate::quant::UNIT;
use crate::quant::activations::{Quantise, ROUNDING, Unit, scales};

struct Avx2;

/// Codes without sign; of eight bits, their sizes beside the signed codes.
#[derive(Clone, Copy)]
struct Codes {
    unsigned: [__m256i; 2],
    signed: [__m256i; 2],
}

// The functions below are inlined into those with the target features at the end of the file.
#[allow(
    clippy::inline_always,
    reason = "only inlined do they have the instruction set"
)]
impl Lanes for Avx2 {
    type Int = [__m256i; 2];
    type Words = [__m256i; 2];
    type Codes = Codes;
    type Float = [__m256; 2];

    const UNPACKS: bool = true;

    #[inline(always)]
    unsafe fn integers(value: i32) -> Self::Int {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    unsafe fn words(at: *const u8) -> Self::Words {
        // SAFETY: the caller's promise.
        unsafe {
            [
                _mm256_loadu_si256(at.cast()),
                _mm256_loadu_si256(at.add(32).cast()),
            ]
        }
    }

    #[inline(always)]
    unsafe fn field(words: Self::Words, shift: usize, bits: usize) -> Self::Words {
        // SAFETY: the caller's promise.
        unsafe {
            let count = _mm_cvtsi32_si128(shift as i32);
            let mask = _mm256_set1_epi8((1 << bits) - 1);
            [
                _mm256_and_si256(_mm256_srl_epi32(words[0], count), mask),
                _mm256_and_si256(_mm256_srl_epi32(words[1], count), mask),
            ]
        }
    }

    #[inline(always)]
    unsafe fn join(low: Self::Words, high: Self::Words, up: usize) -> Self::Words {
        // SAFETY: the caller's promise.
        unsafe {
            let count = _mm_cvtsi32_si128(up as i32);
            let join =
                |half: usize| _mm256_or_si256(low[half], _mm256_sll_epi32(high[half], count));
            [join(0), join(1)]
        }
    }

    #[inline(always)]
    unsafe fn store_words(words: Self::Words, at: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_si256(at.cast(), words[0]);
            _mm256_storeu_si256(at.add(32).cast(), words[1]);
        }
    }

    #[inline(always)]
    unsafe fn codes(words: Self::Words, wide: bool) -> Self::Codes {
        if !wide {
            return Codes {
                unsigned: words,
                signed: words,
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            let centre = _mm256_set1_epi8(-128);
            let signed = [
                _mm256_xor_si256(words[0], centre),
                _mm256_xor_si256(words[1], centre),
            ];
            let unsigned = [_mm256_abs_epi8(signed[0]), _mm256_abs_epi8(signed[1])];
            Codes { unsigned, signed }
        }
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Int, codes: Self::Codes, x: u32, wide: bool) -> Self::Int {
        // SAFETY: the caller's promise.
        unsafe {
            let (x, ones) = (_mm256_set1_epi32(x.cast_signed()), _mm256_set1_epi16(1));
            let mut sums = sums;
            for (half, sums) in sums.iter_mut().enumerate() {
                // Two products are added in 16 bits: 2 * 63 * 127 fits, and so does 2 * 128 * 127.
                // Only a size with the sign on the other side makes that possible for eight bits.
                let x = if wide {
                    _mm256_sign_epi8(x, codes.signed[half])
                } else {
                    x
                };
                let pairs = _mm256_maddubs_epi16(codes.unsigned[half], x);
                *sums = _mm256_add_epi32(*sums, _mm256_madd_epi16(pairs, ones));
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn zeros() -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(values: Self::Float, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_ps(at, values[0]);
            _mm256_storeu_ps(at.add(8), values[1]);
        }
    }

    #[inline(always)]
    unsafe fn add_scaled(
        sums: Self::Float,
        integers: Self::Int,
        scale: Self::Float,
        factor: f32,
    ) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe {
            let factor = _mm256_set1_ps(factor);
            let mut sums = sums;
            for (half, sums) in sums.iter_mut().enumerate() {
                let scale = _mm256_mul_ps(scale[half], factor);
                *sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers[half]), scale, *sums);
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn subtract(sums: Self::Float, minimum: Self::Float, factor: f32) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe {
            let factor = _mm256_set1_ps(factor);
            [
                _mm256_fnmadd_ps(minimum[0], factor, sums[0]),
                _mm256_fnmadd_ps(minimum[1], factor, sums[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn multiply(a: Self::Float, b: Self::Float) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn negate(a: Self::Float) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_xor_ps(a[0], sign), _mm256_xor_ps(a[1], sign)]
        }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(at.add(16).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn bytes(at: *const u8, shift: usize, bits: usize) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe {
            let mut bytes = _mm_loadu_si128(at.cast());
            if bits < 8 {
                let shifted = _mm_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
                bytes = _mm_and_si128(shifted, _mm_set1_epi8(15));
            }
            let high = _mm_srli_si128::<8>(bytes);
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn run<S: Source<Self>, const ROWS: usize>(
        x: *const u32,
        units: usize,
        source: S,
        panels: usize,
        out: *mut Line,
    ) {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn with_features<S: Source<Avx2>, const ROWS: usize>(
            x: *const u32,
            units: usize,
            source: S,
            panels: usize,
            out: *mut Line,
        ) {
            // SAFETY: the caller's promise.
            unsafe { kernel::kernel::<Avx2, S, ROWS>(x, units, source, panels, out) }
        }
        // SAFETY: the caller's promise.
        unsafe { with_features::<S, ROWS>(x, units, source, panels, out) }
    }
}

/// See [`super::Tile::multiply`].
///
/// # Safety
/// The lengths must be as asserted there, and AVX2, FMA and F16C present.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(tile: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { kernel::multiply::<Avx2, 6>(tile) }
}

/// See [`super::unpack`].
///
/// # Safety
/// The lengths must be as asserted there, and AVX2, FMA and F16C present.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack(format: &Format, panel: &[u8], units: usize, out: &mut [Line]) {
    // SAFETY: the caller's promise.
    unsafe { kernel::unpack::<Avx2>(format, panel, units, out) }
}

/// See [`Layout::quantise`].
///
/// # Safety
/// AVX2 must be present.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn quantise(layout: &Layout, x: &[f32], rows: usize, words: &mut [u32]) {
    // SAFETY: the caller's promise.
    unsafe { layout.quantise::<Avx2>(x, rows, words) }
}

#[allow(
    clippy::inline_always,
    reason = "only inlined does it have the instruction set"
)]
impl Quantise for Avx2 {
    #[inline(always)]
    unsafe fn unit(x: &[f32; UNIT]) -> Unit {
        let mut words = [0; UNIT / 4];
        // SAFETY: the caller's promise; a unit is four registers of values, and one of codes.
        unsafe {
            let mut values = [_mm256_setzero_ps(); 4];
            for (index, values) in values.iter_mut().enumerate() {
                *values = _mm256_loadu_ps(x.as_ptr().add(8 * index));
            }
            let sign = _mm256_set1_ps(-0.0);
            let mut sizes = _mm256_setzero_si256();
            for values in values {
                let size = _mm256_castps_si256(_mm256_andnot_ps(sign, values));
                sizes = _mm256_max_epu32(sizes, size);
            }
            let four = _mm_max_epu32(
                _mm256_castsi256_si128(sizes),
                _mm256_extracti128_si256::<1>(sizes),
            );
            let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b1110>(four));
            let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b0001>(two));
            let (scale, inverse) = scales(_mm_cvtsi128_si32(one).cast_unsigned());
            let (inverse, rounding) = (_mm256_set1_ps(inverse), _mm256_set1_ps(ROUNDING));
            let mut codes = [_mm256_setzero_si256(); 4];
            for (codes, values) in codes.iter_mut().zip(values) {
                let rounded = _mm256_add_ps(_mm256_mul_ps(values, inverse), rounding);
                // The lowest byte with its sign.
                let bits = _mm256_slli_epi32::<24>(_mm256_castps_si256(rounded));
                *codes = _mm256_srai_epi32::<24>(bits);
            }
            let bytes = _mm256_packs_epi16(
                _mm256_packs_epi32(codes[0], codes[1]),
                _mm256_packs_epi32(codes[2], codes[3]),
            );
            // Packing works on halves of registers.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(bytes, order);
            _mm256_storeu_si256(words.as_mut_ptr().cast(), bytes);
            let half_sums = [
                sum_of_lanes(_mm256_add_epi32(codes[0], codes[1])),
                sum_of_lanes(_mm256_add_epi32(codes[2], codes[3])),
            ];
            Unit {
                words,
                scale,
                half_sums,
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum_of_lanes(lanes: __m256i) -> i32 {
    let four = _mm_add_epi32(
        _mm256_castsi256_si128(lanes),
        _mm256_extracti128_si256::<1>(lanes),
    );
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b0001>(two)))
}
