//! GGUF files, versions 2 and 3, little-endian.
//!
//! Layout: magic, version, counts; key-value metadata; tensor infos (dimensions fastest first); padding to
//! the alignment; the values.

mod metadata;
mod writer;

use std::path::Path;
use std::sync::Arc;

pub use metadata::{Metadata, Value};
pub use writer::{GgufWriter, NewTensor};

use super::catalog::{Catalog, tensor_bytes};
use super::error::{Location, Result, WeightsError};
use super::mapped::MappedFile;
use super::reader::Reader;
use super::stored::StoredType;
use super::tensor::StoredTensor;

const MAGIC: &[u8] = b"GGUF";
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
/// Larger alignments serve no device; they would only let a file claim more padding than it has.
const MAX_ALIGNMENT: u64 = 1 << 16;
const MAX_DIMENSIONS: u32 = 4;
/// More than any model has; a file that claims more is damaged, and reading it would only use up memory.
const MAX_TENSORS: usize = 1 << 20;
/// A name's length, the dimension count, a type and an offset.
const SMALLEST_TENSOR_INFO: u64 = 8 + 4 + 4 + 8;

/// An opened GGUF file: its metadata and where its tensors lie.
#[derive(Debug, Clone)]
pub struct GgufFile {
    /// Key-value pairs: architecture, hyper-parameters, tokenizer.
    pub metadata: Metadata,
    catalog: Catalog,
}

impl GgufFile {
    /// Maps a file and reads everything but the tensors' values.
    ///
    /// # Errors
    /// [`WeightsError`] naming the file, the place in it and the rule that it breaks.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(MappedFile::open(path)?)
    }

    /// Reads a file from memory; `path` only names it in errors.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::read(MappedFile::from_bytes(path, bytes))
    }

    /// Where the file was opened.
    pub fn path(&self) -> &Path {
        self.catalog.path()
    }

    /// The tensors by their names in the file.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(super) fn into_catalog(self) -> Catalog {
        self.catalog
    }

    /// A tensor as it lies in the file.
    pub fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        self.catalog.get(name)
    }

    fn read(file: MappedFile) -> Result<Self> {
        let file = Arc::new(file);
        let path = file.path();
        let mut reader = Reader::new(path, file.bytes());
        check_version(path, &mut reader)?;
        let tensor_count = reader.count(SMALLEST_TENSOR_INFO, "the number of tensors")?;
        if tensor_count > MAX_TENSORS {
            return Err(reader.error(format!(
                "{tensor_count} tensors are more than {MAX_TENSORS}"
            )));
        }
        let metadata = Metadata::read(path, &mut reader)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            tensors.push(TensorInfo::read(path, &mut reader)?);
        }
        // The padding may be left out when nothing follows it.
        let data_start = reader.position().next_multiple_of(alignment);
        let data_length = (file.bytes().len() as u64).saturating_sub(data_start);
        let ranges = tensors
            .iter()
            .map(|tensor| tensor.range(path, data_start, data_length, alignment))
            .collect::<Result<Vec<_>>>()?;
        check_overlaps(path, &tensors)?;

        // Converters leave out dimensions of 1.
        let mut catalog = Catalog::new(path).with_unit_dimensions_dropped();
        let number = catalog.add_file(file.clone());
        for (tensor, range) in tensors.into_iter().zip(ranges) {
            catalog.insert(&tensor.name, number, tensor.stored, tensor.shape, range)?;
        }
        Ok(Self { metadata, catalog })
    }
}

fn check_version(path: &Path, reader: &mut Reader<'_>) -> Result<()> {
    if reader.bytes(MAGIC.len() as u64, "the magic number")? != MAGIC {
        return Err(WeightsError::malformed(
            path,
            Location::Offset(0),
            "the file does not begin with `GGUF`; this is not a GGUF file",
        ));
    }
    let unsupported = |what: String, advice: &str| {
        Err(WeightsError::Unsupported {
            path: path.to_owned(),
            location: Location::Offset(MAGIC.len() as u64),
            what,
            advice: advice.to_owned(),
        })
    };
    match reader.u32("the version")? {
        2 | 3 => Ok(()),
        version if matches!(version.swap_bytes(), 1..=3) => unsupported(
            "a big-endian GGUF file".to_owned(),
            "use the little-endian file of the same model",
        ),
        version => unsupported(
            format!("GGUF version {version}"),
            "use a file of version 2 or 3, or convert the model again",
        ),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let alignment = metadata
        .unsigned(ALIGNMENT_KEY)?
        .unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&alignment) {
        Ok(alignment)
    } else {
        Err(metadata.malformed(
            ALIGNMENT_KEY,
            format!("{alignment} is not a power of two from 8 to {MAX_ALIGNMENT}"),
        ))
    }
}

struct TensorInfo {
    name: String,
    stored: StoredType,
    shape: Vec<usize>,
    /// From the start of the values.
    offset: u64,
    bytes: u64,
}

impl TensorInfo {
    fn read(path: &Path, reader: &mut Reader<'_>) -> Result<Self> {
        let name = reader.string("a tensor name")?.to_owned();
        if name.is_empty() {
            return Err(reader.error("a tensor has an empty name; counts and contents disagree"));
        }
        let fail = |reason: String| WeightsError::malformed(path, Location::tensor(&name), reason);
        let dimensions = reader.u32("the number of dimensions")?;
        if dimensions > MAX_DIMENSIONS {
            return Err(fail(format!(
                "has {dimensions} dimensions, more than {MAX_DIMENSIONS}"
            )));
        }
        let mut fastest_first = Vec::new();
        for _ in 0..dimensions {
            fastest_first.push(reader.u64("a dimension")?);
        }
        let stored =
            stored_type(reader.u32("the type of a tensor")?).map_err(|(what, advice)| {
                WeightsError::Unsupported {
                    path: path.to_owned(),
                    location: Location::tensor(&name),
                    what,
                    advice: advice.to_owned(),
                }
            })?;
        let offset = reader.u64("the offset of a tensor")?;

        let row = fastest_first.first().copied().unwrap_or(1);
        if !row.is_multiple_of(stored.block_size() as u64) {
            return Err(fail(format!(
                "rows of {row} values are no multiple of the {} values of a {stored} block",
                stored.block_size()
            )));
        }
        let shape: Option<Vec<usize>> = fastest_first
            .iter()
            .rev()
            .map(|&dimension| usize::try_from(dimension).ok())
            .collect();
        let bytes = shape
            .as_deref()
            .and_then(|shape| tensor_bytes(stored, shape));
        match (shape, bytes) {
            (Some(shape), Some(bytes)) => Ok(Self {
                name,
                stored,
                shape,
                offset,
                bytes: bytes as u64,
            }),
            _ => Err(fail(format!(
                "the size of dimensions {fastest_first:?} in {stored} overflows"
            ))),
        }
    }

    /// The bytes of the file that hold the values.
    fn range(
        &self,
        path: &Path,
        data_start: u64,
        data_length: u64,
        alignment: u64,
    ) -> Result<std::ops::Range<usize>> {
        let fail =
            |reason: String| WeightsError::malformed(path, Location::tensor(&self.name), reason);
        if !self.offset.is_multiple_of(alignment) {
            return Err(fail(format!(
                "its offset {} is no multiple of the alignment {alignment}",
                self.offset
            )));
        }
        let end = self
            .offset
            .checked_add(self.bytes)
            .filter(|&end| end <= data_length);
        // Offsets inside a mapping fit the address space; zero-sized tensors may lie just behind it.
        let range = end.and_then(|end| {
            let first = usize::try_from(data_start.checked_add(self.offset)?).ok()?;
            let last = usize::try_from(data_start.checked_add(end)?).ok()?;
            Some(first..last)
        });
        range.ok_or_else(|| {
            fail(format!(
                "{} bytes at offset {} do not fit the {data_length} bytes of data; the file is \
                 truncated, download it again",
                self.bytes, self.offset
            ))
        })
    }
}

/// Checks that no two tensors share bytes.
fn check_overlaps(path: &Path, tensors: &[TensorInfo]) -> Result<()> {
    let mut in_order: Vec<&TensorInfo> = tensors.iter().filter(|tensor| tensor.bytes > 0).collect();
    in_order.sort_by_key(|tensor| tensor.offset);
    for pair in in_order.windows(2) {
        let [first, second] = pair else { continue };
        if first.offset.saturating_add(first.bytes) > second.offset {
            return Err(WeightsError::malformed(
                path,
                Location::tensor(&second.name),
                format!(
                    "its values at offset {} overlap those of `{}`",
                    second.offset, first.name
                ),
            ));
        }
    }
    Ok(())
}

/// The number of a type in a tensor info; none for types that GGUF lacks.
fn type_number(stored: StoredType) -> Option<u32> {
    (0..=30).find(|&number| stored_type(number) == Ok(stored))
}

/// The type of a number in a tensor info, or what it is instead and what to do.
fn stored_type(number: u32) -> Result<StoredType, (String, &'static str)> {
    const REQUANTIZE: &str = "use a file in Q8_0, Q6_K, Q5_K, Q4_K or F16";
    let unsupported = |name: &str| Err((format!("type {name} ({number})"), REQUANTIZE));
    Ok(match number {
        0 => StoredType::F32,
        1 => StoredType::F16,
        2 => StoredType::Q4_0,
        3 => StoredType::Q4_1,
        6 => StoredType::Q5_0,
        7 => StoredType::Q5_1,
        8 => StoredType::Q8_0,
        9 => return unsupported("Q8_1"),
        10 => StoredType::Q2K,
        11 => StoredType::Q3K,
        12 => StoredType::Q4K,
        13 => StoredType::Q5K,
        14 => StoredType::Q6K,
        15 => StoredType::Q8K,
        16 => return unsupported("IQ2_XXS"),
        17 => return unsupported("IQ2_XS"),
        18 => return unsupported("IQ3_XXS"),
        19 => return unsupported("IQ1_S"),
        20 => return unsupported("IQ4_NL"),
        21 => return unsupported("IQ3_S"),
        22 => return unsupported("IQ2_S"),
        23 => return unsupported("IQ4_XS"),
        24 => StoredType::I8,
        25 => StoredType::I16,
        26 => StoredType::I32,
        27 => StoredType::I64,
        28 => StoredType::F64,
        29 => return unsupported("IQ1_M"),
        30 => StoredType::Bf16,
        34 => return unsupported("TQ1_0"),
        35 => return unsupported("TQ2_0"),
        39 => return unsupported("MXFP4"),
        _ => {
            return Err((
                format!("tensor type {number}, unknown to GGUF,"),
                REQUANTIZE,
            ));
        }
    })
}
