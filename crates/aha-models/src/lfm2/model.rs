//! LFM2's gated short convolution; everything else is the shared decoder.

use super::config::{LayerType, Lfm2Config};
use crate::decoder::{Decoder, TokenMixer};
use crate::error::LoadError;
use aha_nn::attention::SelfAttention;
use aha_nn::batch::Batch;
use aha_nn::cache::{LayerCache, LayerSpec};
use aha_nn::host::{HostStep, Parts, Rows, multiply_rows};
use aha_nn::linear::Linear;
use aha_nn::rope::Rotation;
use aha_nn::short_conv::ShortConv;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{D, Module, Result, Tensor};

/// `out_proj(C * conv(B * u))` with `B, C, u` from one projection. The convolution sees a few tokens back and has no
/// activation.
#[derive(Debug)]
struct GatedShortConv {
    in_proj: Linear,
    conv: ShortConv,
    out_proj: Linear,
    hidden_size: usize,
    kernel_size: usize,
}

impl GatedShortConv {
    fn load(
        weights: &Weights,
        hidden_size: usize,
        kernel_size: usize,
        bias: bool,
    ) -> WeightsResult<Self> {
        Ok(Self {
            in_proj: Linear::load(&weights.pp("in_proj"), hidden_size, 3 * hidden_size, bias)?,
            conv: ShortConv::load(&weights.pp("conv"), hidden_size, kernel_size, bias)?,
            out_proj: Linear::load(&weights.pp("out_proj"), hidden_size, hidden_size, bias)?,
            hidden_size,
            kernel_size,
        })
    }
}

impl TokenMixer for GatedShortConv {
    fn cache_spec(&self) -> LayerSpec {
        LayerSpec::ShortConv {
            channels: self.hidden_size,
            kernel_size: self.kernel_size,
        }
    }

    fn forward(
        &self,
        x: &Tensor,
        _rotation: &Rotation,
        batch: &Batch,
        cache: &mut LayerCache,
    ) -> Result<Tensor> {
        let parts = self.in_proj.forward(x)?.chunk(3, D::Minus1)?;
        let [b, c, u] = parts.as_slice() else {
            candle_core::bail!("a projection did not divide into three");
        };
        let inputs = &mut cache.recurrent()?.inputs;
        let filtered = self.conv.forward(&(b * u)?, batch, inputs)?;
        self.out_proj.forward(&(c * filtered)?)
    }

    fn forward_rows(
        &self,
        x: &[f32],
        step: &HostStep<'_>,
        cache: &mut LayerCache,
        parts: &mut Parts,
        out: &mut [f32],
    ) -> Result<()> {
        let (tokens, width) = (step.num_tokens(), self.hidden_size);
        let [projected, product, filtered] =
            parts.rows([3 * width, width, width].map(|width| tokens * width));
        Linear::forward_rows([&self.in_proj], x, tokens, [&mut *projected])?;
        let [b, c, u] = [0, width, 2 * width].map(|start| Rows {
            values: projected.get(start..).unwrap_or_default(),
            stride: 3 * width,
        });
        multiply_rows(b, u, width, product)?;
        let inputs = &mut cache.recurrent()?.inputs;
        self.conv.forward_rows(product, step, inputs, filtered)?;
        let filtered = Rows {
            values: filtered,
            stride: width,
        };
        multiply_rows(c, filtered, width, product)?;
        Linear::forward_rows([&self.out_proj], product, tokens, [out])
    }
}

/// Loads the decoder at `model` and its head, from views in which the common names hold. The caller calls
/// [`Weights::finish`] once all parts of the checkpoint are loaded.
pub fn language_model(
    model: &Weights,
    lm_head: &Weights,
    config: &Lfm2Config,
) -> std::result::Result<Decoder, LoadError> {
    let decoder = config.decoder()?;
    let types = config.layer_types()?;
    let (kernel_size, bias) = config.conv()?;
    let attention = decoder.attention.clone();
    Decoder::load_parts(model, lm_head, decoder, |layer, index| {
        Ok(match types[index] {
            LayerType::Conv => Box::new(GatedShortConv::load(
                &layer.pp("conv"),
                attention.hidden_size,
                kernel_size,
                bias,
            )?),
            LayerType::FullAttention => {
                Box::new(SelfAttention::load(&layer.pp("self_attn"), &attention)?)
            }
        })
    })
}
