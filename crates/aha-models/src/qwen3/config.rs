//! Keys of Qwen3's config.json.

use aha_nn::attention::AttentionConfig;
use aha_nn::mlp::Activation;
use aha_nn::rope::RopeScaling;
use aha_nn::weights::gguf::GgufFile;
use serde::Deserialize;

use crate::config::{GgufKeys, RopeKeys};
use crate::decoder::{DecoderConfig, Scales};
use crate::error::LoadError;

/// `Qwen3ForCausalLM`, any dense size.
#[derive(Debug, Clone, Deserialize)]
pub struct Qwen3Config {
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
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(flatten)]
    rope: RopeKeys,
}

impl Qwen3Config {
    /// The same values from a GGUF's metadata (`qwen3.*`).
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let keys = GgufKeys::new(file, "qwen3");
        let head_dim = keys.unsigned("attention.key_length")?;
        Ok(Self {
            vocab_size: keys.vocab_size()?,
            hidden_size: keys.unsigned("embedding_length")?,
            intermediate_size: keys.unsigned("feed_forward_length")?,
            num_hidden_layers: keys.unsigned("block_count")?,
            num_attention_heads: keys.unsigned("attention.head_count")?,
            num_key_value_heads: keys.unsigned("attention.head_count_kv")?,
            head_dim,
            hidden_act: Activation::Silu,
            rms_norm_eps: keys.float("attention.layer_norm_rms_epsilon")?,
            max_position_embeddings: keys.unsigned("context_length")?,
            tie_word_embeddings: !keys.has_tensor("output.weight"),
            attention_bias: keys.has_tensor("blk.0.attn_q.bias"),
            use_sliding_window: false,
            rope: keys.rope(head_dim)?,
        })
    }

    /// The shared decoder with Qwen3's options: RMS norms over each head of q and k.
    pub fn decoder(&self) -> Result<DecoderConfig, LoadError> {
        if self.use_sliding_window {
            return Err(LoadError::config(
                "use_sliding_window",
                "no released Qwen3 uses it, and it is not supported",
            ));
        }
        let rope_scaling: Option<RopeScaling> = self.rope.scaling();
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
                ..AttentionConfig::default()
            },
            rms_norm_eps: self.rms_norm_eps,
            activation: self.hidden_act,
            mlp_bias: false,
            tie_word_embeddings: self.tie_word_embeddings,
            max_position_embeddings: self.max_position_embeddings,
            rotary_dim: self.rope.rotary_dim(self.head_dim),
            rope_theta: self.rope.theta(),
            rope_scaling,
            scales: Scales::default(),
            zero_centred_norms: false,
            sandwich_norms: false,
        })
    }
}
