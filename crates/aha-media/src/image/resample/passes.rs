//! One pass over the columns, one over the rows.

use rayon::prelude::*;

use super::{Coefficients, blank};
use crate::MediaError;
use crate::image::Image;

/// Bytes of a row that the vertical pass sums at once: they stay in the first-level cache.
const BLOCK: usize = 512;

/// Resizes every row.
pub(super) fn horizontal(image: &Image, columns: &Coefficients) -> Result<Image, MediaError> {
    let width = u32::try_from(columns.bounds.len()).unwrap_or(0);
    let mut result = blank(width, image.height, image.channels)?;
    let pass = match image.channels.count() {
        1 => horizontal_row::<1>,
        2 => horizontal_row::<2>,
        3 => horizontal_row::<3>,
        _ => horizontal_row::<4>,
    };
    let (from, to) = (image.stride(), result.stride());
    result
        .samples
        .par_chunks_exact_mut(to)
        .zip(image.samples.par_chunks_exact(from))
        .for_each(|(target, source)| pass(target, source, columns));
    Ok(result)
}

fn horizontal_row<const N: usize>(target: &mut [u8], source: &[u8], columns: &Coefficients) {
    let half = 1 << (columns.bits - 1);
    for (index, pixel) in target.chunks_exact_mut(N).enumerate() {
        let (first, weights) = columns.of(index);
        let covered = &source[first * N..(first + weights.len()) * N];
        let mut sums = [half; N];
        for (old, &weight) in covered.chunks_exact(N).zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(old) {
                *sum += i32::from(sample) * weight;
            }
        }
        for (sample, sum) in pixel.iter_mut().zip(sums) {
            *sample = (sum >> columns.bits).clamp(0, 255) as u8;
        }
    }
}

/// Resizes every column.
pub(super) fn vertical(image: &Image, rows: &Coefficients) -> Result<Image, MediaError> {
    let height = u32::try_from(rows.bounds.len()).unwrap_or(0);
    let mut result = blank(image.width, height, image.channels)?;
    let stride = image.stride();
    result
        .samples
        .par_chunks_exact_mut(stride)
        .enumerate()
        .for_each(|(index, target)| vertical_row(target, &image.samples, stride, rows, index));
    Ok(result)
}

fn vertical_row(
    target: &mut [u8],
    samples: &[u8],
    stride: usize,
    rows: &Coefficients,
    index: usize,
) {
    let (first, weights) = rows.of(index);
    let covered = &samples[first * stride..(first + weights.len()) * stride];
    let half = 1 << (rows.bits - 1);
    for (block, target) in target.chunks_mut(BLOCK).enumerate() {
        let start = block * BLOCK;
        let mut sums = [half; BLOCK];
        for (row, &weight) in covered.chunks_exact(stride).zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(&row[start..start + target.len()]) {
                *sum += i32::from(sample) * weight;
            }
        }
        for (sample, sum) in target.iter_mut().zip(sums) {
            *sample = (sum >> rows.bits).clamp(0, 255) as u8;
        }
    }
}
