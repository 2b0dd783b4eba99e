//! The engine's errors. Each says whose fault it is, so that a face maps it to one status.

use thiserror::Error;

/// Everything that can go wrong between a request and its answer.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum EngineError {
    /// The request asks for something impossible or out of range.
    #[error("{message}")]
    InvalidRequest {
        /// The field at fault, in the request's own terms (`temperature`, `messages[2].content`).
        param: Option<String>,
        /// What is wrong and what would be right.
        message: String,
    },
    /// Prompt and answer do not fit in the context.
    #[error(
        "this model's context holds {context_length} tokens, but the prompt has {prompt_tokens} and {completion_tokens} were asked for: shorten the messages or the completion"
    )]
    ContextLengthExceeded {
        /// Tokens that one sequence may have.
        context_length: usize,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens asked for (at least 1).
        completion_tokens: usize,
    },
    /// The queue is full.
    #[error(
        "the server is busy: {waiting} requests are waiting; try again in {retry_after_seconds} s"
    )]
    Overloaded {
        /// Requests in the queue.
        waiting: usize,
        /// An estimate of when a place will be free.
        retry_after_seconds: u64,
    },
    /// The chat template refused the messages or did not finish within its limits.
    #[error("the chat template refused the messages: {message}")]
    Template {
        /// The template's own words.
        message: String,
    },
    /// The engine is stopping.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The receiver read too slowly and the request was cancelled.
    #[error("the answer was read too slowly and was cancelled")]
    SlowReader,
    /// A fault of ours; the request cannot be answered.
    #[error("internal error: {message}")]
    Internal {
        /// What happened, for the log and the client.
        message: String,
    },
}

impl EngineError {
    /// An invalid request with the field at fault.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::InvalidRequest {
            param: Some(param.into()),
            message: message.into(),
        }
    }

    /// A fault of ours.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::Internal {
            message: message.to_string(),
        }
    }
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        Self::internal(error)
    }
}
