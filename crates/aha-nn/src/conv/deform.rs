//! Deformable convolution: a convolution that samples where the input tells it to.

use super::conv2d::{Conv2d, Conv2dConfig, LEAST_ROWS, SCRATCH_BYTES, finish};
use super::filters::{BatchNorm, Filters};
use crate::cpu::{contiguous_f32, is_f32_on_cpu};
use crate::mlp::Activation;
use crate::weights::{Result, Weights};
use aha_kernels::PackedMatrix;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Module, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Modulated deformable convolution (version 2, arXiv 1811.11168) of stride 1 that keeps the size: each tap of each
/// output is moved by an offset and weighed by a factor between 0 and 2, both of which are convolutions of the input.
///
/// Values between pixels are interpolated; outside there are zeros. Pixels lie channels-last. On the CPU the samples
/// of a block of outputs are laid out in scratch memory of bounded size and multiplied by our own kernels.
#[derive(Debug, Clone)]
pub struct DeformConv2d {
    offsets: Conv2d,
    modulation: Conv2d,
    filters: Placed,
    kernel_size: usize,
    out_channels: usize,
}

/// Filters where they are used.
#[derive(Debug, Clone)]
enum Placed {
    /// On the CPU: `[out_channels, taps * in_channels]`.
    Host {
        matrix: Arc<PackedMatrix>,
        bias: Option<Arc<[f32]>>,
    },
    /// On an accelerator: `[taps, in_channels, out_channels]` and `[out_channels]`.
    Device {
        weight: Tensor,
        bias: Option<Tensor>,
    },
    /// The checkpoint lacked them; `Weights::finish` reports that before anything runs.
    Absent,
}

/// Where a deformable convolution samples its input.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// `[batch, height, width, taps * 2]`: rows, then columns, that each tap is moved by.
    pub offsets: Tensor,
    /// `[batch, height, width, taps]`: the factor of each tap.
    pub modulation: Tensor,
}

impl DeformConv2d {
    /// Loads the convolutions `offset_conv` and `modulator_conv` with biases, and `regular_conv` without one, with the
    /// batch norm that follows.
    ///
    /// # Errors
    /// As [`Conv2d::load`].
    pub fn load(
        weights: &Weights,
        norm: BatchNorm<'_>,
        in_channels: usize,
        out_channels: usize,
        kernel_size: usize,
    ) -> Result<Self> {
        let taps = kernel_size * kernel_size;
        let same = Conv2dConfig {
            padding: kernel_size / 2,
            ..Conv2dConfig::default()
        };
        let conv = |name, out| {
            let weights = weights.pp(name);
            Conv2d::load(&weights, in_channels, out, kernel_size, same, true)
        };
        let shape = [out_channels, in_channels, kernel_size, kernel_size];
        let mut filters = Filters::load(&weights.pp("regular_conv"), shape, false)?;
        if let Some(filters) = &mut filters {
            filters.fold(norm)?;
        }
        let placement = weights.placement();
        let filters = match filters {
            None => Placed::Absent,
            Some(filters) if placement.device.is_cpu() => match filters.pack(1)?.pop() {
                None => Placed::Absent,
                Some(matrix) => Placed::Host {
                    matrix: Arc::new(matrix),
                    bias: filters.bias.map(Arc::from),
                },
            },
            Some(filters) => {
                let shape = [out_channels, in_channels, taps];
                let (weight, bias) = filters.to_tensors(&shape, placement)?;
                Placed::Device {
                    weight: weight.permute((2, 1, 0))?.contiguous()?,
                    bias,
                }
            }
        };
        Ok(Self {
            offsets: conv("offset_conv", 2 * taps)?,
            modulation: conv("modulator_conv", taps)?,
            filters,
            kernel_size,
            out_channels,
        })
    }

    /// Where `x` `[batch, height, width, in_channels]` is sampled.
    pub fn sampling(&self, x: &Tensor) -> candle_core::Result<Sampling> {
        let gate = self.modulation.forward_activated(x, Activation::Sigmoid)?;
        Ok(Sampling {
            offsets: self.offsets.forward_channels_last(x)?,
            modulation: (gate * 2.0)?,
        })
    }

    /// `activation` of the outputs `[batch, rows, width, out_channels]` of some rows, so that a caller who needs all of a map but not
    /// at once stays within bounds. `sampling` is that of the whole of `x`.
    ///
    /// # Errors
    /// When the sampling is not that of `x`.
    pub fn forward_rows(
        &self,
        x: &Tensor,
        sampling: &Sampling,
        rows: Range<usize>,
        activation: Option<Activation>,
    ) -> candle_core::Result<Tensor> {
        let band = |x: &Tensor| x.narrow(1, rows.start, rows.len())?.contiguous();
        let (offsets, modulation) = (band(&sampling.offsets)?, band(&sampling.modulation)?);
        match &self.filters {
            Placed::Host { matrix, bias } if is_f32_on_cpu(x) => {
                let op = HostDeform {
                    matrix,
                    bias: bias.as_deref(),
                    activation,
                    kernel_size: self.kernel_size,
                    first_row: rows.start,
                    scratch_bytes: SCRATCH_BYTES,
                };
                x.contiguous()?.apply_op3_no_bwd(&offsets, &modulation, &op)
            }
            Placed::Device { weight, bias } => {
                let band = Sampling {
                    offsets,
                    modulation,
                };
                let mut y = self.by_taps(x, &band, rows.start, weight)?;
                if let Some(bias) = bias {
                    y = y.broadcast_add(bias)?;
                }
                match activation {
                    Some(activation) => activation.forward(&y),
                    None => Ok(y),
                }
            }
            _ => candle_core::bail!("the filters of a deformable convolution are missing"),
        }
    }

    /// By Candle's own operations, tap after tap: four gathers and a product each. Positions are computed in f32.
    fn by_taps(
        &self,
        x: &Tensor,
        band: &Sampling,
        first_row: usize,
        weight: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let (_, rows, _, taps) = band.modulation.dims4()?;
        let (device, positions) = (x.device(), batch * rows * width);
        let pixels = x.reshape((batch * height * width, channels))?;
        let offsets = band
            .offsets
            .to_dtype(DType::F32)?
            .reshape((positions, taps, 2))?;
        let modulation = band.modulation.reshape((positions, taps))?;
        // Where an output lies, and the first pixel of its image.
        let own = |value: fn(usize, usize, usize) -> f32| {
            let values = (0..batch).flat_map(|image| {
                (0..rows)
                    .flat_map(move |row| (0..width).map(move |column| value(image, row, column)))
            });
            Tensor::from_iter(values, device)
        };
        let own_row = (own(|_, row, _| row as f32)? + first_row as f64)?;
        let own_column = own(|_, _, column| column as f32)?;
        let image = (own(|image, _, _| image as f32)? * (height * width) as f64)?;
        let pad = (self.kernel_size / 2) as f64;
        let mut sum: Option<Tensor> = None;
        for tap in 0..taps {
            let part = |axis: usize| offsets.narrow(1, tap, 1)?.narrow(2, axis, 1)?.flatten_all();
            let (tap_row, tap_column) = (tap / self.kernel_size, tap % self.kernel_size);
            let y = ((&own_row + part(0)?)? + (tap_row as f64 - pad))?;
            let x = ((&own_column + part(1)?)? + (tap_column as f64 - pad))?;
            let mut sample: Option<Tensor> = None;
            for (row, row_share) in neighbours(&y)? {
                for (column, column_share) in neighbours(&x)? {
                    let inside = (within(&row, height)? * within(&column, width)?)?;
                    let share = ((&row_share * &column_share)? * inside)?;
                    let index = (row.clamp(0f32, (height - 1) as f32)? * width as f64)?;
                    let index = (index + column.clamp(0f32, (width - 1) as f32)?)?;
                    let index = (index + &image)?.to_dtype(DType::U32)?;
                    let value = pixels
                        .index_select(&index, 0)?
                        .broadcast_mul(&share.to_dtype(pixels.dtype())?.unsqueeze(1)?)?;
                    sample = Some(match sample {
                        Some(sample) => (sample + value)?,
                        None => value,
                    });
                }
            }
            let Some(sample) = sample else { continue };
            let sample = sample.broadcast_mul(&modulation.narrow(1, tap, 1)?)?;
            let product = sample.matmul(&weight.get(tap)?)?;
            sum = Some(match sum {
                Some(sum) => (sum + product)?,
                None => product,
            });
        }
        match sum {
            Some(sum) => sum.reshape((batch, rows, width, self.out_channels)),
            None => candle_core::bail!("a deformable convolution has no taps"),
        }
    }
}

/// The whole places on both sides of each place, and their shares.
fn neighbours(place: &Tensor) -> candle_core::Result<[(Tensor, Tensor); 2]> {
    let below = place.floor()?;
    let share = (place - &below)?;
    let above = (&below + 1.0)?;
    Ok([(below, (1.0 - &share)?), (above, share)])
}

/// 1 for places in `0..size`, 0 for others.
fn within(place: &Tensor, size: usize) -> candle_core::Result<Tensor> {
    let inside = (place.ge(0f32)? * place.lt(size as f32)?)?;
    inside.to_dtype(DType::F32)
}

/// Deformable convolution of channels-last pixels on the CPU; the other tensors are offsets and modulation.
struct HostDeform<'a> {
    matrix: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    activation: Option<Activation>,
    kernel_size: usize,
    /// The row of the map that is the first of offsets and modulation.
    first_row: usize,
    scratch_bytes: usize,
}

impl CustomOp3 for HostDeform<'_> {
    fn name(&self) -> &'static str {
        "deform-conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        offsets: &CpuStorage,
        offsets_layout: &Layout,
        modulation: &CpuStorage,
        modulation_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, height, width, channels) = x_layout.shape().dims4()?;
        let (_, rows, _, taps) = modulation_layout.shape().dims4()?;
        let fits = taps == self.kernel_size * self.kernel_size
            && taps * channels == self.matrix.cols()
            && modulation_layout.dims() == [batch, rows, width, taps]
            && offsets_layout.dims() == [batch, rows, width, 2 * taps]
            && self.first_row + rows <= height;
        if !fits {
            candle_core::bail!(
                "samples at {:?} and {:?} from row {} on are not those of {:?} for {} taps",
                offsets_layout.dims(),
                modulation_layout.dims(),
                self.first_row,
                x_layout.dims(),
                self.kernel_size * self.kernel_size
            );
        }
        let map = Map {
            pixels: contiguous_f32(x, x_layout)?,
            height,
            width,
            channels,
        };
        let offsets = contiguous_f32(offsets, offsets_layout)?;
        let modulation = contiguous_f32(modulation, modulation_layout)?;
        let (positions, cols) = (batch * rows * width, taps * channels);
        let out_channels = self.matrix.rows();
        let block = (self.scratch_bytes / (cols * size_of::<f32>()).max(1))
            .max(LEAST_ROWS)
            .min(positions.max(1));
        let mut samples = vec![0f32; block * cols];
        let mut out = vec![0f32; positions * out_channels];
        for (index, out) in out.chunks_mut(block * out_channels).enumerate() {
            let len = out.len() / out_channels;
            let samples = &mut samples[..len * cols];
            // An output a task would be too small, a block too large to share.
            let piece = 16;
            samples
                .par_chunks_mut(piece * cols)
                .enumerate()
                .for_each(|(part, samples)| {
                    for (offset, row) in samples.chunks_exact_mut(cols).enumerate() {
                        let position = index * block + part * piece + offset;
                        let (line, column) = (position / width, position % width);
                        let (image, row_number) = (line / rows, self.first_row + line % rows);
                        let at = Output {
                            image,
                            row: row_number,
                            column,
                            offsets: &offsets[position * 2 * taps..][..2 * taps],
                            modulation: &modulation[position * taps..][..taps],
                        };
                        self.sample(&map, &at, row);
                    }
                });
            self.matrix
                .matmul(samples, len, out)
                .map_err(candle_core::Error::wrap)?;
            finish(out, self.bias, self.activation)?;
        }
        let shape = (batch, rows, width, out_channels);
        Ok((CpuStorage::F32(out), Shape::from(shape)))
    }
}

/// The pixels of a call.
struct Map<'a> {
    pixels: &'a [f32],
    height: usize,
    width: usize,
    channels: usize,
}

/// One output, and where its taps sample.
struct Output<'a> {
    image: usize,
    row: usize,
    column: usize,
    offsets: &'a [f32],
    modulation: &'a [f32],
}

impl HostDeform<'_> {
    /// Writes the samples of all taps of an output, `[taps, channels]`.
    fn sample(&self, map: &Map<'_>, output: &Output<'_>, samples: &mut [f32]) {
        let pad = (self.kernel_size / 2) as f32;
        let taps = samples.chunks_exact_mut(map.channels).enumerate();
        for ((tap, target), factor) in taps.zip(output.modulation) {
            let (tap_row, tap_column) = (tap / self.kernel_size, tap % self.kernel_size);
            let y = (output.row + tap_row) as f32 - pad + output.offsets[2 * tap];
            let x = (output.column + tap_column) as f32 - pad + output.offsets[2 * tap + 1];
            map.interpolate(output.image, y, x, *factor, target);
        }
    }
}

impl Map<'_> {
    /// `factor` times the values at a place between pixels. Outside the map there are zeros.
    fn interpolate(&self, image: usize, y: f32, x: f32, factor: f32, target: &mut [f32]) {
        let inside = |place: f32, size: usize| place > -1.0 && place < size as f32;
        // Also for places that are no numbers.
        if !(inside(y, self.height) && inside(x, self.width)) {
            target.fill(0.0);
            return;
        }
        let (top, left) = (y.floor(), x.floor());
        let (low_y, low_x) = (y - top, x - left);
        let (top, left) = (top as isize, left as isize);
        // A neighbour outside counts nothing; any pixel may stand for it.
        let corner = |row: isize, column: isize, share: f32| {
            let is_inside = (0..self.height as isize).contains(&row)
                && (0..self.width as isize).contains(&column);
            let row = row.clamp(0, self.height as isize - 1) as usize;
            let column = column.clamp(0, self.width as isize - 1) as usize;
            let start = ((image * self.height + row) * self.width + column) * self.channels;
            let share = if is_inside { share * factor } else { 0.0 };
            (share, &self.pixels[start..start + self.channels])
        };
        let (a, top_left) = corner(top, left, (1.0 - low_y) * (1.0 - low_x));
        let (b, top_right) = corner(top, left + 1, (1.0 - low_y) * low_x);
        let (c, bottom_left) = corner(top + 1, left, low_y * (1.0 - low_x));
        let (d, bottom_right) = corner(top + 1, left + 1, low_y * low_x);
        let pixels = top_left
            .iter()
            .zip(top_right)
            .zip(bottom_left.iter().zip(bottom_right));
        for (value, ((top_left, top_right), (bottom_left, bottom_right))) in
            target.iter_mut().zip(pixels)
        {
            *value = a * top_left + b * top_right + c * bottom_left + d * bottom_right;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};
    use candle_core::Device;

    /// A convolution of random filters `[taps, in, out]` by both ways, with sampling that reaches far outside.
    fn both_ways(kernel_size: usize, dims: [usize; 4], rows: Range<usize>) -> (Tensor, Tensor) {
        let activation = (kernel_size == 7).then_some(Activation::Relu);
        let [batch, height, width, channels] = dims;
        let (taps, out_channels) = (kernel_size * kernel_size, 5);
        let weight = random(&[taps, channels, out_channels]);
        let packed = weight
            .permute((2, 0, 1))
            .unwrap()
            .contiguous()
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        let matrix = PackedMatrix::from_f32(out_channels, taps * channels, &packed).unwrap();
        let conv = |weight| DeformConv2d {
            offsets: Conv2d::absent(),
            modulation: Conv2d::absent(),
            filters: weight,
            kernel_size,
            out_channels,
        };
        let x = random(&dims);
        let sampling = Sampling {
            offsets: (random(&[batch, height, width, 2 * taps]) * 4.0).unwrap(),
            modulation: Tensor::rand(0f32, 2.0, &[batch, height, width, taps], &Device::Cpu)
                .unwrap(),
        };
        let host = conv(Placed::Host {
            matrix: Arc::new(matrix),
            bias: None,
        });
        let device = conv(Placed::Device { weight, bias: None });
        (
            host.forward_rows(&x, &sampling, rows.clone(), activation)
                .unwrap(),
            device
                .forward_rows(&x, &sampling, rows, activation)
                .unwrap(),
        )
    }

    #[test]
    fn both_ways_agree_inside_and_outside_the_map() {
        for (kernel_size, dims, rows) in [
            (1, [1, 6, 7, 4], 0..6),
            (3, [2, 9, 5, 3], 0..9),
            (7, [1, 8, 8, 2], 3..6),
            (3, [1, 1, 1, 3], 0..1),
        ] {
            let (host, device) = both_ways(kernel_size, dims, rows);
            assert_eq!(host.dims(), device.dims());
            close(&host, &device, 1e-4);
        }
    }

    #[test]
    fn places_outside_and_places_that_are_no_numbers_are_zero() {
        let map = Map {
            pixels: &[1.0, 2.0, 3.0, 4.0],
            height: 2,
            width: 2,
            channels: 1,
        };
        let at = |y: f32, x: f32| {
            let mut value = [9.0];
            map.interpolate(0, y, x, 1.0, &mut value);
            value[0]
        };
        assert_eq!(at(0.0, 1.0), 2.0);
        assert_eq!(at(0.5, 0.5), 2.5);
        assert_eq!(at(-0.5, 0.0), 0.5);
        assert_eq!(at(1.5, 1.0), 2.0);
        for (y, x) in [
            (-1.0, 0.0),
            (2.0, 0.0),
            (0.0, f32::NAN),
            (f32::INFINITY, 0.0),
        ] {
            assert_eq!(at(y, x), 0.0, "{y} {x}");
        }
    }
}
