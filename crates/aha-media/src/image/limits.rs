//! How much one image, document or video may cost.

use crate::MediaError;

/// Limits that are checked against headers, before anything is allocated for the pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of an encoded image or document.
    pub max_bytes: u64,
    /// Bytes of an encoded video.
    pub max_video_bytes: u64,
    /// Pixels of one image, frame or page.
    pub max_pixels: u64,
    /// Pixels of one side: a resize takes memory for weights in proportion to it.
    pub max_side: u32,
    /// Frames that an animation or a video may have, and pages that a document may have.
    pub max_frames: usize,
    /// Pixels of all frames of a video that are kept, together.
    pub max_video_pixels: u64,
}

impl Default for Limits {
    /// 32 MiB (256 MiB a video), 64 Mpixel an image, 65 535 a side, 100 000 frames of which 256 Mpixel (768 MiB) are kept.
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_video_bytes: 256 << 20,
            max_pixels: 64 << 20,
            max_side: 65_535,
            max_frames: 100_000,
            max_video_pixels: 256 << 20,
        }
    }
}

impl Limits {
    /// Checks the size of an encoded image or document.
    ///
    /// # Errors
    /// [`MediaError::Empty`] for no bytes, [`MediaError::TooManyBytes`] above the limit.
    pub fn check_bytes(&self, what: &'static str, bytes: u64) -> Result<(), MediaError> {
        check_length(what, bytes, self.max_bytes)
    }

    /// Checks the size of an encoded video.
    ///
    /// # Errors
    /// [`MediaError::Empty`] for no bytes, [`MediaError::TooManyBytes`] above the limit.
    pub fn check_video_bytes(&self, bytes: u64) -> Result<(), MediaError> {
        check_length("video", bytes, self.max_video_bytes)
    }

    /// Checks the size of one image or frame.
    ///
    /// # Errors
    /// [`MediaError::InvalidSize`] for a side of zero, [`MediaError::TooManyPixels`] above the
    /// limit, [`MediaError::SideTooLong`] for one long side.
    pub fn check_pixels(&self, width: u64, height: u64) -> Result<(u32, u32), MediaError> {
        if width == 0 || height == 0 {
            return Err(MediaError::InvalidSize {
                width,
                height,
                reason: "a side is zero",
            });
        }
        if width
            .checked_mul(height)
            .is_none_or(|pixels| pixels > self.max_pixels)
        {
            return Err(MediaError::TooManyPixels {
                width,
                height,
                limit: self.max_pixels,
            });
        }
        let side = |side| {
            u32::try_from(side)
                .ok()
                .filter(|&side| side <= self.max_side)
        };
        match (side(width), side(height)) {
            (Some(width), Some(height)) => Ok((width, height)),
            _ => Err(MediaError::SideTooLong {
                width,
                height,
                limit: self.max_side,
            }),
        }
    }

    /// Checks the pixels of all frames of a video that will be kept.
    ///
    /// # Errors
    /// [`MediaError::TooManyVideoPixels`] above the limit.
    pub fn check_video(&self, frames: usize, width: u32, height: u32) -> Result<(), MediaError> {
        let pixels = u128::from(width) * u128::from(height) * frames as u128;
        if pixels > u128::from(self.max_video_pixels) {
            return Err(MediaError::TooManyVideoPixels {
                frames,
                width,
                height,
                limit: self.max_video_pixels,
            });
        }
        Ok(())
    }
}

fn check_length(what: &'static str, bytes: u64, limit: u64) -> Result<(), MediaError> {
    match bytes {
        0 => Err(MediaError::Empty { what }),
        _ if bytes > limit => Err(MediaError::TooManyBytes { what, bytes, limit }),
        _ => Ok(()),
    }
}
