//! The pre-norm transformer block of encoders of pictures (arXiv 2010.11929) and sound (arXiv 2212.04356).

use crate::error::LoadError;
use crate::vision::check_sizes;
use aha_engine::EncoderInput;
use aha_nn::linear::Linear;
use aha_nn::mlp::{Activation, GatedMlp, Residual};
use aha_nn::norm::{LayerNorm, RmsNorm};
use aha_nn::ragged::{RaggedAttention, SequenceBounds};
use aha_nn::rope::Rotation;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{Module, Result, Tensor};

/// Two linear layers with biases and an activation between them.
#[derive(Debug)]
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    /// Loads the layers at `fc1` `[inner, from]` and `fc2` `[to, inner]`.
    pub fn load(
        fc1: &Weights,
        fc2: &Weights,
        (from, inner, to): (usize, usize, usize),
        activation: Activation,
    ) -> WeightsResult<Self> {
        Ok(Self {
            fc1: Linear::load(fc1, from, inner, true)?,
            fc2: Linear::load(fc2, inner, to, true)?,
            activation,
        })
    }
}

impl Module for Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2
            .forward(&self.fc1.forward_activated(x, self.activation)?)
    }
}

impl Residual for Mlp {
    fn forward_added(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let inner = self.fc1.forward_activated(x, self.activation)?;
        self.fc2.forward_added(&inner, residual)
    }
}

/// Sizes of a block.
#[derive(Debug, Clone, Copy)]
pub struct EncoderBlockConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Activation of the MLP.
    pub activation: Activation,
}

impl EncoderBlockConfig {
    /// Refuses sizes that no checkpoint has.
    pub fn validate(&self) -> std::result::Result<(), LoadError> {
        check_sizes(&[
            ("hidden_size", self.hidden_size, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("the number of heads", self.num_heads, 1 << 10),
        ])?;
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            let (size, heads) = (self.hidden_size, self.num_heads);
            return Err(LoadError::config(
                "vision_config.hidden_size",
                format!("{size} values do not divide into {heads} heads"),
            ));
        }
        Ok(())
    }

    /// Values of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads.max(1)
    }
}

/// What a release calls the projections to queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub enum ProjectionNames {
    /// One matrix for all three.
    Fused(&'static str),
    /// One each.
    Separate {
        /// Queries, keys and values.
        names: [&'static str; 3],
        /// Whether the keys have a bias, which softmax does not see.
        key_bias: bool,
    },
}

/// What a release calls the parts of a block.
#[derive(Debug, Clone, Copy)]
pub struct BlockNames {
    /// The norms before attention and MLP.
    pub norms: [&'static str; 2],
    /// The projections into attention.
    pub projections: ProjectionNames,
    /// The projection out of attention.
    pub output: &'static str,
    /// The two layers of the MLP.
    pub mlp: [&'static str; 2],
}

impl BlockNames {
    /// Qwen3-VL's.
    pub const QWEN3_VL: Self = Self {
        norms: ["norm1", "norm2"],
        projections: ProjectionNames::Fused("attn.qkv"),
        output: "attn.proj",
        mlp: ["mlp.linear_fc1", "mlp.linear_fc2"],
    };
    /// CLIP's with one matrix for queries, keys and values, as DeepSeek stores it.
    pub const CLIP: Self = Self {
        norms: ["layer_norm1", "layer_norm2"],
        projections: ProjectionNames::Fused("self_attn.qkv_proj"),
        output: "self_attn.out_proj",
        mlp: ["mlp.fc1", "mlp.fc2"],
    };
    /// SigLIP's.
    pub const SIGLIP: Self = Self {
        norms: ["layer_norm1", "layer_norm2"],
        projections: ProjectionNames::Separate {
            names: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            key_bias: true,
        },
        output: "self_attn.out_proj",
        mlp: ["mlp.fc1", "mlp.fc2"],
    };
}

/// Projections to queries, keys and values, as releases store them.
#[derive(Debug)]
enum Projections {
    /// One matrix for all three.
    Fused(Linear),
    /// One each.
    Separate([Linear; 3]),
}

impl Projections {
    fn load(weights: &Weights, names: ProjectionNames, size: usize) -> WeightsResult<Self> {
        Ok(match names {
            ProjectionNames::Fused(name) => Self::fused(&weights.pp(name), size, true)?,
            ProjectionNames::Separate { names, key_bias } => {
                let [q, k, v] = names.map(|name| weights.pp(name));
                Self::Separate([
                    Linear::load(&q, size, size, true)?,
                    Linear::load(&k, size, size, key_bias)?,
                    Linear::load(&v, size, size, true)?,
                ])
            }
        })
    }

    fn fused(weights: &Weights, size: usize, bias: bool) -> WeightsResult<Self> {
        let qkv = Linear::load(weights, size, 3 * size, bias)?;
        Ok(Self::Fused(qkv))
    }

    /// Queries, keys and values, `[tokens, heads, head_dim]` each. Those of a fused matrix are views of its output.
    fn forward(&self, x: &Tensor, (heads, head_dim): (usize, usize)) -> Result<[Tensor; 3]> {
        let tokens = x.dim(0)?;
        Ok(match self {
            Self::Fused(qkv) => {
                let qkv = qkv.forward(x)?.reshape((tokens, 3, heads, head_dim))?;
                let part = |index: usize| qkv.narrow(1, index, 1)?.squeeze(1);
                [part(0)?, part(1)?, part(2)?]
            }
            Self::Separate(layers) => {
                let [q, k, v] = Linear::forward_together(layers.each_ref(), x)?;
                let part = |x: Tensor| x.reshape((tokens, heads, head_dim));
                [part(q)?, part(k)?, part(v)?]
            }
        })
    }
}

/// `x += attention(norm1(x)); x += mlp(norm2(x))`. `N` is the kind of the norms, `F` that of the MLP.
#[derive(Debug)]
pub struct EncoderBlock<N = LayerNorm, F = Mlp> {
    norms: [N; 2],
    projections: Projections,
    /// Norms over each head of queries and keys, before they are rotated.
    head_norms: Option<[RmsNorm; 2]>,
    output: Linear,
    mlp: F,
    attention: RaggedAttention,
}

impl EncoderBlock {
    /// Loads a block whose parts have these names.
    pub fn load(
        weights: &Weights,
        config: &EncoderBlockConfig,
        names: &BlockNames,
    ) -> WeightsResult<Self> {
        let hidden = config.hidden_size;
        let norm = |name| LayerNorm::load(&weights.pp(name), hidden, config.norm_eps);
        let [first, second] = names.norms;
        let [fc1, fc2] = names.mlp.map(|name| weights.pp(name));
        let sizes = (hidden, config.intermediate_size, hidden);
        Ok(Self {
            norms: [norm(first)?, norm(second)?],
            projections: Projections::load(weights, names.projections, hidden)?,
            head_norms: None,
            output: square(&weights.pp(names.output), config, true)?,
            mlp: Mlp::load(&fc1, &fc2, sizes, config.activation)?,
            attention: attention(config),
        })
    }
}

impl EncoderBlock<RmsNorm, GatedMlp> {
    /// Qwen2.5-VL's names: `norm1`, `norm2`, `attn.qkv`, `attn.proj`, `mlp.{gate,up,down}_proj`.
    pub fn load_gated(weights: &Weights, config: &EncoderBlockConfig) -> WeightsResult<Self> {
        Self::load_rms(weights, config, None, true)
    }

    /// GLM-OCR's names: the same with `attn.q_norm` and `attn.k_norm`, with or without biases.
    pub fn load_gated_with_head_norms(
        weights: &Weights,
        config: &EncoderBlockConfig,
        bias: bool,
    ) -> WeightsResult<Self> {
        let norm = |name| RmsNorm::load(&weights.pp(name), config.head_dim(), config.norm_eps);
        let head_norms = [norm("attn.q_norm")?, norm("attn.k_norm")?];
        Self::load_rms(weights, config, Some(head_norms), bias)
    }

    fn load_rms(
        weights: &Weights,
        config: &EncoderBlockConfig,
        head_norms: Option<[RmsNorm; 2]>,
        bias: bool,
    ) -> WeightsResult<Self> {
        let hidden = config.hidden_size;
        let norm = |name| RmsNorm::load(&weights.pp(name), hidden, config.norm_eps);
        Ok(Self {
            norms: [norm("norm1")?, norm("norm2")?],
            projections: Projections::fused(&weights.pp("attn.qkv"), hidden, bias)?,
            head_norms,
            output: square(&weights.pp("attn.proj"), config, bias)?,
            mlp: GatedMlp::load(
                &weights.pp("mlp"),
                hidden,
                config.intermediate_size,
                config.activation,
                bias,
            )?,
            attention: attention(config),
        })
    }
}

fn square(weights: &Weights, config: &EncoderBlockConfig, bias: bool) -> WeightsResult<Linear> {
    Linear::load(weights, config.hidden_size, config.hidden_size, bias)
}

fn attention(config: &EncoderBlockConfig) -> RaggedAttention {
    RaggedAttention::full(config.num_heads, config.head_dim())
}

impl<N: Module, F: Residual> EncoderBlock<N, F> {
    /// `hidden` is `[tokens, hidden_size]`; tokens see each other within `bounds`, at places of `rotation` if the
    /// encoder has rotary positions.
    pub fn forward(
        &self,
        hidden: &Tensor,
        rotation: Option<&Rotation>,
        bounds: &SequenceBounds,
    ) -> Result<Tensor> {
        let [norm1, norm2] = &self.norms;
        let normed = norm1.forward(hidden)?;
        let heads = (self.attention.num_heads, self.attention.head_dim);
        let [q, k, v] = self.projections.forward(&normed, heads)?;
        let (q_norm, k_norm) = match &self.head_norms {
            Some([q_norm, k_norm]) => (Some(q_norm), Some(k_norm)),
            None => (None, None),
        };
        let placed = |x: Tensor, norm: Option<&RmsNorm>| {
            let x = match norm {
                Some(norm) => norm.forward(&x)?,
                None => x,
            };
            match rotation {
                Some(rotation) => rotation.apply(&x),
                None => Ok(x),
            }
        };
        let (q, k) = (placed(q, q_norm)?, placed(k, k_norm)?);
        let attended = self.attention.forward(&q, &k, &v, bounds)?;
        let hidden = self.output.forward_added(&attended, hidden)?;
        self.mlp.forward_added(&norm2.forward(&hidden)?, &hidden)
    }
}

/// The rows of each input in `encoded` `[tokens, width]`, which holds those of all inputs end to end. They are copies:
/// who keeps one of them does not keep the memory of all.
pub fn split_tokens(encoded: &Tensor, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
    if let [_] = inputs {
        return Ok(vec![encoded.clone()]);
    }
    let mut start = 0;
    inputs
        .iter()
        .map(|input| {
            let rows = encoded.narrow(0, start, input.num_tokens)?;
            start += input.num_tokens;
            rows.copy()
        })
        .collect()
}
