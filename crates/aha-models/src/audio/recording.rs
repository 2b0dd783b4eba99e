//! Recordings as front ends take them.

use crate::error::LoadError;
use aha_engine::{AudioInput, EngineError, Media, MediaContent};
use aha_media::audio::{AudioError, LogMelConfig, LogMelExtractor, MelPadding, resample};
use serde::Deserialize;
use std::borrow::Cow;

/// The field under which media are refused; [`super::transcription_prompt`] names the file instead.
pub(super) const FIELD: &str = "messages";

/// `WhisperFeatureExtractor`'s keys, in preprocessor_config.json or inside processor_config.json.
#[derive(Debug, Clone, Deserialize)]
pub struct FeatureExtractorConfig {
    #[serde(default = "bins")]
    feature_size: usize,
    #[serde(default = "n_fft")]
    n_fft: usize,
    #[serde(default = "hop_length")]
    hop_length: usize,
    #[serde(default = "sampling_rate")]
    sampling_rate: u32,
    #[serde(default = "chunk_length")]
    chunk_length: u32,
}

fn bins() -> usize {
    128
}

fn n_fft() -> usize {
    400
}

fn hop_length() -> usize {
    160
}

fn sampling_rate() -> u32 {
    16_000
}

fn chunk_length() -> u32 {
    30
}

impl Default for FeatureExtractorConfig {
    fn default() -> Self {
        Self {
            feature_size: bins(),
            n_fft: n_fft(),
            hop_length: hop_length(),
            sampling_rate: sampling_rate(),
            chunk_length: chunk_length(),
        }
    }
}

impl FeatureExtractorConfig {
    /// Samples a second that the model hears.
    pub fn sample_rate(&self) -> u32 {
        self.sampling_rate
    }

    /// Samples from one frame to the next.
    pub fn hop(&self) -> usize {
        self.hop_length
    }

    /// Samples of the window that models of fixed length hear at once (`chunk_length` seconds).
    pub fn window(&self) -> usize {
        self.chunk_length as usize * self.sampling_rate as usize
    }

    /// The front end for an encoder of `bins` mel bins.
    pub fn extractor(
        &self,
        bins: usize,
        padding: MelPadding,
    ) -> Result<LogMelExtractor, LoadError> {
        if self.feature_size != bins {
            let reason = format!(
                "the front end gives {} bins, but the encoder takes {bins}",
                self.feature_size
            );
            return Err(LoadError::config("feature_size", reason));
        }
        // Two minutes are four times what a window of any known model has.
        if self.chunk_length == 0 || self.chunk_length > 120 {
            let reason = format!("{} s is no window", self.chunk_length);
            return Err(LoadError::config("chunk_length", reason));
        }
        let config = LogMelConfig {
            bins,
            n_fft: self.n_fft,
            hop: self.hop_length,
            sample_rate: self.sampling_rate,
            padding,
        };
        LogMelExtractor::new(config)
            .map_err(|error| LoadError::config("feature_extractor", error.to_string()))
    }
}

/// What is wrong with a recording, for its sender.
pub fn fault(error: AudioError) -> EngineError {
    EngineError::invalid(FIELD, error.to_string())
}

/// The samples of a recording as a model hears them: at its rate, and not too long.
///
/// # Errors
/// [`EngineError::InvalidRequest`] for another kind of media and for more than one prompt takes.
pub fn samples<'a>(media: &'a Media, input: &AudioInput) -> Result<Cow<'a, [f32]>, EngineError> {
    let MediaContent::Audio {
        samples,
        sample_rate,
    } = media.content()
    else {
        let message = format!("this model does not take {} input", media.kind());
        return Err(EngineError::invalid(FIELD, message));
    };
    if samples.is_empty() {
        return Err(EngineError::invalid(FIELD, "the recording is empty"));
    }
    let seconds = media.seconds();
    if seconds > input.max_seconds {
        let message = format!(
            "the recording has {seconds:.1} s, but this model takes {} s in one prompt: cut it, or send it to \
             /v1/audio/transcriptions",
            input.max_seconds
        );
        return Err(EngineError::invalid(FIELD, message));
    }
    if *sample_rate == input.sample_rate {
        return Ok(Cow::Borrowed(samples));
    }
    resample(samples, *sample_rate, input.sample_rate, input.resampling)
        .map(Cow::Owned)
        .map_err(fault)
}
