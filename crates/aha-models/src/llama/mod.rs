//! The generic Llama decoder: Llama 2 and 3, SmolLM2 and others that call themselves `LlamaForCausalLM`.
//!
//! Reference: `LlamaForCausalLM` of transformers; arXiv 2302.13971, 2407.21783.

mod config;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::export::ExportModel;
use crate::registry::Family;
use crate::text::text_model;
use aha_engine::{LoadedModel, Task};
use aha_nn::weights::NameMap;
pub use config::LlamaConfig;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "llama",
    task: Task::Chat,
    architectures: &["LlamaForCausalLM"],
    model_types: &["llama"],
    gguf_architectures: &["llama"],
    load,
};

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    text_model(checkpoint, Box::new(decoder(checkpoint, options)?))
}

/// The names of a GGUF, whose rows of q and k are permuted for interleaved rotation.
fn gguf_names(config: &LlamaConfig) -> NameMap {
    let (num_heads, num_kv_heads) = config.heads();
    NameMap::decoder().with_rope_unpermuted(num_heads, num_kv_heads)
}

/// What a GGUF file of the checkpoint says and holds.
pub(crate) fn export(checkpoint: &Checkpoint) -> Result<ExportModel, LoadError> {
    let config = checkpoint.config(LlamaConfig::from_gguf)?;
    Ok(ExportModel {
        architecture: "llama",
        names: gguf_names(&config),
        keys: Vec::new(),
        pre: None,
        decoder: config.decoder()?,
    })
}

/// Loads the tensors alone.
pub fn decoder(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Decoder, LoadError> {
    let config = checkpoint.config(LlamaConfig::from_gguf)?;
    let weights = checkpoint.weights(gguf_names(&config), options)?;
    Decoder::load(&weights, config.decoder()?)
}
