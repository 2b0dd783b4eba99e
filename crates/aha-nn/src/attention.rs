//! Causal self-attention over paged caches.

use crate::batch::{Batch, SequenceSlice};
use crate::cache::{KvCache, append};
use crate::cpu::borrowed;
use crate::host::{HostStep, Parts, multiply_rows, paged_sequences, through_tensors};
use crate::linear::Linear;
use crate::mlp::Activation;
use crate::norm::RmsNorm;
use crate::ragged::{RaggedAttention, SequenceBounds};
use crate::rope::{RopePairing, Rotation};
use crate::weights::{Result, Weights};
use aha_kernels::{HeadRotation, PagedAttention, PagedCache, PagedSequence, Projected, Rows};
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
            window,
            ..
        } = self.config;
        let projected = self.project(x)?;
        let attended = match cache {
            KvCache::Host(cache) => {
                // Without the kernel's form, queries and keys come to it rotated.
                let (projected, rotation) = if rotation.has_kernel() {
                    (&projected, Some(rotation))
                } else {
                    (&self.rotated(projected.clone(), rotation)?, None)
                };
                let Projections {
                    queries,
                    keys,
                    values,
                    ..
                } = projected;
                let rows = [queries, keys, values].map(borrowed);
                let rows = [
                    rows[0].rows_f32()?,
                    rows[1].rows_f32()?,
                    rows[2].rows_f32()?,
                ];
                let mut attended = vec![0f32; batch.num_tokens() * num_heads * head_dim];
                let sequences = paged_sequences(batch).collect::<Vec<_>>();
                self.attend(rows, rotation, batch, &sequences, cache, &mut attended)?;
                Tensor::from_vec(
                    attended,
                    (batch.num_tokens(), num_heads * head_dim),
                    x.device(),
                )?
            }
            KvCache::Device { keys, values } => {
                let attention = CausalAttention {
                    batch,
                    num_heads,
                    num_kv_heads,
                    head_dim,
                    window,
                    scale: 1.0 / (head_dim as f64).sqrt(),
                };
                let projected = self.rotated(projected.clone(), rotation)?;
                let width = num_kv_heads * head_dim;
                let new_keys = projected.keys.reshape((batch.num_tokens(), width))?;
                append(keys, &new_keys, batch)?;
                append(values, &projected.values, batch)?;
                attention.forward(&projected.queries, keys, values)?
            }
        };
        self.output(attended, projected.gate)
    }

    /// The same from rows to rows on the CPU.
    ///
    /// # Errors
    /// When weights or cache are on another device, or a slice does not fit.
    pub fn forward_rows(
        &self,
        x: &[f32],
        step: &HostStep<'_>,
        cache: &mut KvCache,
        parts: &mut Parts,
        out: &mut [f32],
    ) -> candle_core::Result<()> {
        let (tokens, config) = (step.num_tokens(), &self.config);
        let cache = match cache {
            KvCache::Host(cache) if step.rotation.has_kernel() => cache,
            cache => {
                return through_tensors(x, tokens, out, |x| {
                    self.forward(x, step.rotation, step.batch, cache)
                });
            }
        };
        let (width, kv_width) = (
            config.num_heads * config.head_dim,
            config.num_kv_heads * config.head_dim,
        );
        let gate_width = if config.output_gate { width } else { 0 };
        let widths = [width, width, kv_width, kv_width, gate_width, 2 * gate_width];
        let [attended, queries, keys, values, gates, pairs] =
            parts.rows(widths.map(|width| tokens * width));
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let first = if config.output_gate {
            &mut *pairs
        } else {
            &mut *queries
        };
        Linear::forward_rows(projections, x, tokens, [first, &mut *keys, &mut *values])?;
        if config.output_gate {
            split_gates(pairs, config.head_dim, queries, gates);
        }
        let rows = [(&*queries, width), (&*keys, kv_width), (&*values, kv_width)]
            .map(|(values, stride)| Rows { values, stride });
        let rotation = Some(step.rotation);
        self.attend(rows, rotation, step.batch, step.sequences, cache, attended)?;
        if !config.output_gate {
            return Linear::forward_rows([&self.o_proj], attended, tokens, [out]);
        }
        Activation::Sigmoid.forward_rows(gates)?;
        let [attended, gates] = [&*attended, &*gates].map(|values| Rows {
            values,
            stride: width,
        });
        // The queries have served.
        multiply_rows(attended, gates, width, queries)?;
        Linear::forward_rows([&self.o_proj], queries, tokens, [out])
    }

    /// The CPU's kernel, which appends the tokens' keys and values to the cache, and reads all where they lie.
    /// `projected` are queries `[tokens, num_heads * head_dim]`, keys and values `[tokens, num_kv_heads * head_dim]`; it
    /// norms and rotates queries and keys where there is a rotation, which must have the kernel's form.
    fn attend(
        &self,
        projected: [Rows<'_>; 3],
        rotation: Option<&Rotation>,
        batch: &Batch,
        sequences: &[PagedSequence<'_>],
        cache: &mut PagedCache,
        out: &mut [f32],
    ) -> candle_core::Result<()> {
        let config = &self.config;
        let kernel = PagedAttention {
            num_heads: config.num_heads,
            block_size: batch.block_size(),
            scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
            window: config.window,
            sequences,
        };
        let [queries, keys, values] = projected;
        let mut run = |rotations: Option<[HeadRotation<'_>; 2]>| {
            let projected = Projected {
                queries,
                keys,
                values,
                rotations,
            };
            kernel
                .forward_appending(&projected, cache, out)
                .map_err(candle_core::Error::wrap)
        };
        let Some(rotation) = rotation else {
            return run(None);
        };
        let heads = [
            (config.num_heads, self.q_norm.as_ref()),
            (config.num_kv_heads, self.k_norm.as_ref()),
        ];
        let norm_after = config.norm_after_rotation;
        rotation.with_kernels(heads, config.head_dim, norm_after, |rotations| {
            run(Some(rotations))
        })
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
        let projected = self.rotated(self.project(x)?, rotation)?;
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

    fn project(&self, x: &Tensor) -> candle_core::Result<Projections> {
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
        Ok(Projections {
            queries: q,
            keys: k.reshape((tokens, num_kv_heads, head_dim))?,
            values,
            gate,
        })
    }

    /// The same with queries and keys normed and rotated.
    fn rotated(
        &self,
        projected: Projections,
        rotation: &Rotation,
    ) -> candle_core::Result<Projections> {
        let placed = |x: &Tensor, norm: Option<&RmsNorm>| {
            rotation.apply_normed(x, norm, self.config.norm_after_rotation)
        };
        Ok(Projections {
            queries: placed(&projected.queries, self.q_norm.as_ref())?,
            keys: placed(&projected.keys, self.k_norm.as_ref())?,
            ..projected
        })
    }

    /// The output projection of `attended` `[tokens, num_heads * head_dim]`, behind its gate where there is one.
    fn output(&self, mut attended: Tensor, gate: Option<Tensor>) -> candle_core::Result<Tensor> {
        if let Some(gate) = gate {
            attended = (attended * Activation::Sigmoid.forward(&gate)?)?;
        }
        self.o_proj.forward(&attended)
    }
}

/// Takes the gate behind each head's query, `pairs` `[tokens, num_heads, 2 * head_dim]`, apart from it.
fn split_gates(pairs: &[f32], head_dim: usize, queries: &mut [f32], gates: &mut [f32]) {
    let heads = (queries.chunks_exact_mut(head_dim)).zip(gates.chunks_exact_mut(head_dim));
    for (pair, (query, gate)) in pairs.chunks_exact(2 * head_dim).zip(heads) {
        query.copy_from_slice(&pair[..head_dim]);
        gate.copy_from_slice(&pair[head_dim..]);
    }
}

/// What attention is computed from.
#[derive(Clone)]
struct Projections {
    /// `[tokens, num_heads, head_dim]`.
    queries: Tensor,
    /// `[tokens, num_kv_heads, head_dim]`.
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
    /// `q` is `[tokens, num_heads, head_dim]`, keys and values are those of all slots; the result is
    /// `[tokens, num_heads * head_dim]`.
    fn forward(&self, q: &Tensor, keys: &Tensor, values: &Tensor) -> candle_core::Result<Tensor> {
        #[cfg(feature = "flash-attn")]
        if q.device().is_cuda() && matches!(q.dtype(), DType::F16 | DType::BF16) {
            return self.forward_flash(q, keys, values);
        }
        self.forward_gathered(q, keys, values)
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
    use crate::rotation::{RotationForm, Table};
    use crate::testing::{close, random};
    use candle_core::Device;

    const BLOCK: usize = 16;

    fn slice(query_start: usize, query_len: usize, end: usize, blocks: &[u32]) -> SequenceSlice {
        SequenceSlice {
            query_start,
            query_len,
            context_len: end,
            prompt_len: end,
            blocks: blocks.to_vec(),
            state_slot: 0,
            axes: None,
        }
    }

    fn batch(sequences: Vec<SequenceSlice>) -> Batch {
        let tokens: usize = sequences.iter().map(|s| s.query_len).sum();
        Batch::new(&vec![0; tokens], sequences, &[0], BLOCK, &Device::Cpu).unwrap()
    }

    /// Two sequences with scattered blocks: their prompts, a step of both, and one of the first alone.
    fn steps() -> Vec<Batch> {
        let (first, second) = ([7, 2, 11], [0, 5, 3, 9]);
        vec![
            batch(vec![slice(0, 33, 33, &first), slice(33, 48, 48, &second)]),
            batch(vec![slice(0, 3, 36, &first), slice(3, 1, 49, &second)]),
            batch(vec![slice(0, 1, 37, &first)]),
        ]
    }

    /// What the CPU's kernel makes of all steps is what Candle's operations make of them.
    fn check(attention: &SelfAttention, rotation: impl Fn(usize) -> Rotation) {
        let AttentionConfig {
            hidden_size,
            num_kv_heads,
            head_dim,
            ..
        } = attention.config;
        let spec = CacheSpec {
            layers: vec![LayerSpec::Attention {
                num_kv_heads,
                head_dim,
                dtype: DType::F32,
            }],
            shareable_prompt_len: None,
        };
        let mut cache = Cache::new(&spec, 16, BLOCK, 0, &Device::Cpu).unwrap();
        let host = cache.layers_mut()[0].attention().unwrap();
        let width = num_kv_heads * head_dim;
        let mut plain = KvCache::tensors(16 * BLOCK, width, DType::F32, &Device::Cpu).unwrap();
        for batch in steps() {
            let x = random(&[batch.num_tokens(), hidden_size]);
            let rotation = rotation(batch.num_tokens());
            let forward = |cache: &mut KvCache| attention.forward(&x, &rotation, &batch, cache);
            let (have, want) = (forward(host).unwrap(), forward(&mut plain).unwrap());
            close(&have, &want, 1e-5);
            // Once more to the same slots, by rows.
            let sequences: Vec<_> = paged_sequences(&batch).collect();
            let step = HostStep {
                batch: &batch,
                rotation: &rotation,
                sequences: &sequences,
                recurrent_sequences: &[],
            };
            let (mut parts, mut rows) = (Parts::default(), vec![0.0; x.elem_count()]);
            let x = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            attention
                .forward_rows(&x, &step, host, &mut parts, &mut rows)
                .unwrap();
            let have = have.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(rows, have);
        }
    }

    fn attention(config: AttentionConfig) -> SelfAttention {
        let AttentionConfig {
            hidden_size,
            num_heads,
            num_kv_heads,
            head_dim,
            ..
        } = config;
        let linear = |rows: usize, columns: usize| {
            Linear::from_tensor(&(random(&[rows, columns]) * 0.3).unwrap()).unwrap()
        };
        let gated = if config.output_gate { 2 } else { 1 };
        let norm = || {
            let weight = random(&[head_dim]);
            (config.qk_norm_eps).map(|eps| RmsNorm::from_tensor(weight, eps as f32))
        };
        SelfAttention {
            q_proj: linear(gated * num_heads * head_dim, hidden_size),
            k_proj: linear(num_kv_heads * head_dim, hidden_size),
            v_proj: linear(num_kv_heads * head_dim, hidden_size),
            o_proj: linear(hidden_size, num_heads * head_dim),
            q_norm: norm(),
            k_norm: norm(),
            cache_dtype: DType::F32,
            config,
        }
    }

    fn rotation(tokens: usize) -> Rotation {
        let angles: Vec<f32> = (0..4 * tokens).map(|index| 0.7 * index as f32).collect();
        Rotation::from_angles(&angles, 4, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_kernel_equals_the_gathered_computation() {
        let plain = AttentionConfig {
            hidden_size: 24,
            num_heads: 6,
            num_kv_heads: 2,
            head_dim: 10,
            ..AttentionConfig::default()
        };
        let normed = AttentionConfig {
            qk_norm_eps: Some(1e-6),
            ..plain.clone()
        };
        let variants = [
            AttentionConfig {
                window: Some(5),
                ..plain.clone()
            },
            AttentionConfig {
                norm_after_rotation: true,
                ..normed.clone()
            },
            AttentionConfig {
                output_gate: true,
                ..normed.clone()
            },
            plain,
            normed,
        ];
        for config in variants {
            check(&attention(config), rotation);
        }
    }

    /// An angle for each value is a form that the kernel does not know.
    #[test]
    fn queries_and_keys_may_come_rotated() {
        let attention = attention(AttentionConfig {
            hidden_size: 24,
            num_heads: 4,
            num_kv_heads: 4,
            head_dim: 8,
            qk_norm_eps: Some(1e-6),
            ..AttentionConfig::default()
        });
        check(&attention, |tokens| {
            let rotation = rotation(tokens);
            let Table::Host { cos, sin, width } = rotation.table else {
                panic!("the rotation is not on the CPU");
            };
            let doubled = |values: Vec<f32>| {
                let rows = values.chunks_exact(width);
                rows.flat_map(|row| [row, row].concat()).collect()
            };
            Rotation {
                table: Table::Host {
                    cos: doubled(cos),
                    sin: doubled(sin),
                    width: 2 * width,
                },
                form: RotationForm::Values,
            }
        });
    }
}
