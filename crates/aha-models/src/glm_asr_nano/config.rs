//! Keys of GLM-ASR-Nano's config.json and processor_config.json.

use crate::audio::FeatureExtractorConfig;
use crate::config::RopeKeys;
use crate::encoder::EncoderBlockConfig;
use crate::error::LoadError;
use aha_nn::mlp::Activation;
use serde::Deserialize;

/// What config.json says besides `text_config`.
#[derive(Debug, Clone, Deserialize)]
pub struct GlmAsrConfig {
    pub(super) audio_config: AudioConfig,
    pub(super) audio_token_id: u32,
    #[serde(default = "gelu")]
    pub(super) projector_hidden_act: Activation,
}

/// `audio_config`: the encoder.
#[derive(Debug, Clone, Deserialize)]
pub struct AudioConfig {
    /// Width of the residual stream.
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    /// Blocks.
    pub(super) num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "gelu")]
    hidden_act: Activation,
    #[serde(default = "mel_bins")]
    pub(super) num_mel_bins: usize,
    #[serde(flatten)]
    rope: RopeKeys,
}

/// processor_config.json.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ProcessorConfig {
    #[serde(default)]
    pub(super) feature_extractor: FeatureExtractorConfig,
    pub(super) default_transcription_prompt: Option<String>,
    /// Longest recording in seconds.
    pub(super) max_audio_len: Option<u32>,
}

fn gelu() -> Activation {
    Activation::Gelu
}

fn mel_bins() -> usize {
    128
}

/// Epsilon of the layer norms, which no key names.
pub(super) const LAYER_NORM_EPS: f64 = 1e-5;
/// Encoder positions that make one token.
pub(super) const MERGED: usize = 4;
/// Share of a head that is rotated where no key names it.
const ROTATED: f64 = 0.5;

/// Encoder positions for frames of sound: the second convolution halves them.
pub(super) fn positions(frames: usize) -> usize {
    frames.div_ceil(2)
}

impl AudioConfig {
    /// Refuses sizes that no checkpoint has.
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        let sizes = [
            ("hidden_size", self.hidden_size, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("num_mel_bins", self.num_mel_bins, 1 << 10),
        ];
        let wrong = |key: &str, reason: String| {
            Err(LoadError::config(format!("audio_config.{key}"), reason))
        };
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                return wrong(key, format!("{value} is not between 1 and {most}"));
            }
        }
        let heads = self.num_attention_heads;
        let head_dim = self.hidden_size / heads;
        if head_dim * heads != self.hidden_size
            || self.head_dim.is_some_and(|own| own != head_dim)
            || self.num_key_value_heads.is_some_and(|own| own != heads)
        {
            return wrong(
                "num_attention_heads",
                format!(
                    "{heads} heads do not share the {} of hidden_size evenly",
                    self.hidden_size
                ),
            );
        }
        let rotated = self.rotary_dim();
        if rotated == 0 || rotated > head_dim || !rotated.is_multiple_of(2) {
            return wrong(
                "partial_rotary_factor",
                format!("{rotated} of {head_dim} values cannot be rotated in pairs"),
            );
        }
        if self.rope.scaling().is_some() {
            return wrong(
                "rope_parameters",
                "no released encoder scales its positions, and it is not supported".to_owned(),
            );
        }
        if self.intermediate_size != MERGED * self.hidden_size {
            return wrong(
                "intermediate_size",
                format!(
                    "{} is not {MERGED} times hidden_size, which the projector takes",
                    self.intermediate_size
                ),
            );
        }
        Ok(())
    }

    /// Values of a head that are rotated.
    pub(super) fn rotary_dim(&self) -> usize {
        let head_dim = self.hidden_size / self.num_attention_heads.max(1);
        self.rope.rotary_dim_or(head_dim, ROTATED)
    }

    /// Base of the rotary frequencies.
    pub(super) fn rope_theta(&self) -> f64 {
        self.rope.theta()
    }

    /// Sizes of a block.
    pub(super) fn block(&self) -> EncoderBlockConfig {
        EncoderBlockConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_attention_heads,
            norm_eps: LAYER_NORM_EPS,
            activation: self.hidden_act,
        }
    }
}
