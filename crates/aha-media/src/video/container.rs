//! Which container a clip is in, by what its bytes begin with.

use crate::MediaError;

const SUPPORTED: &str = "MP4, MOV, WebM, MKV, AVI, GIF, animated WebP or a list of images";

/// A container that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VideoFormat {
    /// GIF.
    Gif,
    /// WebP, animated or still.
    WebP,
    /// MP4, MOV and their relatives.
    Mp4,
    /// Matroska and WebM.
    Matroska,
    /// AVI.
    Avi,
}

impl VideoFormat {
    /// The name for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Mp4 => "MP4",
            Self::Matroska => "WebM or MKV",
            Self::Avi => "AVI",
        }
    }

    /// The name of ffmpeg's reader. It is forced, so that no file can pass for a playlist that
    /// makes ffmpeg open other files or addresses.
    pub(super) const fn demuxer(self) -> &'static str {
        match self {
            Self::Gif => "gif",
            Self::WebP => "webp_pipe",
            Self::Mp4 => "mov",
            Self::Matroska => "matroska",
            Self::Avi => "avi",
        }
    }
}

/// The container of a clip, taken from its bytes.
///
/// # Errors
/// [`MediaError::UnknownFormat`], [`MediaError::UnsupportedFormat`] for pictures and containers that
/// are not read.
pub fn sniff(bytes: &[u8]) -> Result<VideoFormat, MediaError> {
    let format = match bytes {
        [b'G', b'I', b'F', b'8', ..] => VideoFormat::Gif,
        [b'R', b'I', b'F', b'F', _, _, _, _, kind @ ..] if kind.starts_with(b"WEBP") => {
            VideoFormat::WebP
        }
        [b'R', b'I', b'F', b'F', _, _, _, _, kind @ ..] if kind.starts_with(b"AVI ") => {
            VideoFormat::Avi
        }
        [0x1a, 0x45, 0xdf, 0xa3, ..] => VideoFormat::Matroska,
        [_, _, _, _, kind @ ..]
            if [b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"]
                .iter()
                .any(|atom| kind.starts_with(*atom)) =>
        {
            VideoFormat::Mp4
        }
        _ => {
            return Err(match crate::image::sniff(bytes) {
                Ok(image) => MediaError::UnsupportedFormat {
                    format: image.name(),
                    what: "a video",
                    supported: SUPPORTED,
                },
                Err(MediaError::UnsupportedFormat { format, .. }) => {
                    MediaError::UnsupportedFormat {
                        format,
                        what: "a video",
                        supported: SUPPORTED,
                    }
                }
                Err(_) => MediaError::UnknownFormat {
                    what: "video",
                    supported: SUPPORTED,
                },
            });
        }
    };
    Ok(format)
}
