//! Animated WebP: frames are drawn onto a canvas the way libwebp draws them.

use super::webp::{chunks, decode_still};
use super::{guarded, malformed};
use crate::MediaError;
use crate::image::{Channels, Image, Limits};

/// Bytes of a frame's chunk before its picture.
const FRAME_HEADER: usize = 16;

/// One frame of the file.
#[derive(Clone, Copy)]
struct Frame<'a> {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    duration_ms: u64,
    /// Whether it is mixed with the canvas by its alpha, or replaces it.
    blends: bool,
    /// Whether its rectangle is cleared before the next frame.
    clears: bool,
    /// The chunks of its picture.
    picture: &'a [u8],
}

/// What the next frame must know of the last one.
#[derive(Clone, Copy)]
struct Last {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    clears: bool,
    is_key: bool,
}

/// An animation, whose frames come complete, in order.
pub(crate) struct Animation<'a> {
    width: usize,
    height: usize,
    has_alpha: bool,
    frames: Vec<Frame<'a>>,
    next: usize,
    /// RGBA, after the last frame was disposed of.
    canvas: Vec<u8>,
    last: Option<Last>,
    limits: Limits,
}

impl<'a> Animation<'a> {
    /// Opens a file; `None` when it is a still image.
    pub(crate) fn open(bytes: &'a [u8], limits: &Limits) -> Result<Option<Self>, MediaError> {
        let mut all = chunks(bytes.get(12..).unwrap_or(&[]));
        let Some((b"VP8X", header)) = all.next() else {
            return Ok(None);
        };
        let (Some(&flags), Some(width), Some(height)) =
            (header.first(), word24(header, 4), word24(header, 7))
        else {
            return Err(malformed("WebP")("the first chunk is too short"));
        };
        if flags & 0b10 == 0 {
            return Ok(None);
        }
        let (width, height) = (width + 1, height + 1);
        limits.check_pixels(width as u64, height as u64)?;
        let mut frames = Vec::new();
        for (_, chunk) in all.filter(|(kind, _)| *kind == b"ANMF") {
            if frames.len() == limits.max_frames {
                return Err(MediaError::TooManyFrames {
                    what: "animation",
                    unit: "frames",
                    limit: limits.max_frames,
                });
            }
            let frame = read_frame(chunk)
                .filter(|frame| {
                    frame.left + frame.width <= width && frame.top + frame.height <= height
                })
                .ok_or("a frame is cut short or outside the canvas")
                .map_err(malformed("WebP"))?;
            frames.push(frame);
        }
        if frames.is_empty() {
            return Err(malformed("WebP")("there is no frame"));
        }
        Ok(Some(Self {
            width,
            height,
            has_alpha: flags & 0b1_0000 != 0,
            frames,
            next: 0,
            canvas: vec![0; width * height * 4],
            last: None,
            limits: *limits,
        }))
    }

    /// How many frames there are.
    pub(crate) fn frame_count(&self) -> usize {
        self.frames.len()
    }

    /// How long all frames are shown together, in milliseconds.
    pub(crate) fn duration_ms(&self) -> u64 {
        self.frames.iter().map(|frame| frame.duration_ms).sum()
    }

    /// The next frame as it is shown, or `None` after the last.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Image>, MediaError> {
        let Some(&frame) = self.frames.get(self.next) else {
            return Ok(None);
        };
        self.next += 1;
        let picture = self.picture(&frame)?;
        let is_key = self.is_key(&frame, picture.channels().has_alpha());
        if is_key {
            self.canvas.fill(0);
        }
        self.draw(&frame, &picture, frame.blends && !is_key);
        let (width, height) = self
            .limits
            .check_pixels(self.width as u64, self.height as u64)?;
        let shown = Image::new(width, height, Channels::Rgba, self.canvas.clone())?;

        if frame.clears {
            for y in frame.top..frame.top + frame.height {
                let start = (y * self.width + frame.left) * 4;
                self.canvas[start..start + frame.width * 4].fill(0);
            }
        }
        self.last = Some(Last {
            left: frame.left,
            top: frame.top,
            width: frame.width,
            height: frame.height,
            clears: frame.clears,
            is_key,
        });
        Ok(Some(if self.has_alpha {
            shown
        } else {
            shown.into_rgb_dropping_alpha()
        }))
    }

    /// The frame's own pixels.
    fn picture(&self, frame: &Frame<'_>) -> Result<Image, MediaError> {
        // A file of its own: the frame's chunks, after the header that an alpha chunk asks for.
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        if frame.picture.starts_with(b"ALPH") {
            file.extend(b"VP8X\x0a\0\0\0\x10\0\0\0");
            for side in [frame.width, frame.height] {
                file.extend(&(side as u32 - 1).to_le_bytes()[..3]);
            }
        }
        file.extend(frame.picture);
        let length = u32::try_from(file.len() - 8).unwrap_or(u32::MAX);
        file[4..8].copy_from_slice(&length.to_le_bytes());
        let picture = guarded("WebP", || decode_still(&file, &self.limits))?;
        if (picture.width() as usize, picture.height() as usize) != (frame.width, frame.height) {
            return Err(malformed("WebP")("a frame has not the size it declares"));
        }
        Ok(picture)
    }

    /// Whether a frame owes nothing to the canvas before it.
    fn is_key(&self, frame: &Frame<'_>, has_alpha: bool) -> bool {
        let is_full = |width, height| width == self.width && height == self.height;
        let Some(last) = self.last else {
            return true;
        };
        ((!has_alpha || !frame.blends) && is_full(frame.width, frame.height))
            || (last.clears && (is_full(last.width, last.height) || last.is_key))
    }

    fn draw(&mut self, frame: &Frame<'_>, picture: &Image, blends: bool) {
        let channels = picture.channels().count();
        let cleared = self.last.filter(|last| last.clears);
        for y in 0..frame.height {
            let start = ((frame.top + y) * self.width + frame.left) * 4;
            let target = self.canvas[start..start + frame.width * 4].chunks_exact_mut(4);
            let source = picture.row(y as u32).chunks_exact(channels);
            for (x, (pixel, own)) in target.zip(source).enumerate() {
                let own = [own[0], own[1], own[2], own.get(3).copied().unwrap_or(255)];
                let was_cleared =
                    cleared.is_some_and(|last| last.holds(frame.left + x, frame.top + y));
                let mixed = if blends && own[3] != 255 && !was_cleared {
                    blend(own, [pixel[0], pixel[1], pixel[2], pixel[3]])
                } else {
                    own
                };
                pixel.copy_from_slice(&mixed);
            }
        }
    }
}

impl Last {
    fn holds(&self, x: usize, y: usize) -> bool {
        (self.left..self.left + self.width).contains(&x)
            && (self.top..self.top + self.height).contains(&y)
    }
}

/// One pixel over another, neither multiplied with alpha, in libwebp's integers.
fn blend(over: [u8; 4], under: [u8; 4]) -> [u8; 4] {
    let [over_alpha, under_alpha] = [over[3], under[3]].map(u64::from);
    if over_alpha == 0 {
        return under;
    }
    let kept = (under_alpha * (256 - over_alpha)) >> 8;
    let alpha = over_alpha + kept;
    let scale = (1 << 24) / alpha;
    let mut mixed = [0, 0, 0, alpha as u8];
    for (channel, value) in mixed[..3].iter_mut().enumerate() {
        let sum = u64::from(over[channel]) * over_alpha + u64::from(under[channel]) * kept;
        *value = ((sum * scale) >> 24) as u8;
    }
    mixed
}

fn read_frame(chunk: &[u8]) -> Option<Frame<'_>> {
    let flags = *chunk.get(15)?;
    Some(Frame {
        left: word24(chunk, 0)? * 2,
        top: word24(chunk, 3)? * 2,
        width: word24(chunk, 6)? + 1,
        height: word24(chunk, 9)? + 1,
        duration_ms: word24(chunk, 12)? as u64,
        blends: flags & 0b10 == 0,
        clears: flags & 0b01 != 0,
        picture: chunk.get(FRAME_HEADER..)?,
    })
}

/// Three bytes as a number, the lowest first.
fn word24(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at + 3)?;
    let [a, b, c] = [field[0], field[1], field[2]].map(usize::from);
    Some(a | b << 8 | c << 16)
}
