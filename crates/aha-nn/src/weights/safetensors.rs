//! Safetensors files, single or sharded.
//!
//! Layout: `u64` length of the header, the header (JSON: name to `dtype`, `shape`, `data_offsets`), then the
//! values. The header is read by a parser of its own, so that duplicate names, which JSON libraries let
//! pass, are seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::catalog::{Catalog, element_count};
use super::error::{Location, Result, WeightsError, printable};
use super::mapped::MappedFile;
use super::reader::Reader;
use super::stored::StoredType;

/// The largest header or index that is read: the format's own limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// No model's tensors have more; the shapes of damaged headers would flood error messages.
const MAX_DIMENSIONS: usize = 16;

/// Name of the index of a sharded checkpoint.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// Opens one safetensors file.
///
/// # Errors
/// [`WeightsError`] naming the file and the rule that it breaks.
pub fn open(path: &Path) -> Result<Catalog> {
    let mut catalog = Catalog::new(path);
    add_file(&mut catalog, Arc::new(MappedFile::open(path)?))?;
    Ok(catalog)
}

/// Reads the contents of a safetensors file from memory; `path` only names them in errors.
///
/// # Errors
/// As [`open`].
pub fn from_bytes(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Catalog> {
    let file = Arc::new(MappedFile::from_bytes(path, bytes));
    let mut catalog = Catalog::new(file.path());
    add_file(&mut catalog, file)?;
    Ok(catalog)
}

/// Opens the shards that an index (`*.index.json`) names, which lie beside it.
///
/// Every tensor of the index must be in the shard that the index says and in no other. Shards may hold
/// tensors that the index does not name.
///
/// # Errors
/// [`WeightsError`] naming the index or the shard, and what is wrong.
pub fn open_sharded(index_path: &Path) -> Result<Catalog> {
    let index = Index::read(index_path)?;
    let folder = index_path.parent().unwrap_or(Path::new(""));
    let shards: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    let mut catalog = Catalog::new(folder);
    let mut files = BTreeMap::new();
    for shard in shards {
        let path = folder.join(shard);
        let file = MappedFile::open(&path).map_err(|error| match error {
            WeightsError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                WeightsError::malformed(
                    index_path,
                    Location::File,
                    format!(
                        "the shard `{}` that it names is missing; download it",
                        printable(shard)
                    ),
                )
            }
            other => other,
        })?;
        files.insert(shard, path);
        add_file(&mut catalog, Arc::new(file))?;
    }
    for (name, shard) in &index.weight_map {
        let holder = catalog.load(name);
        if holder.as_ref().map(|tensor| tensor.file().path())
            == files.get(shard.as_str()).map(PathBuf::as_path)
        {
            continue;
        }
        let actual = match &holder {
            Some(tensor) => format!("it is in {}", tensor.file().path().display()),
            None => "it is in no shard".to_owned(),
        };
        return Err(WeightsError::malformed(
            index_path,
            Location::tensor(name),
            format!(
                "must be in `{}` but {actual}; index and shards are of different downloads",
                printable(shard)
            ),
        ));
    }
    Ok(catalog)
}

/// Adds the tensors of one file to a catalog.
fn add_file(catalog: &mut Catalog, file: Arc<MappedFile>) -> Result<()> {
    let (header, data_start) = read_header(&file)?;
    let data_length = file.bytes().len() - data_start;
    let tensors = check_layout(file.path(), header, data_length)?;
    let number = catalog.add_file(file);
    for (name, tensor) in tensors {
        let range = data_start + tensor.begin..data_start + tensor.end;
        catalog.insert(&name, number, tensor.stored, tensor.shape, range)?;
    }
    Ok(())
}

/// The parsed header and where the data begins.
fn read_header(file: &MappedFile) -> Result<(Header, usize)> {
    let path = file.path();
    let mut reader = Reader::new(path, file.bytes());
    let length = reader.u64("the header length")?;
    let fail = |reason: String| Err(WeightsError::malformed(path, Location::File, reason));
    if length == 0 {
        return fail("the header is empty; this is not a safetensors file".to_owned());
    }
    if length > MAX_HEADER_BYTES {
        return fail(format!(
            "the header claims {length} bytes, more than the {MAX_HEADER_BYTES} that the format allows; \
             this is not a safetensors file"
        ));
    }
    let text = std::str::from_utf8(reader.bytes(length, "the header")?);
    let text = match text {
        Ok(text) => text,
        Err(error) => return fail(format!("the header is not UTF-8 ({error})")),
    };
    if !text.starts_with('{') {
        return fail(
            "the header does not begin with `{`; this is not a safetensors file".to_owned(),
        );
    }
    match serde_json::from_str(text) {
        Ok(header) => Ok((header, text.len() + size_of::<u64>())),
        Err(error) => fail(format!("the header is not valid: {error}")),
    }
}

struct TensorLayout {
    stored: StoredType,
    shape: Vec<usize>,
    begin: usize,
    end: usize,
}

/// Checks that tensors fill the data exactly: in order, none overlapping, no holes, the last one ending with
/// the file; and that each has the size of its shape.
fn check_layout(
    path: &Path,
    header: Header,
    data_length: usize,
) -> Result<Vec<(String, TensorLayout)>> {
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for (name, info) in header.tensors {
        let layout = tensor_layout(path, &name, &info, data_length)?;
        tensors.push((name, layout));
    }
    tensors.sort_by_key(|(_, layout)| (layout.begin, layout.end));
    let mut previous: Option<&(String, TensorLayout)> = None;
    for current in &tensors {
        let (name, layout) = current;
        let expected = previous.map_or(0, |(_, layout)| layout.end);
        if layout.begin != expected {
            let before = previous.map_or("the start of the data".to_owned(), |(name, _)| {
                format!("tensor `{}`", printable(name))
            });
            let how = if layout.begin < expected {
                "overlaps"
            } else {
                "leaves a hole after"
            };
            return Err(WeightsError::malformed(
                path,
                Location::tensor(name),
                format!(
                    "its data begins at {}, which {how} {before}, ending at {expected}",
                    layout.begin
                ),
            ));
        }
        previous = Some(current);
    }
    let end = previous.map_or(0, |(_, layout)| layout.end);
    if end != data_length {
        return Err(WeightsError::malformed(
            path,
            Location::File,
            format!("the tensors take {end} bytes but the file has {data_length} bytes of data"),
        ));
    }
    Ok(tensors)
}

fn tensor_layout(
    path: &Path,
    name: &str,
    info: &TensorInfo,
    data_length: usize,
) -> Result<TensorLayout> {
    let fail = |reason: String| WeightsError::malformed(path, Location::tensor(name), reason);
    let stored = stored_type(&info.dtype).ok_or_else(|| WeightsError::Unsupported {
        path: path.to_owned(),
        location: Location::tensor(name),
        what: format!("dtype `{}`", printable(&info.dtype)),
        advice: "use a checkpoint in F32, F16 or BF16".to_owned(),
    })?;
    if info.shape.len() > MAX_DIMENSIONS {
        let dimensions = info.shape.len();
        return Err(fail(format!(
            "has {dimensions} dimensions, more than {MAX_DIMENSIONS}"
        )));
    }
    let [begin, end] = info.data_offsets;
    if begin > end {
        return Err(fail(format!(
            "its data begins at {begin} and ends before that, at {end}"
        )));
    }
    let (Ok(begin), Ok(end)) = (usize::try_from(begin), usize::try_from(end)) else {
        return Err(fail(format!(
            "its data ends at {end}, beyond the address space"
        )));
    };
    if end > data_length {
        return Err(fail(format!(
            "its data ends at {end} but the file has {data_length} bytes of data; the file is truncated, \
             download it again"
        )));
    }
    let shape: Option<Vec<usize>> = info
        .shape
        .iter()
        .map(|&dimension| usize::try_from(dimension).ok())
        .collect();
    let needed = shape
        .as_deref()
        .and_then(element_count)
        .and_then(|elements| stored.bytes_for(elements));
    match (shape, needed) {
        (Some(shape), Some(needed)) if needed == end - begin => Ok(TensorLayout {
            stored,
            shape,
            begin,
            end,
        }),
        (_, Some(needed)) => Err(fail(format!(
            "shape {:?} in {stored} needs {needed} bytes but its data has {}",
            info.shape,
            end - begin
        ))),
        _ => Err(fail(format!(
            "the size of shape {:?} in {stored} overflows",
            info.shape
        ))),
    }
}

fn stored_type(dtype: &str) -> Option<StoredType> {
    Some(match dtype {
        "F64" => StoredType::F64,
        "F32" => StoredType::F32,
        "F16" => StoredType::F16,
        "BF16" => StoredType::Bf16,
        "F8_E4M3" => StoredType::F8E4M3,
        "F8_E5M2" => StoredType::F8E5M2,
        "I8" => StoredType::I8,
        "U8" => StoredType::U8,
        "I16" => StoredType::I16,
        "U16" => StoredType::U16,
        "I32" => StoredType::I32,
        "U32" => StoredType::U32,
        "I64" => StoredType::I64,
        "U64" => StoredType::U64,
        "BOOL" => StoredType::Bool,
        _ => return None,
    })
}

/// The JSON of a file: tensors by name; `__metadata__` holds strings that nothing here needs.
struct Header {
    tensors: Vec<(String, TensorInfo)>,
}

#[derive(Deserialize)]
struct TensorInfo {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(
                self,
                mut map: M,
            ) -> std::result::Result<Header, M::Error> {
                let mut seen = BTreeSet::new();
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(duplicate(&name));
                    }
                    if name == "__metadata__" {
                        map.next_value::<Option<BTreeMap<String, String>>>()
                            .map_err(|error| {
                                M::Error::custom(format!("`__metadata__`: {error}"))
                            })?;
                        continue;
                    }
                    let info = map.next_value().map_err(|error| {
                        M::Error::custom(format!("tensor `{}`: {error}", printable(&name)))
                    })?;
                    tensors.push((name, info));
                }
                Ok(Header { tensors })
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

fn duplicate<E: serde::de::Error>(name: &str) -> E {
    E::custom(format!("`{}` is there twice", printable(name)))
}

/// The JSON beside the shards: which of them holds which tensor.
#[derive(Deserialize)]
struct Index {
    #[serde(deserialize_with = "unique_entries")]
    weight_map: BTreeMap<String, String>,
}

impl Index {
    fn read(path: &Path) -> Result<Self> {
        let fail = |reason: String| WeightsError::malformed(path, Location::File, reason);
        let io = |error| WeightsError::io(path, "read the index", error);
        let length = std::fs::metadata(path).map_err(io)?.len();
        if length > MAX_HEADER_BYTES {
            return Err(fail(format!("an index of {length} bytes is no index")));
        }
        let bytes = std::fs::read(path).map_err(io)?;
        let index: Self = serde_json::from_slice(&bytes)
            .map_err(|error| fail(format!("the index is not valid: {error}")))?;
        if index.weight_map.is_empty() {
            return Err(fail("the index names no tensors".to_owned()));
        }
        for shard in index.weight_map.values() {
            let mut components = Path::new(shard).components();
            let plain = matches!(components.next(), Some(Component::Normal(_)))
                && components.next().is_none()
                && !shard.contains(['/', '\\']);
            if !plain {
                return Err(fail(format!(
                    "the shard `{}` is not the plain name of a file beside the index",
                    printable(shard)
                )));
            }
        }
        Ok(index)
    }
}

fn unique_entries<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<BTreeMap<String, String>, D::Error> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object from tensor names to file names")
        }

        fn visit_map<M: MapAccess<'de>>(
            self,
            mut map: M,
        ) -> std::result::Result<Self::Value, M::Error> {
            let mut entries = BTreeMap::new();
            while let Some((name, shard)) = map.next_entry::<String, String>()? {
                if entries.contains_key(&name) {
                    return Err(duplicate(&name));
                }
                entries.insert(name, shard);
            }
            Ok(entries)
        }
    }

    deserializer.deserialize_map(Entries)
}

/// Writes tensors (name, type, shape, bytes) in the format that [`open`] reads, in the order given.
///
/// Sizes are not checked against shapes: reading does that.
pub fn to_bytes<'a>(
    tensors: impl IntoIterator<Item = (&'a str, StoredType, &'a [usize], &'a [u8])>,
) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, stored, shape, bytes) in tensors {
        let begin = data.len();
        data.extend_from_slice(bytes);
        let info = serde_json::json!({
            "dtype": stored.name(),
            "shape": shape,
            "data_offsets": [begin, data.len()],
        });
        header.insert(name.to_owned(), info);
    }
    let mut header = serde_json::Value::Object(header).to_string();
    // Values begin at a multiple of 8 bytes, which spaces after the JSON bring about.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}
