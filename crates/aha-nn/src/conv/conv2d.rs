//! Convolution over the two dimensions of images.

use super::filters::{BatchNorm, Filters};
use crate::cpu::contiguous_f32;
use crate::linear::kind_for;
use crate::mlp::Activation;
use crate::weights::{Placement, Result, StoredType, Weights, WeightsError};
use aha_kernels::{PackedMatrix, add_bias};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Module, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of input values and outputs that a product has at once, as long as that is [`LEAST_ROWS`] rows: they and the
/// product's own copy shall stay in a cache.
pub(super) const SCRATCH_BYTES: usize = 4 << 20;

/// Rows below which a product reads its weights more often than it should.
pub(super) const LEAST_ROWS: usize = 192;

/// How a [`Conv2d`] moves over its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Pixels from one output to the next.
    pub stride: usize,
    /// Zeros around the input, on each of its four sides.
    pub padding: usize,
    /// Pixels from one tap of a filter to the next.
    pub dilation: usize,
    /// Equal parts of the channels that do not see each other.
    pub groups: usize,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self {
            stride: 1,
            padding: 0,
            dilation: 1,
            groups: 1,
        }
    }
}

/// A convolution with square filters.
///
/// On the CPU it is a product of our own kernels: the values that a block of outputs meets are laid out row by row
/// (`im2col`) in scratch memory of bounded size. An image gives the same bits alone and in any batch. There pixels
/// are worked on channels-last; a model that keeps them so calls [`Conv2d::forward_channels_last`] and saves copies.
#[derive(Debug, Clone)]
pub struct Conv2d {
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv2dConfig,
    filters: Placed,
}

/// Filters where they are used.
#[derive(Debug, Clone)]
enum Placed {
    /// On the CPU: a matrix a group, see [`Filters::pack`].
    Host {
        groups: Arc<[PackedMatrix]>,
        bias: Option<Arc<[f32]>>,
    },
    /// On an accelerator: `[out_channels, in_channels / groups, kernel_size, kernel_size]` and
    /// `[1, out_channels, 1, 1]`.
    Device {
        weight: Tensor,
        bias: Option<Tensor>,
    },
    /// The checkpoint lacked them; `Weights::finish` reports that before anything runs.
    Absent,
}

impl Conv2d {
    /// Loads `weight` `[out_channels, in_channels / groups, kernel_size, kernel_size]` and, when asked for, `bias`
    /// `[out_channels]`.
    ///
    /// # Errors
    /// As [`Weights::tensor`]; when a size is zero or the groups do not divide the channels.
    pub fn load(
        weights: &Weights,
        in_channels: usize,
        out_channels: usize,
        kernel_size: usize,
        config: Conv2dConfig,
        bias: bool,
    ) -> Result<Self> {
        let shape = filter_shape(in_channels, out_channels, kernel_size, config)?;
        let filters = Filters::load(weights, shape, bias)?;
        Self::place(filters, shape, config, weights.placement())
    }

    /// The same with the batch norm that follows it, as one convolution.
    ///
    /// # Errors
    /// As [`Conv2d::load`].
    pub fn load_with_batch_norm(
        weights: &Weights,
        norm: BatchNorm<'_>,
        in_channels: usize,
        out_channels: usize,
        kernel_size: usize,
        config: Conv2dConfig,
        bias: bool,
    ) -> Result<Self> {
        let shape = filter_shape(in_channels, out_channels, kernel_size, config)?;
        let mut filters = Filters::load(weights, shape, bias)?;
        if let Some(filters) = &mut filters {
            filters.fold(norm)?;
        }
        Self::place(filters, shape, config, weights.placement())
    }

    fn place(
        filters: Option<Filters>,
        shape: [usize; 4],
        config: Conv2dConfig,
        placement: &Placement,
    ) -> Result<Self> {
        let [out_channels, group_channels, kernel_size, _] = shape;
        let placed = match filters {
            None => Placed::Absent,
            Some(filters) if placement.device.is_cpu() => Placed::Host {
                groups: filters.pack(config.groups)?.into(),
                bias: filters.bias.map(Arc::from),
            },
            Some(filters) => {
                let (weight, bias) = filters.to_tensors(&shape, placement)?;
                let bias = bias.map(|bias| bias.reshape((1, out_channels, 1, 1)));
                Placed::Device {
                    weight,
                    bias: bias.transpose()?,
                }
            }
        };
        Ok(Self {
            in_channels: group_channels * config.groups,
            out_channels,
            kernel_size,
            config,
            filters: placed,
        })
    }

    /// A convolution of given filters `[out_channels, in_channels / groups, kernel_size, kernel_size]` and bias
    /// `[out_channels]`, where a model computes them out of what its checkpoint holds. `placement` says where they go.
    ///
    /// # Errors
    /// When shapes do not fit each other or the groups.
    pub fn from_tensors(
        weight: &Tensor,
        bias: &Tensor,
        config: Conv2dConfig,
        placement: &Placement,
    ) -> Result<Self> {
        let (out_channels, group_channels, kernel_size, width) = weight.dims4()?;
        if kernel_size != width || bias.dims() != [out_channels] {
            return Err(WeightsError::from(candle_core::Error::Msg(format!(
                "filters of {:?} with biases of {:?} make no convolution: filters must be square, with a bias each",
                weight.dims(),
                bias.dims()
            ))));
        }
        let in_channels = group_channels * config.groups;
        let shape = filter_shape(in_channels, out_channels, kernel_size, config)?;
        let values = |tensor: &Tensor| -> Result<Vec<f32>> {
            let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            Ok(tensor.flatten_all()?.to_vec1()?)
        };
        let filters = Filters {
            weight: values(weight)?,
            bias: Some(values(bias)?),
            out_channels,
            taps: kernel_size * kernel_size,
            kind: kind_for(StoredType::F32, placement.weights),
        };
        Self::place(Some(filters), shape, config, placement)
    }

    /// Channels of the output.
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// Convolves `x` `[batch, height, width, in_channels]`; the result is `[batch, height, width, out_channels]`.
    ///
    /// # Errors
    /// When `x` has another number of channels, or is smaller than a filter.
    pub fn forward_channels_last(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.forward_last(x, None)
    }

    /// The same with an activation behind it, on the CPU while the outputs are in a cache.
    ///
    /// # Errors
    /// As [`Conv2d::forward_channels_last`].
    pub fn forward_activated(
        &self,
        x: &Tensor,
        activation: Activation,
    ) -> candle_core::Result<Tensor> {
        match &self.filters {
            Placed::Host { .. } => self.forward_last(x, Some(activation)),
            _ => activation.forward(&self.forward_last(x, None)?),
        }
    }

    /// `activation` is taken on the CPU only.
    fn forward_last(
        &self,
        x: &Tensor,
        activation: Option<Activation>,
    ) -> candle_core::Result<Tensor> {
        match &self.filters {
            Placed::Host { groups, bias } => x.contiguous()?.apply_op1_no_bwd(&HostConv {
                conv: self,
                groups,
                bias: bias.as_deref(),
                activation,
                scratch_bytes: SCRATCH_BYTES,
            }),
            Placed::Device { .. } => {
                let y = self.forward(&x.permute((0, 3, 1, 2))?.contiguous()?)?;
                y.permute((0, 2, 3, 1))?.contiguous()
            }
            Placed::Absent => candle_core::bail!("the filters of a convolution are missing"),
        }
    }

    /// One without filters, for tests of what stands around it.
    #[cfg(test)]
    pub(super) fn absent() -> Self {
        Self {
            in_channels: 0,
            out_channels: 0,
            kernel_size: 1,
            config: Conv2dConfig::default(),
            filters: Placed::Absent,
        }
    }

    /// Height or width of the output for that of the input.
    fn output_size(&self, size: usize) -> candle_core::Result<usize> {
        let Conv2dConfig {
            stride,
            padding,
            dilation,
            ..
        } = self.config;
        let reach = dilation * (self.kernel_size - 1) + 1;
        match (size + 2 * padding).checked_sub(reach) {
            Some(rest) => Ok(rest / stride + 1),
            None => candle_core::bail!(
                "{size} pixels with {padding} of padding on both sides are fewer than the {reach} that a filter covers"
            ),
        }
    }

    /// The pixel that a tap of an output meets, if it is not padding.
    fn source(&self, output: usize, tap: usize, size: usize) -> Option<usize> {
        (output * self.config.stride + tap * self.config.dilation)
            .checked_sub(self.config.padding)
            .filter(|pixel| *pixel < size)
    }
}

impl Module for Conv2d {
    /// Convolves `x` `[batch, in_channels, height, width]`; the result is `[batch, out_channels, height, width]`. On
    /// the CPU it is a view of memory in which channels come last.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.filters {
            Placed::Device { weight, bias } => {
                let Conv2dConfig {
                    stride,
                    padding,
                    dilation,
                    groups,
                } = self.config;
                let y = x.conv2d(weight, padding, stride, dilation, groups)?;
                match bias {
                    Some(bias) => y.broadcast_add(bias),
                    None => Ok(y),
                }
            }
            Placed::Host { .. } | Placed::Absent => self
                .forward_channels_last(&x.permute((0, 2, 3, 1))?)?
                .permute((0, 3, 1, 2)),
        }
    }
}

/// The shape of a weight, once the sizes make sense.
fn filter_shape(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv2dConfig,
) -> Result<[usize; 4]> {
    let Conv2dConfig {
        stride,
        dilation,
        groups,
        ..
    } = config;
    let sizes = [in_channels, out_channels, kernel_size];
    let fits = !sizes.contains(&0)
        && ![stride, dilation, groups].contains(&0)
        && in_channels.is_multiple_of(groups)
        && out_channels.is_multiple_of(groups);
    if !fits {
        return Err(WeightsError::from(candle_core::Error::Msg(format!(
            "no convolution has {in_channels} input and {out_channels} output channels, filters of {kernel_size} \
             pixels and {config:?}: sizes must not be zero, groups must divide the channels"
        ))));
    }
    Ok([out_channels, in_channels / groups, kernel_size, kernel_size])
}

/// The convolution of channels-last pixels on the CPU.
struct HostConv<'a> {
    conv: &'a Conv2d,
    groups: &'a [PackedMatrix],
    bias: Option<&'a [f32]>,
    activation: Option<Activation>,
    scratch_bytes: usize,
}

/// Adds a bias to rows of outputs and takes an activation of them.
pub(super) fn finish(
    out: &mut [f32],
    bias: Option<&[f32]>,
    activation: Option<Activation>,
) -> candle_core::Result<()> {
    match (bias, activation.map(Activation::kernel)) {
        (Some(bias), Some(activation)) => activation.apply_to_biased(out, bias),
        (Some(bias), None) => add_bias(out, bias),
        (None, Some(activation)) => activation.apply_in_place(out),
        (None, None) => Ok(()),
    }
    .map_err(candle_core::Error::wrap)
}

/// The pixels of a call.
struct Pixels<'a> {
    values: &'a [f32],
    height: usize,
    width: usize,
    out_height: usize,
    out_width: usize,
}

impl CustomOp1 for HostConv<'_> {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let conv = self.conv;
        let (batch, height, width, channels) = layout.shape().dims4()?;
        if channels != conv.in_channels {
            candle_core::bail!(
                "the input has {channels} channels, the convolution takes {}",
                conv.in_channels
            );
        }
        let pixels = Pixels {
            values: contiguous_f32(storage, layout)?,
            height,
            width,
            out_height: conv.output_size(height)?,
            out_width: conv.output_size(width)?,
        };
        let rows = batch * pixels.out_height * pixels.out_width;
        let mut out = vec![0f32; rows * conv.out_channels];
        if self.is_plain_product() {
            self.products(pixels.values, &mut out)?;
        } else {
            self.by_blocks(&pixels, rows, &mut out)?;
        }
        let shape = (
            batch,
            pixels.out_height,
            pixels.out_width,
            conv.out_channels,
        );
        Ok((CpuStorage::F32(out), Shape::from(shape)))
    }
}

impl HostConv<'_> {
    /// Whether each output meets one pixel, in their order.
    fn is_plain_product(&self) -> bool {
        let Conv2dConfig {
            stride,
            padding,
            groups,
            ..
        } = self.conv.config;
        self.conv.kernel_size == 1 && (stride, padding, groups) == (1, 0, 1)
    }

    /// Lays out the values that a block of outputs meets, multiplies, and goes on to the next.
    fn by_blocks(
        &self,
        pixels: &Pixels<'_>,
        rows: usize,
        out: &mut [f32],
    ) -> candle_core::Result<()> {
        let conv = self.conv;
        let group_channels = conv.in_channels / self.groups.len();
        let cols = conv.kernel_size * conv.kernel_size * group_channels;
        // The outputs count, too: what comes behind the product shall find them in a cache.
        let block = (self.scratch_bytes / ((cols + conv.out_channels) * size_of::<f32>()))
            .max(LEAST_ROWS)
            .min(rows.max(1));
        let mut columns = vec![0f32; block * cols];
        let mut group_out = vec![0f32; block * (conv.out_channels / self.groups.len())];
        for (index, out) in out.chunks_mut(block * conv.out_channels).enumerate() {
            let len = out.len() / conv.out_channels;
            let rows = index * block..index * block + len;
            let columns = &mut columns[..len * cols];
            if self.groups.len() == 1 {
                self.gather(pixels, rows, 0, columns);
                self.products(columns, out)?;
                continue;
            }
            for (group, matrix) in self.groups.iter().enumerate() {
                self.gather(pixels, rows.clone(), group * group_channels, columns);
                let part = matrix.rows();
                let group_out = &mut group_out[..len * part];
                matrix
                    .matmul(columns, len, group_out)
                    .map_err(candle_core::Error::wrap)?;
                let targets = out.chunks_exact_mut(conv.out_channels);
                for (target, values) in targets.zip(group_out.chunks_exact(part)) {
                    target[group * part..][..part].copy_from_slice(values);
                }
            }
            self.finish(out)?;
        }
        Ok(())
    }

    /// The product of the only group.
    fn products(&self, columns: &[f32], out: &mut [f32]) -> candle_core::Result<()> {
        let rows = out.len() / self.conv.out_channels;
        self.groups[0]
            .matmul(columns, rows, out)
            .map_err(candle_core::Error::wrap)?;
        self.finish(out)
    }

    /// What comes behind the product.
    fn finish(&self, out: &mut [f32]) -> candle_core::Result<()> {
        finish(out, self.bias, self.activation)
    }

    /// Writes what the outputs `rows` meet of a group's channels, one output a row.
    fn gather(
        &self,
        pixels: &Pixels<'_>,
        rows: Range<usize>,
        first_channel: usize,
        columns: &mut [f32],
    ) {
        let cols = columns.len() / rows.len().max(1);
        // A row of an image a task, so that splitting costs nothing beside the copies.
        columns
            .par_chunks_mut(cols * pixels.out_width.max(1))
            .enumerate()
            .for_each(|(index, columns)| {
                let first = rows.start + index * pixels.out_width;
                for (offset, row) in columns.chunks_exact_mut(cols).enumerate() {
                    self.gather_row(pixels, first + offset, first_channel, row);
                }
            });
    }

    fn gather_row(
        &self,
        pixels: &Pixels<'_>,
        output: usize,
        first_channel: usize,
        row: &mut [f32],
    ) {
        let conv = self.conv;
        let (width, channels) = (pixels.width, conv.in_channels);
        let group_channels = channels / self.groups.len();
        let (line, x) = (output / pixels.out_width, output % pixels.out_width);
        let (image, y) = (line / pixels.out_height, line % pixels.out_height);
        let tap_row = conv.kernel_size * group_channels;
        // Taps that lie side by side in memory are copied as one.
        let whole = conv.config.dilation == 1 && group_channels == channels;
        let ends = (
            conv.source(x, 0, width),
            conv.source(x, conv.kernel_size - 1, width),
        );
        for (tap_y, taps) in row.chunks_exact_mut(tap_row).enumerate() {
            let Some(source_y) = conv.source(y, tap_y, pixels.height) else {
                taps.fill(0.0);
                continue;
            };
            let start = (image * pixels.height + source_y) * width;
            if let (true, (Some(first), Some(_))) = (whole, ends) {
                let from = (start + first) * channels;
                taps.copy_from_slice(&pixels.values[from..from + tap_row]);
                continue;
            }
            for (tap_x, tap) in taps.chunks_exact_mut(group_channels).enumerate() {
                match conv.source(x, tap_x, width) {
                    Some(source_x) => {
                        let from = (start + source_x) * channels + first_channel;
                        tap.copy_from_slice(&pixels.values[from..from + group_channels]);
                    }
                    None => tap.fill(0.0),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};
    use crate::weights::Precision;

    fn placement() -> Placement {
        Placement {
            device: Device::Cpu,
            dtype: DType::F32,
            weights: Precision::Stored,
        }
    }

    /// A convolution of random filters, and the filters.
    fn conv(shape: [usize; 4], config: Conv2dConfig) -> (Conv2d, Tensor, Tensor) {
        let (weight, bias) = (random(&shape), random(&[shape[0]]));
        let conv = Conv2d::from_tensors(&weight, &bias, config, &placement()).unwrap();
        (conv, weight, bias)
    }

    fn config(stride: usize, padding: usize, dilation: usize, groups: usize) -> Conv2dConfig {
        Conv2dConfig {
            stride,
            padding,
            dilation,
            groups,
        }
    }

    #[test]
    fn it_equals_the_convolution_of_candle() {
        for (shape, config) in [
            ([5, 3, 1, 1], config(1, 0, 1, 1)),
            ([5, 3, 1, 1], config(2, 0, 1, 1)),
            ([7, 4, 3, 3], config(1, 1, 1, 1)),
            ([20, 6, 3, 3], config(2, 1, 1, 1)),
            ([6, 2, 5, 5], config(1, 2, 2, 1)),
            ([3, 2, 4, 4], config(4, 0, 1, 1)),
            // Padding wider than the filter: some outputs meet no pixel at all.
            ([3, 2, 3, 3], config(1, 4, 1, 1)),
            ([8, 2, 3, 3], config(1, 1, 1, 2)),
            ([6, 1, 3, 3], config(1, 1, 1, 6)),
        ] {
            let (conv, weight, bias) = conv(shape, config);
            let x = random(&[2, shape[1] * config.groups, 11, 14]);
            let Conv2dConfig {
                stride,
                padding,
                dilation,
                groups,
            } = config;
            let want = x
                .conv2d(&weight, padding, stride, dilation, groups)
                .unwrap()
                .broadcast_add(&bias.reshape((1, shape[0], 1, 1)).unwrap())
                .unwrap();
            let got = conv.forward(&x).unwrap();
            assert_eq!(got.dims(), want.dims(), "{shape:?} {config:?}");
            close(&got, &want, 2e-5);
        }
    }

    #[test]
    fn blocks_and_company_change_no_bit() {
        let (conv, ..) = conv([9, 5, 3, 3], config(1, 1, 1, 1));
        let x = random(&[3, 20, 21, 5]);
        let whole = conv.forward_channels_last(&x).unwrap();
        let Placed::Host { groups, bias } = &conv.filters else {
            unreachable!("on the CPU")
        };
        // 192 rows at once: blocks begin and end inside rows of an image.
        let blocks = HostConv {
            conv: &conv,
            groups,
            bias: bias.as_deref(),
            activation: None,
            scratch_bytes: 1,
        };
        let blocks = x.apply_op1_no_bwd(&blocks).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&whole), values(&blocks));
        let alone = conv.forward_channels_last(&x.narrow(0, 1, 1).unwrap());
        assert_eq!(
            values(&whole.narrow(0, 1, 1).unwrap()),
            values(&alone.unwrap())
        );
    }

    #[test]
    fn inputs_that_do_not_fit_are_refused() {
        let (conv, ..) = conv([4, 3, 3, 3], config(1, 0, 1, 1));
        let error = conv.forward(&random(&[1, 3, 2, 5])).unwrap_err();
        assert!(error.to_string().contains("fewer than the 3"), "{error}");
        let error = conv.forward(&random(&[1, 4, 5, 5])).unwrap_err();
        assert!(error.to_string().contains("4 channels"), "{error}");
        assert!(filter_shape(3, 4, 3, config(1, 0, 1, 2)).is_err());
        assert!(filter_shape(3, 4, 0, config(1, 0, 1, 1)).is_err());
        assert!(filter_shape(3, 4, 3, config(0, 0, 1, 1)).is_err());
    }
}
