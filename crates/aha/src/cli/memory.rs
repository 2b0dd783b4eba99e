//! How much memory a checkpoint needs, by what its configuration says.

use aha_models::Checkpoint;
use aha_models::checkpoint::Format;
use aha_nn::weights::gguf::Metadata;
use serde::Serialize;
use serde_json::Value;

/// Where configurations of several parts keep that of the language model, the inner ones last.
const PARTS: [&str; 5] = [
    "thinker_config",
    "llm_config",
    "language_config",
    "lm_config",
    "text_config",
];
const WINDOW: u64 = 1000;

/// The longest sequence, and what one token of it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Shape {
    pub(crate) context_length: Option<u64>,
    /// Values that the cache keeps for each token; `None` where the configuration does not tell.
    cache_values: Option<u64>,
    /// The same if each query head had a key and a value of its own: what a token is multiplied with for every token
    /// that it sees.
    attended_values: Option<u64>,
    /// Experts of a layer that a token meets, and all of them.
    experts: Option<(u64, u64)>,
}

/// Bytes for one choice of precision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Need {
    /// What `--dtype` takes; `auto` is as stored.
    pub(crate) dtype: &'static str,
    pub(crate) weight_bytes: u64,
    /// Cache of 1000 tokens: f32 where the weights are, else 16 bits a value.
    pub(crate) cache_bytes: Option<u64>,
}

impl Shape {
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        match checkpoint.format() {
            Format::Folder { config } => Self::of_config(config),
            Format::Gguf(file) => Self::of_gguf(&file.metadata).unwrap_or_default(),
        }
    }

    pub(crate) fn of_config(config: &Value) -> Self {
        let mut text = config;
        while let Some(inner) = PARTS.iter().find_map(|part| text.get(part)) {
            text = inner;
        }
        let number = |names: &[&str]| {
            let in_part = |part: &Value, name: &&str| part.get(*name)?.as_u64();
            let found = names.iter().find_map(|name| in_part(text, name));
            found.or_else(|| names.iter().find_map(|name| in_part(config, name)))
        };
        let cache_values = || {
            // Encoders keep no cache, compressed caches have a shape of their own.
            let compressed = text.get("kv_lora_rank").is_some_and(|rank| !rank.is_null());
            let kv_heads = number(&["num_key_value_heads"]).filter(|_| !compressed)?;
            let head_dim = number(&["head_dim", "kv_channels"]).or_else(|| {
                number(&["hidden_size"])?.checked_div(number(&["num_attention_heads"])?)
            })?;
            let layers = attention_layers(text, number(&["num_hidden_layers"])?);
            product(&[2, layers, kv_heads, head_dim])
        };
        let kv_heads = number(&["num_key_value_heads"]).filter(|&heads| heads > 0);
        let attended_values = || {
            let groups = number(&["num_attention_heads"])?.checked_div(kv_heads?)?;
            product(&[cache_values()?, groups])
        };
        let experts = || {
            let all = number(&["n_routed_experts", "num_experts", "num_local_experts"])?;
            Some((number(&["num_experts_per_tok"])?, all)).filter(|&(_, all)| all > 0)
        };
        // A speech model's own limit lies below that of the language model in it.
        let own_limit = config.get("lm_config").and(config.get("max_length"));
        Self {
            context_length: own_limit
                .and_then(Value::as_u64)
                .or_else(|| number(&["max_position_embeddings"])),
            cache_values: cache_values(),
            attended_values: attended_values(),
            experts: experts(),
        }
    }

    fn of_gguf(metadata: &Metadata) -> Option<Self> {
        let architecture = metadata.text("general.architecture").ok()??;
        let number = |name: &str| metadata.unsigned(&format!("{architecture}.{name}")).ok()?;
        let values = || {
            let heads = number("attention.head_count")?;
            let width = || number("embedding_length")?.checked_div(heads);
            let key = number("attention.key_length").or_else(width)?;
            let value = number("attention.value_length").unwrap_or(key);
            let name = format!("{architecture}.attention.head_count_kv");
            // Hybrid models say it for each layer.
            let (kv_heads, layers): (u64, u64) = match metadata.integers(&name) {
                Ok(Some(each)) => {
                    let each = each.iter().filter_map(|&n| u64::try_from(n).ok());
                    let each: Vec<u64> = each.filter(|&heads| heads > 0).collect();
                    (each.iter().sum(), u64::try_from(each.len()).ok()?)
                }
                _ => {
                    let layers = number("block_count")?;
                    let interval = number("full_attention_interval").filter(|&every| every > 0);
                    let layers = layers / interval.unwrap_or(1);
                    let kv_heads = product(&[layers, metadata.unsigned(&name).ok()??])?;
                    (kv_heads, layers)
                }
            };
            let both = key.checked_add(value)?;
            Some((
                product(&[kv_heads, both])?,
                product(&[layers, heads, both])?,
            ))
        };
        let experts = || {
            let all = number("expert_count").filter(|&all| all > 0)?;
            Some((number("expert_used_count")?, all))
        };
        let (cache_values, attended_values) = values().unzip();
        Some(Self {
            context_length: number("context_length"),
            cache_values,
            attended_values,
            experts: experts(),
        })
    }

    /// The shape of a model that reads a text once and keeps nothing of it.
    pub(crate) fn without_cache(self) -> Self {
        Self {
            cache_values: None,
            ..self
        }
    }

    /// Operations of attention, a product and its sum being two, when `tokens` tokens behind `before` others each see
    /// themselves and what lies before them. Zero where the configuration does not tell.
    pub(crate) fn attention_flops(&self, before: usize, tokens: usize) -> f64 {
        let (before, tokens) = (before as f64, tokens as f64);
        let pairs = tokens * before + tokens * (tokens + 1.0) / 2.0;
        2.0 * pairs * self.attended_values.unwrap_or(0) as f64
    }

    /// The part of the experts that a token meets.
    pub(crate) fn expert_share(&self) -> f64 {
        self.experts
            .map_or(1.0, |(met, all)| (met as f64 / all as f64).min(1.0))
    }

    fn cache_bytes(&self, size: u64) -> Option<u64> {
        product(&[self.cache_values?, WINDOW, size])
    }

    /// What weights of `parameters`, `stored` bytes on disk, need at each precision.
    pub(crate) fn needs(&self, parameters: u64, stored: u64, stored_size: u64) -> Vec<Need> {
        let need = |dtype, weight_bytes, size: u64| Need {
            dtype,
            weight_bytes,
            cache_bytes: self.cache_bytes(size),
        };
        vec![
            need("auto", stored, stored_size),
            need("f32", parameters.saturating_mul(4), 4),
            need("bf16", parameters.saturating_mul(2), 2),
            need("f16", parameters.saturating_mul(2), 2),
        ]
    }
}

/// Layers that keep keys and values of every token: in hybrid models not all.
fn attention_layers(text: &Value, layers: u64) -> u64 {
    let count = |found: usize| u64::try_from(found).unwrap_or(u64::MAX);
    if let Some(kinds) = text.get("layer_types").and_then(Value::as_array) {
        let kind = |kind: &&Value| matches!(kind.as_str(), Some("full_attention" | "attention"));
        return count(kinds.iter().filter(kind).count());
    }
    if let Some(indices) = text.get("full_attn_idxs").and_then(Value::as_array) {
        return count(indices.len());
    }
    match text.get("full_attention_interval").and_then(Value::as_u64) {
        Some(interval) if interval > 0 => layers / interval,
        _ => layers,
    }
}

/// `None` where a hostile configuration makes it overflow.
fn product(factors: &[u64]) -> Option<u64> {
    factors
        .iter()
        .try_fold(1u64, |product, factor| product.checked_mul(*factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn values(config: Value) -> Option<u64> {
        Shape::of_config(&config).cache_values
    }

    #[test]
    fn the_cache_is_counted_over_the_layers_that_keep_one() {
        let dense = json!({"num_hidden_layers": 28, "num_key_value_heads": 8, "head_dim": 128,
            "num_attention_heads": 16, "hidden_size": 1024, "max_position_embeddings": 40960});
        assert_eq!(values(dense.clone()), Some(2 * 28 * 8 * 128));
        let shape = Shape::of_config(&dense);
        assert_eq!(shape.context_length, Some(40960));
        // Each of 16 heads multiplies 128 values of a key and of a value: for the first token with itself, for the
        // second with two.
        let layers = f64::from(28 * 16 * 128 * 2 * 2);
        assert_eq!(shape.attention_flops(0, 1), layers);
        assert_eq!(shape.attention_flops(0, 2), 3.0 * layers);
        assert_eq!(shape.attention_flops(9, 1), 10.0 * layers);
        assert_eq!(shape.expert_share(), 1.0);
        let mixed = json!({"num_experts_per_tok": 6, "n_routed_experts": 64});
        assert_eq!(Shape::of_config(&mixed).expert_share(), 6.0 / 64.0);
        let needs = shape.needs(600, 1200, 2);
        assert_eq!(needs[0].weight_bytes, 1200);
        assert_eq!(needs[1].weight_bytes, 2400);
        assert_eq!(needs[1].cache_bytes, Some(229_376_000));
        assert_eq!(needs[2].cache_bytes, Some(114_688_000));

        // Without head_dim it is the share of a head.
        let shared = json!({"num_hidden_layers": 3, "num_key_value_heads": 2,
            "num_attention_heads": 4, "hidden_size": 64});
        assert_eq!(values(shared), Some(2 * 3 * 2 * 16));
        let hybrid = json!({"text_config": {"num_hidden_layers": 3, "num_key_value_heads": 1,
            "head_dim": 8, "layer_types": ["conv", "full_attention", "linear_attention"]}});
        assert_eq!(values(hybrid), Some(2 * 8));
        let interval = json!({"num_hidden_layers": 8, "num_key_value_heads": 1, "head_dim": 8,
            "full_attention_interval": 4});
        assert_eq!(values(interval), Some(2 * 2 * 8));
        let nested = json!({"thinker_config": {"text_config": {"num_hidden_layers": 1,
            "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 7}}});
        assert_eq!(values(nested.clone()), Some(8));
        assert_eq!(Shape::of_config(&nested).context_length, Some(7));
        let speech = json!({"max_length": 4096, "lm_config": {"max_position_embeddings": 32768}});
        assert_eq!(Shape::of_config(&speech).context_length, Some(4096));
    }

    #[test]
    fn what_the_configuration_does_not_tell_is_not_guessed() {
        let encoder = json!({"num_hidden_layers": 6, "num_attention_heads": 12,
            "hidden_size": 384, "max_position_embeddings": 512});
        assert_eq!(values(encoder), None);
        let latent = json!({"num_hidden_layers": 6, "num_key_value_heads": 4, "head_dim": 8,
            "kv_lora_rank": 512});
        assert_eq!(values(latent), None);
        let hostile = json!({"num_hidden_layers": u64::MAX, "num_key_value_heads": 4,
            "head_dim": 8});
        assert_eq!(values(hostile), None);
        for odd in [
            json!({}),
            json!([]),
            json!({"hidden_size": "x", "num_attention_heads": 0}),
        ] {
            assert_eq!(Shape::of_config(&odd), Shape::default());
        }
    }
}
