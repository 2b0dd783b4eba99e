//! What every text family needs besides its tensors.

use crate::checkpoint::{Checkpoint, Format};
use crate::error::LoadError;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{
    Generator, LoadedModel, MediaEncoder, MediaProcessor, OcrModel, ProcessorError, TextModel,
    TextProcessor,
};
use aha_nn::weights::Unpacked;
use std::sync::Arc;

/// Joins a loaded decoder with the checkpoint's tokenizer, chat template and generation defaults.
pub fn text_model(
    checkpoint: &Checkpoint,
    generator: Box<dyn Generator>,
) -> Result<LoadedModel, LoadError> {
    let processor = match checkpoint.format() {
        Format::Folder { .. } => TextProcessor::from_folder(checkpoint.path())?,
        Format::Gguf(file) => TextProcessor::from_gguf(&file.metadata)?,
    };
    let (tokens, rows) = (processor.tokenizer().vocab_size(), generator.vocab_size());
    if tokens > rows {
        return Err(LoadError::config(
            "vocab_size",
            format!("the tokenizer knows {tokens} tokens, but the embedding has {rows} rows"),
        ));
    }
    let mut defaults = checkpoint.generation_defaults()?;
    if defaults.eos_token_ids.is_empty() {
        // Neither configuration names an end; the tokenizer may.
        defaults.eos_token_ids = processor.tokenizer().end_token_ids().to_vec();
    }
    defaults
        .sampling
        .validate(rows)
        .map_err(|error| LoadError::config("generation_config.json", error.to_string()))?;
    Ok(LoadedModel::Text(TextModel {
        generator,
        encoder: None,
        processor,
        defaults,
        transcriber: None,
        unpacked: Unpacked::default(),
    }))
}

/// The same for a model that takes media: `encoder` gives their embeddings, `media` makes the way into prompts from
/// the tokenizer.
pub fn media_model<M: MediaProcessor + 'static>(
    checkpoint: &Checkpoint,
    generator: Box<dyn Generator>,
    encoder: Box<dyn MediaEncoder>,
    media: impl Fn(&Tokenizer) -> Result<M, LoadError>,
) -> Result<LoadedModel, LoadError> {
    let mut loaded = text_model(checkpoint, generator)?;
    if let LoadedModel::Text(text) = &mut loaded {
        let media = media(text.processor.tokenizer())?;
        text.processor = text.processor.clone().with_media(Arc::new(media));
        text.encoder = Some(encoder);
    }
    Ok(loaded)
}

/// The text of a token that `key` of the configuration names.
pub fn token_text(tokenizer: &Tokenizer, id: u32, key: &str) -> Result<String, LoadError> {
    tokenizer
        .token_bytes(id)
        .and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
        .ok_or_else(|| LoadError::config(key, format!("the tokenizer has no token {id}")))
}

/// The checkpoint's tokenizer alone, for models without chats.
pub fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, LoadError> {
    let tokenizer = match checkpoint.format() {
        Format::Folder { .. } => Tokenizer::from_folder(checkpoint.path()),
        Format::Gguf(file) => Tokenizer::from_gguf(&file.metadata),
    };
    Ok(tokenizer.map_err(ProcessorError::from)?)
}

/// The same model with what it can be asked of a page by name.
pub fn reading_documents(loaded: LoadedModel, ocr: impl OcrModel + 'static) -> LoadedModel {
    match loaded {
        LoadedModel::Text(mut text) => {
            text.processor = text.processor.with_ocr(Arc::new(ocr));
            LoadedModel::Text(text)
        }
        other => other,
    }
}
