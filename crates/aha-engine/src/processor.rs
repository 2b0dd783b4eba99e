//! Between messages and token ids: what every face needs of a text model, without a lock or a device.

use crate::chat::{Chat, Message};
use crate::error::EngineError;
use crate::media::{Media, MediaKind, MediaProcessor, expand_marks, find_spans};
use crate::ocr::OcrModel;
use crate::parser::{OutputParser, OutputSwitches, ParserOptions, control_tags};
use crate::request::Prompt;
use crate::template::{ChatTemplate, TemplateError};
use crate::tokenizer::{Tokenizer, TokenizerError};
use aha_nn::weights::gguf::Metadata;
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

/// Why the text side of a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// The tokenizer's files or metadata.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Tokenizer, chat template and output parsers of one model; cheap to clone.
#[derive(Debug, Clone)]
pub struct TextProcessor {
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    media: Option<Arc<dyn MediaProcessor>>,
    ocr: Option<Arc<dyn OcrModel>>,
    /// Tokens that a prompt may have, once an engine knows.
    context_length: usize,
}

impl TextProcessor {
    /// A processor around a tokenizer and, where the model has one, its chat template.
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        Self {
            tokenizer: Arc::new(tokenizer),
            template: template.map(Arc::new),
            media: None,
            ocr: None,
            context_length: usize::MAX,
        }
    }

    /// Reads the tokenizer's and the template's files in a checkpoint folder.
    pub fn from_folder(folder: &Path) -> Result<Self, ProcessorError> {
        Ok(Self::new(
            Tokenizer::from_folder(folder)?,
            ChatTemplate::from_folder(folder)?,
        ))
    }

    /// Reads tokenizer and template out of a GGUF's metadata.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, ProcessorError> {
        Ok(Self::new(
            Tokenizer::from_gguf(metadata)?,
            ChatTemplate::from_gguf(metadata)?,
        ))
    }

    /// The same for a model that takes media.
    #[must_use]
    pub fn with_media(mut self, media: Arc<dyn MediaProcessor>) -> Self {
        self.media = Some(media);
        self
    }

    /// The same for prompts of at most so many tokens: media beyond are refused before they are all prepared.
    #[must_use]
    pub(crate) fn with_context_length(mut self, context_length: usize) -> Self {
        self.context_length = context_length;
        self
    }

    /// The same with another chat template than the checkpoint's.
    #[must_use]
    pub fn with_template(mut self, template: ChatTemplate) -> Self {
        self.template = Some(Arc::new(template));
        self
    }

    /// How the model takes media, if it does.
    pub fn media(&self) -> Option<&dyn MediaProcessor> {
        self.media.as_deref()
    }

    /// The same for a model that reads documents.
    #[must_use]
    pub fn with_ocr(mut self, ocr: Arc<dyn OcrModel>) -> Self {
        self.ocr = Some(ocr);
        self
    }

    /// What the model can be asked of a page by name, if it reads documents.
    pub fn ocr(&self) -> Option<&Arc<dyn OcrModel>> {
        self.ocr.as_ref()
    }

    /// Whether the model takes media of that kind.
    pub fn takes(&self, kind: MediaKind) -> bool {
        let processor = self.media.as_ref();
        processor.is_some_and(|processor| processor.mark(kind).is_some())
    }

    /// Refuses media of a kind that the model does not take; `param` is where the request has it.
    pub fn check_takes(
        &self,
        kind: MediaKind,
        param: impl Into<String>,
    ) -> Result<(), EngineError> {
        if self.takes(kind) {
            return Ok(());
        }
        Err(EngineError::invalid(
            param,
            format!("this model does not take {kind} input"),
        ))
    }

    /// Refuses settings of media (`mm_processor_kwargs`) that the model's preparation does not know: without an error
    /// they would be ignored.
    pub fn check_settings(&self, settings: &Map<String, Value>) -> Result<(), EngineError> {
        let known = self
            .media
            .as_ref()
            .map_or(&[][..], |media| media.settings());
        for name in settings.keys() {
            if !known.contains(&name.as_str()) {
                let shown: String = name.chars().take(50).collect();
                let knows = match known {
                    [] => "it has no settings of its own".to_owned(),
                    known => format!("its own are {}", known.join(", ")),
                };
                return Err(EngineError::invalid(
                    "mm_processor_kwargs",
                    format!("this model does not know {shown:?} of `mm_processor_kwargs`: {knows}"),
                ));
            }
        }
        Ok(())
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(crate) fn shared_tokenizer(&self) -> Arc<Tokenizer> {
        self.tokenizer.clone()
    }

    /// The chat template, where the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_deref()
    }

    /// Renders a conversation through the template and tokenises it.
    pub fn prepare(&self, chat: &Chat) -> Result<Prompt, EngineError> {
        if chat.messages.is_empty() {
            return Err(EngineError::invalid(
                "messages",
                "`messages` must hold at least one message",
            ));
        }
        let template = self.template.as_ref().ok_or_else(ChatTemplate::missing)?;
        let media = self.readable_media(chat)?;
        let text = template.render(chat, self.tokenizer.special_tokens())?;
        match &self.media {
            Some(processor) if !media.is_empty() => {
                self.prepare_media(&text, processor.as_ref(), &media)
            }
            _ => Ok(Prompt::tokens(self.tokenizer.encode_chat(&text)?, text)),
        }
    }

    /// The conversation's media, if the model takes them all.
    fn readable_media(&self, chat: &Chat) -> Result<Vec<Arc<Media>>, EngineError> {
        let mut all = Vec::new();
        for (index, message) in chat.messages.iter().enumerate() {
            for media in message.media() {
                self.check_takes(media.kind(), format!("messages[{index}].content"))?;
                self.check_settings(media.settings())?;
                all.push(media.clone());
            }
        }
        Ok(all)
    }

    /// Puts the media of a rendered conversation in their places.
    pub fn prepare_media(
        &self,
        text: &str,
        processor: &dyn MediaProcessor,
        media: &[Arc<Media>],
    ) -> Result<Prompt, EngineError> {
        let (text, inputs) = expand_marks(text, processor, media, self.context_length)?;
        let token_ids = self.tokenizer.encode_chat(&text)?;
        let spans = find_spans(&token_ids, processor.placeholder_tokens(), inputs)?;
        let axes = processor.positions(token_ids.len(), &spans).map(Arc::new);
        Ok(Prompt {
            token_ids,
            text,
            media: spans,
            axes,
        })
    }

    /// Tokenises a plain text, with the special tokens that the tokenizer adds by itself.
    pub fn prepare_text(&self, text: &str) -> Result<Prompt, EngineError> {
        let token_ids = self.tokenizer.encode(text, true)?;
        Ok(Prompt::tokens(token_ids, text.to_owned()))
    }

    /// Takes token ids as they are.
    pub fn prepare_tokens(&self, token_ids: Vec<u32>) -> Prompt {
        let text = self.tokenizer.decode(&token_ids, false);
        Prompt::tokens(token_ids, text)
    }

    /// The parser of an answer to `chat`. With `keep_reasoning` the `<think>` block stays in the text.
    pub fn output_parser(
        &self,
        chat: &Chat,
        prompt: &Prompt,
        keep_reasoning: bool,
    ) -> OutputParser {
        let continued = chat
            .messages
            .last()
            .filter(|_| chat.continue_final_message)
            .map(Message::joined_text);
        let switches = OutputSwitches {
            separate_reasoning: !keep_reasoning,
            tools: !chat.tools.is_empty(),
            continued: continued.as_deref(),
        };
        let template = self.template.as_deref().map(ChatTemplate::text);
        let options = ParserOptions::decide(template, &self.tokenizer, &prompt.text, switches);
        OutputParser::new(options, &chat.tools)
    }

    /// Control tokens that the parser of an answer to `chat` looks for: [`crate::OutputParams::kept_tokens`].
    pub fn parsed_tokens(&self, chat: &Chat) -> Vec<u32> {
        let template = self.template.as_deref().map(ChatTemplate::text);
        control_tags(template, &self.tokenizer, !chat.tools.is_empty())
    }
}
