//! Qwen3.5 (0.8B to 9B and larger dense ones): gated DeltaNet layers, gated attention in between, and Qwen3-VL's
//! vision tower without deepstack.
//!
//! Reference: `Qwen3_5ForConditionalGeneration` of transformers.

mod config;
mod model;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::qwen3vl;
use crate::registry::Family;
use crate::text::{media_model, text_model};
use aha_engine::{LoadedModel, Task};
use aha_nn::weights::{NameMap, Weights};
pub use config::{LayerType, Qwen3_5Config, StoredForm};

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "qwen3_5",
    task: Task::Chat,
    architectures: &["Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"],
    model_types: &["qwen3_5", "qwen3_5_text"],
    gguf_architectures: &["qwen35"],
    load,
};

/// With the vision tower where the checkpoint has one: text-only conversions and GGUF files have none.
fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let config = checkpoint.text_config(Qwen3_5Config::from_gguf)?;
    let weights = checkpoint.weights(gguf_names(), options)?;
    let decoder = language_model(&weights, &config)?;
    if !weights.contains("model.visual.patch_embed.proj.weight") {
        finish(&weights, &decoder, &config)?;
        return text_model(checkpoint, Box::new(decoder));
    }
    let tower = qwen3vl::vision_tower(checkpoint, &weights)?;
    finish(&weights, &decoder, &config)?;
    let processor = qwen3vl::media_processor(checkpoint)?;
    media_model(checkpoint, Box::new(decoder), Box::new(tower), processor)
}

/// Loads the tensors of the language model alone.
pub fn decoder(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Decoder, LoadError> {
    let config = checkpoint.text_config(Qwen3_5Config::from_gguf)?;
    let weights = checkpoint.weights(gguf_names(), options)?;
    let decoder = language_model(&weights, &config)?;
    finish(&weights, &decoder, &config)?;
    Ok(decoder)
}

fn language_model(weights: &Weights, config: &Qwen3_5Config) -> Result<Decoder, LoadError> {
    // Text-only conversions leave the middle part out.
    let prefix = if weights.contains("model.language_model.embed_tokens.weight") {
        "model.language_model"
    } else {
        "model"
    };
    model::load(&weights.pp(prefix), &weights.pp("lm_head"), config)
}

fn finish(weights: &Weights, decoder: &Decoder, config: &Qwen3_5Config) -> Result<(), LoadError> {
    let other_parts = config.other_parts();
    let ignorable: Vec<&str> = decoder
        .ignorable()
        .iter()
        .copied()
        .chain(other_parts.iter().map(String::as_str))
        .collect();
    Ok(weights.finish(&ignorable)?)
}

fn gguf_names() -> NameMap {
    [
        ("post_attention_layernorm", "post_attention_norm"),
        ("linear_attn.in_proj_qkv", "attn_qkv"),
        ("linear_attn.in_proj_z", "attn_gate"),
        ("linear_attn.in_proj_b", "ssm_beta"),
        ("linear_attn.in_proj_a", "ssm_alpha"),
        ("linear_attn.conv1d", "ssm_conv1d"),
        ("linear_attn.dt_proj", "ssm_dt"),
        ("linear_attn.norm", "ssm_norm"),
        ("linear_attn.out_proj", "ssm_out"),
        // Leaves `ssm_a`, which belongs to no module.
        ("linear_attn", ""),
    ]
    .into_iter()
    .fold(NameMap::identity(), |names, (common, own)| {
        let target = format!("blk.{{i}}.{own}");
        names.with_rule(
            &format!("model.layers.{{i}}.{common}"),
            target.trim_end_matches('.'),
        )
    })
    .with_rules_of(NameMap::decoder())
}
