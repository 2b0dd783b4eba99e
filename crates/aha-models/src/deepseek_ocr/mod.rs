//! DeepSeek-OCR (3B, of which 570M a token): pages as few tokens for a mixture of experts.
//!
//! Reference: the release's own code; technical report arXiv 2510.18234. Prompt, language model and answers are those of
//! [`deepseek_ocr2`](crate::deepseek_ocr2), too.

mod language;
mod ocr;
mod processor;
mod tower;
mod views;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::registry::Family;
use crate::text::{media_model, reading_documents};
use aha_engine::template::ChatTemplate;
use aha_engine::{Generator, LoadedModel, MediaEncoder, ProcessorError, Task};
use aha_nn::weights::{NameMap, Weights};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tower::VisionWidths;

pub use language::LanguageConfig;
pub use ocr::DeepseekOcr;
pub use processor::{DeepseekViews, Mode, ViewRules};
pub use tower::DeepEncoder;
pub use views::ViewReader;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "deepseek_ocr",
    task: Task::Chat,
    architectures: &["DeepseekOCRForCausalLM"],
    model_types: &["DeepseekOCR"],
    gguf_architectures: &[],
    load,
};

/// Tiles and modes of the release's own code.
pub const RULES: ViewRules = ViewRules {
    tile_size: 640,
    max_tiles: 9,
    sides: &[],
    row_ends: true,
    mode: Mode {
        base_size: 1024,
        image_size: 640,
        crop_mode: true,
    },
};

/// The release has no chat template: its code lays contents end to end.
const PLAIN_TEMPLATE: &str = include_str!("plain.jinja");
/// Shipped and never used.
const UNUSED: [&str; 2] = [
    "model.vision_model.embeddings.patch_embedding.weight",
    "*.position_ids",
];

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let weights = checkpoint.weights(NameMap::identity(), options)?;
    let decoder = LanguageConfig::read(checkpoint)?.load(&weights)?;
    let tower = vision_tower(checkpoint, &weights, decoder.hidden_size())?;
    weights.finish(&[decoder.ignorable(), &UNUSED].concat())?;
    page_reader(checkpoint, decoder, Box::new(tower), RULES, 30)
}

/// Loads the tensors of the vision towers alone; `hidden_size` is the language model's.
pub fn vision_tower(
    checkpoint: &Checkpoint,
    weights: &Weights,
    hidden_size: usize,
) -> Result<DeepEncoder, LoadError> {
    let widths: VisionWidths = vision_widths(checkpoint)?;
    DeepEncoder::load(&weights.pp("model"), &widths, hidden_size)
}

/// `vision_config.width` of a release.
pub(crate) fn vision_widths<W: DeserializeOwned>(checkpoint: &Checkpoint) -> Result<W, LoadError> {
    #[derive(Deserialize)]
    struct VisionKeys<W> {
        vision_config: VisionConfig<W>,
    }
    #[derive(Deserialize)]
    struct VisionConfig<W> {
        width: W,
    }
    let keys: VisionKeys<W> = checkpoint.config_keys()?;
    Ok(keys.vision_config.width)
}

/// A loaded model of either release with its prompt, views and tasks, which ban n-grams of `ngram_size`.
pub(crate) fn page_reader(
    checkpoint: &Checkpoint,
    decoder: Decoder,
    encoder: Box<dyn MediaEncoder>,
    rules: ViewRules,
    ngram_size: usize,
) -> Result<LoadedModel, LoadError> {
    let vocab_size = decoder.vocab_size();
    let mut loaded = media_model(checkpoint, Box::new(decoder), encoder, |tokenizer| {
        DeepseekViews::new(tokenizer, rules)
    })?;
    let LoadedModel::Text(text) = &mut loaded else {
        return Ok(loaded);
    };
    if text.processor.tokenizer().bos_token_id().is_none() {
        let reason = "it names no token that begins a prompt";
        return Err(LoadError::config("bos_token", reason));
    }
    if text.processor.template().is_none() {
        let template = ChatTemplate::from_text(PLAIN_TEMPLATE, "DeepSeek-OCR's plain prompt")
            .map_err(ProcessorError::from)?;
        text.processor = text.processor.clone().with_template(template);
    }
    // Boxes and cells of tables are special tokens.
    text.defaults.skip_special_tokens = false;
    let ocr = DeepseekOcr::new(text.processor.tokenizer(), ngram_size, vocab_size);
    Ok(reading_documents(loaded, ocr))
}
