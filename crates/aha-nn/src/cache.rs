//! Paged caches of running sequences: storage here, ownership and allocation in the engine.

use crate::batch::Batch;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor};

/// What one layer keeps of a sequence between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerSpec {
    /// Keys and values of every token.
    Attention {
        /// Key/value heads (`num_key_value_heads`).
        num_kv_heads: usize,
        /// Size of a head (`head_dim`).
        head_dim: usize,
    },
}

/// What a model keeps of a sequence between steps, layer by layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSpec {
    /// One entry a decoder layer.
    pub layers: Vec<LayerSpec>,
    /// Type of the cached tensors.
    pub dtype: DType,
    /// Prompts up to this length may share cached blocks with others: beyond it some rope scalings make a key
    /// depend on the length of its whole prompt. `None`: always.
    pub shareable_prompt_len: Option<usize>,
}

impl CacheSpec {
    /// Bytes that one token takes in all layers.
    pub fn bytes_per_token(&self) -> usize {
        let values: usize = self
            .layers
            .iter()
            .map(|layer| match layer {
                LayerSpec::Attention {
                    num_kv_heads,
                    head_dim,
                } => 2 * num_kv_heads * head_dim,
            })
            .sum();
        values * self.dtype.size_in_bytes()
    }
}

/// Keys and values of one attention layer for all sequences, `[slots, num_kv_heads * head_dim]` each.
#[derive(Debug, Clone)]
pub struct KvCache {
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    /// Stores the new tokens' rotated keys and their values, both `[tokens, num_kv_heads * head_dim]`.
    pub fn append(&mut self, keys: &Tensor, values: &Tensor, batch: &Batch) -> Result<()> {
        for (cache, rows) in [(&self.keys, keys), (&self.values, values)] {
            let rows = rows.contiguous()?;
            if rows.device().is_cpu() {
                cache.inplace_op2(
                    &rows,
                    &WriteRows {
                        slots: batch.slots(),
                    },
                )?;
            } else {
                let index = batch
                    .slot_index()
                    .unsqueeze(1)?
                    .broadcast_as(rows.shape())?
                    .contiguous()?;
                cache.scatter_set(&index, &rows, 0)?;
            }
        }
        Ok(())
    }

    /// All cached keys, `[slots, num_kv_heads * head_dim]`.
    pub fn keys(&self) -> &Tensor {
        &self.keys
    }

    /// All cached values, `[slots, num_kv_heads * head_dim]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }
}

/// The caches of all layers, sized once.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<KvCache>,
    block_size: usize,
    num_blocks: usize,
}

impl Cache {
    /// Allocates `num_blocks` blocks of `block_size` tokens for every layer of `spec`.
    ///
    /// On the CPU the pages are only touched, and so only resident, once tokens are written to them.
    pub fn new(
        spec: &CacheSpec,
        num_blocks: usize,
        block_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let slots = num_blocks * block_size;
        let layers = spec
            .layers
            .iter()
            .map(
                |LayerSpec::Attention {
                     num_kv_heads,
                     head_dim,
                 }| {
                    let shape = (slots, num_kv_heads * head_dim);
                    Ok(KvCache {
                        keys: Tensor::zeros(shape, spec.dtype, device)?,
                        values: Tensor::zeros(shape, spec.dtype, device)?,
                    })
                },
            )
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            block_size,
            num_blocks,
        })
    }

    /// The caches in the order of the layers.
    pub fn layers_mut(&mut self) -> &mut [KvCache] {
        &mut self.layers
    }

    /// Tokens in a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }
}

/// Copies row `i` of the source to row `slots[i]` of the destination.
struct WriteRows<'a> {
    slots: &'a [u32],
}

impl InplaceOp2 for WriteRows<'_> {
    fn name(&self) -> &'static str {
        "write-rows"
    }

    fn cpu_fwd(
        &self,
        destination: &mut CpuStorage,
        destination_layout: &Layout,
        source: &CpuStorage,
        source_layout: &Layout,
    ) -> Result<()> {
        let (rows, width) = destination_layout.shape().dims2()?;
        let (count, source_width) = source_layout.shape().dims2()?;
        if count != self.slots.len()
            || source_width != width
            || self.slots.iter().any(|slot| *slot as usize >= rows)
        {
            candle_core::bail!(
                "cannot write {count} rows of {source_width} to a cache of {rows} rows of {width}"
            );
        }
        match (destination, source) {
            (CpuStorage::F32(to), CpuStorage::F32(from)) => {
                self.copy(to, from, width, destination_layout, source_layout);
            }
            (CpuStorage::F16(to), CpuStorage::F16(from)) => {
                self.copy(to, from, width, destination_layout, source_layout);
            }
            (CpuStorage::BF16(to), CpuStorage::BF16(from)) => {
                self.copy(to, from, width, destination_layout, source_layout);
            }
            _ => candle_core::bail!("the cache and its new rows differ in type"),
        }
        Ok(())
    }
}

impl WriteRows<'_> {
    fn copy<T: Copy>(
        &self,
        to: &mut [T],
        from: &[T],
        width: usize,
        to_layout: &Layout,
        from_layout: &Layout,
    ) {
        let to = &mut to[to_layout.start_offset()..];
        let from = &from[from_layout.start_offset()..];
        for (row, slot) in from.chunks_exact(width).zip(self.slots) {
            let start = *slot as usize * width;
            to[start..start + width].copy_from_slice(row);
        }
    }
}
