//! The bytes of a stream as symphonia wants them: past a leading ID3v2 tag, and never more than the
//! limit.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use symphonia::core::io::MediaSource;

use super::super::error::{AudioError, Result};
use super::limits::AudioLimits;
use super::sniff::{SNIFF_BYTES, id3v2_length};

/// Where encoded audio comes from. Cloning is cheap; the reader opens it anew, which is how a
/// second decoder gets its turn when the first does not know the codec.
#[derive(Debug, Clone)]
pub enum AudioSource {
    /// A file.
    Path(PathBuf),
    /// The whole content.
    Bytes(Arc<[u8]>),
}

impl From<PathBuf> for AudioSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&Path> for AudioSource {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<Vec<u8>> for AudioSource {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<&[u8]> for AudioSource {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<Arc<[u8]>> for AudioSource {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self::Bytes(bytes)
    }
}

/// A seekable view of a source that starts behind its ID3v2 tags: cover pictures of any size are
/// skipped, not read.
pub(super) struct TaglessStream {
    inner: Box<dyn ReadSeek>,
    /// Where the view starts in `inner`.
    start: u64,
    /// Bytes from `start` to the end.
    length: u64,
}

trait ReadSeek: Read + Seek + Send + Sync {}
impl<T: Read + Seek + Send + Sync> ReadSeek for T {}

impl TaglessStream {
    /// Bytes of the view.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Opens the source; gives the view and its first bytes.
    pub(super) fn open(source: &AudioSource, limits: &AudioLimits) -> Result<(Self, Vec<u8>)> {
        let (mut inner, total): (Box<dyn ReadSeek>, u64) = match source {
            AudioSource::Path(path) => {
                let what = format!("opening {}", path.display());
                let file = File::open(path).map_err(AudioError::io(what.clone()))?;
                let data = file.metadata().map_err(AudioError::io(what.clone()))?;
                if !data.is_file() {
                    return Err(AudioError::Io {
                        what,
                        source: io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"),
                    });
                }
                (Box::new(file), data.len())
            }
            AudioSource::Bytes(bytes) => {
                (Box::new(Cursor::new(Arc::clone(bytes))), bytes.len() as u64)
            }
        };
        limits.check_bytes(total)?;
        let mut start = 0;
        loop {
            let head = read_head(&mut inner, start)?;
            // Files exist with two tags; each moves the start on, so this ends.
            match id3v2_length(&head) {
                0 => {
                    inner
                        .seek(SeekFrom::Start(start))
                        .map_err(AudioError::io("seeking"))?;
                    return Ok((
                        Self {
                            inner,
                            start,
                            length: total.saturating_sub(start),
                        },
                        head,
                    ));
                }
                tag => start += tag,
            }
        }
    }
}

fn read_head(inner: &mut Box<dyn ReadSeek>, start: u64) -> Result<Vec<u8>> {
    inner
        .seek(SeekFrom::Start(start))
        .map_err(AudioError::io("seeking"))?;
    let mut head = Vec::with_capacity(SNIFF_BYTES);
    inner
        .take(SNIFF_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(AudioError::io("reading the start of the audio"))?;
    Ok(head)
}

impl Read for TaglessStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}

impl Seek for TaglessStream {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(offset) => SeekFrom::Start(
                self.start
                    .checked_add(offset)
                    .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?,
            ),
            other => other,
        };
        let position = self.inner.seek(to)?;
        position
            .checked_sub(self.start)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
    }
}

impl MediaSource for TaglessStream {
    fn is_seekable(&self) -> bool {
        true
    }

    fn byte_len(&self) -> Option<u64> {
        Some(self.length)
    }
}
