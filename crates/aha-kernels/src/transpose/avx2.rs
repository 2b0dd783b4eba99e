//! The AVX2 bodies.

use std::arch::x86_64::*;

use super::LANES;

/// See [`super::transpose`]. Returns how many columns were written: those in whole vectors that end inside `target`.
#[target_feature(enable = "avx2,fma")]
pub(super) fn transpose(source: &[f32], stride: usize, rows: usize, target: &mut [f32]) -> usize {
    let depth = target.len() / rows;
    assert!((1..=LANES).contains(&rows) && source.len() >= (rows - 1) * stride + depth);
    let mut column = 0;
    // A column is written as a whole vector, whose other lanes the next columns overwrite.
    while (column + LANES) * rows + LANES - rows <= target.len() {
        // SAFETY: each of the rows holds `depth` values (asserted), of which eight begin at `column`.
        let vectors = std::array::from_fn(|row| unsafe {
            let row = row.min(rows - 1);
            _mm256_loadu_ps(source.as_ptr().add(row * stride + column))
        });
        for (index, vector) in transposed(vectors).into_iter().enumerate() {
            // SAFETY: the last vector ends inside `target` (the loop's condition).
            unsafe { _mm256_storeu_ps(target.as_mut_ptr().add((column + index) * rows), vector) }
        }
        column += LANES;
    }
    column
}

/// The transpose of an 8 x 8 matrix.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn transposed(rows: [__m256; 8]) -> [__m256; 8] {
    let pair = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let [r0, r1, r2, r3, r4, r5, r6, r7] = rows;
    let ((a0, a1), (a2, a3)) = (pair(r0, r1), pair(r2, r3));
    let ((a4, a5), (a6, a7)) = (pair(r4, r5), pair(r6, r7));
    let quad = |a, b| {
        (
            _mm256_shuffle_ps::<0x44>(a, b),
            _mm256_shuffle_ps::<0xee>(a, b),
        )
    };
    let ((b0, b1), (b2, b3)) = (quad(a0, a2), quad(a1, a3));
    let ((b4, b5), (b6, b7)) = (quad(a4, a6), quad(a5, a7));
    let low = |a, b| _mm256_permute2f128_ps::<0x20>(a, b);
    let high = |a, b| _mm256_permute2f128_ps::<0x31>(a, b);
    [
        low(b0, b4),
        low(b1, b5),
        low(b2, b6),
        low(b3, b7),
        high(b0, b4),
        high(b1, b5),
        high(b2, b6),
        high(b3, b7),
    ]
}
