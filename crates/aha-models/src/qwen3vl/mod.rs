//! Qwen3-VL (2B to 32B): Qwen3's decoder with a vision tower, interleaved M-RoPE and deepstack.
//!
//! Reference: `Qwen3VLForConditionalGeneration` of transformers; technical report arXiv 2511.21631.

mod config;
mod tower;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::qwen3::Qwen3Config;
use crate::registry::Family;
use crate::text::media_model;
use crate::vision::PreprocessorConfig;
use crate::vision::qwen::{MediaIds, QwenMedia, VideoForm};
use aha_engine::{LoadedModel, Task};
use aha_media::image::PatchLayout;
use aha_nn::weights::{NameMap, Weights};
use serde::Deserialize;

pub use config::VisionConfig;
pub use tower::VisionTower;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "qwen3vl",
    task: Task::Chat,
    architectures: &["Qwen3VLForConditionalGeneration"],
    model_types: &["qwen3_vl"],
    gguf_architectures: &[],
    load,
};

/// What config.json says besides `text_config`.
#[derive(Debug, Clone, Deserialize)]
pub struct VisionKeys {
    vision_config: VisionConfig,
    #[serde(flatten)]
    ids: MediaIds,
}

/// Pixel areas of pictures and clips where the preprocessor's files leave them out.
const IMAGE_PIXELS: (u64, u64) = (65_536, 16_777_216);
const VIDEO_PIXELS: (u64, u64) = (4_096, 25_165_824);
/// Mean and standard deviation of all channels, likewise.
const HALF: [f64; 3] = [0.5; 3];

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let weights = checkpoint.weights(NameMap::identity(), options)?;
    let decoder = decoder(checkpoint, &weights)?;
    let tower = vision_tower(checkpoint, &weights)?;
    weights.finish(decoder.ignorable())?;
    let processor = media_processor(checkpoint)?;
    media_model(checkpoint, Box::new(decoder), Box::new(tower), processor)
}

/// Loads the tensors of the language model alone.
pub fn decoder(checkpoint: &Checkpoint, weights: &Weights) -> Result<Decoder, LoadError> {
    let config: Qwen3Config = checkpoint.text_config(Qwen3Config::from_gguf)?;
    let config = config.decoder()?;
    Decoder::load_at(
        &weights.pp("model.language_model"),
        &weights.pp("lm_head"),
        config,
    )
}

/// Loads the tensors of the vision tower alone.
pub fn vision_tower(checkpoint: &Checkpoint, weights: &Weights) -> Result<VisionTower, LoadError> {
    let keys: VisionKeys = checkpoint.config_keys()?;
    let image = PreprocessorConfig::read(checkpoint, "preprocessor_config.json")?;
    let patch_size = keys.vision_config.patch_size as u32;
    VisionTower::load(
        &weights.pp("model.visual"),
        keys.vision_config,
        image.patch_order(patch_size, PatchLayout::ChannelFirst),
        image.normalization(HALF, HALF)?,
    )
}

/// How pictures and clips come into prompts.
pub fn media_processor(
    checkpoint: &Checkpoint,
) -> Result<
    impl Fn(&aha_engine::tokenizer::Tokenizer) -> Result<QwenMedia, LoadError> + use<>,
    LoadError,
> {
    let keys: VisionKeys = checkpoint.config_keys()?;
    let image = PreprocessorConfig::read(checkpoint, "preprocessor_config.json")?;
    let video = PreprocessorConfig::read(checkpoint, "video_preprocessor_config.json")?;
    Ok(move |tokenizer: &aha_engine::tokenizer::Tokenizer| {
        QwenMedia::new(
            keys.ids.marks(tokenizer)?,
            VideoForm::TimedPairs,
            keys.vision_config.patch_size as u32,
            (&image, IMAGE_PIXELS),
            (&video, VIDEO_PIXELS),
        )
    })
}
