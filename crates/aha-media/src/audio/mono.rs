//! From a file to what models hear: one channel at one rate.

use super::decode::{AudioReader, AudioSource, DecodeOptions};
use super::error::Result;
use super::resample::{ResampleMethod, Resampler};

/// Appends the mean of the channels to `out`. `interleaved` holds whole frames.
pub fn downmix(interleaved: &[f32], channels: usize, out: &mut Vec<f32>) {
    if channels <= 1 {
        out.extend_from_slice(interleaved);
        return;
    }
    let count = channels as f32;
    out.extend(
        interleaved
            .chunks_exact(channels)
            .map(|frame| frame.iter().sum::<f32>() / count),
    );
}

/// Divides by the peak where that is above 1 and clips to -1..=1; quiet sound is left as it is.
/// Samples that are no numbers become silence.
pub fn normalize_peak(samples: &mut [f32]) {
    let peak = samples
        .iter()
        .filter(|x| x.is_finite())
        .fold(0.0f32, |peak, x| peak.max(x.abs()));
    let scale = if peak > 1.0 { peak } else { 1.0 };
    for sample in samples {
        *sample = if sample.is_nan() {
            0.0
        } else {
            (*sample / scale).clamp(-1.0, 1.0)
        };
    }
}

/// Filters carry their past along: one sample that is no number would make all that follow none.
fn silence_non_numbers(samples: &mut [f32]) {
    for sample in samples {
        if !sample.is_finite() {
            *sample = 0.0;
        }
    }
}

/// A stream of one channel at a chosen rate, in constant memory: decoding, the mean of the channels
/// and the conversion of the rate, in this order. Samples that are no numbers, or not finite, become
/// silence.
#[derive(Debug)]
pub struct MonoReader {
    reader: AudioReader,
    resampler: Resampler,
    rate: u32,
    mixed: Vec<f32>,
    block: Vec<f32>,
    samples: u64,
    finished: bool,
}

impl MonoReader {
    /// Opens a source; `rate` in Hz is what comes out.
    ///
    /// # Errors
    ///
    /// As [`AudioReader::open`] and [`Resampler::new`].
    pub fn open(
        source: impl Into<AudioSource>,
        rate: u32,
        method: ResampleMethod,
        options: &DecodeOptions,
    ) -> Result<Self> {
        Self::new(AudioReader::open(source, options)?, rate, method)
    }

    /// The same from a decoder that has given nothing yet.
    ///
    /// # Errors
    ///
    /// As [`Resampler::new`].
    pub fn new(reader: AudioReader, rate: u32, method: ResampleMethod) -> Result<Self> {
        let resampler = Resampler::new(reader.sample_rate(), rate, method)?;
        Ok(Self {
            reader,
            resampler,
            rate,
            mixed: Vec::new(),
            block: Vec::new(),
            samples: 0,
            finished: false,
        })
    }

    /// The decoder, for its format, original rate and damage.
    pub fn source(&self) -> &AudioReader {
        &self.reader
    }

    /// Samples a second.
    pub fn sample_rate(&self) -> u32 {
        self.rate
    }

    /// Samples handed out.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Length in seconds as the header claims: for progress only, it may be wrong.
    pub fn claimed_seconds(&self) -> Option<f64> {
        let frames = self.reader.claimed_frames()?;
        Some(frames as f64 / f64::from(self.reader.sample_rate()))
    }

    /// The next samples, never an empty block; `None` at the end.
    ///
    /// # Errors
    ///
    /// As [`AudioReader::next_block`].
    pub fn next_block(&mut self) -> Result<Option<&[f32]>> {
        self.block.clear();
        while self.block.is_empty() && !self.finished {
            let channels = self.reader.channels();
            match self.reader.next_block()? {
                Some(interleaved) => {
                    self.mixed.clear();
                    downmix(interleaved, channels, &mut self.mixed);
                    silence_non_numbers(&mut self.mixed);
                    self.resampler.push(&self.mixed, &mut self.block);
                }
                None => {
                    self.resampler.finish(&mut self.block);
                    self.finished = true;
                }
            }
        }
        self.samples += self.block.len() as u64;
        Ok((!self.block.is_empty()).then_some(&self.block[..]))
    }

    /// Everything that is left. Memory grows with the sound: the limits of the options bound it.
    ///
    /// # Errors
    ///
    /// As [`AudioReader::next_block`].
    pub fn read_to_end(mut self) -> Result<Vec<f32>> {
        let mut samples = Vec::new();
        while let Some(block) = self.next_block()? {
            samples.extend_from_slice(block);
        }
        Ok(samples)
    }
}

/// A whole source as one channel at `rate` Hz.
///
/// # Errors
///
/// As [`MonoReader::open`].
pub fn decode_mono(
    source: impl Into<AudioSource>,
    rate: u32,
    method: ResampleMethod,
    options: &DecodeOptions,
) -> Result<Vec<f32>> {
    MonoReader::open(source, rate, method, options)?.read_to_end()
}
