//! The vision tower of GLM-OCR with the merger to the language model.

use super::config::VisionConfig;
use crate::error::LoadError;
use crate::vision::{
    CellConv, PatchReader, VisionBlock, axial_rotation, patch_places, split_tokens,
};
use aha_engine::{EncoderInput, MediaEncoder};
use aha_media::image::{Normalization, PatchOrder};
use aha_nn::linear::Linear;
use aha_nn::mlp::{Activation, GatedMlp};
use aha_nn::norm::{LayerNorm, RmsNorm};
use aha_nn::ragged::SequenceBounds;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{DType, Device, Module, Result, Tensor};

/// Base of the rotary frequencies, which no key names.
const ROPE_THETA: f32 = 10_000.0;
/// Epsilon of the merger's norm, likewise.
const MERGER_NORM_EPS: f64 = 1e-5;
/// Width inside the merger's MLP, in widths of its input.
const MERGER_EXPANSION: usize = 3;

/// Merged cells to tokens of the language model.
#[derive(Debug)]
struct Merger {
    proj: Linear,
    post_projection_norm: LayerNorm,
    mlp: GatedMlp,
}

impl Merger {
    fn load(weights: &Weights, config: &VisionConfig) -> WeightsResult<Self> {
        let width = config.out_hidden_size;
        Ok(Self {
            proj: Linear::load(&weights.pp("proj"), width, width, false)?,
            post_projection_norm: LayerNorm::load(
                &weights.pp("post_projection_norm"),
                width,
                MERGER_NORM_EPS,
            )?,
            mlp: GatedMlp::load(
                weights,
                width,
                MERGER_EXPANSION * width,
                config.hidden_act,
                false,
            )?,
        })
    }
}

impl Module for Merger {
    /// `cells` is `[tokens, out_hidden_size]`, and so is the result.
    fn forward(&self, cells: &Tensor) -> Result<Tensor> {
        let normed = self
            .post_projection_norm
            .forward(&self.proj.forward(cells)?)?;
        self.mlp.forward(&Activation::Gelu.forward(&normed)?)
    }
}

/// Patches, blocks, downsampling and merger. Each picture sees itself alone.
#[derive(Debug)]
pub struct VisionTower {
    patch_embed: Linear,
    blocks: Vec<VisionBlock<RmsNorm, GatedMlp>>,
    post_layernorm: RmsNorm,
    downsample: CellConv,
    merger: Merger,
    config: VisionConfig,
    reader: PatchReader,
    device: Device,
    dtype: DType,
}

impl VisionTower {
    /// Loads the tower; `order` and `normalization` are the preprocessor's.
    pub fn load(
        weights: &Weights,
        config: VisionConfig,
        order: PatchOrder,
        normalization: Normalization,
    ) -> std::result::Result<Self, LoadError> {
        config.validate()?;
        let (patch, merge, frames) = (
            config.patch_size,
            config.spatial_merge_size,
            config.temporal_patch_size,
        );
        let block = config.block();
        let width = block.hidden_size;
        Ok(Self {
            patch_embed: Linear::load_kernel(
                &weights.pp("patch_embed.proj"),
                &[3, frames, patch, patch],
                width,
                true,
            )?,
            blocks: (0..config.depth)
                .map(|index| {
                    let weights = weights.pp(format_args!("blocks.{index}"));
                    VisionBlock::load_gated_with_head_norms(&weights, &block, config.attention_bias)
                })
                .collect::<WeightsResult<_>>()?,
            post_layernorm: RmsNorm::load(&weights.pp("post_layernorm"), width, block.norm_eps)?,
            downsample: CellConv::load(
                &weights.pp("downsample"),
                width,
                merge,
                config.out_hidden_size,
            )?,
            merger: Merger::load(&weights.pp("merger"), &config)?,
            reader: PatchReader::new(order, [patch, merge, frames], normalization, weights)?,
            config,
            device: weights.device().clone(),
            dtype: weights.dtype(),
        })
    }

    /// Patches of all inputs and their grids, as [`Self::forward`] takes them.
    pub fn pixels(&self, inputs: &[&EncoderInput]) -> Result<(Tensor, Vec<[usize; 3]>)> {
        self.reader.read(inputs)
    }

    /// `pixels` `[patches, 3 * frames * patch * patch]` of pictures with these grids (1, patches in height, in width)
    /// to `[tokens, out_hidden_size]`. `visit` sees the stages by their names.
    pub fn forward(
        &self,
        pixels: &Tensor,
        grids: &[[usize; 3]],
        mut visit: impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let mut hidden = self.patch_embed.forward(pixels)?;
        visit("patch_embed", &hidden);
        let (places, _) = patch_places(grids, self.config.spatial_merge_size);
        let head_dim = self.config.block().head_dim();
        let rotation = axial_rotation(&places, head_dim, ROPE_THETA, self.dtype, &self.device)?;
        let lengths = grids.iter().map(|grid| grid.iter().product());
        let bounds = SequenceBounds::from_lengths(lengths)?;
        for (index, block) in self.blocks.iter().enumerate() {
            hidden = block.forward(&hidden, Some(&rotation), &bounds)?;
            visit(&format!("block_{index}"), &hidden);
        }
        let hidden = self.post_layernorm.forward(&hidden)?;
        visit("post_layernorm", &hidden);
        let cells = self.downsample.forward(&hidden)?;
        visit("downsample", &cells);
        self.merger.forward(&cells)
    }
}

impl MediaEncoder for VisionTower {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        let (pixels, grids) = self.pixels(inputs)?;
        split_tokens(&self.forward(&pixels, &grids, |_, _| {})?, inputs)
    }
}
