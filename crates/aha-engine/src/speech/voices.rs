//! Voices on this disk: references by name, encoded once.

use super::reference::ReferenceError;
use super::{SpeechEngine, Voice};
use aha_media::audio::DecodeOptions;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

const RECORD: &str = "voice.json";
const AUDIO: &str = "reference.audio";
const LATENTS: &str = "latents";
/// Most voices of a store.
const MOST_VOICES: usize = 1000;
const LONGEST_NAME: usize = 64;
/// The name of no voice in particular.
pub const DEFAULT_VOICE: &str = "default";

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum VoiceError {
    /// No name for a voice.
    #[error(
        "`{name}` cannot be a voice's name: use up to 64 letters, digits, `-` and `_`, but not `default`"
    )]
    Name {
        /// What was given, shortened.
        name: String,
    },
    /// There is none of that name.
    #[error("there is no voice `{name}`; voices are: {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Names that there are.
        known: String,
    },
    /// There is one already.
    #[error("there is a voice `{name}` already: delete it first, or take another name")]
    Exists {
        /// The name.
        name: String,
    },
    /// The store is full.
    #[error("the store holds {MOST_VOICES} voices, which are the most: delete one first")]
    Full,
    /// The reference is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The disk did not do what was asked.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// What is known of a voice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoiceRecord {
    /// Its name.
    pub name: String,
    /// What the reference says.
    pub text: String,
    /// Seconds since 1970 at which it was stored.
    pub created: u64,
}

/// A folder of voices, each in one of its own: the record, the reference as it came, and its latents by model.
#[derive(Debug, Clone)]
pub struct VoiceStore {
    root: PathBuf,
}

impl VoiceStore {
    /// The store at `root`, which is made when the first voice is.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// All voices by name.
    ///
    /// # Errors
    /// When the folder is there but cannot be read. Folders that hold no voice are left out.
    pub fn list(&self) -> Result<Vec<VoiceRecord>, VoiceError> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", &self.root, error)),
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry
                .map_err(|error| failed("read", &self.root, error))?
                .path();
            let named = path.file_name().and_then(|name| name.to_str());
            if let Some(record) = read_record(&path)
                && named == Some(record.name.as_str())
            {
                records.push(record);
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    /// Stores a reference by name and encodes it; whatever the model refuses is not stored.
    ///
    /// # Errors
    /// [`VoiceError::Name`], [`VoiceError::Exists`], [`VoiceError::Full`], those of [`SpeechEngine::reference`], and
    /// of the disk.
    pub fn add(
        &self,
        name: &str,
        text: &str,
        audio: &[u8],
        engine: &SpeechEngine,
        options: &DecodeOptions,
    ) -> Result<VoiceRecord, VoiceError> {
        let folder = self.folder(name)?;
        let exists = || VoiceError::Exists {
            name: name.to_owned(),
        };
        if folder.exists() {
            return Err(exists());
        }
        if self.list()?.len() >= MOST_VOICES {
            return Err(VoiceError::Full);
        }
        let voice = engine.reference(text, audio, options)?;
        let record = VoiceRecord {
            name: name.to_owned(),
            text: text.to_owned(),
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
        };
        // Made elsewhere and moved: a voice is there as a whole or not at all.
        static UNIQUE: AtomicU64 = AtomicU64::new(0);
        let unique = UNIQUE.fetch_add(1, Ordering::Relaxed);
        let making = self.root.join(format!(".{}-{unique}", std::process::id()));
        let made = self.write(&making, &record, audio, engine, &voice);
        let moved = made.and_then(|()| {
            std::fs::rename(&making, &folder).map_err(|error| match folder.exists() {
                true => exists(),
                false => failed("make", &folder, error),
            })
        });
        if moved.is_err() {
            // What is left over has no record's name and is in nobody's way.
            let _ = std::fs::remove_dir_all(&making);
        }
        moved.map(|()| record)
    }

    fn write(
        &self,
        folder: &Path,
        record: &VoiceRecord,
        audio: &[u8],
        engine: &SpeechEngine,
        voice: &Voice,
    ) -> Result<(), VoiceError> {
        std::fs::create_dir_all(folder).map_err(|error| failed("make", folder, error))?;
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|error| failed("write", &path, error))
        };
        let json = serde_json::to_vec_pretty(record)
            .map_err(|error| failed("write", folder, error.into()))?;
        write(RECORD, &json)?;
        write(AUDIO, audio)?;
        write_latents(&latents_path(folder, engine), &voice.latents)
    }

    /// The voice of that name for a model. The first time that a model asks for it, it is encoded.
    ///
    /// # Errors
    /// [`VoiceError::Name`], [`VoiceError::Unknown`], and of the disk.
    pub fn load(
        &self,
        name: &str,
        engine: &SpeechEngine,
        options: &DecodeOptions,
    ) -> Result<Voice, VoiceError> {
        let folder = self.folder(name)?;
        let Some(record) = read_record(&folder) else {
            return Err(self.unknown(name));
        };
        let path = latents_path(&folder, engine);
        if let Some(latents) = read_latents(&path, engine) {
            return Ok(Voice {
                text: record.text,
                latents,
            });
        }
        let audio = folder.join(AUDIO);
        let audio = std::fs::read(&audio).map_err(|error| failed("read", &audio, error))?;
        let voice = engine.reference(&record.text, &audio, options)?;
        if let Err(error) = write_latents(&path, &voice.latents) {
            // It is encoded again the next time.
            tracing::warn!(%error, "a voice's latents were not kept");
        }
        Ok(voice)
    }

    /// Forgets a voice.
    ///
    /// # Errors
    /// [`VoiceError::Name`], [`VoiceError::Unknown`], and of the disk.
    pub fn remove(&self, name: &str) -> Result<(), VoiceError> {
        let folder = self.folder(name)?;
        if read_record(&folder).is_none() {
            return Err(self.unknown(name));
        }
        std::fs::remove_dir_all(&folder).map_err(|error| failed("delete", &folder, error))
    }

    fn unknown(&self, name: &str) -> VoiceError {
        let known = self.list().unwrap_or_default();
        let names = known.iter().map(|record| record.name.as_str());
        let names: Vec<&str> = std::iter::once(DEFAULT_VOICE)
            .chain(names)
            .take(20)
            .collect();
        VoiceError::Unknown {
            name: name.to_owned(),
            known: names.join(", "),
        }
    }

    /// Names come from requests: nothing but letters, digits, `-` and `_` gets near a path.
    fn folder(&self, name: &str) -> Result<PathBuf, VoiceError> {
        let plain = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        if !plain || name.is_empty() || name.len() > LONGEST_NAME || name == DEFAULT_VOICE {
            return Err(VoiceError::Name {
                name: name.chars().take(LONGEST_NAME).collect(),
            });
        }
        Ok(self.root.join(name))
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> VoiceError {
    VoiceError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn read_record(folder: &Path) -> Option<VoiceRecord> {
    serde_json::from_slice(&std::fs::read(folder.join(RECORD)).ok()?).ok()
}

fn latents_path(folder: &Path, engine: &SpeechEngine) -> PathBuf {
    folder.join(format!("{LATENTS}-{}.safetensors", engine.fingerprint()))
}

fn write_latents(path: &Path, latents: &Tensor) -> Result<(), VoiceError> {
    let save = || {
        let latents = latents
            .to_dtype(DType::F32)?
            .to_device(&candle_core::Device::Cpu)?;
        candle_core::safetensors::save(&HashMap::from([(LATENTS, latents)]), path)
    };
    save().map_err(|error| failed("write", path, io::Error::other(error)))
}

/// Latents as an earlier request left them; `None` for whatever reason they cannot be used.
fn read_latents(path: &Path, engine: &SpeechEngine) -> Option<Tensor> {
    if !path.is_file() {
        return None;
    }
    let device = engine.device();
    let read = candle_core::safetensors::load(path, device).ok()?;
    let latents = read.get(LATENTS)?;
    engine.check_latents(latents).ok()?;
    Some(latents.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        let store = VoiceStore::new("/voices");
        assert_eq!(
            store.folder("Anna_2-b").unwrap(),
            Path::new("/voices/Anna_2-b")
        );
        let long = "x".repeat(65);
        for name in [
            "", "default", "..", "a/b", "a\\b", ".hidden", "é", "a b", "a\0", &long,
        ] {
            assert!(
                matches!(store.folder(name), Err(VoiceError::Name { .. })),
                "{name:?}"
            );
        }
    }
}
