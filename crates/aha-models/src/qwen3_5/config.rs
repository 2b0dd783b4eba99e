//! Keys of Qwen3.5's config.json, the language model's part.

use aha_nn::attention::AttentionConfig;
use aha_nn::gated_delta::{GatedDelta, HeadGroups};
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
    /// Gated DeltaNet.
    LinearAttention,
    /// Gated grouped-query attention.
    FullAttention,
}

/// `text_config` of `Qwen3_5ForConditionalGeneration`, any dense size.
#[derive(Debug, Clone, Deserialize)]
pub struct Qwen3_5Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    #[serde(default = "default_head_dim")]
    head_dim: usize,
    #[serde(default = "silu")]
    hidden_act: Activation,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_context")]
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default = "yes")]
    attn_output_gate: bool,
    layer_types: Option<Vec<LayerType>>,
    #[serde(default = "default_interval")]
    full_attention_interval: usize,
    #[serde(default = "default_kernel")]
    linear_conv_kernel_dim: usize,
    #[serde(default = "default_linear_dim")]
    linear_key_head_dim: usize,
    #[serde(default = "default_linear_dim")]
    linear_value_head_dim: usize,
    #[serde(default = "default_key_heads")]
    linear_num_key_heads: usize,
    #[serde(default = "default_value_heads")]
    linear_num_value_heads: usize,
    /// Layers of the head that predicts several tokens.
    #[serde(default)]
    mtp_num_hidden_layers: usize,
    #[serde(flatten)]
    rope: RopeKeys,
    /// How the checkpoint writes what GGUF files write differently.
    #[serde(skip)]
    form: StoredForm,
}

/// How norms, decay and the order of heads are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StoredForm {
    /// Norm weights less one, the decay's logarithm, heads of one key side by side.
    #[default]
    Release,
    /// As llama.cpp computes: norm weights in full, the negative decay, heads of one key strided.
    Gguf,
}

fn default_head_dim() -> usize {
    256
}

fn silu() -> Activation {
    Activation::Silu
}

fn default_eps() -> f64 {
    1e-6
}

fn default_context() -> usize {
    32_768
}

fn yes() -> bool {
    true
}

fn default_interval() -> usize {
    4
}

fn default_kernel() -> usize {
    4
}

fn default_linear_dim() -> usize {
    128
}

fn default_key_heads() -> usize {
    16
}

fn default_value_heads() -> usize {
    32
}

/// Share of a head that is rotated where no key names it.
const DEFAULT_ROTARY_FACTOR: f64 = 0.25;

impl Qwen3_5Config {
    /// The same values from a GGUF's metadata (`qwen35.*`), without the layers for multi-token prediction.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let keys = GgufKeys::new(file, "qwen35");
        let mtp_layers = keys.optional_unsigned("nextn_predict_layers")?.unwrap_or(0);
        let num_hidden_layers = keys.unsigned("block_count")?.saturating_sub(mtp_layers);
        let head_dim = keys.unsigned("attention.key_length")?;
        let value_heads = keys.unsigned("ssm.time_step_rank")?;
        let is_linear = |index: usize| keys.has_tensor(&format!("blk.{index}.ssm_conv1d.weight"));
        let layer_types = (0..num_hidden_layers)
            .map(|index| {
                if is_linear(index) {
                    LayerType::LinearAttention
                } else {
                    LayerType::FullAttention
                }
            })
            .collect();
        Ok(Self {
            vocab_size: keys.vocab_size()?,
            hidden_size: keys.unsigned("embedding_length")?,
            intermediate_size: keys.unsigned("feed_forward_length")?,
            num_hidden_layers,
            num_attention_heads: keys.unsigned("attention.head_count")?,
            num_key_value_heads: keys.unsigned("attention.head_count_kv")?,
            head_dim,
            hidden_act: Activation::Silu,
            rms_norm_eps: keys.float("attention.layer_norm_rms_epsilon")?,
            max_position_embeddings: keys.unsigned("context_length")?,
            tie_word_embeddings: !keys.has_tensor("output.weight"),
            attention_bias: false,
            attn_output_gate: true,
            layer_types: Some(layer_types),
            full_attention_interval: default_interval(),
            linear_conv_kernel_dim: keys.unsigned("ssm.conv_kernel")?,
            linear_key_head_dim: keys.unsigned("ssm.state_size")?,
            linear_value_head_dim: keys.unsigned("ssm.inner_size")? / value_heads.max(1),
            linear_num_key_heads: keys.unsigned("ssm.group_count")?,
            linear_num_value_heads: value_heads,
            mtp_num_hidden_layers: mtp_layers,
            rope: keys.rope(head_dim)?,
            form: StoredForm::Gguf,
        })
    }

    /// How the checkpoint stores what GGUF files store differently.
    pub fn form(&self) -> StoredForm {
        self.form
    }

    /// Tensors besides the language model's that the checkpoint may hold: the vision tower, and the head that predicts
    /// several tokens, which GGUF files append to the layers.
    pub fn other_parts(&self) -> Vec<String> {
        match self.form {
            StoredForm::Release => vec!["model.visual.*".to_owned(), "mtp.*".to_owned()],
            StoredForm::Gguf => (0..self.mtp_num_hidden_layers.min(64))
                .map(|layer| format!("blk.{}.*", self.num_hidden_layers + layer))
                .collect(),
        }
    }

    /// What mixes the tokens, layer by layer.
    pub fn layer_types(&self) -> Result<Vec<LayerType>, LoadError> {
        let Some(types) = &self.layer_types else {
            let interval = self.full_attention_interval.max(1);
            return Ok((1..=self.num_hidden_layers)
                .map(|layer| {
                    if layer.is_multiple_of(interval) {
                        LayerType::FullAttention
                    } else {
                        LayerType::LinearAttention
                    }
                })
                .collect());
        };
        if types.len() != self.num_hidden_layers {
            let reason = format!(
                "{} types for {} layers (num_hidden_layers)",
                types.len(),
                self.num_hidden_layers
            );
            return Err(LoadError::config("layer_types", reason));
        }
        Ok(types.clone())
    }

    /// Sizes of the gated delta rule, and the taps of the convolution before it.
    pub fn linear_attention(&self) -> Result<(GatedDelta, usize), LoadError> {
        let sizes = [
            ("linear_num_key_heads", self.linear_num_key_heads, 1 << 12),
            (
                "linear_num_value_heads",
                self.linear_num_value_heads,
                1 << 12,
            ),
            ("linear_key_head_dim", self.linear_key_head_dim, 1 << 12),
            ("linear_value_head_dim", self.linear_value_head_dim, 1 << 12),
            ("linear_conv_kernel_dim", self.linear_conv_kernel_dim, 64),
        ];
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                let reason = format!("{value} is not between 1 and {most}");
                return Err(LoadError::config(key, reason));
            }
        }
        if !self
            .linear_num_value_heads
            .is_multiple_of(self.linear_num_key_heads)
        {
            let reason = format!(
                "{} value heads cannot share {} key heads evenly",
                self.linear_num_value_heads, self.linear_num_key_heads
            );
            return Err(LoadError::config("linear_num_value_heads", reason));
        }
        let rule = GatedDelta {
            num_key_heads: self.linear_num_key_heads,
            num_heads: self.linear_num_value_heads,
            key_dim: self.linear_key_head_dim,
            value_dim: self.linear_value_head_dim,
            groups: match self.form {
                StoredForm::Release => HeadGroups::Consecutive,
                StoredForm::Gguf => HeadGroups::Strided,
            },
        };
        Ok((rule, self.linear_conv_kernel_dim))
    }

    /// The shared decoder with Qwen3.5's options: zero-centred norms, gated attention, a share of each head rotated.
    pub fn decoder(&self) -> Result<DecoderConfig, LoadError> {
        let zero_centred_norms = self.form == StoredForm::Release;
        Ok(DecoderConfig {
            vocab_size: self.vocab_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_hidden_layers,
            attention: AttentionConfig {
                hidden_size: self.hidden_size,
                num_heads: self.num_attention_heads,
                num_kv_heads: self.num_key_value_heads,
                head_dim: self.head_dim,
                qkv_bias: self.attention_bias,
                output_bias: self.attention_bias,
                qk_norm_eps: Some(self.rms_norm_eps),
                zero_centred_norms,
                output_gate: self.attn_output_gate,
                ..AttentionConfig::default()
            },
            rms_norm_eps: self.rms_norm_eps,
            activation: self.hidden_act,
            mlp_bias: false,
            tie_word_embeddings: self.tie_word_embeddings,
            max_position_embeddings: self.max_position_embeddings,
            rotary_dim: self
                .rope
                .rotary_dim_or(self.head_dim, DEFAULT_ROTARY_FACTOR),
            rope_theta: self.rope.theta(),
            rope_scaling: self.rope.scaling(),
            scales: Scales::default(),
            zero_centred_norms,
            sandwich_norms: false,
        })
    }
}
