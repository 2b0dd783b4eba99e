//! Causal depthwise convolution over the last few tokens.

use crate::batch::Batch;
use crate::cache::StateRows;
use crate::cpu::with_f32;
use crate::host::HostStep;
use crate::weights::{Result, Weights, WeightsError};
use aha_kernels::RecurrentSequence;
use candle_core::{DType, Tensor};

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
        match &self.filter {
            Filter::Host { .. } => {
                let x = x.contiguous()?;
                let sequences: Vec<_> = recurrent_sequences(batch).collect();
                let mut out = vec![0f32; x.elem_count()];
                with_f32(&x, |x| self.filter(x, &sequences, inputs, &mut out))??;
                Tensor::from_vec(out, x.shape(), x.device())
            }
            Filter::Device { weight, bias } => {
                self.forward_shifted(x, weight, bias.as_ref(), batch, inputs)
            }
        }
    }

    /// The same from rows to rows on the CPU, both `[tokens, channels]`.
    ///
    /// # Errors
    /// When filter or states are on another device, or a slice does not fit.
    pub fn forward_rows(
        &self,
        x: &[f32],
        step: &HostStep<'_>,
        inputs: &mut StateRows,
        out: &mut [f32],
    ) -> candle_core::Result<()> {
        self.filter(x, step.recurrent_sequences, inputs, out)
    }

    /// The CPU's kernel.
    fn filter(
        &self,
        x: &[f32],
        sequences: &[RecurrentSequence],
        inputs: &mut StateRows,
        out: &mut [f32],
    ) -> candle_core::Result<()> {
        let (Filter::Host { weight, bias }, StateRows::Host { values, .. }) =
            (&self.filter, inputs)
        else {
            candle_core::bail!("a filter and its states are not both on the CPU")
        };
        let kernel = aha_kernels::ShortConv {
            channels: self.channels,
            kernel_size: self.kernel_size,
            sequences,
        };
        kernel
            .forward(x, weight, bias.as_deref(), values, out)
            .map_err(candle_core::Error::wrap)
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

/// A batch's sequences, as the kernels of recurrent layers take them.
pub(crate) fn recurrent_sequences(batch: &Batch) -> impl Iterator<Item = RecurrentSequence> {
    batch.sequences().iter().map(|sequence| RecurrentSequence {
        query_start: sequence.query_start,
        query_len: sequence.query_len,
        slot: sequence.state_slot as usize,
        fresh: sequence.is_start(),
    })
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
