//! DeepSeek-OCR-2 (3B, of which 570M a token): a vision encoder that reads pages in an order of its own.
//!
//! Reference: the release's own code, and `DeepseekOcr2ForConditionalGeneration` of transformers.

mod encoder;
mod tower;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::deepseek_ocr::{LanguageConfig, Mode, ViewRules, page_reader, vision_widths};
use crate::error::LoadError;
use crate::registry::Family;
use aha_engine::{LoadedModel, Task};
use aha_nn::weights::{NameMap, Weights};

pub use tower::DeepEncoderV2;

/// The registry's entry. `model_type` is that of DeepSeek-OCR, so architectures alone tell the two apart.
pub const FAMILY: Family = Family {
    slug: "deepseek_ocr2",
    task: Task::Chat,
    architectures: &["DeepseekOCR2ForCausalLM"],
    model_types: &[],
    gguf_architectures: &[],
    load,
};

/// Tiles and modes of the release's own code.
pub const RULES: ViewRules = ViewRules {
    tile_size: 768,
    max_tiles: 6,
    sides: &[768, 1024],
    row_ends: false,
    mode: Mode {
        base_size: 1024,
        image_size: 768,
        crop_mode: true,
    },
};

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let weights = checkpoint.weights(NameMap::identity(), options)?;
    let decoder = LanguageConfig::read(checkpoint)?.load(&weights)?;
    let tower = vision_tower(checkpoint, &weights, decoder.hidden_size())?;
    weights.finish(decoder.ignorable())?;
    page_reader(checkpoint, decoder, Box::new(tower), RULES, 20)
}

/// Loads the tensors of the vision towers alone; `hidden_size` is the language model's.
pub fn vision_tower(
    checkpoint: &Checkpoint,
    weights: &Weights,
    hidden_size: usize,
) -> Result<DeepEncoderV2, LoadError> {
    let widths: tower::VisionWidths = vision_widths(checkpoint)?;
    DeepEncoderV2::load(&weights.pp("model"), &widths, hidden_size)
}
