//! BERT encoders that embed sentences: all-MiniLM-L6-v2 and its relatives.
//!
//! Reference: `BertModel` of transformers under sentence-transformers; arXiv 1810.04805 and 1908.10084.

mod config;
mod model;

use crate::checkpoint::{Checkpoint, Format, LoadOptions};
use crate::error::LoadError;
use crate::pooling::Pooling;
use crate::registry::Family;
use crate::sentence::SentenceTransformer;
use crate::text::tokenizer;
use aha_engine::embedding::EmbeddingSettings;
use aha_engine::{EmbeddingModel, EmbeddingProcessor, LoadedModel, Task};
use aha_nn::weights::NameMap;
pub use config::BertConfig;
pub use model::Bert;

/// The registry's entry.
pub const FAMILY: Family = Family {
    slug: "minilm",
    task: Task::Embed,
    architectures: &["BertModel"],
    model_types: &["bert"],
    gguf_architectures: &["bert"],
    load,
};

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let sides = SentenceTransformer::read(checkpoint)?;
    let bert = encoder(checkpoint, options)?;
    let positions = aha_engine::Embedder::context_length(&bert);
    // Without side files nothing says that vectors were trained on their direction alone; converters to
    // GGUF and those who save a bare encoder leave the step to the reader.
    let sides = sides.unwrap_or(SentenceTransformer {
        normalizes: true,
        ..SentenceTransformer::default()
    });
    let settings = EmbeddingSettings {
        max_length: sides
            .max_seq_length
            .map_or(positions, |most| most.min(positions)),
        truncates: true,
        lower_case: sides.lower_case,
        normalize: sides.normalizes,
        matryoshka: false,
        prompts: sides.prompts,
        default_prompt: sides.default_prompt,
        instruct: None,
    };
    Ok(LoadedModel::Embed(EmbeddingModel {
        embedder: Box::new(bert),
        processor: EmbeddingProcessor::new(tokenizer(checkpoint)?, settings)?,
    }))
}

/// Loads the tensors alone.
pub fn encoder(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Bert, LoadError> {
    let config = checkpoint.config(BertConfig::from_gguf)?;
    let pooling = match checkpoint.format() {
        Format::Folder { .. } => SentenceTransformer::read(checkpoint)?
            .and_then(|sides| sides.pooling)
            .unwrap_or(Pooling::Mean),
        Format::Gguf(file) => match file.metadata.unsigned("bert.pooling_type")? {
            None => Pooling::Mean,
            Some(number) => Pooling::from_gguf(number).ok_or_else(|| {
                let reason = format!("{number} is none of 1 (mean), 2 (cls) and 3 (last)");
                LoadError::config("bert.pooling_type", reason)
            })?,
        },
    };
    let weights = checkpoint.weights(names(), options)?;
    Bert::load(&weights, config, pooling)
}

/// Names in GGUF files.
fn names() -> NameMap {
    [
        ("embeddings.word_embeddings", "token_embd"),
        ("embeddings.position_embeddings", "position_embd"),
        ("embeddings.token_type_embeddings", "token_types"),
        ("embeddings.LayerNorm", "token_embd_norm"),
        ("encoder.layer.{i}.attention.self.query", "blk.{i}.attn_q"),
        ("encoder.layer.{i}.attention.self.key", "blk.{i}.attn_k"),
        ("encoder.layer.{i}.attention.self.value", "blk.{i}.attn_v"),
        (
            "encoder.layer.{i}.attention.output.dense",
            "blk.{i}.attn_output",
        ),
        (
            "encoder.layer.{i}.attention.output.LayerNorm",
            "blk.{i}.attn_output_norm",
        ),
        ("encoder.layer.{i}.intermediate.dense", "blk.{i}.ffn_up"),
        ("encoder.layer.{i}.output.dense", "blk.{i}.ffn_down"),
        (
            "encoder.layer.{i}.output.LayerNorm",
            "blk.{i}.layer_output_norm",
        ),
    ]
    .into_iter()
    .fold(NameMap::identity(), |map, (pattern, target)| {
        map.with_rule(pattern, target)
    })
}
