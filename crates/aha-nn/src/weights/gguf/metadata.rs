//! The key-value pairs of a GGUF file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::weights::error::{Location, Result, WeightsError, printable};
use crate::weights::reader::Reader;

/// More than any model has; a file that claims more is damaged, and reading it would only use up memory.
const MAX_KEYS: usize = 1 << 16;
/// Vocabularies, the largest arrays, have less than a million entries.
const MAX_ARRAY_LENGTH: usize = 1 << 24;

/// A key's length, a type and the smallest value.
const SMALLEST_PAIR: u64 = 8 + 4 + 1;

/// A metadata value. Numbers are widened, so that a reader need not know which width a converter chose.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `u8` to `u64`.
    Unsigned(u64),
    /// `i8` to `i64`.
    Signed(i64),
    /// `f32` or `f64`.
    Float(f64),
    /// A boolean.
    Boolean(bool),
    /// A string.
    Text(String),
    /// An array of integers of any width.
    Integers(Vec<i64>),
    /// An array of `f32` or `f64`.
    Floats(Vec<f32>),
    /// An array of booleans.
    Booleans(Vec<bool>),
    /// An array of strings. Bytes that are no UTF-8 are replaced (vocabularies of damaged conversions have
    /// a few such tokens, which no text ever meets), with a warning in the log.
    Texts(Vec<String>),
}

impl Value {
    /// What the value is, as errors put it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::Float(_) => "a floating-point number",
            Self::Boolean(_) => "a boolean",
            Self::Text(_) => "a string",
            Self::Integers(_) => "an array of integers",
            Self::Floats(_) => "an array of floating-point numbers",
            Self::Booleans(_) => "an array of booleans",
            Self::Texts(_) => "an array of strings",
        }
    }
}

/// The metadata of a GGUF file.
///
/// The typed getters return none when a key is absent and [`WeightsError::KeyType`] when it holds another
/// type.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// A string.
    ///
    /// # Errors
    /// [`WeightsError::KeyType`] when the key holds another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An integer that is not negative, whether stored signed or not.
    ///
    /// # Errors
    /// [`WeightsError::KeyType`] when the key holds another type.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(
            key,
            "an integer that is not negative",
            |value| match *value {
                Value::Unsigned(number) => Some(number),
                Value::Signed(number) => u64::try_from(number).ok(),
                _ => None,
            },
        )
    }

    /// A floating-point number.
    ///
    /// # Errors
    /// [`WeightsError::KeyType`] when the key holds another type.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a floating-point number", |value| match *value {
            Value::Float(number) => Some(number),
            _ => None,
        })
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`WeightsError::KeyType`] when the key holds another type.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a boolean", |value| match *value {
            Value::Boolean(boolean) => Some(boolean),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// [`WeightsError::KeyType`] when the key holds another type.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// An array of floating-point numbers.
    ///
    /// # Errors
    /// [`WeightsError::KeyType`] when the key holds another type.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.typed(
            key,
            "an array of floating-point numbers",
            |value| match value {
                Value::Floats(numbers) => Some(numbers.clone()),
                _ => None,
            },
        )
    }

    /// An array of integers.
    ///
    /// # Errors
    /// [`WeightsError::KeyType`] when the key holds another type.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "an array of integers", |value| match value {
            Value::Integers(numbers) => Some(numbers.clone()),
            _ => None,
        })
    }

    /// An error about the value of a key: of the right type, but not usable.
    pub fn malformed(&self, key: &str, reason: impl Into<String>) -> WeightsError {
        WeightsError::malformed(&self.path, Location::key(key), reason)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        as_type: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        match as_type(value) {
            Some(typed) => Ok(Some(typed)),
            None => Err(WeightsError::KeyType {
                path: self.path.clone(),
                key: printable(key),
                expected,
                found: value.kind(),
            }),
        }
    }

    pub(super) fn read(path: &Path, reader: &mut Reader<'_>) -> Result<Self> {
        let count = reader.count(SMALLEST_PAIR, "the number of metadata keys")?;
        if count > MAX_KEYS {
            return Err(reader.error(format!("{count} metadata keys are more than {MAX_KEYS}")));
        }
        let mut metadata = Self {
            path: path.to_owned(),
            values: BTreeMap::new(),
        };
        for _ in 0..count {
            let key = reader.string("a metadata key")?;
            let what = format!("metadata key `{}`", printable(key));
            let value = match ValueKind::read(reader, &what)? {
                ValueKind::Array => read_array(reader, &what)?,
                kind => read_scalar(reader, &what, kind)?,
            };
            if metadata.values.insert(key.to_owned(), value).is_some() {
                return Err(metadata.malformed(key, "is there twice"));
            }
        }
        Ok(metadata)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValueKind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl ValueKind {
    fn read(reader: &mut Reader<'_>, what: &str) -> Result<Self> {
        let number = reader.u32("the type of a metadata value")?;
        Ok(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => {
                return Err(reader.error(format!("{what} has type {number}, which GGUF lacks")));
            }
        })
    }

    /// Bytes that one value takes at least.
    fn smallest(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::Array | Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

fn read_scalar(reader: &mut Reader<'_>, what: &str, kind: ValueKind) -> Result<Value> {
    Ok(match kind {
        ValueKind::U8 => Value::Unsigned(reader.u8(what)?.into()),
        ValueKind::U16 => Value::Unsigned(reader.u16(what)?.into()),
        ValueKind::U32 => Value::Unsigned(reader.u32(what)?.into()),
        ValueKind::U64 => Value::Unsigned(reader.u64(what)?),
        ValueKind::I8 => Value::Signed(reader.i8(what)?.into()),
        ValueKind::I16 => Value::Signed(reader.i16(what)?.into()),
        ValueKind::I32 => Value::Signed(reader.i32(what)?.into()),
        ValueKind::I64 => Value::Signed(reader.i64(what)?),
        ValueKind::F32 => Value::Float(reader.f32(what)?.into()),
        ValueKind::F64 => Value::Float(reader.f64(what)?),
        ValueKind::Bool => Value::Boolean(read_boolean(reader, what)?),
        ValueKind::Text => Value::Text(reader.string(what)?.to_owned()),
        ValueKind::Array => return Err(nested(reader, what)),
    })
}

fn read_array(reader: &mut Reader<'_>, what: &str) -> Result<Value> {
    let kind = ValueKind::read(reader, what)?;
    if kind == ValueKind::Array {
        return Err(nested(reader, what));
    }
    let count = reader.count(kind.smallest(), what)?;
    if count > MAX_ARRAY_LENGTH {
        return Err(reader.error(format!(
            "{what} has {count} entries, more than {MAX_ARRAY_LENGTH}"
        )));
    }
    match kind {
        ValueKind::Text => read_texts(reader, what, count),
        ValueKind::Bool => (0..count)
            .map(|_| read_boolean(reader, what))
            .collect::<Result<_>>()
            .map(Value::Booleans),
        ValueKind::F32 => (0..count)
            .map(|_| reader.f32(what))
            .collect::<Result<_>>()
            .map(Value::Floats),
        ValueKind::F64 => (0..count)
            .map(|_| reader.f64(what).map(|number| number as f32))
            .collect::<Result<_>>()
            .map(Value::Floats),
        _ => (0..count)
            .map(|_| match read_scalar(reader, what, kind)? {
                Value::Signed(number) => Ok(number),
                Value::Unsigned(number) => i64::try_from(number)
                    .map_err(|_| reader.error(format!("{what} holds {number}, beyond 2^63"))),
                other => Err(reader.error(format!("{what} holds {}", other.kind()))),
            })
            .collect::<Result<_>>()
            .map(Value::Integers),
    }
}

fn read_texts(reader: &mut Reader<'_>, what: &str, count: usize) -> Result<Value> {
    let mut texts = Vec::new();
    let mut replaced = 0usize;
    for _ in 0..count {
        let bytes = reader.string_bytes(what)?;
        let text = String::from_utf8_lossy(bytes);
        replaced += usize::from(matches!(text, std::borrow::Cow::Owned(_)));
        texts.push(text.into_owned());
    }
    if replaced > 0 {
        tracing::warn!(
            what,
            replaced,
            of = count,
            "GGUF strings are no UTF-8; their bytes were replaced"
        );
    }
    Ok(Value::Texts(texts))
}

fn read_boolean(reader: &mut Reader<'_>, what: &str) -> Result<bool> {
    match reader.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(reader.error(format!("{what} is a boolean of value {other}"))),
    }
}

fn nested(reader: &Reader<'_>, what: &str) -> WeightsError {
    reader.error(format!(
        "{what} is an array of arrays, which no reader needs"
    ))
}
