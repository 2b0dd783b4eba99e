//! The vision tower of CLIP (arXiv 2103.00020) over features in the place of patches.

use super::{BlockNames, Interpolation, VisionBlock, VisionBlockConfig, interpolate_table};
use crate::error::LoadError;
use aha_nn::mlp::Activation;
use aha_nn::norm::LayerNorm;
use aha_nn::ragged::SequenceBounds;
use aha_nn::weights::{Result as WeightsResult, Weights};
use candle_core::{Module, Result, Tensor};
use serde::Deserialize;

const NORM_EPS: f64 = 1e-5;
/// Width of the MLP over that of the stream, where no tensor tells.
const MLP_RATIO: usize = 4;

/// Keys of `vision_config.width.clip-l-14-224`.
#[derive(Debug, Clone, Deserialize)]
pub struct ClipConfig {
    width: usize,
    layers: usize,
    heads: usize,
    image_size: usize,
    patch_size: usize,
}

impl ClipConfig {
    /// Width of the stream.
    pub fn width(&self) -> usize {
        self.width
    }

    fn validate(&self) -> std::result::Result<(), LoadError> {
        let wrong = |key: &str, reason: String| {
            let key = format!("vision_config.width.clip-l-14-224.{key}");
            Err(LoadError::config(key, reason))
        };
        for (key, value, most) in [
            ("width", self.width, 1 << 14),
            ("layers", self.layers, 1 << 10),
            ("heads", self.heads, 1 << 10),
            ("patch_size", self.patch_size, 1 << 10),
            ("image_size", self.image_size, 1 << 12),
        ] {
            if value == 0 || value > most {
                return wrong(key, format!("{value} is not between 1 and {most}"));
            }
        }
        if !self.width.is_multiple_of(self.heads) {
            let reason = format!(
                "{} values do not divide into {} heads",
                self.width, self.heads
            );
            return wrong("heads", reason);
        }
        if self.image_size < self.patch_size {
            let reason = format!("{} is no patch of {}", self.image_size, self.patch_size);
            return wrong("image_size", reason);
        }
        Ok(())
    }

    /// Patches along a side of the pictures that the positions were trained for.
    fn side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// Class token, positions and blocks; no norm behind the last.
#[derive(Debug)]
pub struct ClipEncoder {
    class_embedding: Tensor,
    /// Of the class token, `[1, width]`.
    class_position: Tensor,
    /// Of the places of a square map, row by row.
    positions: Tensor,
    pre_norm: LayerNorm,
    layers: Vec<VisionBlock>,
    trained_side: usize,
}

impl ClipEncoder {
    /// Loads `embeddings`, `pre_layrnorm` (spelt so) and `transformer.layers`.
    pub fn load(weights: &Weights, config: &ClipConfig) -> std::result::Result<Self, LoadError> {
        config.validate()?;
        let (width, side) = (config.width, config.side());
        let layers = weights.pp("transformer.layers");
        let inner = layers
            .shape("0.mlp.fc1.weight")
            .and_then(|shape| shape.first().copied());
        let block = VisionBlockConfig {
            hidden_size: width,
            intermediate_size: inner.unwrap_or(MLP_RATIO * width),
            num_heads: config.heads,
            norm_eps: NORM_EPS,
            activation: Activation::QuickGelu,
        };
        let embeddings = weights.pp("embeddings");
        let table = embeddings.tensor("position_embedding.weight", &[1 + side * side, width])?;
        Ok(Self {
            class_embedding: embeddings.tensor("class_embedding", &[width])?,
            class_position: table.narrow(0, 0, 1)?,
            positions: table.narrow(0, 1, side * side)?,
            pre_norm: LayerNorm::load(&weights.pp("pre_layrnorm"), width, NORM_EPS)?,
            layers: (0..config.layers)
                .map(|index| VisionBlock::load(&layers.pp(index), &block, &BlockNames::CLIP))
                .collect::<WeightsResult<_>>()?,
            trained_side: side,
        })
    }

    /// `map` is `[views, side * side, width]`, and so is the result. `visit` sees the stages by their names.
    pub fn forward(
        &self,
        map: &Tensor,
        side: usize,
        visit: &mut impl FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let (views, places, width) = map.dims3()?;
        let positions = if side == self.trained_side {
            self.positions.clone()
        } else {
            let rule = Interpolation::CubicAntialiased;
            interpolate_table(&self.positions, (side, side), rule)?
        };
        let positions = Tensor::cat(&[&self.class_position, &positions], 0)?;
        let class = self.class_embedding.broadcast_as((views, 1, width))?;
        let tokens = views * (1 + places);
        let embedded = Tensor::cat(&[class, map.clone()], 1)?
            .broadcast_add(&positions)?
            .reshape((tokens, width))?;
        visit("embeddings", &embedded);
        let mut hidden = self.pre_norm.forward(&embedded)?;
        visit("pre_layrnorm", &hidden);
        let bounds = SequenceBounds::from_lengths(std::iter::repeat_n(1 + places, views))?;
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden, None, &bounds)?;
            visit(&format!("layer_{index}"), &hidden);
        }
        hidden
            .reshape((views, 1 + places, width))?
            .narrow(1, 1, places)
    }
}
