//! Power spectra of frames and the triangles that sum them up.

use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

/// A real Fourier transform of one length with its buffers. It works in `f64`: the references do in
/// `f32`, each with errors of its own, and the exact value lies between them.
pub(super) struct PowerSpectrum {
    plan: Arc<dyn RealToComplex<f64>>,
    input: Vec<f64>,
    output: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
    power: Vec<f64>,
}

impl PowerSpectrum {
    pub(super) fn new(length: usize) -> Self {
        let plan = RealFftPlanner::new().plan_fft_forward(length);
        Self {
            input: plan.make_input_vec(),
            output: plan.make_output_vec(),
            scratch: plan.make_scratch_vec(),
            power: vec![0.0; length / 2 + 1],
            plan,
        }
    }

    /// Squared magnitudes of a frame, which is filled up with zeros to the length of the transform.
    pub(super) fn of(&mut self, frame: impl Iterator<Item = f64>) -> &[f64] {
        self.input.fill(0.0);
        for (slot, value) in self.input.iter_mut().zip(frame) {
            *slot = value;
        }
        // Lengths are those the plan was made for, the only thing this could fail at.
        let done =
            self.plan
                .process_with_scratch(&mut self.input, &mut self.output, &mut self.scratch);
        debug_assert!(done.is_ok());
        for (power, value) in self.power.iter_mut().zip(&self.output) {
            *power = value.norm_sqr();
        }
        &self.power
    }
}

/// One triangle: its first bin and its weights from there on.
pub(super) struct Triangle {
    start: usize,
    weights: Vec<f64>,
}

impl Triangle {
    /// From weights over all bins, of which the zeros at both ends are left out.
    pub(super) fn from_row(row: &[f64]) -> Self {
        let start = row.iter().position(|&weight| weight > 0.0).unwrap_or(0);
        let end = row
            .iter()
            .rposition(|&weight| weight > 0.0)
            .map_or(start, |last| last + 1);
        Self {
            start,
            weights: row[start..end].to_vec(),
        }
    }

    pub(super) fn apply(&self, power: &[f64]) -> f64 {
        self.weights
            .iter()
            .zip(&power[self.start..])
            .map(|(weight, power)| weight * power)
            .sum()
    }
}
