//! PaddleOCR-VL 1.0, 1.5 and 1.6 (0.9B): ERNIE 4.5 with a SigLIP tower that takes pictures at their own size.
//!
//! Reference: `PaddleOCRVLForConditionalGeneration` of transformers; technical report arXiv 2510.14528.

mod config;
mod ocr;
mod tower;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::registry::Family;
use crate::text::{media_model, reading_documents};
use crate::vision::{MropePictures, PictureSizing, PreprocessorConfig};
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{LoadedModel, Task};
use aha_media::image::{Filter, PatchLayout, PatchOrder, ShortSides};
use aha_nn::weights::{NameMap, Weights};
use serde::Deserialize;

pub use config::{Ernie4_5Config, VisionConfig};
pub use ocr::PaddleOcr;
pub use tower::VisionTower;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "paddleocr_vl",
    task: Task::Chat,
    architectures: &["PaddleOCRVLForConditionalGeneration"],
    model_types: &["paddleocr_vl"],
    gguf_architectures: &[],
    load,
};

/// What config.json says besides the language model.
#[derive(Debug, Clone, Deserialize)]
struct VisionKeys {
    vision_config: VisionConfig,
    image_token_id: u32,
}

/// Pixel areas where the preprocessor's file leaves them out: those of 1.5 and 1.6.
const PIXELS: (u64, u64) = (112_896, 1_003_520);
/// Mean and standard deviation of all channels, likewise.
const HALF: [f64; 3] = [0.5; 3];
/// Tensors that releases carry and nothing uses: SigLIP's pooling head, and a table for packed training.
const UNUSED: [&str; 3] = [
    "visual.vision_model.head.*",
    "model.visual.vision_model.head.*",
    "*.packing_position_embedding.weight",
];

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let weights = checkpoint.weights(NameMap::identity(), options)?;
    let decoder = decoder(checkpoint, &weights)?;
    let tower = vision_tower(checkpoint, &weights, decoder.hidden_size())?;
    weights.finish(&[decoder.ignorable(), &UNUSED].concat())?;
    let processor = media_processor(checkpoint)?;
    let loaded = media_model(checkpoint, Box::new(decoder), Box::new(tower), processor)?;
    let least = preprocessor(checkpoint)?.pixel_area(PIXELS).0;
    Ok(reading_documents(loaded, PaddleOcr::new(least)))
}

fn preprocessor(checkpoint: &Checkpoint) -> Result<PreprocessorConfig, LoadError> {
    PreprocessorConfig::read(checkpoint, "preprocessor_config.json")
}

/// Where a part lies: under the release's name, or under that of copies that transformers wrote later.
fn part(weights: &Weights, release: &str, later: &str, tensor: &str) -> Weights {
    let later = weights.pp(later);
    if later.contains(tensor) {
        return later;
    }
    weights.pp(release)
}

/// Loads the tensors of the language model alone.
pub fn decoder(checkpoint: &Checkpoint, weights: &Weights) -> Result<Decoder, LoadError> {
    let config: Ernie4_5Config = checkpoint.text_config(|_| {
        let reason = "GGUF files of this family are not supported: take the release";
        Err(LoadError::config("general.architecture", reason))
    })?;
    let head = weights.pp("lm_head");
    let config = config.decoder(head.contains("weight"));
    Decoder::load_at(
        &part(
            weights,
            "model",
            "model.language_model",
            "embed_tokens.weight",
        ),
        &head,
        config,
    )
}

/// Loads the tensors of tower and projector alone; `hidden_size` is the language model's.
pub fn vision_tower(
    checkpoint: &Checkpoint,
    weights: &Weights,
    hidden_size: usize,
) -> Result<VisionTower, LoadError> {
    let keys: VisionKeys = checkpoint.config_keys()?;
    let pictures = preprocessor(checkpoint)?;
    let patch_size = keys.vision_config.patch_size as u32;
    let order = PatchOrder {
        // The reference's `temporal_patch_size` of 2 is for clips, which no release takes.
        temporal_patch_size: 1,
        ..pictures.patch_order(patch_size, PatchLayout::ChannelFirst)
    };
    VisionTower::load(
        &part(
            weights,
            "visual.vision_model",
            "model.visual.vision_model",
            "post_layernorm.weight",
        ),
        &part(weights, "mlp_AR", "model.projector", "pre_norm.weight"),
        keys.vision_config,
        hidden_size,
        (order, pictures.stepwise_normalization(HALF, HALF)?),
    )
}

/// How pictures come into prompts.
pub fn media_processor(
    checkpoint: &Checkpoint,
) -> Result<impl Fn(&Tokenizer) -> Result<MropePictures, LoadError> + use<>, LoadError> {
    let keys: VisionKeys = checkpoint.config_keys()?;
    let patch_size = keys.vision_config.patch_size as u32;
    let sizing = PictureSizing::new(
        &preprocessor(checkpoint)?,
        patch_size,
        PIXELS,
        Filter::Bicubic,
    )?
    .with_short_sides(ShortSides::RoundUp);
    Ok(move |tokenizer: &Tokenizer| {
        MropePictures::new(tokenizer, keys.image_token_id, sizing.clone())
    })
}
