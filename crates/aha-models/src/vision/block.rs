//! The pre-norm encoder block of vision transformers (arXiv 2010.11929).

use crate::error::LoadError;
use aha_nn::linear::Linear;
use aha_nn::mlp::{Activation, GatedMlp};
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
            .forward(&self.activation.forward(&self.fc1.forward(x)?)?)
    }
}

/// Sizes of a block.
#[derive(Debug, Clone, Copy)]
pub struct VisionBlockConfig {
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

/// Refuses sizes of `vision_config` that no checkpoint has: of each key the value and the most that it may be.
pub fn check_sizes(sizes: &[(&str, usize, usize)]) -> std::result::Result<(), LoadError> {
    for (key, value, most) in sizes {
        if value == &0 || value > most {
            let reason = format!("{value} is not between 1 and {most}");
            return Err(LoadError::config(format!("vision_config.{key}"), reason));
        }
    }
    Ok(())
}

impl VisionBlockConfig {
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

/// Projections to queries, keys and values, as releases store them.
#[derive(Debug)]
enum Projections {
    /// One matrix for all three.
    Fused(Linear),
    /// One each.
    Separate([Linear; 3]),
}

impl Projections {
    fn fused(weights: &Weights, hidden_size: usize, bias: bool) -> WeightsResult<Self> {
        let qkv = Linear::load(weights, hidden_size, 3 * hidden_size, bias)?;
        Ok(Self::Fused(qkv))
    }

    /// Queries, keys and values, `[tokens, hidden_size]` each.
    fn forward(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        Ok(match self {
            Self::Fused(qkv) => {
                let qkv = qkv.forward(x)?;
                let width = qkv.dim(1)? / 3;
                let part = |index: usize| qkv.narrow(1, index * width, width);
                [part(0)?, part(1)?, part(2)?]
            }
            Self::Separate([q, k, v]) => [q.forward(x)?, k.forward(x)?, v.forward(x)?],
        })
    }
}

/// `x += attention(norm1(x)); x += mlp(norm2(x))`. `N` is the kind of the norms, `F` that of the MLP.
#[derive(Debug)]
pub struct VisionBlock<N = LayerNorm, F = Mlp> {
    norms: [N; 2],
    projections: Projections,
    /// Norms over each head of queries and keys, before they are rotated.
    head_norms: Option<[RmsNorm; 2]>,
    output: Linear,
    mlp: F,
    attention: RaggedAttention,
}

impl VisionBlock {
    /// Qwen3-VL's names: `norm1`, `norm2`, `attn.qkv`, `attn.proj`, `mlp.linear_fc1`, `mlp.linear_fc2`.
    pub fn load_fused(weights: &Weights, config: &VisionBlockConfig) -> WeightsResult<Self> {
        Ok(Self {
            norms: layer_norms(weights, config, ["norm1", "norm2"])?,
            projections: Projections::fused(&weights.pp("attn.qkv"), config.hidden_size, true)?,
            head_norms: None,
            output: square(&weights.pp("attn.proj"), config, true)?,
            mlp: plain_mlp(weights, config, ["mlp.linear_fc1", "mlp.linear_fc2"])?,
            attention: attention(config),
        })
    }

    /// SigLIP's names: `layer_norm1`, `layer_norm2`, `self_attn.{q,k,v,out}_proj`, `mlp.fc1`, `mlp.fc2`.
    pub fn load_separate(weights: &Weights, config: &VisionBlockConfig) -> WeightsResult<Self> {
        let linear = |name| square(&weights.pp(name), config, true);
        Ok(Self {
            norms: layer_norms(weights, config, ["layer_norm1", "layer_norm2"])?,
            projections: Projections::Separate([
                linear("self_attn.q_proj")?,
                linear("self_attn.k_proj")?,
                linear("self_attn.v_proj")?,
            ]),
            head_norms: None,
            output: linear("self_attn.out_proj")?,
            mlp: plain_mlp(weights, config, ["mlp.fc1", "mlp.fc2"])?,
            attention: attention(config),
        })
    }
}

impl VisionBlock<RmsNorm, GatedMlp> {
    /// Qwen2.5-VL's names: `norm1`, `norm2`, `attn.qkv`, `attn.proj`, `mlp.{gate,up,down}_proj`.
    pub fn load_gated(weights: &Weights, config: &VisionBlockConfig) -> WeightsResult<Self> {
        Self::load_rms(weights, config, None, true)
    }

    /// GLM-OCR's names: the same with `attn.q_norm` and `attn.k_norm`, with or without biases.
    pub fn load_gated_with_head_norms(
        weights: &Weights,
        config: &VisionBlockConfig,
        bias: bool,
    ) -> WeightsResult<Self> {
        let norm = |name| RmsNorm::load(&weights.pp(name), config.head_dim(), config.norm_eps);
        let head_norms = [norm("attn.q_norm")?, norm("attn.k_norm")?];
        Self::load_rms(weights, config, Some(head_norms), bias)
    }

    fn load_rms(
        weights: &Weights,
        config: &VisionBlockConfig,
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

fn layer_norms(
    weights: &Weights,
    config: &VisionBlockConfig,
    [first, second]: [&str; 2],
) -> WeightsResult<[LayerNorm; 2]> {
    let norm = |name| LayerNorm::load(&weights.pp(name), config.hidden_size, config.norm_eps);
    Ok([norm(first)?, norm(second)?])
}

fn square(weights: &Weights, config: &VisionBlockConfig, bias: bool) -> WeightsResult<Linear> {
    Linear::load(weights, config.hidden_size, config.hidden_size, bias)
}

fn plain_mlp(
    weights: &Weights,
    config: &VisionBlockConfig,
    [fc1, fc2]: [&str; 2],
) -> WeightsResult<Mlp> {
    let hidden = config.hidden_size;
    Mlp::load(
        &weights.pp(fc1),
        &weights.pp(fc2),
        (hidden, config.intermediate_size, hidden),
        config.activation,
    )
}

fn attention(config: &VisionBlockConfig) -> RaggedAttention {
    RaggedAttention::full(config.num_heads, config.head_dim())
}

impl<N: Module, F: Module> VisionBlock<N, F> {
    /// `hidden` is `[tokens, hidden_size]`; tokens see each other within `bounds`, at places of `rotation` if the
    /// tower has rotary positions.
    pub fn forward(
        &self,
        hidden: &Tensor,
        rotation: Option<&Rotation>,
        bounds: &SequenceBounds,
    ) -> Result<Tensor> {
        let [norm1, norm2] = &self.norms;
        let [q, k, v] = self.projections.forward(&norm1.forward(hidden)?)?;
        let (q_norm, k_norm) = match &self.head_norms {
            Some([q_norm, k_norm]) => (Some(q_norm), Some(k_norm)),
            None => (None, None),
        };
        let placed = |x: Tensor, norm: Option<&RmsNorm>| {
            if norm.is_none() && rotation.is_none() {
                return Ok(x);
            }
            let heads = (x.dim(0)?, self.attention.num_heads, self.attention.head_dim);
            let x = norm.forward(&x.contiguous()?.reshape(heads)?)?;
            match rotation {
                Some(rotation) => rotation.apply(&x),
                None => Ok(x),
            }
        };
        let (q, k) = (placed(q, q_norm)?, placed(k, k_norm)?);
        let attended = self.attention.forward(&q, &k, &v, bounds)?;
        let hidden = (hidden + self.output.forward(&attended)?)?;
        let fed = self.mlp.forward(&norm2.forward(&hidden)?)?;
        hidden + fed
    }
}
