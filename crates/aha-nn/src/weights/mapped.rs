//! Read-only memory mapping of weight files: the only `unsafe` of this crate.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::error::{Location, Result, WeightsError};

/// The contents of a weight file, mapped read-only (or held in memory).
///
/// A mapping sees what later happens to its file. The length at opening is kept, and
/// [`MappedFile::ensure_unchanged`] compares it before tensors are taken; a file that shrinks *while* its
/// pages are being read, by loading or by products with matrices that are not packed yet ([`super::Unpacked`]),
/// still ends the process (`SIGBUS`), so weight files must be replaced by renaming a new file over the old one,
/// which leaves open mappings intact.
pub struct MappedFile {
    path: PathBuf,
    contents: Contents,
}

enum Contents {
    Mapped { map: Mmap, file: File, length: u64 },
    Memory(Vec<u8>),
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// [`WeightsError::Io`] when it cannot be opened or mapped; [`WeightsError::Malformed`] when it is
    /// empty; [`WeightsError::NotFound`] when it is not a regular file (a device or pipe never ends).
    pub fn open(path: &Path) -> Result<Self> {
        // Asked before opening: opening a pipe for reading waits for a writer.
        let metadata = std::fs::metadata(path)
            .map_err(|error| WeightsError::io(path, "open the file", error))?;
        if !metadata.is_file() {
            return Err(WeightsError::NotFound {
                path: path.to_owned(),
                reason: "is not a regular file".to_owned(),
            });
        }
        let file =
            File::open(path).map_err(|error| WeightsError::io(path, "open the file", error))?;
        if metadata.len() == 0 {
            return Err(WeightsError::malformed(
                path,
                Location::File,
                "the file is empty; download it again",
            ));
        }
        let map = map(&file).map_err(|error| WeightsError::io(path, "map the file", error))?;
        let length = map.len() as u64;
        Ok(Self {
            path: path.to_owned(),
            contents: Contents::Mapped { map, file, length },
        })
    }

    /// Contents that are already in memory; `path` only names them in errors.
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Self {
        Self {
            path: path.into(),
            contents: Contents::Memory(bytes),
        }
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        match &self.contents {
            Contents::Mapped { map, .. } => map,
            Contents::Memory(bytes) => bytes,
        }
    }

    /// Tells the system that a range will not be read again soon, so that its pages need not stay resident. A hint:
    /// reading them again brings them back.
    pub fn release(&self, range: std::ops::Range<usize>) {
        if let Contents::Mapped { map, .. } = &self.contents {
            release(map, range);
        }
    }

    /// Tells the system that a range will be read soon. A hint.
    pub fn will_need(&self, range: std::ops::Range<usize>) {
        if let Contents::Mapped { map, .. } = &self.contents {
            will_need(map, range);
        }
    }

    /// Where the file was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the file still has the length it had when it was mapped.
    ///
    /// # Errors
    /// [`WeightsError::Changed`] when it has not.
    pub fn ensure_unchanged(&self) -> Result<()> {
        let Contents::Mapped { file, length, .. } = &self.contents else {
            return Ok(());
        };
        let now = file
            .metadata()
            .map_err(|error| WeightsError::io(&self.path, "read the length of the file", error))?
            .len();
        if now == *length {
            Ok(())
        } else {
            Err(WeightsError::Changed {
                path: self.path.clone(),
                opened: *length,
                now,
            })
        }
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedFile")
            .field("path", &self.path)
            .field("length", &self.bytes().len())
            .finish_non_exhaustive()
    }
}

#[allow(unsafe_code, reason = "a file mapping has no safe interface")]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is private to this type, read-only, and handed out only as `&[u8]` that lives no
    // longer than it. No code here writes to weight files; that others do not truncate them is the caller's
    // duty, stated on `MappedFile`, and checked before each tensor is taken.
    unsafe { Mmap::map(file) }
}

#[cfg(unix)]
#[allow(unsafe_code, reason = "advice on a mapping has no safe interface")]
fn release(map: &Mmap, range: std::ops::Range<usize>) {
    // Only whole pages inside the range: its neighbours may still be needed.
    const PAGE: usize = 1 << 16;
    let start = range.start.next_multiple_of(PAGE);
    let end = range.end.min(map.len()) / PAGE * PAGE;
    if start < end {
        // SAFETY: the mapping is read-only and backed by its file, so dropped pages are read from there again with
        // the same content; no reference can see a difference.
        let advised = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
        };
        if let Err(error) = advised {
            tracing::debug!(%error, "pages of a weight file stay resident");
        }
    }
}

#[cfg(unix)]
fn will_need(map: &Mmap, range: std::ops::Range<usize>) {
    let advised = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
    if let Err(error) = advised {
        tracing::debug!(%error, "a weight file is read as it is needed");
    }
}

#[cfg(not(unix))]
fn will_need(_: &Mmap, _: std::ops::Range<usize>) {}

#[cfg(not(unix))]
fn release(_: &Mmap, _: std::ops::Range<usize>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.bin");
        std::fs::write(&path, [1u8; 100]).unwrap();
        let mapped = MappedFile::open(&path).unwrap();
        assert_eq!(mapped.bytes().len(), 100);
        mapped.ensure_unchanged().unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(10)
            .unwrap();
        let message = mapped.ensure_unchanged().unwrap_err().to_string();
        assert!(
            message.contains("100 bytes") && message.contains("10 now"),
            "{message}"
        );
    }

    #[test]
    fn empty_absent_and_irregular_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.safetensors");
        std::fs::write(&path, []).unwrap();
        assert!(matches!(
            MappedFile::open(&path),
            Err(WeightsError::Malformed { .. })
        ));
        assert!(matches!(
            MappedFile::open(&folder.path().join("absent")),
            Err(WeightsError::Io { .. })
        ));
        assert!(matches!(
            MappedFile::open(folder.path()),
            Err(WeightsError::NotFound { .. })
        ));
    }
}
