//! Keys of `vision_config` in Qwen3-VL's and Qwen3.5's config.json.

use crate::error::LoadError;
use crate::vision::VisionBlockConfig;
use aha_nn::mlp::Activation;
use serde::Deserialize;

/// The vision tower of Qwen3-VL.
#[derive(Debug, Clone, Deserialize)]
pub struct VisionConfig {
    pub(super) depth: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_heads: usize,
    #[serde(default = "default_activation")]
    hidden_act: Activation,
    #[serde(default = "default_channels")]
    in_channels: usize,
    pub(super) patch_size: usize,
    #[serde(default = "two")]
    pub(super) spatial_merge_size: usize,
    #[serde(default = "two")]
    pub(super) temporal_patch_size: usize,
    pub(super) num_position_embeddings: usize,
    pub(super) out_hidden_size: usize,
    #[serde(default)]
    pub(super) deepstack_visual_indexes: Vec<usize>,
}

fn default_activation() -> Activation {
    Activation::GeluPytorchTanh
}

fn default_channels() -> usize {
    3
}

fn two() -> usize {
    2
}

/// Epsilon of the tower's layer norms, which no key names.
const LAYER_NORM_EPS: f64 = 1e-6;

impl VisionConfig {
    /// Refuses sizes that no checkpoint has.
    pub(super) fn validate(&self) -> Result<(), LoadError> {
        let sizes = [
            ("depth", self.depth, 1 << 10),
            ("hidden_size", self.hidden_size, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("num_heads", self.num_heads, 1 << 10),
            ("patch_size", self.patch_size, 1 << 10),
            ("spatial_merge_size", self.spatial_merge_size, 16),
            ("temporal_patch_size", self.temporal_patch_size, 16),
            (
                "num_position_embeddings",
                self.num_position_embeddings,
                1 << 20,
            ),
            ("out_hidden_size", self.out_hidden_size, 1 << 20),
        ];
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                let reason = format!("{value} is not between 1 and {most}");
                return Err(LoadError::config(format!("vision_config.{key}"), reason));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_heads) || self.in_channels != 3 {
            return Err(LoadError::config(
                "vision_config.num_heads",
                "the heads do not divide hidden_size, or pictures do not have three channels",
            ));
        }
        if self
            .deepstack_visual_indexes
            .iter()
            .any(|index| *index >= self.depth)
        {
            return Err(LoadError::config(
                "vision_config.deepstack_visual_indexes",
                format!("there are {} blocks", self.depth),
            ));
        }
        Ok(())
    }

    /// Sizes of a block.
    pub(super) fn block(&self) -> VisionBlockConfig {
        VisionBlockConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_heads: self.num_heads,
            norm_eps: LAYER_NORM_EPS,
            activation: self.hidden_act,
        }
    }
}
