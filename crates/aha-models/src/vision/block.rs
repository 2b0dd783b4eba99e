//! The pre-norm encoder block of vision transformers (arXiv 2010.11929).

use aha_nn::linear::Linear;
use aha_nn::mlp::Activation;
use aha_nn::norm::LayerNorm;
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
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Activation of the MLP.
    pub activation: Activation,
}

impl VisionBlockConfig {
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

/// `x += attention(norm1(x)); x += mlp(norm2(x))`, everything with biases.
#[derive(Debug)]
pub struct VisionBlock {
    norm1: LayerNorm,
    norm2: LayerNorm,
    projections: Projections,
    output: Linear,
    mlp: Mlp,
    attention: RaggedAttention,
}

impl VisionBlock {
    /// Qwen's names: `norm1`, `norm2`, `attn.qkv`, `attn.proj`, `mlp.linear_fc1`, `mlp.linear_fc2`.
    pub fn load_fused(weights: &Weights, config: &VisionBlockConfig) -> WeightsResult<Self> {
        let hidden = config.hidden_size;
        let qkv = Linear::load(&weights.pp("attn.qkv"), hidden, 3 * hidden, true)?;
        Self::load(
            weights,
            config,
            Projections::Fused(qkv),
            [
                "norm1",
                "norm2",
                "attn.proj",
                "mlp.linear_fc1",
                "mlp.linear_fc2",
            ],
        )
    }

    /// SigLIP's names: `layer_norm1`, `layer_norm2`, `self_attn.{q,k,v,out}_proj`, `mlp.fc1`, `mlp.fc2`.
    pub fn load_separate(weights: &Weights, config: &VisionBlockConfig) -> WeightsResult<Self> {
        let hidden = config.hidden_size;
        let linear = |name| Linear::load(&weights.pp(name), hidden, hidden, true);
        let projections = [
            linear("self_attn.q_proj")?,
            linear("self_attn.k_proj")?,
            linear("self_attn.v_proj")?,
        ];
        Self::load(
            weights,
            config,
            Projections::Separate(projections),
            [
                "layer_norm1",
                "layer_norm2",
                "self_attn.out_proj",
                "mlp.fc1",
                "mlp.fc2",
            ],
        )
    }

    fn load(
        weights: &Weights,
        config: &VisionBlockConfig,
        projections: Projections,
        [norm1, norm2, output, fc1, fc2]: [&str; 5],
    ) -> WeightsResult<Self> {
        let hidden = config.hidden_size;
        let norm = |name| LayerNorm::load(&weights.pp(name), hidden, config.layer_norm_eps);
        Ok(Self {
            norm1: norm(norm1)?,
            norm2: norm(norm2)?,
            projections,
            output: Linear::load(&weights.pp(output), hidden, hidden, true)?,
            mlp: Mlp::load(
                &weights.pp(fc1),
                &weights.pp(fc2),
                (hidden, config.intermediate_size, hidden),
                config.activation,
            )?,
            attention: RaggedAttention::full(config.num_heads, config.head_dim()),
        })
    }

    /// `hidden` is `[tokens, hidden_size]`; tokens see each other within `bounds`, at places of `rotation` if the
    /// tower has rotary positions.
    pub fn forward(
        &self,
        hidden: &Tensor,
        rotation: Option<&Rotation>,
        bounds: &SequenceBounds,
    ) -> Result<Tensor> {
        let normed = self.norm1.forward(hidden)?;
        let [q, k, v] = match &self.projections {
            Projections::Fused(qkv) => {
                let qkv = qkv.forward(&normed)?;
                let width = qkv.dim(1)? / 3;
                let part = |index: usize| qkv.narrow(1, index * width, width);
                [part(0)?, part(1)?, part(2)?]
            }
            Projections::Separate([q, k, v]) => [
                q.forward(&normed)?,
                k.forward(&normed)?,
                v.forward(&normed)?,
            ],
        };
        let rotated = |x: Tensor| match rotation {
            None => Ok(x),
            Some(rotation) => {
                let heads = (x.dim(0)?, self.attention.num_heads, self.attention.head_dim);
                rotation.apply(&x.contiguous()?.reshape(heads)?)
            }
        };
        let attended = self
            .attention
            .forward(&rotated(q)?, &rotated(k)?, &v, bounds)?;
        let hidden = (hidden + self.output.forward(&attended)?)?;
        let fed = self.mlp.forward(&self.norm2.forward(&hidden)?)?;
        hidden + fed
    }
}
