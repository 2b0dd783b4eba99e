//! The AVX-512 body: one register holds four codes of each of sixteen rows.

use std::arch::x86_64::*;

use super::kernel::{self, Lanes, Source};
use super::{Layout, MOST_ROWS, Tile};
use crate::buffer::Line;
use crate::quant::UNIT;
use crate::quant::activations::{Quantise, ROUNDING, Unit, scales};

struct Avx512;

// The functions below are inlined into those with the target features at the end of the file.
#[allow(
    clippy::inline_always,
    reason = "only inlined do they have the instruction set"
)]
impl Lanes for Avx512 {
    type Int = __m512i;
    type Words = __m512i;
    type Codes = __m512i;
    type Float = __m512;

    const UNPACKS: bool = false;

    #[inline(always)]
    unsafe fn integers(value: i32) -> Self::Int {
        // SAFETY: the caller's promise.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn words(at: *const u8) -> Self::Words {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn field(words: Self::Words, shift: usize, bits: usize) -> Self::Words {
        // SAFETY: the caller's promise.
        unsafe {
            let shifted = _mm512_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi8((1 << bits) - 1))
        }
    }

    #[inline(always)]
    unsafe fn join(low: Self::Words, high: Self::Words, up: usize) -> Self::Words {
        // SAFETY: the caller's promise.
        unsafe { _mm512_or_si512(low, _mm512_sll_epi32(high, _mm_cvtsi32_si128(up as i32))) }
    }

    #[inline(always)]
    unsafe fn store_words(words: Self::Words, at: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(at.cast(), words) }
    }

    #[inline(always)]
    unsafe fn codes(words: Self::Words, _wide: bool) -> Self::Codes {
        words
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Int, codes: Self::Codes, x: u32, _wide: bool) -> Self::Int {
        // SAFETY: the caller's promise.
        unsafe { _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(x.cast_signed())) }
    }

    #[inline(always)]
    unsafe fn zeros() -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(at) }
    }

    #[inline(always)]
    unsafe fn store(values: Self::Float, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(at, values) }
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
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(factor));
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), scale, sums)
        }
    }

    #[inline(always)]
    unsafe fn subtract(sums: Self::Float, minimum: Self::Float, factor: f32) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fnmadd_ps(minimum, _mm512_set1_ps(factor), sums) }
    }

    #[inline(always)]
    unsafe fn multiply(a: Self::Float, b: Self::Float) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn negate(a: Self::Float) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { _mm512_xor_ps(a, _mm512_set1_ps(-0.0)) }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> Self::Float {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
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
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
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
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn with_features<S: Source<Avx512>, const ROWS: usize>(
            x: *const u32,
            units: usize,
            source: S,
            panels: usize,
            out: *mut Line,
        ) {
            // SAFETY: the caller's promise.
            unsafe { kernel::kernel::<Avx512, S, ROWS>(x, units, source, panels, out) }
        }
        // SAFETY: the caller's promise.
        unsafe { with_features::<S, ROWS>(x, units, source, panels, out) }
    }
}

/// See [`super::Tile::multiply`].
///
/// # Safety
/// The lengths must be as asserted there, and the instructions of `InstructionSet::Avx512` present.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn multiply(tile: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { kernel::multiply::<Avx512, MOST_ROWS>(tile) }
}

/// See [`Layout::quantise`].
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn quantise(layout: &Layout, x: &[f32], rows: usize, words: &mut [u32]) {
    // SAFETY: the caller's promise.
    unsafe { layout.quantise::<Avx512>(x, rows, words) }
}

#[allow(
    clippy::inline_always,
    reason = "only inlined does it have the instruction set"
)]
impl Quantise for Avx512 {
    #[inline(always)]
    unsafe fn unit(x: &[f32; UNIT]) -> Unit {
        let mut words = [0; UNIT / 4];
        // SAFETY: the caller's promise; a unit is two registers of values, and one of sixteen bytes for each in codes.
        unsafe {
            let (first, second) = (
                _mm512_loadu_ps(x.as_ptr()),
                _mm512_loadu_ps(x.as_ptr().add(16)),
            );
            let sizes = _mm512_max_epu32(
                _mm512_castps_si512(_mm512_abs_ps(first)),
                _mm512_castps_si512(_mm512_abs_ps(second)),
            );
            let (scale, inverse) = scales(_mm512_reduce_max_epu32(sizes));
            let (inverse, rounding) = (_mm512_set1_ps(inverse), _mm512_set1_ps(ROUNDING));
            let first = _mm512_add_ps(_mm512_mul_ps(first, inverse), rounding);
            let second = _mm512_add_ps(_mm512_mul_ps(second, inverse), rounding);
            let first = _mm512_cvtepi32_epi8(_mm512_castps_si512(first));
            let second = _mm512_cvtepi32_epi8(_mm512_castps_si512(second));
            let out: *mut __m128i = words.as_mut_ptr().cast();
            _mm_storeu_si128(out, first);
            _mm_storeu_si128(out.add(1), second);
            Unit {
                words,
                scale,
                half_sums: [
                    _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(first)),
                    _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(second)),
                ],
            }
        }
    }
}
