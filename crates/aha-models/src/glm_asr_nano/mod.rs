//! GLM-ASR-Nano (1.5B): Llama's decoder behind a Whisper-like encoder of 30 s windows.
//!
//! Reference: `GlmAsrForConditionalGeneration` of transformers.

mod config;
mod encoder;
mod processor;

use crate::audio::recogniser;
use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::llama::LlamaConfig;
use crate::registry::Family;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{LoadedModel, Task};
use aha_nn::weights::{NameMap, Weights};

pub use config::{AudioConfig, GlmAsrConfig, ProcessorConfig};
pub use encoder::AudioEncoder;
pub use processor::{GlmAsrMedia, GlmAsrTranscriber};

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "glm_asr_nano",
    task: Task::Transcribe,
    architectures: &["GlmAsrForConditionalGeneration", EARLY_ARCHITECTURE],
    model_types: &["glmasr"],
    gguf_architectures: &[],
    load,
};

/// What the upload of December 2025 called itself, whose files are laid out otherwise.
const EARLY_ARCHITECTURE: &str = "GlmasrModel";

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    refuse_early_layout(checkpoint)?;
    let weights = checkpoint.weights(NameMap::identity(), options)?;
    let decoder = decoder(checkpoint, &weights)?;
    let encoder = audio_encoder(checkpoint, &weights, decoder.hidden_size())?;
    weights.finish(decoder.ignorable())?;
    let processor: ProcessorConfig = processor_config(checkpoint)?;
    let transcriber = GlmAsrTranscriber::new(&processor);
    recogniser(
        checkpoint,
        Box::new(decoder),
        Box::new(encoder),
        media_processor(checkpoint)?,
        transcriber,
    )
}

fn refuse_early_layout(checkpoint: &Checkpoint) -> Result<(), LoadError> {
    #[derive(serde::Deserialize)]
    struct EarlyKeys {
        whisper_config: Option<serde::de::IgnoredAny>,
    }
    let keys: EarlyKeys = checkpoint.config_keys()?;
    if keys.whisper_config.is_none() {
        return Ok(());
    }
    Err(LoadError::config(
        "whisper_config",
        "the checkpoint is the first upload of December 2025, whose layout is not read: download the release again",
    ))
}

/// Loads the tensors of the language model alone.
pub fn decoder(checkpoint: &Checkpoint, weights: &Weights) -> Result<Decoder, LoadError> {
    let config: LlamaConfig = checkpoint.text_config(LlamaConfig::from_gguf)?;
    let mut config = config.decoder()?;
    let language_model = weights.pp("language_model");
    // The configuration does not tell: a head that is there is the model's.
    config.tie_word_embeddings = !language_model.contains("lm_head.weight");
    Decoder::load_at(
        &language_model.pp("model"),
        &language_model.pp("lm_head"),
        config,
    )
}

/// Loads the tensors of encoder and projector alone; `hidden_size` is the language model's.
pub fn audio_encoder(
    checkpoint: &Checkpoint,
    weights: &Weights,
    hidden_size: usize,
) -> Result<AudioEncoder, LoadError> {
    let config: GlmAsrConfig = checkpoint.config_keys()?;
    AudioEncoder::load(weights, &config, hidden_size)
}

/// How recordings come into prompts.
pub fn media_processor(
    checkpoint: &Checkpoint,
) -> Result<impl Fn(&Tokenizer) -> Result<GlmAsrMedia, LoadError> + use<>, LoadError> {
    let config: GlmAsrConfig = checkpoint.config_keys()?;
    let processor = processor_config(checkpoint)?;
    Ok(move |tokenizer: &Tokenizer| GlmAsrMedia::new(&config, &processor, tokenizer))
}

fn processor_config(checkpoint: &Checkpoint) -> Result<ProcessorConfig, LoadError> {
    Ok(checkpoint
        .json("processor_config.json")?
        .unwrap_or_default())
}
