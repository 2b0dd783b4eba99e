//! The log-mel spectrogram of Whisper, which many speech encoders share.

use std::f64::consts::PI;

use super::error::{AudioError, Result};
use super::spectrum::{PowerSpectrum, Triangle};

/// What is done to the length of the sound first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MelPadding {
    /// Nothing: as many frames as the sound has hops.
    #[default]
    None,
    /// Zeros up to this many samples (Whisper's 30 s are 480,000); longer sound is refused.
    To(usize),
}

/// The numbers of `preprocessor_config.json`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogMelConfig {
    /// `feature_size`: 80 or 128 in the releases.
    pub bins: usize,
    /// `n_fft`, also the length of the window.
    pub n_fft: usize,
    /// `hop_length`.
    pub hop: usize,
    /// `sampling_rate` in Hz.
    pub sample_rate: u32,
    /// Padding before the transform.
    pub padding: MelPadding,
}

impl Default for LogMelConfig {
    fn default() -> Self {
        Self {
            bins: 128,
            n_fft: 400,
            hop: 160,
            sample_rate: 16_000,
            padding: MelPadding::None,
        }
    }
}

/// A matrix `[bins, frames]`, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct LogMel {
    /// Rows.
    pub bins: usize,
    /// Columns.
    pub frames: usize,
    /// Columns that hold sound and not padding: the samples divided by the hop, rounded up.
    pub valid_frames: usize,
    /// `bins * frames` values.
    pub data: Vec<f32>,
}

/// The front end: slaney mel filters over the power of a periodic Hann window, log10 with a floor
/// 8 below the maximum of the whole sound, `(x + 4) / 4`.
pub struct LogMelExtractor {
    config: LogMelConfig,
    window: Vec<f64>,
    triangles: Vec<Triangle>,
}

impl std::fmt::Debug for LogMelExtractor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("LogMelExtractor")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl LogMelExtractor {
    /// Computes window and filters.
    ///
    /// # Errors
    ///
    /// [`AudioError::InvalidOption`] for numbers that make no spectrogram.
    pub fn new(config: LogMelConfig) -> Result<Self> {
        let LogMelConfig {
            bins,
            n_fft,
            hop,
            sample_rate,
            ..
        } = config;
        let checks = [
            ("feature_size", (1..=1024).contains(&bins)),
            ("n_fft", (2..=1 << 16).contains(&n_fft) && n_fft % 2 == 0),
            ("hop_length", (1..=n_fft).contains(&hop)),
            ("sampling_rate", (1000..=384_000).contains(&sample_rate)),
        ];
        for (name, fine) in checks {
            if !fine {
                return Err(AudioError::InvalidOption {
                    name,
                    reason: format!("{config:?} gives no log-mel spectrogram"),
                });
            }
        }
        let window = (0..n_fft)
            .map(|i| f64::from((0.5 - 0.5 * (2.0 * PI * i as f64 / n_fft as f64).cos()) as f32))
            .collect();
        Ok(Self {
            config,
            window,
            triangles: slaney_filters(bins, n_fft, sample_rate),
        })
    }

    /// The numbers in use.
    pub fn config(&self) -> &LogMelConfig {
        &self.config
    }

    /// The spectrogram of one channel at the configured rate. The maximum that sets the floor is
    /// that of this call: what a reference treats as one clip must come as one.
    ///
    /// # Errors
    ///
    /// [`AudioError::TooShort`] for sound shorter than half a window (the reflection at the ends
    /// needs that much) or than one hop, [`AudioError::TooLong`] for more than it is padded to.
    pub fn extract(&self, samples: &[f32]) -> Result<LogMel> {
        let LogMelConfig {
            bins,
            n_fft,
            hop,
            sample_rate,
            padding,
        } = self.config;
        let length = match padding {
            MelPadding::None => samples.len(),
            MelPadding::To(length) if samples.len() <= length => length,
            MelPadding::To(length) => {
                return Err(AudioError::TooLong {
                    limit_seconds: length as f64 / f64::from(sample_rate),
                });
            }
        };
        let half = n_fft / 2;
        let needed = (half + 1).max(hop);
        if length < needed {
            return Err(AudioError::TooShort {
                samples: length,
                rate: sample_rate,
                needed,
            });
        }
        let frames = length / hop;
        let mut data = vec![0.0f32; bins * frames];
        let mut spectrum = PowerSpectrum::new(n_fft);
        let mut highest = f32::MIN;
        for frame in 0..frames {
            let start = (frame * hop) as isize - half as isize;
            let windowed = self.window.iter().enumerate().map(|(i, weight)| {
                // Reflected without repeating the sample at the edge.
                let at = (start + i as isize).unsigned_abs();
                let at = if at < length {
                    at
                } else {
                    2 * (length - 1) - at
                };
                let sample = samples.get(at).copied().unwrap_or(0.0);
                // A sample that is no number would spread over the whole clip with the maximum.
                if sample.is_finite() {
                    f64::from(sample) * weight
                } else {
                    0.0
                }
            });
            let power = spectrum.of(windowed);
            for (bin, triangle) in self.triangles.iter().enumerate() {
                let value = triangle.apply(power).max(1e-10).log10() as f32;
                highest = highest.max(value);
                data[bin * frames + frame] = value;
            }
        }
        let floor = highest - 8.0;
        for value in &mut data {
            *value = (value.max(floor) + 4.0) / 4.0;
        }
        let valid_frames = samples.len().div_ceil(hop).min(frames);
        Ok(LogMel {
            bins,
            frames,
            valid_frames,
            data,
        })
    }
}

/// Triangles between points that are equally spaced on the slaney scale (linear to 1 kHz,
/// logarithmic above), each of unit area, from 0 Hz to the smaller of 8 kHz and half the rate.
fn slaney_filters(bins: usize, n_fft: usize, sample_rate: u32) -> Vec<Triangle> {
    const BREAK_HZ: f64 = 1000.0;
    const BREAK_MEL: f64 = 15.0;
    let step = 27.0 / 6.4f64.ln();
    let to_mel = |hz: f64| {
        if hz >= BREAK_HZ {
            BREAK_MEL + (hz / BREAK_HZ).ln() * step
        } else {
            3.0 * hz / 200.0
        }
    };
    let to_hz = |mel: f64| {
        if mel >= BREAK_MEL {
            BREAK_HZ * ((mel - BREAK_MEL) / step).exp()
        } else {
            200.0 * mel / 3.0
        }
    };
    let nyquist = f64::from(sample_rate / 2);
    let top = to_mel(nyquist.min(8000.0));
    let points: Vec<f64> = (0..bins + 2)
        .map(|i| to_hz(top * i as f64 / (bins + 1) as f64))
        .collect();
    (0..bins)
        .map(|bin| {
            let (left, center, right) = (points[bin], points[bin + 1], points[bin + 2]);
            let row: Vec<f64> = (0..=n_fft / 2)
                .map(|k| {
                    let hz = nyquist * k as f64 / (n_fft / 2) as f64;
                    let rise = (hz - left) / (center - left);
                    let fall = (right - hz) / (right - center);
                    // The reference's matrix is in single precision.
                    f64::from((rise.min(fall).max(0.0) * 2.0 / (right - left)) as f32)
                })
                .collect();
            Triangle::from_row(&row)
        })
        .collect()
}
