//! Windows bitmaps.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::{ColorType, ImageDecoder};

use super::malformed;
use crate::MediaError;
use crate::image::{Channels, Image, Limits};

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Image, MediaError> {
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(malformed("BMP"))?;
    let (width, height) = decoder.dimensions();
    limits.check_pixels(width.into(), height.into())?;
    let channels = match decoder.color_type() {
        ColorType::L8 => Channels::Gray,
        ColorType::Rgb8 => Channels::Rgb,
        ColorType::Rgba8 => Channels::Rgba,
        other => {
            return Err(MediaError::UnsupportedFeature {
                format: "BMP",
                feature: format!("{other:?} pixels"),
            });
        }
    };
    let mut samples = vec![0; usize::try_from(decoder.total_bytes()).unwrap_or(0)];
    decoder.read_image(&mut samples).map_err(malformed("BMP"))?;
    Image::new(width, height, channels, samples)
}
