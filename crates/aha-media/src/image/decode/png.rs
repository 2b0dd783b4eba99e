//! PNG.

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::{ColorType, ImageDecoder};

use super::{clipped_gray, high_bytes, malformed};
use crate::MediaError;
use crate::image::{Channels, Image, Limits, Orientation};

/// Bytes that chunks besides the pixels (text, colour profiles) may expand to.
const METADATA_BYTES: u64 = 64 << 20;

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(Image, Orientation), MediaError> {
    let header = Header::read(bytes)
        .ok_or("the first chunk is no IHDR")
        .map_err(malformed("PNG"))?;
    let (width, height) = limits.check_pixels(header.width.into(), header.height.into())?;

    let mut allowed = image::Limits::no_limits();
    allowed.max_alloc = Some(u64::from(width) * u64::from(height) * 8 + METADATA_BYTES);
    let mut decoder =
        PngDecoder::with_limits(Cursor::new(bytes), allowed).map_err(malformed("PNG"))?;
    let exif = decoder.exif_metadata().map_err(malformed("PNG"))?;
    let orientation = exif.map_or(Orientation::Upright, |block| {
        Orientation::from_exif_block(&block)
    });
    let color = decoder.color_type();
    let mut samples = vec![0; usize::try_from(decoder.total_bytes()).unwrap_or(0)];
    decoder.read_image(&mut samples).map_err(malformed("PNG"))?;

    let (channels, samples) = match color {
        ColorType::L8 => (Channels::Gray, samples),
        ColorType::La8 => (Channels::GrayAlpha, samples),
        ColorType::Rgb8 => (Channels::Rgb, samples),
        ColorType::Rgba8 => (Channels::Rgba, samples),
        // Gray of 16 bits is cut off, its transparent value unused; with real alpha it is scaled.
        ColorType::L16 | ColorType::La16 if header.is_gray_without_alpha => {
            let step = color.bytes_per_pixel().into();
            let pixels = samples.chunks_exact(step);
            let gray = pixels.map(|pixel| u16::from_ne_bytes([pixel[0], pixel[1]]));
            (Channels::Gray, clipped_gray(gray))
        }
        ColorType::La16 => (Channels::GrayAlpha, high_bytes(&samples)),
        ColorType::Rgb16 => (Channels::Rgb, high_bytes(&samples)),
        ColorType::Rgba16 => (Channels::Rgba, high_bytes(&samples)),
        other => {
            return Err(MediaError::UnsupportedFeature {
                format: "PNG",
                feature: format!("{other:?} pixels"),
            });
        }
    };
    Ok((Image::new(width, height, channels, samples)?, orientation))
}

/// What the first chunk says.
struct Header {
    width: u32,
    height: u32,
    is_gray_without_alpha: bool,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let field = bytes.get(at..at + 4)?;
            field.try_into().ok().map(u32::from_be_bytes)
        };
        if bytes.get(12..16)? != b"IHDR" {
            return None;
        }
        Some(Self {
            width: word(16)?,
            height: word(20)?,
            is_gray_without_alpha: *bytes.get(25)? == 0,
        })
    }
}
