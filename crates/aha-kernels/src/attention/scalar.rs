//! The portable bodies.

use super::task::{LANES, Probabilities, Step, Tile};
use crate::buffer::{Line, flat_mut};
use crate::exp::exp;
use crate::pack::PANEL;

/// See `super::task::interleave`.
pub(super) fn interleave(rows: [&[f32]; LANES], first_lane: usize, lines: &mut [Line]) {
    for (index, line) in lines.iter_mut().enumerate() {
        for (value, row) in line.0[first_lane..].iter_mut().zip(rows) {
            *value = row[index];
        }
    }
}

/// See `super::task::softmax`.
pub(super) fn softmax(tile: Tile<'_>, scale: f32, largest: f32, out: &mut Probabilities) -> Step {
    let computed = tile.panels.start * PANEL..tile.panels.end * PANEL;
    for (panel, line) in out.iter_mut().enumerate() {
        if tile.panels.contains(&panel) {
            *line = *tile.scores[panel];
        }
    }
    let scores = &mut flat_mut(out)[computed.clone()];
    let mut new_largest = largest;
    for (index, score) in computed.zip(scores.iter_mut()) {
        *score = if tile.seen.contains(&index) {
            *score * scale
        } else {
            f32::NEG_INFINITY
        };
        // NaN must win, and `f32::max` would drop it.
        if *score > new_largest || score.is_nan() {
            new_largest = *score;
        }
    }
    if new_largest == f32::NEG_INFINITY {
        scores.fill(0.0);
        return Step {
            largest: new_largest,
            sum: 0.0,
            correction: 1.0,
        };
    }
    let mut sums = [0.0; LANES];
    for lanes in scores.chunks_exact_mut(LANES) {
        for (score, sum) in lanes.iter_mut().zip(&mut sums) {
            *score = exp(*score - new_largest);
            *sum += *score;
        }
    }
    Step {
        largest: new_largest,
        sum: sums.iter().sum(),
        correction: exp(largest - new_largest),
    }
}
