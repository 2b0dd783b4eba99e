//! What stands behind a foreground that was cut out.

use super::{Channels, Filter, Image, Resampler, convert::multiply_255, crop, resize};
use crate::MediaError;

/// What a cut-out foreground is put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Background {
    /// One colour.
    Color([u8; 3]),
    /// A picture, which covers the foreground's size: scaled to it without distortion, its middle kept.
    Picture(Image),
}

/// A text that names no colour.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no colour; use #rgb, #rrggbb or one of the names {names}",
    names = COLOR_NAMES.map(|(name, _)| name).join(", ")
)]
pub struct UnknownColor(String);

/// The sixteen names that HTML began with.
const COLOR_NAMES: [(&str, [u8; 3]); 16] = [
    ("black", [0, 0, 0]),
    ("silver", [192, 192, 192]),
    ("gray", [128, 128, 128]),
    ("white", [255, 255, 255]),
    ("maroon", [128, 0, 0]),
    ("red", [255, 0, 0]),
    ("purple", [128, 0, 128]),
    ("fuchsia", [255, 0, 255]),
    ("green", [0, 128, 0]),
    ("lime", [0, 255, 0]),
    ("olive", [128, 128, 0]),
    ("yellow", [255, 255, 0]),
    ("navy", [0, 0, 128]),
    ("blue", [0, 0, 255]),
    ("teal", [0, 128, 128]),
    ("aqua", [0, 255, 255]),
];

/// The colour that a text means: `#rgb`, `#rrggbb` (the `#` may be left out) or one of HTML's sixteen first names.
///
/// # Errors
/// When it means none.
pub fn parse_color(text: &str) -> Result<[u8; 3], UnknownColor> {
    let unknown = || UnknownColor(text.chars().take(40).flat_map(char::escape_debug).collect());
    let word = text.trim().to_ascii_lowercase();
    if let Some((_, color)) = COLOR_NAMES.iter().find(|(name, _)| *name == word) {
        return Ok(*color);
    }
    let digits: Option<Vec<u8>> = word
        .strip_prefix('#')
        .unwrap_or(&word)
        .chars()
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
        .collect();
    match digits.as_deref() {
        Some(&[r, g, b]) => Ok([r, g, b].map(|digit| digit * 17)),
        Some(&[r, r2, g, g2, b, b2]) => Ok([r * 16 + r2, g * 16 + g2, b * 16 + b2]),
        _ => Err(unknown()),
    }
}

impl Background {
    /// The foreground of `picture` that `mask` shows, on this background: RGB of the picture's size.
    ///
    /// # Errors
    /// [`MediaError::InvalidSize`] when the mask is not gray or of another size, and what resizing a background picture
    /// says.
    pub fn behind(&self, picture: Image, mask: &Image) -> Result<Image, MediaError> {
        let cut = picture.with_alpha(mask)?;
        match self {
            Self::Color(color) => Ok(cut.composited_over(*color)),
            Self::Picture(behind) => {
                let behind = cover(behind, cut.width, cut.height)?;
                let pixels = cut
                    .samples
                    .chunks_exact(4)
                    .zip(behind.samples.chunks_exact(3));
                let mut samples = Vec::with_capacity(behind.samples.len());
                for (front, back) in pixels {
                    let alpha = front[3];
                    samples.extend(front[..3].iter().zip(back).map(|(front, back)| {
                        // Each rounds by itself, and both together stay within 255.
                        multiply_255(*front, alpha).saturating_add(multiply_255(*back, 255 - alpha))
                    }));
                }
                Image::new(cut.width, cut.height, Channels::Rgb, samples)
            }
        }
    }
}

/// The middle of a picture that has the shape of `width` times `height`, brought to that size.
fn cover(picture: &Image, width: u32, height: u32) -> Result<Image, MediaError> {
    // Cut before it is scaled: however long and thin a picture is, nothing larger than the result is made.
    let fitting = |side: u32, other: u32, own: u32| {
        let side = f64::from(other) * f64::from(own) / f64::from(side);
        (side.round() as u32).max(1)
    };
    let wide = fitting(height, width, picture.height).min(picture.width);
    let high = fitting(width, height, picture.width).min(picture.height);
    let (left, top) = ((picture.width - wide) / 2, (picture.height - high) / 2);
    let middle = crop(picture, left, top, wide, high)?.composited_over([255; 3]);
    resize(&middle, width, height, Filter::Bicubic, Resampler::Pillow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gray(width: u32, height: u32, samples: &[u8]) -> Image {
        Image::new(width, height, Channels::Gray, samples.to_vec()).unwrap()
    }

    #[test]
    fn colours_are_read_in_every_spelling() {
        for text in ["#f80", "F80", "#ff8800", " FF8800 "] {
            assert_eq!(parse_color(text), Ok([255, 136, 0]), "{text}");
        }
        assert_eq!(parse_color("White"), Ok([255; 3]));
        for text in ["", "#", "#ff", "#ff88000", "reddish", "#ggg", "#ffé"] {
            let error = parse_color(text).unwrap_err().to_string();
            assert!(
                error.contains("#rrggbb") && error.contains("teal"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_background_shows_as_far_as_the_mask_is_dark() {
        let picture = Image::filled_rgb(3, 1, [100, 200, 0]).unwrap();
        let mask = gray(3, 1, &[0, 255, 128]);
        let on_red = Background::Color([255, 0, 0]);
        let on_red = on_red.behind(picture.clone(), &mask).unwrap();
        assert_eq!(on_red.samples()[..6], [255, 0, 0, 100, 200, 0]);
        assert!(on_red.samples()[6].abs_diff(177) <= 1);
        let blue = Image::filled_rgb(50, 70, [0, 0, 255]).unwrap();
        let on_picture = Background::Picture(blue)
            .behind(picture.clone(), &mask)
            .unwrap();
        assert_eq!(on_picture.channels(), Channels::Rgb);
        assert_eq!(on_picture.samples()[..6], [0, 0, 255, 100, 200, 0]);
        assert!(on_picture.samples()[8].abs_diff(127) <= 1);
        let wrong = gray(2, 1, &[0, 0]);
        assert!(Background::Color([0; 3]).behind(picture, &wrong).is_err());
    }

    #[test]
    fn a_background_picture_covers_and_keeps_its_middle() {
        // Three columns, of which the outer ones lie outside a square.
        let samples = [[9, 9, 9], [50, 60, 70], [9, 9, 9]].concat();
        let wide = Image::new(3, 1, Channels::Rgb, samples).unwrap();
        let square = cover(&wide, 4, 4).unwrap();
        assert_eq!((square.width(), square.height()), (4, 4));
        let middle = cover(&wide, 1, 1).unwrap();
        assert_eq!(middle.samples(), [50, 60, 70]);
    }
}
