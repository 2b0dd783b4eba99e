//! What the vision towers share: blocks, positions of patches, and the way of pictures into prompts.

mod block;
mod cells;
mod mrope;
mod patches;
mod pictures;
mod positions;
mod preprocessor;
pub mod qwen;

pub use block::{Mlp, VisionBlock, VisionBlockConfig, check_sizes};
pub use cells::CellConv;
pub use mrope::mrope_positions;
pub use patches::{PatchReader, split_tokens};
pub use pictures::{MropePictures, PictureSizing, token_text};
pub use positions::{Interpolation, axial_rotation, learned_positions, patch_places};
pub use preprocessor::{CLIP_MEAN, CLIP_STD, PreprocessorConfig};
