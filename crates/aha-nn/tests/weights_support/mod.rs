//! Writers of small weight files, right and wrong.

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod torch;

use std::path::{Path, PathBuf};

use aha_nn::weights::{Placement, StoredType, safetensors};

pub(crate) const F32: u32 = 0;
pub(crate) const F16: u32 = 1;
pub(crate) const Q4_1: u32 = 3;
pub(crate) const Q8_0: u32 = 8;
pub(crate) const Q4_K: u32 = 12;

pub(crate) fn cpu() -> Placement {
    Placement::cpu()
}

pub(crate) fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A safetensors file of F32 tensors.
pub(crate) fn f32_file(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| f32_bytes(values))
        .collect();
    safetensors::to_bytes(
        tensors
            .iter()
            .zip(&bytes)
            .map(|(&(name, shape, _), bytes)| (name, StoredType::F32, shape, bytes.as_slice())),
    )
}

/// A safetensors file with any header and any data.
pub(crate) fn raw_file(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(data);
    file
}

/// A sharded checkpoint's index.
pub(crate) fn index(entries: &[(&str, &str)]) -> String {
    let entries: Vec<String> = entries
        .iter()
        .map(|(name, shard)| format!("{name:?}: {shard:?}"))
        .collect();
    format!(
        "{{\"metadata\": {{\"total_size\": 0}}, \"weight_map\": {{{}}}}}",
        entries.join(", ")
    )
}

/// A GGUF file under construction; what is written is what is told, however wrong.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) pair_count: Option<u64>,
    pub(crate) alignment: usize,
    pairs: Vec<u8>,
    pairs_written: u64,
    infos: Vec<u8>,
    infos_written: u64,
    data: Vec<u8>,
}

impl Default for Gguf {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            pair_count: None,
            alignment: 32,
            pairs: Vec::new(),
            pairs_written: 0,
            infos: Vec::new(),
            infos_written: 0,
            data: Vec::new(),
        }
    }
}

pub(crate) fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text);
    bytes
}

impl Gguf {
    /// A metadata pair of any type with any bytes.
    pub(crate) fn pair(
        mut self,
        key: impl AsRef<[u8]>,
        kind: u32,
        value: impl AsRef<[u8]>,
    ) -> Self {
        self.pairs.extend(string(key));
        self.pairs.extend(kind.to_le_bytes());
        self.pairs.extend_from_slice(value.as_ref());
        self.pairs_written += 1;
        self
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.pair(key, 4, value.to_le_bytes())
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.pair(key, 8, string(value))
    }

    pub(crate) fn array(self, key: &str, kind: u32, count: u64, values: &[u8]) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend_from_slice(values);
        self.pair(key, 9, bytes)
    }

    /// A tensor info alone; dimensions fastest first.
    pub(crate) fn info(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        self.infos.extend(string(name));
        self.infos.extend((dimensions.len() as u32).to_le_bytes());
        for dimension in dimensions {
            self.infos.extend(dimension.to_le_bytes());
        }
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self.infos_written += 1;
        self
    }

    /// A tensor with its values at the next aligned offset; dimensions fastest first.
    pub(crate) fn tensor(
        mut self,
        name: &str,
        dimensions: &[u64],
        kind: u32,
        bytes: &[u8],
    ) -> Self {
        self.data
            .resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        self.info(name, dimensions, kind, offset)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = self.magic.to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(
            self.tensor_count
                .unwrap_or(self.infos_written)
                .to_le_bytes(),
        );
        file.extend(self.pair_count.unwrap_or(self.pairs_written).to_le_bytes());
        file.extend_from_slice(&self.pairs);
        file.extend_from_slice(&self.infos);
        if !self.data.is_empty() {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
            file.extend_from_slice(&self.data);
        }
        file
    }
}
