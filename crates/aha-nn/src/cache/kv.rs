//! Keys and values of attention layers.

use crate::batch::Batch;
use aha_kernels::{PagedCache, WeightKind};
use candle_core::{DType, Device, Error, Result, Tensor};

/// Keys and values of one attention layer for all sequences.
#[derive(Debug)]
pub enum KvCache {
    /// On the CPU, laid out for its kernel.
    Host(PagedCache),
    /// On an accelerator, `[slots, num_kv_heads * head_dim]` each.
    Device {
        /// Rotated keys.
        keys: Tensor,
        /// Values.
        values: Tensor,
    },
}

impl KvCache {
    /// Room for `slots` tokens of `num_kv_heads` keys and values of `head_dim` each.
    pub(super) fn new(
        slots: usize,
        num_kv_heads: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if !device.is_cpu() {
            return Self::tensors(slots, num_kv_heads * head_dim, dtype, device);
        }
        let kind = match dtype {
            DType::F32 => WeightKind::F32,
            DType::F16 => WeightKind::F16,
            other => {
                candle_core::bail!("the CPU keeps keys and values in f32 or f16, not {other:?}")
            }
        };
        let cache = PagedCache::new(kind, slots, num_kv_heads, head_dim).map_err(Error::wrap)?;
        Ok(Self::Host(cache))
    }

    /// As tensors, on any device.
    pub(crate) fn tensors(
        slots: usize,
        width: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self::Device {
            keys: Tensor::zeros((slots, width), dtype, device)?,
            values: Tensor::zeros((slots, width), dtype, device)?,
        })
    }
}

/// Stores the new tokens' `rows` `[tokens, width]` in their slots of `all` `[slots, width]`.
pub(crate) fn append(all: &Tensor, rows: &Tensor, batch: &Batch) -> Result<()> {
    let rows = rows.contiguous()?;
    let index = batch
        .slot_index()?
        .unsqueeze(1)?
        .broadcast_as(rows.shape())?
        .contiguous()?;
    all.scatter_set(&index, &rows, 0)
}
