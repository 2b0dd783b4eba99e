//! How well documents answer a query: the contract with the model, and its engine.

use crate::embedding::PreparedInput;
use crate::engine::{EngineOptions, EngineStatus};
use crate::error::EngineError;
use crate::pooled::{PendingRows, Pooled, PooledBatch, PooledEngine, PooledOutput};
use crate::tokenizer::Tokenizer;
use candle_core::{Result, Tensor};
use std::fmt;
use std::sync::Arc;

/// A model that gives one score a sequence, which holds query and document.
pub trait Reranker: Send + Sync {
    /// Rows of the token embedding; ids at or above it have none.
    fn vocab_size(&self) -> usize;

    /// Longest sequence that the positions allow.
    fn context_length(&self) -> usize;

    /// Scores `[sequences]`, between 0 and 1. A sequence gives the same bits alone and in any batch.
    fn score(&self, batch: &PooledBatch<'_>) -> Result<Tensor>;
}

/// How query and document become one sequence.
pub trait RerankProcessor: Send + Sync {
    /// The tokenizer.
    fn tokenizer(&self) -> &Tokenizer;

    /// Whether a task in words can be given.
    fn takes_instruct(&self) -> bool;

    /// Token ids of a pair, at most `max_length`; `instruct` is the task in words. The end of a document that is too
    /// long is cut off, as the release does.
    ///
    /// # Errors
    /// When a text cannot be tokenised, or query and task leave no room for a document.
    fn prepare(
        &self,
        query: &str,
        document: &str,
        instruct: Option<&str>,
        max_length: usize,
    ) -> std::result::Result<PreparedInput, EngineError>;

    /// Most tokens of a pair.
    fn max_length(&self) -> usize;
}

/// A reranker with everything between it and text.
pub struct RerankModel {
    /// The tensors.
    pub reranker: Box<dyn Reranker>,
    /// Tokenizer and template.
    pub processor: Arc<dyn RerankProcessor>,
}

impl fmt::Debug for RerankModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RerankModel").finish_non_exhaustive()
    }
}

/// Handle to a reranker's thread; cheap to clone. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct RerankEngine {
    engine: PooledEngine,
    processor: Arc<dyn RerankProcessor>,
}

impl fmt::Debug for RerankEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RerankEngine")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl RerankEngine {
    /// Starts the thread. Of the options, those of the cache have no meaning here.
    ///
    /// # Errors
    /// When an option is zero or the thread cannot start.
    pub fn start(
        model: RerankModel,
        options: &EngineOptions,
    ) -> std::result::Result<Self, EngineError> {
        Ok(Self {
            engine: PooledEngine::start(Pooled::Rerank(model.reranker), options)?,
            processor: model.processor,
        })
    }

    /// Tokenizer and template.
    pub fn processor(&self) -> &dyn RerankProcessor {
        self.processor.as_ref()
    }

    /// Tokens that query and document may have together.
    pub fn context_length(&self) -> usize {
        self.engine
            .context_length()
            .min(self.processor.max_length())
    }

    /// Queues token sequences of [`RerankProcessor::prepare`]. Never waits. Those of one request share the
    /// computation of what they begin with.
    ///
    /// # Errors
    /// When a sequence is empty or too long, the queue is full or the engine is stopping.
    pub fn submit(
        &self,
        sequences: Vec<Vec<u32>>,
    ) -> std::result::Result<PendingScores, EngineError> {
        Ok(PendingScores(self.engine.submit(sequences)?))
    }

    /// Whether a request would find a place in the queue now.
    ///
    /// # Errors
    /// When the queue is full or the engine is stopping.
    pub fn check_room(&self) -> std::result::Result<(), EngineError> {
        self.engine.check_room()
    }

    /// A look at the state.
    pub fn status(&self) -> EngineStatus {
        self.engine.status()
    }

    /// Ends the thread: running and waiting requests fail with [`EngineError::ShuttingDown`].
    pub fn shutdown(&self) {
        self.engine.shutdown();
    }
}

/// Scores that are being computed. Dropping it cancels the request.
#[derive(Debug)]
pub struct PendingScores(PendingRows);

impl PendingScores {
    /// The scores in rows of one number, in the order of the request.
    ///
    /// # Errors
    /// When the computation failed or the engine is stopping.
    pub async fn wait(self) -> std::result::Result<PooledOutput, EngineError> {
        self.0.wait().await
    }

    /// The same for threads outside an async runtime.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn blocking_wait(self) -> std::result::Result<PooledOutput, EngineError> {
        self.0.blocking_wait()
    }
}
