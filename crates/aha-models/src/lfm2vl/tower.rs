//! The vision tower of LFM2-VL (SigLIP 2 for any shape, arXiv 2502.14786) with the projector to the language model.

use super::config::Lfm2VlConfig;
use crate::error::LoadError;
use crate::vision::{
    BlockNames, Interpolation, PatchReader, VisionBlock, learned_positions, patch_places,
    split_tokens,
};
use aha_engine::{EncoderInput, MediaEncoder};
use aha_media::image::{Normalization, PatchOrder};
use aha_nn::linear::Linear;
use aha_nn::mlp::Activation;
use aha_nn::norm::LayerNorm;
use aha_nn::ragged::SequenceBounds;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{Module, Result, Tensor};

/// Epsilon of the projector's norm, which no key names.
const PROJECTOR_NORM_EPS: f64 = 1e-5;

/// Neighbouring patches to one token of the language model.
#[derive(Debug)]
struct Projector {
    norm: Option<LayerNorm>,
    linear_1: Linear,
    linear_2: Linear,
    activation: Activation,
    joined: usize,
}

impl Projector {
    fn load(weights: &Weights, config: &Lfm2VlConfig, hidden_size: usize) -> WeightsResult<Self> {
        let joined = config.vision_config.block().hidden_size * config.downsample_factor.pow(2);
        let inner = config.projector_hidden_size;
        let linear =
            |name, from, to| Linear::load(&weights.pp(name), from, to, config.projector_bias);
        let norm = || LayerNorm::load(&weights.pp("layer_norm"), joined, PROJECTOR_NORM_EPS);
        Ok(Self {
            norm: config.projector_use_layernorm.then(norm).transpose()?,
            linear_1: linear("linear_1", joined, inner)?,
            linear_2: linear("linear_2", inner, hidden_size)?,
            activation: config.projector_hidden_act,
            joined,
        })
    }

    /// `hidden` is `[patches, width]`, the patches of a token side by side; the result `[tokens, hidden_size]`.
    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut joined = hidden.reshape(((), self.joined))?;
        if let Some(norm) = &self.norm {
            joined = norm.forward(&joined)?;
        }
        let inner = self.activation.forward(&self.linear_1.forward(&joined)?)?;
        self.linear_2.forward(&inner)
    }
}

/// Patches, encoder layers and projector. Each tile has its own length and sees itself alone.
#[derive(Debug)]
pub struct VisionTower {
    patch_embedding: Linear,
    position_embedding: Tensor,
    layers: Vec<VisionBlock>,
    post_layernorm: LayerNorm,
    projector: Projector,
    reader: PatchReader,
    merge: usize,
}

impl VisionTower {
    /// Loads tower and projector; `order` and `normalization` are the preprocessor's, `hidden_size` the language
    /// model's.
    pub fn load(
        tower: &Weights,
        projector: &Weights,
        config: &Lfm2VlConfig,
        hidden_size: usize,
        (order, normalization): (PatchOrder, Normalization),
    ) -> std::result::Result<Self, LoadError> {
        config.validate()?;
        let vision = &config.vision_config;
        let block = vision.block();
        let hidden = block.hidden_size;
        let embeddings = tower.pp("embeddings");
        let sizes = [vision.patch_size, config.downsample_factor, 1];
        Ok(Self {
            patch_embedding: Linear::load(
                &embeddings.pp("patch_embedding"),
                3 * vision.patch_size.pow(2),
                hidden,
                true,
            )?,
            position_embedding: embeddings
                .pp("position_embedding")
                .tensor("weight", &[vision.num_patches, hidden])?,
            layers: (0..vision.num_hidden_layers)
                .map(|index| {
                    let weights = tower.pp(format_args!("encoder.layers.{index}"));
                    VisionBlock::load(&weights, &block, &BlockNames::SIGLIP)
                })
                .collect::<WeightsResult<_>>()?,
            post_layernorm: LayerNorm::load(&tower.pp("post_layernorm"), hidden, block.norm_eps)?,
            projector: Projector::load(projector, config, hidden_size)?,
            reader: PatchReader::new(order, sizes, normalization, tower)?,
            merge: config.downsample_factor,
        })
    }

    /// Patches of all inputs and their grids, as [`Self::forward`] takes them.
    pub fn pixels(&self, inputs: &[&EncoderInput]) -> Result<(Tensor, Vec<[usize; 3]>)> {
        self.reader.read(inputs)
    }

    /// `pixels` `[patches, patch * patch * 3]` of tiles with these grids (1, patches in height, in width), in blocks
    /// that become a token each, to `[tokens, hidden_size]`. `visit` sees the stages by their names.
    pub fn forward(
        &self,
        pixels: &Tensor,
        grids: &[[usize; 3]],
        mut visit: impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let (_, rows) = patch_places(grids, self.merge);
        let rule = Interpolation::HalfPixelAntialiased;
        let positions = learned_positions(&self.position_embedding, grids, rows, rule)?;
        let mut hidden = (self.patch_embedding.forward(pixels)? + positions)?;
        visit("embeddings", &hidden);
        let lengths = grids.iter().map(|grid| grid.iter().product());
        let bounds = SequenceBounds::from_lengths(lengths)?;
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden, None, &bounds)?;
            if index == 0 {
                visit("layer0", &hidden);
            }
        }
        let hidden = self.post_layernorm.forward(&hidden)?;
        visit("last", &hidden);
        self.projector.forward(&hidden)
    }
}

impl MediaEncoder for VisionTower {
    fn encode(&self, inputs: &[&EncoderInput]) -> Result<Vec<Tensor>> {
        let (pixels, grids) = self.pixels(inputs)?;
        split_tokens(&self.forward(&pixels, &grids, |_, _| {})?, inputs)
    }
}
