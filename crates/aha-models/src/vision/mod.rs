//! What the vision towers share: blocks, positions of patches, and the way of pictures into prompts.

pub mod clip;
mod patches;
mod positions;
mod preprocessor;
pub mod qwen;
pub mod sam;

pub use crate::encoder::{
    BlockNames, EncoderBlock as VisionBlock, EncoderBlockConfig as VisionBlockConfig, Mlp,
    split_tokens,
};
pub use patches::PatchReader;
pub use positions::{Interpolation, axial_rotation, learned_positions, patch_places};
pub(crate) use positions::{interpolate_axis, interpolate_table};
pub use preprocessor::PreprocessorConfig;
