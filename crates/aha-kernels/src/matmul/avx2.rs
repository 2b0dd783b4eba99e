//! The AVX2 lanes: two registers.

use std::arch::x86_64::*;

use super::lanes::{Lanes, functions};
use crate::buffer::Line;

/// Sums of the largest tile, two registers each.
pub(super) const MOST_SUMS: usize = 6;

struct Avx2;

#[allow(
    clippy::inline_always,
    reason = "only inlined do they have the instruction set"
)]
impl Lanes for Avx2 {
    type Line = [__m256; 2];
    type Value = __m256;

    #[inline(always)]
    unsafe fn zeros() -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe {
            [
                _mm256_loadu_ps(at.cast()),
                _mm256_loadu_ps(at.add(32).cast()),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(line: Self::Line, at: *mut Line) {
        // SAFETY: the caller's promise.
        unsafe {
            let at: *mut f32 = at.cast();
            _mm256_store_ps(at, line[0]);
            _mm256_store_ps(at.add(8), line[1]);
        }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(at.add(16).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn pairs(at: *const u8) -> [Self::Line; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let (low, high) = (
                _mm256_loadu_si256(at.cast()),
                _mm256_loadu_si256(at.add(32).cast()),
            );
            let upper_half = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let even = [_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high)];
            let odd = [
                _mm256_and_si256(low, upper_half),
                _mm256_and_si256(high, upper_half),
            ];
            [
                [_mm256_castsi256_ps(even[0]), _mm256_castsi256_ps(even[1])],
                [_mm256_castsi256_ps(odd[0]), _mm256_castsi256_ps(odd[1])],
            ]
        }
    }

    #[inline(always)]
    unsafe fn broadcast(at: *const f32) -> Self::Value {
        // SAFETY: the caller's promise.
        unsafe { _mm256_broadcast_ss(&*at) }
    }

    #[inline(always)]
    unsafe fn multiply_add(value: Self::Value, column: Self::Line, sums: Self::Line) -> Self::Line {
        // SAFETY: the caller's promise.
        unsafe {
            [
                _mm256_fmadd_ps(value, column[0], sums[0]),
                _mm256_fmadd_ps(value, column[1], sums[1]),
            ]
        }
    }
}

functions!(Avx2, "avx2,fma,f16c");
