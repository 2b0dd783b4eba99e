//! Qwen2.5-VL (3B, 7B and larger): Qwen2's decoder with chunked M-RoPE, and a vision tower with window attention.
//!
//! Reference: `Qwen2_5_VLForConditionalGeneration` of transformers; technical report arXiv 2502.13923.

mod config;
mod tower;
mod windows;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::{Decoder, TokenMixer};
use crate::error::LoadError;
use crate::registry::Family;
use crate::text::media_model;
use crate::vision::qwen::{MediaIds, QwenMedia, VideoForm};
use crate::vision::{CLIP_MEAN, CLIP_STD, PreprocessorConfig};
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{LoadedModel, Task};
use aha_media::image::PatchLayout;
use aha_nn::attention::SelfAttention;
use aha_nn::weights::{NameMap, Weights};
use serde::Deserialize;

pub use config::{Qwen2_5VlConfig, VisionConfig};
pub use tower::VisionTower;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "qwen2_5vl",
    task: Task::Chat,
    architectures: &["Qwen2_5_VLForConditionalGeneration"],
    model_types: &["qwen2_5_vl"],
    gguf_architectures: &[],
    load,
};

/// What config.json says besides the language model.
#[derive(Debug, Clone, Deserialize)]
struct VisionKeys {
    vision_config: VisionConfig,
    #[serde(flatten)]
    ids: MediaIds,
}

/// Pixel areas of pictures and of a clip's frames where the preprocessor's files leave them out.
const IMAGE_PIXELS: (u64, u64) = (3_136, 12_845_056);
const VIDEO_PIXELS: (u64, u64) = (100_352, 602_112);

const IMAGE_FILE: &str = "preprocessor_config.json";
const VIDEO_FILE: &str = "video_preprocessor_config.json";

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
    let config: Qwen2_5VlConfig = checkpoint.text_config(|_| {
        let reason = "GGUF files of this family are not supported: take the release";
        Err(LoadError::config("general.architecture", reason))
    })?;
    let config = config.decoder()?;
    let attention = config.attention.clone();
    // Releases have the names of a text model; later copies keep it beside the tower.
    let later = weights.contains("model.language_model.embed_tokens.weight");
    let model = if later {
        "model.language_model"
    } else {
        "model"
    };
    Decoder::load_parts(
        &weights.pp(model),
        &weights.pp("lm_head"),
        config,
        |layer, _| -> aha_nn::weights::Result<Box<dyn TokenMixer>> {
            let weights = layer.pp("self_attn");
            Ok(Box::new(SelfAttention::load(&weights, &attention)?))
        },
    )
}

/// Loads the tensors of the vision tower alone.
pub fn vision_tower(checkpoint: &Checkpoint, weights: &Weights) -> Result<VisionTower, LoadError> {
    let keys: VisionKeys = checkpoint.config_keys()?;
    let image = PreprocessorConfig::read(checkpoint, IMAGE_FILE)?;
    let patch_size = keys.vision_config.patch_size as u32;
    let later = weights.contains("model.visual.patch_embed.proj.weight");
    VisionTower::load(
        &weights.pp(if later { "model.visual" } else { "visual" }),
        keys.vision_config,
        image.patch_order(patch_size, PatchLayout::ChannelFirst),
        image.normalization(CLIP_MEAN, CLIP_STD)?,
    )
}

/// How pictures and clips come into prompts.
pub fn media_processor(
    checkpoint: &Checkpoint,
) -> Result<impl Fn(&Tokenizer) -> Result<QwenMedia, LoadError> + use<>, LoadError> {
    let keys: VisionKeys = checkpoint.config_keys()?;
    let image = PreprocessorConfig::read(checkpoint, IMAGE_FILE)?;
    // Releases have one file for both.
    let video = checkpoint
        .json(VIDEO_FILE)?
        .unwrap_or_else(|| image.clone());
    Ok(move |tokenizer: &Tokenizer| {
        QwenMedia::new(
            keys.ids.marks(tokenizer)?,
            VideoForm::OneRun {
                tokens_per_second: keys.vision_config.tokens_per_second,
            },
            keys.vision_config.patch_size as u32,
            (&image, IMAGE_PIXELS),
            (&video, VIDEO_PIXELS),
        )
    })
}
