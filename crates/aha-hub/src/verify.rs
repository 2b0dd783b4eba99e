//! Recomputes checksums of models on this disk.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::HubError;
use crate::hubs::clean_sha256;
use crate::manifest::{Manifest, is_absent};
use crate::part::hash_file;

/// What a file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// The content is what was downloaded.
    Ok,
    /// The file is gone.
    Missing,
    /// The content differs.
    Changed,
    /// Nothing is recorded to compare with.
    Unknown,
}

/// The result for one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileCheck {
    /// Path in the model's directory, with `/` between directories.
    pub path: String,
    /// What it turned out to be.
    pub state: FileState,
    /// Whether the recorded checksum is the hub's own, not only that of what arrived.
    pub from_hub: bool,
}

/// The result for a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// One entry a file, sorted by path.
    pub files: Vec<FileCheck>,
}

impl VerifyReport {
    /// No file is missing or changed, and at least one could be compared.
    pub fn is_ok(&self) -> bool {
        let count = |state| self.files.iter().filter(|file| file.state == state).count();
        count(FileState::Missing) == 0 && count(FileState::Changed) == 0 && count(FileState::Ok) > 0
    }
}

/// Recomputes the checksums of the model in `dir`, or of that one file of a model: against the record of its download, or, in
/// Hugging Face's cache, against the names of its stored objects.
///
/// # Errors
/// [`HubError::Io`] for an unreadable file, [`HubError::BadManifest`] for a damaged record.
pub fn verify(dir: &Path) -> Result<VerifyReport, HubError> {
    if !dir.is_file() {
        return Ok(VerifyReport {
            files: check(dir, None)?,
        });
    }
    let name = entry_name(dir);
    // A bare name lies in the working directory.
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut files = check(parent.unwrap_or(Path::new(".")), Some(&name))?;
    if files.is_empty() {
        files.push(FileCheck {
            path: name,
            state: FileState::Unknown,
            from_hub: false,
        });
    }
    Ok(VerifyReport { files })
}

/// All files of a model, or the one called `only`.
fn check(dir: &Path, only: Option<&str>) -> Result<Vec<FileCheck>, HubError> {
    let wanted = |path: &str| only.is_none_or(|only| only == path);
    let mut files = match Manifest::load(dir)? {
        Some(manifest) => verify_recorded(dir, &manifest, wanted)?,
        None => verify_linked(dir, wanted)?,
    };
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn verify_recorded(
    dir: &Path,
    manifest: &Manifest,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<FileCheck>, HubError> {
    let files = manifest.files.iter();
    files
        .filter(|(path, _)| wanted(path))
        .map(|(path, record)| {
            Ok(FileCheck {
                path: path.clone(),
                state: compare(&dir.join(path), Some(&record.sha256))?,
                from_hub: record.verified,
            })
        })
        .collect()
}

/// In Hugging Face's cache a file is a link to `blobs/<checksum>`, for large files a SHA-256.
fn verify_linked(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<FileCheck>, HubError> {
    let failed = |error| HubError::io("read", dir, error);
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = entry_name(&path);
        if path.is_dir() || !wanted(&name) {
            continue;
        }
        let target = fs::read_link(&path).ok();
        let blob = target
            .as_deref()
            .and_then(|target| target.file_name()?.to_str());
        let sha256 = blob.and_then(clean_sha256);
        files.push(FileCheck {
            path: name,
            state: compare(&path, sha256.as_deref())?,
            from_hub: sha256.is_some(),
        });
    }
    Ok(files)
}

fn entry_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn compare(path: &Path, sha256: Option<&str>) -> Result<FileState, HubError> {
    let Some(expected) = sha256 else {
        return Ok(if path.exists() {
            FileState::Unknown
        } else {
            FileState::Missing
        });
    };
    match hash_file(path) {
        Ok((actual, _)) if actual == expected => Ok(FileState::Ok),
        Ok(_) => Ok(FileState::Changed),
        Err(error) if is_absent(&error) => Ok(FileState::Missing),
        Err(error) => Err(HubError::io("read", path, error)),
    }
}
