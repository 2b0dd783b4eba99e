//! The record of a downloaded model, kept beside its files in `.aha/manifest.json`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{HubError, ModelId, Revision, Source};

/// The directory inside a model's directory (and the store's root) that holds records.
pub(crate) const RECORDS: &str = ".aha";

const MANIFEST: &str = "manifest.json";
const VERSION: u32 = 1;

/// What was downloaded, from where, with which checksums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// The model.
    pub id: ModelId,
    /// The hub that served it.
    pub source: Source,
    /// Its id on that hub.
    pub repo: ModelId,
    /// The branch, tag or commit that was asked for.
    pub revision: String,
    /// The commit, where the hub names it.
    pub commit: Option<String>,
    /// Whether a download came to its end; without that the model is never offered for loading.
    pub complete: bool,
    /// The finished files by their path, with `/` between directories.
    pub files: BTreeMap<String, FileRecord>,
}

/// One finished file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Bytes.
    pub size: u64,
    /// Of the content as it arrived, lower-case hexadecimal.
    pub sha256: String,
    /// Whether the hub gave the same checksum.
    pub verified: bool,
    /// The hub that served this file.
    pub source: Source,
    /// The hub's name for the content (a git object id), where it has one.
    pub object_id: Option<String>,
}

impl Manifest {
    pub(crate) fn new(id: &ModelId, source: Source, repo: &ModelId, revision: &str) -> Self {
        Self {
            version: VERSION,
            id: id.clone(),
            source,
            repo: repo.clone(),
            revision: revision.to_owned(),
            commit: None,
            complete: false,
            files: BTreeMap::new(),
        }
    }

    /// Reads the manifest of a model's directory; `None` where there is none.
    ///
    /// # Errors
    /// [`HubError::BadManifest`] for a damaged file, [`HubError::Io`] for an unreadable one.
    pub fn load(model_dir: &Path) -> Result<Option<Self>, HubError> {
        let path = manifest_path(model_dir);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(HubError::io("read", &path, error)),
        };
        let bad = |reason: String| HubError::BadManifest {
            path: path.clone(),
            reason,
        };
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if manifest.version != VERSION {
            return Err(bad(format!("its version is {}", manifest.version)));
        }
        if let Some(path) = manifest
            .files
            .keys()
            .find(|path| !crate::hubs::is_safe_path(path))
        {
            return Err(bad(format!("it names the unsafe path {path:?}")));
        }
        Ok(Some(manifest))
    }

    /// Whether this is the record of `revision`; of the default one, every record is.
    pub fn is_of(&self, revision: &Revision) -> bool {
        match revision {
            Revision::Default => true,
            Revision::Named(name) => {
                self.revision == *name || self.commit.as_ref().is_some_and(|at| at == name)
            }
        }
    }

    /// Replaces the manifest in one step.
    pub(crate) fn save(&self, model_dir: &Path) -> Result<(), HubError> {
        write_json(&manifest_path(model_dir), self)
    }

    /// Whether the download ended and every file is still there with its size.
    pub(crate) fn is_intact(&self, model_dir: &Path) -> bool {
        self.complete
            && self.files.iter().all(|(path, record)| {
                fs::metadata(model_dir.join(path))
                    .is_ok_and(|meta| meta.is_file() && meta.len() == record.size)
            })
    }
}

/// No such file, or a parent that is no directory.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn manifest_path(model_dir: &Path) -> PathBuf {
    model_dir.join(RECORDS).join(MANIFEST)
}

/// Writes a file so that a reader or a crash sees the old content or the new one.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), HubError> {
    let failed = |error: io::Error| HubError::io("write", path, error);
    let text = serde_json::to_vec_pretty(value).map_err(|error| failed(error.into()))?;
    create_parent(path)?;
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(failed)?;
    sync_parent(path);
    Ok(())
}

pub(crate) fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|error| HubError::io("create", parent, error))
}

/// Makes a rename last through a power cut, where the system can.
pub(crate) fn sync_parent(path: &Path) {
    if let Some(directory) = path.parent().and_then(|parent| File::open(parent).ok()) {
        // Some file systems do not sync directories; the content itself is synced already.
        if let Err(error) = directory.sync_all() {
            tracing::debug!(path = %path.display(), %error, "the directory was not synced");
        }
    }
}
