//! Keys of Qwen2.5-VL's config.json: flat as released, with a `text_config` in later copies.

use crate::config::RopeKeys;
use crate::decoder::{DecoderConfig, Scales};
use crate::error::LoadError;
use crate::vision::VisionBlockConfig;
use aha_nn::attention::AttentionConfig;
use aha_nn::mlp::Activation;
use serde::Deserialize;

/// The language model. Keys that releases leave out have the defaults of the reference.
#[derive(Debug, Clone, Deserialize)]
pub struct Qwen2_5VlConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    #[serde(default = "silu")]
    hidden_act: Activation,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    use_sliding_window: Option<bool>,
    #[serde(flatten)]
    rope: RopeKeys,
}

fn silu() -> Activation {
    Activation::Silu
}

/// Base of the rotary frequencies where no key names it.
const DEFAULT_THETA: f64 = 1e6;

impl Qwen2_5VlConfig {
    /// The shared decoder with Qwen2's options: biases on q, k and v alone.
    pub fn decoder(&self) -> Result<DecoderConfig, LoadError> {
        if self.use_sliding_window == Some(true) {
            return Err(LoadError::config(
                "use_sliding_window",
                "no released Qwen2.5-VL uses it, and it is not supported",
            ));
        }
        let head_dim = self.hidden_size / self.num_attention_heads.max(1);
        Ok(DecoderConfig {
            vocab_size: self.vocab_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_hidden_layers,
            attention: AttentionConfig {
                hidden_size: self.hidden_size,
                num_heads: self.num_attention_heads,
                num_kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
                head_dim,
                qkv_bias: true,
                ..AttentionConfig::default()
            },
            rms_norm_eps: self.rms_norm_eps,
            activation: self.hidden_act,
            mlp_bias: false,
            tie_word_embeddings: self.tie_word_embeddings,
            max_position_embeddings: self.max_position_embeddings,
            rotary_dim: self.rope.rotary_dim(head_dim),
            rope_theta: self.rope.theta_or(DEFAULT_THETA),
            rope_scaling: self.rope.scaling(),
            scales: Scales::default(),
            zero_centred_norms: false,
            sandwich_norms: false,
        })
    }
}

/// The vision tower.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    pub(super) depth: usize,
    hidden_size: usize,
    hidden_act: Activation,
    intermediate_size: usize,
    num_heads: usize,
    /// Later copies have both names.
    in_channels: Option<usize>,
    in_chans: Option<usize>,
    pub(super) patch_size: usize,
    pub(super) spatial_merge_size: usize,
    pub(super) temporal_patch_size: usize,
    pub(super) tokens_per_second: f64,
    window_size: usize,
    pub(super) out_hidden_size: usize,
    pub(super) fullatt_block_indexes: Vec<usize>,
}

impl Default for VisionConfig {
    /// The reference's defaults.
    fn default() -> Self {
        Self {
            depth: 32,
            hidden_size: 3584,
            hidden_act: Activation::Silu,
            intermediate_size: 3420,
            num_heads: 16,
            in_channels: None,
            in_chans: None,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: 2,
            tokens_per_second: 4.0,
            window_size: 112,
            out_hidden_size: 3584,
            fullatt_block_indexes: vec![7, 15, 23, 31],
        }
    }
}

/// Epsilon of the tower's norms, which no key names.
const NORM_EPS: f64 = 1e-6;

impl VisionConfig {
    /// Refuses sizes that no checkpoint has.
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        let sizes = [
            ("depth", self.depth, 1 << 10),
            ("hidden_size", self.hidden_size, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("num_heads", self.num_heads, 1 << 10),
            ("patch_size", self.patch_size, 1 << 10),
            ("spatial_merge_size", self.spatial_merge_size, 16),
            ("temporal_patch_size", self.temporal_patch_size, 16),
            ("window_size", self.window_size, 1 << 16),
            ("out_hidden_size", self.out_hidden_size, 1 << 20),
        ];
        let wrong = |key: &str, reason: String| {
            Err(LoadError::config(format!("vision_config.{key}"), reason))
        };
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                return wrong(key, format!("{value} is not between 1 and {most}"));
            }
        }
        if !self.hidden_size.is_multiple_of(4 * self.num_heads) {
            let reason = format!(
                "{} values do not divide into {} heads of rows and columns",
                self.hidden_size, self.num_heads
            );
            return wrong("num_heads", reason);
        }
        if self.in_channels.or(self.in_chans).unwrap_or(3) != 3 {
            return wrong("in_channels", "pictures have three".to_owned());
        }
        if self.window_side() == 0 {
            let reason = format!("{} pixels hold no token", self.window_size);
            return wrong("window_size", reason);
        }
        if !(self.tokens_per_second.is_finite() && self.tokens_per_second >= 0.0) {
            let reason = format!("{} is not a positive number", self.tokens_per_second);
            return wrong("tokens_per_second", reason);
        }
        Ok(())
    }

    /// Tokens along a side of a window.
    pub(super) fn window_side(&self) -> usize {
        self.window_size / self.patch_size / self.spatial_merge_size
    }

    /// Sizes of a block.
    pub(super) fn block(&self) -> VisionBlockConfig {
        VisionBlockConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_heads,
            norm_eps: NORM_EPS,
            activation: self.hidden_act,
        }
    }
}
