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
use crate::matmul::{Job, Output, PARALLEL_FROM, cut, tasks};
use crate::pack::PackedMatrix;
use crate::pool::{for_each_piece, for_each_task, threads};

/// Lines of output sums that the largest tile has.
const MOST_SUMS: usize = 12;

/// What differs between formats once codes are whole bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    /// Groups of columns with a scale of their own in a unit: one or two.
    groups: usize,
    minima: bool,
    /// Whether codes have all eight bits.
    wide: bool,
}

impl Shape {
    fn of(format: &Format) -> Self {
        Self {
            groups: format.groups(),
            minima: format.minima,
            wide: format.bits == 8,
        }
    }

    /// Lines of an unpacked unit: scales and minima of each group, then eight of codes.
    fn unit_lines(self) -> usize {
        self.groups * if self.minima { 2 } else { 1 } + UNIT / 4
    }
}

/// How many rows of `x` and panels a tile takes at most, by instruction set.
fn most_rows(set: InstructionSet) -> usize {
    match set {
        InstructionSet::Avx512 | InstructionSet::Amx => 6,
        InstructionSet::Avx2 => 3,
        InstructionSet::Scalar => 1,
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
        let shape = Shape::of(self.format);
        let words = self.row_units * (UNIT / 4 + 1 + shape.groups);
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
                assert!(lines.len() >= self.count * self.row_units * shape.unit_lines());
            }
        }
        match set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 | InstructionSet::Amx => {
                // SAFETY: lengths were checked above, the instruction set when it was chosen.
                unsafe { avx512::multiply(self) }
            }
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => {
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
    assert!(out.len() >= units * Shape::of(format).unit_lines());
    match set {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 | InstructionSet::Amx => {
            // SAFETY: lengths were checked above, the instruction set when it was chosen.
            unsafe { avx512::unpack(format, panel, units, out) }
        }
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => {
            // SAFETY: as above.
            unsafe { avx2::unpack(format, panel, units, out) }
        }
        // SAFETY: as above; no instruction set is needed.
        _ => unsafe { scalar::unpack(format, panel, units, out) },
    }
}

/// The activations of a product with `format`.
fn layout(set: InstructionSet, format: &Format, cols: usize) -> Layout {
    let shape = Shape::of(format);
    // AVX2 multiplies codes of eight bits with their sign.
    let offset = if shape.wide && set == InstructionSet::Avx2 {
        0
    } else {
        format.offset()
    };
    Layout {
        cols,
        groups: shape.groups,
        sums: if shape.minima {
            Sums::Minima
        } else {
            Sums::Offset(offset)
        },
    }
}

fn quantise(set: InstructionSet, layout: &Layout, x: &[f32], rows: usize, words: &mut [u32]) {
    match set {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 | InstructionSet::Amx => {
            // SAFETY: the instruction set was checked when it was chosen.
            unsafe { avx512::quantise(layout, x, rows, words) }
        }
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => {
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
    let panels = products.iter().map(|product| product.w.panels()).sum();
    let work = products.iter().map(Product::work).sum();
    // A few tasks a thread, so that a thread that is held up elsewhere does not hold up the rest.
    let tasks = tasks(panels, work);
    for_each_task(tasks, |task| {
        let mut skipped = 0;
        for product in products {
            let own = cut(panels, tasks, task)..cut(panels, tasks, task + 1);
            let inside =
                |panel: usize| panel.clamp(skipped, skipped + product.w.panels()) - skipped;
            (inside(own.start)..inside(own.end)).for_each(|panel| product.narrow(panel, x));
            skipped += product.w.panels();
        }
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
        let shape = Shape::of(&self.format);
        // Rows are cut, too, where panels alone do not keep the threads busy.
        let blocks = (4 * threads()).div_ceil(pairs).min(tiles);
        for_each_task(pairs * blocks, |task| {
            let (pair, block) = (task / blocks, task % blocks);
            let first = 2 * pair;
            let count = 2.min(panels - first);
            with_scratch(count * units * shape.unit_lines(), |unpacked| {
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
        let lines = units * Shape::of(&self.format).unit_lines();
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
