//! Addends of scores that depend on where key and query lie on a grid.

use super::call::Rows;
use super::task::KEYS;

/// Decomposed relative positions (arXiv 2112.01526): every sequence is a grid of tokens, row after row, and a score
/// gains one addend for the rows and one for the columns between query and key.
///
/// The addends stand beside the product of query and key, before the factor `scale`.
#[derive(Debug, Clone, Copy)]
pub struct GridBias<'a> {
    /// Rows of the grid.
    pub height: usize,
    /// Tokens of a row.
    pub width: usize,
    /// One row a token. For every query head it holds [`GridBias::terms_per_head`] values: the addends for keys
    /// `1 - height` to `height - 1` rows further down, then those for keys `1 - width` to `width - 1` columns
    /// further right.
    pub terms: Rows<'a>,
}

impl GridBias<'_> {
    /// Values of a token and head in `terms`.
    #[must_use]
    pub const fn terms_per_head(&self) -> usize {
        let sides = self.height.saturating_add(self.width);
        sides.saturating_mul(2).saturating_sub(2)
    }

    /// Tokens of a sequence.
    pub(super) const fn tokens(&self) -> Option<usize> {
        self.height.checked_mul(self.width)
    }

    /// Writes what keys `tile..end` get from the query at `position` of its sequence, which is row `token` of `terms`.
    pub(super) fn addends(
        &self,
        (token, head, position): (usize, usize, usize),
        (tile, end): (usize, usize),
        addends: &mut [f32; KEYS],
    ) {
        let (height, width) = (self.height, self.width);
        let terms = &self.terms.values[token * self.terms.stride + head * self.terms_per_head()..];
        let (rows, columns) = terms[..self.terms_per_head()].split_at(2 * height - 1);
        let (query_row, query_column) = (position / width, position % width);
        let mut key = tile;
        while key < end {
            // The stretch of the tile that lies in one row of the grid.
            let (row, column) = (key / width, key % width);
            let length = (width - column).min(end - key);
            let down = rows[row + height - 1 - query_row];
            let right = &columns[column + width - 1 - query_column..][..length];
            for (addend, right) in addends[key - tile..].iter_mut().zip(right) {
                *addend = down + right;
            }
            key += length;
        }
    }
}
