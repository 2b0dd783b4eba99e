//! The NEON bodies.

use std::arch::aarch64::*;

use super::LANES;

/// Columns that are written at once.
const COLUMNS: usize = 4;

/// See [`super::transpose`]. Returns how many columns were written: those in whole vectors that end inside `target`.
#[target_feature(enable = "neon")]
pub(super) fn transpose(source: &[f32], stride: usize, rows: usize, target: &mut [f32]) -> usize {
    let depth = target.len() / rows;
    assert!((1..=LANES).contains(&rows) && source.len() >= (rows - 1) * stride + depth);
    // A column is written as one or two whole vectors, whose other lanes the next columns overwrite.
    let lanes = rows.next_multiple_of(4);
    let mut column = 0;
    while (column + COLUMNS) * rows + lanes - rows <= target.len() {
        let four_rows = |first: usize| {
            let mut vectors = [vdupq_n_f32(0.0); 4];
            for (row, vector) in vectors.iter_mut().enumerate() {
                let row = (first + row).min(rows - 1);
                // SAFETY: each of the rows holds `depth` values (asserted), of which four begin at `column`.
                *vector = unsafe { vld1q_f32(source.as_ptr().add(row * stride + column)) };
            }
            transposed(vectors)
        };
        let low = four_rows(0);
        let high = if lanes > 4 { four_rows(4) } else { low };
        for (index, (low, high)) in low.into_iter().zip(high).enumerate() {
            let target = &mut target[(column + index) * rows..][..lanes];
            // SAFETY: there are so many lanes.
            unsafe {
                vst1q_f32(target.as_mut_ptr(), low);
                if lanes > 4 {
                    vst1q_f32(target.as_mut_ptr().add(4), high);
                }
            }
        }
        column += COLUMNS;
    }
    column
}

/// The transpose of a 4 x 4 matrix.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn transposed([r0, r1, r2, r3]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let pairs = |a, b| {
        let even = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
        let odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
        [even, odd]
    };
    let ([a0, a1], [b0, b1]) = (pairs(r0, r1), pairs(r2, r3));
    let low = |a, b| vreinterpretq_f32_f64(vtrn1q_f64(a, b));
    let high = |a, b| vreinterpretq_f32_f64(vtrn2q_f64(a, b));
    [low(a0, b0), low(a1, b1), high(a0, b0), high(a1, b1)]
}
