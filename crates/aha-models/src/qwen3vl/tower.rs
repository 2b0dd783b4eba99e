//! The vision tower of Qwen3-VL and Qwen3.5.

use super::config::VisionConfig;
use crate::error::LoadError;
use crate::vision::{
    BlockNames, Interpolation, Mlp, PatchReader, VisionBlock, axial_rotation, learned_positions,
    patch_places, split_tokens,
};
use aha_engine::{EncoderInput, MediaEncoder};
use aha_media::image::{Normalization, PatchOrder};
use aha_nn::linear::Linear;
use aha_nn::mlp::Activation;
use aha_nn::norm::LayerNorm;
use aha_nn::ragged::SequenceBounds;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{DType, Device, Module, Result, Tensor};

/// Base of the rotary frequencies, which no key names.
const ROPE_THETA: f32 = 10_000.0;

/// Neighbouring patches to one token of the language model.
#[derive(Debug)]
struct PatchMerger {
    norm: LayerNorm,
    /// The patches are joined before the norm, as in deepstack's mergers.
    joined_norm: bool,
    mlp: Mlp,
    joined: usize,
}

impl PatchMerger {
    fn load(weights: &Weights, config: &VisionConfig, joined_norm: bool) -> WeightsResult<Self> {
        let block = config.block();
        let joined = block.hidden_size * config.spatial_merge_size.pow(2);
        let normed = if joined_norm {
            joined
        } else {
            block.hidden_size
        };
        Ok(Self {
            norm: LayerNorm::load(&weights.pp("norm"), normed, block.norm_eps)?,
            joined_norm,
            mlp: Mlp::load(
                &weights.pp("linear_fc1"),
                &weights.pp("linear_fc2"),
                (joined, joined, config.out_hidden_size),
                Activation::Gelu,
            )?,
            joined,
        })
    }

    /// `hidden` is `[patches, hidden_size]` in order of blocks; the result `[tokens, out_hidden_size]`.
    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let join = |x: &Tensor| x.contiguous()?.reshape(((), self.joined));
        let merged = if self.joined_norm {
            self.norm.forward(&join(hidden)?)?
        } else {
            join(&self.norm.forward(hidden)?)?
        };
        self.mlp.forward(&merged)
    }
}

/// Patches, blocks and mergers; after some blocks the states leave the tower for the language model's first layers
/// (deepstack, arXiv 2406.04334).
#[derive(Debug)]
pub struct VisionTower {
    patch_embed: Linear,
    pos_embed: Tensor,
    blocks: Vec<VisionBlock>,
    merger: PatchMerger,
    deepstack: Vec<(usize, PatchMerger)>,
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
        let sizes = [
            config.patch_size,
            config.spatial_merge_size,
            config.temporal_patch_size,
        ];
        let reader = PatchReader::new(order, sizes, normalization, weights)?;
        let block = config.block();
        let patch = config.patch_size;
        let shape = [3, config.temporal_patch_size, patch, patch];
        let deepstack = config
            .deepstack_visual_indexes
            .iter()
            .enumerate()
            .map(|(index, after)| {
                let weights = weights.pp(format_args!("deepstack_merger_list.{index}"));
                Ok((*after, PatchMerger::load(&weights, &config, true)?))
            })
            .collect::<WeightsResult<_>>()?;
        Ok(Self {
            patch_embed: Linear::load_kernel(
                &weights.pp("patch_embed.proj"),
                &shape,
                block.hidden_size,
                true,
            )?,
            pos_embed: weights.pp("pos_embed").tensor(
                "weight",
                &[config.num_position_embeddings, block.hidden_size],
            )?,
            blocks: (0..config.depth)
                .map(|index| {
                    VisionBlock::load(
                        &weights.pp(format_args!("blocks.{index}")),
                        &block,
                        &BlockNames::QWEN3_VL,
                    )
                })
                .collect::<WeightsResult<_>>()?,
            merger: PatchMerger::load(&weights.pp("merger"), &config, false)?,
            deepstack,
            config,
            reader,
            device: weights.device().clone(),
            dtype: weights.dtype(),
        })
    }

    /// Patches of all inputs and their grids, as [`Self::forward`] takes them.
    pub fn pixels(&self, inputs: &[&EncoderInput]) -> Result<(Tensor, Vec<[usize; 3]>)> {
        self.reader.read(inputs)
    }

    /// `pixels` `[patches, 3 * frames * patch * patch]` of pictures with these grids (patches in time, height, width)
    /// to `[tokens, (1 + deepstack) * out_hidden_size]`. `visit` sees the stages by their names.
    pub fn forward(
        &self,
        pixels: &Tensor,
        grids: &[[usize; 3]],
        mut visit: impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let merge = self.config.spatial_merge_size;
        let (places, rows) = patch_places(grids, merge);
        let mut hidden = self.patch_embed.forward(pixels)?;
        visit("patch_embed", &hidden);
        let rule = Interpolation::AlignedCorners;
        let positions = learned_positions(&self.pos_embed, grids, rows, rule)?;
        visit("pos_embed", &positions);
        hidden = (hidden + positions)?;

        let head_dim = self.config.block().head_dim();
        let rotation = axial_rotation(&places, head_dim, ROPE_THETA, self.dtype, &self.device)?;
        // Each frame of each picture sees itself alone.
        let frames = grids
            .iter()
            .flat_map(|&[time, height, width]| std::iter::repeat_n(height * width, time));
        let bounds = SequenceBounds::from_lengths(frames)?;
        let mut features = Vec::with_capacity(1 + self.deepstack.len());
        for (index, block) in self.blocks.iter().enumerate() {
            hidden = block.forward(&hidden, Some(&rotation), &bounds)?;
            if index == 0 {
                visit("block0", &hidden);
            }
            for (_, merger) in self.deepstack.iter().filter(|(after, _)| *after == index) {
                features.push(merger.forward(&hidden)?);
            }
        }
        let merged = self.merger.forward(&hidden)?;
        visit("merged", &merged);
        features.insert(0, merged);
        Tensor::cat(&features, 1)
    }
}

impl MediaEncoder for VisionTower {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        let (pixels, grids) = self.reader.read(inputs)?;
        split_tokens(&self.forward(&pixels, &grids, |_, _| {})?, inputs)
    }
}
