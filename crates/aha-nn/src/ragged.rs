//! Attention among the tokens of sequences that are computed at once and not cached: encoders.

use crate::cpu::rows_f32;
use aha_kernels::{GridBias as KernelBias, RaggedAttention as Kernel};
use candle_core::{
    CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Storage, Tensor,
};

/// Where sequences begin among tokens that lie end to end, without padding.
///
/// Texts of a batch, images of a request, windows of an image, stretches of sound: whatever must not see its
/// neighbours is a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceBounds {
    /// Begins with 0, never falls, ends with the number of tokens.
    cu_seqlens: Vec<u32>,
}

impl SequenceBounds {
    /// Sequences of these lengths, one behind the other.
    ///
    /// Errors when there are more tokens than fit in 32 bits.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Result<Self> {
        let mut cu_seqlens = vec![0_u32];
        let mut end = 0_u32;
        for length in lengths {
            let sum = u32::try_from(length)
                .ok()
                .and_then(|length| end.checked_add(length));
            match sum {
                Some(sum) => end = sum,
                None => candle_core::bail!("{length} tokens behind {end} are too many"),
            }
            cu_seqlens.push(end);
        }
        Ok(Self { cu_seqlens })
    }

    /// Where each sequence begins, and the end of the last: what other libraries call `cu_seqlens`.
    pub fn cu_seqlens(&self) -> &[u32] {
        &self.cu_seqlens
    }

    /// Number of tokens.
    pub fn num_tokens(&self) -> usize {
        self.cu_seqlens.last().map_or(0, |end| *end as usize)
    }

    /// Number of sequences.
    pub fn num_sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// The tokens of each sequence in order.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = std::ops::Range<usize>> + '_ {
        self.cu_seqlens
            .windows(2)
            .map(|bounds| bounds[0] as usize..bounds[1] as usize)
    }

    /// Positions `0..length` of each sequence, one behind the other.
    pub fn positions(&self) -> Vec<u32> {
        self.cu_seqlens
            .windows(2)
            .flat_map(|bounds| 0..bounds[1] - bounds[0])
            .collect()
    }
}

/// Softmax attention of each token over its whole sequence (or, `causal`, up to itself).
///
/// On the CPU a kernel of ours runs over tiles with a running softmax, in f32: memory grows with the tokens, not with
/// their square, and a sequence gives the same bits alone and in any batch. Elsewhere Candle's operations compute
/// one sequence after the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RaggedAttention {
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Values a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Whether a token sees only those up to itself.
    pub causal: bool,
    /// With `causal`: the first tokens of a sequence, which all see each other.
    pub prefix: usize,
}

/// Addends of the scores between tokens of a grid, for sequences that are grids of one size, row after row
/// (decomposed relative positions, arXiv 2112.01526).
#[derive(Debug, Clone)]
pub struct GridBias {
    /// Rows of the grid.
    pub height: usize,
    /// Tokens of a row.
    pub width: usize,
    /// `[tokens, num_heads * (2 * height - 1 + 2 * width - 1)]`: for each token and head the addends for keys
    /// `1 - height` to `height - 1` rows further down, then for keys `1 - width` to `width - 1` columns further
    /// right. They stand beside the product of query and key, before the factor of the scores.
    pub terms: Tensor,
}

impl RaggedAttention {
    /// Full attention with the usual scale and as many key heads as query heads.
    pub fn full(num_heads: usize, head_dim: usize) -> Self {
        Self {
            num_heads,
            num_kv_heads: num_heads,
            head_dim,
            scale: 1.0 / (head_dim as f64).sqrt(),
            causal: false,
            prefix: 0,
        }
    }

    /// `q` is `[tokens, num_heads, head_dim]` (or with both last dimensions joined), `k` and `v` are
    /// `[tokens, num_kv_heads, head_dim]`; the result is `[tokens, num_heads * head_dim]`. Parts of a fused
    /// projection (`narrow` on the last dimension of `[tokens, …]`) are taken without a copy on the CPU.
    pub fn forward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        bounds: &SequenceBounds,
    ) -> Result<Tensor> {
        self.forward_biased(q, k, v, bounds, None)
    }

    /// The same with addends of the scores.
    pub fn forward_biased(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        bounds: &SequenceBounds,
        bias: Option<&GridBias>,
    ) -> Result<Tensor> {
        let tokens = bounds.num_tokens();
        for (name, x, heads) in [
            ("q", q, self.num_heads),
            ("k", k, self.num_kv_heads),
            ("v", v, self.num_kv_heads),
        ] {
            let fits = match *x.dims() {
                [rows, width] => rows == tokens && width == heads * self.head_dim,
                [rows, own_heads, head_dim] => {
                    rows == tokens && own_heads == heads && head_dim == self.head_dim
                }
                _ => false,
            };
            if !fits {
                candle_core::bail!(
                    "{name} is {:?}, not {tokens} tokens of {heads} heads of {} values",
                    x.dims(),
                    self.head_dim
                );
            }
        }
        let on_cpu = |x: &Tensor| crate::cpu::is_f32_on_cpu(x);
        if on_cpu(q) && on_cpu(k) && on_cpu(v) {
            return q.apply_op3_no_bwd(
                k,
                v,
                &Op {
                    attention: self,
                    bounds,
                    bias,
                },
            );
        }
        self.forward_plain(q, k, v, bounds, bias)
    }

    /// By Candle's own operations, one sequence after the other, scores in f32.
    fn forward_plain(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        bounds: &SequenceBounds,
        bias: Option<&GridBias>,
    ) -> Result<Tensor> {
        let groups = self.num_heads / self.num_kv_heads.max(1);
        let mut outputs = Vec::with_capacity(bounds.num_sequences());
        for range in bounds.ranges().filter(|range| !range.is_empty()) {
            let len = range.len();
            let heads = |x: &Tensor, heads: usize| {
                x.narrow(0, range.start, len)?
                    .contiguous()?
                    .reshape((len, heads, self.head_dim))?
                    .transpose(0, 1)?
                    .contiguous()
            };
            // [kv_heads, groups * tokens, head_dim]: neighbouring query heads share a key head.
            let queries = heads(q, self.num_heads)?.reshape((
                self.num_kv_heads,
                groups * len,
                self.head_dim,
            ))?;
            let (keys, values) = (heads(k, self.num_kv_heads)?, heads(v, self.num_kv_heads)?);
            let mut scores = queries.matmul(&keys.t()?)?.to_dtype(DType::F32)?;
            if let Some(bias) = bias {
                let terms = bias.terms.narrow(0, range.start, len)?;
                let shape = (self.num_heads, len, bias.height, bias.width);
                let addends = bias.addends(&terms, self.num_heads)?;
                scores = addends
                    .iter()
                    .try_fold(scores.reshape(shape)?, |scores, part| {
                        scores.broadcast_add(part)
                    })?
                    .reshape((self.num_kv_heads, groups * len, len))?;
            }
            scores = (scores * self.scale)?;
            if self.causal {
                scores = scores
                    .reshape((self.num_kv_heads, groups, len, len))?
                    .broadcast_add(&causal_mask(len, self.prefix, q.device())?)?
                    .reshape((self.num_kv_heads, groups * len, len))?;
            }
            let shares = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(values.dtype())?;
            let output = shares
                .matmul(&values)?
                .reshape((self.num_heads, len, self.head_dim))?
                .transpose(0, 1)?
                .contiguous()?
                .reshape((len, self.num_heads * self.head_dim))?;
            outputs.push(output);
        }
        if outputs.is_empty() {
            return Tensor::zeros((0, self.num_heads * self.head_dim), q.dtype(), q.device());
        }
        Tensor::cat(&outputs, 0)
    }
}

impl GridBias {
    /// What a sequence's scores `[heads, queries, height, width]` gain: `[heads, queries, height, 1]` by rows and
    /// `[heads, queries, 1, width]` by columns. `terms` are those of the sequence's tokens.
    fn addends(&self, terms: &Tensor, num_heads: usize) -> Result<[Tensor; 2]> {
        let (height, width) = (self.height, self.width);
        let tokens = terms.dim(0)?;
        let terms = terms
            .contiguous()?
            .reshape((tokens, num_heads, 2 * (height + width) - 2))?
            .transpose(0, 1)?
            .contiguous()?
            .to_dtype(DType::F32)?;
        let side = |from: usize, size: usize, place: &dyn Fn(usize) -> usize| {
            let picked: Vec<u32> = (0..tokens)
                .flat_map(|token| (0..size).map(move |key| (token, key)))
                .map(|(token, key)| (from + key + size - 1 - place(token)) as u32)
                .collect();
            let picked = Tensor::from_vec(picked, (1, tokens, size), terms.device())?;
            let picked = picked.broadcast_as((num_heads, tokens, size))?;
            terms.gather(&picked.contiguous()?, 2)
        };
        Ok([
            side(0, height, &|token| token / width)?.unsqueeze(3)?,
            side(2 * height - 1, width, &|token| token % width)?.unsqueeze(2)?,
        ])
    }
}

fn causal_mask(len: usize, prefix: usize, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> = (0..len)
        .flat_map(|query| (0..len).map(move |key| (query, key)))
        .map(|(query, key)| {
            if key <= query || key < prefix {
                0.0
            } else {
                f32::NEG_INFINITY
            }
        })
        .collect();
    Tensor::from_vec(mask, (len, len), device)
}

/// The kernel as an operation of Candle.
struct Op<'a> {
    attention: &'a RaggedAttention,
    bounds: &'a SequenceBounds,
    bias: Option<&'a GridBias>,
}

impl CustomOp3 for Op<'_> {
    fn name(&self) -> &'static str {
        "ragged-attention"
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
        let attention = self.attention;
        let width = attention.num_heads * attention.head_dim;
        let tokens = self.bounds.num_tokens();
        let terms = self.bias.map(|bias| bias.terms.storage_and_layout());
        let bias = match (self.bias, &terms) {
            (Some(bias), Some((storage, layout))) => {
                let Storage::Cpu(storage) = &**storage else {
                    candle_core::bail!("the addends of the scores are on another device");
                };
                Some(KernelBias {
                    height: bias.height,
                    width: bias.width,
                    terms: rows_f32(storage, layout)?,
                })
            }
            _ => None,
        };
        let mut output = vec![0f32; tokens * width];
        Kernel {
            num_heads: attention.num_heads,
            num_kv_heads: attention.num_kv_heads,
            head_dim: attention.head_dim,
            scale: attention.scale as f32,
            causal: attention.causal,
            prefix: attention.prefix,
            bias,
            cu_seqlens: self.bounds.cu_seqlens(),
        }
        .forward(
            rows_f32(q, q_layout)?,
            rows_f32(k, k_layout)?,
            rows_f32(v, v_layout)?,
            &mut output,
        )
        .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(output), Shape::from((tokens, width))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn the_kernel_equals_the_plain_computation() {
        let bounds = SequenceBounds::from_lengths([3, 0, 40, 1]).unwrap();
        for (num_heads, num_kv_heads, head_dim, causal) in
            [(4, 4, 16, false), (6, 2, 12, false), (6, 2, 12, true)]
        {
            let attention = RaggedAttention {
                num_kv_heads,
                causal,
                ..RaggedAttention::full(num_heads, head_dim)
            };
            let (q_size, kv_size) = (num_heads * head_dim, num_kv_heads * head_dim);
            let fused = Tensor::randn(0f32, 1.0, (44, q_size + 2 * kv_size), &Device::Cpu).unwrap();
            let q = fused.narrow(1, 0, q_size).unwrap();
            let k = fused.narrow(1, q_size, kv_size).unwrap();
            let v = fused.narrow(1, q_size + kv_size, kv_size).unwrap();
            let kernel = attention.forward(&q, &k, &v, &bounds).unwrap();
            let plain = attention.forward_plain(&q, &k, &v, &bounds, None).unwrap();
            assert_eq!(kernel.dims(), plain.dims());
            close(&kernel, &plain, 1e-5);
            // With the heads in a dimension of their own, of a part and of a whole tensor.
            let heads = |x: &Tensor, heads: usize| {
                x.contiguous()
                    .unwrap()
                    .reshape((44, heads, head_dim))
                    .unwrap()
            };
            let split = attention
                .forward(
                    &heads(&q, num_heads),
                    &heads(&k, num_kv_heads),
                    &heads(&v, num_kv_heads),
                    &bounds,
                )
                .unwrap();
            let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&kernel), values(&split));
        }
    }

    #[test]
    fn prefixes_and_grids_equal_the_plain_computation() {
        let [q, k, v] = [0; 3].map(|_| random(&[60, 24]));
        let full = RaggedAttention::full(2, 12);
        let prefixed = RaggedAttention {
            causal: true,
            prefix: 9,
            ..full
        };
        let bounds = SequenceBounds::from_lengths([5, 55]).unwrap();
        let kernel = prefixed.forward(&q, &k, &v, &bounds).unwrap();
        let plain = prefixed.forward_plain(&q, &k, &v, &bounds, None);
        close(&kernel, &plain.unwrap(), 1e-5);
        let plainly_causal = RaggedAttention {
            prefix: 0,
            ..prefixed
        };
        let other = plainly_causal.forward(&q, &k, &v, &bounds).unwrap();
        let changed = (&kernel - other).unwrap().abs().unwrap().sum_all().unwrap();
        assert!(changed.to_scalar::<f32>().unwrap() > 0.1);

        let bounds = SequenceBounds::from_lengths([30, 30]).unwrap();
        let bias = GridBias {
            height: 6,
            width: 5,
            terms: random(&[60, 2 * 20]),
        };
        let kernel = full
            .forward_biased(&q, &k, &v, &bounds, Some(&bias))
            .unwrap();
        let plain = full
            .forward_plain(&q, &k, &v, &bounds, Some(&bias))
            .unwrap();
        close(&kernel, &plain, 1e-5);
    }

    #[test]
    fn bounds_tell_lengths_and_positions() {
        let bounds = SequenceBounds::from_lengths([2, 0, 3]).unwrap();
        assert_eq!(bounds.cu_seqlens(), [0, 2, 2, 5]);
        assert_eq!((bounds.num_tokens(), bounds.num_sequences()), (5, 3));
        assert_eq!(bounds.positions(), [0, 1, 0, 1, 2]);
        assert_eq!(bounds.ranges().last(), Some(2..5));
        assert!(SequenceBounds::from_lengths([usize::MAX]).is_err());
        assert!(SequenceBounds::from_lengths([u32::MAX as usize, 1]).is_err());
    }

    #[test]
    fn wrong_shapes_are_errors() {
        let attention = RaggedAttention::full(2, 4);
        let bounds = SequenceBounds::from_lengths([3]).unwrap();
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let good = zeros(&[3, 8]);
        assert!(attention.forward(&good, &good, &good, &bounds).is_ok());
        for bad in [zeros(&[2, 8]), zeros(&[3, 7]), zeros(&[3, 4, 2])] {
            assert!(attention.forward(&bad, &good, &good, &bounds).is_err());
            assert!(attention.forward(&good, &good, &bad, &bounds).is_err());
        }
    }
}
