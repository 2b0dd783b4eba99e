//! Qwen3, the dense text models (0.6B to 32B).
//!
//! Reference: `Qwen3ForCausalLM` of transformers; technical report arXiv 2505.09388.

mod config;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::export::ExportModel;
use crate::registry::Family;
use crate::text::text_model;
use aha_engine::{LoadedModel, Task};
use aha_nn::weights::NameMap;
pub use config::Qwen3Config;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "qwen3",
    task: Task::Chat,
    architectures: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    gguf_architectures: &["qwen3"],
    load,
};

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    text_model(checkpoint, Box::new(decoder(checkpoint, options)?))
}

/// What a GGUF file of the checkpoint says and holds.
pub(crate) fn export(checkpoint: &Checkpoint) -> Result<ExportModel, LoadError> {
    let config = checkpoint.config(Qwen3Config::from_gguf)?;
    Ok(ExportModel {
        architecture: "qwen3",
        names: NameMap::decoder(),
        keys: Vec::new(),
        pre: None,
        decoder: config.decoder()?,
    })
}

/// Loads the tensors alone.
pub fn decoder(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Decoder, LoadError> {
    let config = checkpoint.config(Qwen3Config::from_gguf)?;
    let weights = checkpoint.weights(NameMap::decoder(), options)?;
    Decoder::load(&weights, config.decoder()?)
}
