//! A loaded model, as the library's users hold it.

use crate::error::{Error, Result};
use crate::params::GenerationParams;
use crate::resolve::Checkpoint;
use crate::stream::ChatStream;
use aha_engine::{Chat, Engine, EngineError, Media, MediaReader, MediaWishes, Service, Task};
use candle_core::Device;
use std::path::Path;
use std::sync::Arc;

/// A model that answers. Cheap to clone; every clone may be used from any thread, and all their
/// requests run in one batch. The engine ends with the last clone.
#[derive(Debug, Clone)]
pub struct Model {
    checkpoint: Arc<Checkpoint>,
    device: Device,
    service: Service,
}

impl Model {
    pub(crate) fn new(checkpoint: Checkpoint, device: Device, service: Service) -> Self {
        Self {
            checkpoint: Arc::new(checkpoint),
            device,
            service,
        }
    }

    /// What the model is called.
    pub fn name(&self) -> &str {
        &self.checkpoint.name
    }

    /// Where it was loaded from.
    pub fn path(&self) -> &Path {
        &self.checkpoint.path
    }

    /// What it is for.
    pub fn task(&self) -> Task {
        self.service.task()
    }

    /// The running engine, of whatever task.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Tokens that prompt and answer, an input to embed, or query and document may have together; nothing for models
    /// without tokens.
    pub fn context_length(&self) -> Option<usize> {
        self.service.context_length()
    }

    /// The engine below: token ids, log-probabilities, the state of the cache.
    ///
    /// ```
    /// use aha::{Event, GenerationRequest, OutputParams, SamplingParams, StopParams};
    ///
    /// # fn main() -> aha::Result<()> {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/qwen3/sharded");
    /// # let model = aha::load(path).build()?;
    /// let engine = model.engine()?;
    /// let mut generation = engine.submit(GenerationRequest {
    ///     prompt: engine.processor().prepare_text("Once upon a time")?,
    ///     sampling: SamplingParams::greedy(),
    ///     stop: StopParams { max_tokens: Some(4), ..StopParams::default() },
    ///     output: OutputParams { logprobs: Some(2), ..OutputParams::default() },
    /// })?;
    /// while let Some(event) = generation.blocking_next() {
    ///     match event {
    ///         Event::Token(token) => assert_eq!(token.top_logprobs.len(), 2),
    ///         Event::Finished(end) => assert_eq!(end.usage.completion_tokens, 4),
    ///         Event::Failed(error) => return Err(error.into()),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`] when the model is not for chat and completion.
    pub fn engine(&self) -> Result<&Engine> {
        match &self.service {
            Service::Text(engine) => Ok(engine),
            _ => Err(self.is_not_for(Task::Chat)),
        }
    }

    pub(crate) fn is_not_for(&self, wanted: Task) -> Error {
        Error::Task {
            model: self.name().to_owned(),
            found: self.task(),
            wanted,
        }
    }

    /// Whether the checkpoint says how a conversation is written.
    pub fn has_chat_template(&self) -> bool {
        match &self.service {
            Service::Text(engine) => engine.processor().template().is_some(),
            Service::Embed(_) | Service::Rerank(_) | Service::Speak(_) | Service::Matte(_) => false,
        }
    }

    /// Decodes a picture, clip or recording of a file's bytes as the model takes it, for
    /// [`Message::with_media`](crate::Message::with_media). What the bytes are, they say themselves.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use aha::{Chat, GenerationParams, MediaWishes, Message};
    ///
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/lfm2vl/tiles");
    /// # let model = aha::load(path).build()?;
    /// # let cat = format!("{path}/media/a.png");
    /// let picture = model.media(&std::fs::read(cat)?, &MediaWishes::default())?;
    /// let question = Message::new("user").with_media(picture).with_text("What is this?");
    /// let params = GenerationParams { max_tokens: Some(8), ..GenerationParams::greedy() };
    /// let mut answer = model.chat(Chat::of(question), &params)?;
    /// # let mut pieces = 0;
    /// while let Some(event) = answer.blocking_next() {
    ///     println!("{:?}", event?);
    /// #   pieces += 1;
    /// }
    /// # assert!(pieces > 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Media`] for bytes that cannot be read within the default limits, [`Error::Engine`] for a kind that the
    /// model does not take, [`Error::Task`] for a model of another task.
    pub fn media(&self, bytes: &[u8], wishes: &MediaWishes) -> Result<Media> {
        let processor = self.engine()?.processor();
        let kind = MediaReader::kind(bytes)?;
        processor.check_takes(kind, "media")?;
        match processor.media() {
            Some(media) => Ok(MediaReader::default().read_for(media, kind, bytes, wishes)?),
            None => Err(EngineError::invalid("media", "this model takes text only").into()),
        }
    }

    /// Answers a conversation, event by event. Dropping the stream cancels the request.
    ///
    /// ```
    /// # use aha::{Chat, ChatEvent, GenerationParams};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> aha::Result<()> {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/qwen3/sharded");
    /// # let model = aha::load(path).build()?;
    /// let params = GenerationParams { max_tokens: Some(8), ..GenerationParams::greedy() };
    /// let mut answer = model.chat(Chat::user("Hello!"), &params)?;
    /// while let Some(event) = answer.next().await {
    ///     match event? {
    ///         ChatEvent::Content(text) => print!("{text}"),
    ///         ChatEvent::Finished(end) => assert!(end.usage.completion_tokens <= 8),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`crate::Error::Engine`] when a parameter is out of range, the template refuses the
    /// messages, the prompt does not fit or too many requests wait.
    pub fn chat(&self, mut chat: Chat, params: &GenerationParams) -> Result<ChatStream> {
        params.apply_to(&mut chat);
        let engine = self.engine()?;
        let processor = engine.processor();
        let prompt = processor.prepare(&chat)?;
        let parser = processor.output_parser(&chat, &prompt, params.keep_reasoning);
        let mut request = params.request(prompt, &engine.defaults().sampling);
        request.output.kept_tokens = processor.parsed_tokens(&chat);
        Ok(ChatStream::new(engine.submit(request)?, Some(parser)))
    }

    /// Continues a text as it stands, without the chat template.
    ///
    /// # Errors
    /// As [`Model::chat`].
    pub fn complete(&self, text: &str, params: &GenerationParams) -> Result<ChatStream> {
        let engine = self.engine()?;
        let prompt = engine.processor().prepare_text(text)?;
        let request = params.request(prompt, &engine.defaults().sampling);
        Ok(ChatStream::new(engine.submit(request)?, None))
    }
}
