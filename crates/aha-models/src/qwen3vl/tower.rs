//! The vision tower of Qwen3-VL and Qwen3.5.

use super::config::VisionConfig;
use crate::error::LoadError;
use crate::vision::{
    Interpolation, Mlp, VisionBlock, axial_rotation, interpolate_table, patch_places,
};
use aha_engine::{EncoderContent, EncoderInput, MediaEncoder};
use aha_media::image::{Normalization, PatchOrder, patches};
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
            norm: LayerNorm::load(&weights.pp("norm"), normed, block.layer_norm_eps)?,
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
    order: PatchOrder,
    normalization: Normalization,
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
            ("patch_size", order.patch_size, config.patch_size),
            ("merge_size", order.merge_size, config.spatial_merge_size),
            (
                "temporal_patch_size",
                order.temporal_patch_size,
                config.temporal_patch_size,
            ),
        ];
        for (key, prepared, own) in sizes {
            if prepared as usize != own {
                let reason = format!("it is {prepared}, but the tower's is {own}");
                return Err(LoadError::config(
                    format!("preprocessor_config.json: {key}"),
                    reason,
                ));
            }
        }
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
                    VisionBlock::load_fused(&weights.pp(format_args!("blocks.{index}")), &block)
                })
                .collect::<WeightsResult<_>>()?,
            merger: PatchMerger::load(&weights.pp("merger"), &config, false)?,
            deepstack,
            config,
            order,
            normalization,
            device: weights.device().clone(),
            dtype: weights.dtype(),
        })
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
        let mut tables = Vec::with_capacity(grids.len());
        for &[time, height, width] in grids {
            let table = interpolate_table(
                &self.pos_embed,
                (height, width),
                Interpolation::AlignedCorners,
            )?;
            tables.extend(std::iter::repeat_n(table, time));
        }
        let rows = Tensor::new(rows, &self.device)?;
        let positions = Tensor::cat(&tables, 0)?.index_select(&rows, 0)?;
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
        let (mut pixels, mut grids) = (Vec::new(), Vec::with_capacity(inputs.len()));
        for input in inputs {
            let EncoderContent::Frames(frames) = &input.content else {
                candle_core::bail!("a vision tower takes pictures");
            };
            let (values, grid) = patches(frames, &self.order, &self.normalization)
                .map_err(candle_core::Error::wrap)?;
            pixels.extend(values);
            grids.push(grid.map(|side| side as usize));
        }
        let width = 3 * self.config.temporal_patch_size * self.config.patch_size.pow(2);
        let pixels = Tensor::from_vec(pixels.clone(), (pixels.len() / width, width), &self.device)?
            .to_dtype(self.dtype)?;
        let encoded = self.forward(&pixels, &grids, |_, _| {})?;
        let mut start = 0;
        inputs
            .iter()
            .map(|input| {
                let rows = encoded.narrow(0, start, input.num_tokens)?;
                start += input.num_tokens;
                Ok(rows)
            })
            .collect()
    }
}
