//! Qwen3-Embedding: Qwen3 decoders whose last token's hidden state is the vector.
//!
//! Reference: `Qwen3Model` of transformers under sentence-transformers; technical report arXiv 2506.05176.

use crate::checkpoint::{Checkpoint, Format, LoadOptions};
use crate::decoder::Decoder;
use crate::error::LoadError;
use crate::pass::last_hidden;
use crate::pooling::Pooling;
use crate::qwen3::Qwen3Config;
use crate::registry::Family;
use crate::sentence::SentenceTransformer;
use crate::text::tokenizer;
use aha_engine::embedding::{EmbeddingSettings, InstructForm};
use aha_engine::{
    Embedder, EmbeddingModel, EmbeddingProcessor, Generator, LoadedModel, PooledBatch, Task,
};
use aha_nn::weights::NameMap;
use candle_core::{Result as TensorResult, Tensor};

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "qwen3_embedding",
    task: Task::Embed,
    architectures: &["Qwen3ForCausalLM", "Qwen3Model"],
    model_types: &["qwen3"],
    gguf_architectures: &["qwen3"],
    load,
};

/// The release's prompt of queries; files without side files (GGUF) cannot carry it.
const QUERY: &str =
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:";

/// How a task in words stands before a query.
const INSTRUCT: InstructForm = InstructForm {
    before: "Instruct: ",
    between: "\nQuery:",
};

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let sides = SentenceTransformer::read(checkpoint)?.unwrap_or_else(|| SentenceTransformer {
        normalizes: true,
        prompts: [("query", QUERY), ("document", "")]
            .map(|(name, prompt)| (name.to_owned(), prompt.to_owned()))
            .into(),
        ..SentenceTransformer::default()
    });
    if let Some(pooling) = sides.pooling.filter(|pooling| *pooling != Pooling::Last) {
        return Err(LoadError::config(
            "pooling_mode",
            format!(
                "{pooling:?} is not supported for decoders, whose last token alone sees the whole text"
            ),
        ));
    }
    if let Format::Gguf(file) = checkpoint.format()
        && let Some(number) = file.metadata.unsigned("qwen3.pooling_type")?
        && Pooling::from_gguf(number) != Some(Pooling::Last)
    {
        let reason = format!("{number} is not 3, the last token");
        return Err(LoadError::config("qwen3.pooling_type", reason));
    }
    let embedder = DecoderEmbedder(decoder(checkpoint, options)?);
    let positions = embedder.context_length();
    let settings = EmbeddingSettings {
        max_length: sides
            .max_seq_length
            .map_or(positions, |most| most.min(positions)),
        // A file that names a length means texts to be cut there.
        truncates: sides.max_seq_length.is_some(),
        lower_case: sides.lower_case,
        normalize: sides.normalizes,
        matryoshka: true,
        prompts: sides.prompts,
        default_prompt: sides.default_prompt,
        instruct: Some(INSTRUCT),
    };
    Ok(LoadedModel::Embed(EmbeddingModel {
        processor: EmbeddingProcessor::new(tokenizer(checkpoint)?, settings)?,
        embedder: Box::new(embedder),
    }))
}

/// Loads the tensors alone. There is no output head, whatever the configuration says of one.
pub fn decoder(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Decoder, LoadError> {
    let config = checkpoint.config(Qwen3Config::from_gguf)?;
    let mut config = config.decoder()?;
    config.tie_word_embeddings = true;
    let weights = checkpoint.weights(NameMap::decoder(), options)?;
    Decoder::load(&weights, config)
}

/// A decoder as an embedder.
#[derive(Debug)]
struct DecoderEmbedder(Decoder);

impl Embedder for DecoderEmbedder {
    fn embedding_size(&self) -> usize {
        self.0.hidden_size()
    }

    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.0.context_length()
    }

    fn embed(&self, batch: &PooledBatch<'_>) -> TensorResult<Tensor> {
        last_hidden(&self.0, batch)
    }
}
