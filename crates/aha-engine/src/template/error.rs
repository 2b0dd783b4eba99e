use crate::tokenizer::TokenizerError;
use thiserror::Error;

/// What can be wrong with a chat template before anything is rendered.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum TemplateError {
    /// The file with the template could not be read or parsed.
    #[error(transparent)]
    File(#[from] TokenizerError),
    /// The template is not valid.
    #[error("the chat template in {origin} is not valid: {message}")]
    Syntax {
        /// The file or metadata key that holds it.
        origin: String,
        /// The template engine's words, with the line.
        message: String,
    },
}
