//! The AVX-512 body: a register holds two columns of each of sixteen rows.

use std::arch::x86_64::*;

use super::Tile;
use crate::buffer::Line;

/// Bytes that are asked for ahead of use, a panel.
const PREFETCH: usize = 1024;

/// See [`Tile::multiply`].
///
/// # Safety
/// The lengths must be as asserted there, and AVX-512 with BF16 present.
pub(super) unsafe fn multiply(tile: Tile<'_>) {
    macro_rules! shapes {
        ($($rows:literal: $($panels:literal)*),*) => {
            match (tile.rows, tile.count, tile.streams) {
                $($(
                    // SAFETY: the caller's promise.
                    ($rows, $panels, true) => unsafe { kernel::<$rows, $panels, true>(tile) },
                    // SAFETY: as above.
                    ($rows, $panels, false) => unsafe { kernel::<$rows, $panels, false>(tile) },
                )*)*
                (rows, count, _) => unreachable!("no tile of {rows} rows and {count} panels"),
            }
        };
    }
    shapes!(
        1: 1 2 4, 2: 1 2 4, 3: 1 2 4, 4: 1 2 4, 5: 1 2 4, 6: 1 2 4,
        7: 1 2, 8: 1 2, 9: 1 2, 10: 1 2, 11: 1 2, 12: 1 2
    );
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn kernel<const ROWS: usize, const PANELS: usize, const STREAMS: bool>(tile: Tile<'_>) {
    const LINE: usize = size_of::<Line>();
    let panel_bytes = tile.pairs * LINE;
    // SAFETY: the caller's promise; all offsets are those of the layouts.
    unsafe {
        let out = tile.sums.as_mut_ptr();
        let mut x = tile.x.as_ptr();
        let mut w = tile.panels.as_ptr();
        let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
        for _ in 0..tile.pairs {
            let weights: [__m512bh; PANELS] = std::array::from_fn(|panel| {
                let at = w.add(panel * panel_bytes);
                if STREAMS {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH).cast());
                }
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast()))
            });
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(x.add(row).read().cast_signed());
                let x = std::mem::transmute::<__m512i, __m512bh>(x);
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = _mm512_dpbf16_ps(*sum, weights, x);
                }
            }
            x = x.add(ROWS);
            w = w.add(LINE);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (panel, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(out.add(panel * ROWS + row).cast(), *sum);
            }
        }
    }
}

/// Rounds a tile of rows of `cols` values to `[pair of columns][row]` words.
///
/// # Safety
/// AVX-512 with BF16 must be present.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn round(cols: usize, x: &[f32], rows: usize, words: &mut [f32]) {
    for (row, x) in x.chunks_exact(cols).enumerate() {
        let mut places = words[row..].iter_mut().step_by(rows);
        let mut store = |values: &[f32; 32]| {
            let mut pairs = [0.0_f32; 16];
            // SAFETY: 32 values are two registers, sixteen pairs are one.
            unsafe {
                let (low, high) = (
                    _mm512_loadu_ps(values.as_ptr()),
                    _mm512_loadu_ps(values.as_ptr().add(16)),
                );
                let rounded = _mm512_cvtne2ps_pbh(high, low);
                _mm512_storeu_si512(
                    pairs.as_mut_ptr().cast(),
                    std::mem::transmute::<__m512bh, __m512i>(rounded),
                );
            }
            for (pair, place) in pairs.into_iter().zip(&mut places) {
                *place = pair;
            }
        };
        let (pieces, rest) = x.as_chunks::<32>();
        pieces.iter().for_each(&mut store);
        if !rest.is_empty() {
            let mut values = [0.0; 32];
            values[..rest.len()].copy_from_slice(rest);
            store(&values);
        }
    }
}
