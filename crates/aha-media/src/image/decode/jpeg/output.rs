//! Components to interleaved samples: libjpeg's smooth upsampling and colour conversion, bit for bit.

use super::frame::{Component, Frame};
use rayon::prelude::*;

/// How the components stand for colours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Colors {
    /// One sample a pixel.
    Gray,
    /// Red, green and blue.
    Rgb,
    /// Brightness and two differences, which become red, green and blue.
    Ycc,
    /// Four inks.
    Cmyk,
    /// Three inks as brightness and differences, and black; become four inks.
    Ycck,
}

impl Colors {
    /// Samples a pixel of the output.
    pub(super) const fn count(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Rgb | Self::Ycc => 3,
            Self::Cmyk | Self::Ycck => 4,
        }
    }
}

/// All pixels, `[height, width, channels]`.
pub(super) fn pixels(frame: &Frame, colors: Colors) -> Vec<u8> {
    let count = colors.count();
    let mut output = vec![0; frame.width * frame.height * count];
    output
        .par_chunks_mut(frame.width * count)
        .enumerate()
        .for_each_init(
            || vec![vec![0_u8; frame.width + 8 * frame.most.0]; count],
            |rows, (y, output)| {
                for (component, row) in frame.components.iter().zip(rows.iter_mut()) {
                    upsampled(component, frame.most, y, row);
                }
                for (x, pixel) in output.chunks_exact_mut(count).enumerate() {
                    convert(rows, x, pixel, colors);
                }
            },
        );
    output
}

fn convert(rows: &[Vec<u8>], x: usize, pixel: &mut [u8], colors: Colors) {
    match (colors, pixel) {
        (Colors::Ycc, [red, green, blue]) => {
            [*red, *green, *blue] = rgb(rows[0][x], rows[1][x], rows[2][x]);
        }
        (Colors::Ycck, [cyan, magenta, yellow, black]) => {
            let rgb = rgb(rows[0][x], rows[1][x], rows[2][x]);
            [*cyan, *magenta, *yellow] = rgb.map(|sample| 255 - sample);
            *black = rows[3][x];
        }
        (_, pixel) => {
            for (sample, row) in pixel.iter_mut().zip(rows) {
                *sample = row[x];
            }
        }
    }
}

/// 16 bits behind the point.
const fn fixed(value: f64) -> i32 {
    (value * 65_536.0 + 0.5) as i32
}

fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = (fixed(1.402) * cr + HALF) >> 16;
    let blue = (fixed(1.772) * cb + HALF) >> 16;
    let green = (-fixed(0.344_14) * cb + HALF - fixed(0.714_14) * cr) >> 16;
    [y + red, y + green, y + blue].map(|sample| sample.clamp(0, 255) as u8)
}

/// Row `y` of the picture of one component, stretched to the picture's width.
fn upsampled(component: &Component, most: (usize, usize), y: usize, output: &mut [u8]) {
    let (across, down) = (most.0 / component.sampling.0, most.1 / component.sampling.1);
    let own = component.row(y / down);
    // libjpeg smooths where one sample becomes two, if there are more than two of them in a row.
    let wide = component.size.0 > 2;
    match (across, down) {
        (1, 1) => output[..own.len()].copy_from_slice(own),
        (2, 1) if wide => double(own, output),
        (1, 2) => {
            let bias = 1 + (y % 2) as u16;
            let near = nearest(component, y);
            for ((sample, &own), &near) in output.iter_mut().zip(own).zip(near) {
                *sample = ((u16::from(own) * 3 + u16::from(near) + bias) >> 2) as u8;
            }
        }
        (2, 2) if wide => double_both(own, nearest(component, y), output),
        _ => {
            for (samples, &own) in output.chunks_exact_mut(across).zip(own) {
                samples.fill(own);
            }
        }
    }
}

/// The other row of a component that is nearest to row `y` of a picture twice as high.
fn nearest(component: &Component, y: usize) -> &[u8] {
    let row = y / 2;
    component.row(if y.is_multiple_of(2) {
        row.saturating_sub(1)
    } else {
        row + 1
    })
}

/// Each sample twice, weighted three to one with its neighbour.
fn double(own: &[u8], output: &mut [u8]) {
    let last = own.len() - 1;
    for (index, pair) in output.chunks_exact_mut(2).take(own.len()).enumerate() {
        let at = |index: usize| u16::from(own[index]);
        let three = 3 * at(index);
        pair[0] = if index == 0 {
            own[0]
        } else {
            ((three + at(index - 1) + 1) >> 2) as u8
        };
        pair[1] = if index == last {
            own[last]
        } else {
            ((three + at(index + 1) + 2) >> 2) as u8
        };
    }
}

/// The same across and down: `near` is the nearest other row.
fn double_both(own: &[u8], near: &[u8], output: &mut [u8]) {
    let sum = |index: usize| 3 * u16::from(own[index]) + u16::from(near[index]);
    let last = own.len() - 1;
    for (index, pair) in output.chunks_exact_mut(2).take(own.len()).enumerate() {
        let this = sum(index);
        let before = if index == 0 { this } else { sum(index - 1) };
        let after = if index == last { this } else { sum(index + 1) };
        pair[0] = ((3 * this + before + 8) >> 4) as u8;
        pair[1] = ((3 * this + after + 7) >> 4) as u8;
    }
}
