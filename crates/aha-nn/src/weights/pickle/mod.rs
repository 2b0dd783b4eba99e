//! PyTorch weight files (`torch.save`: `.pt`, `.pth`, `.bin`), read without running what is in them.
//!
//! ```text
//! archive (zip, stored entries) ─▶ data.pkl ─▶ machine (allow-list) ─▶ tensor views ─┐
//!                               └▶ data/0, data/1, …  byte ranges of the mapping ────┴─▶ Catalog
//! ```
//!
//! A pickle is a program. The machine here knows the few instructions and the few names that tensors need; the
//! first other one ends reading with its place in the file. Only when the program has ended and every view was
//! checked against its storage is a catalog built. Nothing is unpacked: tensors stay in the mapping, and the names of
//! entries are never paths on disk.

mod archive;
mod globals;
mod machine;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use archive::Archive;
use machine::{Machine, Program, TensorView, Value};

use super::catalog::Catalog;
use super::error::{Location, Result, WeightsError, printable};
use super::mapped::MappedFile;
use super::reader::Reader;

/// The largest program that is read. That of a model with 10,000 tensors takes 2 MB.
pub const MAX_PROGRAM_BYTES: u64 = 16 << 20;

/// Keys under which training scripts keep the weights beside other things.
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// What data-parallel training puts before every name.
const PARALLEL_PREFIX: &str = "module.";

/// Dictionaries in dictionaries: no release comes near.
const MAX_DEPTH: usize = 16;

/// Opens a file that `torch.save` wrote in its zip format (PyTorch 1.6 and later).
///
/// The tensors are those of the dictionary under `state_dict`, `model_state_dict` or `model`, or of the dictionary
/// that the file holds. Names in nested dictionaries are joined by dots; a `module.` before every name is dropped.
/// Values that are no tensors are passed over.
///
/// # Errors
/// [`WeightsError`] naming the file, the byte offset and the rule that it breaks.
pub fn open(path: &Path) -> Result<Catalog> {
    read(MappedFile::open(path)?)
}

/// Reads the contents of such a file from memory; `path` only names them in errors.
///
/// # Errors
/// As [`open`].
pub fn from_bytes(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Catalog> {
    read(MappedFile::from_bytes(path, bytes))
}

fn read(file: MappedFile) -> Result<Catalog> {
    let file = Arc::new(file);
    let path = file.path();
    let archive = Archive::read(path, file.bytes())?;
    archive.ensure_little_endian()?;
    let range = archive.entry("data.pkl").ok_or_else(|| {
        WeightsError::malformed(
            path,
            Location::File,
            "holds no data.pkl; it is a zip file but not one that torch.save wrote",
        )
    })?;
    if range.len() as u64 > MAX_PROGRAM_BYTES {
        return Err(WeightsError::malformed(
            path,
            Location::Offset(range.start as u64),
            format!(
                "data.pkl has {} bytes, more than {MAX_PROGRAM_BYTES}; it holds more than tensors",
                range.len()
            ),
        ));
    }
    let program = Machine::new(Reader::within(path, file.bytes(), range)).run()?;
    let mut tensors = Flattened {
        path,
        program: &program,
        visited: vec![false; program.dictionaries.len()],
        named: BTreeMap::new(),
    };
    tensors.collect()?;
    let named = tensors.without_parallel_prefix();
    build(&file, &archive, named)
}

/// Enters the views into a catalog, each with the bytes of its storage.
fn build(
    file: &Arc<MappedFile>,
    archive: &Archive<'_>,
    named: Vec<(String, &TensorView<'_>)>,
) -> Result<Catalog> {
    let mut catalog = Catalog::new(file.path());
    let number = catalog.add_file(file.clone());
    for (name, view) in named {
        let range = byte_range(file.path(), archive, &name, view)?;
        let (shape, strides) = (view.shape.clone(), view.strides.clone());
        catalog.insert_strided(&name, number, view.stored, shape, strides, range)?;
    }
    Ok(catalog)
}

/// The bytes from a view's first element to its last.
fn byte_range(
    path: &Path,
    archive: &Archive<'_>,
    name: &str,
    view: &TensorView<'_>,
) -> Result<Range<usize>> {
    let fail = |reason: String| WeightsError::malformed(path, Location::tensor(name), reason);
    let storage = archive
        .entry(&format!("data/{}", view.storage.key))
        .ok_or_else(|| {
            fail(format!(
                "its storage `{}` is not in the file",
                printable(view.storage.key)
            ))
        })?;
    if view.storage.bytes != Some(storage.len()) {
        return Err(fail(format!(
            "its storage `{}` is said to hold {} elements but has {} bytes",
            printable(view.storage.key),
            view.storage.elements,
            storage.len()
        )));
    }
    let item = view.stored.block_bytes();
    let start = view.offset.checked_mul(item);
    let end = view.end.checked_mul(item);
    match start.zip(end) {
        Some((start, end)) if start <= end && end <= storage.len() => {
            Ok(storage.start + start..storage.start + end)
        }
        _ => Err(fail(format!(
            "shape {:?} with strides {:?} from element {} reaches beyond its storage of {} bytes",
            view.shape,
            view.strides,
            view.offset,
            storage.len()
        ))),
    }
}

/// The tensors of a program's result under their full names.
struct Flattened<'p, 'a> {
    path: &'p Path,
    program: &'p Program<'a>,
    /// By dictionary: a second visit would multiply names without end.
    visited: Vec<bool>,
    named: BTreeMap<String, &'p TensorView<'a>>,
}

impl<'p, 'a> Flattened<'p, 'a> {
    fn collect(&mut self) -> Result<()> {
        let Value::Dictionary(top) = self.program.result else {
            return Err(self.fail(format!(
                "holds {} where a dictionary of tensors is needed",
                self.program.result.kind()
            )));
        };
        let wrapped = WRAPPERS.iter().find_map(|wrapper| {
            self.items(top)
                .iter()
                .find_map(|&(key, value)| match (key, value) {
                    (Value::Text(key), Value::Dictionary(inner)) if key == *wrapper => Some(inner),
                    _ => None,
                })
        });
        self.visit(wrapped.unwrap_or(top), "", 0)?;
        if self.named.is_empty() {
            return Err(self.fail("holds no tensors".to_owned()));
        }
        Ok(())
    }

    fn visit(&mut self, dictionary: usize, prefix: &str, depth: usize) -> Result<()> {
        let seen = self
            .visited
            .get_mut(dictionary)
            .is_none_or(|visited| std::mem::replace(visited, true));
        if seen || depth > MAX_DEPTH {
            return Err(self.fail(format!(
                "the dictionary `{}` is nested in itself, stands in two places, or lies deeper than {MAX_DEPTH}",
                printable(prefix)
            )));
        }
        for &(key, value) in self.items(dictionary) {
            let (tensor, inner) = match value {
                Value::Tensor(tensor) => (self.program.tensors.get(tensor), None),
                Value::Dictionary(inner) => (None, Some(inner)),
                _ => continue,
            };
            let Value::Text(key) = key else {
                return Err(self.fail(format!(
                    "`{}` holds a tensor under {} instead of a name",
                    printable(prefix),
                    key.kind()
                )));
            };
            let name = if prefix.is_empty() {
                key.to_owned()
            } else {
                format!("{prefix}.{key}")
            };
            if let Some(inner) = inner {
                self.visit(inner, &name, depth + 1)?;
            } else if let Some(view) = tensor
                && self.named.insert(name, view).is_some()
            {
                return Err(self.fail(format!("`{}` is there twice", printable(key))));
            }
        }
        Ok(())
    }

    fn items(&self, dictionary: usize) -> &'p [(Value<'a>, Value<'a>)] {
        self.program
            .dictionaries
            .get(dictionary)
            .map_or(&[], Vec::as_slice)
    }

    fn without_parallel_prefix(self) -> Vec<(String, &'p TensorView<'a>)> {
        let everywhere = self
            .named
            .keys()
            .all(|name| name.starts_with(PARALLEL_PREFIX));
        let dropped = if everywhere { PARALLEL_PREFIX.len() } else { 0 };
        self.named
            .into_iter()
            .map(|(name, view)| (name[dropped..].to_owned(), view))
            .collect()
    }

    fn fail(&self, reason: String) -> WeightsError {
        WeightsError::malformed(self.path, Location::File, reason)
    }
}
