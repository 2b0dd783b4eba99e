//! The Swin transformer (arXiv 2103.14030) as a backbone: feature maps of four sizes.
//!
//! One image at a time; tokens are `[height * width, channels]`, maps `[1, height, width, channels]`.

use super::sizes::{count, dim};
use super::windows::{Windows, masks, relative_positions};
use crate::encoder::Mlp;
use crate::error::LoadError;
use aha_nn::conv::{Conv2d, Conv2dConfig};
use aha_nn::linear::Linear;
use aha_nn::mlp::Activation;
use aha_nn::norm::LayerNorm;
use aha_nn::weights::Weights;
use aha_nn::windows::{WindowAttention, WindowBias};
use candle_core::{DType, Module, Result, Tensor};

/// Epsilon of all norms.
const NORM_EPS: f64 = 1e-5;

/// Values that a wide layer gives at once: it bounds what a large map needs in memory, and keeps it in a cache.
const VALUES_AT_ONCE: usize = 4 << 20;

/// Widest window; its square is the length of the sequences that attention sees.
const WIDEST_WINDOW: usize = 64;

/// Attention inside windows, then an MLP, both with a norm before and a residual around them.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    attention: WindowAttention,
    /// `[num_heads, window², window²]`, f32.
    position_bias: Tensor,
    proj: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
    /// Width inside the MLP.
    inner: usize,
}

impl Block {
    fn load(
        weights: &Weights,
        channels: usize,
        window: usize,
    ) -> std::result::Result<Self, LoadError> {
        let attention = weights.pp("attn");
        let table = "relative_position_bias_table";
        let num_heads = dim(&attention, table, 1)?;
        if !channels.is_multiple_of(num_heads) {
            return Err(LoadError::config(
                format!("{}.{table}", attention.prefix()),
                format!("{num_heads} heads do not divide the width of {channels}"),
            ));
        }
        let positions = (2 * window - 1).pow(2);
        let position_bias = attention
            .tensor(table, &[positions, num_heads])?
            .to_dtype(DType::F32)?;
        let len = window * window;
        let index = Tensor::new(relative_positions(window), weights.device())?;
        let position_bias = position_bias
            .contiguous()?
            .index_select(&index, 0)?
            .t()?
            .contiguous()?
            .reshape((num_heads, len, len))?;
        let inner = dim(weights, "mlp.fc1.weight", 0)?;
        let norm = |name| LayerNorm::load(&weights.pp(name), channels, NORM_EPS);
        Ok(Self {
            norm1: norm("norm1")?,
            qkv: Linear::load(&attention.pp("qkv"), channels, 3 * channels, true)?,
            attention: WindowAttention {
                num_heads,
                head_dim: channels / num_heads,
                len,
            },
            position_bias,
            proj: Linear::load(&attention.pp("proj"), channels, channels, true)?,
            norm2: norm("norm2")?,
            mlp: Mlp::load(
                &weights.pp("mlp.fc1"),
                &weights.pp("mlp.fc2"),
                (channels, inner, channels),
                Activation::Gelu,
            )?,
            inner,
        })
    }

    /// `masks` are those of all windows, see [`masks`].
    fn forward(&self, x: &Tensor, windows: &Windows, masks: &Tensor) -> Result<Tensor> {
        let x = (x + self.attend(&self.norm1.forward(x)?, windows, masks)?)?;
        let mut parts = Vec::new();
        let tokens = x.dim(0)?;
        let at_once = (VALUES_AT_ONCE / self.inner).max(1);
        for start in (0..tokens).step_by(at_once) {
            let part = x.narrow(0, start, at_once.min(tokens - start))?;
            parts.push(self.mlp.forward(&self.norm2.forward(&part)?)?);
        }
        x + Tensor::cat(&parts, 0)?
    }

    fn attend(&self, x: &Tensor, windows: &Windows, masks: &Tensor) -> Result<Tensor> {
        let (len, channels) = (self.attention.len, x.dim(1)?);
        let at_once = (VALUES_AT_ONCE / (3 * channels * len)).max(1);
        let mut parts = Vec::new();
        for (index, mask_of) in windows.mask_of.chunks(at_once).enumerate() {
            let tokens = windows
                .gather
                .narrow(0, index * at_once * len, mask_of.len() * len)?;
            // Padding is zero here, behind the norm, so its keys and values are the biases alone.
            let qkv = self.qkv.forward(&x.index_select(&tokens, 0)?)?;
            let part = |index: usize| qkv.narrow(1, index * channels, channels);
            let bias = WindowBias {
                heads: &self.position_bias,
                masks,
                mask_of,
            };
            let attended = self
                .attention
                .forward(&part(0)?, &part(1)?, &part(2)?, &bias)?;
            parts.push(self.proj.forward(&attended)?);
        }
        Tensor::cat(&parts, 0)?.index_select(&windows.scatter, 0)
    }
}

/// Two by two neighbours become one token of twice the width.
#[derive(Debug)]
struct PatchMerging {
    norm: LayerNorm,
    reduction: Linear,
}

impl PatchMerging {
    fn load(weights: &Weights, channels: usize) -> std::result::Result<Self, LoadError> {
        Ok(Self {
            norm: LayerNorm::load(&weights.pp("norm"), 4 * channels, NORM_EPS)?,
            reduction: Linear::load(&weights.pp("reduction"), 4 * channels, 2 * channels, false)?,
        })
    }

    /// `x` are the tokens of a map of `height` rows; at odd sizes zeros are added.
    fn forward(&self, x: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
        let channels = x.dim(1)?;
        let mut neighbours = Vec::with_capacity(x.dim(0)?.next_multiple_of(4));
        for row in (0..height).step_by(2) {
            for column in (0..width).step_by(2) {
                for (y, x) in [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(y, x)| (row + y, column + x)) {
                    neighbours.push(if y < height && x < width {
                        (y * width + x) as u32
                    } else {
                        u32::MAX
                    });
                }
            }
        }
        let neighbours = Tensor::new(neighbours, x.device())?;
        let joined = x
            .index_select(&neighbours, 0)?
            .reshape(((), 4 * channels))?;
        self.reduction.forward(&self.norm.forward(&joined)?)
    }
}

/// Blocks of one map size.
#[derive(Debug)]
struct Stage {
    blocks: Vec<Block>,
    /// Of what the stage gives away; the next stage goes on without it.
    norm: LayerNorm,
    merging: Option<PatchMerging>,
}

/// Patches, then stages that halve the map and double the width.
#[derive(Debug)]
pub(super) struct SwinTransformer {
    patch_embedding: Conv2d,
    patch_norm: LayerNorm,
    patch_size: usize,
    stages: Vec<Stage>,
    window: usize,
    shift: usize,
    masks: Tensor,
}

impl SwinTransformer {
    /// Loads the backbone, whose sizes are those of its tensors.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing or tells an impossible one.
    pub(super) fn load(weights: &Weights) -> std::result::Result<Self, LoadError> {
        let patch = weights.pp("patch_embed");
        let channels = dim(&patch, "proj.weight", 0)?;
        let patch_size = dim(&patch, "proj.weight", 2)?;
        let window = window_size(weights)?;
        let num_stages = count(weights, "layers", "blocks.0.norm1.weight");
        let stages = (0..num_stages)
            .map(|index| {
                let layer = weights.pp(format_args!("layers.{index}"));
                let channels = channels << index;
                let last = index + 1 == num_stages;
                Ok(Stage {
                    blocks: (0..count(&layer, "blocks", "norm1.weight"))
                        .map(|index| {
                            let block = layer.pp(format_args!("blocks.{index}"));
                            Block::load(&block, channels, window)
                        })
                        .collect::<std::result::Result<_, _>>()?,
                    norm: LayerNorm::load(
                        &weights.pp(format_args!("norm{index}")),
                        channels,
                        NORM_EPS,
                    )?,
                    merging: (!last)
                        .then(|| PatchMerging::load(&layer.pp("downsample"), channels))
                        .transpose()?,
                })
            })
            .collect::<std::result::Result<_, LoadError>>()?;
        let strided = Conv2dConfig {
            stride: patch_size,
            ..Conv2dConfig::default()
        };
        let shift = window / 2;
        Ok(Self {
            patch_embedding: Conv2d::load(
                &patch.pp("proj"),
                3,
                channels,
                patch_size,
                strided,
                true,
            )?,
            patch_norm: LayerNorm::load(&patch.pp("norm"), channels, NORM_EPS)?,
            patch_size,
            stages,
            window,
            shift,
            masks: masks(window, shift, weights.device())?,
        })
    }

    /// Width of the first stage.
    pub(super) fn embed_dim(&self) -> usize {
        self.patch_embedding.out_channels()
    }

    /// Number of stages, of which each gives a map.
    pub(super) fn num_stages(&self) -> usize {
        self.stages.len()
    }

    /// Pixels of the image on a side of a pixel of the smallest map.
    pub(super) fn reduction(&self) -> usize {
        self.patch_size << self.stages.len().saturating_sub(1)
    }

    /// Maps of `image` `[1, height, width, 3]`, the largest first. `visit` sees the tokens behind every block and may
    /// stop the run by an error.
    pub(super) fn forward(
        &self,
        image: &Tensor,
        mut visit: impl FnMut(&Tensor) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        let (_, height, width, _) = image.dims4()?;
        let missing = |size: usize| size.next_multiple_of(self.patch_size) - size;
        let image = image
            .pad_with_zeros(1, 0, missing(height))?
            .pad_with_zeros(2, 0, missing(width))?;
        let patches = self.patch_embedding.forward_channels_last(&image)?;
        let (_, mut height, mut width, channels) = patches.dims4()?;
        let mut x = self
            .patch_norm
            .forward(&patches.reshape((height * width, channels))?)?;
        let mut maps = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let windows = |shift| Windows::new((height, width), self.window, shift, x.device());
            let windows = [windows(0)?, windows(self.shift)?];
            for (index, block) in stage.blocks.iter().enumerate() {
                x = block.forward(&x, &windows[index % 2], &self.masks)?;
                visit(&x)?;
            }
            let map = stage.norm.forward(&x)?;
            maps.push(map.reshape((1, height, width, ()))?);
            if let Some(merging) = &stage.merging {
                x = merging.forward(&x, (height, width))?;
                (height, width) = (height.div_ceil(2), width.div_ceil(2));
            }
        }
        Ok(maps)
    }
}

/// The side of the windows, whose relative positions are `(2 * side - 1)²`.
fn window_size(weights: &Weights) -> std::result::Result<usize, LoadError> {
    let table = "layers.0.blocks.0.attn.relative_position_bias_table";
    let positions = dim(weights, table, 0)?;
    (1..=WIDEST_WINDOW)
        .find(|side| (2 * side - 1).pow(2) == positions)
        .ok_or_else(|| {
            LoadError::config(
                format!("{}.{table}", weights.prefix()),
                format!(
                    "{positions} relative positions are those of no window of up to {WIDEST_WINDOW} tokens a side"
                ),
            )
        })
}

#[cfg(test)]
pub(super) mod parts {
    //! Single layers, for tests against the reference at the release's sizes.

    use super::*;

    /// A block on the tokens of a map.
    pub(crate) fn block(
        weights: &Weights,
        x: &Tensor,
        size: (usize, usize),
        window: usize,
    ) -> Tensor {
        let shift = window / 2;
        let block = Block::load(weights, x.dim(1).unwrap(), window).unwrap();
        let windows = Windows::new(size, window, shift, x.device()).unwrap();
        let masks = masks(window, shift, x.device()).unwrap();
        block.forward(x, &windows, &masks).unwrap()
    }

    /// A merging of the tokens of a map.
    pub(crate) fn merging(weights: &Weights, x: &Tensor, size: (usize, usize)) -> Tensor {
        let merging = PatchMerging::load(weights, x.dim(1).unwrap()).unwrap();
        merging.forward(x, size).unwrap()
    }
}
