//! The tensors of a checkpoint, whatever its format: names, types, shapes and where the bytes lie.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Location, Result, WeightsError};
use super::gguf::GgufFile;
use super::mapped::MappedFile;
use super::pickle;
use super::safetensors;
use super::stored::StoredType;
use super::tensor::{LoadedTensor, StoredTensor};

/// Every tensor of a checkpoint by its name in the file.
#[derive(Debug, Clone)]
pub struct Catalog {
    path: PathBuf,
    files: Vec<Arc<MappedFile>>,
    entries: BTreeMap<String, Entry>,
    total_bytes: u64,
    drops_unit_dimensions: bool,
}

/// Where one tensor lies.
#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    stored: StoredType,
    shape: Vec<usize>,
    range: Range<usize>,
    /// Elements between neighbours by dimension, where the rows do not lie one after the other.
    strides: Option<Arc<[usize]>>,
}

impl Catalog {
    /// An empty catalog of the checkpoint at `path` (a file or a folder, named in errors).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            files: Vec::new(),
            entries: BTreeMap::new(),
            total_bytes: 0,
            drops_unit_dimensions: false,
        }
    }

    /// Opens a checkpoint: a `.safetensors`, `.gguf` or PyTorch file (`.pt`, `.pth`, `.bin`), an index of shards, or a
    /// folder. In a folder, `model.safetensors` comes first, then an index, `pytorch_model.bin` and `model.pt`, then the
    /// only safetensors or GGUF file.
    ///
    /// # Errors
    /// [`WeightsError::NotFound`] when the path holds no such file, or several and nothing that tells which;
    /// otherwise the faults of the file.
    pub fn open(path: &Path) -> Result<Self> {
        let mut catalog = match locate(path)? {
            CheckpointFile::Safetensors(file) => safetensors::open(&file)?,
            CheckpointFile::Index(file) => safetensors::open_sharded(&file)?,
            CheckpointFile::Gguf(file) => GgufFile::open(&file)?.into_catalog(),
            CheckpointFile::Pickle(file) => pickle::open(&file)?,
        };
        catalog.path = path.to_owned();
        Ok(catalog)
    }

    /// Declares that the format leaves out dimensions of 1, so that shapes are compared without them.
    #[must_use]
    pub fn with_unit_dimensions_dropped(mut self) -> Self {
        self.drops_unit_dimensions = true;
        self
    }

    /// Adds a file; the result is its number for [`Catalog::insert`].
    pub fn add_file(&mut self, file: Arc<MappedFile>) -> usize {
        self.files.push(file);
        self.files.len() - 1
    }

    /// Adds a tensor whose bytes are `range` of file number `file`.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`] when the name is taken, the range is not inside the file, or its length
    /// is not that of `shape` in `stored`.
    pub fn insert(
        &mut self,
        name: &str,
        file: usize,
        stored: StoredType,
        shape: Vec<usize>,
        range: Range<usize>,
    ) -> Result<()> {
        self.insert_entry(
            name,
            Entry {
                file,
                stored,
                shape,
                range,
                strides: None,
            },
        )
    }

    /// Adds a tensor that is a view of `range` with `strides` (elements between neighbours, by dimension).
    ///
    /// # Errors
    /// As [`Catalog::insert`]; and when the view does not end where the range does.
    pub(super) fn insert_strided(
        &mut self,
        name: &str,
        file: usize,
        stored: StoredType,
        shape: Vec<usize>,
        strides: Vec<usize>,
        range: Range<usize>,
    ) -> Result<()> {
        let strides = (!is_row_major(&shape, &strides)).then(|| strides.into());
        self.insert_entry(
            name,
            Entry {
                file,
                stored,
                shape,
                range,
                strides,
            },
        )
    }

    fn insert_entry(&mut self, name: &str, entry: Entry) -> Result<()> {
        let Entry {
            stored,
            ref shape,
            ref range,
            ref strides,
            ..
        } = entry;
        let Some(mapped) = self.files.get(entry.file) else {
            return Err(WeightsError::malformed(
                &self.path,
                Location::tensor(name),
                "has no file",
            ));
        };
        let fail =
            |reason: String| WeightsError::malformed(mapped.path(), Location::tensor(name), reason);
        let size = tensor_bytes(stored, shape)
            .ok_or_else(|| fail(format!("shape {shape:?} in {stored} is no valid size")))?;
        let needed = match strides {
            Some(strides) => span_bytes(stored, shape, strides)
                .ok_or_else(|| fail(format!("strides {strides:?} of shape {shape:?} overflow")))?,
            None => size,
        };
        let length = mapped.bytes().get(range.clone()).map(<[u8]>::len);
        if length != Some(needed) {
            return Err(fail(format!(
                "shape {shape:?} in {stored} needs {needed} bytes but bytes {}..{} of a file of {} were \
                 given",
                range.start,
                range.end,
                mapped.bytes().len()
            )));
        }
        if let Some(first) = self.entries.get(name) {
            return Err(fail(match self.files.get(first.file) {
                Some(other) if other.path() != mapped.path() => {
                    format!("is also in {}", other.path().display())
                }
                _ => "is there twice".to_owned(),
            }));
        }
        self.total_bytes = self.total_bytes.saturating_add(size as u64);
        self.entries.insert(name.to_owned(), entry);
        Ok(())
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order in which they were added.
    pub fn files(&self) -> &[Arc<MappedFile>] {
        &self.files
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Values of all tensors together.
    pub fn elements(&self) -> u64 {
        let counts = self.entries.values();
        counts.fold(0, |sum, entry| {
            sum.saturating_add(element_count(&entry.shape).unwrap_or(0) as u64)
        })
    }

    /// Shape of a tensor in the file.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Whether a tensor of shape `found` in the file can serve as one of shape `wanted`.
    pub(super) fn fits(&self, found: &[usize], wanted: &[usize]) -> bool {
        let without_units = |shape: &[usize]| -> Vec<usize> {
            shape
                .iter()
                .copied()
                .filter(|&dimension| dimension != 1)
                .collect()
        };
        found == wanted
            || self.drops_unit_dimensions && without_units(found) == without_units(wanted)
    }

    /// The type that most bytes are stored in: the checkpoint's precision.
    pub fn main_type(&self) -> Option<StoredType> {
        let mut bytes_by_type = BTreeMap::<StoredType, u64>::new();
        for entry in self.entries.values() {
            let bytes = bytes_by_type.entry(entry.stored).or_default();
            *bytes = bytes.saturating_add(entry.range.len() as u64);
        }
        bytes_by_type
            .into_iter()
            .max_by_key(|&(_, bytes)| bytes)
            .map(|(stored, _)| stored)
    }

    /// A tensor as it lies in the file; none also where the file has its rows in pieces ([`Catalog::load`] serves both).
    pub(super) fn get(&self, name: &str) -> Option<StoredTensor<'_>> {
        let entry = self.entries.get(name)?;
        if entry.strides.is_some() {
            return None;
        }
        let bytes = self
            .files
            .get(entry.file)?
            .bytes()
            .get(entry.range.clone())?;
        Some(StoredTensor {
            name: name.to_owned(),
            stored: entry.stored,
            shape: entry.shape.clone(),
            bytes,
        })
    }

    /// A handle that keeps the file mapped.
    pub fn load(&self, name: &str) -> Option<LoadedTensor> {
        let entry = self.entries.get(name)?;
        let file = self.files.get(entry.file)?.clone();
        let tensor = LoadedTensor::new(
            name.to_owned(),
            file,
            entry.stored,
            entry.shape.clone(),
            entry.range.clone(),
        );
        Some(tensor.with_strides(entry.strides.clone()))
    }
}

const INDEX_SUFFIX: &str = ".safetensors.index.json";
/// What PyTorch's own files are called.
const PICKLE_SUFFIXES: [&str; 3] = [".pt", ".pth", ".bin"];
/// What releases in PyTorch's own format call the model among other files (a codec, a tokenizer).
const PICKLED_MODELS: [&str; 2] = ["pytorch_model.bin", "model.pt"];

/// The file to open for a checkpoint, by its format.
pub(super) enum CheckpointFile {
    Safetensors(PathBuf),
    Index(PathBuf),
    Gguf(PathBuf),
    Pickle(PathBuf),
}

/// Finds the file that a path stands for; see [`Catalog::open`].
pub(super) fn locate(path: &Path) -> Result<CheckpointFile> {
    let file = if path.is_dir() {
        find_in_folder(path)?
    } else {
        path.to_owned()
    };
    let name = file
        .file_name()
        .map(|name| name.to_string_lossy().to_lowercase());
    match name.as_deref().unwrap_or_default() {
        name if name.ends_with(".safetensors") => Ok(CheckpointFile::Safetensors(file)),
        name if name.ends_with(INDEX_SUFFIX) => Ok(CheckpointFile::Index(file)),
        name if name.ends_with(".gguf") => Ok(CheckpointFile::Gguf(file)),
        name if PICKLE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) => {
            Ok(CheckpointFile::Pickle(file))
        }
        _ => Err(WeightsError::NotFound {
            path: file,
            reason: "is neither a folder nor a .safetensors, .gguf, .pt, .pth or .bin file"
                .to_owned(),
        }),
    }
}

/// The file that stands for a checkpoint folder.
fn find_in_folder(folder: &Path) -> Result<PathBuf> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(single);
    }
    let io = |error| WeightsError::io(folder, "list the folder", error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        names.push(
            entry
                .map_err(io)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    if !names.iter().any(|name| name.ends_with(INDEX_SUFFIX)) {
        for name in PICKLED_MODELS {
            let pickle = folder.join(name);
            if pickle.is_file() {
                return Ok(pickle);
            }
        }
    }
    for suffix in [INDEX_SUFFIX, ".safetensors", ".gguf"] {
        let matching: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|name| name.ends_with(suffix))
            .collect();
        match matching.as_slice() {
            [] => {}
            [name] => return Ok(folder.join(name)),
            several => {
                return Err(WeightsError::NotFound {
                    path: folder.to_owned(),
                    reason: format!(
                        "{} files end in {suffix} ({}, …) and nothing tells which to load; name one of \
                         them, or download the missing {}",
                        several.len(),
                        several
                            .iter()
                            .take(2)
                            .copied()
                            .collect::<Vec<_>>()
                            .join(", "),
                        safetensors::INDEX_NAME
                    ),
                });
            }
        }
    }
    Err(WeightsError::NotFound {
        path: folder.to_owned(),
        reason: format!(
            "holds no weights: looked for model.safetensors, {}, {}, and a single .safetensors or .gguf file",
            safetensors::INDEX_NAME,
            PICKLED_MODELS.join(", ")
        ),
    })
}

/// Bytes of a tensor: none when the size overflows or a row is no whole number of blocks.
pub(super) fn tensor_bytes(stored: StoredType, shape: &[usize]) -> Option<usize> {
    let elements = element_count(shape)?;
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(stored.block_size()) {
        return None;
    }
    stored.bytes_for(elements)
}

/// Whether strides are those of rows that lie one after the other. Dimensions of 1 have any stride, and a tensor without
/// elements any strides.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected = expected.saturating_mul(size);
            fits
        })
}

/// Bytes from the first element of a strided view to the end of its last, or none when that overflows.
fn span_bytes(stored: StoredType, shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) || shape.len() != strides.len() {
        return None;
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(0usize, |last, (&size, &stride)| {
            last.checked_add((size - 1).checked_mul(stride)?)
        })?;
    stored.bytes_for(last.checked_add(1)?)
}

/// Product of the dimensions, or none when it (or any partial product) overflows.
pub(super) fn element_count(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &dimension| product.checked_mul(dimension))
}
