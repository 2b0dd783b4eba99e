//! Pictures to patches on the device, and encoded patches back to the inputs that they came from.

use crate::error::LoadError;
use aha_engine::{EncoderContent, EncoderInput};
use aha_media::image::{Normalization, PatchOrder, patches};
use aha_nn::weights::Weights;
use candle_core::{DType, Device, Result, Tensor};

/// Cuts the pictures of a step into patches, laid end to end without padding.
#[derive(Debug)]
pub struct PatchReader {
    order: PatchOrder,
    normalization: Normalization,
    device: Device,
    dtype: DType,
}

impl PatchReader {
    /// `order` and `normalization` are the preprocessor's; `patch_size`, `merge_size` and `temporal_patch_size` the
    /// tower's, which must be the same. Patches go where `weights` are.
    pub fn new(
        order: PatchOrder,
        [patch_size, merge_size, temporal_patch_size]: [usize; 3],
        normalization: Normalization,
        weights: &Weights,
    ) -> std::result::Result<Self, LoadError> {
        let sizes = [
            ("patch_size", order.patch_size, patch_size),
            ("merge_size", order.merge_size, merge_size),
            (
                "temporal_patch_size",
                order.temporal_patch_size,
                temporal_patch_size,
            ),
        ];
        for (key, prepared, own) in sizes {
            if prepared as usize != own {
                let reason = format!("the preprocessor's is {prepared}, but the tower's is {own}");
                return Err(LoadError::config(key, reason));
            }
        }
        Ok(Self {
            order,
            normalization,
            device: weights.device().clone(),
            dtype: weights.dtype(),
        })
    }

    /// Patches of all inputs `[patches, channels * frames * patch * patch]`, and each input's grid: patches in time,
    /// height and width.
    pub fn read(&self, inputs: &[&EncoderInput]) -> Result<(Tensor, Vec<[usize; 3]>)> {
        let (mut pixels, mut grids) = (Vec::new(), Vec::with_capacity(inputs.len()));
        for input in inputs {
            let EncoderContent::Frames(frames) = &input.content else {
                candle_core::bail!("a vision tower takes pictures");
            };
            let (values, grid) = patches(frames, &self.order, &self.normalization)
                .map_err(candle_core::Error::wrap)?;
            if pixels.is_empty() {
                pixels = values;
            } else {
                pixels.extend(values);
            }
            grids.push(grid.map(|side| side as usize));
        }
        let count = grids
            .iter()
            .map(|grid| grid.iter().product::<usize>())
            .sum();
        let width = pixels.len().checked_div(count).unwrap_or(0);
        let pixels = Tensor::from_vec(pixels, (count, width), &self.device)?;
        Ok((pixels.to_dtype(self.dtype)?, grids))
    }
}
