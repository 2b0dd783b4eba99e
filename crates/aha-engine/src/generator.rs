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

    /// Runs the batch; `logits` becomes `[batch.logit_rows(), vocab_size]`, in the order asked for. No rows are asked for
    /// of unfinished chunks of prompts: then `logits` is of no use.
    ///
    /// Every sequence's new keys and values (or recurrent state) are in `cache` afterwards.
    fn forward_into(&self, batch: &Batch, cache: &mut Cache, logits: &mut Vec<f32>) -> Result<()>;

    /// The same, with logits as a tensor on the CPU.
    fn forward(&self, batch: &Batch, cache: &mut Cache) -> Result<Tensor> {
        let mut logits = Vec::new();
        self.forward_into(batch, cache, &mut logits)?;
        let shape = (batch.logit_rows().len(), self.vocab_size());
        Tensor::from_vec(logits, shape, &Device::Cpu)
    }
}
