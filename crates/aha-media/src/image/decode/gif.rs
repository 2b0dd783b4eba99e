//! GIF: frames are drawn onto a canvas the way Pillow draws them.

use std::io::Cursor;

use gif::{DecodeOptions, Decoder, DisposalMethod};

use super::malformed;
use crate::MediaError;
use crate::image::{Channels, Image, Limits};

/// The first frame.
pub(super) fn decode_first(bytes: &[u8], limits: &Limits) -> Result<Image, MediaError> {
    let mut animation = Animation::open(bytes, limits)?;
    animation
        .next_frame()?
        .ok_or_else(|| malformed("GIF")("there is no frame"))
}

/// Frames and the time they are shown, counted without decoding any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    /// How many frames there are.
    pub(crate) frames: usize,
    /// How long all are shown together, in milliseconds.
    pub(crate) duration_ms: u64,
}

/// Counts the frames.
pub(crate) fn timing(bytes: &[u8], limits: &Limits) -> Result<Timing, MediaError> {
    let mut options = DecodeOptions::new();
    options.skip_frame_decoding(true);
    let mut decoder = options
        .read_info(Cursor::new(bytes))
        .map_err(malformed("GIF"))?;
    let mut timing = Timing {
        frames: 0,
        duration_ms: 0,
    };
    while let Some(frame) = decoder.next_frame_info().map_err(malformed("GIF"))? {
        timing.frames += 1;
        timing.duration_ms += u64::from(frame.delay) * 10;
        if timing.frames > limits.max_frames {
            return Err(MediaError::TooManyFrames {
                what: "animation",
                unit: "frames",
                limit: limits.max_frames,
            });
        }
    }
    Ok(timing)
}

/// A rectangle of the canvas.
#[derive(Clone, Copy)]
struct Extent {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

/// What happens to a frame's rectangle before the next frame is drawn.
enum Disposal {
    Fill(Extent, [u8; 4]),
    Restore(Extent, Vec<u8>),
}

/// A GIF whose frames come complete, in order.
pub(crate) struct Animation<'a> {
    decoder: Decoder<Cursor<&'a [u8]>>,
    limits: Limits,
    width: usize,
    height: usize,
    /// RGBA; empty before the first frame.
    canvas: Vec<u8>,
    has_alpha: bool,
    method: DisposalMethod,
    disposal: Option<Disposal>,
}

impl<'a> Animation<'a> {
    pub(crate) fn open(bytes: &'a [u8], limits: &Limits) -> Result<Self, MediaError> {
        let decoder = DecodeOptions::new()
            .read_info(Cursor::new(bytes))
            .map_err(malformed("GIF"))?;
        Ok(Self {
            width: decoder.width().into(),
            height: decoder.height().into(),
            decoder,
            limits: *limits,
            canvas: Vec::new(),
            has_alpha: false,
            method: DisposalMethod::Keep,
            disposal: None,
        })
    }

    /// The next frame as it is shown, or `None` after the last.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Image>, MediaError> {
        let Some(frame) = self.decoder.next_frame_info().map_err(malformed("GIF"))? else {
            return Ok(None);
        };
        let extent = Extent {
            left: frame.left.into(),
            top: frame.top.into(),
            width: frame.width.into(),
            height: frame.height.into(),
        };
        let transparent = frame.transparent;
        let dispose = frame.dispose;
        let own_palette = frame.palette.clone();
        let is_first = self.canvas.is_empty();
        if is_first {
            // A first frame larger than the screen makes the screen larger.
            self.width = self.width.max(extent.left + extent.width);
            self.height = self.height.max(extent.top + extent.height);
            self.limits
                .check_pixels(self.width as u64, self.height as u64)?;
        }
        self.limits
            .check_pixels(extent.width as u64, extent.height as u64)?;
        let mut indices = vec![0; extent.width * extent.height];
        self.decoder
            .read_into_buffer(&mut indices)
            .map_err(malformed("GIF"))?;

        let palette = own_palette
            .as_deref()
            .or_else(|| self.decoder.global_palette())
            .unwrap_or(&[]);
        let color = |index: u8| {
            let start = usize::from(index) * 3;
            let entry = palette.get(start..start + 3).unwrap_or(&[0; 3]);
            [entry[0], entry[1], entry[2], 255]
        };
        let clear = |index: u8| {
            let [red, green, blue, _] = color(index);
            [red, green, blue, 0]
        };
        let background = self.decoder.bg_color().map_or(0, |index| index as u8);
        let cleared = transparent.map_or_else(|| color(background), clear);
        let colors: Vec<[u8; 4]> = (0..=u8::MAX).map(color).collect();
        let empty = transparent.map_or_else(|| color(0), clear);

        if is_first {
            self.canvas = empty.repeat(self.width * self.height);
            self.has_alpha = transparent.is_some();
        } else if let Some(disposal) = self.disposal.take() {
            self.dispose(&disposal);
        }
        if dispose != DisposalMethod::Any {
            self.method = dispose;
        }
        self.disposal = match self.method {
            DisposalMethod::Background => Some(Disposal::Fill(extent, cleared)),
            DisposalMethod::Previous if !is_first => {
                Some(Disposal::Restore(extent, self.canvas.clone()))
            }
            DisposalMethod::Previous if transparent.is_some() => {
                Some(Disposal::Fill(extent, cleared))
            }
            _ => None,
        };
        self.draw(extent, &indices, &colors, transparent);
        self.frame().map(Some)
    }

    /// The canvas as an image.
    fn frame(&self) -> Result<Image, MediaError> {
        let (width, height) = self
            .limits
            .check_pixels(self.width as u64, self.height as u64)?;
        let image = Image::new(width, height, Channels::Rgba, self.canvas.clone())?;
        Ok(if self.has_alpha {
            image
        } else {
            image.into_rgb_dropping_alpha()
        })
    }

    fn draw(
        &mut self,
        extent: Extent,
        indices: &[u8],
        colors: &[[u8; 4]],
        transparent: Option<u8>,
    ) {
        for (y, row) in indices.chunks_exact(extent.width).enumerate() {
            let Some(target) = self.canvas_row(extent, y) else {
                break;
            };
            for (pixel, &index) in target.chunks_exact_mut(4).zip(row) {
                if Some(index) != transparent {
                    pixel.copy_from_slice(&colors[usize::from(index)]);
                }
            }
        }
    }

    fn dispose(&mut self, disposal: &Disposal) {
        let (Disposal::Fill(extent, _) | Disposal::Restore(extent, _)) = disposal;
        let (stride, left) = (self.width * 4, extent.left * 4);
        for y in 0..extent.height {
            let start = (extent.top + y) * stride + left;
            let Some(target) = self.canvas_row(*extent, y) else {
                break;
            };
            match disposal {
                Disposal::Fill(_, color) => {
                    for pixel in target.chunks_exact_mut(4) {
                        pixel.copy_from_slice(color);
                    }
                    self.has_alpha |= color[3] == 0;
                }
                Disposal::Restore(_, canvas) => {
                    let length = target.len();
                    target.copy_from_slice(&canvas[start..start + length]);
                }
            }
        }
    }

    /// The part of a row of `extent` that lies on the canvas; `None` below it.
    fn canvas_row(&mut self, extent: Extent, y: usize) -> Option<&mut [u8]> {
        let right = (extent.left + extent.width).min(self.width);
        let left = extent.left.min(right);
        let row = (extent.top + y) * self.width;
        self.canvas.get_mut((row + left) * 4..(row + right) * 4)
    }
}
