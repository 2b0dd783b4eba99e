//! Keys and values of attention layers.

use crate::batch::Batch;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor};

/// Keys and values of one attention layer for all sequences, `[slots, num_kv_heads * head_dim]` each.
#[derive(Debug, Clone)]
pub struct KvCache {
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    /// Room for `slots` tokens of `width = num_kv_heads * head_dim` values.
    pub(super) fn new(slots: usize, width: usize, dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self {
            keys: Tensor::zeros((slots, width), dtype, device)?,
            values: Tensor::zeros((slots, width), dtype, device)?,
        })
    }

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
