//! The AVX2 bodies.

use std::arch::x86_64::*;

use super::task::{KEYS, LANES, Probabilities, Step, Tile};
use crate::buffer::{Line, flat_mut};
use crate::exp::avx2::exp_of_negative;
use crate::transpose::avx2::transposed;

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
