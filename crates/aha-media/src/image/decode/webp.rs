//! WebP, still and animated.

use std::io::Cursor;

use image_webp::WebPDecoder;

use super::malformed;
use crate::MediaError;
use crate::image::{Channels, Image, Limits, Orientation};

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(Image, Orientation), MediaError> {
    let mut decoder = open(bytes, limits)?;
    let exif = decoder.exif_metadata().ok().flatten();
    let orientation = exif.map_or(Orientation::Upright, |block| {
        Orientation::from_exif_block(&block)
    });
    let (width, height) = decoder.dimensions();
    let (channels, mut samples) = frame_buffer(&decoder);
    decoder
        .read_image(&mut samples)
        .map_err(malformed("WebP"))?;
    Ok((Image::new(width, height, channels, samples)?, orientation))
}

/// An animation, whose frames come complete, in order.
pub(crate) struct Animation<'a> {
    decoder: WebPDecoder<Cursor<&'a [u8]>>,
}

impl<'a> Animation<'a> {
    /// Opens a file; `None` when it is a still image.
    pub(crate) fn open(bytes: &'a [u8], limits: &Limits) -> Result<Option<Self>, MediaError> {
        let decoder = open(bytes, limits)?;
        if !decoder.is_animated() {
            return Ok(None);
        }
        if decoder.num_frames() as usize > limits.max_frames {
            return Err(MediaError::TooManyFrames {
                what: "animation",
                unit: "frames",
                limit: limits.max_frames,
            });
        }
        Ok(Some(Self { decoder }))
    }

    /// Width and height of every frame.
    pub(crate) fn size(&self) -> (u32, u32) {
        self.decoder.dimensions()
    }

    /// How many frames there are.
    pub(crate) fn frame_count(&self) -> usize {
        self.decoder.num_frames() as usize
    }

    /// How long all frames are shown together, in milliseconds.
    pub(crate) fn duration_ms(&self) -> u64 {
        self.decoder.loop_duration()
    }

    /// The next frame as it is shown, or `None` after the last.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Image>, MediaError> {
        let (channels, mut samples) = frame_buffer(&self.decoder);
        let (width, height) = self.size();
        match self.decoder.read_frame(&mut samples) {
            Ok(_) => Image::new(width, height, channels, samples).map(Some),
            Err(image_webp::DecodingError::NoMoreFrames) => Ok(None),
            Err(error) => Err(malformed("WebP")(error)),
        }
    }
}

/// Width and height that the frames themselves declare: the decoder compares them with the canvas
/// only after decoding.
fn check_frames(bytes: &[u8], limits: &Limits) -> Result<(), MediaError> {
    let mut at = 12;
    while let Some(header) = bytes.get(at..at + 8) {
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let payload = bytes.get(at + 8..).unwrap_or(&[]);
        let size = match (&header[..4], payload) {
            (b"VP8 ", [_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1, ..]) => {
                let side = |low, high| u16::from_le_bytes([low, high]) & 0x3fff;
                Some((side(*w0, *w1).into(), side(*h0, *h1).into()))
            }
            (b"VP8L", [0x2f, a, b, c, d, ..]) => {
                let packed = u32::from_le_bytes([*a, *b, *c, *d]);
                let side = |bits: u32| u64::from((bits & 0x3fff) + 1);
                Some((side(packed), side(packed >> 14)))
            }
            _ => None,
        };
        if let Some((width, height)) = size {
            limits.check_pixels(width, height)?;
        }
        at += 8;
        // The chunks of an animation's frame stand inside its chunk, after 16 bytes.
        let skip = if &header[..4] == b"ANMF" {
            16
        } else {
            length + length % 2
        };
        at = at.saturating_add(skip);
    }
    Ok(())
}

fn open<'a>(bytes: &'a [u8], limits: &Limits) -> Result<WebPDecoder<Cursor<&'a [u8]>>, MediaError> {
    check_frames(bytes, limits)?;
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(malformed("WebP"))?;
    let (width, height) = decoder.dimensions();
    limits.check_pixels(width.into(), height.into())?;
    Ok(decoder)
}

fn frame_buffer(decoder: &WebPDecoder<Cursor<&[u8]>>) -> (Channels, Vec<u8>) {
    let channels = if decoder.has_alpha() {
        Channels::Rgba
    } else {
        Channels::Rgb
    };
    (channels, vec![0; decoder.output_buffer_size().unwrap_or(0)])
}
