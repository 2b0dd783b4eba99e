//! What the config structs of the families share.

use aha_nn::rope::{RopeScaling, RopeType};
use aha_nn::weights::gguf::{GgufFile, Metadata, Value};
use serde::Deserialize;

use crate::error::LoadError;

/// Where configs keep their rotary settings: `rope_theta` and `rope_scaling` (transformers 4), or both inside
/// `rope_parameters` (transformers 5).
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RopeKeys {
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeScaling>,
    rope_parameters: Option<RopeScaling>,
    partial_rotary_factor: Option<f64>,
}

impl RopeKeys {
    /// Base of the frequencies; 10000 where no key names it, as in the reference.
    pub fn theta(&self) -> f64 {
        self.theta_or(10_000.0)
    }

    /// Base of the frequencies, of a family whose reference has a default of its own.
    pub fn theta_or(&self, default: f64) -> f64 {
        let nested =
            |scaling: &Option<RopeScaling>| scaling.as_ref().and_then(|scaling| scaling.rope_theta);
        self.rope_theta
            .or_else(|| nested(&self.rope_parameters))
            .or_else(|| nested(&self.rope_scaling))
            .unwrap_or(default)
    }

    /// Values of a head that are rotated: all of them, or the share that `partial_rotary_factor` says.
    pub fn rotary_dim(&self, head_dim: usize) -> usize {
        self.rotary_dim_or(head_dim, 1.0)
    }

    /// Values of a head that are rotated, of a family whose reference has a share of its own by default.
    pub fn rotary_dim_or(&self, head_dim: usize, default: f64) -> usize {
        let nested = |scaling: &Option<RopeScaling>| {
            scaling
                .as_ref()
                .and_then(|scaling| scaling.partial_rotary_factor)
        };
        let factor = self
            .partial_rotary_factor
            .or_else(|| nested(&self.rope_parameters));
        (head_dim as f64 * factor.unwrap_or(default)) as usize
    }

    /// The scaling, unless it is the plain one.
    pub fn scaling(&self) -> Option<RopeScaling> {
        self.rope_scaling
            .clone()
            .or_else(|| self.rope_parameters.clone())
            .filter(|scaling| scaling.kind() != RopeType::Default || scaling.sections().is_some())
    }
}

/// Divisors of the rotary frequencies in a GGUF: for the trained context, and for a longer one.
const LONGROPE_FACTORS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

/// Hyper-parameters of a GGUF, under the prefix of its architecture.
#[derive(Debug, Clone, Copy)]
pub struct GgufKeys<'a> {
    file: &'a GgufFile,
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl<'a> GgufKeys<'a> {
    /// Keys `<architecture>.*` of `file`.
    pub fn new(file: &'a GgufFile, architecture: &'a str) -> Self {
        Self {
            file,
            metadata: &file.metadata,
            architecture,
        }
    }

    /// Whether the file holds a tensor: GGUF has no keys for tied embeddings and biases, it has or lacks them.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.file.tensor(name).is_some()
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// An optional whole number.
    pub fn optional_unsigned(&self, name: &str) -> Result<Option<usize>, LoadError> {
        let key = self.key(name);
        match self.metadata.unsigned(&key)? {
            None => Ok(None),
            Some(value) => usize::try_from(value)
                .map(Some)
                .map_err(|_| LoadError::config(key, format!("{value} is too large"))),
        }
    }

    /// A required whole number.
    pub fn unsigned(&self, name: &str) -> Result<usize, LoadError> {
        self.optional_unsigned(name)?
            .ok_or_else(|| LoadError::config(self.key(name), "the GGUF lacks it"))
    }

    /// An optional number.
    pub fn optional_float(&self, name: &str) -> Result<Option<f64>, LoadError> {
        Ok(self.metadata.float(&self.key(name))?)
    }

    /// An optional list of whole numbers, one a layer.
    pub fn optional_integers(&self, name: &str) -> Result<Option<Vec<i64>>, LoadError> {
        let key = self.key(name);
        match self.metadata.get(&key) {
            Some(Value::Integers(list)) => Ok(Some(list.clone())),
            _ => Ok(None),
        }
    }

    /// A required number.
    pub fn float(&self, name: &str) -> Result<f64, LoadError> {
        self.optional_float(name)?
            .ok_or_else(|| LoadError::config(self.key(name), "the GGUF lacks it"))
    }

    /// The values of a tensor that is a hyper-parameter.
    fn tensor_values(&self, name: &str) -> Result<Option<Vec<f64>>, LoadError> {
        let Some(tensor) = self.file.catalog().load(name) else {
            return Ok(None);
        };
        let values = tensor.to_f32()?;
        Ok(Some(values.into_iter().map(f64::from).collect()))
    }

    /// Rows of the embedding: `<architecture>.vocab_size`, else the number of tokens.
    pub fn vocab_size(&self) -> Result<usize, LoadError> {
        if let Some(size) = self.optional_unsigned("vocab_size")? {
            return Ok(size);
        }
        let tokens = self.metadata.texts("tokenizer.ggml.tokens")?;
        tokens
            .map(<[String]>::len)
            .ok_or_else(|| LoadError::config("tokenizer.ggml.tokens", "the GGUF lacks it"))
    }

    /// Rotary base, share and scaling for heads of `head_dim` values.
    pub fn rope(&self, head_dim: usize) -> Result<RopeKeys, LoadError> {
        let rope_theta = self.metadata.float(&self.key("rope.freq_base"))?;
        let kind = self.metadata.text(&self.key("rope.scaling.type"))?;
        let rope_scaling = match kind {
            // Converters do not always name the kind that the divisors are of.
            None | Some("none" | "longrope") if self.has_tensor(LONGROPE_FACTORS[0]) => {
                let [short_factor, long_factor] =
                    LONGROPE_FACTORS.map(|name| self.tensor_values(name));
                Some(RopeScaling {
                    rope_type: Some(RopeType::LongRope),
                    short_factor: short_factor?,
                    long_factor: long_factor?,
                    attention_factor: self.optional_float("rope.scaling.attn_factor")?,
                    original_max_position_embeddings: self
                        .optional_unsigned("rope.scaling.original_context_length")?,
                    ..RopeScaling::default()
                })
            }
            None | Some("none") => None,
            Some(kind @ ("linear" | "yarn")) => Some(RopeScaling {
                rope_type: Some(if kind == "yarn" {
                    RopeType::Yarn
                } else {
                    RopeType::Linear
                }),
                factor: self.metadata.float(&self.key("rope.scaling.factor"))?,
                original_max_position_embeddings: self
                    .optional_unsigned("rope.scaling.original_context_length")?,
                ..RopeScaling::default()
            }),
            Some(other) => {
                let reason = format!(
                    "`{other}` is not one of none, linear, yarn, or longrope with its divisors"
                );
                return Err(LoadError::config(self.key("rope.scaling.type"), reason));
            }
        };
        let rotated = self.optional_unsigned("rope.dimension_count")?;
        Ok(RopeKeys {
            rope_theta,
            rope_scaling,
            rope_parameters: None,
            partial_rotary_factor: rotated
                .filter(|rotated| *rotated != head_dim)
                .map(|rotated| rotated as f64 / head_dim.max(1) as f64),
        })
    }
}
