//! GLM-OCR (0.9B): GLM-4's decoder with M-RoPE, and a vision tower with norms over the heads of queries and keys.
//!
//! Reference: `GlmOcrForConditionalGeneration` of transformers; technical report arXiv 2603.10910.

mod config;
mod ocr;
mod tower;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::registry::Family;
use crate::text::{media_model, reading_documents};
use crate::vision::{CLIP_MEAN, CLIP_STD, MropePictures, PictureSizing, PreprocessorConfig};
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{LoadedModel, Task};
use aha_media::image::{Filter, PatchLayout, ShortSides};
use aha_nn::weights::{NameMap, Weights};
use serde::Deserialize;

pub use config::{GlmOcrTextConfig, VisionConfig};
pub use ocr::GlmOcr;
pub use tower::VisionTower;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "glm_ocr",
    task: Task::Chat,
    architectures: &["GlmOcrForConditionalGeneration"],
    model_types: &["glm_ocr"],
    gguf_architectures: &[],
    load,
};

/// What config.json says besides the language model.
#[derive(Debug, Clone, Deserialize)]
struct VisionKeys {
    vision_config: VisionConfig,
    image_token_id: u32,
}

/// Pixel areas where the preprocessor's file leaves them out: those of the release, of both frames of a patch together.
const PIXELS: (u64, u64) = (12_544, 9_633_792);

const LANGUAGE_MODEL: &str = "model.language_model";

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let weights = checkpoint.weights(NameMap::identity(), options)?;
    let decoder = decoder(checkpoint, &weights)?;
    let tower = vision_tower(checkpoint, &weights)?;
    let unused = text_config(checkpoint)?.unused_layers(LANGUAGE_MODEL);
    let unused = unused.iter().map(String::as_str);
    let ignorable: Vec<&str> = decoder.ignorable().iter().copied().chain(unused).collect();
    weights.finish(&ignorable)?;
    let processor = media_processor(checkpoint)?;
    let loaded = media_model(checkpoint, Box::new(decoder), Box::new(tower), processor)?;
    Ok(reading_documents(loaded, GlmOcr::default()))
}

fn preprocessor(checkpoint: &Checkpoint) -> Result<PreprocessorConfig, LoadError> {
    PreprocessorConfig::read(checkpoint, "preprocessor_config.json")
}

fn text_config(checkpoint: &Checkpoint) -> Result<GlmOcrTextConfig, LoadError> {
    checkpoint.text_config(|_| {
        let reason = "GGUF files of this family are not supported: take the release";
        Err(LoadError::config("general.architecture", reason))
    })
}

/// Loads the tensors of the language model alone.
pub fn decoder(checkpoint: &Checkpoint, weights: &Weights) -> Result<Decoder, LoadError> {
    let config = text_config(checkpoint)?.decoder();
    Decoder::load_at(&weights.pp(LANGUAGE_MODEL), &weights.pp("lm_head"), config)
}

/// Loads the tensors of the vision tower alone.
pub fn vision_tower(checkpoint: &Checkpoint, weights: &Weights) -> Result<VisionTower, LoadError> {
    let keys: VisionKeys = checkpoint.config_keys()?;
    let pictures = preprocessor(checkpoint)?;
    let patch_size = keys.vision_config.patch_size as u32;
    VisionTower::load(
        &weights.pp("model.visual"),
        keys.vision_config,
        pictures.patch_order(patch_size, PatchLayout::ChannelFirst),
        pictures.stepwise_normalization(CLIP_MEAN, CLIP_STD)?,
    )
}

/// How pictures come into prompts.
pub fn media_processor(
    checkpoint: &Checkpoint,
) -> Result<impl Fn(&Tokenizer) -> Result<MropePictures, LoadError> + use<>, LoadError> {
    let keys: VisionKeys = checkpoint.config_keys()?;
    let patch_size = keys.vision_config.patch_size as u32;
    let frames = keys.vision_config.temporal_patch_size as u32;
    let pictures = preprocessor(checkpoint)?;
    let sizing = PictureSizing::new(&pictures, patch_size, PIXELS, Filter::Bicubic)?
        .with_short_sides(ShortSides::ScaleUp)
        .with_frames(frames);
    Ok(move |tokenizer: &Tokenizer| {
        MropePictures::new(tokenizer, keys.image_token_id, sizing.clone())
    })
}
