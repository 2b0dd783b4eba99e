//! Writing GGUF files, version 3: the header at once, then one tensor after another.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::vec;

use super::{DEFAULT_ALIGNMENT, MAGIC, Value, type_number};
use crate::weights::catalog::tensor_bytes;
use crate::weights::error::{Location, Result, WeightsError};
use crate::weights::stored::StoredType;

const VERSION: u32 = 3;
const ALIGNMENT: usize = DEFAULT_ALIGNMENT as usize;

/// A tensor that a file is going to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// The type of its values.
    pub stored: StoredType,
    /// Its dimensions, slowest first.
    pub shape: Vec<usize>,
}

impl NewTensor {
    /// Bytes of its values; none when rows are no whole blocks or the size overflows.
    pub fn bytes(&self) -> Option<usize> {
        tensor_bytes(self.stored, &self.shape)
    }
}

/// A file that is being written. Only one tensor's values need to be in memory.
#[derive(Debug)]
pub struct GgufWriter {
    path: PathBuf,
    file: BufWriter<File>,
    missing: vec::IntoIter<NewTensor>,
}

impl GgufWriter {
    /// Makes the file and writes everything but the tensors' values, which [`GgufWriter::tensor`] takes in the order of
    /// `tensors`. Keys must not repeat.
    ///
    /// # Errors
    /// [`WeightsError::Io`], and [`WeightsError::Malformed`] naming a tensor that no GGUF file can hold.
    pub fn create(
        path: &Path,
        metadata: &[(String, Value)],
        tensors: Vec<NewTensor>,
    ) -> Result<Self> {
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            put_text(&mut header, key);
            put_value(&mut header, value);
        }
        let mut offset = 0u64;
        for tensor in &tensors {
            let (Some(bytes), Some(number)) = (tensor.bytes(), type_number(tensor.stored)) else {
                return Err(WeightsError::malformed(
                    path,
                    Location::tensor(&tensor.name),
                    format!(
                        "shape {:?} in {} has no place in a GGUF file",
                        tensor.shape, tensor.stored
                    ),
                ));
            };
            put_text(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for dimension in tensor.shape.iter().rev() {
                header.extend((*dimension as u64).to_le_bytes());
            }
            header.extend(number.to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset = (offset + bytes as u64).next_multiple_of(DEFAULT_ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        let file =
            File::create(path).map_err(|error| WeightsError::io(path, "create the file", error))?;
        let mut writer = Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
            missing: tensors.into_iter(),
        };
        writer.write(&header)?;
        Ok(writer)
    }

    /// Writes the values of the next tensor.
    ///
    /// # Errors
    /// [`WeightsError::Io`], and [`WeightsError::Malformed`] when they are not the size of the tensor, or no tensor is
    /// missing.
    pub fn tensor(&mut self, values: &[u8]) -> Result<()> {
        let next = self.missing.next();
        let expected = next.as_ref().and_then(NewTensor::bytes);
        if expected != Some(values.len()) {
            let name = next.map_or_else(|| "one too many".to_owned(), |tensor| tensor.name);
            return Err(WeightsError::malformed(
                &self.path,
                Location::tensor(&name),
                format!("{} bytes are not its size", values.len()),
            ));
        }
        self.write(values)?;
        let padding = values.len().next_multiple_of(ALIGNMENT) - values.len();
        self.write(&[0; ALIGNMENT][..padding])
    }

    /// Makes sure that everything is on the disk.
    ///
    /// # Errors
    /// [`WeightsError::Io`], and [`WeightsError::Malformed`] naming the first tensor that was not written.
    pub fn finish(mut self) -> Result<()> {
        if let Some(tensor) = self.missing.next() {
            let location = Location::tensor(&tensor.name);
            let reason = "its values were not written";
            return Err(WeightsError::malformed(&self.path, location, reason));
        }
        let written = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all());
        written.map_err(|error| self.io(error))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| self.io(error))
    }

    fn io(&self, error: io::Error) -> WeightsError {
        WeightsError::io(&self.path, "write the file", error)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Numbers of the types of values, in the format's order.
mod kind {
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
}

/// Numbers take 32 bits where those suffice, which is what readers of the usual keys expect.
fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Unsigned(number) => match u32::try_from(*number) {
            Ok(number) => put(out, kind::U32, &number.to_le_bytes()),
            Err(_) => put(out, kind::U64, &number.to_le_bytes()),
        },
        Value::Signed(number) => match i32::try_from(*number) {
            Ok(number) => put(out, kind::I32, &number.to_le_bytes()),
            Err(_) => put(out, kind::I64, &number.to_le_bytes()),
        },
        Value::Float(number) => put(out, kind::F32, &(*number as f32).to_le_bytes()),
        Value::Boolean(boolean) => put(out, kind::BOOL, &[u8::from(*boolean)]),
        Value::Text(text) => {
            put(out, kind::TEXT, &[]);
            put_text(out, text);
        }
        Value::Integers(numbers) => {
            let narrow: Option<Vec<i32>> = numbers
                .iter()
                .map(|&number| i32::try_from(number).ok())
                .collect();
            match narrow {
                Some(numbers) => put_array(out, kind::I32, &numbers, |out, number| {
                    out.extend(number.to_le_bytes());
                }),
                None => put_array(out, kind::I64, numbers, |out, number| {
                    out.extend(number.to_le_bytes());
                }),
            }
        }
        Value::Floats(numbers) => put_array(out, kind::F32, numbers, |out, number| {
            out.extend(number.to_le_bytes());
        }),
        Value::Booleans(booleans) => put_array(out, kind::BOOL, booleans, |out, boolean| {
            out.push(u8::from(*boolean));
        }),
        Value::Texts(texts) => put_array(out, kind::TEXT, texts, |out, text| put_text(out, text)),
    }
}

fn put(out: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
    out.extend(kind.to_le_bytes());
    out.extend(bytes);
}

fn put_array<T>(out: &mut Vec<u8>, kind: u32, items: &[T], item: impl Fn(&mut Vec<u8>, &T)) {
    put(out, kind::ARRAY, &kind.to_le_bytes());
    out.extend((items.len() as u64).to_le_bytes());
    for each in items {
        item(out, each);
    }
}

#[cfg(test)]
mod tests {
    use super::super::GgufFile;
    use super::*;

    fn info(name: &str, stored: StoredType, shape: &[usize]) -> NewTensor {
        NewTensor {
            name: name.to_owned(),
            stored,
            shape: shape.to_vec(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a.gguf");
        let metadata = [
            ("a.text", Value::Text("é\n".to_owned())),
            ("b.unsigned", Value::Unsigned(7)),
            ("c.large", Value::Unsigned(1 << 40)),
            ("d.signed", Value::Signed(-7)),
            ("e.small", Value::Signed(-(1 << 40))),
            ("f.float", Value::Float(0.5)),
            ("g.boolean", Value::Boolean(true)),
            ("h.integers", Value::Integers(vec![1, -2])),
            ("i.integers", Value::Integers(vec![1 << 40])),
            ("j.floats", Value::Floats(vec![0.25, -3.0])),
            ("k.booleans", Value::Booleans(vec![true, false])),
            ("l.texts", Value::Texts(vec!["x".to_owned(), String::new()])),
            ("m.none", Value::Texts(Vec::new())),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        let tensors = vec![
            info("odd", StoredType::F32, &[3]),
            info("blocks", StoredType::Q8_0, &[2, 64]),
            info("halves", StoredType::Bf16, &[2, 2, 1]),
        ];
        let mut writer = GgufWriter::create(&path, &metadata, tensors).unwrap();
        let (odd, blocks) = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [7; 4 * 34]);
        writer.tensor(&odd).unwrap();
        writer.tensor(&blocks).unwrap();
        writer.tensor(&[9; 8]).unwrap();
        writer.finish().unwrap();

        let file = GgufFile::open(&path).unwrap();
        for (key, value) in &metadata {
            assert_eq!(file.metadata.get(key), Some(value), "{key}");
        }
        assert_eq!(file.metadata.keys().count(), metadata.len());
        let tensor = file.tensor("blocks").unwrap();
        assert_eq!(
            (tensor.stored, tensor.shape.as_slice()),
            (StoredType::Q8_0, &[2, 64][..])
        );
        assert_eq!(tensor.bytes, blocks);
        assert_eq!(file.tensor("odd").unwrap().bytes, odd);
        assert_eq!(file.tensor("halves").unwrap().shape, [2, 2, 1]);
    }

    #[test]
    fn sizes_are_held_to_the_header() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a.gguf");
        let create = |info| GgufWriter::create(&path, &[], vec![info]);
        assert!(create(info("a", StoredType::Q4K, &[2, 128])).is_err());
        assert!(create(info("a", StoredType::F8E4M3, &[2])).is_err());
        let mut writer = create(info("a", StoredType::F32, &[2])).unwrap();
        assert!(writer.tensor(&[0; 4]).is_err());
        let error = create(info("a", StoredType::F32, &[2]))
            .unwrap()
            .finish()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`a`") && error.contains("not written"),
            "{error}"
        );
        let mut writer = create(info("a", StoredType::F32, &[2])).unwrap();
        writer.tensor(&[0; 8]).unwrap();
        assert!(writer.tensor(&[]).is_err());
    }
}
