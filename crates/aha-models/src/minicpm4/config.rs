//! Keys of MiniCPM's config.json.

use aha_nn::attention::AttentionConfig;
use aha_nn::mlp::Activation;
use aha_nn::weights::gguf::GgufFile;
use serde::Deserialize;

use crate::config::{GgufKeys, RopeKeys};
use crate::decoder::{DecoderConfig, Scales};
use crate::error::LoadError;

/// `MiniCPMForCausalLM`. Keys that the releases leave out have the defaults of the released configuration class.
#[derive(Debug, Clone, Deserialize)]
pub struct MiniCpm4Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    /// Size of a head where it is not `hidden_size / num_attention_heads`.
    #[serde(alias = "kv_channels")]
    head_dim: Option<usize>,
    #[serde(default = "silu")]
    hidden_act: Activation,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    /// Whether the three factors below count; the decoders of VoxCPM switch them off.
    #[serde(default = "yes")]
    use_mup: bool,
    #[serde(default = "one")]
    scale_emb: f64,
    #[serde(default = "one")]
    scale_depth: f64,
    #[serde(default = "one")]
    dim_model_base: f64,
    sparse_config: Option<SparseConfig>,
    #[serde(default)]
    num_experts: usize,
    #[serde(flatten)]
    rope: RopeKeys,
}

/// Size of a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct TransformerSize {
    /// Width of the residual stream.
    #[serde(rename = "hidden_dim")]
    pub hidden_size: usize,
    /// Width of the gated MLP.
    #[serde(rename = "ffn_dim")]
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Layers.
    pub num_layers: usize,
    /// Size of a head where it is not `hidden_size / num_heads`.
    #[serde(rename = "kv_channels")]
    pub head_dim: Option<usize>,
}

/// The part of `sparse_config` that says when attention is not sparse.
#[derive(Debug, Clone, Deserialize)]
struct SparseConfig {
    /// Sequences of fewer tokens attend densely; 0 and -1 are in use for none.
    #[serde(default = "default_dense_len")]
    dense_len: i64,
}

fn silu() -> Activation {
    Activation::Silu
}

fn default_eps() -> f64 {
    1e-6
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

fn default_dense_len() -> i64 {
    8192
}

impl MiniCpm4Config {
    /// The same values from a GGUF's metadata (`minicpm.*`). Early files lack the three factors; they were made of
    /// models that all had the same.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let keys = GgufKeys::new(file, "minicpm");
        let hidden_size = keys.unsigned("embedding_length")?;
        let num_hidden_layers = keys.unsigned("block_count")?;
        let num_attention_heads = keys.unsigned("attention.head_count")?;
        let head_dim = match keys.optional_unsigned("attention.key_length")? {
            Some(length) => length,
            None => hidden_size / num_attention_heads.max(1),
        };
        let residual_scale = keys.optional_float("residual_scale")?;
        let logit_divisor = keys.optional_float("logit_scale")?;
        Ok(Self {
            vocab_size: keys.vocab_size()?,
            hidden_size,
            intermediate_size: keys.unsigned("feed_forward_length")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: keys.optional_unsigned("attention.head_count_kv")?,
            head_dim: Some(head_dim),
            hidden_act: Activation::Silu,
            rms_norm_eps: keys.float("attention.layer_norm_rms_epsilon")?,
            max_position_embeddings: keys.unsigned("context_length")?,
            tie_word_embeddings: !keys.has_tensor("output.weight"),
            attention_bias: keys.has_tensor("blk.0.attn_q.bias"),
            use_mup: true,
            scale_emb: keys.optional_float("embedding_scale")?.unwrap_or(12.0),
            scale_depth: residual_scale.map_or(1.4, |scale| scale * root(num_hidden_layers)),
            dim_model_base: logit_divisor.map_or(256.0, |divisor| hidden_size as f64 / divisor),
            sparse_config: None,
            num_experts: keys.optional_unsigned("expert_count")?.unwrap_or(0),
            rope: keys.rope(head_dim)?,
        })
    }

    /// The same transformer in another size: the parts of VoxCPM differ in nothing else.
    #[must_use]
    pub fn resized(&self, size: &TransformerSize) -> Self {
        Self {
            hidden_size: size.hidden_size,
            intermediate_size: size.intermediate_size,
            num_hidden_layers: size.num_layers,
            num_attention_heads: size.num_heads,
            num_key_value_heads: Some(self.heads().1),
            head_dim: size.head_dim,
            ..self.clone()
        }
    }

    /// The same transformer with another number of layers.
    #[must_use]
    pub fn with_layers(&self, num_layers: usize) -> Self {
        Self {
            num_hidden_layers: num_layers,
            ..self.clone()
        }
    }

    /// Query and key/value heads: GGUF permutes their rows.
    pub fn heads(&self) -> (usize, usize) {
        (
            self.num_attention_heads,
            self.num_key_value_heads.unwrap_or(self.num_attention_heads),
        )
    }

    /// Most tokens of a sequence that attends densely throughout, where the configuration asks for sparse attention.
    ///
    /// The last token of an answer is not computed any more, so a sequence may have `dense_len` tokens.
    pub fn dense_limit(&self) -> Result<Option<usize>, LoadError> {
        let Some(sparse) = &self.sparse_config else {
            return Ok(None);
        };
        match usize::try_from(sparse.dense_len) {
            Ok(tokens) if tokens > 1 => {
                Ok(Some(tokens).filter(|tokens| *tokens < self.max_position_embeddings))
            }
            _ => Err(LoadError::config(
                "sparse_config.dense_len",
                format!(
                    "{} leaves no sequence to dense attention, and sparse attention (InfLLM v2) is not supported: \
                     remove sparse_config to attend densely at every length",
                    sparse.dense_len
                ),
            )),
        }
    }

    /// muP's factors: on the embeddings, on both branches of every layer, and on the logits.
    fn scales(&self) -> Result<Scales, LoadError> {
        if !self.use_mup {
            return Ok(Scales::default());
        }
        for (key, value) in [
            ("scale_emb", self.scale_emb),
            ("scale_depth", self.scale_depth),
            ("dim_model_base", self.dim_model_base),
        ] {
            if !(value.is_finite() && value > 0.0) {
                let reason = format!("{value} is not a positive number");
                return Err(LoadError::config(key, reason));
            }
        }
        Ok(Scales {
            embedding: self.scale_emb,
            residual: self.scale_depth / root(self.num_hidden_layers),
            logits: self.dim_model_base / self.hidden_size.max(1) as f64,
        })
    }

    /// The shared decoder with MiniCPM's options.
    pub fn decoder(&self) -> Result<DecoderConfig, LoadError> {
        if self.num_experts > 0 {
            return Err(LoadError::config(
                "num_experts",
                "mixtures of experts are not supported by this family",
            ));
        }
        let (num_heads, num_kv_heads) = self.heads();
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / num_heads.max(1));
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
            mlp_bias: false,
            tie_word_embeddings: self.tie_word_embeddings,
            max_position_embeddings: self.max_position_embeddings,
            rotary_dim: self.rope.rotary_dim(head_dim),
            rope_theta: self.rope.theta(),
            rope_scaling: self.rope.scaling(),
            scales: self.scales()?,
            zero_centred_norms: false,
            sandwich_norms: false,
        })
    }
}

/// Square root of a number of layers, at least 1.
fn root(layers: usize) -> f64 {
    (layers.max(1) as f64).sqrt()
}
