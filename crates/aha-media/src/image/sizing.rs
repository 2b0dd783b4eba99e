//! Which size an image gets before a model sees it. The references compute this in Python, so
//! halves round to the even neighbour.

use crate::MediaError;

/// Sides may differ by this factor and no more, in every reference with a size rule of patches.
const MAX_ASPECT_RATIO: u32 = 200;

/// Python's `round`: halves go to the even neighbour.
#[must_use]
pub fn round_half_even(value: f64) -> f64 {
    value.round_ties_even()
}

/// What happens to an image with a side shorter than the factor before its size is rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ShortSides {
    /// Nothing (Qwen2-VL to Qwen3.5 images, HunyuanOCR).
    #[default]
    Keep,
    /// The rounded side is at least the factor, and the ratio is free (LFM2-VL).
    AtLeastFactor,
    /// First the height, then the width is brought to the factor, the other side following, rounded
    /// (PaddleOCR-VL).
    RoundUp,
    /// Both sides are scaled until the shorter is the factor, cut off to whole pixels (GLM-OCR, and
    /// videos of Qwen3-VL).
    ScaleUp,
}

/// The size rule of models that cut an image of any shape into patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchSizing {
    /// Both sides become multiples of this (patch size times merge size).
    pub factor: u32,
    /// Fewest pixels of the result. With `frames`, pixels of all frames together.
    pub min_pixels: u64,
    /// Most pixels of the result. With `frames`, pixels of all frames together.
    pub max_pixels: u64,
    /// The rule for short sides.
    pub short_sides: ShortSides,
    /// Frames that count towards the pixels: 1 for images of most models, 2 for an image of
    /// GLM-OCR, the sampled frames for a video of Qwen3-VL.
    pub frames: u32,
    /// The number of frames is rounded to a multiple of this, where it is compared with the limits.
    pub temporal_factor: u32,
}

impl PatchSizing {
    /// The rule of Qwen2-VL and most that follow it, for one image.
    #[must_use]
    pub const fn image(factor: u32, min_pixels: u64, max_pixels: u64) -> Self {
        Self {
            factor,
            min_pixels,
            max_pixels,
            short_sides: ShortSides::Keep,
            frames: 1,
            temporal_factor: 1,
        }
    }

    /// The same with another rule for short sides.
    #[must_use]
    pub const fn with_short_sides(mut self, short_sides: ShortSides) -> Self {
        self.short_sides = short_sides;
        self
    }

    /// The same with frames that count towards the pixels.
    #[must_use]
    pub const fn with_frames(mut self, frames: u32, temporal_factor: u32) -> Self {
        self.frames = frames;
        self.temporal_factor = temporal_factor;
        self
    }
}

/// The width and height that an image of `width` times `height` is resized to: multiples of the
/// factor, within the pixel limits, the ratio kept as well as that allows.
///
/// # Errors
/// [`MediaError::AspectRatio`] when one side is more than 200 times the other,
/// [`MediaError::InvalidSetting`] for a factor of zero or limits that leave no size,
/// [`MediaError::InvalidSize`] for a side of zero.
pub fn smart_resize(
    width: u32,
    height: u32,
    sizing: &PatchSizing,
) -> Result<(u32, u32), MediaError> {
    if width == 0 || height == 0 {
        return Err(MediaError::InvalidSize {
            width: width.into(),
            height: height.into(),
            reason: "a side is zero",
        });
    }
    let factor = f64::from(sizing.factor);
    if sizing.factor == 0 || sizing.temporal_factor == 0 || sizing.frames < sizing.temporal_factor {
        return Err(MediaError::InvalidSetting {
            name: "patch size",
            reason: format!(
                "factor {} and {} frames in steps of {}",
                sizing.factor, sizing.frames, sizing.temporal_factor
            ),
        });
    }
    let (w, h) = lengthen(
        f64::from(width),
        f64::from(height),
        factor,
        sizing.short_sides,
    );
    if sizing.short_sides != ShortSides::AtLeastFactor
        && w.max(h) / w.min(h) > f64::from(MAX_ASPECT_RATIO)
    {
        return Err(MediaError::AspectRatio {
            width,
            height,
            limit: MAX_ASPECT_RATIO,
        });
    }
    let frames = f64::from(sizing.frames);
    let step = f64::from(sizing.temporal_factor);
    let rounded_frames = round_half_even(frames / step) * step;
    let (min_pixels, max_pixels) = (sizing.min_pixels as f64, sizing.max_pixels as f64);

    let nearest = |side: f64| {
        let rounded = round_half_even(side / factor) * factor;
        match sizing.short_sides {
            ShortSides::AtLeastFactor => rounded.max(factor),
            _ => rounded,
        }
    };
    let (mut new_w, mut new_h) = (nearest(w), nearest(h));
    if rounded_frames * new_h * new_w > max_pixels {
        let shrink = (frames * h * w / max_pixels).sqrt();
        let below = |side: f64| ((side / shrink / factor).floor() * factor).max(factor);
        (new_w, new_h) = (below(w), below(h));
    } else if rounded_frames * new_h * new_w < min_pixels {
        let grow = (min_pixels / (frames * h * w)).sqrt();
        let above = |side: f64| (side * grow / factor).ceil() * factor;
        (new_w, new_h) = (above(w), above(h));
    }
    let whole = |side: f64| {
        (side >= 1.0 && side <= f64::from(u32::MAX))
            .then_some(side as u32)
            .ok_or_else(|| MediaError::InvalidSetting {
                name: "pixel limits",
                reason: format!(
                    "an image of {width}x{height} has no size between {} and {} pixels",
                    sizing.min_pixels, sizing.max_pixels
                ),
            })
    };
    Ok((whole(new_w)?, whole(new_h)?))
}

/// Width and height after the rule for short sides.
fn lengthen(width: f64, height: f64, factor: f64, rule: ShortSides) -> (f64, f64) {
    let (mut w, mut h) = (width, height);
    match rule {
        ShortSides::Keep | ShortSides::AtLeastFactor => {}
        ShortSides::RoundUp => {
            if h < factor {
                w = round_half_even(w * factor / h);
                h = factor;
            }
            if w < factor {
                h = round_half_even(h * factor / w);
                w = factor;
            }
        }
        ShortSides::ScaleUp => {
            if h < factor || w < factor {
                let scale = (factor / h).max(factor / w);
                h = (h * scale).trunc();
                w = (w * scale).trunc();
            }
        }
    }
    (w, h)
}

/// A grid of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileGrid {
    /// Tiles side by side.
    pub columns: u32,
    /// Tiles one above another.
    pub rows: u32,
}

/// The rule that chooses a grid of square tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileRule {
    /// The side of a tile in pixels.
    pub tile_size: u32,
    /// Fewest tiles.
    pub min_tiles: u32,
    /// Most tiles.
    pub max_tiles: u32,
}

/// The grid whose ratio of columns to rows is nearest to that of the image (LFM2-VL,
/// DeepSeek-OCR). Of grids equally near, a larger one is taken only for an image of more than half
/// its pixels. Without any possible grid it is one tile.
#[must_use]
pub fn choose_tile_grid(width: u32, height: u32, rule: &TileRule) -> TileGrid {
    let ratio = f64::from(width) / f64::from(height.max(1));
    let area = f64::from(width) * f64::from(height);
    let tile_area = f64::from(rule.tile_size) * f64::from(rule.tile_size);
    let mut best = TileGrid {
        columns: 1,
        rows: 1,
    };
    let mut least = f64::INFINITY;
    for tiles in rule.min_tiles.max(1)..=rule.max_tiles {
        for columns in (1..=tiles).filter(|columns| tiles % columns == 0) {
            let rows = tiles / columns;
            let difference = (ratio - f64::from(columns) / f64::from(rows)).abs();
            if difference < least {
                least = difference;
            } else if difference > least || area <= 0.5 * tile_area * f64::from(tiles) {
                continue;
            }
            best = TileGrid { columns, rows };
        }
    }
    best
}

/// The largest size of the image's ratio inside `width` times `height`, as Pillow's
/// `ImageOps.contain` computes it.
#[must_use]
pub fn contained_size(image: (u32, u32), within: (u32, u32)) -> (u32, u32) {
    let (own_width, own_height) = (f64::from(image.0.max(1)), f64::from(image.1.max(1)));
    let (width, height) = (f64::from(within.0), f64::from(within.1));
    let (own, wanted) = (own_width / own_height, width / height);
    if own > wanted {
        let fitted = round_half_even(own_height / own_width * width);
        (within.0, fitted as u32)
    } else if own < wanted {
        let fitted = round_half_even(own_width / own_height * height);
        (fitted as u32, within.1)
    } else {
        within
    }
}
