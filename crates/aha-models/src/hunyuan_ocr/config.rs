//! Keys of HunyuanOCR's config.json: the language model's at the top (1.0) or in `text_config` (1.5), the tower's in
//! `vision_config`.

use crate::decoder::{DecoderConfig, Scales};
use crate::error::LoadError;
use crate::vision::{VisionBlockConfig, check_sizes};
use aha_nn::attention::AttentionConfig;
use aha_nn::mlp::Activation;
use aha_nn::rope::{RopeScaling, RopeType};
use serde::Deserialize;

/// Base of the language model's rotary frequencies where no key names it.
const ROPE_THETA: f64 = 10_000.0;

/// The language model.
#[derive(Debug, Clone, Deserialize)]
pub struct HunyuanTextConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    /// The first release's name for the same.
    attention_head_dim: Option<usize>,
    hidden_act: Activation,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "yes")]
    use_qk_norm: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    rope_theta: Option<f64>,
    /// The first release's place for the rotary settings.
    rope_scaling: Option<XdRopeKeys>,
    rope_parameters: Option<XdRopeKeys>,
}

/// Rotary settings. Releases call the kind `xdrope` or `dynamic`, which means the same here.
#[derive(Debug, Clone, Default, Deserialize)]
struct XdRopeKeys {
    alpha: Option<f64>,
    rope_theta: Option<f64>,
    xdrope_section: Option<[usize; 4]>,
    /// transformers' name for the same.
    mrope_section: Option<[usize; 4]>,
}

fn yes() -> bool {
    true
}

impl HunyuanTextConfig {
    /// Whether the language model's keys stand at the top of config.json: the layout of the first release.
    pub(super) fn is_first_layout(&self) -> bool {
        self.rope_scaling.is_some()
    }

    /// The shared decoder with XD-RoPE and norms over the heads of queries and keys after the rotation.
    pub fn decoder(&self) -> Result<DecoderConfig, LoadError> {
        let head_dim = self
            .head_dim
            .or(self.attention_head_dim)
            .ok_or_else(|| LoadError::config("head_dim", "is missing"))?;
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let rope = rope.cloned().unwrap_or_default();
        Ok(DecoderConfig {
            vocab_size: self.vocab_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_hidden_layers,
            attention: AttentionConfig {
                hidden_size: self.hidden_size,
                num_heads: self.num_attention_heads,
                num_kv_heads: self.num_key_value_heads,
                head_dim,
                qkv_bias: self.attention_bias,
                output_bias: self.attention_bias,
                qk_norm_eps: self.use_qk_norm.then_some(self.rms_norm_eps),
                norm_after_rotation: true,
                ..AttentionConfig::default()
            },
            rms_norm_eps: self.rms_norm_eps,
            activation: self.hidden_act,
            mlp_bias: self.mlp_bias,
            tie_word_embeddings: self.tie_word_embeddings,
            max_position_embeddings: self.max_position_embeddings,
            rotary_dim: head_dim,
            rope_theta: self.rope_theta.or(rope.rope_theta).unwrap_or(ROPE_THETA),
            rope_scaling: Some(RopeScaling {
                rope_type: Some(RopeType::XdRope),
                alpha: rope.alpha,
                xdrope_section: rope.xdrope_section.or(rope.mrope_section),
                ..RopeScaling::default()
            }),
            scales: Scales::default(),
            zero_centred_norms: false,
            sandwich_norms: false,
        })
    }
}

/// The vision tower.
#[derive(Debug, Clone, Deserialize)]
pub struct VisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default = "gelu")]
    pub(super) hidden_act: Activation,
    #[serde(default = "epsilon")]
    pub(super) rms_norm_eps: f64,
    pub(super) patch_size: usize,
    #[serde(default = "two")]
    pub(super) spatial_merge_size: usize,
    pub(super) max_image_size: usize,
    interpolate_mode: Option<String>,
}

fn gelu() -> Activation {
    Activation::Gelu
}

fn epsilon() -> f64 {
    1e-5
}

fn two() -> usize {
    2
}

impl VisionConfig {
    /// Refuses sizes that no checkpoint has.
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        check_sizes(&[
            ("max_image_size", self.max_image_size, 1 << 14),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("patch_size", self.patch_size, 1 << 10),
            ("spatial_merge_size", self.spatial_merge_size, 16),
        ])?;
        match self.interpolate_mode.as_deref() {
            None | Some("bilinear") => self.block().validate(),
            Some(other) => Err(LoadError::config(
                "vision_config.interpolate_mode",
                format!("{other:?} is not bilinear, which all releases have"),
            )),
        }
    }

    /// Entries of the table of positions along a side.
    pub(super) fn table_side(&self) -> usize {
        self.max_image_size / self.patch_size.max(1)
    }

    /// Sizes of a layer.
    pub(super) fn block(&self) -> VisionBlockConfig {
        VisionBlockConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_attention_heads,
            norm_eps: self.rms_norm_eps,
            activation: self.hidden_act,
        }
    }
}
