//! Pixels to files, without loss.

use super::{Channels, Image};
use crate::MediaError;
use ::image::codecs::png::PngEncoder;
use ::image::{ExtendedColorType, ImageEncoder};
use image_webp::{ColorType, WebPEncoder};
use std::fmt;
use std::str::FromStr;

/// What WebP has room for.
const LONGEST_WEBP_SIDE: u32 = 1 << 14;

/// A format that keeps every pixel as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ImageEncoding {
    /// PNG.
    #[default]
    Png,
    /// Lossless WebP: smaller, and sides of at most 16 384 pixels.
    WebP,
}

/// A word that names no encoding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown picture format `{0}`; use png or webp")]
pub struct UnknownEncoding(String);

impl ImageEncoding {
    /// The format's name, which is also the ending of its files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::WebP => "webp",
        }
    }

    /// What HTTP calls it.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::WebP => "image/webp",
        }
    }
}

impl FromStr for ImageEncoding {
    type Err = UnknownEncoding;

    fn from_str(text: &str) -> Result<Self, UnknownEncoding> {
        [Self::Png, Self::WebP]
            .into_iter()
            .find(|encoding| encoding.name() == text)
            .ok_or_else(|| UnknownEncoding(text.to_owned()))
    }
}

impl fmt::Display for ImageEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The file of an image.
///
/// # Errors
/// [`MediaError::SideTooLong`] for a WebP of more than 16 384 pixels a side, [`MediaError::Io`] when the encoder fails,
/// which memory alone can cause.
pub fn encode(image: &Image, encoding: ImageEncoding) -> Result<Vec<u8>, MediaError> {
    match encoding {
        ImageEncoding::Png => encode_png(image),
        ImageEncoding::WebP => encode_webp(image),
    }
}

/// The image as a PNG file; equal images give equal bytes.
///
/// # Errors
/// [`MediaError::Io`] when the encoder fails, which memory alone can cause.
pub fn encode_png(image: &Image) -> Result<Vec<u8>, MediaError> {
    let color = match image.channels() {
        Channels::Gray => ExtendedColorType::L8,
        Channels::GrayAlpha => ExtendedColorType::La8,
        Channels::Rgb => ExtendedColorType::Rgb8,
        Channels::Rgba => ExtendedColorType::Rgba8,
    };
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(image.samples(), image.width(), image.height(), color)
        .map_err(|error| MediaError::Io {
            what: "encoding the PNG",
            source: std::io::Error::other(error),
        })?;
    Ok(bytes)
}

fn encode_webp(image: &Image) -> Result<Vec<u8>, MediaError> {
    let (width, height) = (image.width(), image.height());
    if width.max(height) > LONGEST_WEBP_SIDE {
        return Err(MediaError::SideTooLong {
            width: width.into(),
            height: height.into(),
            limit: LONGEST_WEBP_SIDE,
        });
    }
    let color = match image.channels() {
        Channels::Gray => ColorType::L8,
        Channels::GrayAlpha => ColorType::La8,
        Channels::Rgb => ColorType::Rgb8,
        Channels::Rgba => ColorType::Rgba8,
    };
    let mut bytes = Vec::new();
    WebPEncoder::new(&mut bytes)
        .encode(image.samples(), width, height, color)
        .map_err(|error| MediaError::Io {
            what: "encoding the WebP",
            source: std::io::Error::other(error),
        })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Limits, decode};

    #[test]
    fn what_is_encoded_is_decoded_again() {
        for channels in [
            Channels::Gray,
            Channels::GrayAlpha,
            Channels::Rgb,
            Channels::Rgba,
        ] {
            let samples = (0..7 * 5 * channels.count()).map(|index| (index * 37 % 251) as u8);
            let image = Image::new(7, 5, channels, samples.collect()).unwrap();
            for encoding in [ImageEncoding::Png, ImageEncoding::WebP] {
                let file = encode(&image, encoding).unwrap();
                assert_eq!(encode(&image, encoding).unwrap(), file);
                let read = decode(&file, &Limits::default()).unwrap();
                assert_eq!(read.format().name().to_lowercase(), encoding.name());
                let read = read.as_stored();
                if encoding == ImageEncoding::Png || channels.count() >= 3 {
                    assert_eq!(read, image, "{encoding}");
                    continue;
                }
                // WebP knows colours only, with alpha or without.
                let own = image.samples().chunks(channels.count());
                for (pixel, own) in read.samples().chunks(channels.count() + 2).zip(own) {
                    assert_eq!(pixel[..3], [own[0]; 3], "{encoding}");
                    assert_eq!(pixel.get(3), own.get(1), "{encoding}");
                }
            }
        }
    }

    #[test]
    fn a_webp_has_a_longest_side_and_names_are_checked() {
        let image = Image::filled_rgb(16_385, 1, [1, 2, 3]).unwrap();
        let error = encode(&image, ImageEncoding::WebP).unwrap_err();
        assert!(matches!(error, MediaError::SideTooLong { .. }), "{error}");
        assert!(encode(&image, ImageEncoding::Png).is_ok());
        assert_eq!("webp".parse(), Ok(ImageEncoding::WebP));
        assert!("jpeg".parse::<ImageEncoding>().is_err());
    }
}
