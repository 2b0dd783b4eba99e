//! What this crate's unit tests share.

use crate::batch::{Batch, SequenceSlice};
use candle_core::{Device, Tensor};

/// A batch of sequences without attention: `(state slot, new tokens, tokens afterwards)` each.
pub(crate) fn batch_of(sequences: &[(u32, usize, usize)]) -> Batch {
    let mut query_start = 0;
    let slices: Vec<SequenceSlice> = sequences
        .iter()
        .map(|&(state_slot, query_len, context_len)| {
            let slice = SequenceSlice {
                query_start,
                query_len,
                context_len,
                prompt_len: context_len,
                blocks: (0..context_len.div_ceil(16) as u32).collect(),
                state_slot,
                axes: None,
            };
            query_start += query_len;
            slice
        })
        .collect();
    Batch::new(&vec![0; query_start], slices, &[0], 16, &Device::Cpu).unwrap()
}

/// Normally distributed values.
pub(crate) fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
}

/// Asserts that no value differs by more than `tolerance`.
pub(crate) fn close(a: &Tensor, b: &Tensor, tolerance: f32) {
    let gap = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    let worst = gap.max(0).unwrap().to_scalar::<f32>().unwrap();
    assert!(worst <= tolerance, "{worst}");
}
