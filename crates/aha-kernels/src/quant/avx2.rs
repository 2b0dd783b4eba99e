//! Decoding of packed panels for AVX2: eight rows a register, codes by shifts within their lane.

use std::arch::x86_64::*;

use super::{Format, Scales, UNIT};
use crate::buffer::Line;
use crate::pack::PANEL;

/// Bytes that are asked for ahead of use.
const PREFETCH: usize = 2048;

/// One number for each of sixteen rows.
type Rows = [__m256; 2];

/// Runs a body for each column of a unit with an index that is a constant there, so that shifts have
/// constant amounts.
macro_rules! for_each_column {
    ($index:ident => $body:block) => {
        for_each_column!($index $body
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
    ($index:ident $body:block $($value:literal)*) => {$({
        let $index: usize = $value;
        $body
    })*};
}

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
    for (index, lines) in out.chunks_exact_mut(UNIT).enumerate() {
        // SAFETY: the caller checked that the panel holds this unit; `lines` are 32.
        unsafe {
            let unit = Unit::at(format, panel.as_ptr(), start / UNIT + index);
            let out: *mut f32 = lines.as_mut_ptr().cast();
            for_each_column!(index => {
                let at = out.add(16 * index);
                _mm256_storeu_ps(at, unit.value::<BITS, SIGNED>(index, 0));
                _mm256_storeu_ps(at.add(8), unit.value::<BITS, SIGNED>(index, 1));
            });
        }
    }
}

/// The product of one row of `x` with `PANELS` panels, whose values stay in registers. The sums are
/// those that decoding first gives, bit by bit.
///
/// # Safety
/// AVX2, FMA and F16C must be present.
pub(crate) unsafe fn row_product<const PANELS: usize>(
    format: &Format,
    panels: [&[u8]; PANELS],
    x: &[f32],
    out: &mut [Line; PANELS],
) {
    assert!(x.len().is_multiple_of(format.values));
    let bytes = x.len() / format.values * format.packed_bytes();
    assert!(panels.iter().all(|panel| panel.len() >= bytes));
    let panels = panels.map(<[u8]>::as_ptr);
    // SAFETY: each panel holds all blocks of a row (asserted).
    unsafe {
        match (format.bits, format.signed) {
            (2, false) => multiply_units::<2, false, PANELS>(format, panels, x, out),
            (3, true) => multiply_units::<3, true, PANELS>(format, panels, x, out),
            (4, false) => multiply_units::<4, false, PANELS>(format, panels, x, out),
            (4, true) => multiply_units::<4, true, PANELS>(format, panels, x, out),
            (5, false) => multiply_units::<5, false, PANELS>(format, panels, x, out),
            (5, true) => multiply_units::<5, true, PANELS>(format, panels, x, out),
            (6, true) => multiply_units::<6, true, PANELS>(format, panels, x, out),
            (8, true) => multiply_units::<8, true, PANELS>(format, panels, x, out),
            (bits, _) => unreachable!("no format has {bits} bits like this"),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_units<const BITS: usize, const SIGNED: bool, const PANELS: usize>(
    format: &Format,
    panels: [*const u8; PANELS],
    x: &[f32],
    out: &mut [Line; PANELS],
) {
    let mut sums = [zeros(); PANELS];
    for (index, x) in x.chunks_exact(UNIT).enumerate() {
        // SAFETY: the caller checked that the panels hold this unit.
        unsafe {
            let units = panels.map(|panel| Unit::at(format, panel, index));
            for_each_column!(index => {
                let x = _mm256_broadcast_ss(&x[index]);
                for panel in 0..PANELS {
                    let (unit, sums) = (&units[panel], &mut sums[panel]);
                    sums[0] = _mm256_fmadd_ps(x, unit.value::<BITS, SIGNED>(index, 0), sums[0]);
                    sums[1] = _mm256_fmadd_ps(x, unit.value::<BITS, SIGNED>(index, 1), sums[1]);
                }
            });
        }
    }
    for (line, sums) in out.iter_mut().zip(sums) {
        // SAFETY: a line holds two vectors.
        unsafe {
            _mm256_storeu_ps(line.0.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(line.0.as_mut_ptr().add(8), sums[1]);
        }
    }
}

/// 32 columns of a panel.
struct Unit {
    words: *const u8,
    /// Scales and minima of each half of the columns.
    scales: [(Rows, Rows); 2],
}

impl Unit {
    /// Unit `index` of a panel.
    ///
    /// # Safety
    /// The panel must hold it.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn at(format: &Format, panel: *const u8, index: usize) -> Self {
        let units = format.values / UNIT;
        // SAFETY: the caller's promise.
        unsafe {
            let block = panel.add(index / units * format.packed_bytes());
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
            let scales = match format.scales {
                Scales::Plain => [(factor, negated(term)); 2],
                Scales::Nested { groups: 1, .. } => [group_scale(format, unit, factor, term, 0); 2],
                Scales::Nested { .. } => {
                    [0, 1].map(|group| group_scale(format, unit, factor, term, group))
                }
            };
            Self {
                words: unit.add(format.scale_bytes()),
                scales,
            }
        }
    }

    /// Column `index` of eight rows. Unsigned codes have minima, signed ones have none.
    ///
    /// # Safety
    /// `index` must be below 32, `half` below two, `BITS` the bits of the format, and AVX2 present.
    #[inline(always)] // only then are the shifts constants
    unsafe fn value<const BITS: usize, const SIGNED: bool>(
        &self,
        index: usize,
        half: usize,
    ) -> __m256 {
        let (word, shift) = (index * BITS / 32, index * BITS % 32);
        // SAFETY: a unit has `BITS` words of sixteen rows; AVX2 is the caller's promise.
        unsafe {
            let load =
                |word: usize| _mm256_loadu_si256(self.words.add(64 * word + 32 * half).cast());
            let code = if shift + BITS > 32 {
                // The code reaches into the next word.
                let (low, high) = (load(word), load(word + 1));
                let bits = _mm256_or_si256(right(low, shift), left(high, 32 - shift));
                extended::<BITS, SIGNED>(bits, 0)
            } else {
                extended::<BITS, SIGNED>(load(word), shift)
            };
            let (scale, minimum) = self.scales[index / 16];
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(code), scale[half]);
            if SIGNED {
                scaled
            } else {
                _mm256_sub_ps(scaled, minimum[half])
            }
        }
    }
}

/// Scale and minimum of a group of sixteen or 32 columns.
///
/// # Safety
/// `unit` must address a unit of `format`, and AVX2 be present.
#[inline]
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

/// The code of `BITS` bits at bit `shift`, as a 32-bit integer.
///
/// # Safety
/// AVX2 must be present.
#[inline(always)]
unsafe fn extended<const BITS: usize, const SIGNED: bool>(bits: __m256i, shift: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        if SIGNED {
            let top = left(bits, 32 - BITS - shift);
            _mm256_sra_epi32(top, _mm_cvtsi32_si128(32 - BITS as i32))
        } else if shift + BITS == 32 {
            right(bits, shift)
        } else {
            _mm256_and_si256(right(bits, shift), _mm256_set1_epi32((1 << BITS) - 1))
        }
    }
}

/// A shift by an amount that is a constant once everything is inlined.
///
/// # Safety
/// AVX2 must be present.
#[inline(always)]
unsafe fn left(bits: __m256i, by: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_sll_epi32(bits, _mm_cvtsi32_si128(by as i32)) }
}

/// As [`left`], to the right.
///
/// # Safety
/// AVX2 must be present.
#[inline(always)]
unsafe fn right(bits: __m256i, by: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_srl_epi32(bits, _mm_cvtsi32_si128(by as i32)) }
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
