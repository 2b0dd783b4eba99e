//! The nearest pixel, as Pillow finds it.

use super::blank;
use crate::MediaError;
use crate::image::Image;

pub(super) fn resize(image: &Image, width: u32, height: u32) -> Result<Image, MediaError> {
    let columns = positions(image.width, width);
    let rows = positions(image.height, height);
    let channels = image.channels.count();
    let mut result = blank(width, height, image.channels)?;
    let stride = result.stride();
    for (target, &y) in result.samples.chunks_exact_mut(stride).zip(&rows) {
        let source = image.row(y);
        for (pixel, &x) in target.chunks_exact_mut(channels).zip(&columns) {
            let start = x as usize * channels;
            pixel.copy_from_slice(&source[start..start + channels]);
        }
    }
    Ok(result)
}

/// The old position of every new one. The steps are added up, rounding errors and all, because the
/// reference adds them up.
fn positions(old: u32, new: u32) -> Vec<u32> {
    let step = f64::from(old) / f64::from(new);
    let mut at = step * 0.5;
    let mut positions = Vec::with_capacity(new as usize);
    for _ in 0..new {
        positions.push((at as u32).min(old - 1));
        at += step;
    }
    positions
}
