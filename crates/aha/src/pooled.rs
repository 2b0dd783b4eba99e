//! Vectors of texts and scores of documents: the blocking faces of embedders and rerankers.

use crate::error::Result;
use crate::model::Model;
use aha_engine::{
    EmbeddingEngine, EmbeddingInput, EmbeddingOptions, EngineError, RerankEngine, Service, Task,
};

/// A document in the order of its relevance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Its place among the documents that were given.
    pub index: usize,
    /// How well it answers the query, between 0 and 1.
    pub score: f32,
}

impl Model {
    /// The vectors of texts, in their order. Blocks until they are computed; other threads' requests run in the same
    /// batches.
    ///
    /// ```
    /// # fn main() -> aha::Result<()> {
    /// use aha::EmbeddingOptions;
    ///
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/qwen3_embedding/single");
    /// let model = aha::load(path).build()?;
    /// let query = EmbeddingOptions { prompt_name: Some("query".into()), ..Default::default() };
    /// let question = model.embed(&["What is gravity?"], &query)?.remove(0);
    /// let passages = model.embed(&["A force.", "A river."], &EmbeddingOptions::default())?;
    /// let similarity = |passage: &Vec<f32>| -> f32 {
    ///     question.iter().zip(passage).map(|(a, b)| a * b).sum()
    /// };
    /// assert!(passages.iter().map(similarity).all(|cosine| cosine <= 1.001));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`crate::Error::Task`] when the model is no embedder, [`crate::Error::Engine`] when a text is too long, an
    /// option is none that the model has, or too many requests wait.
    ///
    /// # Panics
    /// Inside an async runtime: there, await [`Model::embedding_engine`].
    pub fn embed(
        &self,
        texts: &[impl AsRef<str>],
        options: &EmbeddingOptions,
    ) -> Result<Vec<Vec<f32>>> {
        let engine = self.embedding_engine()?;
        let inputs: Vec<EmbeddingInput> = texts
            .iter()
            .map(|text| EmbeddingInput::Text(text.as_ref().to_owned()))
            .collect();
        let prepared = engine.prepare(&inputs, options, "texts")?;
        let sequences = prepared.into_iter().map(|input| input.token_ids).collect();
        let pending = engine.submit(sequences, options.dimensions)?;
        Ok(pending.blocking_wait()?.rows)
    }

    /// Documents ordered by how well they answer a query, best first; `instruct` is the task in words, where the
    /// model takes one. Blocks until they are scored.
    ///
    /// ```
    /// # fn main() -> aha::Result<()> {
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/qwen3_reranker/single");
    /// let model = aha::load("Qwen/Qwen3-Reranker-0.6B").weights(path).build()?;
    /// let documents = ["A river in France.", "A force between masses."];
    /// let ranked = model.rerank("What is gravity?", &documents, None)?;
    /// assert!(ranked[0].score >= ranked[1].score);
    /// println!("{}", documents[ranked[0].index]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`crate::Error::Task`] when the model is no reranker, [`crate::Error::Engine`] when the query is too long or too
    /// many requests wait.
    ///
    /// # Panics
    /// Inside an async runtime: there, await [`Model::rerank_engine`].
    pub fn rerank(
        &self,
        query: &str,
        documents: &[impl AsRef<str>],
        instruct: Option<&str>,
    ) -> Result<Vec<Ranked>> {
        let engine = self.rerank_engine()?;
        let processor = engine.processor();
        if instruct.is_some() && !processor.takes_instruct() {
            let message = "this model takes no `instruct`";
            return Err(EngineError::invalid("instruct", message).into());
        }
        let limit = engine.context_length();
        let sequences = documents
            .iter()
            .map(|document| {
                let pair = processor.prepare(query, document.as_ref(), instruct, limit)?;
                Ok(pair.token_ids)
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        let rows = engine.submit(sequences)?.blocking_wait()?.rows;
        let scores = rows.into_iter().flatten().enumerate();
        let mut ranked: Vec<Ranked> = scores
            .map(|(index, score)| Ranked { index, score })
            .collect();
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(ranked)
    }

    /// The engine below [`Model::embed`]: token ids, answers to await, the state of the queue.
    ///
    /// # Errors
    /// [`crate::Error::Task`] when the model is no embedder.
    pub fn embedding_engine(&self) -> Result<&EmbeddingEngine> {
        match self.service() {
            Service::Embed(engine) => Ok(engine),
            _ => Err(self.is_not_for(Task::Embed)),
        }
    }

    /// The engine below [`Model::rerank`].
    ///
    /// # Errors
    /// [`crate::Error::Task`] when the model is no reranker.
    pub fn rerank_engine(&self) -> Result<&RerankEngine> {
        match self.service() {
            Service::Rerank(engine) => Ok(engine),
            _ => Err(self.is_not_for(Task::Rerank)),
        }
    }
}
