//! The kernel, written once over what an instruction set does with sixteen lanes and over where a
//! panel's codes and scales are found.
//!
//! Everything here is inlined into functions that have the instruction set. Closures are not: a call
//! inside `array::map` would be made without it, an instruction at a time.

use super::{Panel, Tile};
use crate::buffer::{Line, prefetch_at};
use crate::pack::PANEL;
use crate::quant::{Format, Scales, UNIT};

/// Products of four columns that make up a unit.
pub(super) const STEPS: usize = UNIT / 4;

/// Sixteen lanes, one for each row of a panel.
///
/// # Safety
/// All functions ask for the instruction set of the implementation; those that take a pointer for what
/// they read or write there: 64 bytes unless they say otherwise.
pub(super) trait Lanes {
    /// Sums of integers.
    type Int: Copy;
    /// Bits of four codes a lane.
    type Words: Copy;
    /// Four codes a lane, ready for products.
    type Codes: Copy;
    type Float: Copy;

    /// Whether there are tiles of panels that were unpacked first.
    const UNPACKS: bool;

    unsafe fn integers(value: i32) -> Self::Int;
    unsafe fn words(at: *const u8) -> Self::Words;
    /// The lowest `bits` bits of every byte after a shift to the right.
    unsafe fn field(words: Self::Words, shift: usize, bits: usize) -> Self::Words;
    /// `low | high << up`.
    unsafe fn join(low: Self::Words, high: Self::Words, up: usize) -> Self::Words;
    unsafe fn store_words(words: Self::Words, at: *mut u8);
    /// `wide`, a constant: codes may have all eight bits.
    unsafe fn codes(words: Self::Words, wide: bool) -> Self::Codes;
    /// Adds the dot product of four codes with the four signed bytes of `x`.
    unsafe fn dot(sums: Self::Int, codes: Self::Codes, x: u32, wide: bool) -> Self::Int;
    /// The same for step `STEP` of a unit and each of `ROWS` rows, whose words begin at `x`.
    #[inline(always)]
    #[allow(
        clippy::needless_range_loop,
        reason = "as plain as the kernel's own loops"
    )]
    unsafe fn dot_rows<const STEP: usize, const ROWS: usize>(
        sums: &mut [Self::Int; ROWS],
        codes: Self::Codes,
        x: *const u32,
        wide: bool,
    ) {
        for row in 0..ROWS {
            // SAFETY: the caller's promise.
            unsafe {
                let x = x.add(STEP * ROWS + row).read();
                sums[row] = Self::dot(sums[row], codes, x, wide);
            }
        }
    }
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
    unsafe fn multiply(a: Self::Float, b: Self::Float) -> Self::Float;
    unsafe fn negate(a: Self::Float) -> Self::Float;
    /// Sixteen `f16` numbers in 32 bytes.
    unsafe fn halves(at: *const u8) -> Self::Float;
    /// Sixteen signed bytes as numbers: of each, `bits` bits from `shift` on.
    unsafe fn bytes(at: *const u8, shift: usize, bits: usize) -> Self::Float;
    /// Brings the codes of an unpacked unit, [`STEPS`] lines, to another order where the kernel wants one.
    #[inline(always)]
    unsafe fn arrange(_unit: *mut u8) {}
    /// [`kernel`] in a function of its own, compiled for the instruction set.
    unsafe fn run<S: Source<Self>, const ROWS: usize>(
        x: *const u32,
        units: usize,
        source: S,
        panels: usize,
        out: *mut Line,
    ) where
        Self: Sized;
}

/// Where a kernel finds the units of a panel, the first of those of a tile.
///
/// # Safety
/// The panel must hold the unit, and the instruction set of `V` be present.
pub(super) trait Source<V: Lanes>: Copy {
    /// Groups of a unit with a scale of their own: one or two.
    const GROUPS: usize;
    /// Whether groups have minima.
    const MINIMA: bool;
    /// Whether codes have all eight bits.
    const WIDE: bool;
    /// Whether codes are whole bytes, in the order of [`Lanes::arrange`].
    #[cfg_attr(
        not(target_arch = "aarch64"),
        allow(dead_code, reason = "only kernels with an order of their own ask")
    )]
    const UNPACKED: bool;

    /// Panel `index` of the tile, for a unit.
    unsafe fn panel(self, index: usize, unit: usize) -> Self;
    /// Scale and minimum of a group (any number where the format has no minima).
    unsafe fn factors<const GROUP: usize>(self, unit: usize) -> (V::Float, V::Float);
    /// The codes of columns `4 * STEP..4 * STEP + 4`, a byte each.
    unsafe fn words<const STEP: usize>(self, unit: usize) -> V::Words;
}

/// A panel as [`unpack`] leaves it, by itself.
#[derive(Clone, Copy)]
pub(super) struct Unpacked<const GROUPS: usize, const MINIMA: bool, const WIDE: bool> {
    panel: *const Line,
}

impl<const GROUPS: usize, const MINIMA: bool, const WIDE: bool> Unpacked<GROUPS, MINIMA, WIDE> {
    const FACTORS: usize = GROUPS * (1 + MINIMA as usize);
    const LINES: usize = Self::FACTORS + STEPS;
}

impl<V: Lanes, const GROUPS: usize, const MINIMA: bool, const WIDE: bool> Source<V>
    for Unpacked<GROUPS, MINIMA, WIDE>
{
    const GROUPS: usize = GROUPS;
    const MINIMA: bool = MINIMA;
    const WIDE: bool = WIDE;
    const UNPACKED: bool = true;

    #[inline(always)]
    unsafe fn panel(self, _index: usize, _unit: usize) -> Self {
        self
    }

    #[inline(always)]
    unsafe fn factors<const GROUP: usize>(self, unit: usize) -> (V::Float, V::Float) {
        // SAFETY: the caller's promise.
        unsafe {
            let lines = self.panel.add(unit * Self::LINES + GROUP);
            let scale = V::load(lines.cast());
            if MINIMA {
                (scale, V::load(lines.add(GROUPS).cast()))
            } else {
                (scale, scale)
            }
        }
    }

    #[inline(always)]
    unsafe fn words<const STEP: usize>(self, unit: usize) -> V::Words {
        // SAFETY: the caller's promise.
        unsafe {
            V::words(
                self.panel
                    .add(unit * Self::LINES + Self::FACTORS + STEP)
                    .cast(),
            )
        }
    }
}

/// A panel as it is kept, of a format whose layout is known to the compiler.
#[derive(Clone, Copy)]
pub(super) struct Packed<const BITS: usize, const MINIMA: bool, const NESTED: bool> {
    panel: *const u8,
    /// Bytes from one panel to the next.
    stride: usize,
    /// From a word to what is asked for with it.
    ahead: usize,
    /// The unit from which on that lies behind the panel, and how much further on the panel in its place is then:
    /// that of the next tile.
    turn: usize,
    skip: usize,
}

/// Bytes that are asked for ahead of use, over all panels of a tile.
const PREFETCH: usize = 8192;

impl<const BITS: usize, const MINIMA: bool, const NESTED: bool> Packed<BITS, MINIMA, NESTED> {
    /// The first of `count` panels of `units` units.
    fn new(panel: *const u8, count: usize, stride: usize, units: usize) -> Self {
        let ahead = PREFETCH / count;
        let ahead_units = ahead / Self::PACKED_BYTES * Self::UNITS;
        Self {
            panel,
            stride,
            ahead,
            turn: units.saturating_sub(ahead_units),
            skip: (count - 1) * stride,
        }
    }

    const FORMAT: Format = Format::laid_out(BITS, MINIMA, NESTED);
    const UNITS: usize = Self::FORMAT.units();
    const PACKED_BYTES: usize = Self::FORMAT.packed_bytes();
    const SIDE_BYTES: usize = Self::FORMAT.side_bytes();
    const CODE_BYTES: usize = Self::FORMAT.code_bytes();
    const FACTOR_BYTES: usize = Self::FORMAT.factor_bytes();
    const PARTS: usize = Self::FORMAT.parts();

    /// The block that holds a unit, and the unit's number in it: `Format::unit_places` in constants.
    #[inline(always)]
    unsafe fn block(self, unit: usize) -> (*const u8, usize) {
        // SAFETY: the caller's promise.
        let block = unsafe { self.panel.add(unit / Self::UNITS * Self::PACKED_BYTES) };
        (block, unit % Self::UNITS)
    }
}

impl<V: Lanes, const BITS: usize, const MINIMA: bool, const NESTED: bool> Source<V>
    for Packed<BITS, MINIMA, NESTED>
{
    const GROUPS: usize = Self::FORMAT.groups();
    const MINIMA: bool = MINIMA;
    const WIDE: bool = BITS == 8;
    const UNPACKED: bool = false;

    #[inline(always)]
    unsafe fn panel(self, index: usize, unit: usize) -> Self {
        let turned = if unit < self.turn { 0 } else { self.skip };
        Self {
            panel: self.panel.wrapping_add(index * self.stride),
            ahead: self.ahead + turned,
            ..self
        }
    }

    #[inline(always)]
    unsafe fn factors<const GROUP: usize>(self, unit: usize) -> (V::Float, V::Float) {
        // SAFETY: the caller's promise; the places are those of the layout.
        unsafe {
            let (block, unit) = self.block(unit);
            // A block has as many factors as it has parts.
            let factors = block.add(unit % Self::PARTS * Self::FACTOR_BYTES);
            let factor = V::halves(factors);
            let term = if MINIMA {
                V::halves(factors.add(2 * PANEL))
            } else {
                factor
            };
            let Scales::Nested { groups, shared } = Self::FORMAT.scales else {
                // A term is added, a minimum subtracted.
                return (factor, if MINIMA { V::negate(term) } else { factor });
            };
            let scales = block.add(Self::PARTS * Self::FACTOR_BYTES);
            let bytes = scales.add(unit * const { Self::FORMAT.scale_bytes() } + GROUP * PANEL);
            let scale = V::multiply(factor, V::bytes(bytes, 0, if shared { 4 } else { 8 }));
            if !MINIMA {
                return (scale, scale);
            }
            let minimum = if shared {
                V::bytes(bytes, 4, 4)
            } else {
                // Minima are below 64: their sign does not matter.
                V::bytes(bytes.add(groups * PANEL), 0, 8)
            };
            (scale, V::multiply(term, minimum))
        }
    }

    #[inline(always)]
    unsafe fn words<const STEP: usize>(self, unit: usize) -> V::Words {
        // SAFETY: the caller's promise. The planes are those of `Format::places`.
        unsafe {
            let (block, unit) = self.block(unit);
            let words = block.add(Self::SIDE_BYTES + unit * Self::CODE_BYTES);
            if STEP < BITS {
                prefetch_at(words.wrapping_add(self.ahead + 4 * PANEL * STEP));
            }
            if STEP == 0 && unit == 0 {
                for line in 0..Self::SIDE_BYTES / 64 {
                    prefetch_at(block.wrapping_add(self.ahead + 64 * line));
                }
            }
            match BITS {
                8 => V::words(words.add(STEP * 4 * PANEL)),
                6 => V::join(
                    plane::<V, 4, STEP>(words, 0),
                    plane::<V, 2, STEP>(words, 4),
                    4,
                ),
                5 => V::join(
                    plane::<V, 4, STEP>(words, 0),
                    plane::<V, 1, STEP>(words, 4),
                    4,
                ),
                4 => plane::<V, 4, STEP>(words, 0),
                3 => V::join(
                    plane::<V, 2, STEP>(words, 0),
                    plane::<V, 1, STEP>(words, 2),
                    2,
                ),
                _ => plane::<V, 2, STEP>(words, 0),
            }
        }
    }
}

/// The bits that a plane of `BITS` bits, which begins at word `first`, has for four columns.
///
/// # Safety
/// As [`Source::words`].
#[inline(always)]
unsafe fn plane<V: Lanes, const BITS: usize, const STEP: usize>(
    words: *const u8,
    first: usize,
) -> V::Words {
    let steps = 8 / BITS; // that share a word
    // SAFETY: the caller's promise.
    unsafe {
        let word = V::words(words.add((first + STEP / steps) * 4 * PANEL));
        V::field(word, STEP % steps * BITS, BITS)
    }
}

/// Calls `$body!(bits, minima, nested)` with the constants of a format.
macro_rules! with_layout {
    ($format:expr, $body:ident) => {
        match (
            $format.bits,
            $format.minima,
            $format.scales != Scales::Plain,
        ) {
            (2, _, _) => $body!(2, true, true),
            (3, _, _) => $body!(3, false, true),
            (4, false, _) => $body!(4, false, false),
            (4, true, false) => $body!(4, true, false),
            (4, true, true) => $body!(4, true, true),
            (5, false, _) => $body!(5, false, false),
            (5, true, false) => $body!(5, true, false),
            (5, true, true) => $body!(5, true, true),
            (6, _, _) => $body!(6, false, true),
            (_, _, _) => $body!(8, false, false),
        }
    };
}

/// See [`Tile::multiply`].
///
/// # Safety
/// The lengths must be as asserted there, and the instruction set of `V` present. `MOST` is the number
/// of rows that a tile may have.
pub(super) unsafe fn multiply<V: Lanes, const MOST: usize>(tile: Tile<'_>) {
    match tile.panel {
        Panel::Packed(panels, stride) => {
            let (start, units) = (panels.as_ptr(), tile.row_units);
            macro_rules! packed {
                ($bits:literal, $minima:literal, $nested:literal) => {{
                    let panel =
                        Packed::<$bits, $minima, $nested>::new(start, tile.panels, stride, units);
                    // SAFETY: the caller's promises.
                    unsafe { rows::<V, _, MOST>(tile, panel) }
                }};
            }
            with_layout!(tile.format, packed)
        }
        Panel::Unpacked(lines) if const { V::UNPACKS } => {
            let panel = lines.as_ptr();
            macro_rules! unpacked {
                ($groups:literal, $minima:literal, $wide:literal) => {{
                    let panel = Unpacked::<$groups, $minima, $wide> { panel };
                    // SAFETY: the caller's promises.
                    unsafe { rows::<V, _, MOST>(tile, panel) }
                }};
            }
            let format = tile.format;
            match (format.groups(), format.minima, format.bits) {
                (1, false, 8) => unpacked!(1, false, true),
                (1, false, _) => unpacked!(1, false, false),
                (1, true, _) => unpacked!(1, true, false),
                (_, false, _) => unpacked!(2, false, false),
                (_, true, _) => unpacked!(2, true, false),
            }
        }
        Panel::Unpacked(_) => unreachable!("panels are unpacked in registers"),
    }
}

unsafe fn rows<V: Lanes, S: Source<V>, const MOST: usize>(tile: Tile<'_>, source: S) {
    let (x, units, sums) = (tile.x.as_ptr(), tile.row_units, tile.sums.as_mut_ptr());
    let panels = tile.panels;
    macro_rules! shapes {
        ($($rows:literal)*) => {
            match tile.rows {
                // Not a guard of the arm: only so are tiles that cannot be not compiled.
                $($rows => if const { $rows <= MOST } {
                    // SAFETY: the caller's promises.
                    unsafe { V::run::<S, $rows>(x, units, source, panels, sums) }
                },)*
                rows => unreachable!("no tile of {rows} rows"),
            }
        };
    }
    shapes!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
}

/// `ROWS` rows of `x`, as [`Layout`](super::Layout) has them, with some panels, which advance side by side: several
/// places of memory bring more at a time than one. Sums go to `[panel][row]`, and are there meanwhile, since they
/// change once in a group of columns.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
pub(super) unsafe fn kernel<V: Lanes, S: Source<V>, const ROWS: usize>(
    x: *const u32,
    units: usize,
    source: S,
    panels: usize,
    out: *mut Line,
) {
    // SAFETY: the caller's promises; all offsets are those of the layouts.
    unsafe {
        let scales: *const f32 = x.add(ROWS * units * STEPS).cast();
        let row_sums = scales.add(ROWS * units);
        for line in 0..panels * ROWS {
            V::store(V::zeros(), out.add(line).cast());
        }
        for unit in 0..units {
            let x = x.add(unit * STEPS * ROWS);
            let scales = scales.add(unit * ROWS);
            let row_sums = row_sums.add(unit * S::GROUPS * ROWS);
            for index in 0..panels {
                let panel = source.panel(index, unit);
                let out: *mut f32 = out.add(index * ROWS).cast();
                macro_rules! group {
                    ($group:literal: $($step:literal)*) => {{
                        let row_sums = row_sums.add($group * ROWS);
                        let mut integers = [V::integers(0); ROWS];
                        if !S::MINIMA {
                            for row in 0..ROWS {
                                integers[row] = V::integers(row_sums.add(row).cast::<i32>().read());
                            }
                        }
                        $(
                            let codes = V::codes(panel.words::<$step>(unit), S::WIDE);
                            V::dot_rows::<$step, ROWS>(&mut integers, codes, x, S::WIDE);
                        )*
                        let (scale, minimum) = panel.factors::<$group>(unit);
                        for row in 0..ROWS {
                            let (out, factor) = (out.add(PANEL * row), scales.add(row).read());
                            let mut sums = V::load(out);
                            sums = V::add_scaled(sums, integers[row], scale, factor);
                            if S::MINIMA {
                                sums = V::subtract(sums, minimum, row_sums.add(row).read());
                            }
                            V::store(sums, out);
                        }
                    }};
                }
                if S::GROUPS == 1 {
                    group!(0: 0 1 2 3 4 5 6 7);
                } else {
                    group!(0: 0 1 2 3);
                    group!(1: 4 5 6 7);
                }
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
    units: usize,
    out: &mut [Line],
) {
    let (panel, out) = (panel.as_ptr(), out.as_mut_ptr());
    macro_rules! units {
        ($bits:literal, $minima:literal, $nested:literal) => {{
            let source = Packed::<$bits, $minima, $nested>::new(panel, 1, 0, units);
            // SAFETY: the caller's promises.
            unsafe { unpack_units::<V, _>(source, units, out) }
        }};
    }
    with_layout!(format, units)
}

#[inline(always)]
unsafe fn unpack_units<V: Lanes, S: Source<V>>(source: S, units: usize, mut out: *mut Line) {
    for unit in 0..units {
        // SAFETY: the caller's promises.
        unsafe {
            macro_rules! factors {
                ($group:literal) => {
                    let (scale, minimum) = source.factors::<$group>(unit);
                    V::store(scale, out.add($group).cast());
                    if S::MINIMA {
                        V::store(minimum, out.add(S::GROUPS + $group).cast());
                    }
                };
            }
            factors!(0);
            if S::GROUPS == 2 {
                factors!(1);
            }
            out = out.add(S::GROUPS * if S::MINIMA { 2 } else { 1 });
            macro_rules! steps {
                ($($step:literal)*) => {
                    $(V::store_words(source.words::<$step>(unit), out.add($step).cast());)*
                };
            }
            steps!(0 1 2 3 4 5 6 7);
            V::arrange(out.cast());
            out = out.add(STEPS);
        }
    }
}
