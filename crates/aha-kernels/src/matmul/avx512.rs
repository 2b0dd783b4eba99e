//! The AVX-512 lanes: one register, of which there are twice as many as on AVX2.

use std::arch::x86_64::*;

use super::lanes::{Lanes, functions};
use crate::buffer::Line;

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

functions!(Avx512, "avx512f,avx512bw,avx512dq,avx512vl");
