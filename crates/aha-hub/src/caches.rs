//! Reads the caches of Hugging Face's and ModelScope's own tools, without changing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::ModelId;
use crate::complete::looks_complete;
use crate::store::{Origin, directories};

/// A whole model in another tool's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CachedModel {
    pub(crate) id: ModelId,
    pub(crate) dir: PathBuf,
    pub(crate) origin: Origin,
    pub(crate) revision: Option<String>,
}

/// `models--<owner>--<name>/snapshots/<commit>`: the commit of `refs/main`, else the newest whole
/// one.
pub(crate) fn huggingface_model(cache: &Path, id: &ModelId) -> Option<CachedModel> {
    let repo = cache.join(format!("models--{}--{}", id.owner(), id.name()));
    let snapshots = repo.join("snapshots");
    let main = fs::read_to_string(repo.join("refs").join("main")).ok();
    let mut candidates = directories(&snapshots).ok()?;
    candidates.sort_by_key(|dir| {
        let is_main = main.as_deref().map(str::trim) == dir.file_name().and_then(|n| n.to_str());
        let modified = fs::metadata(dir).and_then(|meta| meta.modified());
        (is_main, modified.unwrap_or(SystemTime::UNIX_EPOCH))
    });
    let dir = candidates
        .into_iter()
        .rev()
        .find(|dir| looks_complete(dir))?;
    Some(CachedModel {
        id: id.clone(),
        revision: Some(dir.file_name()?.to_str()?.to_owned()),
        dir,
        origin: Origin::HuggingFaceCache,
    })
}

/// All whole models of Hugging Face's cache.
pub(crate) fn huggingface_models(cache: &Path) -> Vec<CachedModel> {
    let ids = readable(cache).into_iter().filter_map(|dir| {
        let name = dir.file_name()?.to_str()?.strip_prefix("models--")?;
        // An owner holds no "--", a name may.
        let (owner, name) = name.split_once("--")?;
        ModelId::new(owner, name).ok()
    });
    ids.filter_map(|id| huggingface_model(cache, &id)).collect()
}

/// ModelScope's layouts over the years, below the cache's directory.
const MODELSCOPE_LAYOUTS: &[&str] = &["models", "", "hub/models", "hub"];

/// ModelScope writes a dot of a name as three underscores.
fn modelscope_name(name: &str) -> String {
    name.replace('.', "___")
}

/// `models/<owner>/<name>` and its older forms.
pub(crate) fn modelscope_model(cache: &Path, id: &ModelId) -> Option<CachedModel> {
    MODELSCOPE_LAYOUTS.iter().find_map(|layout| {
        let owner = cache.join(layout).join(id.owner());
        [id.name().to_owned(), modelscope_name(id.name())]
            .iter()
            .map(|name| owner.join(name))
            .find(|dir| looks_complete(dir))
            .map(|dir| CachedModel {
                id: id.clone(),
                dir,
                origin: Origin::ModelScopeCache,
                revision: None,
            })
    })
}

/// All whole models of ModelScope's cache.
pub(crate) fn modelscope_models(cache: &Path) -> Vec<CachedModel> {
    let mut ids = Vec::new();
    for layout in MODELSCOPE_LAYOUTS {
        for owner in readable(&cache.join(layout)) {
            for dir in readable(&owner) {
                let text = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
                let id = text(&owner)
                    .zip(text(&dir))
                    .and_then(|(owner, name)| ModelId::new(&owner, &name.replace("___", ".")).ok());
                ids.extend(id);
            }
        }
    }
    ids.sort();
    ids.dedup();
    ids.iter()
        .filter_map(|id| modelscope_model(cache, id))
        .collect()
}

/// Another tool's cache that cannot be read holds nothing for us.
fn readable(dir: &Path) -> Vec<PathBuf> {
    directories(dir).unwrap_or_else(|error| {
        tracing::debug!(%error, "the cache is left out");
        Vec::new()
    })
}
