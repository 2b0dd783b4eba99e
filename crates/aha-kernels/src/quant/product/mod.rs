//! Products with block-quantised weights: integer dot products of eight-bit activations.
//!
//! Codes of weights and of activations are multiplied and summed as integers within each group of 16 or
//! 32 columns that shares a scale, which is exact; group by group, in the order of the columns, the
//! sums are scaled and added in `f32`. The activations' rounding ([`Layout`]) is all that such a product
//! differs by from one with the dequantised weights, besides the rounding of sums.
//!
//! Codes are unpacked in registers as they stream by. Where registers are few and rows many, panels are
//! first unpacked to whole bytes, which then meet one tile of rows after another.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod pairs;
mod scalar;

use std::ops::Range;

use smallvec::SmallVec;

use super::activations::{Layout, Plain, Sums};
use super::{Format, UNIT};
use crate::InstructionSet;
use crate::buffer::{Line, flat_mut, with_indices, with_scratch};
use crate::matmul::{
    Job, MATRICES, Output, PARALLEL_FROM, announce, cut, for_each_job_piece, tasks,
};
use crate::pack::PackedMatrix;
use crate::pool::{TASKS, for_each_piece, threads};

/// Rows of the largest tile.
const MOST_ROWS: usize = 16;

/// Panels that one tile of rows after another meets while they stay in the second-level cache.
const GROUP: usize = 2;

/// Panels that are read side by side where they come from memory.
const STREAMS: usize = 8;

/// How many rows of `x` a tile takes at most: as many as have their integer sums in registers. The scaled
/// sums, which change once in a group of columns, may be elsewhere.
fn most_rows(set: InstructionSet) -> usize {
    match set {
        InstructionSet::Scalar => 1,
        set if set.has_avx512() => MOST_ROWS,
        #[cfg(target_arch = "aarch64")]
        set if set.has_neon() => neon::MOST,
        _ => 6,
    }
}

/// Whether panels are unpacked before they meet so many tiles of rows. The large tiles of AVX-512 hide
/// what it takes to unpack in registers, but not what it takes to read whole bytes.
fn unpacks(set: InstructionSet, tiles: usize) -> bool {
    !set.has_avx512() && tiles >= 6
}

/// Panels of a tile.
#[derive(Clone, Copy)]
enum Panel<'a> {
    /// As they are kept, so many bytes from one to the next.
    Packed(&'a [u8], usize),
    /// One, as [`unpack`] leaves it.
    Unpacked(&'a [Line]),
}

/// A tile: rows of quantised activations with some panels.
struct Tile<'a> {
    format: &'a Format,
    /// Activations of the whole rows, see [`Layout`].
    x: &'a [u32],
    rows: usize,
    /// Units of a row.
    row_units: usize,
    panel: Panel<'a>,
    panels: usize,
    /// `[panel][row]`; what they hold does not matter.
    sums: &'a mut [Line],
}

impl Tile<'_> {
    fn multiply(self, set: InstructionSet) {
        // The kernels index without further checks.
        let words = self.row_units * (UNIT / 4 + 1 + self.format.groups());
        assert!((1..=most_rows(set)).contains(&self.rows));
        assert!(self.x.len() >= self.rows * words);
        assert!(self.panels >= 1 && self.sums.len() >= self.panels * self.rows);
        match self.panel {
            Panel::Packed(panels, stride) => {
                let bytes = self.format.panel_bytes(self.row_units * UNIT);
                let last = (self.panels - 1) * stride;
                assert!(bytes.is_some_and(|bytes| panels.len() >= last + bytes));
            }
            Panel::Unpacked(lines) => {
                assert!(self.panels == 1);
                assert!(lines.len() >= self.row_units * self.format.unpacked_lines());
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
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            set if set.has_neon() => unsafe {
                match set {
                    InstructionSet::NeonI8mm => neon::multiply::<{ neon::I8MM }>(self),
                    InstructionSet::NeonDotprod => neon::multiply::<{ neon::DOTPROD }>(self),
                    _ => neon::multiply::<{ neon::WIDENED }>(self),
                }
            },
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
        set if set.has_avx2() => {
            // SAFETY: lengths were checked above, the instruction set when it was chosen.
            unsafe { avx2::unpack(format, panel, units, out) }
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        set if set.has_neon() => unsafe {
            match set {
                InstructionSet::NeonI8mm => {
                    neon::unpack::<{ neon::I8MM }>(format, panel, units, out)
                }
                _ => neon::unpack::<{ neon::DOTPROD }>(format, panel, units, out),
            }
        },
        // SAFETY: as above; no instruction set is needed.
        _ => unsafe { scalar::unpack(format, panel, units, out) },
    }
}

/// The activations of a product with `format`.
fn layout(set: InstructionSet, format: &Format, cols: usize) -> Layout {
    // AVX2 and NEON multiply codes of eight bits with their sign.
    let is_signed = !matches!(set, InstructionSet::Scalar) && !set.has_avx512();
    let offset = if format.bits == 8 && is_signed {
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
        // Products of small matrices take eight columns at once.
        pairs: set == InstructionSet::NeonI8mm,
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
        #[cfg(target_arch = "aarch64")]
        set if set.has_neon() => {
            // SAFETY: as above.
            unsafe { neon::quantise(layout, x, rows, words) }
        }
        // SAFETY: the plain form needs no instruction set.
        _ => unsafe { layout.quantise::<Plain>(x, rows, words) },
    }
}

/// The products; shapes were checked by the caller, and all kinds have formats.
pub(crate) fn matmul(set: InstructionSet, jobs: &[Job<'_>], x: &[f32], m: usize) {
    let formats = jobs.iter().filter_map(|job| Format::of(job.w.kind()));
    let products: SmallVec<[Product<'_>; MATRICES]> = (jobs.iter().zip(formats))
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
            let parallel = m * layout.cols >= PARALLEL_FROM;
            with_indices(|starts| {
                starts.extend((0..=tiles).map(|tile| cut(m, tiles, tile) * layout.row_words()));
                for_each_piece(words, starts, parallel, |tile, words| {
                    let rows = cut(m, tiles, tile)..cut(m, tiles, tile + 1);
                    let x = &x[rows.start * layout.cols..rows.end * layout.cols];
                    quantise(set, &layout, x, rows.len(), words);
                });
            });
            multiply(products, words, tiles);
        });
    }
}

/// Products with the same activations.
fn multiply(products: &[Product<'_>], x: &[u32], tiles: usize) {
    announce(products[0].m, products.iter().map(|product| product.w));
    let panels: usize = products.iter().map(|product| product.w.panels()).sum();
    let group = match tiles {
        // As many as leave something for each thread.
        1 => (panels / (2 * threads())).clamp(1, STREAMS),
        _ => GROUP,
    };
    let groups: SmallVec<[_; MATRICES]> = (products.iter())
        .map(|product| product.w.panels().div_ceil(group))
        .collect();
    let all: usize = groups.iter().sum();
    if tiles == 1 {
        // The weights stream through once, in the order that they lie in.
        let tasks = tasks(all, products.iter().map(Product::work).sum());
        return for_each_job_piece(&groups, tasks, |product, piece| {
            let product = &products[product];
            let panels = piece * group..product.w.panels().min((piece + 1) * group);
            product.multiply_side_by_side(panels, x);
        });
    }
    // Rows are cut, too, where panels alone do not keep the threads busy.
    let blocks = (TASKS * threads()).div_ceil(all.max(1)).min(tiles);
    let pieces: SmallVec<[_; MATRICES]> = groups.iter().map(|groups| groups * blocks).collect();
    for_each_job_piece(&pieces, all * blocks, |product, piece| {
        let product = &products[product];
        let (first, block) = (piece / blocks * GROUP, piece % blocks);
        let panels = first..product.w.panels().min(first + GROUP);
        let own = cut(tiles, blocks, block)..cut(tiles, blocks, block + 1);
        product.multiply(panels, x, tiles, own);
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

    /// Some panels with all rows, which are one tile.
    fn multiply_side_by_side(&self, panels: Range<usize>, x: &[u32]) {
        let mut sums = [Line::ZERO; STREAMS * MOST_ROWS];
        let bytes = self.w.panel_range(panels.start, panels.len());
        Tile {
            format: &self.format,
            x,
            rows: self.m,
            row_units: self.layout.units(),
            panel: Panel::Packed(bytes, self.w.panel_bytes()),
            panels: panels.len(),
            sums: &mut sums,
        }
        .multiply(self.set);
        for (index, line) in sums[..panels.len() * self.m].iter().enumerate() {
            let (panel, row) = (panels.start + index / self.m, index % self.m);
            // SAFETY: these panels are this task's own.
            unsafe { self.out.write(row, panel, line) }
        }
    }

    /// Some panels with some of the tiles of rows.
    fn multiply(&self, panels: Range<usize>, x: &[u32], tiles: usize, own: Range<usize>) {
        if !unpacks(self.set, own.len()) {
            let packed = |panel| Panel::Packed(self.w.panel(panel), 0);
            return self.multiply_tiles(panels, packed, x, tiles, own);
        }
        let units = self.layout.units();
        let lines = units * self.format.unpacked_lines();
        with_scratch(panels.len() * lines, |scratch| {
            for (panel, out) in panels.clone().zip(scratch.chunks_exact_mut(lines.max(1))) {
                unpack(self.set, &self.format, self.w.panel(panel), units, out);
            }
            let first = panels.start;
            let unpacked = |panel| Panel::Unpacked(&scratch[(panel - first) * lines..][..lines]);
            self.multiply_tiles(panels, unpacked, x, tiles, own);
        });
    }

    fn multiply_tiles<'a>(
        &self,
        panels: Range<usize>,
        panel_at: impl Fn(usize) -> Panel<'a>,
        x: &[u32],
        tiles: usize,
        own: Range<usize>,
    ) {
        let mut sums = [Line::ZERO; MOST_ROWS];
        for tile in own {
            let rows = cut(self.m, tiles, tile)..cut(self.m, tiles, tile + 1);
            for panel in panels.clone() {
                Tile {
                    format: &self.format,
                    x: &x[rows.start * self.layout.row_words()..],
                    rows: rows.len(),
                    row_units: self.layout.units(),
                    panel: panel_at(panel),
                    panels: 1,
                    sums: &mut sums,
                }
                .multiply(self.set);
                for (row, line) in rows.clone().zip(&sums) {
                    // SAFETY: these panels of these rows are this task's own.
                    unsafe { self.out.write(row, panel, line) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WeightKind;
    use crate::matmul::tests::values;

    #[test]
    fn every_instruction_set_quantises_to_the_same_bits() {
        let mut x = values(3 * 128, 7);
        // Ties, and a unit each with what is not finite, with what is tiny, and with nothing.
        x[..4].copy_from_slice(&[127.0, 0.5, 1.5, -2.5]);
        x[32] = f32::NAN;
        x[64] = f32::NEG_INFINITY;
        x[96..128].fill(1e-38);
        x[128..160].fill(-0.0);
        for kind in [WeightKind::Q8_0, WeightKind::Q4K, WeightKind::Q6K] {
            let format = Format::of(kind).unwrap();
            let quantised = |set: InstructionSet| {
                let layout = layout(InstructionSet::Scalar, &format, 128);
                let mut words = vec![0; 3 * layout.row_words()];
                quantise(set, &layout, &x, 3, &mut words);
                words
            };
            let want = quantised(InstructionSet::Scalar);
            for set in InstructionSet::available() {
                // Sums and scales that are NaN may differ in bits that say nothing.
                let same = quantised(set).into_iter().zip(&want).all(|(have, &want)| {
                    let is_nan = |word| f32::from_bits(word).is_nan();
                    have == want || is_nan(have) && is_nan(want)
                });
                assert!(same, "{set:?}, {kind:?}");
            }
        }
    }
}
