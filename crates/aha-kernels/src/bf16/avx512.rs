//! The AVX-512 body: a register holds two columns of each of sixteen rows.

use std::arch::x86_64::*;

use super::Tile;
use crate::buffer::Line;

/// See [`Tile::multiply`].
///
/// # Safety
/// The lengths must be as asserted there, and AVX-512 with BF16 present.
pub(super) unsafe fn multiply(tile: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows {
            1 => multiply_rows::<1>(tile),
            2 => multiply_rows::<2>(tile),
            3 => multiply_rows::<3>(tile),
            4 => multiply_rows::<4>(tile),
            5 => multiply_rows::<5>(tile),
            6 => multiply_rows::<6>(tile),
            rows => unreachable!("no tile of {rows} rows"),
        }
    }
}

/// The same for a number of rows.
///
/// # Safety
/// As above.
unsafe fn multiply_rows<const ROWS: usize>(tile: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match (tile.count, tile.fetched) {
            (1, 0) => kernel::<ROWS, 1, 0>(tile),
            (1, 1) => kernel::<ROWS, 1, 1>(tile),
            (2, 0) => kernel::<ROWS, 2, 0>(tile),
            (2, 2) => kernel::<ROWS, 2, 2>(tile),
            (4, 0) => kernel::<ROWS, 4, 0>(tile),
            (4, 1) => kernel::<ROWS, 4, 1>(tile),
            (4, 2) => kernel::<ROWS, 4, 2>(tile),
            (4, 4) => kernel::<ROWS, 4, 4>(tile),
            (count, fetched) => unreachable!("no tile of {count} panels that fetches {fetched}"),
        }
    }
}

/// What is asked for ahead comes into the second-level cache.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn kernel<const ROWS: usize, const PANELS: usize, const FETCHED: usize>(tile: Tile<'_>) {
    const LINE: usize = size_of::<Line>();
    let panel_bytes = tile.pairs * LINE;
    // SAFETY: the caller's promise; all offsets are those of the layouts. Asking for memory ahead is allowed anywhere.
    unsafe {
        let out = tile.sums.as_mut_ptr();
        let x: [*const u32; ROWS] =
            std::array::from_fn(|row| tile.x.as_ptr().add(row * tile.pairs));
        let mut w = tile.panels.as_ptr();
        let mut ahead = tile.ahead;
        let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
        for pair in 0..tile.pairs {
            for panel in 0..FETCHED {
                let at = ahead.wrapping_add(panel * panel_bytes).cast();
                _mm_prefetch::<_MM_HINT_T1>(at);
            }
            let weights: [__m512bh; PANELS] = std::array::from_fn(|panel| {
                let at = w.add(panel * panel_bytes);
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast()))
            });
            for (x, sums) in x.iter().zip(&mut sums) {
                let x = _mm512_set1_epi32(x.add(pair).read().cast_signed());
                let x = std::mem::transmute::<__m512i, __m512bh>(x);
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = _mm512_dpbf16_ps(*sum, weights, x);
                }
            }
            w = w.add(LINE);
            ahead = ahead.wrapping_add(LINE);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (panel, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(out.add(panel * ROWS + row).cast(), *sum);
            }
        }
    }
}

/// Rounds rows of `cols` values, of which there is at least one, to pairs of columns in a word each.
///
/// # Safety
/// AVX-512 with BF16 must be present.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn round(cols: usize, x: &[f32], words: &mut [f32]) {
    for (x, words) in x
        .chunks_exact(cols)
        .zip(words.chunks_exact_mut(cols.div_ceil(2)))
    {
        let (pieces, rest) = x.as_chunks::<32>();
        let (whole, last) = words.split_at_mut(16 * pieces.len());
        for (values, words) in pieces.iter().zip(whole.as_chunks_mut().0) {
            round_piece(values, words);
        }
        if !rest.is_empty() {
            let (mut values, mut pairs) = ([0.0; 32], [0.0; 16]);
            values[..rest.len()].copy_from_slice(rest);
            round_piece(&values, &mut pairs);
            last.copy_from_slice(&pairs[..last.len()]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn round_piece(values: &[f32; 32], words: &mut [f32; 16]) {
    // SAFETY: 32 values are two registers, sixteen words are one.
    unsafe {
        let low = _mm512_loadu_ps(values.as_ptr());
        let high = _mm512_loadu_ps(values.as_ptr().add(16));
        let rounded = _mm512_cvtne2ps_pbh(high, low);
        let rounded = std::mem::transmute::<__m512bh, __m512i>(rounded);
        _mm512_storeu_si512(words.as_mut_ptr().cast(), rounded);
    }
}
