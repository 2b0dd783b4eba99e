//! MiniCPM4 (0.5B and 8B), and earlier MiniCPM of the same shape: the shared decoder with muP's constant factors and
//! LongRoPE.
//!
//! Reference: `MiniCPMForCausalLM`, the modeling code that the releases carry; technical report arXiv 2506.07900.
//!
//! The 8B knows a trained block-sparse attention (InfLLM v2), which is off unless config.json has a `sparse_config`,
//! and which then begins at `dense_len` tokens. It is not implemented: sequences end before it would begin.

mod config;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::registry::Family;
use crate::text::text_model;
use aha_engine::{LoadedModel, Task};
use aha_nn::weights::NameMap;
pub use config::{MiniCpm4Config, TransformerSize};

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "minicpm4",
    task: Task::Chat,
    architectures: &["MiniCPMForCausalLM"],
    model_types: &["minicpm"],
    gguf_architectures: &["minicpm"],
    load,
};

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    text_model(checkpoint, Box::new(decoder(checkpoint, options)?))
}

/// Loads the tensors alone.
pub fn decoder(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Decoder, LoadError> {
    let config = checkpoint.config(MiniCpm4Config::from_gguf)?;
    let dense_limit = config.dense_limit()?;
    let (num_heads, num_kv_heads) = config.heads();
    // As in Llama's GGUF files, the rows of q and k are permuted for interleaved rotation.
    let names = NameMap::decoder().with_rope_unpermuted(num_heads, num_kv_heads);
    let weights = checkpoint.weights(names, options)?;
    let decoder = Decoder::load(&weights, config.decoder()?)?;
    Ok(match dense_limit {
        None => decoder,
        Some(tokens) => {
            tracing::warn!(
                "config.json has a sparse_config: from {tokens} tokens on the model would attend sparsely \
                 (InfLLM v2), which is not supported, so sequences are limited to {tokens} tokens; remove \
                 sparse_config to attend densely to all that the model can hold"
            );
            decoder.with_context_limit(tokens)
        }
    })
}
