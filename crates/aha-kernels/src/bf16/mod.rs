//! Products with `bf16` weights by dot products of `bf16`.
//!
//! The activations are rounded to `bf16`, as accelerators and reference implementations have them in a
//! `bf16` model; sums are `f32`. An output value is one lane of one accumulator, which takes the columns
//! in ascending order, two at a time.

mod avx512;

use crate::buffer::{Line, flat_mut, with_scratch};
use crate::matmul::{Output, PARALLEL_FROM, cut};
use crate::pack::PackedMatrix;
use crate::pool::{for_each_piece, for_each_task, threads};

/// Rows of `x` and panels of a tile: their sums fill 24 of 32 registers.
const TILE_ROWS: usize = 6;
const TILE_PANELS: usize = 4;

/// A tile's operands.
struct Tile<'a> {
    /// Activations `[pair of columns][row]`, two in a word.
    x: &'a [u32],
    rows: usize,
    pairs: usize,
    /// The panels, one after another without gaps.
    panels: &'a [u8],
    /// One, two or four.
    count: usize,
    /// Whether the panels come from memory rather than from a cache.
    streams: bool,
    /// `[panel][row]`.
    sums: &'a mut [Line],
}

impl Tile<'_> {
    fn multiply(self) {
        // The kernel indexes without further checks.
        assert!((1..=TILE_ROWS).contains(&self.rows) && matches!(self.count, 1 | 2 | 4));
        assert!(self.x.len() >= self.rows * self.pairs);
        assert!(self.panels.len() >= self.count * self.pairs * size_of::<Line>());
        assert!(self.sums.len() >= self.count * self.rows);
        // SAFETY: lengths were checked above, the instruction set by the caller of `matmul`.
        unsafe { avx512::multiply(self) }
    }
}

/// The product; shapes were checked by the caller, `w` is `Bf16`, and the processor has the instructions
/// of `InstructionSet::Avx512`.
pub(crate) fn matmul(w: &PackedMatrix, x: &[f32], m: usize, out: Output) {
    let pairs = w.cols().div_ceil(2);
    let tiles = m.div_ceil(TILE_ROWS);
    let work = m.saturating_mul(w.rows()).saturating_mul(w.cols());
    let cores = if work < PARALLEL_FROM { 1 } else { threads() };
    with_scratch((m * pairs).div_ceil(16), |scratch| {
        let words = &mut flat_mut(scratch)[..m * pairs];
        round(w.cols(), x, m, words);
        // SAFETY: `u32` has the size and alignment of `f32`, and both take every bit pattern.
        let x: &[u32] = unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) };
        let groups = w.panels().div_ceil(TILE_PANELS);
        // Few rows: a few tasks a thread, each walking forwards through memory, so that a thread that is
        // held up elsewhere does not hold up the rest. Many rows: a group of panels stays in the
        // second-level cache while the rows pass.
        let stretches = if cores == 1 {
            1
        } else if tiles == 1 {
            groups.min(4 * cores)
        } else {
            groups
        };
        let blocks = (4 * cores).div_ceil(stretches).min(tiles);
        let blocks = if cores == 1 { 1 } else { blocks };
        for_each_task(stretches * blocks, |task| {
            let (stretch, block) = (task / blocks, task % blocks);
            for group in cut(groups, stretches, stretch)..cut(groups, stretches, stretch + 1) {
                let panels = group * TILE_PANELS..w.panels().min((group + 1) * TILE_PANELS);
                for tile in cut(tiles, blocks, block)..cut(tiles, blocks, block + 1) {
                    let rows = cut(m, tiles, tile)..cut(m, tiles, tile + 1);
                    let mut first = panels.start;
                    while first < panels.end {
                        let count = match panels.end - first {
                            4.. => 4,
                            2.. => 2,
                            _ => 1,
                        };
                        let mut sums = [Line::ZERO; TILE_ROWS * TILE_PANELS];
                        Tile {
                            x: &x[rows.start * pairs..rows.end * pairs],
                            rows: rows.len(),
                            pairs,
                            panels: w.panel_range(first, count),
                            count,
                            streams: tiles == 1,
                            sums: &mut sums,
                        }
                        .multiply();
                        for (index, line) in sums[..count * rows.len()].iter().enumerate() {
                            let (panel, row) = (first + index / rows.len(), index % rows.len());
                            // SAFETY: these panels of these rows are this task's own.
                            unsafe { out.write(rows.start + row, panel, line) }
                        }
                        first += count;
                    }
                }
            }
        });
    });
}

/// Rounds rows to `bf16` and lays them out as `[tile][pair of columns][row of the tile]`, two in the
/// bits of an `f32`.
fn round(cols: usize, x: &[f32], m: usize, words: &mut [f32]) {
    if cols == 0 {
        return;
    }
    let (pairs, tiles) = (cols.div_ceil(2), m.div_ceil(TILE_ROWS));
    let round_tile = |tile: usize, words: &mut [f32]| {
        let rows = cut(m, tiles, tile)..cut(m, tiles, tile + 1);
        let x = &x[rows.start * cols..rows.end * cols];
        // SAFETY: the instruction set was checked by the caller of `matmul`.
        unsafe { avx512::round(cols, x, rows.len(), words) }
    };
    let starts: Vec<_> = (0..=tiles)
        .map(|tile| cut(m, tiles, tile) * pairs)
        .collect();
    for_each_piece(words, &starts, m * cols >= PARALLEL_FROM, round_tile);
}
