//! The vision tower of Qwen2.5-VL: most blocks attend within windows, a few over whole frames.

use super::config::VisionConfig;
use super::windows::WindowOrder;
use crate::error::LoadError;
use crate::vision::{Mlp, PatchReader, VisionBlock, axial_rotation, patch_places, split_tokens};
use aha_engine::{EncoderInput, MediaEncoder};
use aha_media::image::{Normalization, PatchOrder};
use aha_nn::linear::Linear;
use aha_nn::mlp::{Activation, GatedMlp};
use aha_nn::norm::RmsNorm;
use aha_nn::ragged::SequenceBounds;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{DType, Device, Module, Result, Tensor};

/// Base of the rotary frequencies, which no key names.
const ROPE_THETA: f32 = 10_000.0;

/// Patches, blocks, and the merger that makes one token of neighbouring patches.
#[derive(Debug)]
pub struct VisionTower {
    patch_embed: Linear,
    blocks: Vec<VisionBlock<RmsNorm, GatedMlp>>,
    merger_norm: RmsNorm,
    merger: Mlp,
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
        let (hidden, joined) = (block.hidden_size, block.hidden_size * merge * merge);
        let merger = weights.pp("merger");
        Ok(Self {
            patch_embed: Linear::load_kernel(
                &weights.pp("patch_embed.proj"),
                &[3, frames, patch, patch],
                hidden,
                false,
            )?,
            blocks: (0..config.depth)
                .map(|index| {
                    VisionBlock::load_gated(&weights.pp(format_args!("blocks.{index}")), &block)
                })
                .collect::<WeightsResult<_>>()?,
            merger_norm: RmsNorm::load(&merger.pp("ln_q"), hidden, block.norm_eps)?,
            merger: Mlp::load(
                &merger.pp("mlp.0"),
                &merger.pp("mlp.2"),
                (joined, joined, config.out_hidden_size),
                Activation::Gelu,
            )?,
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

    /// `pixels` `[patches, 3 * frames * patch * patch]` of pictures with these grids (patches in time, height, width)
    /// to `[tokens, out_hidden_size]`. `visit` sees the stages by their names.
    pub fn forward(
        &self,
        pixels: &Tensor,
        grids: &[[usize; 3]],
        mut visit: impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let merge = self.config.spatial_merge_size;
        let per_cell = merge * merge;
        let block = self.config.block();
        let order = WindowOrder::new(grids, merge, self.config.window_side());

        let hidden = self.patch_embed.forward(pixels)?;
        visit("patch_embed", &hidden);
        // Whole cells move: the patches of one stay together.
        let mut hidden = hidden
            .reshape(((), per_cell * block.hidden_size))?
            .index_select(&order.index(&self.device)?, 0)?
            .reshape(((), block.hidden_size))?;
        let (places, _) = patch_places(grids, merge);
        let rotation = axial_rotation(
            &order.reordered(&places, per_cell),
            block.head_dim(),
            ROPE_THETA,
            self.dtype,
            &self.device,
        )?;

        let windows = order.lengths().iter().map(|cells| cells * per_cell);
        let windows = SequenceBounds::from_lengths(windows)?;
        let frames = grids
            .iter()
            .flat_map(|&[time, height, width]| std::iter::repeat_n(height * width, time));
        let frames = SequenceBounds::from_lengths(frames)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let whole = self.config.fullatt_block_indexes.contains(&index);
            let bounds = if whole { &frames } else { &windows };
            hidden = block.forward(&hidden, Some(&rotation), bounds)?;
            visit(&format!("block{index}.windowed_order"), &hidden);
        }

        let joined = self
            .merger_norm
            .forward(&hidden)?
            .reshape(((), per_cell * block.hidden_size))?;
        let merged = self.merger.forward(&joined)?;
        visit("merged.windowed_order", &merged);
        merged.index_select(&order.inverse(&self.device)?, 0)
    }
}

impl MediaEncoder for VisionTower {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        let (pixels, grids) = self.pixels(inputs)?;
        split_tokens(&self.forward(&pixels, &grids, |_, _| {})?, inputs)
    }
}
