//! What is asked of a speaking model, and what comes back.

use crate::error::EngineError;
use crate::event::FinishReason;
use candle_core::Tensor;
use std::time::Duration;

/// Most steps of the solver that a request may ask for.
const MOST_STEPS: usize = 1000;

/// How to speak. The defaults are the reference's.
#[derive(Debug, Clone, PartialEq)]
pub struct SpeechParams {
    /// Scale of the noise that patches start from; 0 always gives the same speech.
    pub temperature: f32,
    /// Seed of the noise; by default a random one.
    pub seed: Option<u64>,
    /// Weight of the condition against its absence (`cfg_value`).
    pub guidance: f32,
    /// Steps of the solver a patch (`inference_timesteps`).
    pub steps: usize,
    /// No end before more than this many patches (`min_len`).
    pub min_patches: usize,
    /// Most patches of a stretch of text (`max_tokens`), where fewer than the text's length allows.
    pub max_patches: Option<usize>,
    /// Try again (three times in all) when the speech did not end within what its text can take. Not when streaming:
    /// what was said is said.
    pub retry: bool,
}

impl Default for SpeechParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            seed: None,
            guidance: 2.0,
            steps: 10,
            min_patches: 2,
            max_patches: None,
            retry: true,
        }
    }
}

impl SpeechParams {
    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// [`EngineError::InvalidRequest`] with the field at fault.
    pub fn validate(&self) -> Result<(), EngineError> {
        let number = |name: &str, value: f32, most: f32| {
            if (0.0..=most).contains(&value) {
                return Ok(());
            }
            let message = format!("`{name}` is {value}, but must be between 0 and {most}");
            Err(EngineError::invalid(name, message))
        };
        number("temperature", self.temperature, 10.0)?;
        number("cfg_value", self.guidance, 100.0)?;
        if self.steps == 0 || self.steps > MOST_STEPS {
            let message = format!(
                "`inference_timesteps` is {}, but must be between 1 and {MOST_STEPS}",
                self.steps
            );
            return Err(EngineError::invalid("inference_timesteps", message));
        }
        if self.max_patches == Some(0) {
            return Err(EngineError::invalid(
                "max_tokens",
                "`max_tokens` must be at least 1",
            ));
        }
        Ok(())
    }
}

/// A reference to speak like: what it says, and its sound as the model knows it.
#[derive(Debug, Clone)]
pub struct Voice {
    /// The words of the reference.
    pub text: String,
    /// `[patches, patch_size, latent_dim]`.
    pub latents: Tensor,
}

/// Something to say.
#[derive(Debug, Clone)]
pub struct SpeechRequest {
    /// The text.
    pub text: String,
    /// What to sound like; without one, each request has another voice.
    pub voice: Option<Voice>,
    /// How.
    pub params: SpeechParams,
    /// Whether sound leaves as it is made, or as a whole.
    pub stream: bool,
    /// Whether a long text is cut at its sentences, which are spoken one after the other in one voice.
    pub split: bool,
}

impl SpeechRequest {
    /// To speak `text` as the defaults say.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            voice: None,
            params: SpeechParams::default(),
            stream: false,
            split: true,
        }
    }
}

/// The end of a speech.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeechFinished {
    /// Whether the model ended it, or (in any stretch of the text) a limit did.
    pub reason: FinishReason,
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Patches made, those of given up attempts included.
    pub patches: usize,
    /// Samples handed out.
    pub samples: usize,
    /// Time in the queue.
    pub queued: Duration,
    /// From the first step to the first sound handed out.
    pub first_sound: Duration,
    /// From the first step to the last.
    pub computed: Duration,
}

/// What comes back while a request is served.
#[derive(Debug)]
pub enum SpeechEvent {
    /// The next samples, one channel.
    Audio(Vec<f32>),
    /// The end; nothing follows.
    Finished(SpeechFinished),
    /// The request failed; nothing follows.
    Failed(EngineError),
}
