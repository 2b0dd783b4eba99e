//! The order in which patches lie window by window.

use candle_core::{Device, Result, Tensor};

/// An order of the cells of pictures, where a cell is the block of patches that becomes one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WindowOrder {
    /// Index of each cell in row-major order of frames.
    cells: Vec<u32>,
    /// Cells of each window.
    lengths: Vec<usize>,
}

impl WindowOrder {
    /// Windows of `side` by `side` cells, those at the right and bottom edges smaller, row by row of each frame.
    /// `grids` are patches in time, height and width; cells have `merge` by `merge` of them.
    pub(super) fn new(grids: &[[usize; 3]], merge: usize, side: usize) -> Self {
        let count = grids
            .iter()
            .map(|[t, h, w]| t * (h / merge) * (w / merge))
            .sum();
        let (mut cells, mut lengths) = (Vec::with_capacity(count), Vec::new());
        let mut first = 0;
        for &[time, height, width] in grids {
            let (rows, columns) = (height / merge, width / merge);
            for _ in 0..time {
                for top in (0..rows).step_by(side) {
                    for left in (0..columns).step_by(side) {
                        let (bottom, right) = ((top + side).min(rows), (left + side).min(columns));
                        for row in top..bottom {
                            cells.extend(
                                (left..right).map(|at| (first + row * columns + at) as u32),
                            );
                        }
                        lengths.push((bottom - top) * (right - left));
                    }
                }
                first += rows * columns;
            }
        }
        Self { cells, lengths }
    }

    /// Cells of each window.
    pub(super) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// `items`, of which `per_cell` belong to a cell, window by window.
    pub(super) fn reordered<T: Copy>(&self, items: &[T], per_cell: usize) -> Vec<T> {
        self.cells
            .iter()
            .flat_map(|cell| items.iter().skip(*cell as usize * per_cell).take(per_cell))
            .copied()
            .collect()
    }

    /// Indices that bring cells window by window, `[cells]`.
    pub(super) fn index(&self, device: &Device) -> Result<Tensor> {
        Tensor::new(self.cells.as_slice(), device)
    }

    /// Indices that bring them back.
    pub(super) fn inverse(&self, device: &Device) -> Result<Tensor> {
        let mut inverse = vec![0_u32; self.cells.len()];
        for (place, cell) in (0..).zip(&self.cells) {
            inverse[*cell as usize] = place;
        }
        Tensor::new(inverse, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_at_the_edges_are_smaller_and_none_is_empty() {
        // 3 x 5 cells in windows of 2 x 2, then two frames of 2 x 2.
        let order = WindowOrder::new(&[[1, 6, 10], [2, 4, 4]], 2, 2);
        assert_eq!(order.lengths(), [4, 4, 2, 2, 2, 1, 4, 4]);
        assert_eq!(
            order.cells[..15],
            [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]
        );
        assert_eq!(order.cells[15..], [15, 16, 17, 18, 19, 20, 21, 22]);
        let doubled: Vec<u32> = (0..46).collect();
        assert_eq!(order.reordered(&doubled, 2)[..6], [0, 1, 2, 3, 10, 11]);
    }

    #[test]
    fn the_inverse_brings_cells_back() {
        let order = WindowOrder::new(&[[2, 10, 14]], 2, 3);
        let cells = Tensor::arange(0_u32, 70, &Device::Cpu).unwrap();
        let moved = cells
            .index_select(&order.index(&Device::Cpu).unwrap(), 0)
            .unwrap();
        let back = moved
            .index_select(&order.inverse(&Device::Cpu).unwrap(), 0)
            .unwrap();
        assert_ne!(
            moved.to_vec1::<u32>().unwrap(),
            cells.to_vec1::<u32>().unwrap()
        );
        assert_eq!(
            back.to_vec1::<u32>().unwrap(),
            cells.to_vec1::<u32>().unwrap()
        );
    }
}
