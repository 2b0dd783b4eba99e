//! What the library's face can fail with.

use aha_engine::{EngineError, RecordingError, ReferenceError, Task};
use aha_hub::HubError;
use aha_media::MediaError;
use aha_media::audio::AudioError;
use aha_models::LoadError;
use std::path::{Path, PathBuf};
use thiserror::Error as ThisError;

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be found, loaded or asked.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// A recording has no transcript: it cannot be heard, or the engine refused or failed.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The path that was given leads nowhere.
    #[error("cannot find the model: {}: there is no such file or folder", .path.display())]
    NoSuchPath {
        /// The path as given.
        path: PathBuf,
    },
    /// The name is neither a path nor a model that is known.
    #[error(
        "cannot find the model: {name}: it is no path, no hub id (owner/name) and no alias of \
         `aha list`{hint}"
    )]
    UnknownModel {
        /// The name as given.
        name: String,
        /// Names that come near, or nothing.
        hint: String,
    },
    /// The model is known, but its files are not here, or not all of them.
    #[error(
        "cannot find the model: {id}: {}; get it with `aha download -m {id}`, or give the path of \
         its files",
        what_is_here(.partial.as_deref())
    )]
    NotOnDisk {
        /// The hub id.
        id: String,
        /// The folder that holds a part of it.
        partial: Option<PathBuf>,
    },
    /// The build lacks what the device needs.
    #[error(
        "cannot use the device: {device}: this build has no support for it; build with \
         `--features {feature}`"
    )]
    DeviceNotBuilt {
        /// The device asked for.
        device: String,
        /// The Cargo feature that brings it.
        feature: &'static str,
    },
    /// The machine lacks the device, or its driver refused.
    #[error("cannot use the device: {device}: {source}; `--device cpu` works everywhere")]
    Device {
        /// The device asked for.
        device: String,
        /// The driver's words.
        source: candle_core::Error,
    },
    /// The model is for something else.
    #[error("{model} is a model for the task `{found}`, not for `{wanted}`")]
    Task {
        /// What the model is called.
        model: String,
        /// What it is for.
        found: Task,
        /// What was asked of it.
        wanted: Task,
    },
    /// The checkpoint does not load.
    #[error("cannot load the model: {0}")]
    Load(Box<LoadError>),
    /// A picture, clip or recording could not be read.
    #[error(transparent)]
    Media(Box<MediaError>),
    /// The engine refused the request or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A recording could not be read, or sound could not be written in the form asked for.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// The store of models could not be read.
    #[error(transparent)]
    Hub(Box<HubError>),
}

impl From<ReferenceError> for Error {
    fn from(error: ReferenceError) -> Self {
        match error {
            ReferenceError::Audio(error) => error.into(),
            ReferenceError::Engine(error) => error.into(),
        }
    }
}

fn what_is_here(partial: Option<&Path>) -> String {
    partial.map_or_else(
        || "it is not on this disk".to_owned(),
        |folder| {
            format!(
                "{} is not complete: it needs config.json, all its safetensors and a tokenizer, or \
                 a .gguf file",
                folder.display()
            )
        },
    )
}

// Boxed: with all that they tell, they would make every result of this crate large.
impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        Self::Load(Box::new(error))
    }
}

impl From<MediaError> for Error {
    fn from(error: MediaError) -> Self {
        Self::Media(Box::new(error))
    }
}

impl From<HubError> for Error {
    fn from(error: HubError) -> Self {
        Self::Hub(Box::new(error))
    }
}
