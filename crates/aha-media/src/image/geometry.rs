//! Cutting and padding.

use super::{
    Channels, Filter, Image, Resampler, TileGrid, contained_size, resize, round_half_even,
};
use crate::MediaError;

/// How half a pixel of padding is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PadOffset {
    /// To the even neighbour, as Pillow's `ImageOps.pad`.
    RoundHalfEven,
    /// Down, as the padding of some tensor processors.
    Floor,
}

/// The image as RGB, scaled to fit into `width` times `height` and centred on a plain colour, like
/// Pillow's `ImageOps.pad` with its bicubic filter.
///
/// # Errors
/// As [`resize`]; [`MediaError::InvalidSize`] when the image is so thin that a side vanishes.
pub fn pad_to(
    image: &Image,
    width: u32,
    height: u32,
    color: [u8; 3],
    offset: PadOffset,
) -> Result<Image, MediaError> {
    let (new_width, new_height) = contained_size((image.width, image.height), (width, height));
    let rgb;
    let image = if image.channels == Channels::Rgb {
        image
    } else {
        rgb = image.clone().into_rgb_dropping_alpha();
        &rgb
    };
    let resized = resize(
        image,
        new_width,
        new_height,
        Filter::Bicubic,
        Resampler::Pillow,
    )?;
    if (new_width, new_height) == (width, height) {
        return Ok(resized);
    }
    let start = |outer: u32, inner: u32| {
        let half = f64::from(outer - inner) * 0.5;
        match offset {
            PadOffset::RoundHalfEven => round_half_even(half) as usize,
            PadOffset::Floor => half.floor() as usize,
        }
    };
    let (left, top) = (start(width, new_width), start(height, new_height));
    let mut padded = Image::filled_rgb(width, height, color)?;
    let stride = padded.stride();
    let rows = padded.samples.chunks_exact_mut(stride).skip(top);
    for (target, source) in rows.zip(resized.samples.chunks_exact(resized.stride())) {
        target[left * 3..left * 3 + source.len()].copy_from_slice(source);
    }
    Ok(padded)
}

/// A rectangle of the image.
///
/// # Errors
/// [`MediaError::InvalidSize`] when it is empty or not inside the image.
pub fn crop(
    image: &Image,
    left: u32,
    top: u32,
    width: u32,
    height: u32,
) -> Result<Image, MediaError> {
    let inside = |start: u32, length: u32, side: u32| {
        start.checked_add(length).is_some_and(|end| end <= side)
    };
    if !inside(left, width, image.width) || !inside(top, height, image.height) {
        return Err(MediaError::InvalidSize {
            width: width.into(),
            height: height.into(),
            reason: "the rectangle is not inside the image",
        });
    }
    let channels = image.channels.count();
    let (start, length) = (left as usize * channels, width as usize * channels);
    let samples = (top..top + height)
        .flat_map(|y| &image.row(y)[start..start + length])
        .copied()
        .collect();
    Image::new(width, height, image.channels, samples)
}

/// The middle of the image, like torchvision's `center_crop` of an image that is large enough.
///
/// # Errors
/// [`MediaError::InvalidSize`] when the image is smaller than that.
pub fn center_crop(image: &Image, width: u32, height: u32) -> Result<Image, MediaError> {
    let start = |outer: u32, inner: u32| {
        round_half_even(f64::from(outer.saturating_sub(inner)) / 2.0) as u32
    };
    crop(
        image,
        start(image.width, width),
        start(image.height, height),
        width,
        height,
    )
}

/// The image cut into the tiles of a grid, row after row. The sides must be multiples of the grid.
///
/// # Errors
/// [`MediaError::InvalidSize`] when they are not.
pub fn tiles(image: &Image, grid: TileGrid) -> Result<Vec<Image>, MediaError> {
    let uneven = MediaError::InvalidSize {
        width: image.width.into(),
        height: image.height.into(),
        reason: "it cannot be cut into equal tiles",
    };
    let (Some(0), Some(0)) = (
        image.width.checked_rem(grid.columns),
        image.height.checked_rem(grid.rows),
    ) else {
        return Err(uneven);
    };
    let (width, height) = (image.width / grid.columns, image.height / grid.rows);
    (0..grid.rows)
        .flat_map(|row| (0..grid.columns).map(move |column| (column, row)))
        .map(|(column, row)| crop(image, column * width, row * height, width, height))
        .collect()
}
