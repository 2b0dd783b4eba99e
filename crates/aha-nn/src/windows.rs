//! Attention inside windows of one size, with relative positions and masks (Swin, arXiv 2103.14030).

use crate::cpu::{contiguous_f32, is_f32_on_cpu, rows_f32};
use aha_kernels::WindowAttention as Kernel;
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Storage, Tensor};

/// Softmax attention of each token over its window.
///
/// On the CPU a kernel of ours runs over tiles with a running softmax, in f32, and a window gives the same bits alone
/// and in any company. Elsewhere Candle's operations compute all windows at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowAttention {
    /// Heads of queries, keys and values.
    pub num_heads: usize,
    /// Values a head; scores are scaled by `1 / sqrt(head_dim)`.
    pub head_dim: usize,
    /// Tokens of a window.
    pub len: usize,
}

/// What is added to the scaled scores of windows, in f32.
#[derive(Debug, Clone, Copy)]
pub struct WindowBias<'a> {
    /// For all windows, `[num_heads, len, len]`: head, query, key.
    pub heads: &'a Tensor,
    /// For all heads, `[masks, len, len]`.
    pub masks: &'a Tensor,
    /// For each window, which of `masks` is its own.
    pub mask_of: &'a [u32],
}

impl WindowAttention {
    /// `q`, `k` and `v` are `[windows * len, num_heads * head_dim]`, window after window, and so is the result. Parts
    /// of a fused projection (`narrow` on the last dimension) are taken without a copy on the CPU.
    pub fn forward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        bias: &WindowBias<'_>,
    ) -> Result<Tensor> {
        let shape = (
            bias.mask_of.len() * self.len,
            self.num_heads * self.head_dim,
        );
        for (name, x) in [("q", q), ("k", k), ("v", v)] {
            if x.dims2()? != shape {
                candle_core::bail!("{name} is {:?}, not {shape:?}", x.dims());
            }
        }
        if is_f32_on_cpu(q) && is_f32_on_cpu(k) && is_f32_on_cpu(v) {
            let op = Op {
                attention: self,
                bias,
            };
            return q.apply_op3_no_bwd(k, v, &op);
        }
        self.forward_plain(q, k, v, bias)
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// By Candle's own operations, scores in f32.
    fn forward_plain(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        bias: &WindowBias<'_>,
    ) -> Result<Tensor> {
        let windows = bias.mask_of.len();
        let heads = |x: &Tensor| {
            x.contiguous()?
                .reshape((windows, self.len, self.num_heads, self.head_dim))?
                .transpose(1, 2)?
                .contiguous()
        };
        let (queries, keys, values) = (heads(q)?, heads(k)?, heads(v)?);
        let mask_of = Tensor::new(bias.mask_of, q.device())?;
        let masks = bias.masks.index_select(&mask_of, 0)?.unsqueeze(1)?;
        let scores = (queries.matmul(&keys.t()?)?.to_dtype(DType::F32)? * self.scale())?
            .broadcast_add(bias.heads)?
            .broadcast_add(&masks)?;
        let shares = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(v.dtype())?;
        shares
            .matmul(&values)?
            .transpose(1, 2)?
            .reshape((windows * self.len, self.num_heads * self.head_dim))
    }
}

struct Op<'a> {
    attention: &'a WindowAttention,
    bias: &'a WindowBias<'a>,
}

impl CustomOp3 for Op<'_> {
    fn name(&self) -> &'static str {
        "window-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (heads, heads_layout) = self.bias.heads.storage_and_layout();
        let (masks, masks_layout) = self.bias.masks.storage_and_layout();
        let (Storage::Cpu(heads), Storage::Cpu(masks)) = (&*heads, &*masks) else {
            candle_core::bail!("the biases of windows on the CPU must be there too");
        };
        let kernel = Kernel {
            num_heads: self.attention.num_heads,
            head_dim: self.attention.head_dim,
            scale: self.attention.scale() as f32,
            len: self.attention.len,
            bias: contiguous_f32(heads, heads_layout)?,
            masks: contiguous_f32(masks, masks_layout)?,
            mask_of: self.bias.mask_of,
        };
        let (q, shape) = (rows_f32(q, q_layout)?, q_layout.shape().clone());
        let mut out = vec![0f32; shape.elem_count()];
        kernel
            .forward(q, rows_f32(k, k_layout)?, rows_f32(v, v_layout)?, &mut out)
            .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(out), shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn the_kernel_equals_candles_operations_also_on_parts_of_a_projection() {
        let attention = WindowAttention {
            num_heads: 3,
            head_dim: 4,
            len: 36,
        };
        let qkv = random(&[5 * 36, 3 * 12]);
        let part = |index: usize| qkv.narrow(1, index * 12, 12).unwrap();
        let (heads, masks) = (random(&[3, 36, 36]), random(&[2, 36, 36]));
        let bias = WindowBias {
            heads: &heads,
            masks: &masks,
            mask_of: &[0, 1, 0, 0, 1],
        };
        let (q, k, v) = (part(0), part(1), part(2));
        let kernel = attention.forward(&q, &k, &v, &bias).unwrap();
        close(
            &kernel,
            &attention.forward_plain(&q, &k, &v, &bias).unwrap(),
            1e-5,
        );
        let few = WindowBias {
            mask_of: &[0],
            ..bias
        };
        assert!(attention.forward(&q, &k, &v, &few).is_err());
    }
}
