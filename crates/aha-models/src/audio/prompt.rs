//! The prompt of a transcription, by the checkpoint's own chat template.

use super::recording::FIELD;
use crate::checkpoint::Checkpoint;
use crate::error::LoadError;
use crate::text::media_model;
use aha_engine::template::ChatTemplate;
use aha_engine::tokenizer::Tokenizer;
use aha_engine::{
    Chat, EngineError, Generator, LoadedModel, Media, MediaEncoder, MediaProcessor, Message,
    Prompt, SamplingParams, TextProcessor, Transcriber,
};
use std::sync::Arc;

/// The prompt of `chat`, whose one recording is `audio`, with `opening` as the beginning of the answer.
///
/// # Errors
/// Faults of the recording name the field `file`, those of the texts `prompt`.
pub fn transcription_prompt(
    processor: &TextProcessor,
    chat: &Chat,
    audio: Arc<Media>,
    opening: &str,
) -> Result<Prompt, EngineError> {
    let template = processor.template().ok_or_else(ChatTemplate::missing)?;
    let media = processor
        .media()
        .ok_or_else(|| EngineError::internal("a recogniser without a way for recordings"))?;
    check_texts(processor.tokenizer(), media, chat)?;
    let text = template.render(chat, processor.tokenizer().special_tokens())? + opening;
    processor
        .prepare_media(&text, media, &[audio])
        .map_err(of_the_file)
}

/// Refuses texts that hold what stands for sound in the prompt.
fn check_texts(
    tokenizer: &Tokenizer,
    media: &dyn MediaProcessor,
    chat: &Chat,
) -> Result<(), EngineError> {
    for id in media.placeholder_tokens() {
        let placeholder = tokenizer
            .token_bytes(*id)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .filter(|text| !text.is_empty());
        let Some(placeholder) = placeholder else {
            continue;
        };
        let holds_it = |message: &Message| message.joined_text().contains(placeholder);
        if chat.messages.iter().any(holds_it) {
            let message =
                format!("the text holds {placeholder:?}, which stands for sound: remove it");
            return Err(EngineError::invalid("prompt", message));
        }
    }
    Ok(())
}

/// Errors of media say that they are in the messages, which a transcription does not have.
fn of_the_file(error: EngineError) -> EngineError {
    match error {
        EngineError::InvalidRequest {
            param: Some(param),
            message,
        } if param == FIELD => EngineError::invalid("file", message),
        other => other,
    }
}

/// Joins the parts of a speech recogniser; it decodes greedily where a request does not ask otherwise.
pub fn recogniser<M: MediaProcessor + 'static>(
    checkpoint: &Checkpoint,
    generator: Box<dyn Generator>,
    encoder: Box<dyn MediaEncoder>,
    media: impl Fn(&Tokenizer) -> Result<M, LoadError>,
    transcriber: impl Transcriber + 'static,
) -> Result<LoadedModel, LoadError> {
    let mut loaded = media_model(checkpoint, generator, encoder, media)?;
    if let LoadedModel::Text(text) = &mut loaded {
        text.transcriber = Some(Arc::new(transcriber));
        text.defaults.sampling = SamplingParams::greedy();
    }
    Ok(loaded)
}
