//! Kaldi's filter banks without dither, low frame rate stacking and mean-variance normalisation.

use std::f64::consts::PI;

use super::error::{AudioError, Result};
use super::spectrum::{PowerSpectrum, Triangle};

/// Kaldi's window functions, all symmetric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FbankWindow {
    /// Hann to the power of 0.85, Kaldi's own default.
    #[default]
    Povey,
    /// 0.54 - 0.46 cos.
    Hamming,
    /// 0.5 - 0.5 cos.
    Hanning,
    /// Ones.
    Rectangular,
}

/// The options of Kaldi's `compute-fbank-feats` that the references use. Dither is always 0: with
/// it no result is the same twice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FbankConfig {
    /// Rate of the samples in Hz.
    pub sample_rate: u32,
    /// Length of a frame in milliseconds.
    pub frame_length_ms: f64,
    /// Distance of frames in milliseconds.
    pub frame_shift_ms: f64,
    /// Number of mel bins.
    pub bins: usize,
    /// Lowest frequency in Hz.
    pub low_hz: f64,
    /// Highest frequency in Hz; 0 or less counts down from half the rate.
    pub high_hz: f64,
    /// Window function.
    pub window: FbankWindow,
    /// Pre-emphasis coefficient.
    pub preemphasis: f64,
    /// Whether frames must lie within the sound; otherwise it is reflected at both ends.
    pub snip_edges: bool,
    /// Factor on the samples, which Kaldi expects as 16-bit integers.
    pub scale: f32,
}

impl Default for FbankConfig {
    fn default() -> Self {
        Self {
            sample_rate: 16_000,
            frame_length_ms: 25.0,
            frame_shift_ms: 10.0,
            bins: 80,
            low_hz: 20.0,
            high_hz: 0.0,
            window: FbankWindow::Povey,
            preemphasis: 0.97,
            snip_edges: true,
            scale: 32_768.0,
        }
    }
}

/// A matrix `[frames, width]`, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// Rows.
    pub frames: usize,
    /// Columns.
    pub width: usize,
    /// `frames * width` values.
    pub data: Vec<f32>,
}

/// The front end.
pub struct FbankExtractor {
    config: FbankConfig,
    window: Vec<f64>,
    shift: usize,
    n_fft: usize,
    triangles: Vec<Triangle>,
}

impl std::fmt::Debug for FbankExtractor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("FbankExtractor")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl FbankExtractor {
    /// Computes window and filters.
    ///
    /// # Errors
    ///
    /// [`AudioError::InvalidOption`] for numbers that make no filter bank.
    pub fn new(config: FbankConfig) -> Result<Self> {
        let rate = f64::from(config.sample_rate);
        let length = (rate * config.frame_length_ms / 1000.0) as usize;
        let shift = (rate * config.frame_shift_ms / 1000.0) as usize;
        let nyquist = rate / 2.0;
        let high = if config.high_hz > 0.0 {
            config.high_hz
        } else {
            nyquist + config.high_hz
        };
        let checks = [
            ("frame_length", (2..=1 << 16).contains(&length)),
            ("frame_shift", (1..=1 << 16).contains(&shift)),
            ("n_mels", (4..=1024).contains(&config.bins)),
            ("low_freq", config.low_hz >= 0.0 && config.low_hz < high),
            ("high_freq", high <= nyquist),
        ];
        for (name, fine) in checks {
            if !fine {
                return Err(AudioError::InvalidOption {
                    name,
                    reason: format!("{config:?} gives no filter bank"),
                });
            }
        }
        let window = (0..length)
            .map(|i| {
                let turn = (2.0 * PI * i as f64 / (length - 1) as f64).cos();
                f64::from(match config.window {
                    FbankWindow::Povey => ((0.5 - 0.5 * turn) as f32).powf(0.85),
                    FbankWindow::Hamming => (0.54 - 0.46 * turn) as f32,
                    FbankWindow::Hanning => (0.5 - 0.5 * turn) as f32,
                    FbankWindow::Rectangular => 1.0,
                })
            })
            .collect();
        let n_fft = length.next_power_of_two();
        let triangles = kaldi_filters(config.bins, n_fft, rate, config.low_hz, high);
        Ok(Self {
            config,
            window,
            shift,
            n_fft,
            triangles,
        })
    }

    /// The numbers in use.
    pub fn config(&self) -> &FbankConfig {
        &self.config
    }

    /// Number of frames for a number of samples.
    pub fn frames(&self, samples: usize) -> usize {
        let length = self.window.len();
        if !self.config.snip_edges {
            return (samples + self.shift / 2) / self.shift;
        }
        if samples < length {
            0
        } else {
            1 + (samples - length) / self.shift
        }
    }

    /// Natural logarithms of the filter energies, `[frames, bins]`.
    ///
    /// # Errors
    ///
    /// [`AudioError::TooShort`] for less than one frame.
    pub fn extract(&self, samples: &[f32]) -> Result<Features> {
        let (length, bins) = (self.window.len(), self.config.bins);
        let frames = self.frames(samples.len());
        if frames == 0 || samples.len() < length {
            return Err(AudioError::TooShort {
                samples: samples.len(),
                rate: self.config.sample_rate,
                needed: length,
            });
        }
        let first = if self.config.snip_edges {
            0
        } else {
            self.shift as isize / 2 - length as isize / 2
        };
        let mut spectrum = PowerSpectrum::new(self.n_fft);
        let mut frame = vec![0.0f64; length];
        let mut data = Vec::with_capacity(frames * bins);
        for index in 0..frames {
            let start = first + (index * self.shift) as isize;
            for (i, slot) in frame.iter_mut().enumerate() {
                let sample = samples[reflected(start + i as isize, samples.len())];
                let sample = if sample.is_finite() { sample } else { 0.0 };
                *slot = f64::from(sample * self.config.scale);
            }
            let mean = frame.iter().sum::<f64>() / length as f64;
            let emphasis = self.config.preemphasis;
            let shaped = (0..length).map(|i| {
                let before = frame[i.saturating_sub(1)];
                ((frame[i] - mean) - emphasis * (before - mean)) * self.window[i]
            });
            let power = spectrum.of(shaped);
            data.extend(
                self.triangles
                    .iter()
                    .map(|triangle| triangle.apply(power).max(f64::from(f32::EPSILON)).ln() as f32),
            );
        }
        Ok(Features {
            frames,
            width: bins,
            data,
        })
    }
}

/// Index into a signal that is mirrored at both ends, the samples at the edges doubled.
fn reflected(index: isize, length: usize) -> usize {
    let period = 2 * length as isize;
    let at = index.rem_euclid(period) as usize;
    if at < length { at } else { 2 * length - 1 - at }
}

/// Triangles equally spaced on the scale 1127 ln(1 + f / 700) and linear on it. Single precision in
/// the order of the reference, whose matrix it is.
fn kaldi_filters(bins: usize, n_fft: usize, rate: f64, low: f64, high: f64) -> Vec<Triangle> {
    let scale = |hz: f64| 1127.0 * (1.0 + hz / 700.0).ln();
    let (low, high) = (scale(low), scale(high));
    let delta = ((high - low) / (bins + 1) as f64) as f32;
    let low = low as f32;
    let width = (rate / n_fft as f64) as f32;
    (0..bins)
        .map(|bin| {
            let left = low + bin as f32 * delta;
            let center = low + (bin as f32 + 1.0) * delta;
            let right = low + (bin as f32 + 2.0) * delta;
            // The Nyquist bin weighs nothing.
            let row: Vec<f64> = (0..n_fft / 2)
                .map(|k| {
                    let mel = 1127.0 * (1.0 + width * k as f32 / 700.0).ln();
                    let rise = (mel - left) / (center - left);
                    let fall = (right - mel) / (right - center);
                    f64::from(rise.min(fall).max(0.0))
                })
                .collect();
            Triangle::from_row(&row)
        })
        .collect()
}

impl Features {
    /// Low frame rate: `stack` frames side by side, one such row for every `step` frames. The first
    /// frame is repeated in front so that the first row is centred on it, the last one behind.
    pub fn low_frame_rate(&self, stack: usize, step: usize) -> Self {
        let (stack, step) = (stack.max(1), step.max(1));
        if self.frames == 0 {
            return Self {
                frames: 0,
                width: self.width * stack,
                data: Vec::new(),
            };
        }
        let rows = self.frames.div_ceil(step);
        let left = (stack - 1) / 2;
        let mut data = Vec::with_capacity(rows * stack * self.width);
        for row in 0..rows {
            for i in 0..stack {
                let frame = (row * step + i).saturating_sub(left).min(self.frames - 1);
                data.extend_from_slice(&self.data[frame * self.width..][..self.width]);
            }
        }
        Self {
            frames: rows,
            width: stack * self.width,
            data,
        }
    }
}

/// Mean and variance normalisation: `(x + shift) * scale`, column by column.
#[derive(Debug, Clone, PartialEq)]
pub struct Cmvn {
    shift: Vec<f32>,
    scale: Vec<f32>,
}

impl Cmvn {
    /// From the negated means and the inverse deviations.
    ///
    /// # Errors
    ///
    /// [`AudioError::InvalidOption`] when their lengths differ.
    pub fn new(shift: Vec<f32>, scale: Vec<f32>) -> Result<Self> {
        if shift.len() != scale.len() || shift.is_empty() {
            return Err(cmvn_error(format!(
                "{} means, {} variances",
                shift.len(),
                scale.len()
            )));
        }
        Ok(Self { shift, scale })
    }

    /// From the text of a Kaldi nnet file with an `<AddShift>` and a `<Rescale>` component, as
    /// `am.mvn` is.
    ///
    /// # Errors
    ///
    /// [`AudioError::InvalidOption`] for any other text.
    pub fn from_kaldi_nnet(text: &str) -> Result<Self> {
        let vector = |component: &str| {
            let rest = text.split_once(component).map(|(_, rest)| rest)?;
            let (_, rest) = rest.split_once('[')?;
            let (numbers, _) = rest.split_once(']')?;
            numbers
                .split_whitespace()
                .map(|number| number.parse().ok())
                .collect::<Option<Vec<f32>>>()
        };
        match (vector("<AddShift>"), vector("<Rescale>")) {
            (Some(shift), Some(scale)) => Self::new(shift, scale),
            _ => Err(cmvn_error(
                "it has no <AddShift> and <Rescale> vectors".into(),
            )),
        }
    }

    /// Normalises features in place.
    ///
    /// # Errors
    ///
    /// [`AudioError::InvalidOption`] when the width is another.
    pub fn apply(&self, features: &mut Features) -> Result<()> {
        if features.width != self.shift.len() {
            return Err(cmvn_error(format!(
                "it is for {} columns, the features have {}",
                self.shift.len(),
                features.width
            )));
        }
        for row in features.data.chunks_exact_mut(features.width) {
            for ((value, shift), scale) in row.iter_mut().zip(&self.shift).zip(&self.scale) {
                *value = (*value + shift) * scale;
            }
        }
        Ok(())
    }
}

fn cmvn_error(reason: String) -> AudioError {
    AudioError::InvalidOption {
        name: "cmvn_file",
        reason,
    }
}
