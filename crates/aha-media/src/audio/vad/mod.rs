//! Voice activity: where in a recording someone speaks.

mod energy;
mod quiet;
mod segments;
mod silero;
mod timestamps;

pub use quiet::{QuietCuts, split_at_quiet};
pub use segments::{AudioSegment, SegmentReader};
pub use silero::{SileroVad, VAD_FRAME};

use super::error::{AudioError, Result};
use energy::EnergyDetector;
use timestamps::Timestamps;

/// The rate that voice activity works at.
pub const VAD_SAMPLE_RATE: u32 = 16_000;

/// How speech is told from the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VadMethod {
    /// The Silero network.
    #[default]
    Silero,
    /// The level above the noise floor: an order of magnitude faster, and it takes every loud sound
    /// for speech.
    Energy,
}

/// How segments are made. The defaults are those of Silero VAD, but for the longest segment.
#[derive(Debug, Clone, PartialEq)]
pub struct VadOptions {
    /// What tells speech.
    pub method: VadMethod,
    /// Probability from which a frame is speech.
    pub threshold: f32,
    /// Probability below which speech may end; `None` is 0.15 below the threshold.
    pub negative_threshold: Option<f32>,
    /// Shorter speech is left out.
    pub min_speech_ms: u32,
    /// Silence that ends a segment.
    pub min_silence_ms: u32,
    /// Added at both ends of a segment, as far as the neighbours leave room.
    pub padding_ms: u32,
    /// Longest segment; may be infinite. Longer speech is cut at its longest silence, or in the
    /// middle of a word if there is none.
    pub max_segment_seconds: f64,
    /// Silence inside a segment that such a cut may use.
    pub min_cut_silence_ms: u32,
}

impl Default for VadOptions {
    fn default() -> Self {
        Self {
            method: VadMethod::Silero,
            threshold: 0.5,
            negative_threshold: None,
            min_speech_ms: 250,
            min_silence_ms: 100,
            padding_ms: 30,
            max_segment_seconds: 30.0,
            min_cut_silence_ms: 98,
        }
    }
}

impl VadOptions {
    fn negative_threshold(&self) -> f32 {
        self.negative_threshold
            .unwrap_or((self.threshold - 0.15).max(0.01))
    }

    fn check(&self) -> Result<()> {
        let wrong = |name, reason: &str| {
            Err(AudioError::InvalidOption {
                name,
                reason: reason.to_owned(),
            })
        };
        if !(self.threshold > 0.0 && self.threshold < 1.0) {
            return wrong("threshold", "it must lie between 0 and 1");
        }
        if !(0.0..=self.threshold).contains(&self.negative_threshold()) {
            return wrong(
                "negative_threshold",
                "it must lie between 0 and the threshold",
            );
        }
        let least = 0.1 + f64::from(self.padding_ms) * 2e-3;
        if self.max_segment_seconds.is_nan() || self.max_segment_seconds < least {
            return wrong(
                "max_segment_seconds",
                "it must leave room for speech and its padding",
            );
        }
        if self.padding_ms > 60_000 {
            return wrong("padding_ms", "it must not be more than a minute");
        }
        Ok(())
    }
}

/// A stretch of speech, in samples at 16 kHz from the start of the recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First sample.
    pub start: u64,
    /// Sample after the last.
    pub end: u64,
}

impl Segment {
    /// Start in seconds.
    pub fn start_seconds(&self) -> f64 {
        self.start as f64 / f64::from(VAD_SAMPLE_RATE)
    }

    /// End in seconds.
    pub fn end_seconds(&self) -> f64 {
        self.end as f64 / f64::from(VAD_SAMPLE_RATE)
    }
}

/// Finds segments in a stream of one channel at 16 kHz. A segment is given as soon as its end is
/// certain, some 100 ms after it.
#[derive(Debug)]
pub struct VadStream {
    detector: Detector,
    timestamps: Timestamps,
    /// Samples of a frame that is not full yet.
    rest: Vec<f32>,
    length: u64,
}

#[derive(Debug)]
enum Detector {
    Silero(Box<SileroVad>),
    Energy(EnergyDetector),
}

impl VadStream {
    /// A stream that has heard nothing yet.
    ///
    /// # Errors
    ///
    /// [`AudioError::InvalidOption`].
    pub fn new(options: &VadOptions) -> Result<Self> {
        options.check()?;
        let detector = match options.method {
            VadMethod::Silero => Detector::Silero(Box::default()),
            VadMethod::Energy => Detector::Energy(EnergyDetector::default()),
        };
        Ok(Self {
            detector,
            timestamps: Timestamps::new(options),
            rest: Vec::new(),
            length: 0,
        })
    }

    /// Adds sound; segments whose end became certain are appended to `out`.
    pub fn push(&mut self, samples: &[f32], out: &mut Vec<Segment>) {
        self.length += samples.len() as u64;
        let mut samples = samples;
        if !self.rest.is_empty() {
            let missing = (VAD_FRAME - self.rest.len()).min(samples.len());
            self.rest.extend_from_slice(&samples[..missing]);
            samples = &samples[missing..];
            if self.rest.len() < VAD_FRAME {
                return;
            }
            let full = std::mem::take(&mut self.rest);
            self.frames(&full, out);
        }
        let whole = samples.len() / VAD_FRAME * VAD_FRAME;
        self.frames(&samples[..whole], out);
        self.rest.extend_from_slice(&samples[whole..]);
    }

    /// The end of the sound: the last segments.
    pub fn finish(mut self, out: &mut Vec<Segment>) {
        let mut last = Vec::new();
        if !self.rest.is_empty() {
            let mut frame = std::mem::take(&mut self.rest);
            frame.resize(VAD_FRAME, 0.0);
            self.frames(&frame, &mut last);
        }
        self.timestamps.finish(self.length, &mut last);
        // Frames are whole; the sound need not be.
        let length = self.length;
        out.extend(last.iter().map(|part| Segment {
            start: part.start,
            end: part.end.min(length),
        }));
    }

    /// The first sample that a segment still to come may begin with: sound before it may be
    /// forgotten.
    pub fn earliest(&self) -> u64 {
        self.timestamps.earliest()
    }

    fn frames(&mut self, samples: &[f32], out: &mut Vec<Segment>) {
        for frame in samples.as_chunks::<VAD_FRAME>().0 {
            let probability = match &mut self.detector {
                Detector::Silero(silero) => silero.probability(frame),
                Detector::Energy(energy) => energy.probability(frame),
            };
            self.timestamps.push(probability, out);
        }
    }
}

/// The segments of a whole recording of one channel at 16 kHz.
///
/// # Errors
///
/// [`AudioError::InvalidOption`].
pub fn split(samples: &[f32], options: &VadOptions) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut stream = VadStream::new(options)?;
    stream.push(samples, &mut segments);
    stream.finish(&mut segments);
    Ok(segments)
}
