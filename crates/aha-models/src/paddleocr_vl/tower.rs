//! The vision tower of PaddleOCR-VL with the projector to the language model.

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
/// Epsilon of the projector's norm, likewise.
const PROJECTOR_NORM_EPS: f64 = 1e-5;

/// Neighbouring patches to one token of the language model.
#[derive(Debug)]
struct Projector {
    pre_norm: LayerNorm,
    mlp: Mlp,
    joined: usize,
}

impl Projector {
    fn load(weights: &Weights, config: &VisionConfig, hidden_size: usize) -> WeightsResult<Self> {
        let width = config.block().hidden_size;
        let joined = width * config.spatial_merge_size.pow(2);
        Ok(Self {
            pre_norm: LayerNorm::load(&weights.pp("pre_norm"), width, PROJECTOR_NORM_EPS)?,
            mlp: Mlp::load(
                &weights.pp("linear_1"),
                &weights.pp("linear_2"),
                (joined, joined, hidden_size),
                Activation::Gelu,
            )?,
            joined,
        })
    }

    /// `hidden` is `[patches, width]`, the patches of a token side by side; the result `[tokens, hidden_size]`.
    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let normed = self.pre_norm.forward(hidden)?;
        self.mlp.forward(&normed.reshape(((), self.joined))?)
    }
}

/// Patches, encoder layers and projector. Each picture sees itself alone.
#[derive(Debug)]
pub struct VisionTower {
    patch_embedding: Linear,
    position_embedding: Tensor,
    layers: Vec<VisionBlock>,
    post_layernorm: LayerNorm,
    projector: Projector,
    config: VisionConfig,
    reader: PatchReader,
    device: Device,
    dtype: DType,
}

impl VisionTower {
    /// Loads tower and projector; `order` and `normalization` are the preprocessor's, `hidden_size` the language
    /// model's.
    pub fn load(
        tower: &Weights,
        projector: &Weights,
        config: VisionConfig,
        hidden_size: usize,
        (order, normalization): (PatchOrder, Normalization),
    ) -> std::result::Result<Self, LoadError> {
        config.validate()?;
        let block = config.block();
        let width = block.hidden_size;
        let embeddings = tower.pp("embeddings");
        let sizes = [config.patch_size, config.spatial_merge_size, 1];
        Ok(Self {
            patch_embedding: Linear::load_kernel(
                &embeddings.pp("patch_embedding"),
                &[3, config.patch_size, config.patch_size],
                width,
                true,
            )?,
            position_embedding: embeddings
                .pp("position_embedding")
                .tensor("weight", &[config.table_side().pow(2), width])?,
            layers: (0..config.num_hidden_layers)
                .map(|index| {
                    let weights = tower.pp(format_args!("encoder.layers.{index}"));
                    VisionBlock::load(&weights, &block, &BlockNames::SIGLIP)
                })
                .collect::<WeightsResult<_>>()?,
            post_layernorm: LayerNorm::load(&tower.pp("post_layernorm"), width, block.norm_eps)?,
            projector: Projector::load(projector, &config, hidden_size)?,
            reader: PatchReader::new(order, sizes, normalization, tower)?,
            config,
            device: tower.device().clone(),
            dtype: tower.dtype(),
        })
    }

    /// Patches of all inputs and their grids, as [`Self::forward`] takes them.
    pub fn pixels(&self, inputs: &[&EncoderInput]) -> Result<(Tensor, Vec<[usize; 3]>)> {
        self.reader.read(inputs)
    }

    /// `pixels` `[patches, 3 * patch * patch]` of pictures with these grids (1, patches in height, in width), in
    /// blocks that become a token each, to `[tokens, hidden_size]`. `visit` sees the stages by their names.
    pub fn forward(
        &self,
        pixels: &Tensor,
        grids: &[[usize; 3]],
        mut visit: impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let (places, rows) = patch_places(grids, self.config.spatial_merge_size);
        let rule = Interpolation::HalfPixel;
        let positions = learned_positions(&self.position_embedding, grids, rows, rule)?;
        let mut hidden = (self.patch_embedding.forward(pixels)? + positions)?;
        visit("embeddings", &hidden);
        let head_dim = self.config.block().head_dim();
        let rotation = axial_rotation(&places, head_dim, ROPE_THETA, self.dtype, &self.device)?;
        let lengths = grids.iter().map(|grid| grid.iter().product());
        let bounds = SequenceBounds::from_lengths(lengths)?;
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden, Some(&rotation), &bounds)?;
            visit(&format!("layer_{index}"), &hidden);
        }
        let hidden = self.post_layernorm.forward(&hidden)?;
        visit("post_layernorm", &hidden);
        self.projector.forward(&hidden)
    }
}

impl MediaEncoder for VisionTower {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        let (pixels, grids) = self.pixels(inputs)?;
        split_tokens(&self.forward(&pixels, &grids, |_, _| {})?, inputs)
    }
}
