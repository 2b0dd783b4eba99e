//! Decoding of packed panels for AVX2: eight rows a register, codes by shifts within their lane.

use std::arch::x86_64::*;

use super::{Format, Scales, UNIT};
use crate::buffer::Line;
use crate::pack::PANEL;

/// Bytes that are asked for ahead of use.
const PREFETCH: usize = 1024;

/// One number for each of sixteen rows.
type Rows = [__m256; 2];

/// Decodes columns `start..start + out.len()` of a panel; both must be multiples of [`UNIT`].
///
/// # Safety
/// AVX2, FMA and F16C must be present.
pub(crate) unsafe fn decode(format: &Format, panel: &[u8], start: usize, out: &mut [Line]) {
    let blocks = (start + out.len()).div_ceil(format.values);
    assert!(panel.len() >= blocks * format.packed_bytes());
    assert!(start.is_multiple_of(UNIT) && out.len().is_multiple_of(UNIT));
    // SAFETY: the panel holds all blocks that are touched (asserted).
    unsafe {
        match (format.bits, format.signed) {
            (2, false) => decode_units::<2, false>(format, panel, start, out),
            (3, true) => decode_units::<3, true>(format, panel, start, out),
            (4, false) => decode_units::<4, false>(format, panel, start, out),
            (4, true) => decode_units::<4, true>(format, panel, start, out),
            (5, false) => decode_units::<5, false>(format, panel, start, out),
            (5, true) => decode_units::<5, true>(format, panel, start, out),
            (6, true) => decode_units::<6, true>(format, panel, start, out),
            (8, true) => decode_units::<8, true>(format, panel, start, out),
            _ => super::scalar::decode(format, panel, start, out),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode_units<const BITS: usize, const SIGNED: bool>(
    format: &Format,
    panel: &[u8],
    start: usize,
    out: &mut [Line],
) {
    let units = format.values / UNIT;
    for (index, lines) in out.chunks_exact_mut(UNIT).enumerate() {
        let index = start / UNIT + index;
        // SAFETY: the caller checked that the panel holds this unit.
        unsafe {
            let block = panel.as_ptr().add(index / units * format.packed_bytes());
            let unit = block.add(format.factor_bytes() + index % units * format.unit_bytes());
            for line in (0..format.unit_bytes()).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(unit.wrapping_add(PREFETCH + line).cast());
            }
            let factor = halves(block);
            let term = if format.minima {
                halves(block.add(2 * PANEL))
            } else {
                zeros()
            };
            let group = |group: usize| group_scale(format, unit, factor, term, group);
            let scales = match format.scales {
                Scales::Plain => [(factor, negated(term)); 2],
                Scales::Nested { groups: 1, .. } => [group(0); 2],
                Scales::Nested { .. } => [group(0), group(1)],
            };
            let words = unit.add(format.scale_bytes());
            decode_unit::<BITS, SIGNED>(words, scales, lines.as_mut_ptr().cast());
        }
    }
}

/// Scale and minimum of a group of sixteen or 32 columns.
///
/// # Safety
/// `unit` must address a unit of `format`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn group_scale(
    format: &Format,
    unit: *const u8,
    factor: Rows,
    term: Rows,
    group: usize,
) -> (Rows, Rows) {
    let Scales::Nested { groups, shared } = format.scales else {
        return (factor, negated(term));
    };
    // SAFETY: `groups` times sixteen scales, then as many minima unless they share their bytes.
    unsafe {
        let bytes = _mm_loadu_si128(unit.add(group * PANEL).cast());
        let low_half = _mm_set1_epi8(15);
        if shared {
            let minima = _mm_and_si128(_mm_srli_epi16::<4>(bytes), low_half);
            return (
                product(factor, integers(_mm_and_si128(bytes, low_half))),
                product(term, integers(minima)),
            );
        }
        let minima = if format.minima {
            product(
                term,
                integers(_mm_loadu_si128(unit.add((groups + group) * PANEL).cast())),
            )
        } else {
            zeros()
        };
        (product(factor, integers(bytes)), minima)
    }
}

/// Decodes 32 columns. Unsigned codes have minima, signed ones have none.
///
/// # Safety
/// `words` must address `BITS` times sixteen words, `out` 32 lines.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode_unit<const BITS: usize, const SIGNED: bool>(
    words: *const u8,
    scales: [(Rows, Rows); 2],
    out: *mut f32,
) {
    for half in 0..2 {
        macro_rules! columns {
            ($($index:literal)*) => {$({
                let (word, shift) = ($index * BITS / 32, $index * BITS % 32);
                // SAFETY: the caller's promise.
                let load = |word: usize| unsafe {
                    _mm256_loadu_si256(words.add(64 * word + 32 * half).cast())
                };
                let code = if shift + BITS > 32 {
                    // The code reaches into the next word.
                    let bits = _mm256_or_si256(
                        right(load(word), shift),
                        left(load(word + 1), 32 - shift),
                    );
                    extended::<BITS, SIGNED>(bits, 0)
                } else {
                    extended::<BITS, SIGNED>(load(word), shift)
                };
                let (scale, minimum) = scales[$index / 16];
                let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(code), scale[half]);
                let value = if SIGNED { scaled } else { _mm256_sub_ps(scaled, minimum[half]) };
                // SAFETY: the caller's promise.
                unsafe { _mm256_storeu_ps(out.add(16 * $index + 8 * half), value) }
            })*};
        }
        columns!(
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        );
    }
}

/// The code of `BITS` bits at bit `shift`, as a 32-bit integer.
#[inline]
#[target_feature(enable = "avx2")]
fn extended<const BITS: usize, const SIGNED: bool>(bits: __m256i, shift: usize) -> __m256i {
    if SIGNED {
        let top = left(bits, 32 - BITS - shift);
        _mm256_sra_epi32(top, _mm_cvtsi32_si128(32 - BITS as i32))
    } else if shift + BITS == 32 {
        right(bits, shift)
    } else {
        _mm256_and_si256(right(bits, shift), _mm256_set1_epi32((1 << BITS) - 1))
    }
}

// Shifts by amounts that are constants once everything is inlined.
#[inline]
#[target_feature(enable = "avx2")]
fn left(bits: __m256i, by: usize) -> __m256i {
    _mm256_sll_epi32(bits, _mm_cvtsi32_si128(by as i32))
}

#[inline]
#[target_feature(enable = "avx2")]
fn right(bits: __m256i, by: usize) -> __m256i {
    _mm256_srl_epi32(bits, _mm_cvtsi32_si128(by as i32))
}

/// Sixteen `f16` numbers.
///
/// # Safety
/// 32 bytes must be readable at `at`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn halves(at: *const u8) -> Rows {
    // SAFETY: the caller's promise.
    unsafe {
        [
            _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(at.add(16).cast())),
        ]
    }
}

/// Sixteen signed bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn integers(bytes: __m128i) -> Rows {
    let high = _mm_srli_si128::<8>(bytes);
    [bytes, high].map(|bytes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn product(a: Rows, b: Rows) -> Rows {
    [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn negated(a: Rows) -> Rows {
    a.map(|a| _mm256_xor_ps(a, _mm256_set1_ps(-0.0)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn zeros() -> Rows {
    [_mm256_setzero_ps(); 2]
}
