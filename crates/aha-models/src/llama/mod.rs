//! The generic Llama decoder: Llama 2 and 3, SmolLM2 and others that call themselves `LlamaForCausalLM`.
//!
//! Reference: `LlamaForCausalLM` of transformers; arXiv 2302.13971, 2407.21783.

mod config;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
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

/// Loads the tensors alone.
pub fn decoder(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Decoder, LoadError> {
    let config = checkpoint.config(LlamaConfig::from_gguf)?;
    let (num_heads, num_kv_heads) = config.heads();
    // llama.cpp's converter permutes the rows of q and k for interleaved rotation.
    let names = NameMap::decoder().with_rope_unpermuted(num_heads, num_kv_heads);
    let weights = checkpoint.weights(names, options)?;
    Decoder::load(&weights, config.decoder()?)
}
