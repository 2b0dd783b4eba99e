//! Keys of BERT's config.json.

use aha_nn::mlp::Activation;
use aha_nn::weights::gguf::GgufFile;
use serde::Deserialize;

use crate::config::GgufKeys;
use crate::error::LoadError;

/// `BertModel` with absolute positions, any size.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BertConfig {
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of all layer norms.
    pub layer_norm_eps: f64,
    /// Rows of the position embedding.
    pub max_position_embeddings: usize,
    /// Rows of the token type embedding.
    pub type_vocab_size: usize,
    #[serde(default = "absolute")]
    position_embedding_type: String,
    #[serde(default)]
    is_decoder: bool,
}

fn absolute() -> String {
    "absolute".to_owned()
}

impl BertConfig {
    /// The same values from a GGUF's metadata (`bert.*`).
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let keys = GgufKeys::new(file, "bert");
        let types = file
            .tensor("token_types.weight")
            .and_then(|tensor| tensor.shape.first().copied());
        Ok(Self {
            vocab_size: keys.vocab_size()?,
            hidden_size: keys.unsigned("embedding_length")?,
            intermediate_size: keys.unsigned("feed_forward_length")?,
            num_hidden_layers: keys.unsigned("block_count")?,
            num_attention_heads: keys.unsigned("attention.head_count")?,
            hidden_act: Activation::Gelu,
            layer_norm_eps: keys.float("attention.layer_norm_epsilon")?,
            max_position_embeddings: keys.unsigned("context_length")?,
            type_vocab_size: types.unwrap_or(1),
            position_embedding_type: absolute(),
            is_decoder: false,
        })
    }

    /// Refuses sizes that no checkpoint has, before anything is allocated for them, and variants that compute
    /// otherwise.
    pub fn validate(&self) -> Result<(), LoadError> {
        for (key, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", self.num_attention_heads, 1 << 14),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                1 << 24,
            ),
            ("type_vocab_size", self.type_vocab_size, 1 << 16),
        ] {
            if value == 0 || value > most {
                let reason = format!("{value} is not between 1 and {most}");
                return Err(LoadError::config(key, reason));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let reason = format!(
                "{} values cannot be shared among {} heads evenly",
                self.hidden_size, self.num_attention_heads
            );
            return Err(LoadError::config("num_attention_heads", reason));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0) {
            let reason = format!("{} is not a positive number", self.layer_norm_eps);
            return Err(LoadError::config("layer_norm_eps", reason));
        }
        if self.position_embedding_type != "absolute" {
            let reason = format!("`{}` is not supported", self.position_embedding_type);
            return Err(LoadError::config("position_embedding_type", reason));
        }
        if self.is_decoder {
            return Err(LoadError::config(
                "is_decoder",
                "only encoders are supported",
            ));
        }
        Ok(())
    }

    /// Values a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}
