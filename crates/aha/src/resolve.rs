//! From what a user calls a model to the files of it: path, store, table, in this order.

use crate::error::{Error, Result};
use aha_hub::{HubConfig, ModelId, Store};
use aha_models::releases::{self, RELEASES, Release};
use std::path::{Path, PathBuf};

/// A model that was found on this disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// What answers call the model.
    pub name: String,
    /// A checkpoint's folder or a GGUF file.
    pub path: PathBuf,
    /// The release, where the name is a known one.
    pub release: Option<&'static Release>,
}

/// Finds the model that `name` means: a path, a hub id or alias in the store or in a hub's cache.
///
/// # Errors
/// [`Error::NoSuchPath`], [`Error::NotOnDisk`] and [`Error::UnknownModel`], each saying what to do;
/// [`Error::Hub`] when the environment's settings cannot be used.
pub fn resolve(name: &str) -> Result<Checkpoint> {
    // Paths work without a home, too.
    match by_path(name)? {
        Some(checkpoint) => Ok(checkpoint),
        None => by_name(&Store::open(None, &HubConfig::from_env()?)?, name),
    }
}

/// The same with a store that is not in the usual place.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_in(store: &Store, name: &str) -> Result<Checkpoint> {
    match by_path(name)? {
        Some(checkpoint) => Ok(checkpoint),
        None => by_name(store, name),
    }
}

fn by_path(name: &str) -> Result<Option<Checkpoint>> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(Some(at_path(path)));
    }
    if looks_like_path(name) {
        return Err(Error::NoSuchPath {
            path: path.to_owned(),
        });
    }
    Ok(None)
}

/// The checkpoint at a path, called by the last part of it.
pub(crate) fn at_path(path: &Path) -> Checkpoint {
    // `.` and `..` have no name of their own.
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_gguf = full
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    let name = if is_gguf {
        full.file_stem()
    } else {
        full.file_name()
    };
    let name = name
        .unwrap_or(full.as_os_str())
        .to_string_lossy()
        .into_owned();
    Checkpoint {
        name,
        path: path.to_owned(),
        release: None,
    }
}

fn by_name(store: &Store, name: &str) -> Result<Checkpoint> {
    let release = releases::find(name);
    let ids = release.map_or_else(
        || vec![name],
        |release| vec![release.id, release.modelscope],
    );
    let ids: Vec<ModelId> = ids.iter().filter_map(|id| id.parse().ok()).collect();
    for id in &ids {
        if let Some(path) = store.locate(id) {
            let name = release.map_or(name, |release| release.id).to_owned();
            return Ok(Checkpoint {
                name,
                path,
                release,
            });
        }
    }
    let Some(id) = ids.first() else {
        return Err(Error::UnknownModel {
            name: name.to_owned(),
            hint: hint(name),
        });
    };
    let mut folders = ids.iter().map(|id| store.model_dir(id));
    Err(Error::NotOnDisk {
        id: id.to_string(),
        partial: folders.find(|folder| folder.is_dir()),
    })
}

/// Whether a user who writes this means a file, though it is not there.
fn looks_like_path(name: &str) -> bool {
    name.is_empty()
        || name.starts_with(['.', '/', '~'])
        || name.contains('\\')
        || name.to_ascii_lowercase().ends_with(".gguf")
        || name.matches('/').count() > 1
}

/// The aliases that share the longest beginning with a name that is none.
fn hint(name: &str) -> String {
    let name = name.to_lowercase();
    let shared = |alias: &str| {
        alias
            .bytes()
            .zip(name.bytes())
            .take_while(|(a, b)| a == b)
            .count()
    };
    let aliases = || RELEASES.iter().map(|release| release.alias);
    let most = aliases().map(shared).max().unwrap_or(0).max(4);
    let near: Vec<&str> = aliases().filter(|alias| shared(alias) >= most).collect();
    if near.is_empty() {
        String::new()
    } else {
        format!("; near it are {}", near.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn store(root: &Path) -> Store {
        let config = HubConfig::from_lookup(|_| None).unwrap();
        Store::open(Some(root), &config).unwrap()
    }

    fn place(root: &Path, id: &str) -> PathBuf {
        let fixture = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/llama/smol"
        );
        let folder = root.join(id);
        fs::create_dir_all(&folder).unwrap();
        for entry in fs::read_dir(fixture).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        folder
    }

    #[test]
    fn a_path_is_taken_as_it_is_and_named_by_its_end() {
        let root = tempfile::tempdir().unwrap();
        let folder = place(root.path(), "some/model");
        let found = resolve(folder.to_str().unwrap()).unwrap();
        assert_eq!((found.name.as_str(), &found.path), ("model", &folder));
        let file = folder.join("Some-Model.Q8_0.gguf");
        fs::write(&file, "").unwrap();
        assert_eq!(
            resolve(file.to_str().unwrap()).unwrap().name,
            "Some-Model.Q8_0"
        );
    }

    #[test]
    fn the_store_is_searched_by_id_and_alias() {
        let root = tempfile::tempdir().unwrap();
        let folder = place(root.path(), "HuggingFaceTB/SmolLM2-135M-Instruct");
        let own = place(root.path(), "me/tuned");
        let store = store(root.path());
        for name in [
            "smollm2-135m",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "SmolLM2-135M",
        ] {
            let found = by_name(&store, name).unwrap();
            assert_eq!(found.path, folder);
            assert_eq!(found.name, "HuggingFaceTB/SmolLM2-135M-Instruct");
        }
        let found = by_name(&store, "me/tuned").unwrap();
        assert_eq!(
            (found.name.as_str(), found.path, found.release),
            ("me/tuned", own, None)
        );
    }

    #[test]
    fn what_is_not_found_says_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let message = |name: &str| by_name(&store, name).unwrap_err().to_string();
        assert!(message("qwen3-0.6b").contains("aha download -m Qwen/Qwen3-0.6B"));
        assert!(message("me/other").contains("aha download -m me/other"));
        let unknown = message("qwen3-0.7b");
        assert!(
            unknown.contains("aha list") && unknown.contains("qwen3-0.6b"),
            "{unknown}"
        );
        assert!(!unknown.contains("qwen3-8b"), "{unknown}");
        assert!(!message("gpt").contains("near"));
    }

    #[test]
    fn a_part_of_a_model_is_told_from_nothing() {
        let root = tempfile::tempdir().unwrap();
        let folder = place(root.path(), "me/tuned");
        fs::remove_file(folder.join("tokenizer.json")).unwrap();
        let error = by_name(&store(root.path()), "me/tuned").unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains(&format!("{} is not complete", folder.display()))
                && message.contains("aha download -m me/tuned"),
            "{message}"
        );
    }

    #[test]
    fn what_looks_like_a_path_is_not_looked_up() {
        for name in [
            "./here",
            "/there",
            "model.gguf",
            "a/b/c",
            "C:\\models\\one",
            "",
        ] {
            assert!(
                matches!(resolve(name), Err(Error::NoSuchPath { .. })),
                "{name}"
            );
        }
    }
}
