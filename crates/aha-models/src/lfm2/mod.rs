//! LFM2 and LFM2.5, the dense text models (230M to 2.6B): short convolutions, with attention in between.
//!
//! Reference: `Lfm2ForCausalLM` of transformers; technical report arXiv 2511.23404.

mod config;
mod model;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::export::ExportModel;
use crate::registry::Family;
use crate::text::text_model;
use aha_engine::{LoadedModel, Task};
use aha_nn::weights::NameMap;
use aha_nn::weights::gguf::Value;
pub use config::{LayerType, Lfm2Config};
pub use model::language_model;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "lfm2",
    task: Task::Chat,
    architectures: &["Lfm2ForCausalLM"],
    model_types: &["lfm2"],
    gguf_architectures: &["lfm2"],
    load,
};

/// The release's names for what other decoders have too, from where the decoder is.
const RELEASE_NAMES: [(&str, &str); 9] = [
    // The final norm, in spite of its name.
    ("norm", "embedding_norm"),
    ("layers.{i}.input_layernorm", "layers.{i}.operator_norm"),
    ("layers.{i}.post_attention_layernorm", "layers.{i}.ffn_norm"),
    ("layers.{i}.mlp.gate_proj", "layers.{i}.feed_forward.w1"),
    ("layers.{i}.mlp.up_proj", "layers.{i}.feed_forward.w3"),
    ("layers.{i}.mlp.down_proj", "layers.{i}.feed_forward.w2"),
    (
        "layers.{i}.self_attn.o_proj",
        "layers.{i}.self_attn.out_proj",
    ),
    (
        "layers.{i}.self_attn.q_norm",
        "layers.{i}.self_attn.q_layernorm",
    ),
    (
        "layers.{i}.self_attn.k_norm",
        "layers.{i}.self_attn.k_layernorm",
    ),
];

/// The names of a release whose decoder is at `prefix`.
pub fn release_names(prefix: &str) -> NameMap {
    RELEASE_NAMES
        .into_iter()
        .fold(NameMap::identity(), |names, (common, own)| {
            names.with_rule(&format!("{prefix}.{common}"), &format!("{prefix}.{own}"))
        })
}

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    text_model(checkpoint, Box::new(decoder(checkpoint, options)?))
}

/// The names of a GGUF.
fn gguf_names() -> NameMap {
    NameMap::identity()
        .with_rule("model.norm", "token_embd_norm")
        .with_rule("model.layers.{i}.conv.in_proj", "blk.{i}.shortconv.in_proj")
        .with_rule("model.layers.{i}.conv.conv", "blk.{i}.shortconv.conv")
        .with_rule(
            "model.layers.{i}.conv.out_proj",
            "blk.{i}.shortconv.out_proj",
        )
        .with_rules_of(NameMap::decoder())
}

/// What a GGUF file of the checkpoint says and holds.
pub(crate) fn export(checkpoint: &Checkpoint) -> Result<ExportModel, LoadError> {
    let config = checkpoint.config(Lfm2Config::from_gguf)?;
    let decoder = config.decoder()?;
    let heads = decoder.attention.num_kv_heads;
    // One number a layer, 0 where there is no attention.
    let kv_heads = config.layer_types()?.into_iter().map(|kind| match kind {
        LayerType::Conv => 0,
        LayerType::FullAttention => heads as i64,
    });
    let (kernel_size, _) = config.conv()?;
    Ok(ExportModel {
        architecture: "lfm2",
        names: gguf_names().for_release(&release_names("model")),
        keys: vec![
            (
                "attention.head_count_kv",
                Value::Integers(kv_heads.collect()),
            ),
            ("shortconv.l_cache", Value::Unsigned(kernel_size as u64)),
        ],
        pre: Some("lfm2"),
        decoder,
    })
}

/// Loads the tensors alone.
pub fn decoder(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Decoder, LoadError> {
    let config = checkpoint.config(Lfm2Config::from_gguf)?;
    let weights = checkpoint.weights_named(release_names("model"), gguf_names(), options)?;
    let decoder = language_model(&weights.pp("model"), &weights.pp("lm_head"), &config)?;
    weights.finish(decoder.ignorable())?;
    Ok(decoder)
}
