//! Normalisation layers.

use crate::weights::{Result, Weights};
use candle_core::{Module, Tensor};

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
}

impl Module for RmsNorm {
    /// Normalises the last dimension.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::ops::rms_norm(&x.contiguous()?, &self.weight, self.eps)
    }
}
