//! The simple face: text in, text out.

use crate::error::Result;
use crate::model::Model;
use crate::params::GenerationParams;
use crate::stream::{ChatEvent, ChatStream};

/// A model that turns a prompt into text. [`Model::chat`] is the other face.
///
/// Calls block the thread until there is text, so they must not be made inside an async runtime:
/// there they panic, since the whole thread would stand still. Async code awaits
/// [`ChatStream::next`], or moves the call to a thread of its own, such as tokio's
/// `spawn_blocking`.
///
/// ```
/// # fn main() -> aha::Result<()> {
/// use aha::{GenerateModel, GenerationParams};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama/smol");
/// let model: Box<dyn GenerateModel> = Box::new(aha::load(path).build()?);
/// let params = GenerationParams { max_tokens: Some(8), ..GenerationParams::greedy() };
/// let pieces: aha::Result<Vec<String>> =
///     model.generate_stream("Hello!", params.clone())?.collect();
/// assert_eq!(pieces?.concat(), model.generate("Hello!", params)?);
/// # Ok(())
/// # }
/// ```
pub trait GenerateModel: Send + Sync {
    /// The whole answer; blocks until it is made. Reasoning is left out unless the parameters
    /// keep it.
    ///
    /// # Errors
    /// [`crate::Error::Engine`] when the request is refused or fails.
    ///
    /// # Panics
    /// Inside an async runtime.
    fn generate(&self, prompt: &str, params: GenerationParams) -> Result<String> {
        self.generate_stream(prompt, params)?.collect()
    }

    /// The answer piece by piece; the pieces in order are what [`GenerateModel::generate`] returns.
    /// Every step of the iterator blocks, and panics inside an async runtime. Dropping it cancels
    /// the request.
    ///
    /// # Errors
    /// [`crate::Error::Engine`] when the request is refused.
    fn generate_stream(&self, prompt: &str, params: GenerationParams) -> Result<TextStream>;
}

/// The pieces of an answer; owns all that it needs.
pub type TextStream = Box<dyn Iterator<Item = Result<String>> + Send>;

impl GenerateModel for Model {
    /// Through the chat template where the model has one, as a plain continuation elsewhere.
    fn generate_stream(&self, prompt: &str, params: GenerationParams) -> Result<TextStream> {
        let stream = if self.has_chat_template() {
            self.chat(params.chat(prompt), &params)?
        } else {
            tracing::warn!(
                "{} has no chat template: it continues the prompt as it stands",
                self.name()
            );
            self.complete(prompt, &params)?
        };
        Ok(Box::new(Texts(stream)))
    }
}

struct Texts(ChatStream);

impl Iterator for Texts {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.blocking_next()? {
                Ok(ChatEvent::Content(text)) => return Some(Ok(text)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
