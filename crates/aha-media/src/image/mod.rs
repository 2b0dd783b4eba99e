//! Images: decoding, conversions, resizing and the arithmetic that models share.
//!
//! Every conversion and resize here gives the same bytes as the reference it is named after
//! ([`Resampler::Pillow`], [`Resampler::Torch`]), because models were trained on those bytes.

mod background;
mod convert;
mod decode;
mod encode;
mod geometry;
mod limits;
mod orientation;
mod resample;
mod sizing;
mod sniff;
mod tensor;

pub use background::{Background, UnknownColor, parse_color};
pub use decode::{DecodedImage, count_pages, decode, decode_page, decode_pages};
pub(crate) use decode::{gif, guarded as decode_guarded, malformed, webp_animation};
pub use encode::{ImageEncoding, UnknownEncoding, encode, encode_png};
pub use geometry::{PadOffset, center_crop, crop, pad_to, tiles};
pub use limits::Limits;
pub use orientation::Orientation;
pub use resample::{Filter, Resampler, resize};
pub use sizing::{
    PatchSizing, ShortSides, TileGrid, TileRule, choose_tile_grid, contained_size, round_half_even,
    smart_resize,
};
pub use sniff::{ImageFormat, sniff};
pub use tensor::{Normalization, PatchLayout, PatchOrder, interleaved, patches, planar};

use crate::MediaError;

/// What the samples of a pixel are, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channels {
    /// One sample of brightness.
    Gray,
    /// Brightness and alpha.
    GrayAlpha,
    /// Red, green, blue.
    Rgb,
    /// Red, green, blue, alpha; the colours are not multiplied with alpha.
    Rgba,
}

impl Channels {
    /// Samples a pixel.
    #[must_use]
    pub const fn count(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::GrayAlpha => 2,
            Self::Rgb => 3,
            Self::Rgba => 4,
        }
    }

    /// Whether the last sample is alpha.
    #[must_use]
    pub const fn has_alpha(self) -> bool {
        matches!(self, Self::GrayAlpha | Self::Rgba)
    }
}

/// An image of 8-bit samples, interleaved, row after row: `[height, width, channels]`. It has at
/// least one pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    width: u32,
    height: u32,
    channels: Channels,
    samples: Vec<u8>,
}

impl Image {
    /// An image of `samples`, which must be `height * width * channels` bytes.
    ///
    /// # Errors
    /// [`MediaError::InvalidSize`] when a side is zero or the samples are too few or too many.
    pub fn new(
        width: u32,
        height: u32,
        channels: Channels,
        samples: Vec<u8>,
    ) -> Result<Self, MediaError> {
        let invalid = |reason| MediaError::InvalidSize {
            width: width.into(),
            height: height.into(),
            reason,
        };
        if width == 0 || height == 0 {
            return Err(invalid("a side is zero"));
        }
        let expected = sample_count(width, height, channels)
            .ok_or_else(|| invalid("it is too large for this machine"))?;
        if samples.len() != expected {
            return Err(invalid("the number of samples does not fit"));
        }
        Ok(Self {
            width,
            height,
            channels,
            samples,
        })
    }

    /// An image of one colour.
    ///
    /// # Errors
    /// [`MediaError::InvalidSize`] when a side is zero or the image is too large to address.
    pub fn filled_rgb(width: u32, height: u32, color: [u8; 3]) -> Result<Self, MediaError> {
        let length = sample_count(width, height, Channels::Rgb).unwrap_or(0);
        let mut samples = vec![0; length];
        for pixel in samples.chunks_exact_mut(3) {
            pixel.copy_from_slice(&color);
        }
        Self::new(width, height, Channels::Rgb, samples)
    }

    /// Width in pixels.
    #[must_use]
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub const fn height(&self) -> u32 {
        self.height
    }

    /// What the samples of a pixel are.
    #[must_use]
    pub const fn channels(&self) -> Channels {
        self.channels
    }

    /// All samples, `[height, width, channels]`.
    #[must_use]
    pub fn samples(&self) -> &[u8] {
        &self.samples
    }

    /// The samples, without the image.
    #[must_use]
    pub fn into_samples(self) -> Vec<u8> {
        self.samples
    }

    /// Bytes of one row.
    #[must_use]
    pub const fn stride(&self) -> usize {
        self.width as usize * self.channels.count()
    }

    /// The samples of one row, or nothing below the image.
    #[must_use]
    pub fn row(&self, y: u32) -> &[u8] {
        let stride = self.stride();
        let start = y as usize * stride;
        self.samples.get(start..start + stride).unwrap_or(&[])
    }
}

/// `height * width * channels`, or `None` when it does not fit.
fn sample_count(width: u32, height: u32, channels: Channels) -> Option<usize> {
    (width as usize)
        .checked_mul(height as usize)?
        .checked_mul(channels.count())
        .filter(|&count| isize::try_from(count).is_ok())
}
