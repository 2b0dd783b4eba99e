//! The encoder of SenseVoice: self-attention with memory (SAN-M, arXiv 2006.01713).

use super::config::{ENCODER_NORM_EPS, EncoderConfig};
use crate::audio::sinusoids;
use crate::encoder::Mlp;
use aha_nn::conv::{Conv1d, Conv1dConfig};
use aha_nn::linear::Linear;
use aha_nn::mlp::Activation;
use aha_nn::norm::LayerNorm;
use aha_nn::ragged::{RaggedAttention, SequenceBounds};
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{Module, Result, Tensor};

/// Attention, to which a filter along time adds what each value's neighbours are (FSMN).
#[derive(Debug)]
struct MemoryAttention {
    projections: Linear,
    output: Linear,
    memory: Conv1d,
    attention: RaggedAttention,
}

impl MemoryAttention {
    fn load(weights: &Weights, from: usize, config: &EncoderConfig) -> WeightsResult<Self> {
        let size = config.output_size;
        let memory = Conv1dConfig {
            padding: config.kernel_size / 2,
            groups: size,
            ..Conv1dConfig::default()
        };
        Ok(Self {
            projections: Linear::load(&weights.pp("linear_q_k_v"), from, 3 * size, true)?,
            output: Linear::load(&weights.pp("linear_out"), size, size, true)?,
            memory: Conv1d::load(
                &weights.pp("fsmn_block"),
                size,
                size,
                config.kernel_size,
                memory,
                false,
            )?,
            attention: RaggedAttention::full(config.attention_heads, size / config.attention_heads),
        })
    }

    fn forward(&self, x: &Tensor, bounds: &SequenceBounds) -> Result<Tensor> {
        let joined = self.projections.forward(x)?;
        let width = joined.dim(1)? / 3;
        let part = |index: usize| joined.narrow(1, index * width, width);
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let attended = self.attention.forward(&q, &k, &v, bounds)?;
        // The filter sees all heads' values at once, and no other recording's.
        let values = v.contiguous()?;
        let filtered = bounds
            .ranges()
            .map(|range| {
                let own = values.narrow(0, range.start, range.len())?;
                self.memory.forward_rows(&own)
            })
            .collect::<Result<Vec<_>>>()?;
        let memory = (Tensor::cat(&filtered, 0)? + values)?;
        self.output.forward(&attended)? + memory
    }
}

/// `x += attention(norm1(x)); x += mlp(norm2(x))`; the first block, which changes the width, has no first residual.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attention: MemoryAttention,
    norm2: LayerNorm,
    mlp: Mlp,
    keeps_width: bool,
}

impl Block {
    fn load(weights: &Weights, from: usize, config: &EncoderConfig) -> WeightsResult<Self> {
        let size = config.output_size;
        Ok(Self {
            norm1: LayerNorm::load(&weights.pp("norm1"), from, ENCODER_NORM_EPS)?,
            attention: MemoryAttention::load(&weights.pp("self_attn"), from, config)?,
            norm2: LayerNorm::load(&weights.pp("norm2"), size, ENCODER_NORM_EPS)?,
            mlp: Mlp::load(
                &weights.pp("feed_forward.w_1"),
                &weights.pp("feed_forward.w_2"),
                (size, config.linear_units, size),
                Activation::Relu,
            )?,
            keeps_width: from == size,
        })
    }

    fn forward(&self, x: &Tensor, bounds: &SequenceBounds) -> Result<Tensor> {
        let mixed = self.attention.forward(&self.norm1.forward(x)?, bounds)?;
        let x = if self.keeps_width {
            (x + mixed)?
        } else {
            mixed
        };
        let fed = self.mlp.forward(&self.norm2.forward(&x)?)?;
        x + fed
    }
}

/// Stacked filter banks to states of the same length.
#[derive(Debug)]
pub(super) struct SanmEncoder {
    first: Block,
    blocks: Vec<Block>,
    after_norm: LayerNorm,
    tp_blocks: Vec<Block>,
    tp_norm: LayerNorm,
    scale: f64,
}

impl SanmEncoder {
    /// For frames of `width` values.
    pub(super) fn load(
        weights: &Weights,
        width: usize,
        config: &EncoderConfig,
    ) -> WeightsResult<Self> {
        let size = config.output_size;
        let stack = |name: &str, count: usize| {
            (0..count)
                .map(|index| Block::load(&weights.pp(format_args!("{name}.{index}")), size, config))
                .collect::<WeightsResult<Vec<_>>>()
        };
        let norm = |name| LayerNorm::load(&weights.pp(name), size, ENCODER_NORM_EPS);
        Ok(Self {
            first: Block::load(&weights.pp("encoders0.0"), width, config)?,
            blocks: stack("encoders", config.num_blocks - 1)?,
            after_norm: norm("after_norm")?,
            tp_blocks: stack("tp_encoders", config.tp_blocks)?,
            tp_norm: norm("tp_norm")?,
            scale: (size as f64).sqrt(),
        })
    }

    /// `features` are `[frames, width]`, the recordings end to end.
    pub(super) fn forward(
        &self,
        features: &Tensor,
        bounds: &SequenceBounds,
        visit: &mut impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let mut hidden = ((features * self.scale)? + positions(features, bounds)?)?;
        hidden = self.first.forward(&hidden, bounds)?;
        visit("encoders0", &hidden);
        for block in &self.blocks {
            hidden = block.forward(&hidden, bounds)?;
        }
        hidden = self.after_norm.forward(&hidden)?;
        visit("after_norm", &hidden);
        for block in &self.tp_blocks {
            hidden = block.forward(&hidden, bounds)?;
        }
        hidden = self.tp_norm.forward(&hidden)?;
        visit("tp_norm", &hidden);
        Ok(hidden)
    }
}

/// Positions of each recording's frames, counted from 1, in the width of the features.
fn positions(features: &Tensor, bounds: &SequenceBounds) -> Result<Tensor> {
    let longest = bounds.ranges().map(|range| range.len()).max().unwrap_or(0);
    let (width, dtype, device) = (features.dim(1)?, features.dtype(), features.device());
    let table = sinusoids(1, longest, width, dtype, device)?;
    let own = bounds
        .ranges()
        .map(|range| table.narrow(0, 0, range.len()))
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&own, 0)
}
