//! Products with block-quantised weights: integer dot products of eight-bit activations.
//!
//! Codes of weights and of activations are multiplied and summed as integers within each group of 16 or
//! 32 columns that shares a scale, which is exact; group by group, in the order of the columns, the
//! sums are scaled and added in `f32`. The activations' rounding ([`Layout`]) is all that such a product
//! differs by from one with the dequantised weights, besides the rounding of sums.
//!
//! With few rows of `x`, codes are unpacked in registers as they stream by; with many, a pair of panels is
//! first unpacked to whole bytes, which then meet one tile of rows after another.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod scalar;

use std::ops::Range;

use super::activations::{Layout, Sums};
use super::{Format, UNIT};
use crate::InstructionSet;
use crate::buffer::{Line, flat_mut, with_scratch};
use crate::matmul::{Job, Output, PARALLEL_FROM, cut, for_each_job_piece, tasks};
use crate::pack::PackedMatrix;
use crate::pool::{for_each_piece, for_each_task, threads};

/// Lines of output sums that the largest tile has.
const MOST_SUMS: usize = 12;

/// How many rows of `x` a tile takes at most: as many as have room for their sums in the registers.
fn most_rows(set: InstructionSet) -> usize {
    match set {
        set if set.has_avx512() => 6,
        set if set.has_avx2() => 3,
        _ => 1,
    }
}

/// One or two panels.
#[derive(Clone, Copy)]
enum Panels<'a> {
    /// One panel, as it is kept.
    Packed(&'a [u8]),
    /// All units of the first panel as [`unpack`] leaves them, then of the second.
    Unpacked(&'a [Line]),
}

/// A tile: rows of quantised activations with one or two panels.
struct Tile<'a> {
    format: &'a Format,
    /// Activations of the whole rows, see [`Layout`].
    x: &'a [u32],
    rows: usize,
    /// Units of a row.
    row_units: usize,
    panels: Panels<'a>,
    count: usize,
    /// `[panel][row]`.
    sums: &'a mut [Line],
}

impl Tile<'_> {
    fn multiply(self, set: InstructionSet) {
        // The kernels index without further checks.
        let words = self.row_units * (UNIT / 4 + 1 + self.format.groups());
        assert!(self.rows >= 1 && self.rows <= most_rows(set) && matches!(self.count, 1 | 2));
        assert!(self.x.len() >= self.rows * words);
        assert!(self.sums.len() >= self.count * self.rows);
        match self.panels {
            Panels::Packed(panel) => {
                assert!(self.count == 1);
                let bytes = self.format.panel_bytes(self.row_units * UNIT);
                assert!(bytes.is_some_and(|bytes| panel.len() >= bytes));
            }
            Panels::Unpacked(lines) => {
                assert!(lines.len() >= self.count * self.row_units * self.format.unpacked_lines());
            }
        }
        match set {
            #[cfg(target_arch = "x86_64")]
            set if set.has_avx512() => {
                // SAFETY: lengths were checked above, the instruction set when it was chosen.
                unsafe { avx512::multiply(self) }
            }
            #[cfg(target_arch = "x86_64")]
            set if set.has_avx2() => {
                // SAFETY: as above.
                unsafe { avx2::multiply(self) }
            }
            // SAFETY: as above; no instruction set is needed.
            _ => unsafe { scalar::multiply(self) },
        }
    }
}

/// Unpacks a panel of `units` units to `out`.
fn unpack(set: InstructionSet, format: &Format, panel: &[u8], units: usize, out: &mut [Line]) {
    let bytes = format.panel_bytes(units * UNIT);
    assert!(bytes.is_some_and(|bytes| panel.len() >= bytes));
    assert!(out.len() >= units * format.unpacked_lines());
    match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx512() => {
            // SAFETY: lengths were checked above, the instruction set when it was chosen.
            unsafe { avx512::unpack(format, panel, units, out) }
        }
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: as above.
            unsafe { avx2::unpack(format, panel, units, out) }
        }
        // SAFETY: as above; no instruction set is needed.
        _ => unsafe { scalar::unpack(format, panel, units, out) },
    }
}

/// The activations of a product with `format`.
fn layout(set: InstructionSet, format: &Format, cols: usize) -> Layout {
    // AVX2 multiplies codes of eight bits with their sign.
    let offset = if format.bits == 8 && set == InstructionSet::Avx2 {
        0
    } else {
        format.offset()
    };
    Layout {
        cols,
        groups: format.groups(),
        sums: if format.minima {
            Sums::Minima
        } else {
            Sums::Offset(offset)
        },
    }
}

fn quantise(set: InstructionSet, layout: &Layout, x: &[f32], rows: usize, words: &mut [u32]) {
    match set {
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx512() => {
            // SAFETY: the instruction set was checked when it was chosen.
            unsafe { avx512::quantise(layout, x, rows, words) }
        }
        #[cfg(target_arch = "x86_64")]
        set if set.has_avx2() => {
            // SAFETY: as above.
            unsafe { avx2::quantise(layout, x, rows, words) }
        }
        _ => layout.quantise(x, rows, words),
    }
}

/// The products; shapes were checked by the caller, and all kinds have formats.
pub(crate) fn matmul(set: InstructionSet, jobs: &[Job<'_>], x: &[f32], m: usize) {
    let formats = jobs.iter().filter_map(|job| Format::of(job.w.kind()));
    let products: Vec<Product<'_>> = (jobs.iter().zip(formats))
        .map(|(job, format)| Product {
            set,
            format,
            layout: layout(set, &format, job.w.cols()),
            w: job.w,
            m,
            out: job.out,
        })
        .collect();
    // Products that take their activations in the same way share them.
    for products in products.chunk_by(|a, b| a.layout == b.layout) {
        let layout = products[0].layout;
        let tiles = m.div_ceil(most_rows(set));
        with_scratch((m * layout.row_words()).div_ceil(16), |scratch| {
            let words = words_of(scratch);
            let starts: Vec<_> = (0..=tiles)
                .map(|tile| cut(m, tiles, tile) * layout.row_words())
                .collect();
            let parallel = m * layout.cols >= PARALLEL_FROM;
            for_each_piece(words, &starts, parallel, |tile, words| {
                let rows = cut(m, tiles, tile)..cut(m, tiles, tile + 1);
                let x = &x[rows.start * layout.cols..rows.end * layout.cols];
                quantise(set, &layout, x, rows.len(), words);
            });
            if tiles == 1 {
                narrow(products, words);
            } else {
                products
                    .iter()
                    .for_each(|product| product.wide(tiles, words));
            }
        });
    }
}

/// A single tile of rows: the weights stream through once, panel by panel, which is the order that they
/// lie in.
fn narrow(products: &[Product<'_>], x: &[u32]) {
    let panels: Vec<_> = products.iter().map(|product| product.w.panels()).collect();
    let tasks = tasks(
        panels.iter().sum(),
        products.iter().map(Product::work).sum(),
    );
    for_each_job_piece(&panels, tasks, |product, panel| {
        products[product].narrow(panel, x)
    });
}

/// Scratch memory as 32-bit words.
fn words_of(lines: &mut [Line]) -> &mut [u32] {
    let values = flat_mut(lines);
    // SAFETY: `u32` has the size and alignment of `f32`, and both take every bit pattern.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}

struct Product<'a> {
    set: InstructionSet,
    format: Format,
    layout: Layout,
    w: &'a PackedMatrix,
    m: usize,
    out: Output,
}

impl Product<'_> {
    /// Multiply-adds.
    fn work(&self) -> usize {
        self.m
            .saturating_mul(self.w.rows())
            .saturating_mul(self.w.cols())
    }

    /// One panel with all rows.
    fn narrow(&self, panel: usize, x: &[u32]) {
        let mut sums = [Line::ZERO; MOST_SUMS];
        Tile {
            format: &self.format,
            x,
            rows: self.m,
            row_units: self.layout.units(),
            panels: Panels::Packed(self.w.panel(panel)),
            count: 1,
            sums: &mut sums,
        }
        .multiply(self.set);
        self.write(0..self.m, panel, 1, &sums);
    }

    /// Many rows: a pair of panels is unpacked once and meets one tile after another.
    fn wide(&self, tiles: usize, x: &[u32]) {
        let (panels, units, row_words) = (
            self.w.panels(),
            self.layout.units(),
            self.layout.row_words(),
        );
        let pairs = panels.div_ceil(2);
        // Rows are cut, too, where panels alone do not keep the threads busy.
        let blocks = (4 * threads()).div_ceil(pairs).min(tiles);
        for_each_task(pairs * blocks, |task| {
            let (pair, block) = (task / blocks, task % blocks);
            let first = 2 * pair;
            let count = 2.min(panels - first);
            with_scratch(count * units * self.format.unpacked_lines(), |unpacked| {
                self.unpack(first, count, unpacked);
                for tile in cut(tiles, blocks, block)..cut(tiles, blocks, block + 1) {
                    let rows = cut(self.m, tiles, tile)..cut(self.m, tiles, tile + 1);
                    let mut sums = [Line::ZERO; MOST_SUMS];
                    Tile {
                        format: &self.format,
                        x: &x[rows.start * row_words..],
                        rows: rows.len(),
                        row_units: units,
                        panels: Panels::Unpacked(unpacked),
                        count,
                        sums: &mut sums,
                    }
                    .multiply(self.set);
                    self.write(rows, first, count, &sums);
                }
            });
        });
    }

    /// Unpacks `count` panels, one after another.
    fn unpack(&self, first: usize, count: usize, out: &mut [Line]) {
        let units = self.layout.units();
        let lines = units * self.format.unpacked_lines();
        for (panel, out) in (first..first + count).zip(out.chunks_exact_mut(lines.max(1))) {
            unpack(self.set, &self.format, self.w.panel(panel), units, out);
        }
    }

    fn write(&self, rows: Range<usize>, first: usize, count: usize, sums: &[Line]) {
        for panel in 0..count {
            for (index, row) in rows.clone().enumerate() {
                let line = &sums[panel * rows.len() + index];
                // SAFETY: these panels of these rows are this task's own.
                unsafe { self.out.write(row, first + panel, line) }
            }
        }
    }
}
