//! Keys of PaddleOCR-VL's config.json: the language model's at the top (or in `text_config`), the tower's in
//! `vision_config`.

use crate::config::RopeKeys;
use crate::decoder::{DecoderConfig, Scales};
use crate::error::LoadError;
use crate::vision::{VisionBlockConfig, check_sizes};
use aha_nn::attention::AttentionConfig;
use aha_nn::mlp::Activation;
use serde::Deserialize;

/// Base of the language model's rotary frequencies where no key names it.
const ROPE_THETA: f64 = 500_000.0;

/// The language model, ERNIE 4.5 (0.3B).
#[derive(Debug, Clone, Deserialize)]
pub struct Ernie4_5Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    hidden_act: Activation,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    use_bias: bool,
    sliding_window: Option<usize>,
    #[serde(flatten)]
    rope: RopeKeys,
}

impl Ernie4_5Config {
    /// The shared decoder with chunked M-RoPE; `has_head` says whether the checkpoint has an output head, which counts
    /// where no key says that it is tied.
    pub fn decoder(&self, has_head: bool) -> DecoderConfig {
        DecoderConfig {
            vocab_size: self.vocab_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_hidden_layers,
            attention: AttentionConfig {
                hidden_size: self.hidden_size,
                num_heads: self.num_attention_heads,
                num_kv_heads: self.num_key_value_heads,
                head_dim: self.head_dim,
                qkv_bias: self.use_bias,
                output_bias: self.use_bias,
                window: self.sliding_window,
                ..AttentionConfig::default()
            },
            rms_norm_eps: self.rms_norm_eps,
            activation: self.hidden_act,
            mlp_bias: self.use_bias,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(!has_head),
            max_position_embeddings: self.max_position_embeddings,
            rotary_dim: self.rope.rotary_dim(self.head_dim),
            rope_theta: self.rope.theta_or(ROPE_THETA),
            rope_scaling: self.rope.scaling(),
            scales: Scales::default(),
            zero_centred_norms: false,
            sandwich_norms: false,
        }
    }
}

/// The vision tower, a SigLIP with rotary positions beside the learned ones (NaViT style, arXiv 2307.06304).
#[derive(Debug, Clone, Deserialize)]
pub struct VisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default = "tanh")]
    hidden_act: Activation,
    #[serde(default = "epsilon")]
    layer_norm_eps: f64,
    pub(super) image_size: usize,
    pub(super) patch_size: usize,
    #[serde(default = "two")]
    pub(super) spatial_merge_size: usize,
}

fn tanh() -> Activation {
    Activation::GeluPytorchTanh
}

fn epsilon() -> f64 {
    1e-6
}

fn two() -> usize {
    2
}

impl VisionConfig {
    /// Refuses sizes that no checkpoint has.
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        check_sizes(&[
            ("image_size", self.image_size, 1 << 14),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("patch_size", self.patch_size, 1 << 10),
            ("spatial_merge_size", self.spatial_merge_size, 16),
        ])?;
        self.block().validate()
    }

    /// Entries of the table of positions along a side.
    pub(super) fn table_side(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Sizes of a layer.
    pub(super) fn block(&self) -> VisionBlockConfig {
        VisionBlockConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_attention_heads,
            norm_eps: self.layer_norm_eps,
            activation: self.hidden_act,
        }
    }
}
