//! How a map is cut into windows, and what the tokens of a window know of each other.

use candle_core::{Device, Result, Tensor};

/// What is added to the scores of tokens that a shifted window has brought together from both ends of the map.
const FAR_APART: f32 = -100.0;

/// Where the tokens of a map lie among those of its windows.
#[derive(Debug)]
pub(super) struct Windows {
    /// For each token of each window, its number in the map, or `u32::MAX` (which selects zeros) where the map was
    /// padded to whole windows.
    pub(super) gather: Tensor,
    /// For each token of the map, its number among those of the windows.
    pub(super) scatter: Tensor,
    /// For each window, which of [`masks`] is its own.
    pub(super) mask_of: Vec<u32>,
}

impl Windows {
    /// Windows of `side` times `side` tokens on a map that is shifted left and up by `shift`, around its ends.
    pub(super) fn new(
        (height, width): (usize, usize),
        side: usize,
        shift: usize,
        device: &Device,
    ) -> Result<Self> {
        let (rows, columns) = (height.div_ceil(side), width.div_ceil(side));
        let mut gather = Vec::with_capacity(rows * columns * side * side);
        let mut scatter = vec![0_u32; height * width];
        let mut mask_of = Vec::with_capacity(rows * columns);
        for window in 0..rows * columns {
            let (row, column) = (window / columns, window % columns);
            let at_end = [row + 1 == rows, column + 1 == columns];
            mask_of.push(if shift == 0 {
                0
            } else {
                2 * u32::from(at_end[0]) + u32::from(at_end[1])
            });
            for place in 0..side * side {
                let y = (row * side + place / side + shift) % (rows * side);
                let x = (column * side + place % side + shift) % (columns * side);
                if y < height && x < width {
                    scatter[y * width + x] = gather.len() as u32;
                    gather.push((y * width + x) as u32);
                } else {
                    gather.push(u32::MAX);
                }
            }
        }
        Ok(Self {
            gather: Tensor::new(gather, device)?,
            scatter: Tensor::new(scatter, device)?,
            mask_of,
        })
    }
}

/// The masks `[4, side², side²]` of windows inside the map, at its right end, at its lower end, and at both.
pub(super) fn masks(side: usize, shift: usize, device: &Device) -> Result<Tensor> {
    let len = side * side;
    let mut values = Vec::with_capacity(4 * len * len);
    for (lower, right) in [(false, false), (false, true), (true, false), (true, true)] {
        let part = |place: usize| {
            let behind = side - shift;
            (
                lower && place / side >= behind,
                right && place % side >= behind,
            )
        };
        for query in 0..len {
            values.extend((0..len).map(|key| {
                if part(query) == part(key) {
                    0.0
                } else {
                    FAR_APART
                }
            }));
        }
    }
    Tensor::from_vec(values, (4, len, len), device)
}

/// For each query and key of a window, the row of the table of relative positions.
pub(super) fn relative_positions(side: usize) -> Vec<u32> {
    let len = side * side;
    (0..len * len)
        .map(|pair| {
            let (query, key) = (pair / len, pair % len);
            let y = query / side + side - 1 - key / side;
            let x = query % side + side - 1 - key % side;
            (y * (2 * side - 1) + x) as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_in_one_window_and_comes_back() {
        for (size, side, shift) in [
            ((5, 7), 3, 0),
            ((5, 7), 3, 1),
            ((4, 4), 4, 2),
            ((2, 3), 4, 2),
        ] {
            let windows = Windows::new(size, side, shift, &Device::Cpu).unwrap();
            let gather = windows.gather.to_vec1::<u32>().unwrap();
            let scatter = windows.scatter.to_vec1::<u32>().unwrap();
            assert_eq!(gather.len(), windows.mask_of.len() * side * side);
            for (token, place) in scatter.iter().enumerate() {
                assert_eq!(gather[*place as usize], token as u32);
            }
            let padded = gather.iter().filter(|token| **token == u32::MAX).count();
            assert_eq!(padded, gather.len() - scatter.len());
        }
    }

    #[test]
    fn windows_in_the_middle_have_no_mask_and_those_at_the_ends_their_own() {
        let plain = Windows::new((6, 6), 3, 0, &Device::Cpu).unwrap();
        assert_eq!(plain.mask_of, [0, 0, 0, 0]);
        let shifted = Windows::new((6, 6), 3, 1, &Device::Cpu).unwrap();
        assert_eq!(shifted.mask_of, [0, 1, 2, 3]);
        let masks = masks(3, 1, &Device::Cpu).unwrap().to_vec3::<f32>().unwrap();
        assert!(masks[0].iter().flatten().all(|value| *value == 0.0));
        // The last column came from the left end of the map.
        assert_eq!(
            masks[1][0],
            [0.0, 0.0, -100.0, 0.0, 0.0, -100.0, 0.0, 0.0, -100.0]
        );
        assert_eq!(masks[2][0][6..], [-100.0; 3]);
        assert_eq!(masks[3][8][..8], [-100.0; 8]);
    }
}
