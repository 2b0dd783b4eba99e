//! Positions of patches: learned tables stretched to a picture's grid, and axial rotary embeddings.

use aha_nn::rope::Rotation;
use candle_core::{DType, Device, Result, Tensor};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// How a table is stretched along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// Linear, the outermost entries on the outermost patches.
    AlignedCorners,
    /// Linear between the centres of entries, clamped at the edges.
    HalfPixel,
    /// The same, averaging over all entries that a patch covers when the grid is smaller than the table.
    HalfPixelAntialiased,
    /// As the last, but with Keys' cubic (a = -0.5) in place of the triangle.
    CubicAntialiased,
}

impl Interpolation {
    /// Weights of `size` entries for each of `count` patches, `[count, size]`.
    fn weights(self, count: usize, size: usize) -> Vec<f32> {
        let mut weights = vec![0f32; count * size];
        for (index, row) in weights.chunks_exact_mut(size).enumerate() {
            match self {
                Self::AlignedCorners => {
                    let step = (size - 1) as f32 / (count - 1).max(1) as f32;
                    between(index as f32 * step, row);
                }
                Self::HalfPixel => {
                    let source = (index as f32 + 0.5) * (size as f32 / count as f32) - 0.5;
                    between(source.max(0.0), row);
                }
                Self::HalfPixelAntialiased => covered(index, count, row, (1.0, triangle)),
                Self::CubicAntialiased => covered(index, count, row, (2.0, cubic)),
            }
        }
        weights
    }
}

/// Weights of the two entries around `source`.
fn between(source: f32, row: &mut [f32]) {
    let last = row.len() - 1;
    let low = (source.floor() as usize).min(last);
    let share = (source - low as f32).clamp(0.0, 1.0);
    row[low] += 1.0 - share;
    row[(low + 1).min(last)] += share;
}

fn triangle(distance: f32) -> f32 {
    (1.0 - distance).max(0.0)
}

fn cubic(x: f32) -> f32 {
    const A: f32 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Weights of a filter around patch `index`, which reaches some entries to both sides, or as many patches where those
/// are wider.
fn covered(index: usize, count: usize, row: &mut [f32], (reach, filter): (f32, fn(f32) -> f32)) {
    let scale = row.len() as f32 / count as f32;
    let width = scale.max(1.0);
    let centre = (index as f32 + 0.5) * scale;
    let support = reach * width;
    let first = ((centre - support + 0.5) as isize).max(0) as usize;
    let end = ((centre + support + 0.5) as usize).min(row.len());
    let mut sum = 0.0;
    for (entry, weight) in row.iter_mut().enumerate().take(end).skip(first) {
        let distance = ((entry as f32 - centre + 0.5) / width).abs();
        *weight = filter(distance);
        sum += *weight;
    }
    if sum != 0.0 {
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
}

/// A table `[entries, width]` stretched to `[count, width]`, in f32.
pub(crate) fn interpolate_axis(
    table: &Tensor,
    count: usize,
    rule: Interpolation,
) -> Result<Tensor> {
    let entries = table.dim(0)?;
    if entries == 0 || count == 0 {
        candle_core::bail!("{entries} positions cannot be stretched to {count}");
    }
    let table = table.to_dtype(DType::F32)?;
    if entries == count {
        return Ok(table);
    }
    let weights = rule.weights(count, entries);
    Tensor::from_vec(weights, (count, entries), table.device())?.matmul(&table)
}

/// A table `[side * side, width]` stretched to `[rows * columns, width]`, row by row: two products, one an axis.
pub(crate) fn interpolate_table(
    table: &Tensor,
    (rows, columns): (usize, usize),
    rule: Interpolation,
) -> Result<Tensor> {
    let (entries, width) = table.dims2()?;
    let side = entries.isqrt();
    if side * side != entries || side == 0 || rows == 0 || columns == 0 {
        candle_core::bail!("{entries} positions are no square, or the grid is empty");
    }
    let (device, dtype) = (table.device(), table.dtype());
    let weights = |count: usize| Tensor::from_vec(rule.weights(count, side), (count, side), device);
    let table = table.to_dtype(DType::F32)?.reshape((side, side * width))?;
    let stretched = weights(rows)?
        .matmul(&table)?
        .reshape((rows, side, width))?;
    let across = weights(columns)?
        .unsqueeze(0)?
        .broadcast_as((rows, columns, side))?
        .contiguous()?;
    across
        .matmul(&stretched)?
        .reshape((rows * columns, width))?
        .to_dtype(dtype)
}

/// Positions of the patches of pictures, `[patches, width]`, from a learned table `[side * side, width]` stretched to
/// each picture's grid. `grids` are patches in time, height and width; `rows` as [`patch_places`] gives them.
pub fn learned_positions(
    table: &Tensor,
    grids: &[[usize; 3]],
    rows: Vec<u32>,
    rule: Interpolation,
) -> Result<Tensor> {
    // Tiles of one size and frames of a clip share theirs.
    let mut stretched: HashMap<(usize, usize), Tensor> = HashMap::new();
    let mut tables = Vec::with_capacity(grids.len());
    for &[time, height, width] in grids {
        let positions = match stretched.entry((height, width)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(interpolate_table(table, (height, width), rule)?),
        };
        tables.extend(std::iter::repeat_n(positions.clone(), time));
    }
    let rows = Tensor::new(rows, table.device())?;
    Tensor::cat(&tables, 0)?.index_select(&rows, 0)
}

/// Where the patches of pictures lie, in the order in which they come: blocks of `merge` by `merge`, row by row of
/// blocks, frame after frame. Returns row and column of each patch, and its index in plain row-major order of all
/// pictures' frames.
pub fn patch_places(grids: &[[usize; 3]], merge: usize) -> (Vec<(u32, u32)>, Vec<u32>) {
    let count = grids.iter().map(|[t, h, w]| t * h * w).sum();
    let (mut places, mut rows) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut first = 0;
    for &[time, height, width] in grids {
        for _ in 0..time {
            for block_row in (0..height).step_by(merge) {
                for block_column in (0..width).step_by(merge) {
                    for row in block_row..(block_row + merge).min(height) {
                        for column in block_column..(block_column + merge).min(width) {
                            places.push((row as u32, column as u32));
                            rows.push((first + row * width + column) as u32);
                        }
                    }
                }
            }
            first += height * width;
        }
    }
    (places, rows)
}

/// Rotation of patches at `(row, column)`: the first half of the frequencies turns with the row, the second with the
/// column (arXiv 2403.13298, axial form).
pub fn axial_rotation(
    places: &[(u32, u32)],
    head_dim: usize,
    theta: f32,
    dtype: DType,
    device: &Device,
) -> Result<Rotation> {
    let quarter = head_dim / 4;
    let frequencies: Vec<f32> = (0..quarter)
        .map(|j| 1.0 / theta.powf((2 * j) as f32 / (head_dim / 2) as f32))
        .collect();
    let angles: Vec<f32> = places
        .iter()
        .flat_map(|&(row, column)| [row, column])
        .flat_map(|at| {
            frequencies
                .iter()
                .map(move |frequency| at as f32 * frequency)
        })
        .collect();
    Rotation::from_angles(&angles, 2 * quarter, dtype, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_keeps_a_table_of_the_grid_s_own_size() {
        let table = Tensor::randn(0f32, 1.0, (25, 3), &Device::Cpu).unwrap();
        for rule in [
            Interpolation::AlignedCorners,
            Interpolation::HalfPixel,
            Interpolation::HalfPixelAntialiased,
            Interpolation::CubicAntialiased,
        ] {
            let same = interpolate_table(&table, (5, 5), rule).unwrap();
            let gap = (&same - &table).unwrap().abs().unwrap().flatten_all();
            let worst: f32 = gap.unwrap().max(0).unwrap().to_scalar().unwrap();
            assert!(worst < 1e-6, "{rule:?}: {worst}");
        }
    }

    /// As PyTorch's `interpolate` with `antialias`.
    #[test]
    fn the_cubic_averages_when_it_shrinks_and_overshoots_when_it_grows() {
        let stretched = |entries: &[f32], count| -> Vec<f32> {
            let table = Tensor::from_slice(entries, (entries.len(), 1), &Device::Cpu).unwrap();
            let stretched = interpolate_axis(&table, count, Interpolation::CubicAntialiased);
            stretched.unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let close = |found: Vec<f32>, want: &[f32]| {
            assert_eq!(found.len(), want.len());
            for (a, b) in found.iter().zip(want) {
                assert!((a - b).abs() < 1e-6, "{found:?} {want:?}");
            }
        };
        let shrunk = stretched(&[1.0, 2.0, 4.0, 8.0, 3.0], 3);
        close(shrunk, &[1.230_769_4, 4.641_86, 5.261_538_5]);
        let grown = stretched(&[1.0, 2.0, 4.0], 5);
        close(
            grown,
            &[0.924_528_3, 1.261_194, 2.0, 3.343_283_7, 4.150_943_3],
        );
    }

    #[test]
    fn rules_differ_at_the_edges_and_when_they_shrink() {
        let weights = |rule: Interpolation, count, size| rule.weights(count, size);
        assert_eq!(
            weights(Interpolation::AlignedCorners, 3, 2),
            [1.0, 0.0, 0.5, 0.5, 0.0, 1.0]
        );
        assert_eq!(
            weights(Interpolation::HalfPixel, 4, 2),
            [1.0, 0.0, 0.75, 0.25, 0.25, 0.75, 0.0, 1.0]
        );
        // Two patches over four entries: each weighs three, the middle ones shared.
        let shrunk = weights(Interpolation::HalfPixelAntialiased, 2, 4);
        let expected = [3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0, 0.0];
        for (found, expected) in shrunk.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{shrunk:?}");
        }
    }
}
