//! The NEON bodies.

use std::arch::aarch64::*;
use std::ops::Range;

use super::task::{KEYS, LANES, Probabilities, Step, Tile};
use crate::buffer::{Line, flat_mut};
use crate::exp::neon::exp_of_negative;
use crate::transpose::neon::transposed;

/// Vectors of a tile, and of a line.
const VECTORS: usize = KEYS / 4;
const LINE_VECTORS: usize = 4;

/// See `super::task::softmax`.
#[target_feature(enable = "neon")]
pub(super) fn softmax(tile: Tile<'_>, scale: f32, largest: f32, out: &mut Probabilities) -> Step {
    if tile.seen == (0..KEYS) {
        softmax_of::<true>(tile, scale, largest, out)
    } else {
        softmax_of::<false>(tile, scale, largest, out)
    }
}

/// `WHOLE` tells that the row sees all keys, so that loops have a length that the compiler knows and nothing is masked.
#[inline]
#[target_feature(enable = "neon")]
fn softmax_of<const WHOLE: bool>(
    tile: Tile<'_>,
    scale: f32,
    largest: f32,
    out: &mut Probabilities,
) -> Step {
    let range = if WHOLE {
        0..VECTORS
    } else {
        LINE_VECTORS * tile.panels.start..LINE_VECTORS * tile.panels.end
    };
    let out = flat_mut(out);
    // Four at a time, each of which waits for its own only.
    let mut highest = [vdupq_n_f32(largest); LINE_VECTORS];
    for index in range.clone() {
        let line = &tile.scores[index / LINE_VECTORS].0;
        // SAFETY: a line is four vectors.
        let loaded = unsafe { vld1q_f32(line.as_ptr().add(index % LINE_VECTORS * 4)) };
        let mut vector = vmulq_n_f32(loaded, scale);
        if !WHOLE {
            let unseen = vdupq_n_f32(f32::NEG_INFINITY);
            vector = vbslq_f32(sees(&tile.seen, index), vector, unseen);
        }
        // Of NaN and a number this answers the number: NaN reaches the result by the sum below.
        let highest = &mut highest[index % LINE_VECTORS];
        *highest = vmaxnmq_f32(vector, *highest);
        // SAFETY: the probabilities are `VECTORS` vectors.
        unsafe { vst1q_f32(out.as_mut_ptr().add(4 * index), vector) }
    }
    let [a, b, c, d] = highest;
    let new_largest = vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a, b), vmaxnmq_f32(c, d)));
    let computed = &mut out[4 * range.start..4 * range.end];
    if new_largest == f32::NEG_INFINITY {
        let has_nan = computed.iter().any(|score| score.is_nan());
        computed.fill(0.0);
        return Step {
            largest: new_largest,
            sum: if has_nan { f32::NAN } else { 0.0 },
            correction: 1.0,
        };
    }
    let mut sums = [vdupq_n_f32(0.0); LINE_VECTORS];
    for line in computed.chunks_exact_mut(4 * LINE_VECTORS) {
        for (part, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a line is four vectors.
            unsafe {
                let place = line.as_mut_ptr().add(4 * part);
                let less = vsubq_f32(vld1q_f32(place), vdupq_n_f32(new_largest));
                let probability = exp_of_negative(less);
                *sum = vaddq_f32(*sum, probability);
                vst1q_f32(place, probability);
            }
        }
    }
    let correction = if new_largest == largest {
        1.0
    } else {
        vgetq_lane_f32::<0>(exp_of_negative(vdupq_n_f32(largest - new_largest)))
    };
    let [a, b, c, d] = sums;
    Step {
        largest: new_largest,
        sum: vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d))),
        correction,
    }
}

/// Which keys of a vector are inside `seen`.
#[inline]
#[target_feature(enable = "neon")]
fn sees(seen: &Range<usize>, index: usize) -> uint32x4_t {
    const LANES: [u32; 4] = [0, 1, 2, 3];
    // SAFETY: the array holds four values.
    let lanes = unsafe { vld1q_u32(LANES.as_ptr()) };
    let position = vaddq_u32(lanes, vdupq_n_u32(4 * index as u32));
    vandq_u32(
        vcgeq_u32(position, vdupq_n_u32(seen.start as u32)),
        vcltq_u32(position, vdupq_n_u32(seen.end as u32)),
    )
}

/// See `super::task::interleave`.
#[target_feature(enable = "neon")]
pub(super) fn interleave(rows: [&[f32]; LANES], first_lane: usize, lines: &mut [Line]) {
    let dim = lines.len();
    assert!(first_lane + LANES <= 16 && rows.iter().all(|row| row.len() >= dim));
    let whole = dim / 4 * 4;
    for start in (0..whole).step_by(4) {
        for half in [0, 4] {
            let mut vectors = [vdupq_n_f32(0.0); 4];
            for (vector, row) in vectors.iter_mut().zip(&rows[half..]) {
                // SAFETY: each row holds `dim` values (asserted), of which four begin at `start`.
                *vector = unsafe { vld1q_f32(row.as_ptr().add(start)) };
            }
            let lines = lines[start..start + 4].iter_mut();
            for (line, column) in lines.zip(transposed(vectors)) {
                // SAFETY: eight lanes begin at `first_lane` (asserted).
                unsafe { vst1q_f32(line.0.as_mut_ptr().add(first_lane + half), column) }
            }
        }
    }
    super::scalar::interleave(
        rows.map(|row| &row[whole..]),
        first_lane,
        &mut lines[whole..],
    );
}
