//! Convolutions along one axis.
//!
//! On the CPU positions are rows of channels, `[length, channels]`: a tap then meets values that lie side by side,
//! a filter of one tap is a matrix product as it stands, and nothing has to be transposed between layers. The layers
//! take that form ([`Conv1d::forward_rows`]) as well as the usual `[batch, channels, length]`.

use crate::cpu::{contiguous_f32, is_f32_on_cpu};
use crate::weights::{Result, Weights, WeightsError};
use aha_kernels::{DepthwiseConv, KernelError, PackedMatrix};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Module, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Values of the unrolled input (or output) that are in memory at once: 4 MiB.
const UNROLLED_VALUES: usize = 1 << 20;

/// Rows below which sharing their copying costs more than it brings.
const ROWS_A_TASK: usize = 32;

/// How a filter moves along the axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv1dConfig {
    /// Positions from one output to the next.
    pub stride: usize,
    /// Zeros at either end. Causal layers pad on one side only, which is their own affair.
    pub padding: usize,
    /// Positions from one tap to the next.
    pub dilation: usize,
    /// Groups of channels that are mixed among themselves only; as many as channels is a depthwise convolution.
    pub groups: usize,
}

impl Default for Conv1dConfig {
    fn default() -> Self {
        Self {
            stride: 1,
            padding: 0,
            dilation: 1,
            groups: 1,
        }
    }
}

/// A convolution along one axis.
#[derive(Debug, Clone)]
pub struct Conv1d {
    filter: Filter,
    bias: Option<Tensor>,
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv1dConfig,
}

#[derive(Debug, Clone)]
enum Filter {
    /// On the CPU, one matrix a group, `[out_channels / groups, kernel_size * in_channels / groups]`: an output is a
    /// product with the stretch of input under the filter.
    Packed(Arc<[PackedMatrix]>),
    /// On the CPU, one filter a channel: `[kernel_size, channels]`.
    Depthwise(Arc<[f32]>),
    /// On an accelerator: `[out_channels, in_channels / groups, kernel_size]`.
    Device(Tensor),
    /// The checkpoint lacked it; `Weights::finish` reports that before anything runs.
    Absent,
}

impl Conv1d {
    /// Loads `weight` `[out_channels, in_channels / groups, kernel_size]`, or the pair of a weight-normalised layer
    /// in its place, and where asked for `bias` `[out_channels]`.
    ///
    /// # Errors
    /// When sizes are zero or the channels do not fit the groups, and as [`Weights::tensor`].
    pub fn load(
        weights: &Weights,
        in_channels: usize,
        out_channels: usize,
        kernel_size: usize,
        config: Conv1dConfig,
        bias: bool,
    ) -> Result<Self> {
        let Conv1dConfig {
            stride,
            dilation,
            groups,
            ..
        } = config;
        if [
            in_channels,
            out_channels,
            kernel_size,
            stride,
            dilation,
            groups,
        ]
        .contains(&0)
            || !in_channels.is_multiple_of(groups)
            || !out_channels.is_multiple_of(groups)
        {
            return Err(unusable(
                weights,
                format!(
                    "a convolution of {in_channels} to {out_channels} channels with {config:?} and {kernel_size} taps is not possible"
                ),
            ));
        }
        let shape = [out_channels, in_channels / groups, kernel_size];
        let filter = match load_kernel(weights, shape)? {
            Some(weight) => Filter::new(&weight, in_channels, &config)?,
            None => Filter::Absent,
        };
        Ok(Self {
            filter,
            bias: load_bias(weights, out_channels, bias)?,
            in_channels,
            out_channels,
            kernel_size,
            config,
        })
    }

    /// Positions of the output for `length` positions of input.
    pub fn output_length(&self, length: usize) -> usize {
        self.window().output_rows(length + 2 * self.config.padding)
    }

    /// `x` is `[length, in_channels]`, one sequence; the result `[output length, out_channels]`.
    pub fn forward_rows(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        if let Filter::Device(weight) = &self.filter {
            let channels_first = x.t()?.unsqueeze(0)?;
            return self
                .forward_device(&channels_first, weight)?
                .squeeze(0)?
                .t()?
                .contiguous();
        }
        x.contiguous()?.apply_op1_no_bwd(self)
    }

    /// `residual` plus [`Self::forward_rows`] of `x`.
    pub fn forward_rows_added(&self, x: &Tensor, residual: &Tensor) -> candle_core::Result<Tensor> {
        if matches!(self.filter, Filter::Device(_)) || !is_f32_on_cpu(residual) {
            return residual + self.forward_rows(x)?;
        }
        x.contiguous()?
            .apply_op2_no_bwd(&residual.contiguous()?, self)
    }

    /// The same with Candle's own operations, `[batch, channels, length]`.
    fn forward_device(&self, x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
        let Conv1dConfig {
            stride,
            padding,
            dilation,
            groups,
        } = self.config;
        let y = x
            .contiguous()?
            .conv1d(weight, padding, stride, dilation, groups)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(&bias.reshape((1, self.out_channels, 1))?),
            None => Ok(y),
        }
    }

    /// The filter's movement over input that is padded already.
    fn window(&self) -> DepthwiseConv {
        DepthwiseConv {
            channels: self.in_channels,
            kernel_size: self.kernel_size,
            stride: self.config.stride,
            dilation: self.config.dilation,
        }
    }

    /// `x` is padded, `[rows, in_channels]`; `out` holds a bias or zeros in each row.
    fn forward_packed(
        &self,
        x: &[f32],
        matrices: &[PackedMatrix],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) -> std::result::Result<(), KernelError> {
        let Conv1dConfig {
            stride, dilation, ..
        } = self.config;
        let width = self.in_channels / matrices.len();
        let columns = self.kernel_size * width;
        let group_outputs = self.out_channels / matrices.len();
        let rows = out.len() / self.out_channels;
        // Filters of one tap, and those that meet every value once, read the input as it lies.
        let direct = matrices.len() == 1
            && (self.kernel_size == 1 || dilation == 1)
            && stride == self.kernel_size;
        let block = if direct {
            rows.max(1)
        } else {
            (UNROLLED_VALUES / columns).max(1)
        };
        let mut unrolled = vec![0f32; if direct { 0 } else { block.min(rows) * columns }];
        let mut products = vec![
            0f32;
            if matrices.len() == 1 {
                0
            } else {
                block.min(rows) * group_outputs
            }
        ];
        for (index, out) in out.chunks_mut(block * self.out_channels).enumerate() {
            let (first, count) = (index * block, out.len() / self.out_channels);
            for (group, matrix) in matrices.iter().enumerate() {
                let stretch = if direct {
                    &x[..count * columns]
                } else {
                    let unroll = |(row, unrolled): (usize, &mut [f32])| {
                        for (tap, values) in unrolled.chunks_exact_mut(width).enumerate() {
                            let position = (first + row) * stride + tap * dilation;
                            let from = position * self.in_channels + group * width;
                            values.copy_from_slice(&x[from..from + width]);
                        }
                    };
                    unrolled[..count * columns]
                        .par_chunks_exact_mut(columns)
                        .with_min_len(ROWS_A_TASK)
                        .enumerate()
                        .for_each(unroll);
                    &unrolled[..count * columns]
                };
                if matrices.len() == 1 {
                    matrix.matmul(stretch, count, out)?;
                    continue;
                }
                let products = &mut products[..count * group_outputs];
                matrix.matmul(stretch, count, products)?;
                for (out, products) in out
                    .chunks_exact_mut(self.out_channels)
                    .zip(products.chunks_exact(group_outputs))
                {
                    out[group * group_outputs..][..group_outputs].copy_from_slice(products);
                }
            }
            if let Some(bias) = bias {
                aha_kernels::add_bias(out, bias)?;
            }
        }
        Ok(())
    }
}

impl Module for Conv1d {
    /// `x` is `[batch, in_channels, length]`; the result `[batch, out_channels, output length]`.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        if let Filter::Device(weight) = &self.filter {
            return self.forward_device(x, weight);
        }
        each_of_batch(x, |rows| self.forward_rows(rows))
    }
}

impl CustomOp1 for Conv1d {
    fn name(&self) -> &'static str {
        "conv1d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (out, shape) = self.on_host(x, layout)?;
        Ok((CpuStorage::F32(out), shape))
    }
}

impl CustomOp2 for Conv1d {
    fn name(&self) -> &'static str {
        "conv1d-add"
    }

    /// The second tensor is added to the result.
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (mut out, shape) = self.on_host(x, layout)?;
        aha_kernels::add(&mut out, contiguous_f32(residual, residual_layout)?)
            .map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(out), shape))
    }
}

impl Conv1d {
    fn on_host(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(Vec<f32>, Shape)> {
        let (length, channels) = layout.shape().dims2()?;
        if channels != self.in_channels {
            candle_core::bail!(
                "a convolution of {} channels met {channels}",
                self.in_channels
            );
        }
        let x = contiguous_f32(x, layout)?;
        let padding = self.config.padding * channels;
        let padded;
        let x = if padding == 0 {
            x
        } else {
            let mut values = vec![0f32; x.len() + 2 * padding];
            values[padding..padding + x.len()].copy_from_slice(x);
            padded = values;
            &padded
        };
        let bias = self.bias.as_ref().map(flat_values).transpose()?;
        let rows = self.output_length(length);
        let mut out = vec![0f32; rows * self.out_channels];
        match &self.filter {
            Filter::Packed(matrices) => self.forward_packed(x, matrices, bias.as_deref(), &mut out),
            Filter::Depthwise(taps) => self.window().forward(x, taps, bias.as_deref(), &mut out),
            Filter::Device(_) | Filter::Absent => {
                candle_core::bail!("there is no filter on the CPU")
            }
        }
        .map_err(candle_core::Error::wrap)?;
        Ok((out, Shape::from((rows, self.out_channels))))
    }
}

impl Filter {
    /// `weight` is `[out_channels, in_channels / groups, kernel_size]`.
    fn new(weight: &Tensor, in_channels: usize, config: &Conv1dConfig) -> Result<Self> {
        if !weight.device().is_cpu() {
            return Ok(Self::Device(weight.contiguous()?));
        }
        let (out_channels, width, kernel_size) = weight.dims3()?;
        let groups = config.groups;
        if groups == in_channels && out_channels == in_channels {
            let taps = weight.squeeze(1)?.t()?.contiguous()?;
            return Ok(Self::Depthwise(flat_values(&taps)?.into()));
        }
        let by_tap = flat_values(&weight.transpose(1, 2)?.contiguous()?)?;
        let (rows, columns) = (out_channels / groups, width * kernel_size);
        let matrices = by_tap
            .chunks_exact(rows * columns)
            .map(|group| PackedMatrix::from_f32(rows, columns, group))
            .collect::<std::result::Result<Arc<_>, _>>();
        Ok(Self::Packed(matrices.map_err(candle_core::Error::wrap)?))
    }
}

/// The transpose of a convolution: every position of the input adds the filter, scaled, to the output.
#[derive(Debug, Clone)]
pub struct ConvTranspose1d {
    filter: TransposedFilter,
    bias: Option<Tensor>,
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    stride: usize,
}

#[derive(Debug, Clone)]
enum TransposedFilter {
    /// On the CPU, `[kernel_size * out_channels, in_channels]`: what one position adds is one product.
    Packed(Arc<PackedMatrix>),
    /// On an accelerator: `[in_channels, out_channels, kernel_size]`.
    Device(Tensor),
    /// The checkpoint lacked it; `Weights::finish` reports that before anything runs.
    Absent,
}

impl ConvTranspose1d {
    /// Loads `weight` `[in_channels, out_channels, kernel_size]`, or the pair of a weight-normalised layer in its
    /// place (whose norms are those of the input channels), and where asked for `bias` `[out_channels]`.
    ///
    /// # Errors
    /// When sizes are zero, and as [`Weights::tensor`].
    pub fn load(
        weights: &Weights,
        in_channels: usize,
        out_channels: usize,
        kernel_size: usize,
        stride: usize,
        bias: bool,
    ) -> Result<Self> {
        if [in_channels, out_channels, kernel_size, stride].contains(&0) {
            return Err(unusable(
                weights,
                format!(
                    "a transposed convolution of {in_channels} to {out_channels} channels with {kernel_size} taps and stride {stride} is not possible"
                ),
            ));
        }
        let filter = match load_kernel(weights, [in_channels, out_channels, kernel_size])? {
            Some(weight) if weight.device().is_cpu() => {
                let rows = flat_values(&weight.permute((2, 1, 0))?.contiguous()?)?;
                let packed = PackedMatrix::from_f32(kernel_size * out_channels, in_channels, &rows)
                    .map_err(candle_core::Error::wrap)?;
                TransposedFilter::Packed(Arc::new(packed))
            }
            Some(weight) => TransposedFilter::Device(weight.contiguous()?),
            None => TransposedFilter::Absent,
        };
        Ok(Self {
            filter,
            bias: load_bias(weights, out_channels, bias)?,
            in_channels,
            out_channels,
            kernel_size,
            stride,
        })
    }

    /// Positions of the output for `length` positions of input; nothing is cut at the ends.
    pub fn output_length(&self, length: usize) -> usize {
        match length.checked_sub(1) {
            None => 0,
            Some(steps) => steps * self.stride + self.kernel_size,
        }
    }

    /// `x` is `[length, in_channels]`, one sequence; the result `[output length, out_channels]`.
    pub fn forward_rows(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        if let TransposedFilter::Device(weight) = &self.filter {
            let channels_first = x.t()?.unsqueeze(0)?;
            return self
                .forward_device(&channels_first, weight)?
                .squeeze(0)?
                .t()?
                .contiguous();
        }
        x.contiguous()?.apply_op1_no_bwd(self)
    }

    fn forward_device(&self, x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
        let y = x
            .contiguous()?
            .conv_transpose1d(weight, 0, 0, self.stride, 1, 1)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(&bias.reshape((1, self.out_channels, 1))?),
            None => Ok(y),
        }
    }
}

impl Module for ConvTranspose1d {
    /// `x` is `[batch, in_channels, length]`; the result `[batch, out_channels, output length]`.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        if let TransposedFilter::Device(weight) = &self.filter {
            return self.forward_device(x, weight);
        }
        each_of_batch(x, |rows| self.forward_rows(rows))
    }
}

impl CustomOp1 for ConvTranspose1d {
    fn name(&self) -> &'static str {
        "conv-transpose1d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (length, channels) = layout.shape().dims2()?;
        let TransposedFilter::Packed(matrix) = &self.filter else {
            candle_core::bail!("there is no filter on the CPU");
        };
        if channels != self.in_channels {
            candle_core::bail!(
                "a transposed convolution of {} channels met {channels}",
                self.in_channels
            );
        }
        let x = contiguous_f32(x, layout)?;
        let rows = self.output_length(length);
        let mut out = vec![0f32; rows * self.out_channels];
        if let Some(bias) = &self.bias {
            let bias = flat_values(bias)?;
            out.chunks_exact_mut(self.out_channels)
                .for_each(|row| row.copy_from_slice(&bias));
        }
        let reach = matrix.rows();
        let block = (UNROLLED_VALUES / reach).max(1);
        let mut products = vec![0f32; block.min(length) * reach];
        for (index, x) in x.chunks(block * channels).enumerate() {
            let count = x.len() / channels;
            let products = &mut products[..count * reach];
            matrix
                .matmul(x, count, products)
                .map_err(candle_core::Error::wrap)?;
            self.spread(products, index * block, &mut out);
        }
        Ok((CpuStorage::F32(out), Shape::from((rows, self.out_channels))))
    }
}

impl ConvTranspose1d {
    /// Adds what positions of the input from `first` on add to the output. Each value takes its addends in the order of
    /// these positions, on any number of threads.
    fn spread(&self, products: &[f32], first: usize, out: &mut [f32]) {
        let (channels, stride, kernel_size) = (self.out_channels, self.stride, self.kernel_size);
        let reach = kernel_size * channels;
        let count = products.len() / reach;
        let touched =
            first * stride * channels..((first + count - 1) * stride + kernel_size) * channels;
        // Stretches of one stride: all their rows meet the same positions.
        out[touched]
            .par_chunks_mut(stride * channels)
            .with_min_len(ROWS_A_TASK.div_ceil(stride))
            .enumerate()
            .for_each(|(stretch, out)| {
                // Of position `stretch - back`, the taps from `back * stride` on fall here.
                let most_back = (kernel_size - 1) / stride;
                for back in (0..=most_back.min(stretch)).rev() {
                    let position = stretch - back;
                    let taps = back * stride * channels..reach;
                    if position < count {
                        let products = &products[position * reach..][taps];
                        for (out, product) in out.iter_mut().zip(products) {
                            *out += product;
                        }
                    }
                }
            });
    }
}

/// Runs `[length, channels]` layers over `[batch, channels, length]`.
fn each_of_batch(
    x: &Tensor,
    forward_rows: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let outputs = (0..x.dims3()?.0)
        .map(|index| forward_rows(&x.get(index)?.t()?)?.t()?.contiguous())
        .collect::<candle_core::Result<Vec<_>>>()?;
    Tensor::stack(&outputs, 0)
}

/// A filter in the activation type: `weight`, or `weight_v` scaled to the norms `weight_g` (weight normalisation,
/// arXiv 1602.07868), by their old names or those of PyTorch's parametrisations. None where one is missing.
///
/// The norms run over all axes but the first.
pub(super) fn load_kernel(weights: &Weights, shape: [usize; 3]) -> Result<Option<Tensor>> {
    let dense = |name: &str, shape: &[usize], dtype: DType| {
        let stored = weights.stored(name, shape)?;
        stored
            .map(|stored| stored.to_tensor(dtype, weights.device()))
            .transpose()
    };
    let pairs = [
        ("weight_g", "weight_v"),
        (
            "parametrizations.weight.original0",
            "parametrizations.weight.original1",
        ),
    ];
    let normalised = pairs
        .into_iter()
        .find(|(norms, _)| weights.contains(norms) && !weights.contains("weight"));
    let Some((norms, directions)) = normalised else {
        return dense("weight", &shape, weights.dtype());
    };
    let norms = dense(norms, &[shape[0], 1, 1], DType::F32)?;
    let directions = dense(directions, &shape, DType::F32)?;
    let (Some(norms), Some(directions)) = (norms, directions) else {
        return Ok(None);
    };
    let lengths = directions.sqr()?.sum_keepdim((1, 2))?.sqrt()?;
    let weight = directions.broadcast_mul(&(norms / lengths)?)?;
    Ok(Some(weight.to_dtype(weights.dtype())?))
}

fn load_bias(weights: &Weights, out_channels: usize, bias: bool) -> Result<Option<Tensor>> {
    bias.then(|| weights.tensor("bias", &[out_channels]))
        .transpose()
}

fn unusable(weights: &Weights, reason: String) -> WeightsError {
    WeightsError::Unconvertible {
        tensor: format!("{}.weight", weights.prefix()),
        stored: "nothing yet",
        reason,
    }
}

fn flat_values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};
    use crate::weights::{Catalog, NameMap, Placement, StoredType, safetensors};

    /// A checkpoint of the given tensors.
    fn checkpoint(tensors: &[(&str, &Tensor)]) -> (tempfile::TempDir, Weights) {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, tensor)| bytemuck::cast_slice(&flat_values(tensor).unwrap()).to_vec())
            .collect();
        let file =
            safetensors::to_bytes(tensors.iter().zip(&bytes).map(|((name, tensor), bytes)| {
                (*name, StoredType::F32, tensor.dims(), bytes.as_slice())
            }));
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, file).unwrap();
        let catalog = Catalog::open(&path).unwrap();
        let weights = Weights::from_catalog(catalog, NameMap::identity(), Placement::cpu());
        (folder, weights)
    }

    #[test]
    fn a_convolution_equals_candles() {
        for (in_channels, out_channels, kernel_size, stride, padding, dilation, groups) in [
            (5, 8, 3, 1, 1, 1, 1),
            (6, 4, 1, 1, 0, 1, 1),
            (6, 4, 4, 2, 1, 1, 2),
            (6, 4, 3, 3, 0, 1, 1),
            (4, 6, 3, 3, 2, 2, 1),
            (16, 16, 7, 1, 9, 3, 16),
            (3, 1, 7, 1, 0, 1, 1),
            (6, 12, 3, 1, 1, 1, 6),
        ] {
            let config = Conv1dConfig {
                stride,
                padding,
                dilation,
                groups,
            };
            let weight = random(&[out_channels, in_channels / groups, kernel_size]);
            let bias = random(&[out_channels]);
            let (_folder, weights) = checkpoint(&[("weight", &weight), ("bias", &bias)]);
            let conv = Conv1d::load(
                &weights,
                in_channels,
                out_channels,
                kernel_size,
                config,
                true,
            )
            .unwrap();
            weights.finish(&[]).unwrap();
            let x = random(&[2, in_channels, 29]);
            let expected = conv.forward_device(&x, &weight).unwrap();
            let got = conv.forward(&x).unwrap();
            assert_eq!(got.dim(2).unwrap(), conv.output_length(29));
            close(&got, &expected, 1e-4);
        }
    }

    #[test]
    fn a_transposed_convolution_is_the_sum_of_its_scaled_filters() {
        for (in_channels, out_channels, kernel_size, stride) in
            [(5, 3, 4, 2), (8, 6, 10, 5), (4, 4, 3, 1), (3, 2, 2, 3)]
        {
            let weight = random(&[in_channels, out_channels, kernel_size]);
            let bias = random(&[out_channels]);
            let (_folder, weights) = checkpoint(&[("weight", &weight), ("bias", &bias)]);
            let conv = ConvTranspose1d::load(
                &weights,
                in_channels,
                out_channels,
                kernel_size,
                stride,
                true,
            )
            .unwrap();
            let (batch, length) = (2, 13);
            let x = random(&[batch, in_channels, length]);
            let got = conv.forward(&x).unwrap().to_vec3::<f32>().unwrap();
            let (x, weight) = (
                x.to_vec3::<f32>().unwrap(),
                weight.to_vec3::<f32>().unwrap(),
            );
            let bias = bias.to_vec1::<f32>().unwrap();
            for (x, got) in x.iter().zip(&got) {
                for (out, got) in got.iter().enumerate() {
                    let mut want = vec![f64::from(bias[out]); conv.output_length(length)];
                    for (channel, x) in x.iter().enumerate() {
                        for (position, x) in x.iter().enumerate() {
                            for (tap, weight) in weight[channel][out].iter().enumerate() {
                                want[position * stride + tap] += f64::from(x * weight);
                            }
                        }
                    }
                    assert_eq!(got.len(), want.len());
                    for (got, want) in got.iter().zip(&want) {
                        assert!((f64::from(*got) - want).abs() < 1e-4, "{got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn long_inputs_are_unrolled_in_blocks_that_change_no_bit() {
        let weight = random(&[4, 2048, 3]);
        let (_folder, weights) = checkpoint(&[("weight", &weight)]);
        let conv = Conv1d::load(&weights, 2048, 4, 3, Conv1dConfig::default(), false).unwrap();
        let x = random(&[400, 2048]);
        let whole = conv.forward_rows(&x).unwrap();
        let part = conv.forward_rows(&x.narrow(0, 300, 10).unwrap()).unwrap();
        let same = whole.narrow(0, 300, 8).unwrap();
        assert_eq!(flat_values(&same).unwrap(), flat_values(&part).unwrap());
    }

    #[test]
    fn weight_norms_are_folded_whatever_their_names() {
        let (norms, directions) = (random(&[6, 1, 1]), random(&[6, 4, 3]));
        let lengths = directions
            .sqr()
            .unwrap()
            .sum_keepdim((1, 2))
            .unwrap()
            .sqrt()
            .unwrap();
        let scaled = directions.broadcast_div(&lengths).unwrap();
        let expected = scaled.broadcast_mul(&norms).unwrap();
        for names in [
            ["weight_g", "weight_v"],
            [
                "parametrizations.weight.original0",
                "parametrizations.weight.original1",
            ],
        ] {
            let (_folder, weights) = checkpoint(&[(names[0], &norms), (names[1], &directions)]);
            let folded = load_kernel(&weights, [6, 4, 3]).unwrap().unwrap();
            close(&folded, &expected, 1e-5);
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let weight = random(&[4, 4, 3]);
        let (_folder, weights) = checkpoint(&[("weight", &weight)]);
        let config = Conv1dConfig {
            groups: 3,
            ..Conv1dConfig::default()
        };
        assert!(Conv1d::load(&weights, 4, 4, 3, config, false).is_err());
        assert!(ConvTranspose1d::load(&weights, 4, 4, 3, 0, false).is_err());
        let conv = Conv1d::load(&weights, 4, 4, 3, Conv1dConfig::default(), false).unwrap();
        assert!(conv.forward_rows(&random(&[5, 3])).is_err());
        assert_eq!(conv.forward_rows(&random(&[2, 4])).unwrap().dims(), [0, 4]);
        // A filter that the checkpoint lacks takes no memory, however large the configuration says it is.
        let config = Conv1dConfig::default();
        Conv1d::load(
            &weights.pp("other"),
            1 << 20,
            1 << 20,
            1 << 10,
            config,
            true,
        )
        .unwrap();
        assert!(weights.finish(&[]).is_err());
    }
}
