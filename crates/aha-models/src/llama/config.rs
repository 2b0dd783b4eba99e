//! Keys of the generic Llama config.json.

use aha_nn::attention::AttentionConfig;
use aha_nn::mlp::Activation;
use aha_nn::weights::gguf::GgufFile;
use serde::Deserialize;

use crate::config::{GgufKeys, RopeKeys};
use crate::decoder::{DecoderConfig, Scales};
use crate::error::LoadError;

/// `LlamaForCausalLM`: Llama 2 and 3, SmolLM2 and the many models of their shape.
#[derive(Debug, Clone, Deserialize)]
pub struct LlamaConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Activation,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(flatten)]
    rope: RopeKeys,
}

impl LlamaConfig {
    /// The same values from a GGUF's metadata (`llama.*`).
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let keys = GgufKeys::new(file, "llama");
        if keys
            .optional_unsigned("expert_count")?
            .is_some_and(|experts| experts > 0)
        {
            return Err(LoadError::config(
                "llama.expert_count",
                "mixtures of experts are not supported by this family",
            ));
        }
        let hidden_size = keys.unsigned("embedding_length")?;
        let num_attention_heads = keys.unsigned("attention.head_count")?;
        let head_dim = match keys.optional_unsigned("attention.key_length")? {
            Some(length) => length,
            None => hidden_size / num_attention_heads.max(1),
        };
        Ok(Self {
            vocab_size: keys.vocab_size()?,
            hidden_size,
            intermediate_size: keys.unsigned("feed_forward_length")?,
            num_hidden_layers: keys.unsigned("block_count")?,
            num_attention_heads,
            num_key_value_heads: keys.optional_unsigned("attention.head_count_kv")?,
            head_dim: Some(head_dim),
            hidden_act: Activation::Silu,
            rms_norm_eps: keys.float("attention.layer_norm_rms_epsilon")?,
            max_position_embeddings: keys.unsigned("context_length")?,
            tie_word_embeddings: !keys.has_tensor("output.weight"),
            attention_bias: keys.has_tensor("blk.0.attn_q.bias"),
            mlp_bias: keys.has_tensor("blk.0.ffn_gate.bias"),
            rope: keys.rope(head_dim)?,
        })
    }

    /// Query and key/value heads: GGUF permutes their rows.
    pub fn heads(&self) -> (usize, usize) {
        (
            self.num_attention_heads,
            self.num_key_value_heads.unwrap_or(self.num_attention_heads),
        )
    }

    /// The shared decoder with Llama's options.
    pub fn decoder(&self) -> Result<DecoderConfig, LoadError> {
        let (num_heads, num_kv_heads) = self.heads();
        if num_heads == 0 {
            return Err(LoadError::config(
                "num_attention_heads",
                "0 is not a number of heads",
            ));
        }
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / num_heads);
        Ok(DecoderConfig {
            vocab_size: self.vocab_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_hidden_layers,
            attention: AttentionConfig {
                hidden_size: self.hidden_size,
                num_heads,
                num_kv_heads,
                head_dim,
                qkv_bias: self.attention_bias,
                output_bias: self.attention_bias,
                qk_norm_eps: None,
                ..AttentionConfig::default()
            },
            rms_norm_eps: self.rms_norm_eps,
            activation: self.hidden_act,
            mlp_bias: self.mlp_bias,
            tie_word_embeddings: self.tie_word_embeddings,
            max_position_embeddings: self.max_position_embeddings,
            rotary_dim: self.rope.rotary_dim(head_dim),
            rope_theta: self.rope.theta(),
            rope_scaling: self.rope.scaling(),
            scales: Scales::default(),
            zero_centred_norms: false,
            sandwich_norms: false,
        })
    }
}
