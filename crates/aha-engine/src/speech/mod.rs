//! Speech synthesis: the contract between engine and model, and the handle to a running model.
//!
//! A model speaks in *patches*, short stretches of sound of one length. It continues a sequence of text tokens and
//! patches, of which each is sampled under the condition of all before it. Like a [`crate::Generator`] it knows
//! tensors, not requests: the new rows of all running utterances lie end to end, and their caches belong to the engine.

mod engine;
mod joints;
mod noise;
mod normalize;
mod reference;
mod request;
mod segments;
mod utterance;
mod voices;
mod worker;

pub use engine::{Speech, SpeechEngine};
pub use normalize::normalize_text;
pub use reference::ReferenceError;
pub use request::{SpeechEvent, SpeechFinished, SpeechParams, SpeechRequest, Voice};
pub use segments::split_text;
pub use voices::{DEFAULT_VOICE, VoiceError, VoiceRecord, VoiceStore};

use crate::error::EngineError;
use crate::tokenizer::Tokenizer;
use aha_nn::batch::Batch;
use aha_nn::cache::{Cache, CacheSpec};
use candle_core::{Device, Result, Tensor};
use std::fmt;
use std::sync::Arc;

/// The sizes of a model's sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeechFormat {
    /// Samples a second.
    pub sample_rate: u32,
    /// Samples a patch.
    pub patch_samples: usize,
    /// Latents a patch: each stands for an equal share of its samples.
    pub patch_size: usize,
    /// Values a latent.
    pub latent_dim: usize,
}

impl SpeechFormat {
    /// Duration of `patches` in seconds.
    pub fn seconds(&self, patches: usize) -> f64 {
        (patches * self.patch_samples) as f64 / f64::from(self.sample_rate.max(1))
    }

    /// Patches that `seconds` of sound fill.
    pub fn patches(&self, seconds: f64) -> usize {
        (seconds * f64::from(self.sample_rate) / self.patch_samples.max(1) as f64) as usize
    }
}

/// What the sampling of one patch starts from.
#[derive(Debug, Clone)]
pub struct PatchInput {
    /// The utterance's row of what [`Speaker::forward`] returned.
    pub condition: Tensor,
    /// The patch before, `[patch_size, latent_dim]`; zeros where there is none.
    pub previous: Tensor,
    /// Noise `[patch_size, latent_dim]`, scaled by the temperature.
    pub noise: Tensor,
    /// Steps of the solver.
    pub steps: usize,
    /// Weight of the condition against its absence (classifier-free guidance).
    pub guidance: f32,
}

/// What the decoder of latents remembers of an utterance's sound.
#[derive(Debug, Clone, Default)]
pub struct SoundState(pub Vec<Option<Tensor>>);

/// A model that speaks.
pub trait Speaker: Send + Sync {
    /// The sizes of its sound.
    fn format(&self) -> SpeechFormat;

    /// What each layer keeps of an utterance between patches.
    fn cache_spec(&self) -> CacheSpec;

    /// Tokens and patches that one utterance may have.
    fn context_length(&self) -> usize;

    /// Where the tensors live.
    fn device(&self) -> &Device;

    /// Latents `[patches, patch_size, latent_dim]` of one channel of sound at the model's rate. It is filled up to
    /// whole patches on the side where the model wants it.
    fn encode(&self, samples: &[f32]) -> Result<Tensor>;

    /// Runs the new rows of all utterances: text tokens, and where [`Batch::encoded`] says so patches, `[rows,
    /// patch_size * latent_dim]`, in their place (whose token ids mean nothing). Returns conditions of the rows asked
    /// for, `[batch.logit_rows(), width]`.
    ///
    /// Every utterance's new keys and values are in `cache` afterwards.
    fn forward(&self, batch: &Batch, cache: &mut Cache) -> Result<Tensor>;

    /// The next patch of each utterance, `[patch_size, latent_dim]`. An utterance's patch has the same bits alone and
    /// in any company.
    fn sample(&self, inputs: &[PatchInput]) -> Result<Vec<Tensor>>;

    /// Whether each utterance ends with the patch sampled under its condition, a row of `conditions`.
    fn stops(&self, conditions: &Tensor) -> Result<Vec<bool>>;

    /// Samples of the next `latents` `[count, latent_dim]` of an utterance. Decoding in pieces gives what decoding the
    /// whole gives.
    fn decode(&self, latents: &Tensor, state: &mut SoundState) -> Result<Vec<f32>>;
}

/// Tokens before the first patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpeechPrompt {
    /// The reference's text, the text to speak, and what marks the start of sound.
    pub token_ids: Vec<u32>,
    /// How many of them are of the text to speak.
    pub target_tokens: usize,
}

/// The way from text to a prompt.
pub trait SpeechProcessor: Send + Sync {
    /// The prompt of `text` after a reference whose words are `reference`.
    ///
    /// # Errors
    /// [`EngineError::InvalidRequest`] for a text with nothing to say, or one that the tokenizer refuses.
    fn prompt(
        &self,
        reference: Option<&str>,
        text: &str,
    ) -> std::result::Result<SpeechPrompt, EngineError>;

    /// The model's tokenizer.
    fn tokenizer(&self) -> &Tokenizer;
}

/// A model that speaks, with the way to its prompts.
#[derive(Clone)]
pub struct SpeechModel {
    /// The tensors.
    pub speaker: Arc<dyn Speaker>,
    /// Text to prompts.
    pub processor: Arc<dyn SpeechProcessor>,
    /// Names checkpoint and release: what a voice was encoded by must be what speaks with it.
    pub fingerprint: String,
}

impl fmt::Debug for SpeechModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpeechModel")
            .field("format", &self.speaker.format())
            .finish_non_exhaustive()
    }
}
