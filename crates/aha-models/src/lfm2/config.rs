//! Keys of LFM2's and LFM2.5's config.json, which spell some of them differently.

use aha_nn::attention::AttentionConfig;
use aha_nn::mlp::Activation;
use aha_nn::weights::gguf::GgufFile;
use serde::Deserialize;

use crate::config::{GgufKeys, RopeKeys};
use crate::decoder::{DecoderConfig, Scales};
use crate::error::LoadError;

/// What mixes the tokens in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerType {
    /// A gated short convolution.
    Conv,
    /// Grouped-query attention.
    FullAttention,
}

/// `Lfm2ForCausalLM`, the dense sizes. Keys that releases leave out have the defaults of the reference.
#[derive(Debug, Clone, Deserialize)]
pub struct Lfm2Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    #[serde(default = "default_context")]
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    norm_eps: f64,
    /// Width of the MLP before it is adjusted; counts before `intermediate_size`.
    block_ff_dim: Option<usize>,
    intermediate_size: Option<usize>,
    #[serde(default = "yes")]
    block_auto_adjust_ff_dim: bool,
    #[serde(default = "default_multiplier")]
    block_ffn_dim_multiplier: Option<f64>,
    #[serde(default = "default_multiple")]
    block_multiple_of: usize,
    #[serde(default)]
    conv_bias: bool,
    #[serde(default = "default_kernel", rename = "conv_L_cache")]
    conv_kernel_size: usize,
    layer_types: Option<Vec<LayerType>>,
    full_attn_idxs: Option<Vec<usize>>,
    tie_embedding: Option<bool>,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    rope: RopeKeys,
}

fn default_context() -> usize {
    128_000
}

fn default_eps() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}

#[allow(clippy::unnecessary_wraps, reason = "the key may also be null")]
fn default_multiplier() -> Option<f64> {
    Some(1.0)
}

fn default_multiple() -> usize {
    256
}

fn default_kernel() -> usize {
    3
}

/// Base of the rotary frequencies where no key names it.
const DEFAULT_THETA: f64 = 1e6;

impl Lfm2Config {
    /// The same values from a GGUF's metadata (`lfm2.*`), whose MLP width is adjusted already.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let keys = GgufKeys::new(file, "lfm2");
        let num_hidden_layers = keys.unsigned("block_count")?;
        let (hidden_size, num_attention_heads) = (
            keys.unsigned("embedding_length")?,
            keys.unsigned("attention.head_count")?,
        );
        // One number a layer, 0 where there is no attention.
        let kv_heads = match keys.optional_integers("attention.head_count_kv")? {
            Some(heads) => heads.into_iter().max().unwrap_or(0).try_into().unwrap_or(0),
            None => keys.unsigned("attention.head_count_kv")?,
        };
        let is_conv = |index: usize| keys.has_tensor(&format!("blk.{index}.shortconv.conv.weight"));
        let layer_types = (0..num_hidden_layers)
            .map(|index| {
                if is_conv(index) {
                    LayerType::Conv
                } else {
                    LayerType::FullAttention
                }
            })
            .collect();
        Ok(Self {
            vocab_size: keys.vocab_size()?,
            hidden_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: kv_heads,
            max_position_embeddings: keys.unsigned("context_length")?,
            norm_eps: keys.float("attention.layer_norm_rms_epsilon")?,
            block_ff_dim: None,
            intermediate_size: Some(keys.unsigned("feed_forward_length")?),
            block_auto_adjust_ff_dim: false,
            block_ffn_dim_multiplier: None,
            block_multiple_of: 1,
            conv_bias: (0..num_hidden_layers)
                .any(|index| keys.has_tensor(&format!("blk.{index}.shortconv.conv.bias"))),
            conv_kernel_size: keys.unsigned("shortconv.l_cache")?,
            layer_types: Some(layer_types),
            full_attn_idxs: None,
            tie_embedding: Some(!keys.has_tensor("output.weight")),
            tie_word_embeddings: None,
            rope: keys.rope(hidden_size / num_attention_heads.max(1))?,
        })
    }

    /// What mixes the tokens, layer by layer. Without either key all layers attend, as in the reference.
    pub fn layer_types(&self) -> Result<Vec<LayerType>, LoadError> {
        if let Some(types) = &self.layer_types {
            if types.len() != self.num_hidden_layers {
                let reason = format!(
                    "{} types for {} layers (num_hidden_layers)",
                    types.len(),
                    self.num_hidden_layers
                );
                return Err(LoadError::config("layer_types", reason));
            }
            return Ok(types.clone());
        }
        let attends = |index: usize| {
            self.full_attn_idxs
                .as_ref()
                .is_none_or(|indices| indices.contains(&index))
        };
        Ok((0..self.num_hidden_layers)
            .map(|index| {
                if attends(index) {
                    LayerType::FullAttention
                } else {
                    LayerType::Conv
                }
            })
            .collect())
    }

    /// Width of the MLP: two thirds of `block_ff_dim`, times the multiplier, up to the next multiple.
    fn intermediate_size(&self) -> Result<usize, LoadError> {
        let width = self
            .block_ff_dim
            .or(self.intermediate_size)
            .ok_or_else(|| LoadError::config("block_ff_dim", "it is missing"))?;
        if !self.block_auto_adjust_ff_dim {
            return Ok(width);
        }
        // Widths beyond any release are refused where every decoder's are.
        let mut width = width / 3 * 2 + width % 3 * 2 / 3;
        if let Some(multiplier) = self.block_ffn_dim_multiplier {
            width = (multiplier * width as f64) as usize;
        }
        width
            .checked_next_multiple_of(self.block_multiple_of)
            .ok_or_else(|| {
                let reason = format!("{width} has no multiple of {}", self.block_multiple_of);
                LoadError::config("block_multiple_of", reason)
            })
    }

    /// Taps of the convolution's filters, and whether it and its projections have biases.
    pub fn conv(&self) -> Result<(usize, bool), LoadError> {
        if self.conv_kernel_size == 0 || self.conv_kernel_size > 64 {
            let reason = format!("{} is not between 1 and 64", self.conv_kernel_size);
            return Err(LoadError::config("conv_L_cache", reason));
        }
        Ok((self.conv_kernel_size, self.conv_bias))
    }

    /// The shared decoder with LFM2's options: norms over each head of q and k.
    pub fn decoder(&self) -> Result<DecoderConfig, LoadError> {
        let head_dim = self.hidden_size / self.num_attention_heads.max(1);
        Ok(DecoderConfig {
            vocab_size: self.vocab_size,
            intermediate_size: self.intermediate_size()?,
            num_layers: self.num_hidden_layers,
            attention: AttentionConfig {
                hidden_size: self.hidden_size,
                num_heads: self.num_attention_heads,
                num_kv_heads: self.num_key_value_heads,
                head_dim,
                qk_norm_eps: Some(self.norm_eps),
                ..AttentionConfig::default()
            },
            rms_norm_eps: self.norm_eps,
            activation: Activation::Silu,
            mlp_bias: false,
            tie_word_embeddings: self
                .tie_embedding
                .or(self.tie_word_embeddings)
                .unwrap_or(true),
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
