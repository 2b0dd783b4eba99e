//! The snake activation of audio codecs (arXiv 2006.08195).

use crate::cpu::{contiguous_f32, is_f32_on_cpu};
use crate::weights::{Result, Weights};
use candle_core::{CpuStorage, CustomOp1, Layout, Module, Shape, Tensor};
use std::sync::Arc;

/// Keeps the division finite where a channel's frequency is zero.
const EPSILON: f64 = 1e-9;

/// `x + sin²(alpha x) / (alpha + 1e-9)`, with one `alpha` a channel.
#[derive(Debug, Clone)]
pub struct Snake {
    alpha: Tensor,
    scale: Tensor,
    /// The same two on the host, where the kernel runs.
    host: Option<Arc<(Vec<f32>, Vec<f32>)>>,
}

impl Snake {
    /// Loads `alpha` `[1, channels, 1]`.
    pub fn load(weights: &Weights, channels: usize) -> Result<Self> {
        let alpha = weights.tensor("alpha", &[1, channels, 1])?.flatten_all()?;
        let scale = (&alpha + EPSILON)?.recip()?;
        let host = if is_f32_on_cpu(&alpha) {
            Some(Arc::new((alpha.to_vec1()?, scale.to_vec1()?)))
        } else {
            None
        };
        Ok(Self { alpha, scale, host })
    }
}

impl Module for Snake {
    /// `x` is `[length, channels]`.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.host {
            Some(host) if is_f32_on_cpu(x) => x.contiguous()?.apply_op1_no_bwd(&Kernel(host)),
            _ => {
                x + x
                    .broadcast_mul(&self.alpha)?
                    .sin()?
                    .sqr()?
                    .broadcast_mul(&self.scale)?
            }
        }
    }
}

struct Kernel<'a>(&'a (Vec<f32>, Vec<f32>));

impl CustomOp1 for Kernel<'_> {
    fn name(&self) -> &'static str {
        "snake"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = contiguous_f32(x, layout)?;
        let mut out = vec![0f32; x.len()];
        let (alpha, scale) = self.0;
        aha_kernels::snake(x, alpha, scale, &mut out).map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn the_kernel_equals_the_formula() {
        let alpha = random(&[37]);
        let scale = (&alpha + EPSILON).unwrap().recip().unwrap();
        let host = Some(Arc::new((
            alpha.to_vec1().unwrap(),
            scale.to_vec1().unwrap(),
        )));
        let snake = Snake { alpha, scale, host };
        let plain = Snake {
            host: None,
            ..snake.clone()
        };
        let x = random(&[21, 37]);
        close(
            &snake.forward(&x).unwrap(),
            &plain.forward(&x).unwrap(),
            1e-4,
        );
    }
}
