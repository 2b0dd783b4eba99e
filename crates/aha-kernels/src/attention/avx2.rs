//! The AVX2 bodies.

use std::arch::x86_64::*;

use super::task::{KEYS, LANES, Probabilities, Step, Tile};
use crate::buffer::{Line, flat_mut};
use crate::exp::avx2::exp_of_negative;

/// Vectors of a tile.
const VECTORS: usize = KEYS / 8;

/// See `super::task::softmax`.
#[target_feature(enable = "avx2,fma")]
pub(super) fn softmax(tile: Tile<'_>, scale: f32, largest: f32, out: &mut Probabilities) -> Step {
    if tile.seen == (0..KEYS) {
        softmax_of::<true>(tile, scale, largest, out)
    } else {
        softmax_of::<false>(tile, scale, largest, out)
    }
}

/// `WHOLE` tells that the row sees all keys, so that loops have a length that the compiler knows and nothing is masked.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn softmax_of<const WHOLE: bool>(
    tile: Tile<'_>,
    scale: f32,
    largest: f32,
    out: &mut Probabilities,
) -> Step {
    let range = if WHOLE {
        0..VECTORS
    } else {
        2 * tile.panels.start..2 * tile.panels.end
    };
    let before = _mm256_set1_epi32(tile.seen.start as i32 - 1);
    let end = _mm256_set1_epi32(tile.seen.end as i32);
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let out = flat_mut(out);
    let mut highest = _mm256_set1_ps(largest);
    let mut vectors = [_mm256_setzero_ps(); VECTORS];
    for index in range.clone() {
        let line = &tile.scores[index / 2].0;
        // SAFETY: a line is two vectors.
        let loaded = unsafe { _mm256_loadu_ps(line.as_ptr().add(index % 2 * 8)) };
        let mut vector = _mm256_mul_ps(loaded, _mm256_set1_ps(scale));
        if !WHOLE {
            let position = _mm256_add_epi32(lanes, _mm256_set1_epi32(8 * index as i32));
            let is_seen = _mm256_and_si256(
                _mm256_cmpgt_epi32(position, before),
                _mm256_cmpgt_epi32(end, position),
            );
            let unseen = _mm256_set1_ps(f32::NEG_INFINITY);
            vector = _mm256_blendv_ps(unseen, vector, _mm256_castsi256_ps(is_seen));
        }
        // Of NaN and a number this answers the second operand: NaN reaches the result by the sum below.
        highest = _mm256_max_ps(vector, highest);
        vectors[index] = vector;
    }
    let new_largest = highest_lane(highest);
    if new_largest == f32::NEG_INFINITY {
        let mut has_nan = _mm256_setzero_ps();
        for index in range.clone() {
            let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(vectors[index], vectors[index]);
            has_nan = _mm256_or_ps(has_nan, is_nan);
        }
        out[8 * range.start..8 * range.end].fill(0.0);
        let sum = if _mm256_movemask_ps(has_nan) == 0 {
            0.0
        } else {
            f32::NAN
        };
        return Step {
            largest: new_largest,
            sum,
            correction: 1.0,
        };
    }
    let mut sums = _mm256_setzero_ps();
    for index in range {
        let less = _mm256_sub_ps(vectors[index], _mm256_set1_ps(new_largest));
        let probability = exp_of_negative(less);
        sums = _mm256_add_ps(sums, probability);
        // SAFETY: the probabilities are `VECTORS` vectors.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * index), probability) }
    }
    let correction = if new_largest == largest {
        1.0
    } else {
        let factors = exp_of_negative(_mm256_set1_ps(largest - new_largest));
        _mm256_cvtss_f32(factors)
    };
    Step {
        largest: new_largest,
        sum: sum_of_lanes(sums),
        correction,
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn highest_lane(vector: __m256) -> f32 {
    let four = _mm_max_ps(
        _mm256_castps256_ps128(vector),
        _mm256_extractf128_ps::<1>(vector),
    );
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn sum_of_lanes(vector: __m256) -> f32 {
    let four = _mm_add_ps(
        _mm256_castps256_ps128(vector),
        _mm256_extractf128_ps::<1>(vector),
    );
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// See `super::task::interleave`.
#[target_feature(enable = "avx2,fma")]
pub(super) fn interleave(rows: [&[f32]; LANES], first_lane: usize, lines: &mut [Line]) {
    let dim = lines.len();
    assert!(first_lane + LANES <= 16 && rows.iter().all(|row| row.len() >= dim));
    let whole = dim / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        // SAFETY: each row holds `dim` values (asserted), of which eight begin at `start`.
        let rows = rows.map(|row| unsafe { _mm256_loadu_ps(row.as_ptr().add(start)) });
        for (line, column) in lines[start..start + LANES].iter_mut().zip(transposed(rows)) {
            // SAFETY: eight lanes begin at `first_lane` (asserted).
            unsafe { _mm256_storeu_ps(line.0.as_mut_ptr().add(first_lane), column) }
        }
    }
    super::scalar::interleave(
        rows.map(|row| &row[whole..]),
        first_lane,
        &mut lines[whole..],
    );
}

/// The transpose of an 8 x 8 matrix.
#[target_feature(enable = "avx2,fma")]
fn transposed(rows: [__m256; 8]) -> [__m256; 8] {
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
