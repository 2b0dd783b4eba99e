//! Which format bytes are in, by what they begin with. Names and MIME types are not believed.

use crate::MediaError;

/// The formats that are decoded, in words.
const SUPPORTED: &str = "PNG, JPEG, WebP, GIF, BMP or TIFF";

/// A format that is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageFormat {
    /// Portable Network Graphics, and the first image of APNG.
    Png,
    /// JPEG, baseline or progressive.
    Jpeg,
    /// WebP, lossy or lossless, and the first frame of an animation.
    WebP,
    /// GIF, and the first frame of an animation.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF, and the first page of a document.
    Tiff,
}

impl ImageFormat {
    /// The name for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        }
    }
}

/// The format of an encoded image.
///
/// # Errors
/// [`MediaError::Empty`] for no bytes, [`MediaError::UnsupportedFormat`] naming a format that is
/// known but not decoded, [`MediaError::UnknownFormat`] for everything else.
pub fn sniff(bytes: &[u8]) -> Result<ImageFormat, MediaError> {
    if bytes.is_empty() {
        return Err(MediaError::Empty { what: "image" });
    }
    let format = match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => ImageFormat::Png,
        [0xff, 0xd8, 0xff, ..] => ImageFormat::Jpeg,
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => ImageFormat::WebP,
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => ImageFormat::Gif,
        [b'B', b'M', ..] if bytes.len() > 26 => ImageFormat::Bmp,
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => ImageFormat::Tiff,
        _ => return Err(refusal(bytes)),
    };
    Ok(format)
}

/// The error for bytes that are no image of a decoded format, with the name of what they are.
fn refusal(bytes: &[u8]) -> MediaError {
    let brand = match bytes {
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => brand.get(..4),
        _ => None,
    };
    let text = bytes.trim_ascii_start();
    let head = &text[..text.len().min(256)];
    let lower = head.to_ascii_lowercase();
    let format = match (brand, bytes) {
        (Some(b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1"), _) => "HEIC",
        (Some(b"avif" | b"avis"), _) => "AVIF",
        (Some(_), _) => "a video file (MP4 or MOV)",
        (_, [b'%', b'P', b'D', b'F', ..]) => "PDF",
        (_, [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..]) => "JPEG XL",
        (_, [0, 0, 0, 12, b'j', b'P', ..] | [0xff, 0x4f, 0xff, 0x51, ..]) => "JPEG 2000",
        (_, [0, 0, 1, 0, ..]) => "ICO",
        (_, [b'8', b'B', b'P', b'S', ..]) => "Photoshop (PSD)",
        (_, [b'q', b'o', b'i', b'f', ..]) => "QOI",
        (_, [0x76, 0x2f, 0x31, 0x01, ..]) => "OpenEXR",
        (_, [0x1a, 0x45, 0xdf, 0xa3, ..]) => "a video file (WebM or MKV)",
        (_, [b'M', b'Z', ..] | [0x7f, b'E', b'L', b'F', ..]) => "a program",
        (_, [b'P', b'K', 3, 4, ..]) => "a ZIP archive",
        _ if lower.starts_with(b"<svg")
            || (lower.starts_with(b"<?xml") && contains(&lower, b"<svg")) =>
        {
            "SVG"
        }
        _ if lower.starts_with(b"<!doctype html") || lower.starts_with(b"<html") => "HTML",
        _ => {
            return MediaError::UnknownFormat {
                what: "image",
                supported: SUPPORTED,
            };
        }
    };
    MediaError::UnsupportedFormat {
        format,
        what: "an image",
        supported: SUPPORTED,
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
