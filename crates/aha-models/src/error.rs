//! Why a checkpoint does not load.

use aha_engine::{EngineError, ProcessorError, Task};
use aha_nn::rope::RopeConfigError;
use aha_nn::weights::WeightsError;
use std::path::PathBuf;
use thiserror::Error;

/// Everything that can go wrong between a path and a loaded model.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Nothing there, or nothing that is a checkpoint.
    #[error("no checkpoint at {path}: {reason}")]
    NotACheckpoint {
        /// What was given.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A JSON file is malformed or lacks a key.
    #[error("{path}: `{field}`: {reason}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Path of the key inside it.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// A value that no model can have.
    #[error("the checkpoint's configuration is not usable: `{key}`: {reason}")]
    Config {
        /// Key of config.json or of the GGUF.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The architecture is none of ours.
    #[error(
        "{path} holds `{found}`, which is not a supported architecture; supported: {supported}"
    )]
    UnknownArchitecture {
        /// The checkpoint.
        path: PathBuf,
        /// What its configuration says.
        found: String,
        /// All that the registry knows.
        supported: String,
    },
    /// The architecture has no model of that task.
    #[error(
        "{path} cannot be loaded for the task `{task}` (taken since {reason}): for its architecture there is {possible}; choose with --task"
    )]
    Task {
        /// The checkpoint.
        path: PathBuf,
        /// The task.
        task: Task,
        /// What speaks for it.
        reason: String,
        /// Tasks that families of the architecture have.
        possible: String,
    },
    /// The weight files are at fault.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The weights cannot be quantised as asked.
    #[error("cannot quantise {path}: {reason}")]
    Quantize {
        /// The checkpoint.
        path: PathBuf,
        /// What speaks against it, and what to do.
        reason: String,
    },
    /// No GGUF file can hold the model.
    #[error("cannot write {path} as GGUF: {reason}")]
    Export {
        /// The checkpoint.
        path: PathBuf,
        /// What the format lacks.
        reason: String,
    },
    /// Tokenizer or chat template are at fault.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// The rope settings are incomplete.
    #[error(transparent)]
    Rope(#[from] RopeConfigError),
    /// The engine could not be set up around the model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A tensor operation failed while loading.
    #[error("loading failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl LoadError {
    /// A value of the configuration that cannot be used.
    pub fn config(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config {
            key: key.into(),
            reason: reason.into(),
        }
    }
}
