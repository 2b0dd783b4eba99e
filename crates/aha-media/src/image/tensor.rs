//! Pixels to the numbers that a model takes.

use rayon::prelude::*;

use super::{Channels, Image};
use crate::MediaError;

/// The value that each of the 256 samples has, for each of three channels. A table, because there
/// are only 768 answers and references differ in how they round on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalization {
    values: [[f32; 256]; 3],
}

impl Normalization {
    /// `(x * scale - mean) / std` as the tensor processors compute it: scale folded into mean and
    /// standard deviation first, then `(x - mean / scale) / (std / scale)` in single precision.
    ///
    /// # Errors
    /// [`MediaError::InvalidSetting`] when a standard deviation or the scale is zero or not finite.
    pub fn fused(scale: f64, mean: [f64; 3], std: [f64; 3]) -> Result<Self, MediaError> {
        check(scale, mean, std)?;
        // The reference multiplies with the inverse of the scale in single precision.
        let inverse = (1.0 / scale) as f32;
        Ok(Self::from_values(|channel, sample| {
            let mean = mean[channel] as f32 * inverse;
            let std = std[channel] as f32 * inverse;
            (f32::from(sample) - mean) / std
        }))
    }

    /// `(x * scale - mean) / std` step by step in single precision, as the processors on PIL images
    /// compute it.
    ///
    /// # Errors
    /// [`MediaError::InvalidSetting`] when a standard deviation or the scale is zero or not finite.
    pub fn stepwise(scale: f64, mean: [f64; 3], std: [f64; 3]) -> Result<Self, MediaError> {
        check(scale, mean, std)?;
        Ok(Self::from_values(|channel, sample| {
            let scaled = (f64::from(sample) * scale) as f32;
            (scaled - mean[channel] as f32) / std[channel] as f32
        }))
    }

    /// A table of any function of channel and sample.
    #[must_use]
    pub fn from_values(value: impl Fn(usize, u8) -> f32) -> Self {
        let mut values = [[0.0; 256]; 3];
        for (channel, table) in values.iter_mut().enumerate() {
            for (entry, sample) in table.iter_mut().zip(0..=u8::MAX) {
                *entry = value(channel, sample);
            }
        }
        Self { values }
    }

    /// The value of one sample.
    #[must_use]
    pub fn value(&self, channel: usize, sample: u8) -> f32 {
        self.values[channel][usize::from(sample)]
    }
}

fn check(scale: f64, mean: [f64; 3], std: [f64; 3]) -> Result<(), MediaError> {
    let usable = |value: f64| value.is_finite() && value != 0.0;
    if usable(scale) && std.into_iter().all(usable) && mean.into_iter().all(f64::is_finite) {
        return Ok(());
    }
    Err(MediaError::InvalidSetting {
        name: "image_std",
        reason: format!("scale {scale}, mean {mean:?}, standard deviation {std:?}"),
    })
}

/// The image as planes, `[3, height, width]`.
///
/// # Errors
/// [`MediaError::InvalidSetting`] for an image that is not RGB.
pub fn planar(image: &Image, normalization: &Normalization) -> Result<Vec<f32>, MediaError> {
    require_rgb(image)?;
    let pixels = image.samples.len() / 3;
    let mut planes = vec![0.0; image.samples.len()];
    for (channel, plane) in planes.chunks_exact_mut(pixels).enumerate() {
        let table = &normalization.values[channel];
        for (value, pixel) in plane.iter_mut().zip(image.samples.chunks_exact(3)) {
            *value = table[usize::from(pixel[channel])];
        }
    }
    Ok(planes)
}

/// The image pixel after pixel, `[height, width, 3]`.
///
/// # Errors
/// [`MediaError::InvalidSetting`] for an image that is not RGB.
pub fn interleaved(image: &Image, normalization: &Normalization) -> Result<Vec<f32>, MediaError> {
    require_rgb(image)?;
    let mut values = Vec::with_capacity(image.samples.len());
    for pixel in image.samples.chunks_exact(3) {
        for (table, sample) in normalization.values.iter().zip(pixel) {
            values.push(table[usize::from(*sample)]);
        }
    }
    Ok(values)
}

/// What one flattened patch looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PatchLayout {
    /// Channel, frame, row, column: the order of a convolution's weights.
    ChannelFirst,
    /// Frame, row, column, channel (SigLIP 2).
    ChannelLast,
}

/// How an image or clip is cut into patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchOrder {
    /// The side of a patch in pixels.
    pub patch_size: u32,
    /// Patches come in blocks of this many by this many, block after block, row after row; 1 is
    /// plain row-major order.
    pub merge_size: u32,
    /// Frames in a patch. A single image fills all of them; of a clip the last frame is repeated
    /// until the count fits.
    pub temporal_patch_size: u32,
    /// The order inside a patch.
    pub layout: PatchLayout,
}

/// The patches of an image (one frame) or a clip (several of one size):
/// `[frames / temporal * rows * columns, 3 * temporal * patch * patch]`, and the grid
/// `[frames / temporal, rows, columns]`.
///
/// # Errors
/// [`MediaError::InvalidSize`] when a side is no multiple of patch size times merge size,
/// [`MediaError::FrameSize`] when frames differ in size, [`MediaError::InvalidSetting`] for images
/// that are not RGB, for sizes of zero and for no frames at all.
pub fn patches(
    frames: &[Image],
    order: &PatchOrder,
    normalization: &Normalization,
) -> Result<(Vec<f32>, [u32; 3]), MediaError> {
    let block = order.patch_size.saturating_mul(order.merge_size);
    let temporal = order.temporal_patch_size as usize;
    let Some(first) = frames.first().filter(|_| block > 0 && temporal > 0) else {
        return Err(MediaError::InvalidSetting {
            name: "patch size",
            reason: format!("{} frames cut by {order:?}", frames.len()),
        });
    };
    for (index, frame) in frames.iter().enumerate() {
        require_rgb(frame)?;
        if (frame.width, frame.height) != (first.width, first.height) {
            return Err(MediaError::FrameSize {
                index,
                width: frame.width,
                height: frame.height,
                first_width: first.width,
                first_height: first.height,
            });
        }
    }
    if first.width % block != 0 || first.height % block != 0 {
        return Err(MediaError::InvalidSize {
            width: first.width.into(),
            height: first.height.into(),
            reason: "the sides must be multiples of the patches",
        });
    }
    let patch = order.patch_size as usize;
    let merge = order.merge_size as usize;
    let columns = first.width as usize / patch;
    let rows = first.height as usize / patch;
    let steps = frames.len().div_ceil(temporal);
    let length = 3 * temporal * patch * patch;
    let mut values = vec![0.0; steps * rows * columns * length];

    // One row of blocks is contiguous in the result: the unit of parallel work.
    let band = merge * columns * length;
    values
        .par_chunks_exact_mut(band)
        .enumerate()
        .for_each(|(index, band)| {
            let (step, top) = (index / (rows / merge), index % (rows / merge) * merge);
            for (within, target) in band.chunks_exact_mut(length).enumerate() {
                let (block, within) = (within / (merge * merge), within % (merge * merge));
                let row = top + within / merge;
                let column = block * merge + within % merge;
                for at in 0..temporal {
                    let frame = (step * temporal + at).min(frames.len() - 1);
                    let corner = (row * patch, column * patch);
                    let place = Place {
                        at,
                        temporal,
                        patch,
                    };
                    place.fill(target, &frames[frame], corner, order.layout, normalization);
                }
            }
        });
    let grid = [steps as u32, rows as u32, columns as u32];
    Ok((values, grid))
}

/// Where in a patch one of its frames goes.
struct Place {
    at: usize,
    temporal: usize,
    patch: usize,
}

impl Place {
    fn fill(
        &self,
        target: &mut [f32],
        image: &Image,
        (top, left): (usize, usize),
        layout: PatchLayout,
        normalization: &Normalization,
    ) {
        let Self {
            at,
            temporal,
            patch,
        } = *self;
        let stride = image.stride();
        for y in 0..patch {
            let start = (top + y) * stride + left * 3;
            let source = &image.samples[start..start + patch * 3];
            match layout {
                PatchLayout::ChannelLast => {
                    let start = (at * patch + y) * patch * 3;
                    let row = target[start..start + patch * 3].chunks_exact_mut(3);
                    for (pixel, from) in row.zip(source.chunks_exact(3)) {
                        for (channel, value) in pixel.iter_mut().enumerate() {
                            *value = normalization.value(channel, from[channel]);
                        }
                    }
                }
                PatchLayout::ChannelFirst => {
                    for channel in 0..3 {
                        let start = ((channel * temporal + at) * patch + y) * patch;
                        let row = &mut target[start..start + patch];
                        let table = &normalization.values[channel];
                        for (value, from) in row.iter_mut().zip(source.chunks_exact(3)) {
                            *value = table[usize::from(from[channel])];
                        }
                    }
                }
            }
        }
    }
}

fn require_rgb(image: &Image) -> Result<(), MediaError> {
    if image.channels == Channels::Rgb {
        return Ok(());
    }
    Err(MediaError::InvalidSetting {
        name: "do_convert_rgb",
        reason: format!("the model takes RGB and the image is {:?}", image.channels),
    })
}
