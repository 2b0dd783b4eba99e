//! Text to speech: the blocking face of models that speak.

use crate::error::Result;
use crate::model::Model;
use aha_engine::{
    EngineError, Service, Speech, SpeechEngine, SpeechEvent, SpeechFinished, SpeechRequest, Task,
    Voice,
};
use aha_media::audio::{AudioError, AudioFormat, DecodeOptions, EncodeOptions, encode};
use std::path::Path;

/// Something that was said: one channel of sound.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// Samples around 0, with full scale at 1.
    pub samples: Vec<f32>,
    /// Samples a second.
    pub sample_rate: u32,
    /// How it ended, and what it took.
    pub finished: SpeechFinished,
}

impl Sound {
    /// The bytes of a file in `format`.
    ///
    /// # Errors
    /// [`crate::Error::Audio`] when the format does not take the rate.
    pub fn encode(&self, format: AudioFormat) -> Result<Vec<u8>> {
        let options = EncodeOptions {
            format,
            sample_rate: self.sample_rate,
            channels: 1,
            bitrate: None,
        };
        Ok(encode(&self.samples, options)?)
    }

    /// Seconds of sound.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(self.sample_rate.max(1))
    }
}

impl Model {
    /// Speaks a text. Blocks until all of it is said; other threads' requests are spoken beside it.
    ///
    /// ```
    /// # fn main() -> aha::Result<()> {
    /// use aha::{AudioFormat, SpeechParams, SpeechRequest};
    ///
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/voxcpm1_5/odd");
    /// let model = aha::load(path).build()?;
    /// let sound = model.speak(SpeechRequest {
    ///     params: SpeechParams { seed: Some(1), max_patches: Some(4), ..Default::default() },
    ///     ..SpeechRequest::new("Hello!")
    /// })?;
    /// assert!(sound.seconds() > 0.0);
    /// let wav = sound.encode(AudioFormat::WavPcm16)?;
    /// assert!(wav.starts_with(b"RIFF"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`crate::Error::Task`] when the model does not speak, [`crate::Error::Engine`] when the text has nothing to say
    /// or does not fit, a value is out of range, or too many requests wait.
    ///
    /// # Panics
    /// Inside an async runtime: there, await what [`Model::start_speech`] gives.
    pub fn speak(&self, request: SpeechRequest) -> Result<Sound> {
        let engine = self.speech_engine()?;
        let sample_rate = engine.format().sample_rate;
        let mut speech = engine.submit(request)?;
        let mut samples = Vec::new();
        loop {
            match speech.blocking_next() {
                Some(SpeechEvent::Audio(more)) => samples.extend(more),
                Some(SpeechEvent::Finished(finished)) => {
                    return Ok(Sound {
                        samples,
                        sample_rate,
                        finished,
                    });
                }
                Some(SpeechEvent::Failed(error)) => return Err(error.into()),
                None => return Err(EngineError::internal("a speech ended without an end").into()),
            }
        }
    }

    /// Speaks a text, piece by piece where the request says `stream`. Dropping the speech cancels it.
    ///
    /// # Errors
    /// As [`Model::speak`].
    pub fn start_speech(&self, request: SpeechRequest) -> Result<Speech> {
        Ok(self.speech_engine()?.submit(request)?)
    }

    /// The voice of an audio file, whose words are `text`: for [`SpeechRequest::voice`].
    ///
    /// # Errors
    /// [`crate::Error::Task`] when the model does not speak, [`crate::Error::Audio`] when the file cannot be read,
    /// [`crate::Error::Engine`] when it is too long or the text is empty.
    pub fn voice(&self, file: impl AsRef<Path>, text: &str) -> Result<Voice> {
        let path = file.as_ref();
        let audio = std::fs::read(path).map_err(|source| AudioError::Io {
            what: format!("reading {}", path.display()),
            source,
        })?;
        let engine = self.speech_engine()?;
        Ok(engine.reference(text, &audio, &DecodeOptions::default())?)
    }

    /// The engine below [`Model::speak`].
    ///
    /// # Errors
    /// [`crate::Error::Task`] when the model does not speak.
    pub fn speech_engine(&self) -> Result<&SpeechEngine> {
        match self.service() {
            Service::Speak(engine) => Ok(engine),
            _ => Err(self.is_not_for(Task::Speak)),
        }
    }
}
