//! Keys of GLM-OCR's config.json: `text_config` and `vision_config`.

use crate::config::RopeKeys;
use crate::decoder::{DecoderConfig, Scales};
use crate::error::LoadError;
use crate::vision::{VisionBlockConfig, check_sizes};
use aha_nn::attention::AttentionConfig;
use aha_nn::mlp::Activation;
use aha_nn::rope::RopePairing;
use serde::Deserialize;

/// The language model.
#[derive(Debug, Clone, Deserialize)]
pub struct GlmOcrTextConfig {
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
    #[serde(default)]
    tie_word_embeddings: bool,
    /// Layers behind the last that guess further tokens.
    #[serde(default)]
    pub(super) num_nextn_predict_layers: usize,
    #[serde(flatten)]
    rope: RopeKeys,
}

impl GlmOcrTextConfig {
    /// The shared decoder with GLM's options: a norm before and behind attention and MLP each, neighbouring values
    /// rotated together.
    pub fn decoder(&self) -> DecoderConfig {
        DecoderConfig {
            vocab_size: self.vocab_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_hidden_layers,
            attention: AttentionConfig {
                hidden_size: self.hidden_size,
                num_heads: self.num_attention_heads,
                num_kv_heads: self.num_key_value_heads,
                head_dim: self.head_dim,
                rope_pairing: RopePairing::Interleaved,
                ..AttentionConfig::default()
            },
            rms_norm_eps: self.rms_norm_eps,
            activation: self.hidden_act,
            mlp_bias: false,
            tie_word_embeddings: self.tie_word_embeddings,
            max_position_embeddings: self.max_position_embeddings,
            rotary_dim: self.rope.rotary_dim(self.head_dim),
            rope_theta: self.rope.theta(),
            rope_scaling: self.rope.scaling(),
            scales: Scales::default(),
            zero_centred_norms: false,
            sandwich_norms: true,
        }
    }

    /// The layers that guess further tokens, which plain decoding does not need, as patterns of tensor names.
    pub(super) fn unused_layers(&self, prefix: &str) -> Vec<String> {
        (0..self.num_nextn_predict_layers.min(16))
            .map(|index| format!("{prefix}.layers.{}.*", self.num_hidden_layers + index))
            .collect()
    }
}

/// The vision tower (CogViT).
#[derive(Debug, Clone, Deserialize)]
pub struct VisionConfig {
    pub(super) depth: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_heads: usize,
    pub(super) hidden_act: Activation,
    #[serde(default = "yes")]
    pub(super) attention_bias: bool,
    pub(super) patch_size: usize,
    pub(super) out_hidden_size: usize,
    pub(super) rms_norm_eps: f64,
    #[serde(default = "two")]
    pub(super) spatial_merge_size: usize,
    #[serde(default = "two")]
    pub(super) temporal_patch_size: usize,
}

fn yes() -> bool {
    true
}

fn two() -> usize {
    2
}

impl VisionConfig {
    /// Refuses sizes that no checkpoint has.
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        check_sizes(&[
            ("depth", self.depth, 1 << 10),
            ("patch_size", self.patch_size, 1 << 10),
            ("out_hidden_size", self.out_hidden_size, 1 << 20),
            ("spatial_merge_size", self.spatial_merge_size, 16),
            ("temporal_patch_size", self.temporal_patch_size, 16),
        ])?;
        self.block().validate()
    }

    /// Sizes of a block.
    pub(super) fn block(&self) -> VisionBlockConfig {
        VisionBlockConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_heads,
            norm_eps: self.rms_norm_eps,
            activation: self.hidden_act,
        }
    }
}
