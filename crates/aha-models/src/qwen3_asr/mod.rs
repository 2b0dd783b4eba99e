//! Qwen3-ASR (0.6B, 1.7B): Qwen3's decoder with an audio encoder of chunks and windows.
//!
//! Reference: the package qwen-asr, and `Qwen3ASRForConditionalGeneration` of transformers; technical report
//! arXiv 2601.21337.

mod answer;
mod config;
mod encoder;
mod processor;

use crate::audio::{FeatureExtractorConfig, recogniser};
use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::registry::Family;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{LoadedModel, Task};
use aha_nn::weights::{NameMap, Weights};

pub use config::{AudioConfig, Qwen3AsrConfig};
pub use encoder::AudioEncoder;
pub use processor::{Qwen3AsrMedia, Qwen3AsrTranscriber};

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "qwen3_asr",
    task: Task::Transcribe,
    architectures: &["Qwen3ASRForConditionalGeneration"],
    model_types: &["qwen3_asr"],
    gguf_architectures: &[],
    load,
};

/// Copies of what is loaded under other names.
const IGNORABLE: &[&str] = &["thinker.lm_head.weight"];

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let config: Qwen3AsrConfig = checkpoint.config_keys()?;
    config.validate()?;
    let weights = checkpoint.weights(NameMap::identity(), options)?;
    let decoder = decoder(&config, &weights)?;
    let encoder = audio_encoder(&config, &weights)?;
    weights.finish(IGNORABLE)?;
    let transcriber = Qwen3AsrTranscriber::new(&config);
    let media = media_processor(checkpoint, config)?;
    recogniser(
        checkpoint,
        Box::new(decoder),
        Box::new(encoder),
        media,
        transcriber,
    )
}

/// Loads the tensors of the language model alone.
pub fn decoder(config: &Qwen3AsrConfig, weights: &Weights) -> Result<Decoder, LoadError> {
    let mut decoder = config.thinker_config.text_config.decoder()?;
    let thinker = weights.pp("thinker");
    // Converted copies leave the tied head out, whatever the configuration says.
    decoder.tie_word_embeddings |= !thinker.contains("lm_head.weight");
    Decoder::load_at(&thinker.pp("model"), &thinker.pp("lm_head"), decoder)
}

/// Loads the tensors of encoder and projector alone.
pub fn audio_encoder(
    config: &Qwen3AsrConfig,
    weights: &Weights,
) -> Result<AudioEncoder, LoadError> {
    AudioEncoder::load(
        &weights.pp("thinker.audio_tower"),
        &config.thinker_config.audio_config,
    )
}

/// How recordings come into prompts.
pub fn media_processor(
    checkpoint: &Checkpoint,
    config: Qwen3AsrConfig,
) -> Result<impl Fn(&Tokenizer) -> Result<Qwen3AsrMedia, LoadError> + use<>, LoadError> {
    let preprocessor: FeatureExtractorConfig = checkpoint
        .json("preprocessor_config.json")?
        .unwrap_or_default();
    Ok(move |tokenizer: &Tokenizer| Qwen3AsrMedia::new(&config, &preprocessor, tokenizer))
}
