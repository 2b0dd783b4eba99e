//! Which pixels make up a new pixel, and how much each counts.

use std::f64::consts::PI;

use super::Filter;

/// How weights become integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precision {
    /// A fixed number of bits after the point.
    Fixed(u32),
    /// As many bits after the point as let the greatest weight stay below 2 to the 15.
    Fit16Bits,
}

/// The weights of one direction.
pub(super) struct Coefficients {
    /// For every new pixel: the first old pixel, and how many there are.
    pub(super) bounds: Vec<(usize, usize)>,
    /// Room for weights of every new pixel in `weights`.
    pub(super) taps: usize,
    /// `[new pixels, taps]`, unused ones zero.
    pub(super) weights: Vec<i32>,
    /// Bits after the point of the weights.
    pub(super) bits: u32,
}

impl Coefficients {
    pub(super) fn new(old: u32, new: u32, filter: Filter, precision: Precision) -> Self {
        let scale = f64::from(old) / f64::from(new);
        let widening = scale.max(1.0);
        let narrowing = 1.0 / widening;
        let support = support(filter) * widening;
        let taps = support.ceil() as usize * 2 + 1;

        let mut bounds = Vec::with_capacity(new as usize);
        let mut exact = vec![0.0; new as usize * taps];
        for (index, weights) in exact.chunks_exact_mut(taps).enumerate() {
            let center = (index as f64 + 0.5) * scale;
            // The conversions cut off, as in the references, and floor negative numbers at zero.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(old as usize);
            let count = end.saturating_sub(first).min(taps);
            let mut total = 0.0;
            for (offset, weight) in weights[..count].iter_mut().enumerate() {
                let distance = (first + offset) as f64 - center + 0.5;
                *weight = filter_value(filter, distance * narrowing);
                total += *weight;
            }
            if total != 0.0 {
                for weight in &mut weights[..count] {
                    *weight /= total;
                }
            }
            bounds.push((first, count));
        }
        let bits = match precision {
            Precision::Fixed(bits) => bits,
            Precision::Fit16Bits => fitting_bits(&exact),
        };
        let one = f64::from(1_u32 << bits);
        let weights = exact
            .iter()
            .map(|&weight| (weight * one + if weight < 0.0 { -0.5 } else { 0.5 }) as i32)
            .collect();
        Self {
            bounds,
            taps,
            weights,
            bits,
        }
    }

    /// The old pixels and weights of new pixel `index`.
    pub(super) fn of(&self, index: usize) -> (usize, &[i32]) {
        let (first, count) = self.bounds[index];
        let start = index * self.taps;
        (first, &self.weights[start..start + count])
    }
}

/// The most bits, up to 22, with which no weight reaches 2 to the 15.
fn fitting_bits(weights: &[f64]) -> u32 {
    let greatest = weights.iter().copied().fold(0.0, f64::max);
    (0..22)
        .find(|bits| (0.5 + greatest * f64::from(1_u32 << (bits + 1))) as i64 >= 1 << 15)
        .unwrap_or(22)
}

/// Half the width of a filter in pixels.
const fn support(filter: Filter) -> f64 {
    match filter {
        Filter::Nearest | Filter::Box => 0.5,
        Filter::Bilinear | Filter::Hamming => 1.0,
        Filter::Bicubic => 2.0,
        Filter::Lanczos => 3.0,
    }
}

/// A filter at a distance from the centre.
fn filter_value(filter: Filter, distance: f64) -> f64 {
    let x = distance.abs();
    match filter {
        Filter::Nearest | Filter::Box => f64::from(distance > -0.5 && distance <= 0.5),
        Filter::Bilinear => (1.0 - x).max(0.0),
        Filter::Hamming if x >= 1.0 => 0.0,
        // The constants are single precision in the reference.
        Filter::Hamming => sinc(x) * (f64::from(0.54_f32) + f64::from(0.46_f32) * (x * PI).cos()),
        Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
        Filter::Bicubic => 0.0,
        Filter::Lanczos if (-3.0..3.0).contains(&distance) => sinc(x) * sinc(x / 3.0),
        Filter::Lanczos => 0.0,
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        1.0
    } else {
        (x * PI).sin() / (x * PI)
    }
}
