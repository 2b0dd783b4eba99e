//! The eight ways a camera may have been held, and turning an image upright.

use super::Image;

/// The orientation tag of EXIF (274): how the stored pixels must be turned to stand upright.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Orientation {
    /// 1: stored upright.
    #[default]
    Upright,
    /// 2: mirror left and right.
    MirrorHorizontal,
    /// 3: turn by 180 degrees.
    Rotate180,
    /// 4: mirror top and bottom.
    MirrorVertical,
    /// 5: swap rows and columns.
    Transpose,
    /// 6: turn clockwise by 90 degrees.
    Rotate90,
    /// 7: swap rows and columns and turn by 180 degrees.
    Transverse,
    /// 8: turn clockwise by 270 degrees.
    Rotate270,
}

impl Orientation {
    /// The orientation of a tag's value; values that EXIF does not define mean upright, as in the
    /// references.
    #[must_use]
    pub const fn from_exif(value: u8) -> Self {
        match value {
            2 => Self::MirrorHorizontal,
            3 => Self::Rotate180,
            4 => Self::MirrorVertical,
            5 => Self::Transpose,
            6 => Self::Rotate90,
            7 => Self::Transverse,
            8 => Self::Rotate270,
            _ => Self::Upright,
        }
    }

    /// The orientation that an EXIF block (TIFF header first) names.
    pub(crate) fn from_exif_block(block: &[u8]) -> Self {
        let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
        image::metadata::Orientation::from_exif_chunk(block)
            .map_or(Self::Upright, |found| Self::from_exif(found.to_exif()))
    }

    /// Whether width and height change places.
    #[must_use]
    pub const fn swaps_sides(self) -> bool {
        matches!(
            self,
            Self::Transpose | Self::Rotate90 | Self::Transverse | Self::Rotate270
        )
    }
}

impl Image {
    /// The image turned as `orientation` says, like Pillow's `exif_transpose`.
    #[must_use]
    pub fn oriented(self, orientation: Orientation) -> Self {
        if orientation == Orientation::Upright {
            return self;
        }
        let channels = self.channels.count();
        let (width, height) = (self.width as usize, self.height as usize);
        let (new_width, new_height) = if orientation.swaps_sides() {
            (height, width)
        } else {
            (width, height)
        };
        let mut samples = Vec::with_capacity(self.samples.len());
        for y in 0..new_height {
            for x in 0..new_width {
                let (from_x, from_y) = match orientation {
                    Orientation::Upright => (x, y),
                    Orientation::MirrorHorizontal => (width - 1 - x, y),
                    Orientation::Rotate180 => (width - 1 - x, height - 1 - y),
                    Orientation::MirrorVertical => (x, height - 1 - y),
                    Orientation::Transpose => (y, x),
                    Orientation::Rotate90 => (y, height - 1 - x),
                    Orientation::Transverse => (width - 1 - y, height - 1 - x),
                    Orientation::Rotate270 => (width - 1 - y, x),
                };
                let start = (from_y * width + from_x) * channels;
                samples.extend_from_slice(&self.samples[start..start + channels]);
            }
        }
        let (width, height) = if orientation.swaps_sides() {
            (self.height, self.width)
        } else {
            (self.width, self.height)
        };
        Self {
            width,
            height,
            channels: self.channels,
            samples,
        }
    }
}
