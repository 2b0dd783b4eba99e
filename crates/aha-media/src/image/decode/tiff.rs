//! TIFF, one page or many.

use std::io::Cursor;

use ::tiff::ColorType;
use ::tiff::decoder::{Decoder, DecodingResult, Limits as DecoderLimits};
use ::tiff::tags::Tag;

use super::{clipped_gray, malformed};
use crate::MediaError;
use crate::image::convert::cmyk_to_rgb;
use crate::image::{Channels, Image, Limits, Orientation};

/// The first page.
pub(super) fn decode_first(bytes: &[u8], limits: &Limits) -> Result<Image, MediaError> {
    Pages::new(bytes, *limits)?
        .next_page()?
        .ok_or_else(|| malformed("TIFF")("there is no page"))
}

/// The pages of a file, in order.
pub(super) struct Pages<'a> {
    decoder: Decoder<Cursor<&'a [u8]>>,
    limits: Limits,
    pages: usize,
}

impl<'a> Pages<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: Limits) -> Result<Self, MediaError> {
        let mut allowed = DecoderLimits::default();
        // Room for the largest page that `check_pixels` lets through: four samples of 16 bits.
        allowed.decoding_buffer_size =
            usize::try_from(limits.max_pixels.saturating_mul(8)).unwrap_or(usize::MAX);
        allowed.intermediate_buffer_size = allowed.decoding_buffer_size;
        let decoder = Decoder::new(Cursor::new(bytes))
            .map_err(malformed("TIFF"))?
            .with_limits(allowed);
        Ok(Self {
            decoder,
            limits,
            pages: 0,
        })
    }

    /// Goes to the next page without decoding it; gives whether there is one.
    pub(super) fn advance(&mut self) -> Result<bool, MediaError> {
        if self.pages > 0 {
            if !self.decoder.more_images() {
                return Ok(false);
            }
            self.decoder.next_image().map_err(malformed("TIFF"))?;
        }
        if self.pages == self.limits.max_frames {
            return Err(MediaError::TooManyFrames {
                what: "document",
                unit: "pages",
                limit: self.limits.max_frames,
            });
        }
        self.pages += 1;
        Ok(true)
    }

    /// The next page, upright: Pillow turns TIFF by its orientation tag while loading.
    pub(super) fn next_page(&mut self) -> Result<Option<Image>, MediaError> {
        if !self.advance()? {
            return Ok(None);
        }
        let image = self.page()?;
        let orientation = self
            .decoder
            .find_tag_unsigned::<u8>(Tag::Orientation)
            .ok()
            .flatten()
            .map_or(Orientation::Upright, Orientation::from_exif);
        Ok(Some(image.oriented(orientation)))
    }

    fn page(&mut self) -> Result<Image, MediaError> {
        let (width, height) = self.decoder.dimensions().map_err(malformed("TIFF"))?;
        self.limits.check_pixels(width.into(), height.into())?;
        let color = self.decoder.colortype().map_err(|error| match error {
            ::tiff::TiffError::UnsupportedError(_) => unsupported("a palette or unusual colours"),
            other => malformed("TIFF")(other),
        })?;
        let mut result = DecodingResult::U8(Vec::new());
        let layout = self
            .decoder
            .read_image_to_buffer(&mut result)
            .map_err(malformed("TIFF"))?;
        let planes = if layout.planes > 1 {
            usize::from(color.num_samples())
        } else {
            1
        };
        let (channels, samples) = match (color, result) {
            (ColorType::Gray(bits @ (1 | 2 | 4)), DecodingResult::U8(packed)) => {
                (Channels::Gray, unpack(&packed, width as usize, bits))
            }
            (ColorType::Gray(16), DecodingResult::U16(gray)) => {
                (Channels::Gray, clipped_gray(gray.into_iter()))
            }
            (color, DecodingResult::U8(samples)) if color.bit_depth() == 8 => {
                to_channels(color, interleave(samples, planes))?
            }
            (color @ (ColorType::RGB(16) | ColorType::RGBA(16)), DecodingResult::U16(samples)) => {
                let high = samples.iter().map(|sample| (sample >> 8) as u8).collect();
                to_channels(color, interleave(high, planes))?
            }
            (color, _) => return Err(unsupported(format!("{color:?} pixels"))),
        };
        Image::new(width, height, channels, samples)
    }
}

fn unsupported(feature: impl Into<String>) -> MediaError {
    MediaError::UnsupportedFeature {
        format: "TIFF",
        feature: feature.into(),
    }
}

fn to_channels(color: ColorType, samples: Vec<u8>) -> Result<(Channels, Vec<u8>), MediaError> {
    match color {
        ColorType::Gray(_) => Ok((Channels::Gray, samples)),
        ColorType::GrayA(_) | ColorType::Multiband { num_samples: 2, .. } => {
            Ok((Channels::GrayAlpha, samples))
        }
        ColorType::RGB(_) => Ok((Channels::Rgb, samples)),
        ColorType::RGBA(_) => Ok((Channels::Rgba, samples)),
        ColorType::CMYK(_) => Ok((Channels::Rgb, cmyk_to_rgb(&samples))),
        other => Err(unsupported(format!("{other:?} pixels"))),
    }
}

/// Planes laid one after another as interleaved samples.
fn interleave(samples: Vec<u8>, planes: usize) -> Vec<u8> {
    if planes < 2 {
        return samples;
    }
    let pixels = samples.len() / planes;
    (0..pixels)
        .flat_map(|pixel| (0..planes).map(move |plane| plane * pixels + pixel))
        .map(|at| samples[at])
        .collect()
}

/// Samples of 1, 2 or 4 bits, rows padded to bytes, as full-range bytes.
fn unpack(packed: &[u8], width: usize, bits: u8) -> Vec<u8> {
    let per_byte = 8 / usize::from(bits);
    let most = (1_u16 << bits) - 1;
    let scale = 255 / most;
    let mut samples = Vec::with_capacity(packed.len() * per_byte);
    for row in packed.chunks_exact(width.div_ceil(per_byte)) {
        samples.extend((0..width).map(|x| {
            let shift = 8 - usize::from(bits) * (x % per_byte + 1);
            ((u16::from(row[x / per_byte]) >> shift & most) * scale) as u8
        }));
    }
    samples
}
