//! What a GGUF file says besides its tensors.

use super::ExportModel;
use crate::checkpoint::Checkpoint;
use crate::decoder::DecoderConfig;
use crate::error::LoadError;
use aha_engine::ProcessorError;
use aha_engine::template::ChatTemplate;
use aha_engine::tokenizer::Tokenizer;
use aha_nn::mlp::Activation;
use aha_nn::rope::{RopeScaling, RopeType, RotaryEmbedding};
use aha_nn::weights::Quantization;
use aha_nn::weights::gguf::{Metadata, Value};

/// Divisors of the rotary frequencies, which the format keeps as a tensor.
pub(super) const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// The version of the block formats.
const QUANTIZATION_VERSION: u64 = 2;

/// Keys that tell how a file was quantised and laid out: those of the new file are others.
const REPLACED: [&str; 3] = [
    "general.file_type",
    "general.quantization_version",
    "general.alignment",
];

/// The metadata of the file that a release's folder becomes.
pub(super) fn of_folder(
    checkpoint: &Checkpoint,
    model: &ExportModel,
    recipe: Quantization,
    name: Option<&str>,
) -> Result<Vec<(String, Value)>, LoadError> {
    let folder = checkpoint.path();
    let own_name = folder.file_name().map(|name| name.to_string_lossy());
    let name = name.or(own_name.as_deref()).unwrap_or(model.architecture);
    // An id or a path: the last part of it is the name.
    let name = name
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(name);
    let mut metadata = vec![
        (
            "general.architecture".to_owned(),
            Value::Text(model.architecture.to_owned()),
        ),
        ("general.type".to_owned(), Value::Text("model".to_owned())),
        ("general.name".to_owned(), Value::Text(name.to_owned())),
    ];
    metadata.extend(quantization(recipe));
    metadata.extend(checkpoint.sampling_keys()?);
    metadata.extend(hyper_parameters(model)?);
    let tokenizer = Tokenizer::from_folder(folder).map_err(ProcessorError::from)?;
    let ends = checkpoint.generation_defaults()?.eos_token_ids;
    let keys = tokenizer.to_gguf(model.decoder.vocab_size, &ends, model.pre);
    metadata.extend(keys.map_err(ProcessorError::from)?);
    metadata.extend(ChatTemplate::gguf_of_folder(folder).map_err(ProcessorError::from)?);
    Ok(metadata)
}

/// The metadata of another file, for matrices of other types.
pub(super) fn of_gguf(metadata: &Metadata, recipe: Quantization) -> Vec<(String, Value)> {
    let kept = metadata
        .keys()
        .filter(|key| !REPLACED.contains(key) && !key.starts_with("split."))
        .filter_map(|key| Some((key.to_owned(), metadata.get(key)?.clone())));
    kept.chain(quantization(recipe)).collect()
}

fn quantization(recipe: Quantization) -> [(String, Value); 2] {
    let file_type = u64::from(recipe.gguf_file_type());
    [
        ("general.file_type".to_owned(), Value::Unsigned(file_type)),
        (
            "general.quantization_version".to_owned(),
            Value::Unsigned(QUANTIZATION_VERSION),
        ),
    ]
}

fn hyper_parameters(model: &ExportModel) -> Result<Vec<(String, Value)>, LoadError> {
    let config = &model.decoder;
    if config.activation != Activation::Silu {
        let reason = "files of this architecture have SiLU alone";
        return Err(LoadError::config("hidden_act", reason));
    }
    let attention = &config.attention;
    let number = |value: usize| Value::Unsigned(value as u64);
    let mut keys = model.keys.clone();
    let common = [
        ("vocab_size", number(config.vocab_size)),
        ("context_length", number(config.max_position_embeddings)),
        ("embedding_length", number(attention.hidden_size)),
        ("block_count", number(config.num_layers)),
        ("feed_forward_length", number(config.intermediate_size)),
        ("attention.head_count", number(attention.num_heads)),
        ("attention.head_count_kv", number(attention.num_kv_heads)),
        ("attention.key_length", number(attention.head_dim)),
        ("attention.value_length", number(attention.head_dim)),
        (
            "attention.layer_norm_rms_epsilon",
            Value::Float(config.rms_norm_eps),
        ),
        ("rope.dimension_count", number(config.rotary_dim)),
        ("rope.freq_base", Value::Float(config.rope_theta)),
    ];
    for (name, value) in common {
        if !keys.iter().any(|(own, _)| *own == name) {
            keys.push((name, value));
        }
    }
    if let Some(scaling) = &config.rope_scaling {
        keys.extend(rope_scaling(scaling, config.max_position_embeddings)?);
    }
    let prefixed = keys
        .into_iter()
        .map(|(name, value)| (format!("{}.{name}", model.architecture), value));
    Ok(prefixed.collect())
}

/// The keys of a scaling; none for one that is kept as divisors.
fn rope_scaling(
    scaling: &RopeScaling,
    context_length: usize,
) -> Result<Vec<(&'static str, Value)>, LoadError> {
    let refused = |reason: String| Err(LoadError::config("rope_scaling", reason));
    let factor = scaling.factor.unwrap_or(1.0);
    let original = scaling
        .original_max_position_embeddings
        .unwrap_or(context_length);
    let keys = |kind: &str| {
        vec![
            ("rope.scaling.type", Value::Text(kind.to_owned())),
            ("rope.scaling.factor", Value::Float(factor)),
            (
                "rope.scaling.original_context_length",
                Value::Unsigned(original as u64),
            ),
        ]
    };
    match scaling.kind() {
        RopeType::Default | RopeType::Llama3 => Ok(Vec::new()),
        RopeType::Linear => Ok(keys("linear")),
        RopeType::Yarn => {
            let RopeScaling {
                beta_fast,
                beta_slow,
                attention_factor,
                mscale,
                mscale_all_dim,
                ..
            } = *scaling;
            let numbers = [
                beta_fast,
                beta_slow,
                attention_factor,
                mscale,
                mscale_all_dim,
            ];
            if numbers.iter().any(Option::is_some) || scaling.truncate == Some(false) {
                return refused(
                    "yarn with other numbers than its defaults has no keys in the format"
                        .to_owned(),
                );
            }
            Ok(keys("yarn"))
        }
        other => refused(format!("{other:?} has no keys in the format")),
    }
}

/// Llama 3's scaling as what it divides each frequency by.
pub(super) fn rope_divisors(config: &DecoderConfig) -> Result<Option<Vec<f32>>, LoadError> {
    let Some(scaling) = &config.rope_scaling else {
        return Ok(None);
    };
    if scaling.kind() != RopeType::Llama3 {
        return Ok(None);
    }
    let rotary = |scaling| {
        let length = config.max_position_embeddings;
        RotaryEmbedding::new(config.rotary_dim, config.rope_theta, scaling, length)
    };
    let (plain, scaled) = (rotary(None)?, rotary(Some(scaling))?);
    let pairs = plain.frequencies().iter().zip(scaled.frequencies());
    Ok(Some(pairs.map(|(plain, scaled)| plain / scaled).collect()))
}
