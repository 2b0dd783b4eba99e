use crate::error::EngineError;
use std::path::PathBuf;
use thiserror::Error;

/// What can be wrong with a tokenizer or with what it is given.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("cannot read {}: {message}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        message: String,
    },
    /// A file is larger than any tokenizer of its kind.
    #[error("{} has {size} bytes, but a tokenizer file may have {limit} at most: is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The largest accepted size in bytes.
        limit: u64,
    },
    /// The checkpoint holds no tokenizer.
    #[error("no tokenizer in {}: expected tokenizer.json, or vocab.json with merges.txt", path.display())]
    Missing {
        /// The folder that was searched.
        path: PathBuf,
    },
    /// The tokenizer's data contradict themselves.
    #[error("malformed tokenizer in {origin}: {message}")]
    Malformed {
        /// The file, or the metadata key.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// A kind of tokenizer that this version does not know.
    #[error("{key} = `{value}` is not supported; known are: {known}")]
    Unsupported {
        /// The field that names the kind.
        key: String,
        /// Its value.
        value: String,
        /// The supported values.
        known: String,
    },
    /// A text could not be encoded.
    #[error("the text cannot be tokenised: {message}")]
    Encode {
        /// What is wrong with it.
        message: String,
    },
}

impl TokenizerError {
    pub(super) fn malformed(origin: impl Into<String>, message: impl std::fmt::Display) -> Self {
        Self::Malformed {
            origin: origin.into(),
            message: message.to_string(),
        }
    }
}

impl From<TokenizerError> for EngineError {
    /// A text that cannot be encoded is the client's fault, everything else is ours.
    fn from(error: TokenizerError) -> Self {
        match error {
            TokenizerError::Encode { .. } => Self::InvalidRequest {
                param: None,
                message: error.to_string(),
            },
            _ => Self::internal(error),
        }
    }
}
