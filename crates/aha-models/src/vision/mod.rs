//! What the vision towers share: blocks, positions of patches, and the way of pictures into prompts.

mod cells;
pub mod clip;
mod mrope;
mod patches;
mod pictures;
mod positions;
mod preprocessor;
pub mod qwen;
pub mod sam;

pub use crate::encoder::{
    BlockNames, EncoderBlock as VisionBlock, EncoderBlockConfig as VisionBlockConfig, Mlp,
    ProjectionNames, split_tokens,
};
pub use cells::CellConv;
pub use mrope::mrope_positions;
pub use patches::PatchReader;
pub use pictures::{MropePictures, PictureSizing};
pub use positions::{Interpolation, axial_rotation, learned_positions, patch_places};
pub(crate) use positions::{interpolate_axis, interpolate_table};
pub use preprocessor::{CLIP_MEAN, CLIP_STD, PreprocessorConfig, check_sizes};
