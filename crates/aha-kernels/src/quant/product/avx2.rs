//! The AVX2 body: products of bytes in pairs, two registers of eight lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use super::kernel::{self, Lanes};
use super::{Format, Layout, Tile};
use crate::buffer::Line;
use crate::pack::PANEL;

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
    type Codes = Codes;
    type Float = [__m256; 2];

    #[inline(always)]
    unsafe fn integers(value: i32) -> Self::Int {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    unsafe fn codes<const WIDE: bool>(at: *const u8) -> Self::Codes {
        // SAFETY: the caller's promise.
        unsafe {
            let loaded = [
                _mm256_loadu_si256(at.cast()),
                _mm256_loadu_si256(at.add(32).cast()),
            ];
            if WIDE {
                let centre = _mm256_set1_epi8(-128);
                let signed = loaded.map(|codes| _mm256_xor_si256(codes, centre));
                let unsigned = signed.map(|codes| _mm256_abs_epi8(codes));
                Codes { unsigned, signed }
            } else {
                Codes {
                    unsigned: loaded,
                    signed: loaded,
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sums: Self::Int, codes: Self::Codes, x: u32) -> Self::Int {
        // SAFETY: the caller's promise.
        unsafe {
            let (x, ones) = (_mm256_set1_epi32(x.cast_signed()), _mm256_set1_epi16(1));
            let dot = |half: usize| {
                // Two products are added in 16 bits: 2 * 63 * 127 fits, and so does 2 * 128 * 127.
                // Only a size with the sign on the other side makes that possible for eight bits.
                let x = if WIDE {
                    _mm256_sign_epi8(x, codes.signed[half])
                } else {
                    x
                };
                let pairs = _mm256_maddubs_epi16(codes.unsigned[half], x);
                _mm256_add_epi32(sums[half], _mm256_madd_epi16(pairs, ones))
            };
            [dot(0), dot(1)]
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
            let add = |half: usize| {
                let scale = _mm256_mul_ps(scale[half], factor);
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers[half]), scale, sums[half])
            };
            [add(0), add(1)]
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
    unsafe fn halves(at: *const u8) -> [f32; PANEL] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut out = [0.0; PANEL];
            let first = _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
            let second = _mm256_cvtph_ps(_mm_loadu_si128(at.add(16).cast()));
            Self::store([first, second], out.as_mut_ptr());
            out
        }
    }
}

/// See [`super::Tile::multiply`].
///
/// # Safety
/// The lengths must be as asserted there, and AVX2, FMA and F16C present.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply(tile: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { kernel::multiply::<Avx2, 3, 1>(tile) }
}

/// See [`super::unpack`].
///
/// # Safety
/// The lengths must be as asserted there, and AVX2, FMA and F16C present.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack(format: &Format, panel: &[u8], units: Range<usize>, out: &mut [Line]) {
    // SAFETY: the caller's promise.
    unsafe { kernel::unpack::<Avx2>(format, panel, units, out) }
}

/// See [`Layout::quantise`].
///
/// # Safety
/// AVX2 must be present.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn quantise(layout: &Layout, x: &[f32], rows: usize, words: &mut [u32]) {
    layout.quantise(x, rows, words);
}
