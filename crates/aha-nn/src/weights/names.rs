//! From the names that models ask for to the names in a file.

use super::error::Result;
use super::gguf::Metadata;

/// What must be done to a tensor besides finding it under another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transform {
    /// Nothing.
    #[default]
    None,
    /// Rows lie in the order of interleaved rotary embeddings, `[heads, head_dim / 2, 2]`; models want the
    /// half-split order, `[heads, 2, head_dim / 2]`. Only rows move, so quantised tensors and biases do too.
    UnpermuteRope {
        /// Attention heads that the rows divide into.
        heads: usize,
    },
}

/// One rule: modules whose path matches a pattern.
#[derive(Debug, Clone)]
struct Rule {
    pattern: String,
    target: String,
    transform: Transform,
}

/// Renames the paths that models use (those of the Hugging Face releases) to the names in a file.
///
/// A rule maps the path of a module: `model.layers.{i}.mlp.up_proj` to `blk.{i}.ffn_up`. `{i}` stands for
/// one number; the last part of a tensor's name (`weight`, `bias`) stays. The first matching rule counts;
/// names that no rule matches stay as they are, so the empty map is the identity.
#[derive(Debug, Clone, Default)]
pub struct NameMap {
    rules: Vec<Rule>,
}

const DECODER_RULES: [(&str, &str); 14] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
    (
        "model.layers.{i}.post_attention_layernorm",
        "blk.{i}.ffn_norm",
    ),
    (Q_PROJ, "blk.{i}.attn_q"),
    (K_PROJ, "blk.{i}.attn_k"),
    ("model.layers.{i}.self_attn.v_proj", "blk.{i}.attn_v"),
    ("model.layers.{i}.self_attn.o_proj", "blk.{i}.attn_output"),
    ("model.layers.{i}.self_attn.q_norm", "blk.{i}.attn_q_norm"),
    ("model.layers.{i}.self_attn.k_norm", "blk.{i}.attn_k_norm"),
    ("model.layers.{i}.mlp.gate_proj", "blk.{i}.ffn_gate"),
    ("model.layers.{i}.mlp.up_proj", "blk.{i}.ffn_up"),
    ("model.layers.{i}.mlp.down_proj", "blk.{i}.ffn_down"),
];
const Q_PROJ: &str = "model.layers.{i}.self_attn.q_proj";
const K_PROJ: &str = "model.layers.{i}.self_attn.k_proj";

impl NameMap {
    /// No rules: files that use the models' own names.
    pub fn identity() -> Self {
        Self::default()
    }

    /// The GGUF names of a pre-norm decoder with gated MLP: what Llama, Qwen and their relatives share.
    pub fn decoder() -> Self {
        DECODER_RULES
            .into_iter()
            .fold(Self::identity(), |map, (pattern, target)| {
                map.with_rule(pattern, target)
            })
    }

    /// The map for a GGUF file of a plain decoder, from its architecture: `llama` and `minicpm` files have their
    /// query and key rows permuted for interleaved rotary embeddings, others have not.
    ///
    /// # Errors
    /// [`super::WeightsError`] when the keys that tell are missing or of another type.
    pub fn for_gguf(metadata: &Metadata) -> Result<Self> {
        let map = Self::decoder();
        let Some(architecture @ ("llama" | "minicpm")) = metadata.text("general.architecture")?
        else {
            return Ok(map);
        };
        let heads = |key: &str| -> Result<Option<usize>> {
            let heads = metadata.unsigned(key)?;
            heads
                .map(|heads| {
                    usize::try_from(heads).map_err(|_| {
                        metadata.malformed(key, format!("{heads} is no number of heads"))
                    })
                })
                .transpose()
        };
        let key = format!("{architecture}.attention.head_count");
        let q_heads = heads(&key)?.ok_or_else(|| {
            metadata.malformed(
                &key,
                "is missing; query rows cannot be put in order without it",
            )
        })?;
        let kv_heads = heads(&format!("{key}_kv"))?.unwrap_or(q_heads);
        Ok(map.with_rope_unpermuted(q_heads, kv_heads))
    }

    /// Adds a rule after the others: modules at `pattern` lie at `target`.
    #[must_use]
    pub fn with_rule(self, pattern: &str, target: &str) -> Self {
        self.with_transformed(pattern, target, Transform::None)
    }

    /// Adds all rules of another map after the others.
    #[must_use]
    pub fn with_rules_of(mut self, other: Self) -> Self {
        self.rules.extend(other.rules);
        self
    }

    /// The same map for the names of a release, to which `release` maps the common ones that this map is for.
    #[must_use]
    pub fn for_release(mut self, release: &Self) -> Self {
        for rule in &mut self.rules {
            if let Some(own) = release.rules.iter().find(|own| own.pattern == rule.pattern) {
                rule.pattern.clone_from(&own.target);
            }
        }
        self
    }

    /// Adds a rule after the others, with a transform.
    #[must_use]
    pub fn with_transformed(mut self, pattern: &str, target: &str, transform: Transform) -> Self {
        self.rules.push(Rule {
            pattern: pattern.to_owned(),
            target: target.to_owned(),
            transform,
        });
        self
    }

    /// Undoes the row permutation of query and key projections, weights and biases.
    #[must_use]
    pub fn with_rope_unpermuted(mut self, q_heads: usize, kv_heads: usize) -> Self {
        for rule in &mut self.rules {
            if rule.pattern == Q_PROJ {
                rule.transform = Transform::UnpermuteRope { heads: q_heads };
            } else if rule.pattern == K_PROJ {
                rule.transform = Transform::UnpermuteRope { heads: kv_heads };
            }
        }
        self
    }

    /// The name in the file and what to do with the tensor.
    pub fn resolve(&self, name: &str) -> (String, Transform) {
        let Some((module, parameter)) = name.rsplit_once('.') else {
            return (name.to_owned(), Transform::None);
        };
        for rule in &self.rules {
            if let Some(numbers) = match_path(&rule.pattern, module) {
                let mut target = rule.target.clone();
                for number in numbers {
                    target = target.replacen(PLACEHOLDER, number, 1);
                }
                return (format!("{target}.{parameter}"), rule.transform);
            }
        }
        (name.to_owned(), Transform::None)
    }
}

const PLACEHOLDER: &str = "{i}";

/// The numbers that the placeholders of `pattern` stand for in `path`, when it matches.
fn match_path<'a>(pattern: &str, path: &'a str) -> Option<Vec<&'a str>> {
    let mut numbers = Vec::new();
    let mut parts = path.split('.');
    for wanted in pattern.split('.') {
        let part = parts.next()?;
        if wanted == PLACEHOLDER && !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            numbers.push(part);
        } else if wanted != part {
            return None;
        }
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoder_names_become_those_of_gguf() {
        let map = NameMap::decoder().with_rope_unpermuted(9, 3);
        for (name, wanted) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("lm_head.weight", "output.weight"),
            (
                "model.layers.0.input_layernorm.weight",
                "blk.0.attn_norm.weight",
            ),
            (
                "model.layers.11.post_attention_layernorm.weight",
                "blk.11.ffn_norm.weight",
            ),
            (
                "model.layers.3.self_attn.o_proj.weight",
                "blk.3.attn_output.weight",
            ),
            (
                "model.layers.3.self_attn.k_norm.weight",
                "blk.3.attn_k_norm.weight",
            ),
            ("model.layers.3.mlp.down_proj.bias", "blk.3.ffn_down.bias"),
            (
                "model.layers.x.mlp.down_proj.bias",
                "model.layers.x.mlp.down_proj.bias",
            ),
            (
                "model.layers.3.mlp.down_proj.extra.bias",
                "model.layers.3.mlp.down_proj.extra.bias",
            ),
            ("scale", "scale"),
        ] {
            assert_eq!(map.resolve(name), (wanted.to_owned(), Transform::None));
        }
        assert_eq!(
            map.resolve("model.layers.2.self_attn.q_proj.weight"),
            (
                "blk.2.attn_q.weight".to_owned(),
                Transform::UnpermuteRope { heads: 9 }
            )
        );
        assert_eq!(
            map.resolve("model.layers.2.self_attn.k_proj.bias"),
            (
                "blk.2.attn_k.bias".to_owned(),
                Transform::UnpermuteRope { heads: 3 }
            )
        );
    }

    #[test]
    fn families_add_rules_of_their_own() {
        let map =
            NameMap::decoder().with_rule("model.layers.{i}.experts.{i}.up", "blk.{i}.ffn_up.{i}");
        assert_eq!(
            map.resolve("model.layers.4.experts.17.up.weight").0,
            "blk.4.ffn_up.17.weight"
        );
    }
}
