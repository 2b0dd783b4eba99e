//! JPEG.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::malformed;
use crate::MediaError;
use crate::image::convert::cmyk_to_rgb;
use crate::image::{Channels, Image, Limits, Orientation};

/// Sides are 16 bits in the format; the limit that counts is the one of pixels.
const MAX_SIDE: usize = 65_535;

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(Image, Orientation), MediaError> {
    let options = DecoderOptions::default()
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(broken)?;
    let (width, height) = decoder.dimensions().unwrap_or((0, 0));
    let (width, height) = limits.check_pixels(width as u64, height as u64)?;
    // Like libjpeg, the decoder fills up what is missing; a reference refuses such a file.
    if !has_end_marker(bytes) {
        return Err(malformed("JPEG")("there is no end marker after the scans"));
    }
    let orientation = decoder.exif().map_or(Orientation::Upright, |block| {
        Orientation::from_exif_block(block)
    });

    let stored = decoder.input_colorspace();
    let output = match stored {
        Some(ColorSpace::Luma) => ColorSpace::Luma,
        Some(ColorSpace::CMYK | ColorSpace::YCCK) => ColorSpace::CMYK,
        _ => ColorSpace::RGB,
    };
    decoder.set_options(options.jpeg_set_out_colorspace(output));
    let mut samples = decoder.decode().map_err(broken)?;

    let (channels, samples) = match output {
        ColorSpace::Luma => (Channels::Gray, samples),
        ColorSpace::CMYK => {
            if has_adobe_marker(bytes) {
                // Adobe stores the inks inverted.
                for sample in &mut samples {
                    *sample = 255 - *sample;
                }
            }
            (Channels::Rgb, cmyk_to_rgb(&samples))
        }
        _ => (Channels::Rgb, samples),
    };
    Ok((Image::new(width, height, channels, samples)?, orientation))
}

fn broken(error: zune_jpeg::errors::DecodeErrors) -> MediaError {
    malformed("JPEG")(error.to_string())
}

/// Marker segments before the first scan: code, start of the payload, payload.
fn segments(bytes: &[u8]) -> impl Iterator<Item = (u8, usize, &[u8])> {
    let mut at = 2;
    std::iter::from_fn(move || {
        while bytes.get(at) == Some(&0xff) && bytes.get(at + 1) == Some(&0xff) {
            at += 1;
        }
        let header = bytes.get(at..at + 4)?;
        if header[0] != 0xff {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let payload = bytes.get(at + 4..at + 2 + length.max(2))?;
        let start = at + 4;
        at += 2 + length.max(2);
        Some((header[1], start, payload))
    })
}

/// Whether an end marker follows the first scan. Inside a scan no such bytes can stand.
fn has_end_marker(bytes: &[u8]) -> bool {
    let scan = segments(bytes).find(|&(code, ..)| code == 0xda);
    scan.is_some_and(|(_, start, _)| {
        let after = &bytes[start..];
        after.windows(2).rev().any(|pair| pair == [0xff, 0xd9])
    })
}

fn has_adobe_marker(bytes: &[u8]) -> bool {
    segments(bytes)
        .take_while(|&(code, ..)| code != 0xda)
        .any(|(code, _, payload)| code == 0xee && payload.starts_with(b"Adobe"))
}
