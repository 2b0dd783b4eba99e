//! HunyuanOCR 1.0 and 1.5 (1B): Hunyuan's decoder with positions on four axes, and a vision tower that ends each row of
//! a picture with a token.
//!
//! Reference: `HunYuanVLForConditionalGeneration` of transformers; technical report arXiv 2511.19575.

mod config;
mod ocr;
mod processor;
mod tower;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::registry::Family;
use crate::text::{media_model, reading_documents};
use crate::vision::{CLIP_MEAN, CLIP_STD, PictureSizing, PreprocessorConfig};
use aha_engine::template::ChatTemplate;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{LoadedModel, ProcessorError, Task};
use aha_media::image::{Filter, PatchLayout, PatchOrder};
use aha_nn::weights::{NameMap, Weights};
use processor::PictureIds;
use serde::Deserialize;

pub use config::{HunyuanTextConfig, VisionConfig};
pub use ocr::HunyuanOcr;
pub use processor::HunyuanPictures;
pub use tower::VisionTower;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "hunyuan_ocr",
    task: Task::Chat,
    architectures: &["HunYuanVLForConditionalGeneration"],
    model_types: &["hunyuan_vl"],
    gguf_architectures: &[],
    load,
};

/// What config.json says besides the language model.
#[derive(Debug, Clone, Deserialize)]
struct VisionKeys {
    vision_config: VisionConfig,
    #[serde(flatten)]
    ids: PictureIds,
}

/// Pixel areas where the preprocessor's file leaves them out: those of the release.
const PIXELS: (u64, u64) = (512 * 512, 2048 * 2048);

/// Where the tower lies: in the release, and in copies of it.
const TOWERS: [&str; 2] = ["vit", "model.vit"];
/// Common names of the norms over heads, and the release's.
const TEXT_NAMES: [(&str, &str); 2] = [("q_norm", "query_layernorm"), ("k_norm", "key_layernorm")];

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let weights = open_weights(checkpoint, options)?;
    let decoder = decoder(checkpoint, &weights)?;
    let tower = vision_tower(checkpoint, &weights, decoder.hidden_size())?;
    let unused = ["*.perceive.image_sep"];
    weights.finish(&[decoder.ignorable(), &unused].concat())?;
    let processor = media_processor(checkpoint)?;
    let loaded = media_model(checkpoint, Box::new(decoder), Box::new(tower), processor)?;
    let ocr = HunyuanOcr::new(text_config(checkpoint)?.is_first_layout());
    Ok(reading_documents(loaded, ocr))
}

/// The view on the weights in which the decoder finds the common names.
pub fn open_weights(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Weights, LoadError> {
    let names = TEXT_NAMES
        .into_iter()
        .fold(NameMap::identity(), |names, (common, own)| {
            let layer = "model.layers.{i}.self_attn";
            names.with_rule(&format!("{layer}.{common}"), &format!("{layer}.{own}"))
        });
    checkpoint.weights_named(names, NameMap::identity(), options)
}

fn preprocessor(checkpoint: &Checkpoint) -> Result<PreprocessorConfig, LoadError> {
    PreprocessorConfig::read(checkpoint, "preprocessor_config.json")
}

fn text_config(checkpoint: &Checkpoint) -> Result<HunyuanTextConfig, LoadError> {
    checkpoint.text_config(|_| {
        let reason = "GGUF files of this family are not supported: take the release";
        Err(LoadError::config("general.architecture", reason))
    })
}

/// Loads the tensors of the language model alone.
pub fn decoder(checkpoint: &Checkpoint, weights: &Weights) -> Result<Decoder, LoadError> {
    let config = text_config(checkpoint)?.decoder()?;
    Decoder::load_at(&weights.pp("model"), &weights.pp("lm_head"), config)
}

/// Loads the tensors of the vision tower alone; `hidden_size` is the language model's.
pub fn vision_tower(
    checkpoint: &Checkpoint,
    weights: &Weights,
    hidden_size: usize,
) -> Result<VisionTower, LoadError> {
    let keys: VisionKeys = checkpoint.config_keys()?;
    let pictures = preprocessor(checkpoint)?;
    let patch_size = keys.vision_config.patch_size as u32;
    let order = PatchOrder {
        temporal_patch_size: pictures.temporal_patch_size.unwrap_or(1),
        ..pictures.patch_order(patch_size, PatchLayout::ChannelFirst)
    };
    let [release, copies] = TOWERS.map(|root| weights.pp(root));
    let copied = copies.contains("embeddings.patch_embedding.weight");
    VisionTower::load(
        if copied { &copies } else { &release },
        &keys.vision_config,
        hidden_size,
        (order, pictures.stepwise_normalization(CLIP_MEAN, CLIP_STD)?),
    )
}

/// How pictures come into prompts.
pub fn media_processor(
    checkpoint: &Checkpoint,
) -> Result<impl Fn(&Tokenizer) -> Result<HunyuanPictures, LoadError> + use<>, LoadError> {
    let keys: VisionKeys = checkpoint.config_keys()?;
    let patch_size = keys.vision_config.patch_size as u32;
    // The file names Lanczos' filter, but the release resizes without reading it.
    let sizing = PictureSizing::new(
        &preprocessor(checkpoint)?,
        patch_size,
        PIXELS,
        Filter::Bicubic,
    )?
    .with_filter(Filter::Bicubic);
    let template = ChatTemplate::from_folder(checkpoint.path()).map_err(ProcessorError::from)?;
    let template = template.map_or_else(String::new, |template| template.text().to_owned());
    Ok(move |tokenizer: &Tokenizer| {
        HunyuanPictures::new(tokenizer, keys.ids, sizing.clone(), &template)
    })
}
