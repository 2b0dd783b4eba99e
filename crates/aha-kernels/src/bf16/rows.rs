//! Weights in the rows of a file: sixteen rows become a panel in registers, a piece at a time.
//!
//! A model that is read from its file needs neither the time nor the memory of a second copy. A step of
//! generation waits for memory anyway, and turning rows into columns meanwhile costs nothing; where many
//! rows of activations meet a panel, it is written down once for all of them.

use std::arch::x86_64::*;

use crate::buffer::Line;
use crate::pack::PANEL;

/// Pairs of columns that are turned at once: a register of each row.
const STEP: usize = 16;

/// Whether rows of a matrix of this shape can be read: whole panels in whole steps only.
pub(crate) fn reads(rows: usize, cols: usize) -> bool {
    rows.is_multiple_of(PANEL) && cols.is_multiple_of(2 * STEP) && rows * cols > 0
}

/// Rows of activations of the largest tile: their sums fit beside sixteen rows of weights.
pub(super) const TILE_ROWS: usize = 12;

/// A tile: rows of activations with sixteen rows of weights.
pub(super) struct Tile<'a> {
    /// Activations `[row][pair of columns]`, two in a word.
    pub(super) x: &'a [u32],
    pub(super) rows: usize,
    pub(super) pairs: usize,
    /// Sixteen rows of weights, one after another.
    pub(super) panel: &'a [u8],
    /// What is asked for meanwhile: as much as the panel.
    pub(super) ahead: *const u8,
    /// A line a row.
    pub(super) sums: &'a mut [Line],
}

impl Tile<'_> {
    /// # Safety
    /// AVX-512 with BF16 must be present.
    pub(super) unsafe fn multiply(self) {
        // The kernel indexes without further checks.
        assert!(self.pairs.is_multiple_of(STEP) && self.x.len() >= self.rows * self.pairs);
        assert!(self.panel.len() >= PANEL * 4 * self.pairs && self.sums.len() >= self.rows);
        macro_rules! shapes {
            ($($rows:literal)*) => {
                match self.rows {
                    // SAFETY: lengths were checked above, the instructions are the caller's promise.
                    $($rows => unsafe { multiply::<$rows>(self) },)*
                    rows => unreachable!("no tile of {rows} rows"),
                }
            };
        }
        shapes!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn multiply<const ROWS: usize>(tile: Tile<'_>) {
    // SAFETY: the caller's promise; all offsets are inside what was checked. Asking for memory ahead is allowed
    // anywhere.
    unsafe {
        let row_bytes = 4 * tile.pairs;
        let mut x: [*const u32; ROWS] =
            std::array::from_fn(|row| tile.x.as_ptr().add(row * tile.pairs));
        let mut w = tile.panel.as_ptr();
        let mut ahead = tile.ahead;
        let mut sums = [_mm512_setzero_ps(); ROWS];
        for _ in 0..tile.pairs / STEP {
            let columns = columns(w, row_bytes);
            for (pair, column) in columns.into_iter().enumerate() {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64 * pair).cast());
                let column = std::mem::transmute::<__m512i, __m512bh>(column);
                for (x, sum) in x.iter().zip(&mut sums) {
                    let x = _mm512_set1_epi32(x.add(pair).read().cast_signed());
                    let x = std::mem::transmute::<__m512i, __m512bh>(x);
                    *sum = _mm512_dpbf16_ps(*sum, column, x);
                }
            }
            for x in &mut x {
                *x = x.add(STEP);
            }
            w = w.add(4 * STEP);
            ahead = ahead.wrapping_add(64 * PANEL);
        }
        for (sum, line) in sums.iter().zip(tile.sums) {
            _mm512_storeu_ps(line.0.as_mut_ptr(), *sum);
        }
    }
}

/// Writes the panel of sixteen rows of `pairs` pairs of columns.
///
/// # Safety
/// AVX-512 must be present.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn pack(rows: &[u8], pairs: usize, panel: &mut [u8]) {
    let row_bytes = 4 * pairs;
    assert!(pairs.is_multiple_of(STEP) && rows.len() >= PANEL * row_bytes);
    assert!(panel.len() >= PANEL * row_bytes);
    for step in 0..pairs / STEP {
        // SAFETY: all steps lie inside the rows and the panel (asserted).
        unsafe {
            let columns = columns(rows.as_ptr().add(4 * STEP * step), row_bytes);
            for (pair, column) in columns.into_iter().enumerate() {
                let line = panel.as_mut_ptr().add(64 * (STEP * step + pair));
                _mm512_storeu_si512(line.cast(), column);
            }
        }
    }
}

/// Sixteen pairs of columns of sixteen rows that begin `row_bytes` after one another: register `pair` has
/// that pair of every row.
///
/// # Safety
/// All rows must have 64 bytes to read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn columns(w: *const u8, row_bytes: usize) -> [__m512i; STEP] {
    let mut turned = [[_mm512_setzero_si512(); 4]; 4];
    // Quarters of registers first: four rows of four pairs stand in each quarter's column then.
    for (first, turned) in turned.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let row = |index: usize| unsafe {
            _mm512_loadu_si512(w.add((first + 4 * index) * row_bytes).cast())
        };
        let (a, b, c, d) = (row(0), row(1), row(2), row(3));
        let low = _mm512_shuffle_i32x4::<0x44>(a, b);
        let high = _mm512_shuffle_i32x4::<0xee>(a, b);
        let low_2 = _mm512_shuffle_i32x4::<0x44>(c, d);
        let high_2 = _mm512_shuffle_i32x4::<0xee>(c, d);
        *turned = [
            _mm512_shuffle_i32x4::<0x88>(low, low_2),
            _mm512_shuffle_i32x4::<0xdd>(low, low_2),
            _mm512_shuffle_i32x4::<0x88>(high, high_2),
            _mm512_shuffle_i32x4::<0xdd>(high, high_2),
        ];
    }
    let mut columns = [_mm512_setzero_si512(); STEP];
    let [a, b, c, d] = turned;
    for quarter in 0..4 {
        let (a, b, c, d) = (a[quarter], b[quarter], c[quarter], d[quarter]);
        let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (low_2, high_2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        let four = &mut columns[4 * quarter..][..4];
        four[0] = _mm512_unpacklo_epi64(low, low_2);
        four[1] = _mm512_unpackhi_epi64(low, low_2);
        four[2] = _mm512_unpacklo_epi64(high, high_2);
        four[3] = _mm512_unpackhi_epi64(high, high_2);
    }
    columns
}
