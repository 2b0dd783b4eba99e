//! A running model of any task.

use crate::embedding::EmbeddingEngine;
use crate::engine::{Engine, EngineOptions, EngineStatus};
use crate::error::EngineError;
use crate::matting::MattingEngine;
use crate::model::{LoadedModel, Task};
use crate::rerank::RerankEngine;
use crate::speech::SpeechEngine;
use crate::tokenizer::Tokenizer;

/// The engine of a loaded model; cheap to clone.
#[derive(Debug, Clone)]
pub enum Service {
    /// Text generation.
    Text(Engine),
    /// Texts to vectors.
    Embed(EmbeddingEngine),
    /// Scores of documents.
    Rerank(RerankEngine),
    /// Masks of pictures.
    Matte(MattingEngine),
    /// Text to speech.
    Speak(SpeechEngine),
}

impl Service {
    /// Starts the engine that a model needs.
    ///
    /// # Errors
    /// When an option cannot be met, memory is too small or the thread cannot start.
    pub fn start(model: LoadedModel, options: EngineOptions) -> Result<Self, EngineError> {
        Ok(match model {
            LoadedModel::Text(model) => Self::Text(Engine::start(model, options)?),
            LoadedModel::Embed(model) => Self::Embed(EmbeddingEngine::start(model, &options)?),
            LoadedModel::Rerank(model) => Self::Rerank(RerankEngine::start(model, &options)?),
            LoadedModel::Matte(model) => Self::Matte(MattingEngine::start(model, &options)?),
            LoadedModel::Speak(model) => Self::Speak(SpeechEngine::start(model, &options)?),
        })
    }

    /// What the model is for.
    pub fn task(&self) -> Task {
        match self {
            Self::Text(engine) => engine.task(),
            Self::Embed(_) => Task::Embed,
            Self::Rerank(_) => Task::Rerank,
            Self::Matte(_) => Task::Matte,
            Self::Speak(_) => Task::Speak,
        }
    }

    /// A look at the state.
    pub fn status(&self) -> EngineStatus {
        match self {
            Self::Text(engine) => engine.status(),
            Self::Embed(engine) => engine.status(),
            Self::Rerank(engine) => engine.status(),
            Self::Matte(engine) => engine.status(),
            Self::Speak(engine) => engine.status(),
        }
    }

    /// Tokens that one sequence may have, where there are tokens.
    pub fn context_length(&self) -> Option<usize> {
        Some(match self {
            Self::Text(engine) => engine.context_length(),
            Self::Embed(engine) => engine.context_length(),
            Self::Rerank(engine) => engine.context_length(),
            Self::Speak(engine) => engine.context_length(),
            Self::Matte(_) => return None,
        })
    }

    /// The tokenizer, where there are tokens.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        Some(match self {
            Self::Text(engine) => engine.processor().tokenizer(),
            Self::Embed(engine) => engine.processor().tokenizer(),
            Self::Rerank(engine) => engine.processor().tokenizer(),
            Self::Speak(engine) => engine.processor().tokenizer(),
            Self::Matte(_) => return None,
        })
    }

    /// Ends the thread: running and waiting requests fail with [`EngineError::ShuttingDown`].
    pub fn shutdown(&self) {
        match self {
            Self::Text(engine) => engine.shutdown(),
            Self::Embed(engine) => engine.shutdown(),
            Self::Rerank(engine) => engine.shutdown(),
            Self::Matte(engine) => engine.shutdown(),
            Self::Speak(engine) => engine.shutdown(),
        }
    }
}
