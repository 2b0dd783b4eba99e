//! Reference audio: files to voices, and the latest of them kept.

use super::{SpeechEngine, Voice};
use crate::error::EngineError;
use crate::media::ContentHash;
use aha_media::audio::{AudioError, DecodeOptions, ResampleMethod, decode_mono};
use candle_core::Tensor;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// References whose latents are kept: clients send the same one with every sentence.
const KEPT: usize = 16;

/// Why a file is no reference.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The audio cannot be read, or is too long.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// The model refuses it.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Latents of the latest references.
#[derive(Debug, Default)]
pub(super) struct KeptReferences(Mutex<VecDeque<(ContentHash, Tensor)>>);

impl KeptReferences {
    fn find(&self, hash: ContentHash) -> Option<Tensor> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(of, _)| *of == hash)?;
        let found = kept.remove(place)?;
        let latents = found.1.clone();
        kept.push_front(found);
        Some(latents)
    }

    fn keep(&self, hash: ContentHash, latents: &Tensor) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_front((hash, latents.clone()));
        kept.truncate(KEPT);
    }
}

impl SpeechEngine {
    /// The voice of a reference: an audio file of any format, and what it says. Computes on this thread, unless the
    /// same file was read lately.
    ///
    /// # Errors
    /// When the audio cannot be read, is too long for the model or has no sound, and for an empty text.
    pub fn reference(
        &self,
        text: &str,
        audio: &[u8],
        options: &DecodeOptions,
    ) -> Result<Voice, ReferenceError> {
        let hash = ContentHash::of(audio);
        if let Some(latents) = self.kept_references().find(hash) {
            super::engine::check_words(text)?;
            return Ok(Voice {
                text: text.to_owned(),
                latents,
            });
        }
        let mut options = options.clone();
        options.limits.max_seconds = options.limits.max_seconds.min(self.longest_reference());
        let rate = self.format().sample_rate;
        let samples = decode_mono(audio, rate, ResampleMethod::TorchaudioFunctional, &options)?;
        let voice = self.voice(text, &samples)?;
        self.kept_references().keep(hash, &voice.latents);
        Ok(voice)
    }
}
