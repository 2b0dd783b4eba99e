//! The AVX-512 lanes: one register, of which there are twice as many as on AVX2.

use std::arch::x86_64::*;

use super::lanes::{self, Bf16, Columns, F16, F32, Lanes};
use super::shapes::{Operands, all_shapes, multiply_tile, shapes};
use super::{Activations, Panels, Sums};
use crate::buffer::Line;
use crate::pack::WeightKind;

/// Sums of the largest tile, a register each.
pub(super) const MOST_SUMS: usize = 12;

struct Avx512;

#[allow(
    clippy::inline_always,
    reason = "only inlined do they have the instruction set"
)]
impl Lanes for Avx512 {
    type Line = __m512;
    type Value = __m512;

    #[inline(always)]
    unsafe fn zeros() -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }

    #[inline(always)]
    unsafe fn store(line: Self::Line, at: *mut Line) {
        // SAFETY: the caller's promise.
        unsafe {
            _mm512_store_ps(at.cast(), line);
        }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn pairs(at: *const u8) -> [Self::Line; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = _mm512_loadu_si512(at.cast());
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)),
                _mm512_castsi512_ps(odd),
            ]
        }
    }

    #[inline(always)]
    unsafe fn broadcast(at: *const f32) -> Self::Value {
        // SAFETY: the caller's promise.
        unsafe { _mm512_set1_ps(at.read()) }
    }

    #[inline(always)]
    unsafe fn multiply_add(value: Self::Value, column: Self::Line, sums: Self::Line) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(value, column, sums) }
    }
}

/// See [`super::tile`].
///
/// # Safety
/// The lengths must be as `super::tile` asserts, and AVX-512 present.
pub(super) unsafe fn tile(
    x: Activations<'_>,
    rows: usize,
    w: Panels<'_>,
    depth: usize,
    sums: Sums<'_>,
) {
    multiply_tile!(x, rows, w, depth, sums);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn kernel<
    C: Columns<Avx512>,
    const ROWS: usize,
    const PANELS: usize,
    const PACKED: bool,
    const LINES: usize,
>(
    tile: Operands<'_>,
) {
    // SAFETY: the caller's promise.
    unsafe { lanes::kernel::<Avx512, C, ROWS, PANELS, PACKED, LINES>(tile) }
}

/// See [`super::decode`].
///
/// # Safety
/// AVX-512 must be present.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn decode(kind: WeightKind, panel: &[u8], start: usize, out: &mut [Line]) {
    // SAFETY: the caller's promise.
    unsafe { lanes::decode::<Avx512>(kind, panel, start, out) }
}
