//! The AVX2 bodies.

use std::arch::x86_64::*;

use super::task::{LANES, Scores, Step};
use crate::buffer::{Line, flat_mut};
use crate::exp::avx2::exp;

/// See `super::task::softmax`.
#[target_feature(enable = "avx2,fma")]
pub(super) fn softmax(
    scores: &mut Scores,
    scale: f32,
    seen: std::ops::Range<usize>,
    largest: f32,
) -> Step {
    let scores = flat_mut(scores);
    let (first, end) = (seen.start as i32, seen.end as i32);
    let before = _mm256_set1_epi32(first - 1);
    let end = _mm256_set1_epi32(end);
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let mut highest = _mm256_set1_ps(largest);
    let mut has_nan = _mm256_setzero_ps();
    let mut vectors = [_mm256_setzero_ps(); 4];
    for (index, vector) in vectors.iter_mut().enumerate() {
        let position = _mm256_add_epi32(lanes, _mm256_set1_epi32(8 * index as i32));
        let is_seen = _mm256_and_si256(
            _mm256_cmpgt_epi32(position, before),
            _mm256_cmpgt_epi32(end, position),
        );
        // SAFETY: the scores are four vectors.
        let loaded = unsafe { _mm256_loadu_ps(scores.as_ptr().add(8 * index)) };
        *vector = _mm256_blendv_ps(
            _mm256_set1_ps(f32::NEG_INFINITY),
            _mm256_mul_ps(loaded, _mm256_set1_ps(scale)),
            _mm256_castsi256_ps(is_seen),
        );
        has_nan = _mm256_or_ps(has_nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(*vector, *vector));
        highest = _mm256_max_ps(*vector, highest);
    }
    let mut new_largest = if largest.is_nan() {
        largest
    } else {
        lanes_of(highest).into_iter().fold(largest, f32::max)
    };
    if _mm256_movemask_ps(has_nan) != 0 {
        new_largest = f32::NAN;
    }
    if new_largest == f32::NEG_INFINITY {
        scores.fill(0.0);
        return Step {
            largest: new_largest,
            sum: 0.0,
            correction: 1.0,
        };
    }
    let mut sums = _mm256_setzero_ps();
    for (index, vector) in vectors.into_iter().enumerate() {
        let probability = exp(_mm256_sub_ps(vector, _mm256_set1_ps(new_largest)));
        sums = _mm256_add_ps(sums, probability);
        // SAFETY: the scores are four vectors.
        unsafe { _mm256_storeu_ps(scores.as_mut_ptr().add(8 * index), probability) }
    }
    let correction = lanes_of(exp(_mm256_set1_ps(largest - new_largest)))[0];
    Step {
        largest: new_largest,
        sum: lanes_of(sums).iter().sum(),
        correction,
    }
}

#[target_feature(enable = "avx2,fma")]
fn lanes_of(vector: __m256) -> [f32; 8] {
    let mut lanes = [0.0; 8];
    // SAFETY: the array holds one vector.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), vector) }
    lanes
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
