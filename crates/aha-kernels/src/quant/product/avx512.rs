//! The AVX-512 body: one register holds four codes of each of sixteen rows.

use std::arch::x86_64::*;
use std::ops::Range;

use super::kernel::{self, Lanes};
use super::{Format, Layout, Tile};
use crate::buffer::Line;
use crate::pack::PANEL;

struct Avx512;

// The functions below are inlined into those with the target features at the end of the file.
#[allow(
    clippy::inline_always,
    reason = "only inlined do they have the instruction set"
)]
impl Lanes for Avx512 {
    type Int = __m512i;
    type Codes = __m512i;
    type Float = __m512;

    #[inline(always)]
    unsafe fn integers(value: i32) -> Self::Int {
        // SAFETY: the caller's promise.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn codes<const WIDE: bool>(at: *const u8) -> Self::Codes {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sums: Self::Int, codes: Self::Codes, x: u32) -> Self::Int {
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
    unsafe fn halves(at: *const u8) -> [f32; PANEL] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut out = [0.0; PANEL];
            let values = _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()));
            Self::store(values, out.as_mut_ptr());
            out
        }
    }
}

/// See [`super::Tile::multiply`].
///
/// # Safety
/// The lengths must be as asserted there, and the instructions of `InstructionSet::Avx512` present.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn multiply(tile: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe { kernel::multiply::<Avx512, 6, 6>(tile) }
}

/// See [`super::unpack`].
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn unpack(format: &Format, panel: &[u8], units: Range<usize>, out: &mut [Line]) {
    // SAFETY: the caller's promise.
    unsafe { kernel::unpack::<Avx512>(format, panel, units, out) }
}

/// See [`Layout::quantise`].
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn quantise(layout: &Layout, x: &[f32], rows: usize, words: &mut [u32]) {
    layout.quantise(x, rows, words);
}
