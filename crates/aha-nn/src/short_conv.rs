//! Causal depthwise convolution over the last few tokens.

use crate::batch::Batch;
use crate::cache::StateRows;
use crate::cpu::contiguous_f32;
use crate::weights::{Result, Weights, WeightsError};
use aha_kernels::RecurrentSequence;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};
use std::sync::{Mutex, PoisonError};

/// A filter of `kernel_size` taps for each channel; the last tap meets the current token.
#[derive(Debug, Clone)]
pub struct ShortConv {
    channels: usize,
    kernel_size: usize,
    filter: Filter,
}

#[derive(Debug, Clone)]
enum Filter {
    /// `weight` is `[kernel_size, channels]`.
    Host {
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
    },
    /// The same, f32.
    Device {
        weight: Tensor,
        bias: Option<Tensor>,
    },
}

impl ShortConv {
    /// Loads `weight` `[channels, 1, kernel_size]` (GGUF files lack the middle dimension) and, where the
    /// configuration says so, `bias`.
    pub fn load(
        weights: &Weights,
        channels: usize,
        kernel_size: usize,
        bias: bool,
    ) -> Result<Self> {
        let flat = weights
            .shape("weight")
            .is_some_and(|shape| shape.len() == 2);
        let shape: &[usize] = if flat {
            &[channels, kernel_size]
        } else {
            &[channels, 1, kernel_size]
        };
        let taps = |weight: Tensor| {
            weight
                .to_dtype(DType::F32)?
                .reshape((channels, kernel_size))?
                .t()?
                .contiguous()
        };
        let weight = taps(weights.tensor("weight", shape)?).map_err(WeightsError::from)?;
        let bias = bias
            .then(|| {
                let bias = weights.tensor("bias", &[channels])?;
                bias.to_dtype(DType::F32).map_err(WeightsError::from)
            })
            .transpose()?;
        let filter = if weight.device().is_cpu() {
            let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
            Filter::Host {
                weight: values(&weight).map_err(WeightsError::from)?,
                bias: bias
                    .as_ref()
                    .map(values)
                    .transpose()
                    .map_err(WeightsError::from)?,
            }
        } else {
            Filter::Device { weight, bias }
        };
        Ok(Self {
            channels,
            kernel_size,
            filter,
        })
    }

    /// Filters the batch's rows `x` `[tokens, channels]`, each sequence after its own past, which gains them.
    pub fn forward(
        &self,
        x: &Tensor,
        batch: &Batch,
        inputs: &mut StateRows,
    ) -> candle_core::Result<Tensor> {
        match (&self.filter, inputs) {
            (Filter::Host { weight, bias }, StateRows::Host { values, .. }) => {
                let kernel = HostConv {
                    conv: self,
                    weight,
                    bias: bias.as_deref(),
                    sequences: &recurrent_sequences(batch),
                    states: Mutex::new(values),
                };
                x.contiguous()?.apply_op1_no_bwd(&kernel)
            }
            (Filter::Device { weight, bias }, inputs) => {
                self.forward_shifted(x, weight, bias.as_ref(), batch, inputs)
            }
            (Filter::Host { .. }, StateRows::Device(_)) => {
                candle_core::bail!("a filter on the CPU meets states on another device")
            }
        }
    }

    /// The same by Candle's own operations, for devices without a kernel of ours: a sum of shifted rows.
    fn forward_shifted(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        batch: &Batch,
        inputs: &mut StateRows,
    ) -> candle_core::Result<Tensor> {
        let past = self.kernel_size - 1;
        let mut outputs = Vec::with_capacity(batch.sequences().len());
        for sequence in batch.sequences() {
            let rows = x
                .narrow(0, sequence.query_start, sequence.query_len)?
                .to_dtype(DType::F32)?;
            let before = if sequence.is_start() {
                Tensor::zeros((past, self.channels), DType::F32, x.device())?
            } else {
                inputs
                    .read(sequence.state_slot, x.device())?
                    .reshape((past, self.channels))?
            };
            let window = Tensor::cat(&[before, rows], 0)?;
            let mut sum = window
                .narrow(0, 0, sequence.query_len)?
                .broadcast_mul(&weight.get(0)?)?;
            for tap in 1..self.kernel_size {
                let shifted = window.narrow(0, tap, sequence.query_len)?;
                sum = (sum + shifted.broadcast_mul(&weight.get(tap)?)?)?;
            }
            if let Some(bias) = bias {
                sum = sum.broadcast_add(bias)?;
            }
            if past > 0 {
                let last = window.narrow(0, sequence.query_len, past)?.contiguous()?;
                inputs.write(sequence.state_slot, &last)?;
            }
            outputs.push(sum);
        }
        Tensor::cat(&outputs, 0)?.to_dtype(x.dtype())
    }
}

/// The batch's sequences as the kernels of recurrent layers see them.
pub(crate) fn recurrent_sequences(batch: &Batch) -> Vec<RecurrentSequence> {
    batch
        .sequences()
        .iter()
        .map(|sequence| RecurrentSequence {
            query_start: sequence.query_start,
            query_len: sequence.query_len,
            slot: sequence.state_slot as usize,
            fresh: sequence.is_start(),
        })
        .collect()
}

struct HostConv<'a> {
    conv: &'a ShortConv,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    sequences: &'a [RecurrentSequence],
    states: Mutex<&'a mut Vec<f32>>,
}

impl CustomOp1 for HostConv<'_> {
    fn name(&self) -> &'static str {
        "short-conv"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = contiguous_f32(x, layout)?;
        let mut out = vec![0f32; x.len()];
        let kernel = aha_kernels::ShortConv {
            channels: self.conv.channels,
            kernel_size: self.conv.kernel_size,
            sequences: self.sequences,
        };
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        kernel
            .forward(x, self.weight, self.bias, &mut states, &mut out)
            .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, CacheSpec, LayerSpec};
    use crate::testing::{batch_of, close, random};
    use candle_core::Device;

    #[test]
    fn the_kernel_equals_the_shifted_sum_over_several_steps() {
        let (channels, kernel_size) = (6, 4);
        let spec = CacheSpec {
            layers: vec![LayerSpec::ShortConv {
                channels,
                kernel_size,
            }],
            shareable_prompt_len: None,
        };
        let cache = || Cache::new(&spec, 0, 16, 3, &Device::Cpu).unwrap();
        let (mut by_kernel, mut by_sum) = (cache(), cache());
        let (weight, bias) = (random(&[kernel_size, channels]), random(&[channels]));
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let conv = ShortConv {
            channels,
            kernel_size,
            filter: Filter::Host {
                weight: values(&weight),
                bias: Some(values(&bias)),
            },
        };
        // (slot, new tokens, tokens afterwards): prompts shorter and longer than the filter, then single tokens.
        for step in [
            vec![(2, 2, 2), (0, 5, 5)],
            vec![(2, 1, 3), (0, 1, 6)],
            vec![(0, 3, 9), (1, 1, 1), (2, 2, 5)],
        ] {
            let batch = batch_of(&step);
            let x = random(&[batch.num_tokens(), channels]);
            let rows = &mut by_kernel.layers_mut()[0].recurrent().unwrap().inputs;
            let kernel = conv.forward(&x, &batch, rows).unwrap();
            let rows = &mut by_sum.layers_mut()[0].recurrent().unwrap().inputs;
            let sum = conv
                .forward_shifted(&x, &weight, Some(&bias), &batch, rows)
                .unwrap();
            close(&kernel, &sum, 1e-5);
        }
    }
}
