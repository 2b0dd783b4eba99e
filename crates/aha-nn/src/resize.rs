//! Resizing of feature maps.

use crate::cpu::{contiguous_f32, is_f32_on_cpu};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Resizes `x` `[batch, height, width, channels]` by bilinear interpolation in which the corner pixels keep their
/// places: what PyTorch calls `align_corners=True`. Nothing is averaged when it shrinks.
///
/// # Errors
/// When a size is zero.
pub fn bilinear_align_corners(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, from_height, from_width, _) = x.dims4()?;
    if [height, width, from_height, from_width].contains(&0) {
        candle_core::bail!(
            "{from_height}x{from_width} pixels cannot become {height}x{width}: no side may be zero"
        );
    }
    if (from_height, from_width) == (height, width) {
        return Ok(x.clone());
    }
    if is_f32_on_cpu(x) {
        return x
            .contiguous()?
            .apply_op1_no_bwd(&AlignCorners { height, width });
    }
    x.permute((0, 3, 1, 2))?
        .contiguous()?
        .upsample_bilinear2d(height, width, true)?
        .permute((0, 2, 3, 1))?
        .contiguous()
}

struct AlignCorners {
    height: usize,
    width: usize,
}

/// Two neighbours and the share of the second.
#[derive(Clone, Copy)]
struct Between {
    first: usize,
    second: usize,
    share: f32,
}

/// Where each of `to` places lies among `from`. In single precision, as the references compute it.
fn places(from: usize, to: usize) -> Vec<Between> {
    let step = if to > 1 {
        (from - 1) as f32 / (to - 1) as f32
    } else {
        0.0
    };
    (0..to)
        .map(|index| {
            let place = step * index as f32;
            let first = (place as usize).min(from - 1);
            Between {
                first,
                second: (first + 1).min(from - 1),
                share: (place - first as f32).clamp(0.0, 1.0),
            }
        })
        .collect()
}

impl CustomOp1 for AlignCorners {
    fn name(&self) -> &'static str {
        "bilinear-align-corners"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_f32(storage, layout)?;
        let (batch, height, width, channels) = layout.shape().dims4()?;
        let (rows, columns) = (places(height, self.height), places(width, self.width));
        let shape = Shape::from((batch, self.height, self.width, channels));
        let mut out = vec![0f32; shape.elem_count()];
        let pixel = |row: usize, column: usize| &x[(row * width + column) * channels..][..channels];
        out.par_chunks_mut((self.width * channels).max(1))
            .enumerate()
            .for_each(|(index, line)| {
                let (image, row) = (index / self.height, rows[index % self.height]);
                let (above, below) = (image * height + row.first, image * height + row.second);
                let (keep_y, share_y) = (1.0 - row.share, row.share);
                for (column, target) in columns.iter().zip(line.chunks_exact_mut(channels.max(1))) {
                    let (keep_x, share_x) = (1.0 - column.share, column.share);
                    let above = pixel(above, column.first)
                        .iter()
                        .zip(pixel(above, column.second));
                    let below = pixel(below, column.first)
                        .iter()
                        .zip(pixel(below, column.second));
                    for (value, (above, below)) in target.iter_mut().zip(above.zip(below)) {
                        *value = keep_y * (keep_x * above.0 + share_x * above.1)
                            + share_y * (keep_x * below.0 + share_x * below.1);
                    }
                }
            });
        Ok((CpuStorage::F32(out), shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn it_equals_candles_own_in_both_directions() {
        let x = random(&[2, 7, 9, 5]);
        for (height, width) in [(14, 20), (3, 4), (1, 1), (7, 30), (7, 9)] {
            let got = bilinear_align_corners(&x, height, width).unwrap();
            let want = x
                .permute((0, 3, 1, 2))
                .and_then(|x| x.contiguous())
                .and_then(|x| x.upsample_bilinear2d(height, width, true))
                .and_then(|x| x.permute((0, 2, 3, 1)))
                .unwrap();
            close(&got, &want, 1e-5);
        }
        assert!(bilinear_align_corners(&x, 0, 3).is_err());
    }
}
