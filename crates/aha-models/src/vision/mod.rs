//! What the vision towers share: blocks, positions of patches, and the way of pictures into prompts.

mod patches;
mod positions;
mod preprocessor;
pub mod qwen;

pub use crate::encoder::{
    BlockNames, EncoderBlock as VisionBlock, EncoderBlockConfig as VisionBlockConfig, Mlp,
    split_tokens,
};
pub use patches::PatchReader;
pub use positions::{Interpolation, axial_rotation, learned_positions, patch_places};
pub use preprocessor::PreprocessorConfig;
