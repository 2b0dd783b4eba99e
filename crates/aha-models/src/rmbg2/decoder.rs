//! The parts of BiRefNet's decoder (arXiv 2401.03407). Maps are `[1, height, width, channels]`.

use super::sizes::{count, dim};
use crate::error::LoadError;
use aha_nn::conv::{BatchNorm, Conv2d, Conv2dConfig, DeformConv2d};
use aha_nn::mlp::Activation;
use aha_nn::resize::bilinear_align_corners;
use aha_nn::weights::Weights;
use candle_core::{Result, Tensor};

type Loaded<T> = std::result::Result<T, LoadError>;

/// Epsilon of all batch norms.
const NORM_EPS: f32 = 1e-5;

/// Rows of a map whose branches stand side by side at once: it bounds what a large map needs in memory.
const ROWS_AT_ONCE: usize = 32;

/// Rows of the image that go through its own branch at once.
const IMAGE_ROWS_AT_ONCE: usize = 64;

fn batch_norm(weights: &Weights) -> BatchNorm<'_> {
    BatchNorm {
        weights,
        eps: NORM_EPS,
    }
}

/// A convolution that keeps the size of its input.
pub(super) fn same_size(kernel_size: usize) -> Conv2dConfig {
    Conv2dConfig {
        padding: kernel_size / 2,
        ..Conv2dConfig::default()
    }
}

/// A 3x3 convolution with bias.
fn conv3x3(weights: &Weights, from: usize, to: usize) -> Loaded<Conv2d> {
    Ok(Conv2d::load(weights, from, to, 3, same_size(3), true)?)
}

/// A 1x1 convolution with bias.
pub(super) fn conv1x1(weights: &Weights, from: usize, to: usize) -> Loaded<Conv2d> {
    let config = Conv2dConfig::default();
    Ok(Conv2d::load(weights, from, to, 1, config, true)?)
}

/// Atrous spatial pyramid pooling (arXiv 1706.05587) by deformable convolutions: branches with filters of several
/// sizes and one that sees the mean of the map, joined by a 1x1 convolution. Each convolution has a norm and a ReLU.
#[derive(Debug)]
pub(super) struct Aspp {
    branches: Vec<DeformConv2d>,
    global: Conv2d,
    join: Conv2d,
}

impl Aspp {
    pub(super) fn load(weights: &Weights, channels: usize) -> Loaded<Self> {
        let filter = "atrous_conv.regular_conv.weight";
        let width = dim(&weights.pp("aspp1"), filter, 0)?;
        let others = (0..count(weights, "aspp_deforms", filter))
            .map(|index| weights.pp(format_args!("aspp_deforms.{index}")));
        let branches: Vec<DeformConv2d> = std::iter::once(weights.pp("aspp1"))
            .chain(others)
            .map(|branch| {
                let kernel_size = dim(&branch, filter, 2)?;
                Ok(DeformConv2d::load(
                    &branch.pp("atrous_conv"),
                    batch_norm(&branch.pp("bn")),
                    channels,
                    width,
                    kernel_size,
                )?)
            })
            .collect::<Loaded<_>>()?;
        let pointwise = |name: &str, norm: &str, from, to| {
            Conv2d::load_with_batch_norm(
                &weights.pp(name),
                batch_norm(&weights.pp(norm)),
                from,
                to,
                1,
                Conv2dConfig::default(),
                false,
            )
        };
        Ok(Self {
            global: pointwise("global_avg_pool.1", "global_avg_pool.2", channels, width)?,
            join: pointwise("conv1", "bn1", (branches.len() + 1) * width, channels)?,
            branches,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, height, width, _) = x.dims4()?;
        let mean = x.mean_keepdim((1, 2))?;
        let global = self.global.forward_activated(&mean, Activation::Relu)?;
        let samplings = self
            .branches
            .iter()
            .map(|branch| branch.sampling(x))
            .collect::<Result<Vec<_>>>()?;
        let mut bands = Vec::new();
        for start in (0..height).step_by(ROWS_AT_ONCE) {
            let rows = start..height.min(start + ROWS_AT_ONCE);
            let shape = (1, rows.len(), width, global.dim(3)?);
            let mut parts = Vec::with_capacity(self.branches.len() + 1);
            for (branch, sampling) in self.branches.iter().zip(&samplings) {
                let relu = Some(Activation::Relu);
                parts.push(branch.forward_rows(x, sampling, rows.clone(), relu)?);
            }
            parts.push(global.broadcast_as(shape)?.contiguous()?);
            let parts = Tensor::cat(&parts, 3)?;
            bands.push(self.join.forward_activated(&parts, Activation::Relu)?);
        }
        Tensor::cat(&bands, 1)
    }
}

/// A convolution to a few channels, the pyramid, and a convolution to those of the output.
#[derive(Debug)]
pub(super) struct DecoderBlock {
    conv_in: Conv2d,
    attention: Aspp,
    conv_out: Conv2d,
}

impl DecoderBlock {
    pub(super) fn load(weights: &Weights, from: usize, to: usize) -> Loaded<Self> {
        let inner = dim(weights, "conv_in.weight", 0)?;
        let conv = |name: &str, norm: &str, from, to| {
            let norm = weights.pp(norm);
            Conv2d::load_with_batch_norm(
                &weights.pp(name),
                batch_norm(&norm),
                from,
                to,
                3,
                same_size(3),
                true,
            )
        };
        Ok(Self {
            conv_in: conv("conv_in", "bn_in", from, inner)?,
            attention: Aspp::load(&weights.pp("dec_att"), inner)?,
            conv_out: conv("conv_out", "bn_out", inner, to)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.conv_in.forward_activated(x, Activation::Relu)?;
        self.conv_out
            .forward_channels_last(&self.attention.forward(&x)?)
    }
}

/// How much of each pixel goes on: the model learnt it from the gradient of its masks.
#[derive(Debug)]
pub(super) struct Gate {
    conv: Conv2d,
    attention: Conv2d,
}

impl Gate {
    /// Loads the gate of a level out of the decoder's weights.
    pub(super) fn load(decoder: &Weights, level: usize, channels: usize) -> Loaded<Self> {
        let weights = decoder.pp(format_args!("gdt_convs_{level}"));
        let inner = dim(&weights, "0.weight", 0)?;
        Ok(Self {
            conv: Conv2d::load_with_batch_norm(
                &weights.pp(0),
                batch_norm(&weights.pp(1)),
                channels,
                inner,
                3,
                same_size(3),
                true,
            )?,
            attention: conv1x1(
                &decoder.pp(format_args!("gdt_convs_attn_{level}.0")),
                inner,
                1,
            )?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = self.conv.forward_activated(x, Activation::Relu)?;
        x.broadcast_mul(
            &self
                .attention
                .forward_activated(&inner, Activation::Sigmoid)?,
        )
    }
}

/// The image cut into tiles of a map's size, which become its channels, through two convolutions.
#[derive(Debug)]
pub(super) struct ImageBranch {
    conv1: Conv2d,
    conv_out: Conv2d,
}

impl ImageBranch {
    /// `tiles` is the number of tiles on each side of the image.
    pub(super) fn load(weights: &Weights, tiles: usize) -> Loaded<Self> {
        let inner = dim(weights, "conv1.weight", 0)?;
        let out = dim(weights, "conv_out.weight", 0)?;
        Ok(Self {
            conv1: conv3x3(&weights.pp("conv1"), 3 * tiles * tiles, inner)?,
            conv_out: conv3x3(&weights.pp("conv_out"), inner, out)?,
        })
    }

    pub(super) fn out_channels(&self) -> usize {
        self.conv_out.out_channels()
    }

    /// The branch's map of `height` times `width`, of which the sides of `image` are multiples.
    pub(super) fn forward(&self, image: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        let (_, image_height, image_width, colours) = image.dims4()?;
        let (rows, columns) = (image_height / height, image_width / width);
        // Tiles follow each other from the top down, then from left to right.
        let tiles = image
            .reshape(vec![rows, height, columns, width, colours])?
            .permute(vec![1, 3, 2, 0, 4])?
            .contiguous()?
            .reshape((1, height, width, columns * rows * colours))?;
        self.conv_out
            .forward_channels_last(&self.conv1.forward_channels_last(&tiles)?)
    }
}

/// The last step: a 1x1 convolution over the decoder's map, brought to the image's size, beside the image's own branch.
///
/// A 1x1 convolution may as well come before the interpolation, which then has one channel to work on instead of
/// hundreds, and it makes one convolution with the one before it, which no activation follows.
#[derive(Debug)]
pub(super) struct Head {
    features: Conv2d,
    image_in: Conv2d,
    image_out: Conv2d,
}

impl Head {
    /// `weights` are the decoder's, `channels` those of its last block's map.
    pub(super) fn load(weights: &Weights, channels: usize) -> Loaded<Self> {
        let branch = weights.pp("ipt_blk1");
        let inner = dim(&branch, "conv1.weight", 0)?;
        let image_channels = dim(&branch, "conv_out.weight", 0)?;
        let last = weights.pp("conv_out1.0");
        let weight = last.tensor("weight", &[1, channels + image_channels, 1, 1])?;
        let bias = last.tensor("bias", &[1])?;
        let before = branch.pp("conv_out");
        let before_weight = before
            .tensor("weight", &[image_channels, inner, 3, 3])?
            .contiguous()?
            .reshape((image_channels, inner * 9))?;
        let before_bias = before.tensor("bias", &[image_channels])?;
        let own = weight
            .narrow(1, channels, image_channels)?
            .contiguous()?
            .reshape((1, image_channels))?;
        let joined_weight = own.matmul(&before_weight)?.reshape((1, inner, 3, 3))?;
        let joined_bias = own
            .matmul(&before_bias.contiguous()?.unsqueeze(1)?)?
            .flatten_all()?;
        let placement = weights.placement();
        Ok(Self {
            features: Conv2d::from_tensors(
                &weight.narrow(1, 0, channels)?.contiguous()?,
                &bias.contiguous()?,
                Conv2dConfig::default(),
                placement,
            )?,
            image_in: conv3x3(&branch.pp("conv1"), 3, inner)?,
            image_out: Conv2d::from_tensors(&joined_weight, &joined_bias, same_size(3), placement)?,
        })
    }

    /// Logits `[1, height, width, 1]` of `image` from the decoder's last map.
    pub(super) fn forward(&self, map: &Tensor, image: &Tensor) -> Result<Tensor> {
        let (_, height, width, _) = image.dims4()?;
        let features = self.features.forward_channels_last(map)?;
        let mut bands = Vec::new();
        for start in (0..height).step_by(IMAGE_ROWS_AT_ONCE) {
            let end = height.min(start + IMAGE_ROWS_AT_ONCE);
            bands.push(self.image_rows(image, start, end)?);
        }
        bilinear_align_corners(&features, height, width)? + Tensor::cat(&bands, 1)?
    }

    /// The image's own part of rows `start..end`. Each of the two filters reaches one row further, and only at the
    /// ends of the image are there zeros instead.
    fn image_rows(&self, image: &Tensor, start: usize, end: usize) -> Result<Tensor> {
        let height = image.dim(1)?;
        let wider = |rows: usize| (start.saturating_sub(rows), height.min(end + rows));
        let (first, behind) = wider(2);
        let inner =
            self.image_in
                .forward_channels_last(&image.narrow(1, first, behind - first)?)?;
        let (inner_first, inner_behind) = wider(1);
        let inner = inner.narrow(1, inner_first - first, inner_behind - inner_first)?;
        self.image_out
            .forward_channels_last(&inner)?
            .narrow(1, start - inner_first, end - start)?
            .contiguous()
    }
}
