//! Resizing that gives the bytes of the references.
//!
//! Both references widen the filter when they shrink, run one pass a direction, weigh with integers
//! and round to 8 bits after each pass. They differ in the precision of the integers and in which
//! pass comes first.

mod coefficients;
mod nearest;
mod passes;

use super::{Channels, Image, Limits};
use crate::MediaError;
use coefficients::{Coefficients, Precision};
use passes::{horizontal, vertical};

/// Most pixels of a result, and most of one side: sizes come from requests and configurations, and
/// nothing else would bound the memory of the weights and the result.
const MAX_PIXELS: u64 = 256 << 20;
const MAX_SIDE: u32 = 1 << 17;

/// How neighbouring pixels are weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The nearest pixel; nothing is mixed.
    Nearest,
    /// The mean of the covered pixels.
    Box,
    /// A triangle, two pixels wide.
    Bilinear,
    /// Hamming-windowed sinc, two pixels wide.
    Hamming,
    /// The cubic with a = -0.5, four pixels wide.
    Bicubic,
    /// Sinc windowed by sinc, six pixels wide.
    Lanczos,
}

impl Filter {
    /// The filter of a `resample` number in a preprocessor configuration (Pillow's numbers).
    #[must_use]
    pub const fn from_pillow_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Nearest),
            1 => Some(Self::Lanczos),
            2 => Some(Self::Bilinear),
            3 => Some(Self::Bicubic),
            4 => Some(Self::Box),
            5 => Some(Self::Hamming),
            _ => None,
        }
    }
}

/// Whose arithmetic a resize repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resampler {
    /// `PIL.Image.resize` of Pillow 13: 22-bit weights; the vertical pass comes first when the
    /// height shrinks by more than twice what the width shrinks by. Colours are multiplied with
    /// alpha while they are mixed.
    Pillow,
    /// `torchvision.transforms.v2.functional.resize` of 8-bit tensors with antialiasing: weights of
    /// at most 16 bits, the horizontal pass first, alpha a channel like any other. It has no
    /// [`Filter::Nearest`] here.
    Torch,
}

/// Resizes an image to `width` times `height`; the same size gives the same pixels.
///
/// # Errors
/// [`MediaError::InvalidSize`] when a side is zero, [`MediaError::TooManyPixels`] and
/// [`MediaError::SideTooLong`] for a result above 256 Mpixel or 131 072 pixels a side,
/// [`MediaError::InvalidSetting`] for a filter that the resampler lacks.
pub fn resize(
    image: &Image,
    width: u32,
    height: u32,
    filter: Filter,
    resampler: Resampler,
) -> Result<Image, MediaError> {
    let allowed = Limits {
        max_pixels: MAX_PIXELS,
        max_side: MAX_SIDE,
        ..Limits::default()
    };
    allowed.check_pixels(width.into(), height.into())?;
    if (width, height) == (image.width, image.height) {
        return Ok(image.clone());
    }
    if filter == Filter::Nearest {
        return match resampler {
            Resampler::Pillow => nearest::resize(image, width, height),
            Resampler::Torch => Err(MediaError::InvalidSetting {
                name: "resample",
                reason: "the nearest pixel is only known as Pillow chooses it".to_owned(),
            }),
        };
    }
    if resampler == Resampler::Pillow && image.channels.has_alpha() {
        let mut premultiplied = image.clone();
        premultiplied.premultiply();
        let mut resized = weighed(&premultiplied, width, height, filter, resampler)?;
        resized.unpremultiply();
        return Ok(resized);
    }
    weighed(image, width, height, filter, resampler)
}

/// The two passes.
fn weighed(
    image: &Image,
    width: u32,
    height: u32,
    filter: Filter,
    resampler: Resampler,
) -> Result<Image, MediaError> {
    let precision = match resampler {
        Resampler::Pillow => Precision::Fixed(22),
        Resampler::Torch => Precision::Fit16Bits,
    };
    let columns =
        (width != image.width).then(|| Coefficients::new(image.width, width, filter, precision));
    let rows = (height != image.height)
        .then(|| Coefficients::new(image.height, height, filter, precision));
    match (columns, rows) {
        (Some(columns), Some(rows)) => {
            if resampler == Resampler::Pillow && vertical_first(image, width, height) {
                horizontal(&vertical(image, &rows)?, &columns)
            } else {
                vertical(&horizontal(image, &columns)?, &rows)
            }
        }
        (Some(columns), None) => horizontal(image, &columns),
        (None, Some(rows)) => vertical(image, &rows),
        (None, None) => Ok(image.clone()),
    }
}

/// Pillow's choice of the first pass (found by comparing its output for several thousand sizes).
fn vertical_first(image: &Image, width: u32, height: u32) -> bool {
    let lost_columns = i64::from(image.width) - i64::from(width);
    let lost_rows = i64::from(image.height) - i64::from(height);
    lost_rows > 0 && lost_rows > 2 * lost_columns
}

/// An image for the result of a pass, all zero.
fn blank(width: u32, height: u32, channels: Channels) -> Result<Image, MediaError> {
    let count = super::sample_count(width, height, channels).unwrap_or(0);
    Image::new(width, height, channels, vec![0; count])
}
