//! LFM2-VL and LFM2.5-VL (450M, 1.6B): LFM2 with a SigLIP 2 tower that takes pictures as tiles.
//!
//! Reference: `Lfm2VlForConditionalGeneration` of transformers; technical report arXiv 2511.23404.

mod config;
mod processor;
mod tower;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::lfm2::{self, Lfm2Config};
use crate::registry::Family;
use crate::text::media_model;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{LoadedModel, Task};
use aha_media::image::{PatchLayout, PatchOrder};
use aha_nn::weights::{NameMap, Weights};
use config::ImageSettings;

pub use config::{Lfm2VlConfig, VisionConfig};
pub use processor::Lfm2VlMedia;
pub use tower::VisionTower;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "lfm2vl",
    task: Task::Chat,
    architectures: &["Lfm2VlForConditionalGeneration"],
    model_types: &["lfm2_vl", "lfm2-vl"],
    gguf_architectures: &[],
    load,
};

/// Where the language model is.
const LANGUAGE_MODEL: &str = "model.language_model";
/// Mean and standard deviation of all channels where no file names them.
const HALF: [f64; 3] = [0.5; 3];

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let weights = open_weights(checkpoint, options)?;
    let decoder = decoder(checkpoint, &weights)?;
    let tower = vision_tower(checkpoint, &weights, decoder.hidden_size())?;
    weights.finish(decoder.ignorable())?;
    let processor = media_processor(checkpoint)?;
    media_model(checkpoint, Box::new(decoder), Box::new(tower), processor)
}

/// The view on the weights in which the decoder finds the common names.
pub fn open_weights(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Weights, LoadError> {
    let release = lfm2::release_names(LANGUAGE_MODEL);
    checkpoint.weights_named(release, NameMap::identity(), options)
}

/// Loads the tensors of the language model alone.
pub fn decoder(checkpoint: &Checkpoint, weights: &Weights) -> Result<Decoder, LoadError> {
    let config = checkpoint.text_config(Lfm2Config::from_gguf)?;
    lfm2::language_model(&weights.pp(LANGUAGE_MODEL), &weights.pp("lm_head"), &config)
}

/// Loads the tensors of tower and projector alone; `hidden_size` is the language model's.
pub fn vision_tower(
    checkpoint: &Checkpoint,
    weights: &Weights,
    hidden_size: usize,
) -> Result<VisionTower, LoadError> {
    let config: Lfm2VlConfig = checkpoint.config_keys()?;
    let settings = ImageSettings::read(checkpoint)?;
    let tower = weights.pp("model.vision_tower");
    // Some conversions leave the inner name out.
    let inner = tower.pp("vision_model");
    let named = inner.contains("post_layernorm.weight");
    let order = PatchOrder {
        patch_size: patch_size(&config, &settings),
        // The patches of a token side by side.
        merge_size: settings.downsample_factor,
        temporal_patch_size: 1,
        layout: PatchLayout::ChannelLast,
    };
    VisionTower::load(
        if named { &inner } else { &tower },
        &weights.pp("model.multi_modal_projector"),
        &config,
        hidden_size,
        (order, settings.pixels.normalization(HALF, HALF)?),
    )
}

/// How pictures come into prompts.
pub fn media_processor(
    checkpoint: &Checkpoint,
) -> Result<impl Fn(&Tokenizer) -> Result<Lfm2VlMedia, LoadError> + use<>, LoadError> {
    let config: Lfm2VlConfig = checkpoint.config_keys()?;
    let settings = ImageSettings::read(checkpoint)?;
    let patch_size = patch_size(&config, &settings);
    let image_token_id = config.image_token_id();
    Ok(move |tokenizer: &Tokenizer| {
        Lfm2VlMedia::new(settings.clone(), image_token_id, patch_size, tokenizer)
    })
}

/// Side of a patch: the settings', or else the tower's.
fn patch_size(config: &Lfm2VlConfig, settings: &ImageSettings) -> u32 {
    settings
        .encoder_patch_size
        .unwrap_or(config.vision_config.patch_size as u32)
}
