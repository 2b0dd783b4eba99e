//! WebP.

use std::io::Cursor;

use image_webp::WebPDecoder;

use super::malformed;
use super::webp_animation::Animation;
use crate::MediaError;
use crate::image::{Channels, Image, Limits, Orientation};

/// The image, or the first frame of an animation.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(Image, Orientation), MediaError> {
    let exif = chunks(bytes.get(12..).unwrap_or(&[])).find(|(kind, _)| *kind == b"EXIF");
    let orientation = exif.map_or(Orientation::Upright, |(_, block)| {
        Orientation::from_exif_block(block)
    });
    let image = match Animation::open(bytes, limits)? {
        None => decode_still(bytes, limits)?,
        Some(mut animation) => animation
            .next_frame()?
            .ok_or("there is no frame")
            .map_err(malformed("WebP"))?,
    };
    Ok((image, orientation))
}

/// An image without frames.
pub(super) fn decode_still(bytes: &[u8], limits: &Limits) -> Result<Image, MediaError> {
    check_picture(bytes, limits)?;
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(malformed("WebP"))?;
    let (width, height) = decoder.dimensions();
    limits.check_pixels(width.into(), height.into())?;
    let channels = if decoder.has_alpha() {
        Channels::Rgba
    } else {
        Channels::Rgb
    };
    let mut samples = vec![0; decoder.output_buffer_size().unwrap_or(0)];
    decoder
        .read_image(&mut samples)
        .map_err(malformed("WebP"))?;
    Image::new(width, height, channels, samples)
}

/// The chunks of a file after its head, or of a frame: their names and contents.
pub(super) fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (kind, after) = rest.split_first_chunk::<4>()?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        // A chunk that ends too early comes as far as it goes; its decoder complains.
        let content = &after[..length.min(after.len())];
        rest = after
            .get(length.saturating_add(length % 2)..)
            .unwrap_or(&[]);
        Some((kind, content))
    })
}

/// Checks width and height that the picture itself declares: the decoder compares them with those
/// of the file only after decoding.
fn check_picture(bytes: &[u8], limits: &Limits) -> Result<(), MediaError> {
    for chunk in chunks(bytes.get(12..).unwrap_or(&[])) {
        let (width, height) = match chunk {
            (b"VP8 ", [_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1, ..]) => {
                let side = |low, high| u64::from(u16::from_le_bytes([low, high]) & 0x3fff);
                (side(*w0, *w1), side(*h0, *h1))
            }
            (b"VP8L", [0x2f, a, b, c, d, ..]) => {
                let packed = u32::from_le_bytes([*a, *b, *c, *d]);
                let side = |bits: u32| u64::from((bits & 0x3fff) + 1);
                (side(packed), side(packed >> 14))
            }
            _ => continue,
        };
        limits.check_pixels(width, height)?;
    }
    Ok(())
}
