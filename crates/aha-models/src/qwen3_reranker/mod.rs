//! Qwen3-Reranker: Qwen3 decoders that answer whether a document meets a query, scored by "yes" against "no".
//!
//! Reference: the release's procedure over `Qwen3ForCausalLM` of transformers; technical report arXiv 2506.05176.

mod processor;

use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::pass::last_hidden;
use crate::qwen3::Qwen3Config;
use crate::registry::Family;
use crate::text::tokenizer;
use aha_engine::{Generator, LoadedModel, PooledBatch, RerankModel, Reranker, Task};
use aha_nn::linear::Embedding;
use aha_nn::weights::{NameMap, Weights};
use candle_core::{D, DType, Module, Result as TensorResult, Tensor};
use processor::Qwen3RerankProcessor;
use std::sync::Arc;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "qwen3_reranker",
    task: Task::Rerank,
    architectures: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    gguf_architectures: &["qwen3"],
    load,
};

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let tokenizer = tokenizer(checkpoint)?;
    let answer = |text: &str| {
        tokenizer.token_id(text).ok_or_else(|| {
            let reason = format!("the vocabulary has no token `{text}`, which scores are made of");
            LoadError::config("tokenizer", reason)
        })
    };
    let (yes, no) = (answer("yes")?, answer("no")?);
    let reranker = Qwen3Reranker::load(checkpoint, options, yes, no)?;
    let positions = reranker.context_length();
    Ok(LoadedModel::Rerank(RerankModel {
        processor: Arc::new(Qwen3RerankProcessor::new(tokenizer, positions)?),
        reranker: Box::new(reranker),
    }))
}

/// A decoder and two rows of its output head.
#[derive(Debug)]
pub struct Qwen3Reranker {
    decoder: Decoder,
    /// Row of the head for "yes", `[hidden_size]`.
    yes: Tensor,
    /// Row of the head for "no", `[hidden_size]`.
    no: Tensor,
}

impl Qwen3Reranker {
    /// Loads the decoder and, of the head, the rows of the tokens `yes` and `no`.
    pub fn load(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        yes: u32,
        no: u32,
    ) -> Result<Self, LoadError> {
        let config = checkpoint.config(Qwen3Config::from_gguf)?;
        let mut config = config.decoder()?;
        let names = NameMap::decoder().with_rule("score", "cls.output");
        let weights = checkpoint.weights(names, options)?;
        let tied = std::mem::replace(&mut config.tie_word_embeddings, true);
        let (vocab_size, hidden_size) = (config.vocab_size, config.attention.hidden_size);
        for (text, id) in [("yes", yes), ("no", no)] {
            if id as usize >= vocab_size {
                let reason = format!("the token `{text}` is {id}, but there are {vocab_size} rows");
                return Err(LoadError::config("vocab_size", reason));
            }
        }
        let decoder = Decoder::load(&weights, config)?;
        let table = |name: &str, rows: usize| Embedding::load(&weights.pp(name), rows, hidden_size);
        // Converters to GGUF put the two rows into a matrix of their own, "yes" first.
        let (table, yes, no) = if is_pair(&weights, hidden_size) {
            (table("score", 2)?, 0, 1)
        } else if tied {
            (decoder.embedding().clone(), yes, no)
        } else {
            (table("lm_head", vocab_size)?, yes, no)
        };
        weights.finish(&[])?;
        let rows = table.forward(&Tensor::new(&[yes, no], decoder.device())?)?;
        let rows = rows.to_dtype(DType::F32)?;
        Ok(Self {
            yes: rows.get(0)?,
            no: rows.get(1)?,
            decoder,
        })
    }

    /// Logits of "no" and "yes" behind each sequence, `[sequences, 2]` in f32.
    pub fn logits(&self, batch: &PooledBatch<'_>) -> TensorResult<Tensor> {
        let hidden = last_hidden(&self.decoder, batch)?.to_dtype(DType::F32)?;
        // Row by row: a product of matrices might add in another order in another batch.
        let logit = |row: &Tensor| hidden.broadcast_mul(row)?.sum_keepdim(D::Minus1);
        Tensor::cat(&[logit(&self.no)?, logit(&self.yes)?], 1)
    }
}

fn is_pair(weights: &Weights, hidden_size: usize) -> bool {
    weights.shape("score.weight") == Some(&[2, hidden_size])
}

impl Reranker for Qwen3Reranker {
    fn vocab_size(&self) -> usize {
        self.decoder.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.decoder.context_length()
    }

    fn score(&self, batch: &PooledBatch<'_>) -> TensorResult<Tensor> {
        let logits = self.logits(batch)?;
        candle_nn::ops::softmax(&logits, 1)?.get_on_dim(1, 1)
    }
}
