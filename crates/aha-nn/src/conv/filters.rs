//! The filters of a convolution while they are loaded: values on the host, before they go to their place.

use crate::linear::{kind_for, pack_values};
use crate::weights::{Placement, Result, StoredType, Weights, WeightsError};
use aha_kernels::PackedMatrix;
use candle_core::Tensor;

/// The batch norm (arXiv 1502.03167) behind a convolution.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm<'a> {
    /// Where `weight`, `bias`, `running_mean` and `running_var` are, one value an output channel each.
    pub weights: &'a Weights,
    /// What is added to the variance.
    pub eps: f32,
}

/// Values of filters `[out_channels, in_channels / groups, taps]`.
pub(super) struct Filters {
    /// Row-major.
    pub(super) weight: Vec<f32>,
    /// One value an output channel.
    pub(super) bias: Option<Vec<f32>>,
    /// The number of output channels.
    pub(super) out_channels: usize,
    /// Positions of a filter: its height times its width.
    pub(super) taps: usize,
    /// How the CPU stores the values.
    pub(super) kind: StoredType,
}

impl Filters {
    /// Loads `weight` of `shape`, whose first dimension are the output channels and whose last two the taps, and
    /// `bias` where asked for. None when the checkpoint lacks something, which [`Weights::finish`] reports.
    pub(super) fn load(weights: &Weights, shape: [usize; 4], bias: bool) -> Result<Option<Self>> {
        let stored = weights.stored("weight", &shape)?;
        let bias = match bias {
            true => vector(weights, "bias", shape[0])?.map(Some),
            false => Some(None),
        };
        let (Some(stored), Some(bias)) = (stored, bias) else {
            return Ok(None);
        };
        let filters = Self {
            weight: stored.to_f32()?,
            bias,
            out_channels: shape[0],
            taps: shape[2] * shape[3],
            kind: kind_for(stored.stored(), weights.placement().weights),
        };
        // The copy is all that is read from here on: two need not be resident.
        stored.release();
        Ok(Some(filters))
    }

    /// Takes in a batch norm that follows the convolution: at inference it is one factor and one summand a channel,
    /// `weight / sqrt(running_var + eps)` and `bias - running_mean * factor`.
    pub(super) fn fold(&mut self, norm: BatchNorm<'_>) -> Result<()> {
        let load = |name| vector(norm.weights, name, self.out_channels);
        let loaded = (
            load("weight")?,
            load("bias")?,
            load("running_mean")?,
            load("running_var")?,
        );
        let (Some(weight), Some(shift), Some(mean), Some(variance)) = loaded else {
            return Ok(());
        };
        let mut bias = self
            .bias
            .take()
            .unwrap_or_else(|| vec![0.0; self.out_channels]);
        let inputs = self.weight.len() / self.out_channels.max(1);
        let filters = self.weight.chunks_exact_mut(inputs.max(1));
        for (channel, (filter, bias)) in filters.zip(&mut bias).enumerate() {
            let factor = weight[channel] / (variance[channel] + norm.eps).sqrt();
            filter.iter_mut().for_each(|value| *value *= factor);
            *bias = (*bias - mean[channel]) * factor + shift[channel];
        }
        self.bias = Some(bias);
        Ok(())
    }

    /// The filters of each of `groups` as a matrix `[out_channels / groups, taps * in_channels / groups]`: taps, then
    /// channels, which is how pixels lie in memory when channels are the last dimension.
    pub(super) fn pack(&self, groups: usize) -> Result<Vec<PackedMatrix>> {
        let inputs = self.weight.len() / self.out_channels.max(1);
        let channels = inputs / self.taps.max(1);
        let mut rearranged = vec![0f32; self.weight.len()];
        let filters = self.weight.chunks_exact(inputs.max(1));
        for (filter, out) in filters.zip(rearranged.chunks_exact_mut(inputs.max(1))) {
            for (tap, out) in out.chunks_exact_mut(channels.max(1)).enumerate() {
                for (channel, value) in out.iter_mut().enumerate() {
                    *value = filter[channel * self.taps + tap];
                }
            }
        }
        let rows = self.out_channels / groups;
        rearranged
            .chunks_exact((rows * inputs).max(1))
            .map(|group| pack_values(self.kind, rows, inputs, group))
            .collect()
    }

    /// The filters as a tensor of `shape` on an accelerator, and the bias as `[out_channels]`.
    pub(super) fn to_tensors(
        &self,
        shape: &[usize],
        placement: &Placement,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let place = |values: &[f32], shape: &[usize]| {
            Tensor::from_slice(values, shape, &candle_core::Device::Cpu)?
                .to_dtype(placement.dtype)?
                .to_device(&placement.device)
                .map_err(WeightsError::from)
        };
        let bias = self.bias.as_deref();
        Ok((
            place(&self.weight, shape)?,
            bias.map(|bias| place(bias, &[self.out_channels]))
                .transpose()?,
        ))
    }
}

/// A vector of the checkpoint in f32.
fn vector(weights: &Weights, name: &str, len: usize) -> Result<Option<Vec<f32>>> {
    weights
        .stored(name, &[len])?
        .map(|stored| stored.to_f32())
        .transpose()
}
