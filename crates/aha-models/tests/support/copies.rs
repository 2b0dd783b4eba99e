//! Copies of fixtures to change.

use super::fixture;
use aha_nn::weights::{Catalog, StoredType, safetensors};
use half::bf16;
use serde_json::{Map, Value};
use std::path::Path;
use tempfile::TempDir;

/// A copy of a fixture's files.
pub(crate) fn copy_of(source: &str) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(source)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, home.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    home
}

/// Changes a JSON file of a folder.
pub(crate) fn edit(folder: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(name);
    let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// A copy of a fixture whose JSON file `name` was changed.
pub(crate) fn changed_copy(source: &str, name: &str, change: impl FnOnce(&mut Value)) -> TempDir {
    let home = copy_of(source);
    edit(home.path(), name, change);
    home
}

/// Writes all tensors of a folder's model.safetensors as `bf16`.
pub(crate) fn as_bf16(folder: &Path) {
    let path = folder.join("model.safetensors");
    let catalog = Catalog::open(&path).unwrap();
    let tensors: Vec<_> = catalog
        .names()
        .map(|name| {
            let tensor = catalog.load(name).unwrap();
            let values = tensor.to_f32().unwrap();
            let bytes = values
                .iter()
                .flat_map(|value| bf16::from_f32(*value).to_le_bytes());
            (name, tensor.shape().to_vec(), bytes.collect::<Vec<u8>>())
        })
        .collect();
    let file = safetensors::to_bytes(
        (tensors.iter())
            .map(|(name, shape, bytes)| (*name, StoredType::Bf16, &shape[..], &bytes[..])),
    );
    std::fs::write(path, file).unwrap();
}

/// Renames the tensors in a folder's model.safetensors.
pub(crate) fn rename_tensors(folder: &Path, rename: impl Fn(&str) -> String) {
    let path = folder.join("model.safetensors");
    let file = std::fs::read(&path).unwrap();
    let end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&file[8..end]).unwrap();
    let renamed: Map<String, Value> = header
        .into_iter()
        .map(|(name, entry)| (rename(&name), entry))
        .collect();
    let header = Value::Object(renamed).to_string();
    let mut written = (header.len() as u64).to_le_bytes().to_vec();
    written.extend(header.as_bytes());
    written.extend(&file[end..]);
    std::fs::write(path, written).unwrap();
}
