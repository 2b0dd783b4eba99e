//! The filters behind [`super::ResampleMethod`].

use std::f64::consts::PI;
use std::sync::OnceLock;

/// A continuous low-pass kernel and the phases of it that one pair of rates needs.
///
/// For output `m` of a conversion from `o` to `n` (reduced by their greatest common divisor) the
/// position in the input is `m * o / n`; tap `i` weighs the input sample `i` places from the sample
/// at or before that position.
pub(super) struct Taps {
    shape: Shape,
    from: usize,
    to: usize,
    /// Taps reach from `-half` to `half + 1`.
    half: usize,
    /// All phases, when they fit.
    table: Vec<f32>,
    scratch: Vec<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    /// Hann-windowed sinc of six zero crossings, roll-off 0.99. With `single`, the kernel is
    /// computed in `f32` step by step, as a reference that does so gets it.
    HannSinc { single: bool },
    /// The response of soxr's high quality recipe.
    Steep(Steps),
}

/// Coefficients a table may have; rarer conversions compute their taps anew for each sample.
const MAX_TABLE: usize = 1 << 22;
const ROLL_OFF: f64 = 0.99;
const ZERO_CROSSINGS: f64 = 6.0;

impl Taps {
    /// `from` and `to` must be reduced and not 0.
    pub(super) fn new(shape: Shape, from: usize, to: usize) -> Self {
        let ratio = (from as f64 / to as f64).max(1.0);
        let support = match shape {
            Shape::HannSinc { .. } => ZERO_CROSSINGS * ratio / ROLL_OFF,
            Shape::Steep(steps) => Prototype::get(steps).reach * ratio,
        };
        let half = support.ceil() as usize;
        let mut taps = Self {
            shape,
            from,
            to,
            half,
            table: Vec::new(),
            scratch: Vec::new(),
        };
        let count = taps.count();
        if to.checked_mul(count).is_some_and(|size| size <= MAX_TABLE) {
            let mut table = vec![0.0; to * count];
            for (phase, row) in table.chunks_exact_mut(count).enumerate() {
                taps.fill(phase, row);
            }
            taps.table = table;
        } else {
            taps.scratch = vec![0.0; count];
        }
        taps
    }

    pub(super) fn half(&self) -> usize {
        self.half
    }

    pub(super) fn count(&self) -> usize {
        2 * self.half + 2
    }

    /// The taps of output phase `m % to`.
    pub(super) fn phase(&mut self, phase: usize) -> &[f32] {
        let count = self.count();
        if self.table.is_empty() {
            let mut row = std::mem::take(&mut self.scratch);
            self.fill(phase, &mut row);
            self.scratch = row;
            &self.scratch
        } else {
            &self.table[phase * count..][..count]
        }
    }

    fn fill(&self, phase: usize, row: &mut [f32]) {
        let (from, to) = (self.from, self.to);
        let whole = phase * from / to;
        let first = whole as isize - self.half as isize;
        let base = from.min(to) as f64 * ROLL_OFF;
        match self.shape {
            Shape::HannSinc { single: false } => {
                for (tap, weight) in row.iter_mut().enumerate() {
                    let index = (first + tap as isize) as f64;
                    // The reference divides the integer phase in single precision before all else.
                    let shift = f64::from(-(phase as f32) / to as f32);
                    let t = (shift + index / from as f64) * base;
                    *weight = hann_sinc(t, base / from as f64) as f32;
                }
            }
            Shape::HannSinc { single: true } => {
                let base_single = base as f32;
                for (tap, weight) in row.iter_mut().enumerate() {
                    let index = (first + tap as isize) as f32 / from as f32;
                    let t = (-(phase as f32) / to as f32 + index) * base_single;
                    *weight = hann_sinc_single(t, (base / from as f64) as f32);
                }
            }
            Shape::Steep(steps) => {
                let prototype = Prototype::get(steps);
                // In samples of the lower of the two rates, whose Nyquist frequency is the edge.
                let unit = (to as f64 / from as f64).min(1.0);
                let fraction = (phase * from % to) as f64 / to as f64;
                for (tap, weight) in row.iter_mut().enumerate() {
                    let offset = tap as f64 - self.half as f64 - fraction;
                    *weight = (unit * prototype.at(offset * unit)) as f32;
                }
            }
        }
    }
}

fn hann_sinc(t: f64, scale: f64) -> f64 {
    if t.abs() >= ZERO_CROSSINGS {
        return 0.0;
    }
    let window = (t * PI / ZERO_CROSSINGS / 2.0).cos().powi(2);
    let x = t * PI;
    let sinc = if x == 0.0 { 1.0 } else { x.sin() / x };
    sinc * window * scale
}

fn hann_sinc_single(t: f32, scale: f32) -> f32 {
    if t.abs() >= ZERO_CROSSINGS as f32 {
        return 0.0;
    }
    let pi = std::f32::consts::PI;
    let window = (t * pi / ZERO_CROSSINGS as f32 / 2.0).cos().powi(2);
    let x = t * pi;
    let sinc = if x == 0.0 { 1.0 } else { x.sin() / x };
    sinc * (window * scale)
}

/// A finely sampled kernel in units of samples of the lower rate.
///
/// The constants are those of Kaiser-windowed sincs fitted to impulse responses of soxr's high
/// quality recipe (pass band to 0.913 of the Nyquist frequency, -6 dB at 0.957, -120 dB from 1.0);
/// the fits are exact to -130 dB.
struct Prototype {
    values: Vec<f64>,
    reach: f64,
}

/// How many filters soxr takes for a ratio, and of what length the steep one is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Steps {
    /// One, for ratios of powers of two.
    Halves,
    /// One, for such ratios with a factor of three.
    Thirds,
    /// Two: the second is wide and takes 0.008 dB off the top of the pass band.
    Two,
}

/// Points a sample: cubic interpolation between them is exact to -180 dB.
const POINTS: usize = 256;
const CUTOFF: f64 = 0.956_871_84;
const HALVES: Kaiser = Kaiser {
    cutoff: CUTOFF,
    half_length: 97.25,
    beta: 13.04,
};
const THIRDS: Kaiser = Kaiser {
    cutoff: CUTOFF,
    half_length: 96.833,
    beta: 13.04,
};
const STEEP: Kaiser = Kaiser {
    cutoff: CUTOFF,
    half_length: 101.767_734_31,
    beta: 13.710_931_96,
};
const WIDE: Kaiser = Kaiser {
    cutoff: 2.461_876_97,
    half_length: 2.187_5,
    beta: 14.128_295_29,
};
/// Samples of the wide filter per sample of the lower rate, when it is folded into the steep one.
const WIDE_STEPS: usize = 4;

struct Kaiser {
    cutoff: f64,
    half_length: f64,
    beta: f64,
}

impl Kaiser {
    fn at(&self, t: f64) -> f64 {
        let y = t / self.half_length;
        if y.abs() >= 1.0 {
            return 0.0;
        }
        let x = PI * self.cutoff * t;
        let sinc = if x == 0.0 { 1.0 } else { x.sin() / x };
        self.cutoff * sinc * bessel_i0(self.beta * (1.0 - y * y).sqrt()) / bessel_i0(self.beta)
    }
}

impl Prototype {
    fn get(steps: Steps) -> &'static Self {
        static ALL: [OnceLock<Prototype>; 3] = [const { OnceLock::new() }; 3];
        match steps {
            Steps::Halves => ALL[0].get_or_init(|| Self::sampled(&HALVES)),
            Steps::Thirds => ALL[1].get_or_init(|| Self::sampled(&THIRDS)),
            Steps::Two => ALL[2].get_or_init(|| Self::sampled(&STEEP).widened()),
        }
    }

    fn sampled(kaiser: &Kaiser) -> Self {
        let points = (kaiser.half_length.ceil() as usize + 1) * POINTS;
        let right: Vec<f64> = (0..=points)
            .map(|index| kaiser.at(index as f64 / POINTS as f64))
            .collect();
        let values = right[1..].iter().rev().chain(&right).copied().collect();
        Self {
            values,
            reach: kaiser.half_length,
        }
    }

    /// Convolved with the wide filter.
    fn widened(&self) -> Self {
        let shift = POINTS / WIDE_STEPS;
        let side = (WIDE.half_length * WIDE_STEPS as f64).floor() as usize;
        let weights: Vec<f64> = (0..=2 * side)
            .map(|k| WIDE.at((k as f64 - side as f64) / WIDE_STEPS as f64))
            .collect();
        let sum: f64 = weights.iter().sum();
        let mut values = vec![0.0; self.values.len() + 2 * side * shift];
        for (k, weight) in weights.iter().enumerate() {
            for (value, part) in values[k * shift..].iter_mut().zip(&self.values) {
                *value += weight / sum * part;
            }
        }
        Self {
            values,
            reach: self.reach + WIDE.half_length,
        }
    }

    fn at(&self, t: f64) -> f64 {
        if t.abs() >= self.reach {
            return 0.0;
        }
        let position = t * POINTS as f64 + (self.values.len() / 2) as f64;
        let index = position.floor();
        let x = position - index;
        let index = index as usize;
        let Some(&[a, b, c, d]) = index
            .checked_sub(1)
            .and_then(|start| self.values.get(start..start + 4))
            .and_then(|four| four.first_chunk::<4>())
        else {
            return 0.0;
        };
        // Lagrange through the four neighbours at -1, 0, 1, 2.
        let (below, above, far) = (x + 1.0, x - 1.0, x - 2.0);
        -a * x * above * far / 6.0 + b * below * above * far / 2.0 - c * below * x * far / 2.0
            + d * below * x * above / 6.0
    }
}

/// The modified Bessel function of the first kind and order 0, by its power series.
fn bessel_i0(x: f64) -> f64 {
    let quarter = x * x / 4.0;
    let (mut sum, mut term) = (1.0, 1.0);
    for k in 1..200 {
        term *= quarter / f64::from(k * k);
        sum += term;
        if term < sum * 1e-17 {
            break;
        }
    }
    sum
}
