//! The kernel, written once over what an instruction set does with sixteen lanes.

use super::{Shape, Tile};
use crate::buffer::Line;
use crate::pack::PANEL;
use crate::quant::{Format, Scales, UNIT};

/// Sixteen lanes, one for each row of a panel.
///
/// # Safety
/// All functions ask for the instruction set of the implementation; those that take a pointer for 64
/// readable (or writable) bytes there.
pub(super) trait Lanes {
    /// Sums of integers.
    type Int: Copy;
    /// Four codes a lane.
    type Codes: Copy;
    type Float: Copy;

    unsafe fn integers(value: i32) -> Self::Int;
    /// `WIDE`: codes may have all eight bits.
    unsafe fn codes<const WIDE: bool>(at: *const u8) -> Self::Codes;
    /// Adds the dot product of four codes with the four signed bytes of `x`.
    unsafe fn dot<const WIDE: bool>(sums: Self::Int, codes: Self::Codes, x: u32) -> Self::Int;
    unsafe fn zeros() -> Self::Float;
    unsafe fn load(at: *const f32) -> Self::Float;
    unsafe fn store(values: Self::Float, at: *mut f32);
    /// `sums + integers * (scale * factor)`.
    unsafe fn add_scaled(
        sums: Self::Float,
        integers: Self::Int,
        scale: Self::Float,
        factor: f32,
    ) -> Self::Float;
    /// `sums - minimum * factor`.
    unsafe fn subtract(sums: Self::Float, minimum: Self::Float, factor: f32) -> Self::Float;
    /// Sixteen `f16` numbers, of which only 32 bytes are read.
    unsafe fn halves(at: *const u8) -> [f32; PANEL];
}

/// See [`Tile::multiply`].
///
/// # Safety
/// The lengths must be as asserted there, and the instruction set of `V` present. `MOST` is the number
/// of rows that one panel may have, `PAIR` the number that two may have.
#[inline(always)]
pub(super) unsafe fn multiply<V: Lanes, const MOST: usize, const PAIR: usize>(tile: Tile<'_>) {
    // SAFETY: the caller's promises.
    unsafe {
        match (tile.shape.groups, tile.shape.minima, tile.shape.wide) {
            (1, false, true) => rows::<V, MOST, PAIR, 1, false, true>(tile),
            (1, false, false) => rows::<V, MOST, PAIR, 1, false, false>(tile),
            (1, true, _) => rows::<V, MOST, PAIR, 1, true, false>(tile),
            (_, false, _) => rows::<V, MOST, PAIR, 2, false, false>(tile),
            (_, true, _) => rows::<V, MOST, PAIR, 2, true, false>(tile),
        }
    }
}

#[inline(always)]
unsafe fn rows<
    V: Lanes,
    const MOST: usize,
    const PAIR: usize,
    const GROUPS: usize,
    const MINIMA: bool,
    const WIDE: bool,
>(
    tile: Tile<'_>,
) {
    let sums = tile.sums.as_mut_ptr();
    macro_rules! shapes {
        ($($rows:literal),*) => {
            match (tile.rows, tile.count) {
                $(
                    ($rows, 2) if $rows <= PAIR => {
                        // SAFETY: the caller's promises.
                        unsafe { kernel::<V, $rows, 2, GROUPS, MINIMA, WIDE>(&tile, 0, sums) }
                    }
                    ($rows, count) if $rows <= MOST => {
                        for panel in 0..count {
                            // SAFETY: the caller's promises; each panel has `rows` sums.
                            unsafe {
                                let sums = sums.add(panel * $rows);
                                kernel::<V, $rows, 1, GROUPS, MINIMA, WIDE>(&tile, panel, sums);
                            }
                        }
                    }
                )*
                (rows, count) => unreachable!("no tile of {rows} rows and {count} panels"),
            }
        };
    }
    shapes!(1, 2, 3, 4, 5, 6);
}

/// `ROWS` rows of `x` with `PANELS` panels from `first` on.
#[inline(always)]
unsafe fn kernel<
    V: Lanes,
    const ROWS: usize,
    const PANELS: usize,
    const GROUPS: usize,
    const MINIMA: bool,
    const WIDE: bool,
>(
    tile: &Tile<'_>,
    first: usize,
    out: *mut Line,
) {
    const STEPS: usize = UNIT / 4;
    let unit_lines = tile.shape.unit_lines();
    let panel_lines = tile.units.len() * unit_lines;
    // SAFETY: the caller's promises; all offsets are those of the layouts.
    unsafe {
        let panels: [*const Line; PANELS] =
            std::array::from_fn(|panel| tile.panels.as_ptr().add((first + panel) * panel_lines));
        let codes = tile.x.as_ptr();
        let scales: *const f32 = codes.add(ROWS * tile.row_units * STEPS).cast();
        let row_sums = scales.add(ROWS * tile.row_units);
        let mut sums = [[V::zeros(); PANELS]; ROWS];
        if tile.accumulate {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (panel, sums) in sums.iter_mut().enumerate() {
                    *sums = V::load(out.add(panel * ROWS + row).cast());
                }
            }
        }
        for (index, unit) in tile.units.clone().enumerate() {
            let lines = panels.map(|panel| panel.add(index * unit_lines));
            for group in 0..GROUPS {
                let row_sums = row_sums.add((unit * GROUPS + group) * ROWS);
                let mut integers: [[V::Int; PANELS]; ROWS] = std::array::from_fn(|row| {
                    let start = if MINIMA {
                        0
                    } else {
                        row_sums.add(row).cast::<i32>().read()
                    };
                    [V::integers(start); PANELS]
                });
                let steps = STEPS / GROUPS * group..STEPS / GROUPS * (group + 1);
                let factors = GROUPS * (1 + MINIMA as usize);
                for step in steps {
                    let x = codes.add((unit * STEPS + step) * ROWS);
                    let weights =
                        lines.map(|lines| V::codes::<WIDE>(lines.add(factors + step).cast()));
                    for (row, integers) in integers.iter_mut().enumerate() {
                        let x = x.add(row).read();
                        for (integers, weights) in integers.iter_mut().zip(weights) {
                            *integers = V::dot::<WIDE>(*integers, weights, x);
                        }
                    }
                }
                let scale = lines.map(|lines| V::load(lines.add(group).cast()));
                for (row, (sums, integers)) in sums.iter_mut().zip(integers).enumerate() {
                    let factor = scales.add(unit * ROWS + row).read();
                    for panel in 0..PANELS {
                        sums[panel] =
                            V::add_scaled(sums[panel], integers[panel], scale[panel], factor);
                        if MINIMA {
                            let minimum = V::load(lines[panel].add(GROUPS + group).cast());
                            sums[panel] =
                                V::subtract(sums[panel], minimum, row_sums.add(row).read());
                        }
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (panel, sums) in sums.iter().enumerate() {
                V::store(*sums, out.add(panel * ROWS + row).cast());
            }
        }
    }
}

/// See [`super::unpack`].
///
/// # Safety
/// The lengths must be as asserted there, and the instruction set of `V` present.
#[inline(always)]
pub(super) unsafe fn unpack<V: Lanes>(
    format: &Format,
    panel: &[u8],
    units: std::ops::Range<usize>,
    out: &mut [Line],
) {
    // SAFETY: the caller's promises.
    unsafe {
        match format.bits {
            2 => unpack_units::<V, 2>(format, panel, units, out),
            3 => unpack_units::<V, 3>(format, panel, units, out),
            4 => unpack_units::<V, 4>(format, panel, units, out),
            5 => unpack_units::<V, 5>(format, panel, units, out),
            6 => unpack_units::<V, 6>(format, panel, units, out),
            _ => unpack_units::<V, 8>(format, panel, units, out),
        }
    }
}

/// Bytes that are asked for ahead of use.
const PREFETCH: usize = 2048;

#[inline(always)]
unsafe fn unpack_units<V: Lanes, const BITS: usize>(
    format: &Format,
    panel: &[u8],
    units: std::ops::Range<usize>,
    out: &mut [Line],
) {
    let shape = Shape::of(format);
    let block_units = format.values / UNIT;
    let unit_bytes = format.unit_bytes();
    for (unit, lines) in units.zip(out.chunks_exact_mut(shape.unit_lines())) {
        let block = &panel[unit / block_units * format.packed_bytes()..][..format.packed_bytes()];
        let packed =
            &block[format.factor_bytes() + unit % block_units * unit_bytes..][..unit_bytes];
        for line in (0..unit_bytes).step_by(64) {
            crate::buffer::prefetch_at(packed.as_ptr().wrapping_add(PREFETCH + line));
        }
        // SAFETY: a block begins with its factors.
        let (factor, term) = unsafe {
            let term = if format.minima {
                V::halves(block.as_ptr().add(2 * PANEL))
            } else {
                [0.0; PANEL]
            };
            (V::halves(block.as_ptr()), term)
        };
        let (factors, steps) = lines.split_at_mut(shape.unit_lines() - UNIT / 4);
        scales(format, packed, factor, term, factors);
        let words = &packed[format.scale_bytes()..];
        for (step, line) in steps.iter_mut().enumerate() {
            four_columns::<BITS>(words, step, line);
        }
    }
}

/// Scales, then minima, of the groups of a unit.
#[inline(always)]
fn scales(
    format: &Format,
    unit: &[u8],
    factor: [f32; PANEL],
    term: [f32; PANEL],
    out: &mut [Line],
) {
    let Scales::Nested { groups, shared } = format.scales else {
        out[0].0 = factor;
        if let Some(minimum) = out.get_mut(1) {
            // A term is added, a minimum subtracted.
            minimum.0 = term.map(|term| -term);
        }
        return;
    };
    let (scales, minima) = out.split_at_mut(groups);
    for (group, scale) in scales.iter_mut().enumerate() {
        let bytes = &unit[group * PANEL..][..PANEL];
        for ((scale, byte), factor) in scale.0.iter_mut().zip(bytes).zip(factor) {
            let byte = if shared { byte & 15 } else { *byte };
            *scale = factor * f32::from(byte.cast_signed());
        }
    }
    for (group, minimum) in minima.iter_mut().enumerate() {
        let at = if shared { group } else { groups + group };
        let bytes = &unit[at * PANEL..][..PANEL];
        for ((minimum, byte), term) in minimum.0.iter_mut().zip(bytes).zip(term) {
            let byte = if shared { byte >> 4 } else { *byte };
            *minimum = term * f32::from(byte);
        }
    }
}

/// The codes of columns `4 * step..4 * step + 4`, a byte each, four a lane.
#[inline(always)]
fn four_columns<const BITS: usize>(words: &[u8], step: usize, out: &mut Line) {
    let word = |index: usize, lane: usize| {
        let at = 4 * (index * PANEL + lane);
        u32::from_ne_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]])
    };
    // The planes of `Format::places`, with every shift a constant.
    let plane = |bits: usize, first: usize, lane: usize| {
        let steps = 8 / bits;
        let mask = ((1_u32 << bits) - 1).wrapping_mul(0x0101_0101);
        word(first + step / steps, lane) >> (step % steps * bits) & mask
    };
    for lane in 0..PANEL {
        let code = match BITS {
            8 => word(step, lane),
            6 => plane(4, 0, lane) | plane(2, 4, lane) << 4,
            5 => plane(4, 0, lane) | plane(1, 4, lane) << 4,
            3 => plane(2, 0, lane) | plane(1, 2, lane) << 2,
            bits => plane(bits, 0, lane),
        };
        out.0[lane] = f32::from_bits(code);
    }
}
