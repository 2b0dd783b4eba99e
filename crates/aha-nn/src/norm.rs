//! Normalisation layers.

use crate::cpu;
use crate::weights::{Result, Weights};
use candle_core::{DType, Module, Tensor};

/// Root-mean-square norm: `x / sqrt(mean(x²) + eps) * weight`, computed in f32.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Loads `weight` `[size]`; `eps` is the config's `rms_norm_eps`.
    pub fn load(weights: &Weights, size: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: weights.tensor("weight", &[size])?,
            eps: eps as f32,
        })
    }

    /// The same for checkpoints that store the weight less one: the norm multiplies by `1 + weight`.
    pub fn load_zero_centred(weights: &Weights, size: usize, eps: f64) -> Result<Self> {
        let weight = weights.tensor("weight", &[size])?;
        let dtype = weight.dtype();
        let weight = (weight.to_dtype(DType::F32)? + 1.0)?.to_dtype(dtype)?;
        Ok(Self {
            weight,
            eps: eps as f32,
        })
    }
}

impl RmsNorm {
    #[cfg(test)]
    pub(crate) fn from_tensor(weight: Tensor, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// `[size]`.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub(crate) fn eps(&self) -> f32 {
        self.eps
    }

    /// The norm of rows on the CPU.
    ///
    /// # Errors
    /// When the norm is on another device, or the rows are not as wide.
    pub fn forward_rows(&self, x: &[f32], out: &mut [f32]) -> candle_core::Result<()> {
        cpu::with_f32(&self.weight, |weight| {
            aha_kernels::rms_norm(x, weight, self.eps, out)
        })?
        .map_err(candle_core::Error::wrap)
    }

    /// `x += other`, and the norm of that.
    ///
    /// # Errors
    /// As [`forward_rows`](Self::forward_rows).
    pub(crate) fn forward_sum(
        &self,
        x: &mut [f32],
        other: &[f32],
        out: &mut [f32],
    ) -> candle_core::Result<()> {
        cpu::with_f32(&self.weight, |weight| {
            aha_kernels::add_rms_norm(x, other, weight, self.eps, out)
        })?
        .map_err(candle_core::Error::wrap)
    }
}

impl Module for RmsNorm {
    /// Normalises the last dimension.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.contiguous()?;
        if cpu::is_f32_on_cpu(&x) {
            return x.apply_op2_no_bwd(&self.weight, &cpu::RmsNorm { eps: self.eps });
        }
        candle_nn::ops::rms_norm(&x, &self.weight, self.eps)
    }
}

/// Layer norm: `(x - mean) / sqrt(variance + eps) * weight + bias`, computed in f32.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// Loads `weight` and `bias` `[size]`, which old checkpoints call `gamma` and `beta`; `eps` is the config's
    /// `layer_norm_eps`.
    pub fn load(weights: &Weights, size: usize, eps: f64) -> Result<Self> {
        let old = weights.contains("gamma") && !weights.contains("weight");
        let (weight, bias) = if old {
            ("gamma", "beta")
        } else {
            ("weight", "bias")
        };
        Ok(Self {
            weight: weights.tensor(weight, &[size])?,
            bias: weights.tensor(bias, &[size])?,
            eps: eps as f32,
        })
    }
}

impl Module for LayerNorm {
    /// Normalises the last dimension.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.contiguous()?;
        if cpu::is_f32_on_cpu(&x) {
            let op = cpu::LayerNorm { eps: self.eps };
            return x.apply_op3_no_bwd(&self.weight, &self.bias, &op);
        }
        candle_nn::ops::layer_norm(&x, &self.weight, &self.bias, self.eps)
    }
}
