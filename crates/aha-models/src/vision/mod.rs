//! What the vision towers share: blocks, positions of patches, and the way of pictures into prompts.

mod block;
mod positions;
mod preprocessor;
pub mod qwen;

pub use block::{Mlp, VisionBlock, VisionBlockConfig};
pub use positions::{Interpolation, axial_rotation, interpolate_table, patch_places};
pub use preprocessor::PreprocessorConfig;
