//! The language model of both releases: DeepSeek-V2's mixture of experts (arXiv 2405.04434) with plain attention.

use crate::checkpoint::Checkpoint;
use crate::config::RopeKeys;
use crate::decoder::{Decoder, DecoderConfig, FeedForward, Scales};
use crate::error::LoadError;
use aha_nn::attention::{AttentionConfig, SelfAttention};
use aha_nn::mlp::Activation;
use aha_nn::moe::{MoeConfig, MoeMlp};
use aha_nn::weights::Weights;
use serde::Deserialize;

/// Keys of `language_config`; those that releases leave out have the defaults of their code.
#[derive(Debug, Clone, Deserialize)]
pub struct LanguageConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    max_position_embeddings: usize,
    #[serde(default = "norm_eps")]
    rms_norm_eps: f64,
    #[serde(default = "silu")]
    hidden_act: Activation,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    /// Layers in front without experts.
    first_k_dense_replace: usize,
    moe_intermediate_size: usize,
    n_routed_experts: usize,
    num_experts_per_tok: usize,
    n_shared_experts: Option<usize>,
    #[serde(default)]
    norm_topk_prob: bool,
    #[serde(default = "one")]
    routed_scaling_factor: f64,
    #[serde(default)]
    use_mla: bool,
    topk_method: Option<String>,
    scoring_func: Option<String>,
    moe_layer_freq: Option<usize>,
    #[serde(flatten)]
    rope: RopeKeys,
}

fn norm_eps() -> f64 {
    1e-6
}

fn silu() -> Activation {
    Activation::Silu
}

fn one() -> f64 {
    1.0
}

/// Where releases keep the language model's keys; they repeat them at the top level.
#[derive(Debug, Deserialize)]
struct Nested {
    language_config: Option<LanguageConfig>,
}

impl LanguageConfig {
    /// Reads the keys of a checkpoint.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        let nested: Nested = checkpoint.config_keys()?;
        nested
            .language_config
            .map_or_else(|| checkpoint.config_keys(), Ok)
    }

    /// Refuses what DeepSeek's larger models have and these releases do not.
    fn validate(&self) -> Result<(), LoadError> {
        let only = |key: &str, found: &Option<String>, known: &str| match found.as_deref() {
            Some(found) if found != known => Err(LoadError::config(
                key,
                format!("`{found}` is not supported; the releases have `{known}`"),
            )),
            _ => Ok(()),
        };
        only("topk_method", &self.topk_method, "greedy")?;
        only("scoring_func", &self.scoring_func, "softmax")?;
        let wrong = |key: &str, reason: String| Err(LoadError::config(key, reason));
        if self.use_mla {
            let reason = "latent attention is not supported; the releases have none";
            return wrong("use_mla", reason.to_owned());
        }
        if let Some(step) = self.moe_layer_freq.filter(|step| *step != 1) {
            return wrong("moe_layer_freq", format!("{step} is not supported"));
        }
        for (key, value, most) in [
            ("moe_intermediate_size", self.moe_intermediate_size, 1 << 20),
            ("n_routed_experts", self.n_routed_experts, 1 << 12),
            (
                "num_experts_per_tok",
                self.num_experts_per_tok,
                self.n_routed_experts,
            ),
        ] {
            if value == 0 || value > most {
                return wrong(key, format!("{value} is not between 1 and {most}"));
            }
        }
        let heads = self.num_attention_heads;
        if heads == 0 || !self.hidden_size.is_multiple_of(heads) {
            let reason = format!(
                "{} values do not divide into {heads} heads",
                self.hidden_size
            );
            return wrong("num_attention_heads", reason);
        }
        match self.n_shared_experts {
            Some(shared) if shared > 1 << 8 => {
                wrong("n_shared_experts", format!("{shared} is more than 256"))
            }
            _ => Ok(()),
        }
    }

    fn decoder(&self) -> DecoderConfig {
        let head_dim = self.hidden_size / self.num_attention_heads;
        DecoderConfig {
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
            scales: Scales::default(),
            zero_centred_norms: false,
            sandwich_norms: false,
        }
    }

    fn experts(&self) -> MoeConfig {
        MoeConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.moe_intermediate_size,
            num_experts: self.n_routed_experts,
            experts_per_token: self.num_experts_per_tok,
            shared_intermediate_size: self.n_shared_experts.unwrap_or(0)
                * self.moe_intermediate_size,
            normalized: self.norm_topk_prob,
            scale: self.routed_scaling_factor,
            activation: self.hidden_act,
        }
    }

    /// Loads the tensors of the language model alone.
    pub fn load(&self, weights: &Weights) -> Result<Decoder, LoadError> {
        self.validate()?;
        let (config, experts) = (self.decoder(), self.experts());
        let model = weights.pp("model");
        Decoder::load_layers(
            &model,
            &weights.pp("lm_head"),
            config.clone(),
            |layer, index| {
                let attention = SelfAttention::load(&layer.pp("self_attn"), &config.attention)?;
                let mlp = if index < self.first_k_dense_replace {
                    FeedForward::dense(layer, &config)?
                } else {
                    FeedForward::Experts(MoeMlp::load(&layer.pp("mlp"), &experts)?)
                };
                Ok((Box::new(attention), mlp))
            },
        )
    }
}
