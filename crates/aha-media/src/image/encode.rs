//! Pixels to files, without loss.

use super::{Channels, Image};
use crate::MediaError;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use image_webp::{ColorType, WebPEncoder};
use std::fmt;
use std::str::FromStr;

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
/// [`MediaError::SideTooLong`] for a WebP of more than 16 384 pixels a side, [`MediaError::InvalidSize`] for an image
/// that the format's encoder refuses.
pub fn encode(image: &Image, encoding: ImageEncoding) -> Result<Vec<u8>, MediaError> {
    let (width, height) = (image.width, image.height);
    let mut file = Vec::new();
    let written = match encoding {
        ImageEncoding::Png => {
            let color = match image.channels {
                Channels::Gray => ExtendedColorType::L8,
                Channels::GrayAlpha => ExtendedColorType::La8,
                Channels::Rgb => ExtendedColorType::Rgb8,
                Channels::Rgba => ExtendedColorType::Rgba8,
            };
            PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Adaptive)
                .write_image(&image.samples, width, height, color)
                .is_ok()
        }
        ImageEncoding::WebP => {
            let limit = 1 << 14;
            if width > limit || height > limit {
                return Err(MediaError::SideTooLong {
                    width: width.into(),
                    height: height.into(),
                    limit,
                });
            }
            let color = match image.channels {
                Channels::Gray => ColorType::L8,
                Channels::GrayAlpha => ColorType::La8,
                Channels::Rgb => ColorType::Rgb8,
                Channels::Rgba => ColorType::Rgba8,
            };
            WebPEncoder::new(&mut file)
                .encode(&image.samples, width, height, color)
                .is_ok()
        }
    };
    if written {
        return Ok(file);
    }
    Err(MediaError::InvalidSize {
        width: width.into(),
        height: height.into(),
        reason: "the encoder refuses it",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Limits, decode};

    #[test]
    fn what_is_written_is_read_again_pixel_by_pixel() {
        for (channels, same) in [
            (Channels::Gray, true),
            (Channels::Rgb, true),
            (Channels::Rgba, true),
            (Channels::GrayAlpha, true),
        ] {
            let samples = (0..7 * 5 * channels.count()).map(|index| (index * 37 % 251) as u8);
            let image = Image::new(7, 5, channels, samples.collect()).unwrap();
            for encoding in [ImageEncoding::Png, ImageEncoding::WebP] {
                let file = encode(&image, encoding).unwrap();
                let read = decode(&file, &Limits::default()).unwrap();
                assert_eq!(read.format().name().to_lowercase(), encoding.name());
                let read = read.as_stored();
                assert_eq!((read.width(), read.height()), (7, 5));
                // WebP knows colours only, with alpha or without.
                if same && (encoding == ImageEncoding::Png || channels.count() >= 3) {
                    assert_eq!(read, image, "{encoding}");
                } else if !channels.has_alpha() {
                    let gray: Vec<u8> = read.samples().chunks(3).map(|pixel| pixel[0]).collect();
                    assert_eq!(gray, image.samples(), "{encoding}");
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
