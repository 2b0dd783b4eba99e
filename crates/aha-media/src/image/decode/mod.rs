//! Encoded bytes to pixels.

mod bmp;
pub(crate) mod gif;
mod jpeg;
mod png;
mod tiff;
mod webp;
pub(crate) mod webp_animation;

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Image, ImageFormat, Limits, Orientation, sniff};
use crate::DecoderError;
use crate::MediaError;

/// A decoded image as it is stored, and how it must be turned to stand upright.
#[derive(Clone, Debug)]
pub struct DecodedImage {
    image: Image,
    orientation: Orientation,
    format: ImageFormat,
}

impl DecodedImage {
    /// Pixels that come from no file of their own, such as a rendered page: upright, and as good as a PNG.
    #[must_use]
    pub fn of(image: Image) -> Self {
        Self {
            image,
            orientation: Orientation::Upright,
            format: ImageFormat::Png,
        }
    }

    /// The image turned upright by its EXIF orientation. This is what vision-language and OCR
    /// references see: their loaders call Pillow's `exif_transpose` first.
    #[must_use]
    pub fn upright(self) -> Image {
        self.image.oriented(self.orientation)
    }

    /// The pixels in stored order, the orientation unused: what a reference sees that calls only
    /// `Image.open` (background removal by RMBG does).
    #[must_use]
    pub fn as_stored(self) -> Image {
        self.image
    }

    /// The pixels in stored order, still held here.
    #[must_use]
    pub const fn stored(&self) -> &Image {
        &self.image
    }

    /// The orientation that the file names. TIFF is always upright, because Pillow turns it while
    /// loading.
    #[must_use]
    pub const fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// The format that the bytes were in.
    #[must_use]
    pub const fn format(&self) -> ImageFormat {
        self.format
    }
}

/// Decodes an image. The format is taken from the bytes; of animations and documents it is the
/// first frame or page. Palettes are expanded, 16-bit samples and CMYK become 8-bit gray or RGB by
/// Pillow's rules, alpha is kept.
///
/// # Errors
/// [`MediaError::Empty`], [`MediaError::TooManyBytes`], [`MediaError::TooManyPixels`] before any
/// pixel is allocated, [`MediaError::UnknownFormat`] and [`MediaError::UnsupportedFormat`] for
/// other bytes, [`MediaError::Malformed`] for broken or truncated ones,
/// [`MediaError::UnsupportedFeature`] for a variant that is not decoded.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<DecodedImage, MediaError> {
    limits.check_bytes("image", bytes.len() as u64)?;
    let format = sniff(bytes)?;
    guarded(format.name(), || {
        let (image, orientation) = match format {
            ImageFormat::Png => png::decode(bytes, limits)?,
            ImageFormat::Jpeg => jpeg::decode(bytes, limits)?,
            ImageFormat::WebP => webp::decode(bytes, limits)?,
            ImageFormat::Gif => (gif::decode_first(bytes, limits)?, Orientation::Upright),
            ImageFormat::Bmp => (bmp::decode(bytes, limits)?, Orientation::Upright),
            ImageFormat::Tiff => (tiff::decode_first(bytes, limits)?, Orientation::Upright),
        };
        Ok(DecodedImage {
            image,
            orientation,
            format,
        })
    })
}

/// Decodes every page of a document: all pages of a TIFF, the one image of any other format. The
/// pages are handed to `visit` one by one, so that only one is in memory; it answers whether to go
/// on.
///
/// # Errors
/// As [`decode`], and [`MediaError::TooManyFrames`] when there are more pages than the limit.
pub fn decode_pages(
    bytes: &[u8],
    limits: &Limits,
    mut visit: impl FnMut(usize, DecodedImage) -> Result<bool, MediaError>,
) -> Result<(), MediaError> {
    limits.check_bytes("document", bytes.len() as u64)?;
    if sniff(bytes)? != ImageFormat::Tiff {
        visit(0, decode(bytes, limits)?)?;
        return Ok(());
    }
    let mut pages = guarded("TIFF", || tiff::Pages::new(bytes, *limits))?;
    let mut index = 0;
    while let Some(image) = guarded("TIFF", || pages.next_page())? {
        let page = DecodedImage {
            image,
            orientation: Orientation::Upright,
            format: ImageFormat::Tiff,
        };
        if !visit(index, page)? {
            break;
        }
        index += 1;
    }
    Ok(())
}

/// Pages of a document: those of a TIFF, one of any other format. No pixel is decoded.
///
/// # Errors
/// As [`decode_pages`], but for faults in the pixels.
pub fn count_pages(bytes: &[u8], limits: &Limits) -> Result<usize, MediaError> {
    limits.check_bytes("document", bytes.len() as u64)?;
    if sniff(bytes)? != ImageFormat::Tiff {
        return Ok(1);
    }
    guarded("TIFF", || {
        let mut pages = tiff::Pages::new(bytes, *limits)?;
        let mut count = 0;
        while pages.advance()? {
            count += 1;
        }
        Ok(count)
    })
}

/// Decodes the page `index` (from 0) of a document: of a TIFF, or the one image of any other format.
///
/// # Errors
/// As [`decode`], and [`MediaError::Malformed`] when there is no such page.
pub fn decode_page(
    bytes: &[u8],
    index: usize,
    limits: &Limits,
) -> Result<DecodedImage, MediaError> {
    if sniff(bytes)? != ImageFormat::Tiff {
        return decode(bytes, limits);
    }
    limits.check_bytes("document", bytes.len() as u64)?;
    let image = guarded("TIFF", || {
        let mut pages = tiff::Pages::new(bytes, *limits)?;
        for _ in 0..index {
            pages.advance()?;
        }
        let page = pages.next_page()?;
        page.ok_or_else(|| malformed("TIFF")("there are fewer pages"))
    })?;
    Ok(DecodedImage {
        image,
        orientation: Orientation::Upright,
        format: ImageFormat::Tiff,
    })
}

/// Runs a decoder so that a panic inside it is an error of the file that caused it.
pub(crate) fn guarded<T>(
    format: &'static str,
    decoder: impl FnOnce() -> Result<T, MediaError>,
) -> Result<T, MediaError> {
    catch_unwind(AssertUnwindSafe(decoder)).unwrap_or_else(|_| {
        Err(malformed(format)(
            "the decoder stopped at a broken invariant",
        ))
    })
}

/// Makes a decoder's error one of this crate.
pub(crate) fn malformed<E: Into<DecoderError>>(format: &'static str) -> impl Fn(E) -> MediaError {
    move |source| MediaError::Malformed {
        format,
        source: source.into(),
    }
}

/// The high bytes of 16-bit samples in the machine's order: how Pillow reads 16-bit colour.
fn high_bytes(samples: &[u8]) -> Vec<u8> {
    let pairs = samples.chunks_exact(2);
    pairs
        .map(|pair| (u16::from_ne_bytes([pair[0], pair[1]]) >> 8) as u8)
        .collect()
}

/// 16-bit gray as 8-bit gray: Pillow cuts off at 255 instead of scaling.
fn clipped_gray(samples: impl Iterator<Item = u16>) -> Vec<u8> {
    samples.map(|sample| sample.min(255) as u8).collect()
}
