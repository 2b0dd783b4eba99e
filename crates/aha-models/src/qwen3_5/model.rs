//! Qwen3.5's gated DeltaNet; everything else is the shared decoder.

use super::config::{LayerType, Qwen3_5Config, StoredForm};
use crate::decoder::{Decoder, TokenMixer};
use crate::error::LoadError;
use aha_nn::attention::SelfAttention;
use aha_nn::batch::Batch;
use aha_nn::cache::{LayerCache, LayerSpec};
use aha_nn::gated_delta::GatedDelta;
use aha_nn::host::{HostStep, Parts};
use aha_nn::linear::Linear;
use aha_nn::mlp::{Activation, gated, silu_gated_rows};
use aha_nn::norm::RmsNorm;
use aha_nn::rope::Rotation;
use aha_nn::short_conv::ShortConv;
use aha_nn::weights::{Result as WeightsResult, Weights, WeightsError};
use aha_nn::with_f32;
use candle_core::{DType, Module, Result, Tensor};

/// Linear attention by the gated delta rule (arXiv 2412.06464), after a short convolution and before a gated norm.
#[derive(Debug)]
struct GatedDeltaNet {
    in_proj_qkv: Linear,
    in_proj_z: Linear,
    in_proj_b: Linear,
    in_proj_a: Linear,
    conv1d: ShortConv,
    /// `-exp(A_log)`, f32.
    decay_rate: Tensor,
    dt_bias: Tensor,
    norm: RmsNorm,
    out_proj: Linear,
    rule: GatedDelta,
    kernel_size: usize,
}

impl GatedDeltaNet {
    fn load(
        weights: &Weights,
        config: &Qwen3_5Config,
        hidden_size: usize,
        eps: f64,
        (rule, kernel_size): (GatedDelta, usize),
    ) -> WeightsResult<Self> {
        let heads = rule.num_heads;
        let values = heads * rule.value_dim;
        let channels = rule.width();
        let linear = |name: &str, inputs: usize, outputs: usize| {
            Linear::load(&weights.pp(name), inputs, outputs, false)
        };
        let f32 = |tensor: Tensor| tensor.to_dtype(DType::F32).map_err(WeightsError::from);
        let (decay_rate, dt_bias) = match config.form() {
            StoredForm::Release => {
                let log = f32(weights.tensor("A_log", &[heads])?)?;
                let rate = log.exp().and_then(|rate| rate.neg());
                (
                    rate.map_err(WeightsError::from)?,
                    weights.tensor("dt_bias", &[heads])?,
                )
            }
            StoredForm::Gguf => (
                f32(weights.tensor("ssm_a", &[heads])?)?,
                weights.pp("dt_proj").tensor("bias", &[heads])?,
            ),
        };
        Ok(Self {
            in_proj_qkv: linear("in_proj_qkv", hidden_size, channels)?,
            in_proj_z: linear("in_proj_z", hidden_size, values)?,
            in_proj_b: linear("in_proj_b", hidden_size, heads)?,
            in_proj_a: linear("in_proj_a", hidden_size, heads)?,
            conv1d: ShortConv::load(&weights.pp("conv1d"), channels, kernel_size, false)?,
            decay_rate,
            dt_bias: f32(dt_bias)?,
            norm: RmsNorm::load(&weights.pp("norm"), rule.value_dim, eps)?,
            out_proj: linear("out_proj", values, hidden_size)?,
            rule,
            kernel_size,
        })
    }

    /// Logarithm of the decay, `-exp(A_log) * softplus(a + dt_bias)` in f32.
    fn log_decay(&self, x: &Tensor) -> Result<Tensor> {
        let a = self.in_proj_a.forward(x)?.to_dtype(DType::F32)?;
        let a = a.broadcast_add(&self.dt_bias)?;
        let softplus = (a.relu()? + (a.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        softplus.broadcast_mul(&self.decay_rate)
    }

    /// The same on the CPU, in the place of `a` `[tokens, num_heads]`.
    fn log_decay_rows(&self, a: &mut [f32]) -> Result<()> {
        let mut turn = |rates: &[f32], biases: &[f32]| {
            for row in a.chunks_exact_mut(self.rule.num_heads) {
                for ((a, bias), rate) in row.iter_mut().zip(biases).zip(rates) {
                    let sum = *a + bias;
                    *a = (sum.max(0.0) + ((-sum.abs()).exp() + 1.0).ln()) * rate;
                }
            }
        };
        with_f32(&self.decay_rate, |rates| {
            with_f32(&self.dt_bias, |biases| turn(rates, biases))
        })?
    }
}

impl TokenMixer for GatedDeltaNet {
    fn cache_spec(&self) -> LayerSpec {
        LayerSpec::GatedDelta {
            channels: self.rule.width(),
            kernel_size: self.kernel_size,
            num_heads: self.rule.num_heads,
            key_dim: self.rule.key_dim,
            value_dim: self.rule.value_dim,
        }
    }

    fn forward(
        &self,
        x: &Tensor,
        _rotation: &Rotation,
        batch: &Batch,
        cache: &mut LayerCache,
    ) -> Result<Tensor> {
        let (tokens, heads, value_dim) = (x.dim(0)?, self.rule.num_heads, self.rule.value_dim);
        let cache = cache.recurrent()?;
        let qkv = self.in_proj_qkv.forward(x)?;
        let qkv = self.conv1d.forward(&qkv, batch, &mut cache.inputs)?;
        let qkv = Activation::Silu.forward(&qkv)?;

        let beta = self.in_proj_b.forward(x)?.to_dtype(DType::F32)?;
        let beta = Activation::Sigmoid.forward(&beta)?;
        let decay = self.log_decay(x)?;
        let output = self
            .rule
            .forward(&qkv, &decay, &beta, batch, &mut cache.matrices)?
            .to_dtype(x.dtype())?;

        let output = self
            .norm
            .forward(&output.reshape((tokens, heads, value_dim))?)?;
        let output = output.reshape((tokens, heads * value_dim))?;
        let z = self.in_proj_z.forward(x)?;
        self.out_proj
            .forward(&gated(Activation::Silu, &z, &output)?)
    }

    fn forward_rows(
        &self,
        x: &[f32],
        step: &HostStep<'_>,
        cache: &mut LayerCache,
        parts: &mut Parts,
        out: &mut [f32],
    ) -> Result<()> {
        let (tokens, heads) = (step.num_tokens(), self.rule.num_heads);
        let (channels, values) = (self.rule.width(), heads * self.rule.value_dim);
        let cache = cache.recurrent()?;
        let [qkv, filtered, z, beta, decay, output] = parts
            .rows([channels, channels, values, heads, heads, values].map(|width| tokens * width));
        let maps = [&self.in_proj_qkv, &self.in_proj_z];
        Linear::forward_rows(maps, x, tokens, [&mut *qkv, &mut *z])?;
        let maps = [&self.in_proj_b, &self.in_proj_a];
        Linear::forward_rows(maps, x, tokens, [&mut *beta, &mut *decay])?;

        self.conv1d
            .forward_rows(qkv, step, &mut cache.inputs, filtered)?;
        Activation::Silu.forward_rows(filtered)?;
        Activation::Sigmoid.forward_rows(beta)?;
        self.log_decay_rows(decay)?;
        let matrices = &mut cache.matrices;
        self.rule
            .forward_rows(filtered, decay, beta, step, matrices, output)?;

        // What went into the convolution has served, and is wider.
        let normed = &mut qkv[..tokens * values];
        self.norm.forward_rows(output, normed)?;
        silu_gated_rows(z, normed, output)?;
        Linear::forward_rows([&self.out_proj], output, tokens, [out])
    }
}

/// Loads the decoder from where `model` (`embed_tokens`, `layers`, `norm`) and `lm_head` are.
pub(super) fn load(
    model: &Weights,
    lm_head: &Weights,
    config: &Qwen3_5Config,
) -> std::result::Result<Decoder, LoadError> {
    let decoder = config.decoder()?;
    let types = config.layer_types()?;
    let linear_attention = config.linear_attention()?;
    let (attention, eps) = (decoder.attention.clone(), decoder.rms_norm_eps);
    Decoder::load_parts(model, lm_head, decoder, |layer, index| {
        Ok(match types[index] {
            LayerType::LinearAttention => Box::new(GatedDeltaNet::load(
                &layer.pp("linear_attn"),
                config,
                attention.hidden_size,
                eps,
                linear_attention,
            )?),
            LayerType::FullAttention => {
                Box::new(SelfAttention::load(&layer.pp("self_attn"), &attention)?)
            }
        })
    })
}
