//! What can go wrong with weight files, and how it is told.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of everything in this module.
pub type Result<T, E = WeightsError> = std::result::Result<T, E>;

/// How many missing or misshapen tensors an error lists.
pub(super) const LISTED_MISMATCHES: usize = 10;

/// An error in finding, reading or converting weights: what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The operating system refused to open, read or map a file.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb phrase ("open the file").
        action: &'static str,
        /// What the operating system answered.
        source: std::io::Error,
    },
    /// A file breaks the rules of its format. Nothing of it was loaded.
    #[error("{}: {location}{reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        location: Location,
        /// Which rule is broken, with the numbers.
        reason: String,
    },
    /// A file is well-formed but needs something that this library does not have.
    #[error("{}: {location}{what} is not supported; {advice}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        location: Location,
        /// The type, version or feature.
        what: String,
        /// What the user can do instead.
        advice: String,
    },
    /// A path holds no weights in a form that can be opened.
    #[error("{}: {reason}", path.display())]
    NotFound {
        /// The file or folder asked for.
        path: PathBuf,
        /// What was looked for, what is there.
        reason: String,
    },
    /// A metadata key holds another type than the one it must have.
    #[error("{}: metadata key `{key}` must be {expected} but is {found}", path.display())]
    KeyType {
        /// The file.
        path: PathBuf,
        /// The metadata key.
        key: String,
        /// The type asked for.
        expected: &'static str,
        /// The type in the file.
        found: &'static str,
    },
    /// The files lack tensors that the model needs, or hold them in other shapes.
    #[error("{0}")]
    Mismatch(MismatchReport),
    /// A file was replaced or truncated after it had been opened.
    #[error(
        "{}: the file had {opened} bytes when it was opened and has {now} now; \
         do not change weight files while they are in use, load the model again",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Length when it was mapped.
        opened: u64,
        /// Length now.
        now: u64,
    },
    /// A tensor's values cannot be used in the way asked for.
    #[error("tensor `{tensor}` stored as {stored}: {reason}")]
    Unconvertible {
        /// Name of the tensor.
        tensor: String,
        /// Its type in the file.
        stored: &'static str,
        /// Why not.
        reason: String,
    },
    /// The tensor library or the device refused an operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl WeightsError {
    pub(super) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }

    pub(super) fn malformed(
        path: &Path,
        location: impl Into<Location>,
        reason: impl Into<String>,
    ) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            location: location.into(),
            reason: reason.into(),
        }
    }
}

/// Model construction mixes loading with tensor operations; `?` serves both.
impl From<WeightsError> for candle_core::Error {
    fn from(error: WeightsError) -> Self {
        match error {
            WeightsError::Tensor(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}

/// A place inside a file; written before the reason of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// The file as a whole.
    File,
    /// A byte offset from the start of the file.
    Offset(u64),
    /// A tensor by its name in the file.
    Tensor(String),
    /// A metadata key.
    Key(String),
}

impl Location {
    pub(super) fn tensor(name: &str) -> Self {
        Self::Tensor(printable(name))
    }

    pub(super) fn key(name: &str) -> Self {
        Self::Key(printable(name))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Offset(offset) => write!(f, "at byte {offset}: "),
            Self::Tensor(name) => write!(f, "tensor `{name}`: "),
            Self::Key(key) => write!(f, "metadata key `{key}`: "),
        }
    }
}

/// A name from a file, safe to print: no control characters, bounded length.
pub(super) fn printable(name: &str) -> String {
    const LONGEST: usize = 200;
    let mut shown: String = name
        .chars()
        .take(LONGEST)
        .flat_map(char::escape_debug)
        .collect();
    if name.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

/// One tensor that a model asked for and did not get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMismatch {
    /// The name the model asked for.
    pub name: String,
    /// The name looked up in the file, where that is another one.
    pub file_name: Option<String>,
    /// The shape the model asked for.
    pub expected: Vec<usize>,
    /// The shape in the file; none when the tensor is missing.
    pub found: Option<Vec<usize>>,
}

impl fmt::Display for TensorMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.name)?;
        if let Some(file_name) = &self.file_name {
            write!(f, " (`{file_name}` in the file)")?;
        }
        match &self.found {
            Some(found) => write!(f, " has shape {found:?}, expected {:?}", self.expected),
            None => write!(f, " is missing, expected shape {:?}", self.expected),
        }
    }
}

/// Everything that did not fit between a model and its files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MismatchReport {
    /// The file or folder that was loaded.
    pub path: PathBuf,
    /// The first ten, in the order of loading.
    pub first: Vec<TensorMismatch>,
    /// How many there are in all.
    pub total: usize,
}

impl fmt::Display for MismatchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.total == 1 {
            "tensor does"
        } else {
            "tensors do"
        };
        write!(
            f,
            "{}: {} {plural} not fit the model: ",
            self.path.display(),
            self.total
        )?;
        for (index, mismatch) in self.first.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{mismatch}")?;
        }
        if self.total > self.first.len() {
            write!(f, "; and {} more", self.total - self.first.len())?;
        }
        write!(
            f,
            "; check that the weights and config.json are of the same release"
        )
    }
}
