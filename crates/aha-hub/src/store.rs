//! The models on this disk: the store's own, and those in the hubs' caches.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::caches::{self, CachedModel};
use crate::complete::looks_complete;
use crate::config::HubConfig;
use crate::lock::{ModelLock, holder};
use crate::manifest::{Manifest, RECORDS, is_absent};
use crate::{HubError, ModelId, Source};

/// Models by id: `<root>/<owner>/<name>/`, with records in `.aha` folders beside them.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    huggingface_cache: Option<PathBuf>,
    modelscope_cache: Option<PathBuf>,
}

/// Where a model was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// In the store.
    Store,
    /// In Hugging Face's cache.
    #[serde(rename = "huggingface_cache")]
    HuggingFaceCache,
    /// In ModelScope's cache.
    #[serde(rename = "modelscope_cache")]
    ModelScopeCache,
}

/// A model on this disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LocalModel {
    /// The model.
    pub id: ModelId,
    /// Its directory.
    pub dir: PathBuf,
    /// Where it was found.
    pub origin: Origin,
    /// Whether it can be loaded; `false` for a download that has not ended.
    pub complete: bool,
    /// Bytes on this disk, partial files included.
    pub size: u64,
    /// The hub it came from, where that is recorded.
    pub source: Option<Source>,
    /// The commit, else the branch, where that is recorded.
    pub revision: Option<String>,
}

impl Store {
    /// The store at `explicit`, else at `AHA_HOME`, else at `~/.aha`. Creates nothing.
    ///
    /// # Errors
    /// [`HubError::NoHome`] when none of them is known; [`HubError::Io`] when the working
    /// directory, which a relative path starts from, is gone.
    pub fn open(explicit: Option<&Path>, config: &HubConfig) -> Result<Self, HubError> {
        let root = explicit
            .or(config.store_root.as_deref())
            .ok_or(HubError::NoHome)?;
        let root = std::path::absolute(root).map_err(|error| HubError::io("find", root, error))?;
        Ok(Self {
            root,
            huggingface_cache: config.huggingface_cache.clone(),
            modelscope_cache: config.modelscope_cache.clone(),
        })
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where voices for speech are kept, beside the models.
    pub fn voices(&self) -> PathBuf {
        self.root.join(".voices")
    }

    /// Where the store keeps `id`, whether it is there or not.
    pub fn model_dir(&self, id: &ModelId) -> PathBuf {
        self.root.join(id.owner()).join(id.name())
    }

    /// The directory to load `id` from: in the store, else in Hugging Face's cache, else in
    /// ModelScope's. An incomplete download is not located, nor is a directory that lacks what
    /// loading needs: a GGUF file, or config.json, all safetensors and a tokenizer.
    pub fn locate(&self, id: &ModelId) -> Option<PathBuf> {
        let own = self.model_dir(id);
        if is_loadable(&own) {
            return Some(own);
        }
        self.find_cached(id).map(|cached| cached.dir)
    }

    fn find_cached(&self, id: &ModelId) -> Option<CachedModel> {
        let huggingface = || caches::huggingface_model(self.huggingface_cache.as_deref()?, id);
        let modelscope = || caches::modelscope_model(self.modelscope_cache.as_deref()?, id);
        huggingface().or_else(modelscope)
    }

    /// All models of the store, unfinished downloads included, and the complete ones of the
    /// hubs' caches, sorted by id. A model found twice is listed twice, the store's first.
    ///
    /// # Errors
    /// [`HubError::Io`] for a store that exists but cannot be read.
    pub fn local_models(&self) -> Result<Vec<LocalModel>, HubError> {
        let mut models = Vec::new();
        for owner in directories(&self.root)? {
            for dir in directories(&owner)? {
                let parts = (owner.file_name().and_then(|n| n.to_str()), file_name(&dir));
                let (Some(owner), Some(name)) = parts else {
                    continue;
                };
                let Ok(id) = ModelId::new(owner, name) else {
                    continue;
                };
                models.extend(own_model(id, dir)?);
            }
        }
        let mut cached = Vec::new();
        if let Some(root) = &self.huggingface_cache {
            cached.extend(caches::huggingface_models(root));
        }
        if let Some(root) = &self.modelscope_cache {
            cached.extend(caches::modelscope_models(root));
        }
        for CachedModel {
            id,
            dir,
            origin,
            revision,
        } in cached
        {
            let source = match origin {
                Origin::ModelScopeCache => Source::ModelScope,
                _ => Source::HuggingFace,
            };
            models.push(LocalModel {
                size: directory_size(&dir)?,
                id,
                dir,
                origin,
                complete: true,
                source: Some(source),
                revision,
            });
        }
        // A stable sort keeps the store before the caches.
        models.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(models)
    }

    /// Bytes that the store holds for `id`, partial files included; 0 where there is nothing.
    ///
    /// # Errors
    /// [`HubError::Io`] when a directory cannot be read.
    pub fn size_on_disk(&self, id: &ModelId) -> Result<u64, HubError> {
        directory_size(&self.model_dir(id))
    }

    /// Deletes `id` from the store, an unfinished download included, and returns the bytes
    /// freed. Never touches the hubs' caches or anything outside the store.
    ///
    /// # Errors
    /// [`HubError::NotInStore`], [`HubError::Busy`] during a download,
    /// [`HubError::OutsideStore`] when a link leads out of the store, [`HubError::Io`].
    pub fn delete(&self, id: &ModelId) -> Result<u64, HubError> {
        let dir = self.model_dir(id);
        match fs::symlink_metadata(&dir) {
            Ok(_) => {}
            Err(error) if is_absent(&error) => return Err(self.not_in_store(id)),
            Err(error) => return Err(HubError::io("read", &dir, error)),
        }
        self.check_inside(&dir)?;
        let Some(_lock) = ModelLock::try_acquire(&self.root, id)? else {
            let holder = holder(&self.root, id);
            return Err(HubError::Busy {
                id: id.clone(),
                holder: holder.map_or_else(String::new, |pid| format!(" (pid {pid})")),
            });
        };
        let freed = directory_size(&dir)?;
        // Renamed first: a deletion that is cut short must not leave half a model to be found.
        let trash = self.root.join(RECORDS).join("trash");
        fs::create_dir_all(&trash).map_err(|error| HubError::io("create", &trash, error))?;
        let doomed = trash.join(format!(
            "{}-{}-{}",
            id.owner(),
            id.name(),
            std::process::id()
        ));
        remove_tree(&doomed)?;
        fs::rename(&dir, &doomed).map_err(|error| HubError::io("delete", &dir, error))?;
        remove_tree(&trash)?;
        if let Some(owner) = dir.parent() {
            // Fails, as it should, when the owner has other models.
            let _ = fs::remove_dir(owner);
        }
        Ok(freed)
    }

    fn not_in_store(&self, id: &ModelId) -> HubError {
        let hint = match self.find_cached(id) {
            Some(cached) => format!(
                "; it was found in {}, which belongs to another tool: delete it there",
                cached.dir.display()
            ),
            None => String::new(),
        };
        HubError::NotInStore {
            id: id.clone(),
            store: self.root.clone(),
            hint,
        }
    }

    /// Links are not followed out of the store: the real path must lie where the id says.
    fn check_inside(&self, dir: &Path) -> Result<(), HubError> {
        let real = |path: &Path| {
            fs::canonicalize(path).map_err(|error| HubError::io("resolve", path, error))
        };
        let relative = dir.strip_prefix(&self.root).unwrap_or(dir);
        if real(dir)? != real(&self.root)?.join(relative) {
            return Err(HubError::OutsideStore {
                path: dir.to_owned(),
                store: self.root.clone(),
            });
        }
        Ok(())
    }
}

/// Whether a directory of the store may be loaded: by its files, and by the manifest unless
/// somebody placed them by hand.
fn is_loadable(dir: &Path) -> bool {
    match Manifest::load(dir) {
        // A download of chosen files may have ended without all that a model needs.
        Ok(Some(manifest)) => manifest.is_intact(dir) && looks_complete(dir),
        Ok(None) => looks_complete(dir),
        Err(error) => {
            tracing::warn!(%error, "the model is not offered");
            false
        }
    }
}

fn own_model(id: ModelId, dir: PathBuf) -> Result<Option<LocalModel>, HubError> {
    let complete = is_loadable(&dir);
    if !complete && !dir.join(RECORDS).is_dir() {
        return Ok(None);
    }
    let manifest = Manifest::load(&dir).ok().flatten();
    Ok(Some(LocalModel {
        size: directory_size(&dir)?,
        id,
        dir,
        origin: Origin::Store,
        complete,
        source: manifest.as_ref().map(|manifest| manifest.source),
        revision: manifest.map(|manifest| manifest.commit.unwrap_or(manifest.revision)),
    }))
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn remove_tree(path: &Path) -> Result<(), HubError> {
    match fs::remove_dir_all(path) {
        Err(error) if !is_absent(&error) => Err(HubError::io("delete", path, error)),
        _ => Ok(()),
    }
}

/// The directories (links to directories included) in `path`, sorted; none where it is absent.
pub(crate) fn directories(path: &Path) -> Result<Vec<PathBuf>, HubError> {
    let failed = |error| HubError::io("read", path, error);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut directories = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.path().is_dir() {
            directories.push(entry.path());
        }
    }
    directories.sort();
    Ok(directories)
}

/// Bytes of all files below `path`. Links to files count with their target, as in Hugging Face's
/// cache; links to directories are not followed, so there are no loops.
pub(crate) fn directory_size(path: &Path) -> Result<u64, HubError> {
    let failed = |error| HubError::io("read", path, error);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(0),
        Err(error) => return Err(failed(error)),
    };
    let mut total = 0;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            total += directory_size(&entry.path())?;
        } else if let Ok(meta) = fs::metadata(entry.path())
            && meta.is_file()
        {
            total += meta.len();
        }
    }
    Ok(total)
}
