//! Views of pages through the towers of both releases.

use crate::vision::sam::PATCH_SIZE;
use aha_engine::{EncoderContent, EncoderInput};
use aha_media::image::{Image, Normalization, PatchLayout, PatchOrder, patches};
use aha_nn::weights::Weights;
use candle_core::{DType, Device, Result, Tensor};

/// Patches that the towers see at once: more bring no speed, and their activations take memory.
const PATCHES_AT_ONCE: usize = 8192;

const ORDER: PatchOrder = PatchOrder {
    patch_size: PATCH_SIZE as u32,
    merge_size: 1,
    temporal_patch_size: 1,
    layout: PatchLayout::ChannelFirst,
};

/// Cuts views into patches and groups them by size.
#[derive(Debug)]
pub struct ViewReader {
    normalization: Normalization,
    device: Device,
    dtype: DType,
}

impl ViewReader {
    /// Patches go where `weights` are.
    pub fn new(weights: &Weights) -> Self {
        Self {
            normalization: Normalization::from_values(|_, sample| {
                (f32::from(sample) / 255.0 - 0.5) / 0.5
            }),
            device: weights.device().clone(),
            dtype: weights.dtype(),
        }
    }

    /// Patches of square views of one size, `[views * side * side, 3 * 16 * 16]`, and `side`.
    pub fn read(&self, views: &[&Image]) -> Result<(Tensor, usize)> {
        let (mut pixels, mut side) = (Vec::new(), 0);
        for view in views {
            let (values, [_, rows, _]) =
                patches(std::slice::from_ref(*view), &ORDER, &self.normalization)
                    .map_err(candle_core::Error::wrap)?;
            side = rows as usize;
            pixels.extend(values);
        }
        let shape = (views.len() * side * side, 3 * PATCH_SIZE * PATCH_SIZE);
        let pixels = Tensor::from_vec(pixels, shape, &self.device)?;
        Ok((pixels.to_dtype(self.dtype)?, side))
    }

    /// Patches of an input's view of the whole, and how many lie along its side.
    pub fn first_view(&self, input: &EncoderInput) -> Result<(Tensor, usize)> {
        self.read(&[&frames(input)?[0]])
    }

    /// What `encode` makes of the views of each input, `[places, width]` each. It is called with patches of views of
    /// one size, and gives `[views, places, width]`.
    pub fn encode_all(
        &self,
        inputs: &[&EncoderInput],
        encode: impl Fn(&Tensor, usize) -> Result<Tensor>,
    ) -> Result<Vec<Vec<Tensor>>> {
        let views: Vec<&[Image]> = inputs
            .iter()
            .map(|input| frames(input))
            .collect::<Result<_>>()?;
        let mut order: Vec<(usize, usize)> = views
            .iter()
            .enumerate()
            .flat_map(|(input, views)| (0..views.len()).map(move |view| (input, view)))
            .collect();
        order.sort_by_key(|&(input, view)| views[input][view].width());
        let mut outputs: Vec<Vec<Option<Tensor>>> =
            views.iter().map(|views| vec![None; views.len()]).collect();
        let width = |&(input, view): &(usize, usize)| views[input][view].width();
        for of_size in order.chunk_by(|a, b| width(a) == width(b)) {
            let patches = (width(&of_size[0]) as usize / PATCH_SIZE).pow(2).max(1);
            for group in of_size.chunks((PATCHES_AT_ONCE / patches).max(1)) {
                let images: Vec<&Image> = group
                    .iter()
                    .map(|&(input, view)| &views[input][view])
                    .collect();
                let (pixels, side) = self.read(&images)?;
                let encoded = encode(&pixels, side)?;
                for (index, &(input, view)) in group.iter().enumerate() {
                    outputs[input][view] = Some(encoded.get(index)?);
                }
            }
        }
        Ok(outputs
            .into_iter()
            .map(|views| views.into_iter().flatten().collect())
            .collect())
    }
}

fn frames(input: &EncoderInput) -> Result<&[Image]> {
    match &input.content {
        EncoderContent::Frames(frames) if !frames.is_empty() => Ok(frames),
        _ => candle_core::bail!("a vision tower takes pictures"),
    }
}
