//! The families, one line each.

use crate::checkpoint::{Architecture, Checkpoint, LoadOptions};
use crate::error::LoadError;
use aha_engine::{LoadedModel, Task};
use aha_nn::weights::{Unpacked, WeightsError};
use std::path::Path;

/// A model family: how its checkpoints are recognised and loaded. Sizes are data, not families.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Short name, also the folder's.
    pub slug: &'static str,
    /// What its models are for.
    pub task: Task,
    /// `architectures` of config.json.
    pub architectures: &'static [&'static str],
    /// `model_type` of config.json, where `architectures` is missing.
    pub model_types: &'static [&'static str],
    /// `general.architecture` of GGUF files.
    pub gguf_architectures: &'static [&'static str],
    /// Loads a checkpoint of the family.
    pub load: fn(&Checkpoint, &LoadOptions) -> Result<LoadedModel, LoadError>,
}

/// Every family that this build knows.
pub static FAMILIES: &[Family] = &[
    crate::qwen3::FAMILY,
    crate::llama::FAMILY,
    crate::minicpm4::FAMILY,
    crate::lfm2::FAMILY,
    crate::qwen3_5::FAMILY,
    crate::qwen3vl::FAMILY,
    crate::qwen2_5vl::FAMILY,
    crate::lfm2vl::FAMILY,
    crate::paddleocr_vl::FAMILY,
    crate::glm_ocr::FAMILY,
    crate::hunyuan_ocr::FAMILY,
    crate::deepseek_ocr::FAMILY,
    crate::deepseek_ocr2::FAMILY,
    crate::qwen3_asr::FAMILY,
    crate::glm_asr_nano::FAMILY,
    crate::fun_asr_nano::FAMILY,
    crate::qwen3_embedding::FAMILY,
    crate::qwen3_reranker::FAMILY,
    crate::minilm::FAMILY,
    crate::rmbg2::FAMILY,
    crate::voxcpm::FAMILY,
    crate::voxcpm::FAMILY_1_5,
];

impl Family {
    /// The family of a checkpoint, by what its configuration says; where that leaves the task open, see
    /// [`crate::task`].
    pub fn of(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<&'static Self, LoadError> {
        Self::choose(checkpoint, options).map(|(family, _)| family)
    }

    fn choose(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
    ) -> Result<crate::task::Choice, LoadError> {
        let architecture = checkpoint.architecture()?;
        let candidates: Vec<&'static Self> = FAMILIES
            .iter()
            .filter(|family| family.matches(&architecture))
            .collect();
        crate::task::choose(checkpoint, options, &candidates)?.ok_or_else(|| {
            let found = match architecture {
                Architecture::Gguf(name) => name,
                Architecture::Config {
                    architectures,
                    model_type,
                } if architectures.is_empty() => model_type,
                Architecture::Config { architectures, .. } => architectures.join(", "),
            };
            let supported: Vec<&str> = FAMILIES
                .iter()
                .flat_map(|family| family.architectures.iter().copied())
                .collect();
            LoadError::UnknownArchitecture {
                path: checkpoint.path().to_owned(),
                found,
                supported: supported.join(", "),
            }
        })
    }

    fn matches(&self, architecture: &Architecture) -> bool {
        match architecture {
            Architecture::Gguf(name) => self.gguf_architectures.contains(&name.as_str()),
            Architecture::Config {
                architectures,
                model_type,
            } if architectures.is_empty() => self.model_types.contains(&model_type.as_str()),
            Architecture::Config { architectures, .. } => architectures
                .iter()
                .any(|name| self.architectures.contains(&name.as_str())),
        }
    }
}

/// Loads whatever checkpoint is at `path`.
///
/// Matrices of models that generate text may still be read from the file, and are packed by the engine
/// ([`aha_engine::TextModel::unpacked`]).
pub fn load(path: &Path, options: &LoadOptions) -> Result<LoadedModel, LoadError> {
    let checkpoint = Checkpoint::open(path)?;
    let (family, reason) = Family::choose(&checkpoint, options)?;
    if let Some(reason) = reason {
        tracing::info!("task: {}, since {reason}; --task overrides it", family.task);
    }
    tracing::debug!(family = family.slug, path = %path.display(), "checkpoint recognised");
    let unpacked = Unpacked::default();
    let options = LoadOptions {
        unpacked: Some(unpacked.clone()),
        ..options.clone()
    };
    let mut loaded = (family.load)(&checkpoint, &options)?;
    match &mut loaded {
        LoadedModel::Text(model) => model.unpacked = unpacked,
        _ => unpacked.pack_all().map_err(WeightsError::from)?,
    }
    Ok(loaded)
}
