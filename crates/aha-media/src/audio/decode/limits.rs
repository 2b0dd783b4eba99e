//! What a stream may ask for.

use super::super::error::{AudioError, Result};

/// Bounds on untrusted audio. Claims of headers are held against them before anything is allocated,
/// and what is really decoded is counted against them too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AudioLimits {
    /// Largest encoded size.
    pub max_bytes: u64,
    /// Longest decoded sound.
    pub max_seconds: f64,
    /// Most channels.
    pub max_channels: usize,
    /// Lowest sample rate in Hz.
    pub min_sample_rate: u32,
    /// Highest sample rate in Hz.
    pub max_sample_rate: u32,
}

impl Default for AudioLimits {
    /// 8 GiB, 24 hours, 16 channels, 1 to 384 kHz: what a person may do with their own files. A
    /// server sets smaller ones.
    fn default() -> Self {
        Self {
            max_bytes: 8 << 30,
            max_seconds: 24.0 * 3600.0,
            max_channels: 16,
            min_sample_rate: 1_000,
            max_sample_rate: 384_000,
        }
    }
}

impl AudioLimits {
    pub(crate) fn check_bytes(&self, bytes: u64) -> Result<()> {
        if bytes > self.max_bytes {
            return Err(AudioError::TooManyBytes {
                bytes,
                limit: self.max_bytes,
            });
        }
        Ok(())
    }

    pub(crate) fn check_stream(&self, rate: u32, channels: usize) -> Result<()> {
        if !(self.min_sample_rate..=self.max_sample_rate).contains(&rate) {
            return Err(AudioError::RateOutOfRange {
                rate,
                minimum: self.min_sample_rate,
                maximum: self.max_sample_rate,
            });
        }
        if channels > self.max_channels {
            return Err(AudioError::TooManyChannels {
                channels,
                limit: self.max_channels,
            });
        }
        Ok(())
    }

    pub(crate) fn check_frames(&self, frames: u64, rate: u32) -> Result<()> {
        if frames as f64 > self.max_seconds * f64::from(rate) {
            return Err(AudioError::TooLong {
                limit_seconds: self.max_seconds,
            });
        }
        Ok(())
    }
}
