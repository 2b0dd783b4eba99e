//! BERT (arXiv 1810.04805): embeddings and post-norm encoder layers.

use super::config::BertConfig;
use crate::error::LoadError;
use crate::pooling::Pooling;
use aha_engine::{Embedder, PooledBatch};
use aha_nn::linear::{Embedding, Linear};
use aha_nn::mlp::Activation;
use aha_nn::norm::LayerNorm;
use aha_nn::ragged::{RaggedAttention, SequenceBounds};
use aha_nn::weights::Weights;
use candle_core::{Device, Module, Result, Tensor};

/// Word, position and token type, added and normalised.
#[derive(Debug)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
}

impl Embeddings {
    fn load(weights: &Weights, config: &BertConfig) -> aha_nn::weights::Result<Self> {
        let table = |name, rows| Embedding::load(&weights.pp(name), rows, config.hidden_size);
        Ok(Self {
            word_embeddings: table("word_embeddings", config.vocab_size)?,
            position_embeddings: table("position_embeddings", config.max_position_embeddings)?,
            token_type_embeddings: table("token_type_embeddings", config.type_vocab_size)?,
            layer_norm: LayerNorm::load(
                &weights.pp("LayerNorm"),
                config.hidden_size,
                config.layer_norm_eps,
            )?,
        })
    }

    fn forward(&self, token_ids: &Tensor, bounds: &SequenceBounds) -> Result<Tensor> {
        let device = token_ids.device();
        let positions = Tensor::new(bounds.positions(), device)?;
        let words = self.word_embeddings.forward(token_ids)?;
        let sum = (words + self.position_embeddings.forward(&positions)?)?;
        // Everything is of the first of two texts.
        let first = self
            .token_type_embeddings
            .forward(&Tensor::new(&[0_u32], device)?)?;
        self.layer_norm.forward(&sum.broadcast_add(&first)?)
    }
}

/// Self-attention and feed-forward, each in front of a residual and a norm.
#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    attention: RaggedAttention,
    activation: Activation,
}

impl Layer {
    fn load(weights: &Weights, config: &BertConfig) -> aha_nn::weights::Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |name, from, to| Linear::load(&weights.pp(name), from, to, true);
        let norm = |name| LayerNorm::load(&weights.pp(name), hidden, config.layer_norm_eps);
        Ok(Self {
            query: linear("attention.self.query", hidden, hidden)?,
            key: linear("attention.self.key", hidden, hidden)?,
            value: linear("attention.self.value", hidden, hidden)?,
            attention_output: linear("attention.output.dense", hidden, hidden)?,
            attention_norm: norm("attention.output.LayerNorm")?,
            intermediate: linear("intermediate.dense", hidden, inner)?,
            output: linear("output.dense", inner, hidden)?,
            output_norm: norm("output.LayerNorm")?,
            attention: RaggedAttention::full(config.num_attention_heads, config.head_dim()),
            activation: config.hidden_act,
        })
    }

    fn forward(&self, hidden: &Tensor, bounds: &SequenceBounds) -> Result<Tensor> {
        let attended = self.attention.forward(
            &self.query.forward(hidden)?,
            &self.key.forward(hidden)?,
            &self.value.forward(hidden)?,
            bounds,
        )?;
        let attended = self.attention_output.forward(&attended)?;
        let hidden = self.attention_norm.forward(&(hidden + attended)?)?;
        let inner = self
            .activation
            .forward(&self.intermediate.forward(&hidden)?)?;
        let fed = self.output.forward(&inner)?;
        self.output_norm.forward(&(hidden + fed)?)
    }
}

/// The encoder with its pooling.
#[derive(Debug)]
pub struct Bert {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    pooling: Pooling,
    config: BertConfig,
    device: Device,
}

impl Bert {
    /// Loads all tensors; names may begin with `bert.`, as in checkpoints that were saved with a head.
    pub fn load(
        weights: &Weights,
        config: BertConfig,
        pooling: Pooling,
    ) -> std::result::Result<Self, LoadError> {
        config.validate()?;
        let root = if weights.contains("bert.embeddings.word_embeddings.weight") {
            weights.pp("bert")
        } else {
            weights.clone()
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&root.pp(format_args!("encoder.layer.{index}")), &config))
            .collect::<aha_nn::weights::Result<_>>()?;
        let embeddings = Embeddings::load(&root.pp("embeddings"), &config)?;
        weights.finish(&["*.position_ids", "pooler.*", "bert.pooler.*", "cls.*"])?;
        Ok(Self {
            embeddings,
            layers,
            pooling,
            config,
            device: weights.device().clone(),
        })
    }

    /// Hidden states `[tokens, hidden_size]` of the embeddings and after each layer, `visit`ed in order; the last is
    /// returned.
    pub fn hidden_states(
        &self,
        token_ids: &[u32],
        bounds: &SequenceBounds,
        mut visit: impl FnMut(&Tensor),
    ) -> Result<Tensor> {
        let token_ids = Tensor::new(token_ids, &self.device)?;
        let mut hidden = self.embeddings.forward(&token_ids, bounds)?;
        visit(&hidden);
        for layer in &self.layers {
            hidden = layer.forward(&hidden, bounds)?;
            visit(&hidden);
        }
        Ok(hidden)
    }
}

impl Embedder for Bert {
    fn embedding_size(&self) -> usize {
        self.config.hidden_size
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn context_length(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn embed(&self, batch: &PooledBatch<'_>) -> Result<Tensor> {
        let bounds = SequenceBounds::from_lengths(batch.sequences.iter().map(|s| s.len()))?;
        let hidden = self.hidden_states(&batch.sequences.concat(), &bounds, |_| {})?;
        self.pooling.forward(&hidden, &bounds)
    }
}
