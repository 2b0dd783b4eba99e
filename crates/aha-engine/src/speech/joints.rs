//! Joining stretches of speech so that no click is heard between them.

use std::f32::consts::FRAC_PI_2;

/// How long the ends of a stretch take to fade.
const FADE_SECONDS: f64 = 0.005;
/// Silence between two stretches.
const PAUSE_SECONDS: f64 = 0.15;

/// Puts stretches of sound one after the other. A single stretch passes untouched.
#[derive(Debug)]
pub(super) struct Joiner {
    fade: usize,
    pause: usize,
    joins: bool,
    /// Samples of this stretch that were taken.
    taken: usize,
    first: bool,
    /// The end of the stretch as far as it is known: it may have to fade.
    held: Vec<f32>,
}

impl Joiner {
    /// For sound of `sample_rate`; `several` when more than one stretch will come.
    pub(super) fn new(sample_rate: u32, several: bool) -> Self {
        let samples = |seconds: f64| (seconds * f64::from(sample_rate)) as usize;
        Self {
            fade: samples(FADE_SECONDS).max(1),
            pause: samples(PAUSE_SECONDS),
            joins: several,
            taken: 0,
            first: true,
            held: Vec::new(),
        }
    }

    /// Takes the next samples of a stretch; those that are final go to `out`.
    pub(super) fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) {
        if !self.joins {
            out.extend_from_slice(samples);
            return;
        }
        let start = self.held.len();
        self.held.extend_from_slice(samples);
        if !self.first {
            let fade = self.fade;
            let fading = self.held[start..].iter_mut().zip(self.taken..fade);
            for (sample, position) in fading {
                *sample *= gain(position, fade);
            }
        }
        self.taken += samples.len();
        let ready = self.held.len().saturating_sub(self.fade);
        out.extend(self.held.drain(..ready));
    }

    /// Forgets what a stretch held back: it is spoken again.
    pub(super) fn restart_stretch(&mut self) {
        self.held.clear();
        self.taken = 0;
    }

    /// Ends a stretch; `last` when none follows.
    pub(super) fn end_stretch(&mut self, last: bool, out: &mut Vec<f32>) {
        if !last {
            let count = self.held.len();
            for (index, sample) in self.held.iter_mut().enumerate() {
                *sample *= gain(count - 1 - index, self.fade);
            }
        }
        out.append(&mut self.held);
        if !last {
            out.resize(out.len() + self.pause, 0.0);
        }
        self.first = false;
        self.taken = 0;
    }
}

/// Rises from 0 to 1 within `fade` samples, smoothly at both ends.
fn gain(position: usize, fade: usize) -> f32 {
    let phase = (position as f32 / fade as f32).min(1.0) * FRAC_PI_2;
    phase.sin().powi(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stretch_passes_untouched() {
        let mut joiner = Joiner::new(16_000, false);
        let mut out = Vec::new();
        joiner.push(&[1.0, -1.0], &mut out);
        joiner.push(&[0.5], &mut out);
        joiner.end_stretch(true, &mut out);
        assert_eq!(out, [1.0, -1.0, 0.5]);
    }

    #[test]
    fn joints_have_no_steps_however_the_samples_arrive() {
        let rate = 16_000;
        let mut whole = Vec::new();
        for piece in [1, 7, 64, 5000] {
            let mut joiner = Joiner::new(rate, true);
            let mut out = Vec::new();
            for stretch in 0..3 {
                // The worst case: stretches that begin and end at full scale.
                for samples in vec![1.0f32; 5000].chunks(piece) {
                    joiner.push(samples, &mut out);
                }
                joiner.end_stretch(stretch == 2, &mut out);
            }
            assert_eq!(out.len(), 3 * 5000 + 2 * (rate as usize * 15 / 100));
            // The first and the last sample are the speech's own, between them nothing jumps.
            assert!(out[0] == 1.0 && *out.last().unwrap() == 1.0);
            let step = out.windows(2).map(|pair| (pair[1] - pair[0]).abs());
            assert!(step.fold(0.0, f32::max) < 0.03);
            if whole.is_empty() {
                whole = out;
            } else {
                assert_eq!(out, whole);
            }
        }
    }
}
