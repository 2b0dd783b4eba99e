//! LFM2 and LFM2.5, the dense text models (230M to 2.6B): short convolutions, with attention in between.
//!
//! Reference: `Lfm2ForCausalLM` of transformers; technical report arXiv 2511.23404.

mod config;
mod model;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::registry::Family;
use crate::text::text_model;
use aha_engine::{LoadedModel, Task};
use aha_nn::weights::NameMap;
pub use config::{LayerType, Lfm2Config};

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "lfm2",
    task: Task::Chat,
    architectures: &["Lfm2ForCausalLM"],
    model_types: &["lfm2"],
    gguf_architectures: &["lfm2"],
    load,
};

/// The release's names for what other decoders have too.
const RELEASE_NAMES: [(&str, &str); 9] = [
    // The final norm, in spite of its name.
    ("model.norm", "model.embedding_norm"),
    (
        "model.layers.{i}.input_layernorm",
        "model.layers.{i}.operator_norm",
    ),
    (
        "model.layers.{i}.post_attention_layernorm",
        "model.layers.{i}.ffn_norm",
    ),
    (
        "model.layers.{i}.mlp.gate_proj",
        "model.layers.{i}.feed_forward.w1",
    ),
    (
        "model.layers.{i}.mlp.up_proj",
        "model.layers.{i}.feed_forward.w3",
    ),
    (
        "model.layers.{i}.mlp.down_proj",
        "model.layers.{i}.feed_forward.w2",
    ),
    (
        "model.layers.{i}.self_attn.o_proj",
        "model.layers.{i}.self_attn.out_proj",
    ),
    (
        "model.layers.{i}.self_attn.q_norm",
        "model.layers.{i}.self_attn.q_layernorm",
    ),
    (
        "model.layers.{i}.self_attn.k_norm",
        "model.layers.{i}.self_attn.k_layernorm",
    ),
];

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    text_model(checkpoint, Box::new(decoder(checkpoint, options)?))
}

/// Loads the tensors alone.
pub fn decoder(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Decoder, LoadError> {
    let config = checkpoint.config(Lfm2Config::from_gguf)?;
    let release = RELEASE_NAMES
        .into_iter()
        .fold(NameMap::identity(), |names, (common, own)| {
            names.with_rule(common, own)
        });
    let gguf = NameMap::identity()
        .with_rule("model.norm", "token_embd_norm")
        .with_rule("model.layers.{i}.conv.in_proj", "blk.{i}.shortconv.in_proj")
        .with_rule("model.layers.{i}.conv.conv", "blk.{i}.shortconv.conv")
        .with_rule(
            "model.layers.{i}.conv.out_proj",
            "blk.{i}.shortconv.out_proj",
        )
        .with_rules_of(NameMap::decoder());
    let weights = checkpoint.weights_named(release, gguf, options)?;
    model::load(&weights, &config)
}
