//! The contract between the engine and a model of one autoregressive vocabulary.

use aha_nn::batch::Batch;
use aha_nn::cache::{Cache, CacheSpec};
use candle_core::{Device, Result, Tensor};

/// A model that continues token sequences: text, vision, OCR and speech recognition alike.
///
/// It knows tensors, not requests: the sequences of a batch lie end to end without padding, and their caches belong
/// to the engine.
pub trait Generator: Send + Sync {
    /// What each layer keeps of a sequence between steps.
    fn cache_spec(&self) -> CacheSpec;

    /// Rows of the output head: at least the tokenizer's vocabulary.
    fn vocab_size(&self) -> usize;

    /// Longest sequence that the checkpoint was made for (`max_position_embeddings`).
    fn context_length(&self) -> usize;

    /// Where the tensors live.
    fn device(&self) -> &Device;

    /// Runs the batch and returns logits `[batch.logit_rows(), vocab_size]` in f32, in the order asked for.
    ///
    /// Every sequence's new keys and values (or recurrent state) are in `cache` afterwards.
    fn forward(&self, batch: &Batch, cache: &mut Cache) -> Result<Tensor>;

    /// Runs a batch of which no logits are asked for: unfinished chunks of prompts.
    fn prefill(&self, batch: &Batch, cache: &mut Cache) -> Result<()>;
}
