//! Cutting without deciding what is speech: at the quietest place near a longest length, as
//! Qwen3-ASR's package does with recordings beyond its limit. Nothing is left out.

use super::super::error::{AudioError, Result};
use super::Segment;
use super::segments::AudioSegment;

/// Cuts a stream of one channel at any rate into pieces that join without gap or overlap.
#[derive(Debug)]
pub struct QuietCuts {
    longest: usize,
    search: usize,
    window: usize,
    buffer: Vec<f32>,
    start: u64,
}

impl QuietCuts {
    /// Pieces of about `longest_seconds`: cuts lie within `search_seconds` of it, in the window of
    /// `window_ms` with the least sum of magnitudes, at its smallest sample.
    ///
    /// # Errors
    ///
    /// [`AudioError::InvalidOption`] for lengths that are negative, no numbers or endless.
    pub fn new(
        sample_rate: u32,
        longest_seconds: f64,
        search_seconds: f64,
        window_ms: f64,
    ) -> Result<Self> {
        let samples = |name: &'static str, seconds: f64| {
            if (0.0..=1e6).contains(&seconds) {
                return Ok((seconds * f64::from(sample_rate)) as usize);
            }
            Err(AudioError::InvalidOption {
                name,
                reason: format!("{seconds} s is no length"),
            })
        };
        Ok(Self {
            longest: samples("longest_seconds", longest_seconds)?.max(1),
            search: samples("search_seconds", search_seconds)?,
            window: samples("window_ms", window_ms / 1000.0)?.max(4),
            buffer: Vec::new(),
            start: 0,
        })
    }

    /// Adds sound; finished pieces are appended to `out`.
    pub fn push(&mut self, samples: &[f32], out: &mut Vec<AudioSegment>) {
        self.buffer.extend_from_slice(samples);
        while self.buffer.len() > self.longest + self.search {
            self.cut(out);
        }
    }

    /// The end of the sound: the last pieces, of which the very last may be of any length.
    pub fn finish(mut self, out: &mut Vec<AudioSegment>) {
        while self.buffer.len() > self.longest {
            self.cut(out);
        }
        if !self.buffer.is_empty() {
            self.give(self.buffer.len(), out);
        }
    }

    fn cut(&mut self, out: &mut Vec<AudioSegment>) {
        let left = self.longest.saturating_sub(self.search);
        let right = (self.longest + self.search).min(self.buffer.len());
        let boundary = if right - left <= self.window {
            self.longest
        } else {
            left + quietest(&self.buffer[left..right], self.window)
        };
        self.give(boundary.clamp(1, self.buffer.len()), out);
    }

    fn give(&mut self, length: usize, out: &mut Vec<AudioSegment>) {
        let samples: Vec<f32> = self.buffer.drain(..length).collect();
        let end = self.start + length as u64;
        out.push(AudioSegment {
            segment: Segment {
                start: self.start,
                end,
            },
            samples,
        });
        self.start = end;
    }
}

/// The smallest sample of the quietest window.
fn quietest(samples: &[f32], window: usize) -> usize {
    let level = |index: usize| f64::from(samples[index].abs());
    let mut sum: f64 = (0..window).map(level).sum();
    let (mut least, mut best) = (sum, 0);
    for first in 1..=samples.len() - window {
        sum += level(first + window - 1) - level(first - 1);
        if sum < least {
            (least, best) = (sum, first);
        }
    }
    let mut at = best;
    for index in best..best + window {
        if samples[index].abs() < samples[at].abs() {
            at = index;
        }
    }
    at
}

/// The pieces of a whole recording, as boundaries in samples at its own rate.
///
/// # Errors
///
/// As [`QuietCuts::new`].
pub fn split_at_quiet(
    samples: &[f32],
    sample_rate: u32,
    longest_seconds: f64,
    search_seconds: f64,
    window_ms: f64,
) -> Result<Vec<Segment>> {
    let mut cuts = QuietCuts::new(sample_rate, longest_seconds, search_seconds, window_ms)?;
    let mut pieces = Vec::new();
    cuts.push(samples, &mut pieces);
    cuts.finish(&mut pieces);
    Ok(pieces.into_iter().map(|piece| piece.segment).collect())
}
