//! Causal self-attention over paged caches.

use crate::batch::{Batch, SequenceSlice};
use crate::cache::KvCache;
use crate::cpu::with_f32;
use crate::linear::Linear;
use crate::norm::RmsNorm;
use crate::ragged::{RaggedAttention, SequenceBounds};
use crate::rope::{RopePairing, Rotation};
use crate::weights::{Result, Weights};
use aha_kernels::{PagedAttention, PagedCache, PagedSequence};
use candle_core::{D, DType, Module, Tensor};

/// Shape and options of a self-attention block; keys of config.json in brackets.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AttentionConfig {
    /// Width of the residual stream (`hidden_size`).
    pub hidden_size: usize,
    /// Query heads (`num_attention_heads`).
    pub num_heads: usize,
    /// Key/value heads (`num_key_value_heads`).
    pub num_kv_heads: usize,
    /// Size of a head (`head_dim`).
    pub head_dim: usize,
    /// Biases on q, k and v (`attention_bias`).
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub output_bias: bool,
    /// Epsilon of RMS norms over each head of q and k (Qwen3's `q_norm`, `k_norm`), where the family has them.
    pub qk_norm_eps: Option<f64>,
    /// The norms of q and k come after the rotation, not before it (Hunyuan).
    pub norm_after_rotation: bool,
    /// The norms of q and k store their weights less one.
    pub zero_centred_norms: bool,
    /// Which values of a head turn together.
    pub rope_pairing: RopePairing,
    /// `q_proj` also gives a gate for each head's output, behind the head's query (`attn_output_gate`).
    pub output_gate: bool,
    /// Only the last tokens are seen (`sliding_window`).
    pub window: Option<usize>,
}

/// Grouped-query attention with rotary positions (arXiv 2305.13245).
#[derive(Debug, Clone)]
pub struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    cache_dtype: DType,
    config: AttentionConfig,
}

impl SelfAttention {
    /// Loads `q_proj`, `k_proj`, `v_proj`, `o_proj` and, where configured, `q_norm` and `k_norm`.
    pub fn load(weights: &Weights, config: &AttentionConfig) -> Result<Self> {
        let AttentionConfig {
            hidden_size,
            num_heads,
            num_kv_heads,
            head_dim,
            qkv_bias,
            ..
        } = *config;
        let (q_size, kv_size) = (num_heads * head_dim, num_kv_heads * head_dim);
        let norm = |name| {
            config
                .qk_norm_eps
                .map(|eps| {
                    if config.zero_centred_norms {
                        RmsNorm::load_zero_centred(&weights.pp(name), head_dim, eps)
                    } else {
                        RmsNorm::load(&weights.pp(name), head_dim, eps)
                    }
                })
                .transpose()
        };
        let k_proj = Linear::load(&weights.pp("k_proj"), hidden_size, kv_size, qkv_bias)?;
        let cache_dtype = match (weights.device().is_cpu(), k_proj.is_single()) {
            (true, true) => DType::F32,
            (true, false) => DType::F16,
            (false, _) => weights.dtype(),
        };
        Ok(Self {
            q_proj: Linear::load(
                &weights.pp("q_proj"),
                hidden_size,
                if config.output_gate {
                    2 * q_size
                } else {
                    q_size
                },
                qkv_bias,
            )?,
            k_proj,
            v_proj: Linear::load(&weights.pp("v_proj"), hidden_size, kv_size, qkv_bias)?,
            o_proj: Linear::load(
                &weights.pp("o_proj"),
                q_size,
                hidden_size,
                config.output_bias,
            )?,
            q_norm: norm("q_norm")?,
            k_norm: norm("k_norm")?,
            cache_dtype,
            config: config.clone(),
        })
    }

    /// Type of cached keys and values: on the CPU f16, which halves what attention reads, but f32 where the weights
    /// are; elsewhere that of the activations.
    pub fn cache_dtype(&self) -> DType {
        self.cache_dtype
    }

    /// Shape and options.
    pub fn config(&self) -> &AttentionConfig {
        &self.config
    }

    /// Attends from the batch's tokens `x` `[tokens, hidden_size]` to their sequences' caches, which gain them.
    pub fn forward(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        batch: &Batch,
        cache: &mut KvCache,
    ) -> candle_core::Result<Tensor> {
        let AttentionConfig {
            num_heads,
            num_kv_heads,
            head_dim,
            ..
        } = self.config;
        let tokens = batch.num_tokens();
        let projected = self.project(x, rotation)?;
        let keys = projected.keys.reshape((tokens, num_kv_heads * head_dim))?;
        cache.append(&keys, &projected.values, batch)?;
        let attention = CausalAttention {
            batch,
            num_heads,
            num_kv_heads,
            head_dim,
            window: self.config.window,
            scale: 1.0 / (head_dim as f64).sqrt(),
        };
        let attended = attention.forward(&projected.queries, cache)?;
        self.output(attended, projected.gate)
    }

    /// Attends among the tokens of whole sequences in both directions; nothing is kept. `x` is
    /// `[tokens, hidden_size]`.
    pub fn forward_bidirectional(
        &self,
        x: &Tensor,
        rotation: &Rotation,
        bounds: &SequenceBounds,
    ) -> candle_core::Result<Tensor> {
        let AttentionConfig {
            num_heads,
            num_kv_heads,
            head_dim,
            ..
        } = self.config;
        let projected = self.project(x, rotation)?;
        let attention = RaggedAttention {
            num_kv_heads,
            ..RaggedAttention::full(num_heads, head_dim)
        };
        let attended = attention.forward(
            &projected.queries,
            &projected.keys,
            &projected.values,
            bounds,
        )?;
        self.output(attended, projected.gate)
    }

    fn project(&self, x: &Tensor, rotation: &Rotation) -> candle_core::Result<Projected> {
        let AttentionConfig {
            num_heads,
            num_kv_heads,
            head_dim,
            ..
        } = self.config;
        let tokens = x.dim(0)?;
        let [q, k, values] =
            Linear::forward_together([&self.q_proj, &self.k_proj, &self.v_proj], x)?;
        let (q, gate) = if self.config.output_gate {
            let pairs = q.reshape((tokens, num_heads, 2 * head_dim))?;
            let gate = pairs.narrow(2, head_dim, head_dim)?.contiguous()?;
            (
                pairs.narrow(2, 0, head_dim)?.contiguous()?,
                Some(gate.reshape((tokens, num_heads * head_dim))?),
            )
        } else {
            (q.reshape((tokens, num_heads, head_dim))?, None)
        };
        let k = k.reshape((tokens, num_kv_heads, head_dim))?;
        let placed = |x: Tensor, norm: Option<&RmsNorm>| {
            rotation.apply_normed(&x, norm, self.config.norm_after_rotation)
        };
        Ok(Projected {
            queries: placed(q, self.q_norm.as_ref())?,
            keys: placed(k, self.k_norm.as_ref())?,
            values,
            gate,
        })
    }

    /// The output projection of `attended` `[tokens, num_heads * head_dim]`, behind its gate where there is one.
    fn output(&self, mut attended: Tensor, gate: Option<Tensor>) -> candle_core::Result<Tensor> {
        if let Some(gate) = gate {
            attended = (attended * candle_nn::ops::sigmoid(&gate)?)?;
        }
        self.o_proj.forward(&attended)
    }
}

/// What attention is computed from.
struct Projected {
    /// Rotated, `[tokens, num_heads, head_dim]`.
    queries: Tensor,
    /// Rotated, `[tokens, num_kv_heads, head_dim]`.
    keys: Tensor,
    /// `[tokens, num_kv_heads * head_dim]`.
    values: Tensor,
    /// `[tokens, num_heads * head_dim]`, before its sigmoid.
    gate: Option<Tensor>,
}

/// Softmax attention of a batch's queries over the paged caches of their sequences.
struct CausalAttention<'a> {
    batch: &'a Batch,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    scale: f64,
}

impl CausalAttention<'_> {
    /// `q` is `[tokens, num_heads, head_dim]`; the result `[tokens, num_heads * head_dim]`.
    fn forward(&self, q: &Tensor, cache: &KvCache) -> candle_core::Result<Tensor> {
        let (keys, values) = match cache {
            KvCache::Host(cache) => return self.forward_paged(q, cache),
            KvCache::Device { keys, values } => (keys, values),
        };
        #[cfg(feature = "flash-attn")]
        if q.device().is_cuda() && matches!(q.dtype(), DType::F16 | DType::BF16) {
            return self.forward_flash(q, keys, values);
        }
        self.forward_gathered(q, keys, values)
    }

    /// The CPU's kernel, which reads keys and values where they lie.
    fn forward_paged(&self, q: &Tensor, cache: &PagedCache) -> candle_core::Result<Tensor> {
        let sequences: Vec<PagedSequence<'_>> = self
            .batch
            .sequences()
            .iter()
            .map(|sequence| PagedSequence {
                query_start: sequence.query_start,
                query_len: sequence.query_len,
                context_len: sequence.context_len,
                blocks: &sequence.blocks,
                window: self.window,
            })
            .collect();
        let kernel = PagedAttention {
            num_heads: self.num_heads,
            block_size: self.batch.block_size(),
            scale: self.scale as f32,
            sequences: &sequences,
        };
        let (tokens, width) = (self.batch.num_tokens(), self.num_heads * self.head_dim);
        let mut output = vec![0f32; tokens * width];
        with_f32(&q.contiguous()?, |q| kernel.forward(q, cache, &mut output))?
            .map_err(candle_core::Error::wrap)?;
        Tensor::from_vec(output, (tokens, width), q.device())
    }

    /// Cache slots of a sequence's tokens in order.
    fn slots<'s>(&self, sequence: &'s SequenceSlice) -> impl Iterator<Item = u32> + use<'s> {
        let block_size = self.batch.block_size();
        (0..sequence.context_len).map(move |p| {
            sequence.blocks[p / block_size] * block_size as u32 + (p % block_size) as u32
        })
    }

    /// FlashAttention-2 over the gathered keys and values of all sequences at once.
    #[cfg(feature = "flash-attn")]
    fn forward_flash(
        &self,
        q: &Tensor,
        keys: &Tensor,
        values: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let sequences = self.batch.sequences();
        let slots: Vec<u32> = sequences
            .iter()
            .flat_map(|sequence| self.slots(sequence))
            .collect();
        let total = slots.len();
        let slots = Tensor::new(slots, q.device())?;
        let gathered = |rows: &Tensor| {
            rows.index_select(&slots, 0)?
                .reshape((total, self.num_kv_heads, self.head_dim))
        };
        let bounds = |length: fn(&SequenceSlice) -> usize| {
            let mut end = 0;
            let mut ends = vec![0u32];
            ends.extend(sequences.iter().map(|sequence| {
                end += length(sequence) as u32;
                end
            }));
            Tensor::new(ends, q.device())
        };
        let longest =
            |length: fn(&SequenceSlice) -> usize| sequences.iter().map(length).max().unwrap_or(0);
        let output = candle_flash_attn::flash_attn_varlen_windowed(
            &q.contiguous()?,
            &gathered(keys)?,
            &gathered(values)?,
            &bounds(|sequence| sequence.query_len)?,
            &bounds(|sequence| sequence.context_len)?,
            longest(|sequence| sequence.query_len),
            longest(|sequence| sequence.context_len),
            self.scale as f32,
            self.window.map(|window| window.saturating_sub(1)),
            Some(0),
        )?;
        output.reshape((self.batch.num_tokens(), self.num_heads * self.head_dim))
    }

    /// The same by Candle's own operations, for devices without a kernel of ours: keys and values of each sequence
    /// are gathered, scores are materialised in f32.
    fn forward_gathered(
        &self,
        q: &Tensor,
        keys: &Tensor,
        values: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let device = q.device();
        let groups = self.num_heads / self.num_kv_heads;
        let mut outputs = Vec::with_capacity(self.batch.sequences().len());
        for sequence in self.batch.sequences() {
            let slots = Tensor::new(self.slots(sequence).collect::<Vec<u32>>(), device)?;
            let gathered = |rows: &Tensor| {
                rows.index_select(&slots, 0)?
                    .reshape((sequence.context_len, self.num_kv_heads, self.head_dim))?
                    .transpose(0, 1)?
                    .contiguous()
            };
            let (keys, values) = (gathered(keys)?, gathered(values)?);
            // [kv_heads, groups * queries, head_dim]: each key/value head is read once for its group of query heads.
            let queries = q
                .narrow(0, sequence.query_start, sequence.query_len)?
                .reshape((sequence.query_len, self.num_kv_heads, groups, self.head_dim))?
                .permute((1, 2, 0, 3))?
                .contiguous()?
                .reshape((
                    self.num_kv_heads,
                    groups * sequence.query_len,
                    self.head_dim,
                ))?;
            let scores = (queries.matmul(&keys.t()?)?.to_dtype(DType::F32)? * self.scale)?;
            let scores = scores
                .reshape((
                    self.num_kv_heads,
                    groups,
                    sequence.query_len,
                    sequence.context_len,
                ))?
                .broadcast_add(&self.mask(sequence.query_len, sequence.context_len, device)?)?;
            let shares = candle_nn::ops::softmax(&scores, D::Minus1)?
                .to_dtype(values.dtype())?
                .reshape((
                    self.num_kv_heads,
                    groups * sequence.query_len,
                    sequence.context_len,
                ))?;
            let output = shares
                .matmul(&values)?
                .reshape((self.num_kv_heads, groups, sequence.query_len, self.head_dim))?
                .permute((2, 0, 1, 3))?
                .contiguous()?
                .reshape((sequence.query_len, self.num_heads * self.head_dim))?;
            outputs.push(output);
        }
        Tensor::cat(&outputs, 0)
    }

    fn mask(
        &self,
        query_len: usize,
        context_len: usize,
        device: &candle_core::Device,
    ) -> candle_core::Result<Tensor> {
        let first = context_len - query_len;
        let visible = |query: usize, key: usize| {
            let position = first + query;
            key <= position && self.window.is_none_or(|window| position - key < window)
        };
        let mask: Vec<f32> = (0..query_len)
            .flat_map(|query| (0..context_len).map(move |key| (query, key)))
            .map(|(query, key)| {
                if visible(query, key) {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            })
            .collect();
        Tensor::from_vec(mask, (query_len, context_len), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, CacheSpec, LayerSpec};
    use candle_core::Device;

    /// Two sequences with scattered blocks, one in mid-prompt and one decoding, after their history was cached.
    #[test]
    fn the_kernel_equals_the_gathered_computation() {
        let (num_heads, num_kv_heads, head_dim, block_size) = (6, 2, 10, 16);
        let width = num_kv_heads * head_dim;
        let slots = 16 * block_size;
        let spec = CacheSpec {
            layers: vec![LayerSpec::Attention {
                num_kv_heads,
                head_dim,
                dtype: DType::F32,
            }],
            shareable_prompt_len: None,
        };
        let mut cache = Cache::new(&spec, 16, block_size, 0, &Device::Cpu).unwrap();
        let paged = cache.layers_mut()[0].attention().unwrap();
        let mut plain = KvCache::tensors(slots, width, DType::F32, &Device::Cpu).unwrap();
        let slice = |query_start, query_len, context_len, blocks: &[u32]| SequenceSlice {
            query_start,
            query_len,
            context_len,
            prompt_len: context_len,
            blocks: blocks.to_vec(),
            state_slot: 0,
            axes: None,
        };
        let random = |rows: usize, width: usize| {
            Tensor::randn(0f32, 1.0, (rows, width), &Device::Cpu).unwrap()
        };
        let batch = |sequences: Vec<SequenceSlice>| {
            let tokens: usize = sequences.iter().map(|s| s.query_len).sum();
            Batch::new(&vec![0; tokens], sequences, &[0], block_size, &Device::Cpu).unwrap()
        };
        let mut append = |batch: &Batch| {
            let tokens = batch.num_tokens();
            let (keys, values) = (random(tokens, width), random(tokens, width));
            paged.append(&keys, &values, batch).unwrap();
            plain.append(&keys, &values, batch).unwrap();
        };
        append(&batch(vec![
            slice(0, 33, 33, &[7, 2, 11]),
            slice(33, 48, 48, &[0, 5, 3]),
        ]));
        let step = batch(vec![
            slice(0, 3, 36, &[7, 2, 11]),
            slice(3, 1, 49, &[0, 5, 3, 9]),
        ]);
        append(&step);

        let q = random(4, num_heads * head_dim)
            .reshape((4, num_heads, head_dim))
            .unwrap();
        for window in [None, Some(5)] {
            let attention = CausalAttention {
                batch: &step,
                num_heads,
                num_kv_heads,
                head_dim,
                window,
                scale: 0.3,
            };
            let [kernel, gathered] = [&*paged, &plain].map(|cache| {
                let output = attention.forward(&q, cache).unwrap();
                output.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            });
            let worst = kernel
                .iter()
                .zip(&gathered)
                .map(|(a, b)| (a - b).abs())
                .fold(0f32, f32::max);
            assert!(worst < 1e-5, "window {window:?}: {worst}");
        }
    }
}
